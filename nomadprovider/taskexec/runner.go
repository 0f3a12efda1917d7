package taskexec

import (
	"context"
	"fmt"
	"io"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
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
	// Driver is the task's; docker's faults are worked around. What is to run in a
	// VM, of driver qemu, is run by the companion beside it.
	Driver string
	// Handshake is set for a command that itself says when it has started and
	// lingers when it ends, and so needs no help with docker's faults.
	Handshake bool
	// Argv is empty for the console of a VM.
	Argv []string
	// In, Out and ErrOut may be nil.
	In          io.Reader
	Out, ErrOut io.Writer
	TTY         bool
	Sizes       <-chan api.TerminalSize
}

// task is where the call goes.
func (c *Command) task() string {
	if c.Driver == driverQemu {
		return translate.CompanionTask
	}
	return c.Task
}

// noNode is the ID of no Nomad client.
const noNode = "00000000-0000-0000-0000-000000000000"

// alloc is what the API client is told. It looks up the Nomad client first and
// tries its own address, for a second at worst; for one that is not there it goes
// by way of its agent at once. No ID at all would be an error in the agent's log,
// with every call.
func (c *Command) alloc() *api.Allocation {
	return &api.Allocation{ID: c.AllocID, Namespace: c.Namespace, NodeID: noNode}
}

// around is what stands around the command, and how what is known of its container
// is kept; nil for nothing.
func (c *Command) around() (w *around, key string) {
	key = c.AllocID + "/" + c.task()
	switch {
	case c.Driver == driverQemu && len(c.Argv) == 0:
		return &toConsole, key
	case c.Driver == driverQemu:
		return &inVM, key
	case c.Driver == driverDocker && !c.Handshake:
		return &inContainer, key
	}
	return nil, ""
}

const (
	driverDocker = "docker"
	driverQemu   = "qemu"
)

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
	alloc := c.alloc()
	run := lingering(func(ctx context.Context, argv []string, in io.Reader, out, errOut io.Writer) (int, error) {
		return r.nomad.Allocations().Exec(ctx, alloc, c.task(), c.TTY, argv, in, out, errOut, c.Sizes, &api.QueryOptions{Namespace: c.Namespace})
	})
	var code int
	var err error
	if w, key := c.around(); w != nil {
		code, err = r.docker.run(ctx, key, run, *w, c.Argv, c.In, c.Out, c.ErrOut, c.TTY)
	} else {
		code, err = run(ctx, c.Argv, orEmpty(c.In), c.Out, c.ErrOut)
	}
	if err != nil {
		return code, fmt.Errorf("exec in task %q of allocation %s: %w", c.Task, c.AllocID, err)
	}
	return code, nil
}
