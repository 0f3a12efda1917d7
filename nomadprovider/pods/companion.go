package pods

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const companionTries = 5

// askCompanion runs one of the companion's commands until it has answered: a
// call may end without having started it (hashicorp/nomad#27146), and all of
// them may be run twice. The error is an [unheardError] when there was no answer.
func (c *Controller) askCompanion(ctx context.Context, alloc *api.Allocation, in []byte, command ...string) error {
	var err error
	for range companionTries {
		var answer string
		if answer, err = c.runCompanion(ctx, alloc, in, command); answer != "" || ctx.Err() != nil {
			if answer == companion.AnswerDone {
				return nil
			}
			return fmt.Errorf("the companion's command %s: %s", command[0], strings.TrimPrefix(answer, companion.AnswerFailed))
		}
	}
	if err == nil {
		err = errors.New("no answer")
	}
	return fmt.Errorf("the companion's command %s: %w", command[0], &unheardError{err})
}

func (c *Controller) runCompanion(ctx context.Context, alloc *api.Allocation, in []byte, command []string) (answer string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &firstLine{done: cancel}
	_, err = c.Exec.Run(ctx, taskexec.Command{
		Namespace: alloc.Namespace, AllocID: alloc.ID, Task: translate.CompanionTask, Driver: "docker", Handshake: true,
		Argv: append([]string{"/companion"}, command...), In: bytes.NewReader(in), Out: out, ErrOut: out,
	})
	return out.line, err
}

// firstLine keeps the first line that is written, and says when it is there.
type firstLine struct {
	buf  bytes.Buffer
	line string
	done func()
}

func (f *firstLine) Write(p []byte) (int, error) {
	if f.line == "" {
		f.buf.Write(p)
		if line, _, ok := strings.Cut(f.buf.String(), "\n"); ok {
			f.line = strings.TrimSpace(line)
			f.done()
		}
	}
	return len(p), nil
}
