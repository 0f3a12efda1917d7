package prober

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Exec runs commands in tasks, as [taskexec.Runner] does.
type Exec interface {
	Run(ctx context.Context, c taskexec.Command) (code int, err error)
	Check(ctx context.Context, c taskexec.Command, timeout time.Duration, limit int) (code int, output []byte, err error)
}

// command makes the probes that are commands.
type command struct {
	exec   Exec
	target Target
}

// Probe implements [probes.Prober]. A command that takes too long has failed.
func (c command) Probe(ctx context.Context, p probes.Probe) (probes.Outcome, string, error) {
	code, out, err := c.exec.Check(ctx, taskexec.Command{
		Namespace: c.target.Namespace, AllocID: c.target.AllocID, Driver: c.target.Driver,
		Task: translate.TaskName(p.Container), Argv: p.Action.Exec,
	}, p.Timeout, probes.MaxOutput)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return probes.Failure, fmt.Sprintf("command timed out: %q timed out after %s", strings.Join(p.Action.Exec, " "), p.Timeout), nil
	case err != nil:
		return probes.Unknown, "", err
	case code != 0:
		return probes.Failure, string(out), nil
	}
	return probes.Success, string(out), nil
}
