package node

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	vknode "github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
)

// Run registers the Node and keeps it until ctx ends. Its error says that the
// Node could not be registered, or that it belongs to another kubelet.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := n.adopt(ctx); err != nil {
		return err
	}
	n.ask(ctx)
	first, _ := n.build()
	first.Spec.Taints = n.taints
	first.Annotations[annotationTaints] = taintNames(n.taints)
	ctrl, err := vknode.NewNodeController(n, first, n.o.Kube.CoreV1().Nodes(),
		vknode.WithNodeEnableLeaseV1(n.o.Kube.CoordinationV1().Leases(corev1.NamespaceNodeLease), leaseSeconds),
		vknode.WithNodePingInterval(nodePing),
		vknode.WithNodePingTimeout(nodePingTimeout),
		vknode.WithNodeStatusUpdateErrorHandler(n.statusError),
	)
	if err != nil {
		return fmt.Errorf("set up the controller of node %q: %w", n.Name(), err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.loop(ctx, cancel, ctrl.Ready())
	}()
	err = ctrl.Run(ctx)
	cause := context.Cause(ctx)
	cancel(nil)
	<-done
	switch {
	case cause != nil && cause != context.Canceled:
		return cause
	case err != nil && ctx.Err() == nil:
		return fmt.Errorf("register node %q: %w", n.Name(), err)
	}
	return err
}

// adopt looks for a Node that is there already: refuses another kubelet's, and
// takes over from our own what a restart must not lose.
func (n *Node) adopt(ctx context.Context) error {
	old, err := n.o.Kube.CoreV1().Nodes().Get(ctx, n.Name(), metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read node %q: %w", n.Name(), err)
	}
	if !ours(old) {
		return foreignError(old)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.adopted = old.Status.DeepCopy()
	n.conditions = old.Status.DeepCopy().Conditions
	for _, c := range old.Status.Conditions {
		if c.Type == corev1.NodeReady {
			n.readiness.ready = c.Status == corev1.ConditionTrue
		}
	}
	return nil
}

// loop publishes the Node whenever something that it is made of changes.
func (n *Node) loop(ctx context.Context, stop context.CancelCauseFunc, registered <-chan struct{}) {
	select {
	case <-ctx.Done():
		return
	case <-registered:
	}
	object, lister := n.watch(ctx)
	changed, unsubscribe := n.o.Clients.Subscribe()
	defer unsubscribe()
	tick := n.o.Clock.NewTicker(refresh)
	defer tick.Stop()
	due := n.o.Clock.NewTimer(0)
	defer due.Stop()
	wasOK, _, _ := n.o.Clients.Healthy()
	pending := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			ok, _, _ := n.o.Clients.Healthy()
			if ok != wasOK {
				wasOK = ok
				due.Reset(0)
			} else if !pending {
				due.Reset(debounce)
			}
			pending = true
			continue
		case <-object:
			if err := n.repair(ctx, lister); err != nil {
				stop(err)
				return
			}
			continue
		case <-tick.C():
			if err := n.repair(ctx, lister); err != nil {
				stop(err)
				return
			}
			n.ask(ctx)
		case <-due.C():
			pending = false
			n.ask(ctx)
		}
		if recheck := n.publish(lister); recheck > 0 && !pending {
			due.Reset(recheck)
		}
	}
}

// publish hands the Node to Virtual Kubelet if it differs from what was handed
// over last or from what the API server has.
func (n *Node) publish(lister corelisters.NodeLister) time.Duration {
	node, recheck := n.build()
	present, err := lister.Get(n.Name())
	if n.lastPushed == nil || !sameNode(n.lastPushed, node) || err != nil || !sameNode(present, node) {
		n.lastPushed = node
		n.offer(node.DeepCopy())
	}
	return recheck
}

