package taskexec

import (
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/nomad/api"
)

// Runner runs commands in tasks; it is safe for concurrent use.
type Runner struct {
	nomad  *api.Client
	docker *dockerExec
}

// New makes a Runner.
func New(nomad *api.Client) *Runner { return &Runner{nomad: nomad, docker: newDockerExec()} }

// Command is what to run, and where.
type Command struct {
	Namespace string // Nomad's
	AllocID   string
	Task      string
	// Driver is the task's; docker's faults are worked around.
	Driver string
	// Handshake is set for a command that itself says when it has started and
	// lingers when it ends, and so needs no help with docker's faults.
	Handshake bool
	Argv      []string
	// In, Out and ErrOut may be nil.
	In          io.Reader
	Out, ErrOut io.Writer
	TTY         bool
	Sizes       <-chan api.TerminalSize
}

// Run returns the command's exit code; the error is of a command that could
// not be run or followed to its end. When ctx ends it returns at once; the
// command's input ends then, and what runs on is hung up, see [dockerExec.hangUp].
func (r *Runner) Run(ctx context.Context, c Command) (int, error) {
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.ErrOut == nil {
		c.ErrOut = io.Discard
	}
	// Without a node ID the API client goes by way of its agent instead of
	// trying the client's own address first, for a second at worst.
	alloc := &api.Allocation{ID: c.AllocID, Namespace: c.Namespace}
	run := lingering(func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		return r.nomad.Allocations().Exec(ctx, alloc, c.Task, c.TTY, argv, in, out, errOut, c.Sizes, &api.QueryOptions{Namespace: c.Namespace})
	})
	var code int
	var err error
	if c.Driver == "docker" && !c.Handshake {
		code, err = r.docker.run(ctx, c.AllocID+"/"+c.Task, run, c.Argv, c.In, c.Out, c.ErrOut, c.TTY)
	} else {
		code, err = run(ctx, c.Argv, orEmpty(c.In), c.Out, c.ErrOut)
	}
	if err != nil {
		return code, fmt.Errorf("exec in task %q of allocation %s: %w", c.Task, c.AllocID, err)
	}
	return code, nil
}
