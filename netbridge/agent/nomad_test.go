package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-hclog"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
)

// After a boot the agent may be there before Nomad: it goes on as who it was, and
// ends when Nomad calls the client otherwise.
func TestWhoThisNodeIsBeforeNomadTells(t *testing.T) {
	var id atomic.Value
	id.Store("")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if id.Load() == "" {
			http.Error(w, "starts", http.StatusInternalServerError)
			return
		}
		fmt.Fprintf(w, `{"stats":{"client":{"node_id":%q}}}`, id.Load())
	}))
	defer srv.Close()
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{Nomad: client, Log: hclog.NewNullLogger()}
	name, err := a.nomadID(t.Context(), "nomad/one")
	if err != nil || name != "one" || !a.assumed {
		t.Fatal(name, err, a.assumed)
	}
	a.id = fabric.ID("nomad/" + name)
	id.Store("one")
	if err := a.verify(t.Context()); err != nil {
		t.Error(err)
	}
	id.Store("two")
	if err := a.verify(t.Context()); !errors.Is(err, errRenamed) {
		t.Error(err)
	}
	// Who was nobody waits.
	b := &Agent{Nomad: client, Log: hclog.NewNullLogger()}
	if name, err := b.nomadID(t.Context(), ""); err != nil || name != "two" || b.assumed {
		t.Error(name, err, b.assumed)
	}
}

// Nomad's agent may take a call and not answer: who was here before does not wait.
func TestANomadThatHangs(t *testing.T) {
	hangs := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hangs }))
	defer srv.Close()
	defer close(hangs)
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*askTimeout)
	defer cancel()
	done := make(chan string, 1)
	go func() {
		a := &Agent{Nomad: client, Log: hclog.NewNullLogger()}
		name, err := a.nomadID(ctx, "nomad/one")
		if err != nil {
			t.Error(err)
		}
		done <- name
	}()
	select {
	case name := <-done:
		if name != "one" {
			t.Error(name)
		}
	case <-ctx.Done():
		t.Error("it waits for a Nomad that does not answer")
	}
}
