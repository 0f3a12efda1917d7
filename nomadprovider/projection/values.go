package projection

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/nomad/api"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// MaxVariableBytes is what Nomad takes in one Variable, keys and values
// together (nomad/structs/variables.go).
const MaxVariableBytes = 64 << 10

// TooLargeError says that a pod projects more than one Variable holds.
type TooLargeError struct{ Bytes int }

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("the pod's ConfigMaps, Secrets and tokens come to %d bytes (base64), Nomad keeps at most %d for a job: project fewer keys (items) or mount less",
		e.Bytes, MaxVariableBytes)
}

// Writer fills and keeps the Variables of pods. It is the only writer of them.
type Writer struct {
	kube    kubernetes.Interface
	objects *Objects
	clock   clock.Clock
}

// NewWriter makes a Writer that takes contents from objects.
func NewWriter(kube kubernetes.Interface, objects *Objects, c clock.Clock) *Writer {
	return &Writer{kube: kube, objects: objects, clock: c}
}

// Mode says what [Writer.Sync] may take for granted.
type Mode int

// The modes.
const (
	// Fresh: the job is new, nothing is read back first.
	Fresh Mode = iota
	// Complete: all that the pod requires exists; what does not may be missing.
	Complete
	// Bereft: something that the pod requires is gone. As on the kubelet, a pod
	// that runs keeps what it has of it.
	Bereft
)

// Sync writes the Variable of the pod's job if its content is not what the
// items ask for, and returns how long until a token wants refreshing (0: none).
func (w *Writer) Sync(ctx context.Context, nomad *api.Client, namespace, jobID string, pod *corev1.Pod, items []translate.Item, mode Mode) (time.Duration, error) {
	if len(items) == 0 {
		return 0, nil
	}
	path := translate.VariablePath(jobID)
	var old api.VariableItems
	if mode != Fresh {
		v, _, err := nomad.Variables().GetVariableItems(path, (&api.QueryOptions{Namespace: namespace}).WithContext(ctx))
		if err != nil && !errors.Is(err, api.ErrVariablePathNotFound) {
			return 0, fmt.Errorf("read Variable %s: %w", path, err)
		}
		old = v
	}
	values, next, err := w.values(ctx, pod, items, old, mode)
	if err != nil {
		return 0, err
	}
	size := 0
	for k, v := range values {
		size += len(k) + len(v)
	}
	if size > MaxVariableBytes {
		return 0, &TooLargeError{Bytes: size}
	}
	if equal(old, values) {
		return next, nil
	}
	v := &api.Variable{Namespace: namespace, Path: path, Items: values}
	if _, _, err := nomad.Variables().Update(v, (&api.WriteOptions{Namespace: namespace}).WithContext(ctx)); err != nil {
		return 0, fmt.Errorf("write Variable %s: %w", path, err)
	}
	return next, nil
}

func equal(a, b api.VariableItems) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

// values computes the content. Tokens in old that still have time are kept.
func (w *Writer) values(ctx context.Context, pod *corev1.Pod, items []translate.Item, old api.VariableItems, mode Mode) (api.VariableItems, time.Duration, error) {
	out := api.VariableItems{}
	var next time.Duration
	for _, it := range items {
		data, wait, ok, err := w.value(ctx, pod, it, old[it.Key])
		if err != nil {
			return nil, 0, err
		}
		if wait > 0 && (next == 0 || wait < next) {
			next = wait
		}
		switch {
		case ok:
			out[it.Key] = encode(it, data)
		case old[it.Key] != "" && (!it.Optional || mode == Bereft && w.missing(pod, it)):
			out[it.Key] = old[it.Key]
		}
	}
	return out, next, nil
}

// encode is how an item's value stands in the Variable: base64, which templates
// decode, or a JSON string, which Nomad's secret block reads; see [translate.Item].
func encode(it translate.Item, data []byte) string {
	if it.Quoted {
		quoted, _ := json.Marshal(string(data)) // a string always marshals
		return string(quoted)
	}
	return base64.StdEncoding.EncodeToString(data)
}

// missing says whether the ConfigMap or Secret of an item does not exist. The
// keys of an object that is projected as a whole are all optional.
func (w *Writer) missing(pod *corev1.Pod, it translate.Item) bool {
	switch {
	case it.ConfigMap != nil:
		return !w.objects.exists(ref{configMap, pod.Namespace, it.ConfigMap.Name})
	case it.Secret != nil:
		return !w.objects.exists(ref{secret, pod.Namespace, it.Secret.Name})
	}
	return false
}

func (w *Writer) value(ctx context.Context, pod *corev1.Pod, it translate.Item, old string) (data []byte, next time.Duration, ok bool, err error) {
	fromObject := func(k kind, r *translate.KeyRef) ([]byte, time.Duration, bool, error) {
		v, ok := w.objects.value(ref{k, pod.Namespace, r.Name}, r.Key)
		if !ok && !it.Optional && old == "" {
			return nil, 0, false, &translate.MissingError{Messages: []string{fmt.Sprintf("couldn't find key %s in %s %s/%s", r.Key, k, pod.Namespace, r.Name)}}
		}
		return v, 0, ok, nil
	}
	switch {
	case it.ConfigMap != nil:
		return fromObject(configMap, it.ConfigMap)
	case it.Secret != nil:
		return fromObject(secret, it.Secret)
	case it.Literal != nil:
		return []byte(*it.Literal), 0, true, nil
	case it.Field != "":
		s, err := translate.FieldValue(pod, it.Field)
		return []byte(s), 0, true, err
	case it.Token != nil:
		token, next, err := w.token(ctx, pod, it.Token, old)
		return []byte(token), next, true, err
	case it.Registry != nil:
		s, err := w.registry(pod, it.Registry)
		return []byte(s), 0, true, err
	}
	return nil, 0, false, fmt.Errorf("item %s has no source", it.Key)
}

// token asks for a token bound to the pod, or keeps the one it has.
func (w *Writer) token(ctx context.Context, pod *corev1.Pod, t *translate.TokenRef, old string) (string, time.Duration, error) {
	if raw, err := base64.StdEncoding.DecodeString(old); err == nil && len(raw) > 0 {
		if left := refreshIn(string(raw), w.clock.Now()); left > 0 {
			return string(raw), left, nil
		}
	}
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if t.Audience != "" {
		req.Spec.Audiences = []string{t.Audience}
	}
	if t.ExpirationSeconds > 0 {
		req.Spec.ExpirationSeconds = &t.ExpirationSeconds
	}
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = "default"
	}
	got, err := w.kube.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, account, req, metav1.CreateOptions{})
	if err != nil {
		return "", 0, fmt.Errorf("request a token for service account %s/%s: %w", pod.Namespace, account, err)
	}
	return got.Status.Token, max(refreshIn(got.Status.Token, w.clock.Now()), retryToken), nil
}
