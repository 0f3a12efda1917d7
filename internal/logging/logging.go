package logging

import (
	"flag"
	"fmt"
	"io"
	"strconv"

	"github.com/hashicorp/go-hclog"
	vklog "github.com/virtual-kubelet/virtual-kubelet/log"
	"k8s.io/klog/v2"
)

// New makes nomad-kubelet's logger. level is one of hclog's names; format is
// text or json.
func New(w io.Writer, level, format string) hclog.Logger {
	l := Named("nomad-kubelet", w, level, format)
	vklog.L = &vk{l.Named("virtual-kubelet")}
	return l
}

// Named makes the logger of a process of that name, klog's lines included.
func Named(name string, w io.Writer, level, format string) hclog.Logger {
	l := hclog.New(&hclog.LoggerOptions{
		Name:       name,
		Level:      hclog.LevelFromString(level),
		JSONFormat: format == "json",
		Output:     w,
	})
	klog.SetLogger(klogr(l.Named("client-go")))
	flags := flag.NewFlagSet("klog", flag.ContinueOnError)
	klog.InitFlags(flags)
	_ = flags.Set("v", strconv.Itoa(verbosity(l.GetLevel()))) // fails only on what is no number
	return l
}

// vk satisfies Virtual Kubelet's logger interface.
type vk struct{ l hclog.Logger }

var _ vklog.Logger = (*vk)(nil)

func (v *vk) Debug(a ...any)            { v.l.Debug(fmt.Sprint(a...)) }
func (v *vk) Debugf(f string, a ...any) { v.l.Debug(fmt.Sprintf(f, a...)) }
func (v *vk) Info(a ...any)             { v.l.Debug(fmt.Sprint(a...)) }
func (v *vk) Infof(f string, a ...any)  { v.l.Debug(fmt.Sprintf(f, a...)) }
func (v *vk) Warn(a ...any)             { v.l.Warn(fmt.Sprint(a...)) }
func (v *vk) Warnf(f string, a ...any)  { v.l.Warn(fmt.Sprintf(f, a...)) }
func (v *vk) Error(a ...any)            { v.l.Error(fmt.Sprint(a...)) }
func (v *vk) Errorf(f string, a ...any) { v.l.Error(fmt.Sprintf(f, a...)) }

// Fatal does not end the process: only main does.
func (v *vk) Fatal(a ...any)            { v.l.Error(fmt.Sprint(a...)) }
func (v *vk) Fatalf(f string, a ...any) { v.l.Error(fmt.Sprintf(f, a...)) }

func (v *vk) WithField(k string, val any) vklog.Logger { return &vk{v.l.With(k, val)} }

func (v *vk) WithFields(f vklog.Fields) vklog.Logger {
	args := make([]any, 0, 2*len(f))
	for k, val := range f {
		args = append(args, k, val)
	}
	return &vk{v.l.With(args...)}
}

func (v *vk) WithError(err error) vklog.Logger { return &vk{v.l.With("error", err)} }
