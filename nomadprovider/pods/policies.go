package pods

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	networkinglisters "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const reasonPolicy = "NetworkPolicyNotEnforced"

// policies tells pods of the NetworkPolicies that select them: it is a node's network
// plugin that enforces them, and no Nomad client has one that does. It has a queue and
// a worker of its own, so that no pod's start waits for it.
type policies struct {
	c      *Controller
	lister networkinglisters.NetworkPolicyLister
	queue  workqueue.TypedRateLimitingInterface[types.UID]
	// told are the policies that a pod has been told of; the worker's own.
	told   map[types.UID]map[types.UID]struct{}
	denied sync.Once
}

func newPolicies(c *Controller) *policies {
	p := &policies{
		c: c, told: map[types.UID]map[types.UID]struct{}{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[types.UID]()),
	}
	all := c.factory.Networking().V1().NetworkPolicies()
	p.lister = all.Lister()
	_ = all.Informer().SetWatchErrorHandlerWithContext(p.failed) // fails only on a started informer
	_, _ = all.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(x any) { p.changed(x.(*networkingv1.NetworkPolicy)) },
		UpdateFunc: func(_, x any) { p.changed(x.(*networkingv1.NetworkPolicy)) },
	})
	return p
}

func (p *policies) enqueue(uid types.UID) { p.queue.Add(uid) }

// failed says once that the right is missing. Nothing waits for this list.
func (p *policies) failed(ctx context.Context, r *cache.Reflector, err error) {
	if !apierrors.IsForbidden(err) {
		cache.DefaultWatchErrorHandler(ctx, r, err)
		return
	}
	p.denied.Do(func() {
		p.c.Log.Warn("NetworkPolicies may not be read (list and watch networkpolicies): pods are not told of those that select them, which are not enforced", "error", err)
	})
}

func (p *policies) changed(np *networkingv1.NetworkPolicy) {
	for _, inf := range p.c.informers {
		pods, err := inf.GetIndexer().ByIndex(cache.NamespaceIndex, np.Namespace)
		if err != nil {
			p.c.Log.Error("pods are not found by their namespaces", "error", err)
		}
		for _, x := range pods {
			p.enqueue(x.(*corev1.Pod).UID)
		}
	}
}

// run returns when ctx ends.
func (p *policies) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, p.queue.ShutDown)
	defer stop()
	for {
		uid, quit := p.queue.Get()
		if quit {
			return
		}
		err := p.tell(ctx, uid)
		p.queue.Done(uid)
		if err != nil && ctx.Err() == nil {
			p.c.Log.Debug("will tell of a NetworkPolicy later", "pod", uid, "error", err)
			p.queue.AddRateLimited(uid)
			continue
		}
		p.queue.Forget(uid)
	}
}

// tell is one look at a pod. One in its node's network is no policy's anywhere, and
// one that has ended has no network.
func (p *policies) tell(ctx context.Context, uid types.UID) error {
	pod := p.c.pod(uid)
	if pod == nil {
		delete(p.told, uid)
		return nil
	}
	if pod.Spec.HostNetwork || finished(pod) || pod.DeletionTimestamp != nil {
		return nil
	}
	list, err := p.lister.NetworkPolicies(pod.Namespace).List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list NetworkPolicies: %w", err)
	}
	var errs []error
	for _, np := range list {
		if _, told := p.told[uid][np.UID]; told {
			continue
		}
		// One that selects nothing by mistake is refused by the API server.
		selector, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		if err := p.create(ctx, pod, np); err != nil {
			errs = append(errs, err)
			continue
		}
		if p.told[uid] == nil {
			p.told[uid] = map[types.UID]struct{}{}
		}
		p.told[uid][np.UID] = struct{}{}
	}
	return errors.Join(errs...)
}

// create writes an event whose name follows from pod and policy: the next process
// does not tell it again while it is there. A recorder would.
func (p *policies) create(ctx context.Context, pod *corev1.Pod, np *networkingv1.NetworkPolicy) error {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	now := metav1.NewTime(p.c.Clock.Now())
	sum := sha256.Sum256([]byte(pod.UID + "/" + np.UID))
	// A name has 253 bytes at most (apimachinery/pkg/util/validation, DNS1123SubdomainMaxLength).
	name := fmt.Sprintf("%.220s.%x", pod.Name, sum[:8])
	_, err := p.c.Kube.CoreV1().Events(pod.Namespace).Create(ctx, &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: pod.Namespace},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			ResourceVersion: pod.ResourceVersion},
		Type: corev1.EventTypeWarning, Reason: reasonPolicy, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source:  corev1.EventSource{Component: "kubelet", Host: pod.Spec.NodeName},
		Message: fmt.Sprintf("NetworkPolicy %s selects the pod and is not enforced: nothing on a Nomad client does that", np.Name),
	}, metav1.CreateOptions{})
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("tell of NetworkPolicy %s: %w", np.Name, err)
	}
	return nil
}
