package node

import (
	"context"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node/nomadtest"
)

// Clients against a real Nomad: what it knows, an eligibility event, and an
// agent that stays connected without answering.
func TestClientsLive(t *testing.T) {
	agent := nomadtest.Start(t, `client { cpu_total_compute = 4000 }`)
	c := NewClients(agent.Client, hclog.NewNullLogger(), clock.RealClock{})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	defer func() { cancel(); <-done }()

	healthy := func() bool { ok, _, _ := c.Healthy(); return ok }
	nomadtest.Eventually(t, 10*time.Second, "healthy", healthy)
	list := c.List()
	if len(list) != 1 {
		t.Fatalf("%d clients", len(list))
	}
	info := list[0]
	if !info.Ready() || info.MHz != 4000 || info.Cores < 1 || info.MemoryMB < 1 || info.HostIP == "" || info.Arch == "" || info.OS != "linux" || info.HTTPAddr == "" {
		t.Errorf("client %+v", info)
	}
	if on, err := c.MemoryOversubscription(ctx, "default"); err != nil || on {
		t.Errorf("oversubscription %v, %v", on, err)
	}
	if ok, err := c.PoolExists(ctx, "nope"); err != nil || ok {
		t.Errorf("pool nope: %v, %v", ok, err)
	}
	if r, err := c.Region(); err != nil || r != "global" {
		t.Errorf("region %q, %v", r, err)
	}

	if _, err := agent.Client.Nodes().ToggleEligibility(info.ID, false, nil); err != nil {
		t.Fatal(err)
	}
	nomadtest.Eventually(t, 5*time.Second, "ineligible", func() bool { i, ok := c.Client(info.ID); return ok && !i.Eligible })

	agent.Pause()
	began := time.Now()
	nomadtest.Eventually(t, 20*time.Second, "unhealthy", func() bool { return !healthy() })
	t.Logf("a hung agent was noticed after %s", time.Since(began).Round(100*time.Millisecond))
	agent.Resume()
	nomadtest.Eventually(t, 20*time.Second, "healthy again", healthy)
}
