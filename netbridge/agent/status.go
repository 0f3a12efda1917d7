package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/fabric"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/ipam"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/overlay"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/peers"
)

// Status is what netbridge status shows.
type Status struct {
	Version string      `json:"version"`
	Fabric  string      `json:"fabric"`
	ID      fabric.ID   `json:"id"`
	Own     fabric.Node `json:"own"`
	// Consul is empty when it answers.
	Consul     string    `json:"consul,omitempty"`
	ConsulSeen time.Time `json:"consulSeen,omitzero"`
	// Incomplete says why nothing is taken away.
	Incomplete string                    `json:"incomplete,omitempty"`
	Peers      map[fabric.ID]fabric.Node `json:"peers"`
	Held       []fabric.ID               `json:"held,omitempty"`
	Refused    map[fabric.ID]string      `json:"refused,omitempty"`
	Fenced     string                    `json:"fenced,omitempty"`
	// Problems are what the agent could not do, by thing.
	Problems map[string]string `json:"problems,omitempty"`
	// Drift is what differs from the goal at this moment.
	Drift []string `json:"drift,omitempty"`
	// Used of Addresses are given to pods.
	Used      int `json:"used"`
	Addresses int `json:"addresses"`
}

// snapshot is what the loop leaves for others to read.
type snapshot struct {
	state    peers.State
	saved    bool
	result   *peers.Result
	goal     overlay.Goal
	backend  overlay.Backend
	problems map[string]string
	refused  map[fabric.ID]string
	fenced   string
	partial  string
}

func (a *Agent) tell(g overlay.Goal, r *peers.Result) {
	s := &snapshot{state: a.state, result: r, goal: g, backend: a.backend, problems: maps.Clone(a.problems), refused: a.refused, fenced: a.fenced}
	_, failed := a.problems["state"]
	s.saved = r != nil && !failed
	switch {
	case a.list == nil:
		s.partial = "consul has not answered yet"
	case a.list.Incomplete != nil:
		s.partial = a.list.Incomplete.Error()
	}
	a.metrics.complete.Set(b2f(s.partial == ""))
	a.metrics.refused.Set(float64(len(a.refused)))
	if r != nil {
		a.metrics.held.Set(float64(len(r.Held)))
	}
	a.metrics.capacity.Set(float64(ipam.Size(a.state.Own.CIDRs)))
	a.seen.Store(s)
}

func (a *Agent) status(ctx context.Context) Status {
	st := Status{Version: a.Version, Fabric: a.Config.Fabric, ID: a.id}
	if e := a.consul.err.Load(); e != nil {
		st.Consul = *e
	}
	if at := a.consul.last.Load(); at != 0 {
		st.ConsulSeen = time.Unix(at, 0).UTC()
	}
	s := a.seen.Load()
	if s == nil {
		st.Incomplete = "the agent has just started"
		return st
	}
	st.Own, st.Refused, st.Fenced, st.Problems, st.Incomplete = s.state.Own, s.refused, s.fenced, s.problems, s.partial
	if s.result != nil {
		st.Peers, st.Held = s.result.Peers, s.result.Held
	}
	if a.store != nil {
		if entries, err := a.store.Entries(); err == nil {
			st.Used, st.Addresses = len(entries), ipam.Size(s.state.Own.CIDRs)
		}
	}
	if s.backend != nil {
		drift, err := s.backend.Drift(s.goal)
		more, guardErr := a.guard.Drift(ctx)
		st.Drift = append(drift, more...)
		if err := errors.Join(err, guardErr); err != nil {
			st.Drift = append(st.Drift, "unknown: "+err.Error())
		}
	}
	return st
}

// serve listens for netbridge status and for Prometheus, until ctx ends.
func (a *Agent) serve(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a.status(r.Context()))
	})
	if err := os.MkdirAll(filepath.Dir(a.Config.Socket), 0o755); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	// What a killed agent left; a living one is replaced, as an upgrade does.
	_ = os.Remove(a.Config.Socket)
	if err := listen(ctx, "unix", a.Config.Socket, mux); err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if a.Config.MetricsAddress == "none" {
		return nil
	}
	seen := http.NewServeMux()
	seen.Handle("GET /metrics", promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{}))
	if err := listen(ctx, "tcp", a.Config.MetricsAddress, seen); err != nil {
		return fmt.Errorf("metricsAddress: %w", err)
	}
	return nil
}

func listen(ctx context.Context, network, address string, h http.Handler) error {
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	if network == "unix" {
		// The address stays for who comes next.
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		if err := os.Chmod(address, 0o600); err != nil {
			return err
		}
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	go func() { _ = srv.Serve(l) }()
	return nil
}

// Ask reads the status of the agent that listens at the socket.
func Ask(ctx context.Context, socket string) (Status, error) {
	var st Status
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return st, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return st, fmt.Errorf("ask the agent at %s: %w", socket, err)
	}
	defer resp.Body.Close()
	return st, json.NewDecoder(resp.Body).Decode(&st)
}
