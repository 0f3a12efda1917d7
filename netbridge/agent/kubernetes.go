package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// errAnew says that the Node is another object than the agent has started for.
var errAnew = errors.New("the Node was deleted and made again: start the agent again")

// nodeUID asks the API server for the Node's UID. Where it does not answer, the
// node is taken for the one that it was the last time, so that a machine whose
// cluster is away joins the network all the same.
func (a *Agent) nodeUID(ctx context.Context, last fabric.ID) (string, error) {
	told := ""
	for {
		uid, err := a.askUID(ctx)
		if err == nil {
			return uid, nil
		}
		if last.Kind() == fabric.KindK8s {
			a.Log.Info("the API server does not tell the Node's UID yet, takes it for the one of the last time", "node", last, "error", err)
			_, name, _ := strings.Cut(string(last), "/")
			return name, nil
		}
		if told != err.Error() {
			told = err.Error()
			a.Log.Warn("waits for the API server to tell the Node's UID", "error", err)
		}
		pause(ctx, retry)
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
	}
}

func (a *Agent) askUID(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, claimTimeout)
	defer cancel()
	n, err := a.Kube.CoreV1().Nodes().Get(ctx, a.Config.Node.Name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("node.name %q: %w", a.Config.Node.Name, err)
	}
	a.tellRanges(n)
	return string(n.UID), nil
}

// followNode watches the one Node until ctx ends: its ranges lead to a claim, and
// another UID ends the agent, whose claims are the old one's.
func (a *Agent) followNode(ctx context.Context, stop context.CancelCauseFunc) {
	_, uid, _ := strings.Cut(string(a.id), "/")
	look := func(obj any) {
		n, ok := obj.(*corev1.Node)
		switch {
		case !ok:
		case n.UID != types.UID(uid):
			stop(fmt.Errorf("%w: %s had the UID %s and has %s", errAnew, n.Name, uid, n.UID))
		case a.tellRanges(n):
			wake(a.reclaim, "the Node's ranges")
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(a.Kube, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, a.Config.Node.Name).String()
	}))
	// Adding fails only to an informer that has ended.
	_, _ = factory.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    look,
		UpdateFunc: func(_, obj any) { look(obj) },
		DeleteFunc: func(any) { a.Log.Warn("this machine's Node was deleted, what it has stays until there is another") },
	})
	factory.Start(ctx.Done())
}

// tellRanges keeps the Node's IPv4 ranges and says whether they have changed.
func (a *Agent) tellRanges(n *corev1.Node) bool {
	ranges := []netip.Prefix{}
	for _, c := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil && p.Addr().Is4() {
			ranges = append(ranges, p)
		}
	}
	was := a.told.Swap(&ranges)
	return was == nil || !slices.Equal(*was, ranges)
}

// ranges are those that a Kubernetes node announces: an operator's, the API
// server's, or until it answers those of the last time.
func (a *Agent) ranges(own fabric.Node) ([]netip.Prefix, error) {
	told := a.told.Load()
	switch {
	case len(a.Config.Node.PodCIDRs) > 0:
		return a.Config.Node.PodCIDRs, nil
	case told == nil && len(own.CIDRs) > 0:
		return own.CIDRs, nil
	case told == nil:
		return nil, errors.New("the API server has not told the ranges of the Node's pods yet")
	case len(*told) == 0:
		return nil, errors.New("the Node has no IPv4 range in spec.podCIDRs: have kube-controller-manager give them (--allocate-node-cidrs), or set node.podCIDRs")
	}
	return *told, nil
}
