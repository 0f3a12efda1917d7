package projection

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

type kind string

const (
	configMap kind = "configmap"
	secret    kind = "secret"
	claim     kind = "persistentvolumeclaim"
	volume    kind = "persistentvolume"
)

// ref names one object that a pod refers to.
type ref struct {
	kind            kind
	namespace, name string
}

// Objects watches the ConfigMaps, Secrets and PersistentVolumeClaims that pods name,
// and the PersistentVolumes that those are bound to.
type Objects struct {
	kube   kubernetes.Interface
	notify func(types.UID)

	mu      sync.Mutex
	watched map[ref]*object
	pods    map[types.UID][]ref
}

type object struct {
	stop   context.CancelFunc
	users  map[types.UID]struct{}
	synced bool
	// data is nil while the object does not exist.
	data map[string][]byte
	// binary are the keys of a ConfigMap's binaryData.
	binary []string
	// claim or volume is set in the place of data; nil while it does not exist.
	claim  *corev1.PersistentVolumeClaim
	volume *corev1.PersistentVolume
}

// NewObjects makes an Objects that calls notify, without locks held, for every
// pod that names an object whose content changed.
func NewObjects(kube kubernetes.Interface, notify func(types.UID)) *Objects {
	return &Objects{kube: kube, notify: notify, watched: map[ref]*object{}, pods: map[types.UID][]ref{}}
}

// Watch sees to it that all objects the pod names are watched; ready is false
// until each of them has been read once, and the pod is notified then. The
// watches end with ctx or with [Objects.Release].
func (o *Objects) Watch(ctx context.Context, pod *corev1.Pod) (ready bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	// Ephemeral containers come while the pod runs, and with them references; none go
	// before the pod, not even volumes that a claim of the same name was bound to.
	refs := references(pod)
	for _, r := range o.pods[pod.UID] {
		if r.kind == volume {
			refs = append(refs, r)
		}
	}
	ready = true
	for i := 0; i < len(refs); i++ {
		r := refs[i]
		obj := o.watched[r]
		if obj == nil {
			obj = o.start(ctx, r)
		}
		obj.users[pod.UID] = struct{}{}
		ready = ready && obj.synced
		if c := obj.claim; c != nil && c.Spec.VolumeName != "" {
			if v := (ref{volume, "", c.Spec.VolumeName}); !slices.Contains(refs, v) {
				refs = append(refs, v)
			}
		}
	}
	o.pods[pod.UID] = refs
	return ready
}

// Release ends the watches that only this pod needed.
func (o *Objects) Release(uid types.UID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.pods[uid] {
		obj := o.watched[r]
		if obj == nil {
			continue
		}
		if delete(obj.users, uid); len(obj.users) == 0 {
			obj.stop()
			delete(o.watched, r)
		}
	}
	delete(o.pods, uid)
}

// Keys are the keys of the objects that the pod names; an object that does not
// exist has no entry. binary are those of ConfigMaps' binaryData among them.
func (o *Objects) Keys(uid types.UID) (configMaps, binary, secrets translate.Keys) {
	configMaps, binary, secrets = translate.Keys{}, translate.Keys{}, translate.Keys{}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.pods[uid] {
		obj := o.watched[r]
		if obj == nil || obj.data == nil {
			continue
		}
		keys := slices.Sorted(maps.Keys(obj.data))
		if r.kind == configMap {
			configMaps[r.name], binary[r.name] = keys, obj.binary
		} else {
			secrets[r.name] = keys
		}
	}
	return configMaps, binary, secrets
}

// value returns the content of one key.
func (o *Objects) value(r ref, key string) ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if obj := o.watched[r]; obj != nil {
		v, ok := obj.data[key]
		return v, ok
	}
	return nil, false
}

// exists says whether the object is there.
func (o *Objects) exists(r ref) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	obj := o.watched[r]
	return obj != nil && obj.data != nil
}

// start watches one object. The caller holds the lock.
func (o *Objects) start(ctx context.Context, r ref) *object {
	ctx, stop := context.WithCancel(ctx)
	obj := &object{stop: stop, users: map[types.UID]struct{}{}}
	o.watched[r] = obj
	lw, example := o.listWatch(r)
	informer := cache.NewSharedInformer(lw, example, 0)
	handler, _ := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{ // fails only on a stopped informer
		AddFunc:    func(x any) { o.set(obj, x) },
		UpdateFunc: func(_, x any) { o.set(obj, x) },
		DeleteFunc: func(any) { o.set(obj, nil) },
	})
	go informer.RunWithContext(ctx)
	go func() {
		// The handler's, not the informer's: it has then taken in the list.
		if cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
			o.amend(obj, func() bool { obj.synced = true; return true })
		}
	}()
	return obj
}

