package agent

import (
	"testing"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay/wireguard"
)

// A machine that is another node than the last time has another key: two records
// with one are never followed both (fabric, Accept).
func TestTheKeyIsTheNodes(t *testing.T) {
	dir := t.TempDir()
	key := func(id, last fabric.ID) string {
		t.Helper()
		k, err := wireguard.LoadKey(keyPath(dir, id, last))
		if err != nil {
			t.Fatal(err)
		}
		return k.PublicKey().String()
	}
	first := key("k8s/one", "")
	if key("k8s/one", "k8s/one") != first {
		t.Error("it is another after a restart")
	}
	second := key("k8s/two", "k8s/one")
	if second == first {
		t.Error("a node that was made anew has the key of the former one")
	}
	// Killed before it had written who it is, and after.
	if key("k8s/two", "k8s/one") != second || key("k8s/two", "k8s/two") != second {
		t.Error("it is another after a restart as the new node")
	}
}
