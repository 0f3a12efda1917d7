package pods

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func policy(namespace, name string, selector map[string]string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(namespace + name)},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: metav1.LabelSelector{MatchLabels: selector}},
	}
}

// knows puts policies into the view of Kubernetes.
func (r *room) knows(list ...*networkingv1.NetworkPolicy) {
	r.t.Helper()
	for _, np := range list {
		if err := r.factory.Networking().V1().NetworkPolicies().Informer().GetIndexer().Add(np); err != nil {
			r.t.Fatal(err)
		}
	}
}

// policyEvents are the policies that the events tell of.
func (r *room) policyEvents() []string {
	r.t.Helper()
	list, err := r.kube.CoreV1().Events(metav1.NamespaceAll).List(r.t.Context(), metav1.ListOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	var out []string
	for _, e := range list.Items {
		if e.Reason != reasonPolicy || e.Type != corev1.EventTypeWarning || e.InvolvedObject.UID != "u" || e.InvolvedObject.Name != "p" {
			r.t.Errorf("%+v", e)
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(e.Message, "NetworkPolicy "), " ")
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func labelled(pod *corev1.Pod) { pod.Labels = map[string]string{"app": "web"} }

func TestPodIsToldOfPoliciesThatSelectIt(t *testing.T) {
	r := newRoom(t)
	pod := r.pod(labelled)
	all := []*networkingv1.NetworkPolicy{
		policy("ns", "web", map[string]string{"app": "web"}), policy("ns", "everything", nil),
		policy("ns", "db", map[string]string{"app": "db"}), policy("other", "elsewhere", nil),
	}
	r.knows(all...)
	want := []string{"everything", "web"}
	for range 2 { // the second time it is known
		if err := r.policies.tell(ctx, pod.UID); err != nil || !slices.Equal(r.policyEvents(), want) {
			t.Fatal(r.policyEvents(), err)
		}
	}
	// The next process does not tell it again: the events are there.
	r.restart()
	r.look(pod)
	r.knows(all...)
	if err := r.policies.tell(ctx, pod.UID); err != nil || !slices.Equal(r.policyEvents(), want) {
		t.Error(r.policyEvents(), err)
	}
	// Another label is another policy's.
	pod = pod.DeepCopy()
	pod.Labels["app"] = "db"
	r.look(pod)
	if err := r.policies.tell(ctx, pod.UID); err != nil || !slices.Equal(r.policyEvents(), []string{"db", "everything", "web"}) {
		t.Error(r.policyEvents(), err)
	}
	// A pod that is gone is forgotten.
	if err := r.informers[0].GetIndexer().Delete(pod); err != nil {
		t.Fatal(err)
	}
	if err := r.policies.tell(ctx, pod.UID); err != nil || len(r.policies.told) != 0 {
		t.Error(r.policies.told, err)
	}
}

func TestPoliciesOfWhoHasNoNetworkOfItsOwn(t *testing.T) {
	for name, change := range map[string]func(*corev1.Pod){
		"host network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"ended":        func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"going":        func(p *corev1.Pod) { p.DeletionTimestamp, p.Finalizers = &metav1.Time{Time: epoch}, []string{"x/y"} },
	} {
		r := newRoom(t)
		pod := r.pod(change)
		r.knows(policy("ns", "everything", nil))
		if err := r.policies.tell(ctx, pod.UID); err != nil || len(r.policyEvents()) != 0 {
			t.Errorf("%s: %v %v", name, r.policyEvents(), err)
		}
	}
}

// A new policy is looked at for every pod of its namespace, and for no other.
func TestNewPolicy(t *testing.T) {
	r := newRoom(t)
	r.pod(nil)
	r.policies.changed(policy("other", "a", nil))
	if n := r.policies.queue.Len(); n != 0 {
		t.Error(n)
	}
	r.policies.changed(policy("ns", "a", nil))
	if n := r.policies.queue.Len(); n != 1 {
		t.Error(n)
	}
}

func TestPoliciesThatMayNotBeReadAreSaidOnce(t *testing.T) {
	r := newRoom(t)
	var out bytes.Buffer
	r.Log = hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Warn})
	for range 3 {
		r.policies.failed(ctx, nil, apierrors.NewForbidden(networkingv1.Resource("networkpolicies"), "", errors.New("no")))
	}
	if n := strings.Count(out.String(), "NetworkPolicies may not be read"); n != 1 {
		t.Errorf("%d times:\n%s", n, out.String())
	}
}