// set takes in what was read of an object; nil says that it does not exist.
func (o *Objects) set(obj *object, x any) {
	data, binary := content(x)
	o.amend(obj, func() bool {
		if obj.setStorage(x) {
			return obj.synced
		}
		changed := !maps.EqualFunc(obj.data, data, slices.Equal[[]byte]) || (obj.data == nil) != (data == nil)
		obj.data, obj.binary = data, binary
		return changed && obj.synced
	})
}

// amend changes an object and tells its users if change says so.
func (o *Objects) amend(obj *object, change func() bool) {
	o.mu.Lock()
	var users []types.UID
	if change() {
		users = slices.Collect(maps.Keys(obj.users))
	}
	o.mu.Unlock()
	for _, uid := range users {
		o.notify(uid)
	}
}

func (o *Objects) listWatch(r ref) (cache.ListerWatcher, runtime.Object) {
	core := o.kube.CoreV1()
	switch r.kind {
	case configMap:
		return listWatch(o.kube, core.ConfigMaps(r.namespace), r.name), &corev1.ConfigMap{}
	case claim:
		return listWatch(o.kube, core.PersistentVolumeClaims(r.namespace), r.name), &corev1.PersistentVolumeClaim{}
	case volume:
		return listWatch(o.kube, core.PersistentVolumes(), r.name), &corev1.PersistentVolume{}
	}
	return listWatch(o.kube, core.Secrets(r.namespace), r.name), &corev1.Secret{}
}

// resource is what client-go has for each kind of object.
type resource[L runtime.Object] interface {
	List(ctx context.Context, opts metav1.ListOptions) (L, error)
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// listWatch is for the object of that name alone.
func listWatch[L runtime.Object](kube kubernetes.Interface, c resource[L], name string) cache.ListerWatcher {
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	return cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.FieldSelector = only
			return c.List(ctx, opts)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = only
			return c.Watch(ctx, opts)
		},
	}, kube)
}

func content(x any) (data map[string][]byte, binary []string) {
	switch obj := x.(type) {
	case *corev1.ConfigMap:
		data = make(map[string][]byte, len(obj.Data)+len(obj.BinaryData))
		for k, v := range obj.Data {
			data[k] = []byte(v)
		}
		maps.Copy(data, obj.BinaryData)
		binary = slices.Sorted(maps.Keys(obj.BinaryData))
	case *corev1.Secret:
		data = make(map[string][]byte, len(obj.Data))
		maps.Copy(data, obj.Data)
	}
	return data, binary
}

// references lists the objects that a pod names, each once.
func references(pod *corev1.Pod) []ref {
	seen := map[ref]struct{}{}
	add := func(k kind, name string) {
		if name != "" {
			seen[ref{k, pod.Namespace, name}] = struct{}{}
		}
	}
	for _, s := range pod.Spec.ImagePullSecrets {
		add(secret, s.Name)
	}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			containerReferences(&list[i], add)
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		containerReferences((*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon), add)
	}
	for i := range pod.Spec.Volumes {
		volumeReferences(&pod.Spec.Volumes[i].VolumeSource, add)
		add(claim, translate.ClaimName(pod, &pod.Spec.Volumes[i]))
	}
	if r, ok := translate.UserDataFrom(pod); ok {
		k := configMap
		if r.Secret {
			k = secret
		}
		add(k, r.Name)
	}
	return slices.SortedFunc(maps.Keys(seen), func(a, b ref) int {
		if a.kind+kind(a.name) < b.kind+kind(b.name) {
			return -1
		}
		return 1
	})
}

func containerReferences(c *corev1.Container, add func(kind, string)) {
	for _, e := range c.EnvFrom {
		if e.ConfigMapRef != nil {
			add(configMap, e.ConfigMapRef.Name)
		}
		if e.SecretRef != nil {
			add(secret, e.SecretRef.Name)
		}
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			add(configMap, r.Name)
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			add(secret, r.Name)
		}
	}
}

func volumeReferences(v *corev1.VolumeSource, add func(kind, string)) {
	if v.ConfigMap != nil {
		add(configMap, v.ConfigMap.Name)
	}
	if v.Secret != nil {
		add(secret, v.Secret.SecretName)
	}
	if v.Projected == nil {
		return
	}
	for _, s := range v.Projected.Sources {
		if s.ConfigMap != nil {
			add(configMap, s.ConfigMap.Name)
		}
		if s.Secret != nil {
			add(secret, s.Secret.Name)
		}
	}
}

// tokenRefresh is the share of a token's life after which it is replaced
// (pkg/kubelet/token/token_manager.go).
const tokenRefresh = 0.8

// retryToken is how soon a refresh is tried when a token is past its time.
const retryToken = 10 * time.Second
