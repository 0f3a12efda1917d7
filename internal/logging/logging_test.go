package logging

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
	vklog "github.com/virtual-kubelet/virtual-kubelet/log"
	"k8s.io/klog/v2"
)

func lines(b *bytes.Buffer) []string {
	out := strings.Split(strings.TrimSpace(b.String()), "\n")
	b.Reset()
	return out
}

func want(t *testing.T, b *bytes.Buffer, parts ...string) {
	t.Helper()
	got := lines(b)
	if len(got) != 1 {
		t.Fatalf("%d lines: %q", len(got), got)
	}
	for _, p := range parts {
		if !strings.Contains(got[0], p) {
			t.Errorf("%q is not in %q", p, got[0])
		}
	}
}

// silent fails if something was logged.
func silent(t *testing.T, b *bytes.Buffer) {
	t.Helper()
	if b.Len() > 0 {
		t.Errorf("logged %q", b)
	}
	b.Reset()
}

func TestLevels(t *testing.T) {
	var b bytes.Buffer
	l := New(&b, "info", "text")
	l.Debug("d")
	klog.V(1).Info("v1")
	klog.V(5).Info("v5")
	vklog.L.Info("vk info") // what Virtual Kubelet calls info is detail here
	vklog.L.Debug("vk debug")
	silent(t, &b)
	l = New(&b, "debug", "text")
	klog.V(4).Info("v4")
	want(t, &b, "[DEBUG]", "nomad-kubelet.client-go", "v4")
	klog.V(5).Info("v5")
	silent(t, &b)
	l.Info("i", "k", 1)
	want(t, &b, "[INFO]", "nomad-kubelet: i", "k=1")
	New(&b, "trace", "text")
	klog.V(5).Info("v5")
	want(t, &b, "[TRACE]", "v5")
	// Bodies of requests, with the values of Secrets in them.
	klog.V(8).Info("v8")
	klog.FromContext(t.Context()).V(8).Info("v8")
	klogr(hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &b})).V(8).Info("v8")
	silent(t, &b)
}

func TestKlog(t *testing.T) {
	var b bytes.Buffer
	New(&b, "info", "json")
	klog.ErrorS(errors.New("boom"), "went wrong", "pod", "a/b")
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", &b, err)
	}
	if line["@level"] != "error" || line["@message"] != "went wrong" || line["error"] != "boom" || line["pod"] != "a/b" || line["@module"] != "nomad-kubelet.client-go" {
		t.Errorf("%v", line)
	}
	b.Reset()
	klog.LoggerWithName(klog.LoggerWithValues(klog.Background(), "k", "v"), "sub").Info("m")
	want(t, &b, `"@module":"nomad-kubelet.client-go"`, `"logger":"sub"`, `"k":"v"`, `"@message":"m"`)
}

func TestLogr(t *testing.T) {
	var b bytes.Buffer
	l := klogr(hclog.New(&hclog.LoggerOptions{Name: "n", Output: &b})).WithName("sub").WithValues("k", "v")
	l.Info("m", "a", 1)
	want(t, &b, "[INFO]", "n.sub: m: k=v a=1")
	l.V(1).Info("m")
	silent(t, &b)
}

func TestVirtualKubelet(t *testing.T) {
	var b bytes.Buffer
	New(&b, "debug", "text")
	for _, r := range []struct {
		log  func()
		want string
	}{
		{func() { vklog.L.Debug("a", 1) }, "[DEBUG] nomad-kubelet.virtual-kubelet: a1"},
		{func() { vklog.L.Debugf("a%d", 1) }, "[DEBUG] nomad-kubelet.virtual-kubelet: a1"},
		{func() { vklog.L.Info("a") }, "[DEBUG] nomad-kubelet.virtual-kubelet: a"},
		{func() { vklog.L.Infof("%s", "a") }, "[DEBUG] nomad-kubelet.virtual-kubelet: a"},
		{func() { vklog.L.Warn("a") }, "[WARN]  nomad-kubelet.virtual-kubelet: a"},
		{func() { vklog.L.Warnf("%s", "a") }, "[WARN]  nomad-kubelet.virtual-kubelet: a"},
		{func() { vklog.L.Error("a") }, "[ERROR] nomad-kubelet.virtual-kubelet: a"},
		{func() { vklog.L.Errorf("%s", "a") }, "[ERROR] nomad-kubelet.virtual-kubelet: a"},
		// The process goes on.
		{func() { vklog.L.Fatal("a") }, "[ERROR] nomad-kubelet.virtual-kubelet: a"},
		{func() { vklog.L.Fatalf("%s", "a") }, "[ERROR] nomad-kubelet.virtual-kubelet: a"},
		{func() { vklog.L.WithField("k", "v").Warn("a") }, "a: k=v"},
		{func() { vklog.L.WithFields(vklog.Fields{"k": 1}).Warn("a") }, "a: k=1"},
		{func() { vklog.L.WithError(errors.New("boom")).Warn("a") }, "a: error=boom"},
	} {
		r.log()
		want(t, &b, r.want)
	}
}

func TestUnknownLevelIsInfo(t *testing.T) {
	var b bytes.Buffer
	if l := New(&b, "", "text"); l.GetLevel() != hclog.Info {
		t.Errorf("level %s", l.GetLevel())
	}
}
