package projection

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	clocktesting "k8s.io/utils/clock/testing"
)

// kube is a fake API server that, unlike the library's, heeds field selectors,
// and that knows how many watches are open.
type kube struct {
	*fake.Clientset
	watches atomic.Int32
	opened  atomic.Int32
	// mint answers token requests.
	mint func(*authenticationv1.TokenRequest) (string, error)
}

func named(selector fields.Selector, o runtime.Object) bool {
	m, err := meta.Accessor(o)
	return err == nil && selector.Matches(fields.Set{"metadata.name": m.GetName()})
}

func newKube(objects ...runtime.Object) *kube {
	k := &kube{Clientset: fake.NewClientset(objects...)}
	k.PrependReactor("list", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		la := a.(clienttesting.ListActionImpl)
		list, err := k.Tracker().List(la.GetResource(), la.GetKind(), la.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		items, err := meta.ExtractList(list)
		if err != nil {
			return true, nil, err
		}
		var kept []runtime.Object
		for _, o := range items {
			if named(la.GetListRestrictions().Fields, o) {
				kept = append(kept, o)
			}
		}
		list = list.DeepCopyObject()
		return true, list, meta.SetList(list, kept)
	})
	k.PrependWatchReactor("*", func(a clienttesting.Action) (bool, watch.Interface, error) {
		wa := a.(clienttesting.WatchActionImpl)
		w, err := k.Tracker().Watch(wa.GetResource(), wa.GetNamespace())
		if err != nil {
			return true, nil, err
		}
		k.watches.Add(1)
		k.opened.Add(1)
		w = watch.Filter(w, func(e watch.Event) (watch.Event, bool) { return e, named(wa.GetWatchRestrictions().Fields, e.Object) })
		return true, &counted{Interface: w, n: &k.watches}, nil
	})
	k.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		ca := a.(clienttesting.CreateActionImpl)
		req := ca.GetObject().(*authenticationv1.TokenRequest).DeepCopy()
		token, err := k.mint(req)
		req.Status.Token = token
		return true, req, err
	})
	return k
}

type counted struct {
	watch.Interface
	once sync.Once
	n    *atomic.Int32
}

func (c *counted) Stop() {
	c.once.Do(func() { c.n.Add(-1) })
	c.Interface.Stop()
}

func cm(name string, data map[string]string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: data}
}

func sec(name string, data map[string][]byte) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}, Data: data}
}

// user is a pod that names the ConfigMaps and Secrets.
func user(uid string, configMaps, secrets []string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}}
	c := corev1.Container{Name: "c"}
	for _, n := range configMaps {
		c.EnvFrom = append(c.EnvFrom, corev1.EnvFromSource{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: n}}})
	}
	for _, n := range secrets {
		c.EnvFrom = append(c.EnvFrom, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: n}}})
	}
	pod.Spec.Containers = []corev1.Container{c}
	return pod
}

// variables is the one endpoint of Nomad that is used.
type variables struct {
	*httptest.Server
	client *api.Client
	mu     sync.Mutex
	items  map[string]api.VariableItems
	writes int
	reads  int
	fail   int
}

func newVariables(t *testing.T) *variables {
	v := &variables{items: map[string]api.VariableItems{}}
	v.Server = httptest.NewServer(http.HandlerFunc(v.serve))
	t.Cleanup(v.Close)
	var err error
	if v.client, err = api.NewClient(&api.Config{Address: v.URL}); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *variables) serve(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	path := strings.TrimPrefix(r.URL.Path, "/v1/var/")
	if v.fail != 0 {
		http.Error(w, "Permission denied", v.fail)
		return
	}
	switch r.Method {
	case http.MethodGet:
		v.reads++
		items, ok := v.items[path]
		if !ok {
			http.Error(w, "variable not found", http.StatusNotFound)
			return
		}
		_ = json.NewEncoder(w).Encode(api.Variable{Path: path, Items: items})
	case http.MethodPut:
		v.writes++
		var in api.Variable
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		v.items[path] = in.Items
		_ = json.NewEncoder(w).Encode(in)
	}
}

func (v *variables) counts() (reads, writes int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.reads, v.writes
}

// get decodes one value.
func (v *variables) get(t *testing.T, path, key string) string {
	t.Helper()
	v.mu.Lock()
	defer v.mu.Unlock()
	raw, ok := v.items[path][key]
	if !ok {
		return "<none>"
	}
	out, err := base64.StdEncoding.DecodeString(raw)
	if err != nil {
		t.Fatalf("%s is not base64", key)
	}
	return string(out)
}

// room is a Writer with all it needs.
type room struct {
	*Writer
	t     *testing.T
	kube  *kube
	vars  *variables
	clock *clocktesting.FakeClock
	told  chan types.UID
}

func newRoom(t *testing.T, objects ...runtime.Object) *room {
	r := &room{t: t, kube: newKube(objects...), vars: newVariables(t), told: make(chan types.UID, 1000), clock: clocktesting.NewFakeClock(time.Unix(1_800_000_000, 0))}
	r.Writer = NewWriter(r.kube, NewObjects(r.kube, func(uid types.UID) { r.told <- uid }), r.clock)
	return r
}

// ready watches the pod's objects until all have been read.
func (r *room) ready(pod *corev1.Pod) {
	r.t.Helper()
	r.eventually("the objects are not read", func() bool { return r.objects.Watch(r.t.Context(), pod) })
}

func (r *room) eventually(what string, cond func() bool) {
	r.t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatal(what)
		}
	}
}

// awaits waits for a notification of each pod.
func (r *room) awaits(uids ...types.UID) {
	r.t.Helper()
	want := map[types.UID]bool{}
	for _, u := range uids {
		want[u] = true
	}
	for len(want) > 0 {
		select {
		case uid := <-r.told:
			delete(want, uid)
		case <-time.After(5 * time.Second):
			r.t.Fatalf("not told: %v", want)
		}
	}
}

// jwt is a token with nothing but times in it.
func jwt(issued, expires time.Time) string {
	claims := fmt.Sprintf(`{"iat":%d,"exp":%d}`, issued.Unix(), expires.Unix())
	return "h." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".s"
}

var background = context.Background()
