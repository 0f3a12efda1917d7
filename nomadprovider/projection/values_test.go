package projection

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	job    = "k8s-c1-u"
	path   = "nomad/jobs/" + job
	hidden = "h1dd3n" // stands in every Secret, and nowhere else
)

func itemCM(key, name, k string, optional bool) translate.Item {
	return translate.Item{Key: key, ConfigMap: &translate.KeyRef{Name: name, Key: k}, Optional: optional}
}

func itemSec(key, name, k string, optional bool) translate.Item {
	return translate.Item{Key: key, Secret: &translate.KeyRef{Name: name, Key: k}, Optional: optional}
}

func (r *room) sync(pod *corev1.Pod, mode Mode, items ...translate.Item) (time.Duration, error) {
	r.t.Helper()
	next, err := r.Sync(background, r.vars.client, "default", job, pod, items, mode)
	if err != nil && strings.Contains(err.Error(), hidden) {
		r.t.Errorf("the error tells a secret: %v", err)
	}
	return next, err
}

func (r *room) mustSync(pod *corev1.Pod, mode Mode, items ...translate.Item) time.Duration {
	r.t.Helper()
	next, err := r.sync(pod, mode, items...)
	if err != nil {
		r.t.Fatal(err)
	}
	return next
}

func (r *room) want(key, value string) {
	r.t.Helper()
	if got := r.vars.get(r.t, path, key); got != value {
		r.t.Errorf("%s is %q, want %q", key, got, value)
	}
}

func TestValues(t *testing.T) {
	binary := cm("c", map[string]string{"k": "one"})
	binary.BinaryData = map[string][]byte{"b": {0, 0xff}}
	r := newRoom(t, binary, sec("s", map[string][]byte{"p": []byte(hidden)}))
	pod := user("u", []string{"c", "gone"}, []string{"s"})
	pod.Labels = map[string]string{"app": "web"}
	r.ready(pod)
	literal := "lit"
	items := []translate.Item{
		itemCM("a", "c", "k", false), itemCM("bin", "c", "b", false), itemSec("s", "s", "p", false),
		itemCM("no", "gone", "k", true), itemCM("nokey", "c", "none", true),
		{Key: "l", Literal: &literal}, {Key: "f", Field: "metadata.labels['app']"},
	}
	if next := r.mustSync(pod, Fresh, items...); next != 0 {
		t.Errorf("look again in %s", next)
	}
	for key, want := range map[string]string{"a": "one", "bin": "\x00\xff", "s": hidden, "no": "<none>", "nokey": "<none>", "l": "lit", "f": "web"} {
		r.want(key, want)
	}
	if reads, writes := r.vars.counts(); reads != 0 || writes != 1 {
		t.Errorf("a new job cost %d reads and %d writes", reads, writes)
	}
	// The same again costs no write.
	r.mustSync(pod, Complete, items...)
	if reads, writes := r.vars.counts(); reads != 1 || writes != 1 {
		t.Errorf("%d reads and %d writes", reads, writes)
	}
	if r.mustSync(pod, Complete) != 0 {
		t.Error("no items")
	}
	if reads, writes := r.vars.counts(); reads != 1 || writes != 1 {
		t.Errorf("a pod that projects nothing costs %d reads and %d writes", reads, writes)
	}
}

func TestMissingValues(t *testing.T) {
	r := newRoom(t, cm("c", map[string]string{"k": "1"}), sec("s", map[string][]byte{"p": []byte(hidden)}))
	pod := user("u", []string{"c", "gone"}, []string{"s"})
	r.ready(pod)
	for _, it := range []translate.Item{itemCM("x", "gone", "k", false), itemCM("x", "c", "none", false), itemSec("x", "s", "none", false)} {
		_, err := r.sync(pod, Fresh, itemSec("s", "s", "p", false), it)
		var missing *translate.MissingError
		if !errors.As(err, &missing) || !strings.Contains(err.Error(), "couldn't find key") {
			t.Errorf("%+v: %v", it, err)
		}
	}
	if _, err := r.sync(pod, Fresh, translate.Item{Key: "x"}); err == nil {
		t.Error("an item without a source")
	}
	if _, writes := r.vars.counts(); writes != 0 {
		t.Errorf("%d writes of what is not complete", writes)
	}
}

