package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/accelerator"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Whether clients run VMs by KVM is tried, kept with the client, and told by the
// Node. On a machine without KVM that is tcg; that a guest which runs is seen to
// run is shown with tcg, too.
func TestAccelerator(t *testing.T) {
	t.Parallel()
	client := onlyClient(t)
	works := func(with string) bool {
		ok, err := accelerator.Try(t.Context(), nomad, "default", client.ID, client.NodePool, with)
		if err != nil {
			t.Fatal(with, err)
		}
		return ok
	}
	if !works(translate.AcceleratorTCG) {
		t.Error("a guest that runs by tcg is said not to run")
	}
	if works("none-such") {
		t.Error("a guest without an accelerator is said to run")
	}
	meta, label := translate.AcceleratorTCG, "false"
	if works(translate.AcceleratorKVM) {
		meta, label = translate.AcceleratorKVM, "true"
	}
	eventually(t, 60*time.Second, "the client and the Node tell", func() error {
		n, err := kube.CoreV1().Nodes().Get(t.Context(), "nomad", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got, kept := n.Labels["nomad-kubelet.io/kvm"], onlyClient(t).Meta[translate.AcceleratorMeta]; got != label || kept != meta {
			return fmt.Errorf("label %q, want %q; metadata %q, want %q", got, label, kept, meta)
		}
		return nil
	})
	jobs, _, err := nomad.Jobs().List(&api.QueryOptions{Prefix: "nomad-kubelet-"})
	if err != nil || len(jobs) != 0 {
		t.Errorf("%d jobs of tries are left (%v)", len(jobs), err)
	}
}

// onlyClient is the client of the shared hybrid.
func onlyClient(t *testing.T) *api.Node {
	t.Helper()
	stubs, _, err := nomad.Nodes().List(nil)
	if err != nil || len(stubs) != 1 {
		t.Fatalf("%d clients (%v)", len(stubs), err)
	}
	n, _, err := nomad.Nodes().Info(stubs[0].ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
