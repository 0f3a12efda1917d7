package logging

import (
	"github.com/go-logr/logr"
	"github.com/hashicorp/go-hclog"
)

// klogr makes a logr.Logger, klog's backend, of an hclog one.
func klogr(l hclog.Logger) logr.Logger { return logr.New(&sink{l: l}) }

// maxVerbosity leaves out what client-go logs of requests: from 8 on their
// bodies, and with them the values of Secrets.
const maxVerbosity = 5

// verbosity is the highest that a level shows. klog asks it before its backend.
func verbosity(l hclog.Level) int {
	for v := maxVerbosity; v > 0; v-- {
		if level(v) >= l {
			return v
		}
	}
	return 0
}

type sink struct{ l hclog.Logger }

var _ logr.LogSink = (*sink)(nil)

func (s *sink) Init(logr.RuntimeInfo) {}

// Enabled maps klog's verbosity: 0 is info, up to 4 debug, beyond it trace.
func (s *sink) Enabled(v int) bool { return v <= maxVerbosity && level(v) >= s.l.GetLevel() }

func (s *sink) Info(v int, msg string, kv ...any) { s.l.Log(level(v), msg, kv...) }

func (s *sink) Error(err error, msg string, kv ...any) {
	s.l.Error(msg, append([]any{"error", err}, kv...)...)
}

func (s *sink) WithValues(kv ...any) logr.LogSink { return &sink{l: s.l.With(kv...)} }
func (s *sink) WithName(name string) logr.LogSink { return &sink{l: s.l.Named(name)} }

func level(v int) hclog.Level {
	switch {
	case v <= 0:
		return hclog.Info
	case v <= 4:
		return hclog.Debug
	default:
		return hclog.Trace
	}
}