// As on the kubelet: what a pod requires it keeps when it is deleted, what is
// optional goes.
func TestDeletedFromUnderAPod(t *testing.T) {
	r := newRoom(t, cm("must", map[string]string{"k": "1"}), cm("whole", map[string]string{"k": "2"}), cm("lives", map[string]string{"k": "3", "l": "4"}))
	pod := user("u", []string{"must", "whole", "lives"}, nil)
	r.ready(pod)
	items := []translate.Item{
		itemCM("must", "must", "k", false), itemCM("whole", "whole", "k", true),
		itemCM("lives", "lives", "k", false), itemCM("key", "lives", "l", true),
	}
	r.mustSync(pod, Fresh, items...)
	for _, name := range []string{"must", "whole"} {
		if err := r.kube.CoreV1().ConfigMaps("ns").Delete(background, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		r.eventually(name+" is kept", func() bool { return !r.objects.exists(ref{configMap, "ns", name}) })
	}
	if _, err := r.kube.CoreV1().ConfigMaps("ns").Update(background, cm("lives", map[string]string{"k": "33"}), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the change", func() bool { v, _ := r.objects.value(ref{configMap, "ns", "lives"}, "k"); return string(v) == "33" })
	check := func(want map[string]string) {
		t.Helper()
		for key, value := range want {
			r.want(key, value)
		}
	}
	r.mustSync(pod, Bereft, items...)
	check(map[string]string{"must": "1", "whole": "2", "lives": "33", "key": "<none>"})
	// Nothing that is gone was required as a whole.
	r.mustSync(pod, Complete, items...)
	check(map[string]string{"must": "1", "whole": "<none>", "lives": "33"})
}

func TestTooLarge(t *testing.T) {
	r := newRoom(t, sec("s", map[string][]byte{"p": bytes.Repeat([]byte(hidden), 9000)}))
	pod := user("u", nil, []string{"s"})
	r.ready(pod)
	_, err := r.sync(pod, Fresh, itemSec("s", "s", "p", false))
	var large *TooLargeError
	if !errors.As(err, &large) || large.Bytes != 72001 || !strings.Contains(err.Error(), "72001 bytes") {
		t.Errorf("%v", err)
	}
	if _, writes := r.vars.counts(); writes != 0 {
		t.Error("written all the same")
	}
	// To the byte: 3 characters for 2 of base64's 4, and the key.
	exact := strings.Repeat("x", (MaxVariableBytes-4)/4*3)
	if _, err := r.sync(pod, Fresh, translate.Item{Key: "four", Literal: &exact}); err != nil {
		t.Error(err)
	}
	if _, err := r.sync(pod, Fresh, translate.Item{Key: "fives", Literal: &exact}); !errors.As(err, &large) {
		t.Errorf("one byte more: %v", err)
	}
}

func TestNomadsTrouble(t *testing.T) {
	r := newRoom(t, sec("s", map[string][]byte{"p": []byte(hidden)}))
	pod := user("u", nil, []string{"s"})
	r.ready(pod)
	r.vars.fail = http.StatusForbidden
	for _, mode := range []Mode{Fresh, Complete} {
		_, err := r.sync(pod, mode, itemSec("s", "s", "p", false))
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
}

func TestTokens(t *testing.T) {
	r := newRoom(t)
	now := r.clock.Now()
	var asked []*authenticationv1.TokenRequest
	r.kube.mint = func(req *authenticationv1.TokenRequest) (string, error) {
		asked = append(asked, req)
		return jwt(r.clock.Now(), r.clock.Now().Add(time.Hour)), nil
	}
	pod := user("u", nil, nil)
	item := translate.Item{Key: "t", Token: &translate.TokenRef{Audience: "vault", ExpirationSeconds: 3600}}
	if next := r.mustSync(pod, Fresh, item); next != 48*time.Minute {
		t.Errorf("refresh in %s, want 80%% of an hour", next)
	}
	spec := asked[0].Spec
	if spec.Audiences[0] != "vault" || *spec.ExpirationSeconds != 3600 || spec.BoundObjectRef.Kind != "Pod" || spec.BoundObjectRef.UID != "u" {
		t.Errorf("%+v", spec)
	}
	first := jwt(now, now.Add(time.Hour))
	r.want("t", first)
	r.clock.Step(47 * time.Minute)
	if next := r.mustSync(pod, Complete, item); next != time.Minute || len(asked) != 1 {
		t.Errorf("refresh in %s, %d requests", next, len(asked))
	}
	r.clock.Step(time.Minute)
	if next := r.mustSync(pod, Complete, item); next != 48*time.Minute || len(asked) != 2 {
		t.Errorf("refresh in %s, %d requests", next, len(asked))
	}
	r.want("t", jwt(r.clock.Now(), r.clock.Now().Add(time.Hour)))
	// The API server is away; the old token is left where it is.
	r.clock.Step(50 * time.Minute)
	r.kube.mint = func(*authenticationv1.TokenRequest) (string, error) { return hidden, errors.New("away") }
	if _, err := r.sync(pod, Complete, item); err == nil || !strings.Contains(err.Error(), "ns/default: away") {
		t.Errorf("%v", err)
	}
	if r.vars.get(t, path, "t") == "<none>" {
		t.Error("the token is gone")
	}
	// A token that cannot be read is asked for again, but not at once.
	r.kube.mint = func(*authenticationv1.TokenRequest) (string, error) { return "opaque", nil }
	if next := r.mustSync(pod, Complete, item); next != retryToken {
		t.Errorf("refresh in %s", next)
	}
}

func TestRefreshIn(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for _, r := range []struct {
		name, token string
		want        time.Duration
	}{
		{"new", jwt(now, now.Add(10*time.Minute)), 8 * time.Minute},
		{"a year: after a day", jwt(now, now.Add(365*24*time.Hour)), 24 * time.Hour},
		{"past its time", jwt(now.Add(-9*time.Minute), now.Add(time.Minute)), -time.Minute},
		{"no token", "", 0},
		{"two parts", "a.b", 0},
		{"no base64", "a.!.c", 0},
		{"no JSON", "a.YQ.c", 0},
		{"expires before it is issued", jwt(now, now.Add(-time.Hour)), 0},
	} {
		if got := refreshIn(r.token, now); got != r.want {
			t.Errorf("%s: %s, want %s", r.name, got, r.want)
		}
	}
}