// sameNode compares what this program sets, heartbeats aside.
func sameNode(have, want *corev1.Node) bool {
	for k, v := range want.Labels {
		if have.Labels[k] != v {
			return false
		}
	}
	byType := map[corev1.NodeConditionType]corev1.NodeCondition{}
	for _, c := range have.Status.Conditions {
		byType[c.Type] = c
	}
	for _, c := range want.Status.Conditions {
		h := byType[c.Type]
		if h.Status != c.Status || h.Reason != c.Reason || h.Message != c.Message {
			return false
		}
	}
	return equality.Semantic.DeepEqual(have.Status.Capacity, want.Status.Capacity) &&
		equality.Semantic.DeepEqual(have.Status.Allocatable, want.Status.Allocatable) &&
		equality.Semantic.DeepEqual(have.Status.Addresses, want.Status.Addresses) &&
		have.Status.NodeInfo == want.Status.NodeInfo &&
		have.Status.DaemonEndpoints == want.Status.DaemonEndpoints
}

// watch follows our own Node object.
func (n *Node) watch(ctx context.Context) (<-chan struct{}, corelisters.NodeLister) {
	factory := informers.NewSharedInformerFactoryWithOptions(n.o.Kube, 0,
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, n.Name()).String()
		}))
	nodes := factory.Core().V1().Nodes()
	ch := make(chan struct{}, 1)
	poke := func() {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
	_, err := nodes.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { poke() },
		UpdateFunc: func(any, any) { poke() },
		DeleteFunc: func(any) { poke() },
	})
	if err != nil { // only for a stopped informer
		n.o.Log.Error("the node is not watched", "node", n.Name(), "error", err)
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	return ch, nodes.Lister()
}

// repair makes the Node again when somebody deleted it, and keeps our taints
// on it. Its error means that the Node is another kubelet's now.
func (n *Node) repair(ctx context.Context, lister corelisters.NodeLister) error {
	present, err := lister.Get(n.Name())
	if apierrors.IsNotFound(err) {
		if err := n.recreate(ctx); err != nil {
			n.o.Log.Warn("the deleted node could not be registered again", "node", n.Name(), "error", err)
		}
		return nil
	}
	if err != nil {
		return nil
	}
	if !ours(present) {
		return foreignError(present)
	}
	if err := n.keepTaints(ctx, present); err != nil {
		n.o.Log.Warn("the node's taints could not be set", "node", n.Name(), "error", err)
	}
	return nil
}

// recreate registers the Node anew, with its full status.
func (n *Node) recreate(ctx context.Context) error {
	node, _ := n.build()
	node.Spec.Taints = n.taints
	node.Annotations[annotationTaints] = taintNames(n.taints)
	_, err := n.o.Kube.CoreV1().Nodes().Create(ctx, node.DeepCopy(), metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err):
		return nil
	case err != nil:
		return fmt.Errorf("create node %q: %w", n.Name(), err)
	}
	n.o.Log.Info("the node had been deleted and was registered again", "node", n.Name())
	n.offer(node)
	return nil
}

// statusError is asked by Virtual Kubelet when a status update failed.
func (n *Node) statusError(ctx context.Context, err error) error {
	if apierrors.IsNotFound(err) {
		return n.recreate(ctx)
	}
	return err
}

// keepTaints patches the Node's taints if ours are not all there. The
// resource version in the patch keeps it from undoing another's change.
func (n *Node) keepTaints(ctx context.Context, present *corev1.Node) error {
	nodes := n.o.Kube.CoreV1().Nodes()
	first := true
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		if !first {
			var err error
			if present, err = nodes.Get(ctx, n.Name(), metav1.GetOptions{}); err != nil {
				return err
			}
		}
		first = false
		want := mergeTaints(present.Spec.Taints, n.taints, present.Annotations[annotationTaints])
		names := taintNames(n.taints)
		if sameTaints(present.Spec.Taints, want) && present.Annotations[annotationTaints] == names {
			return nil
		}
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{
				"resourceVersion": present.ResourceVersion,
				"annotations":     map[string]string{annotationTaints: names},
			},
			"spec": map[string]any{"taints": want},
		})
		if err != nil {
			return err
		}
		_, err = nodes.Patch(ctx, n.Name(), types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	})
}
