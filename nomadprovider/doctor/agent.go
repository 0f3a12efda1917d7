package doctor

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
)

// clientTimeout bounds connecting to a client's own HTTP API.
const clientTimeout = 2 * time.Second

// values is a part of an agent's configuration as /v1/agent/self gives it:
// Nomad's field names, no fixed types.
type values map[string]any

func (v values) sub(key string) values {
	m, _ := v[key].(map[string]any)
	return m
}

func (v values) boolean(key string) bool { b, _ := v[key].(bool); return b }

func (v values) number(key string) (int64, bool) {
	f, ok := v[key].(float64)
	return int64(f), ok
}

func (v values) duration(key string) (time.Duration, bool) {
	s, _ := v[key].(string)
	d, err := time.ParseDuration(s)
	return d, err == nil
}

func (v values) list(key string) []string {
	items, ok := v[key].([]any)
	if !ok {
		return nil
	}
	out := make([]string, 0, len(items))
	for _, i := range items {
		if s, ok := i.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

// agentSelf is an agent's own configuration.
type agentSelf struct {
	Config values `json:"config"`
}

// plugin is a plugin's configuration block.
func (a *agentSelf) plugin(name string) values {
	list, _ := a.Config["Plugins"].([]any)
	for _, p := range list {
		m, _ := p.(map[string]any)
		if m["Name"] == name {
			return values(m).sub("Config")
		}
	}
	return nil
}

// agent asks a client's agent for its configuration. Nomad forwards no such
// request: it goes to the client's own address or nowhere.
func (d *Doctor) agent(ctx context.Context, n *api.Node) (*agentSelf, error) {
	q, stop := query(ctx, "")
	defer stop()
	c, err := d.Nomad.GetNodeClientWithTimeout(n.ID, clientTimeout, q)
	if err != nil {
		return nil, fmt.Errorf("reach the client's agent: %w", err)
	}
	return self(c, q)
}

func self(c *api.Client, q *api.QueryOptions) (*agentSelf, error) {
	var a agentSelf
	if _, err := c.Raw().Query("/v1/agent/self", &a, q); err != nil {
		switch status(err) {
		case 403:
			return nil, errors.New("the token may not read agents' settings (agent read)")
		case 0:
			return nil, fmt.Errorf("the agent at %s does not answer", c.Address())
		}
		return nil, fmt.Errorf("read the settings of the agent at %s: %w", c.Address(), err)
	}
	return &a, nil
}

// setting is one value of deploy/nomad that pods need.
type setting struct {
	what string
	// read returns the value, and whether it will do.
	read           func(a *agentSelf) (found string, good bool)
	result         report.Result
	breaks, remedy string
}

func (s setting) check(r *report.Report, where string, a *agentSelf) {
	found, good := s.read(a)
	if good {
		r.OK(where, s.what, found)
		return
	}
	r.Add(report.Check{Where: where, What: s.what, Result: s.result, Found: found, Breaks: s.breaks, Remedy: s.remedy})
}

// connections reads limits.http_max_conns_per_client, which is the same for
// clients and servers; 0 is no limit.
func connections(a *agentSelf) (string, bool) {
	n, ok := a.Config.sub("Limits").number("HTTPMaxConnsPerClient")
	if !ok {
		n = 100
	}
	return strconv.FormatInt(n, 10), n == 0 || n >= 1000
}

var connectionLimit = setting{
	what: "limits http_max_conns_per_client", result: report.Warn, read: connections,
	breaks: "kubectl logs -f and exec are refused beyond that many at once (429)",
	remedy: "limits { http_max_conns_per_client = 0 }",
}

// clientSettings are those of deploy/nomad/client.hcl.
var clientSettings = []setting{
	{
		what: "template nomad_retry attempts", result: report.Fail,
		read: func(a *agentSelf) (string, bool) {
			n, ok := a.Config.sub("Client").sub("TemplateConfig").sub("NomadRetry").number("Attempts")
			if !ok {
				n = 12
			}
			return strconv.FormatInt(n, 10), n == 0
		},
		breaks: "a client restarted while Nomad's servers are away kills its running pods after about 5 minutes",
		remedy: `client { template { nomad_retry { attempts = 0 backoff = "250ms" max_backoff = "5s" } } }`,
	},
	{
		what: "template max_stale", result: report.Fail,
		read: func(a *agentSelf) (string, bool) {
			// In nanoseconds; Nomad's own is ten years (client/config/config.go).
			n, ok := a.Config.sub("Client").sub("TemplateConfig").number("MaxStale")
			if !ok {
				return "not told", false
			}
			return time.Duration(n).String(), n == 0
		},
		breaks: "a container that is not to run again may do so when a client and one of Nomad's servers restart",
		remedy: `client { template { max_stale = "0s" } }`,
	},
	{
		what: "max_kill_timeout", result: report.Warn,
		read: func(a *agentSelf) (string, bool) {
			d, ok := a.Config.sub("Client").duration("MaxKillTimeout")
			if !ok {
				d = 30 * time.Second
			}
			return d.String(), d >= 10*time.Minute
		},
		breaks: "a longer terminationGracePeriodSeconds is cut to it",
		remedy: `client { max_kill_timeout = "1h" }`,
	},
	{
		what: "gc_max_allocs", result: report.Warn,
		read: func(a *agentSelf) (string, bool) {
			n, ok := a.Config.sub("Client").number("GCMaxAllocs")
			if !ok {
				n = 50
			}
			return strconv.FormatInt(n, 10), n >= 500
		},
		breaks: "with more pods than that on the client, finished ones lose their logs at once",
		remedy: "client { gc_max_allocs = 1000 }",
	},
	{
		what: "telemetry publish_allocation_metrics", result: report.Warn,
		read: func(a *agentSelf) (string, bool) {
			on := a.Config.sub("Telemetry").boolean("PublishAllocationMetrics")
			return strconv.FormatBool(on), on
		},
		breaks: "kubectl top and autoscalers know nothing of VMs, nor of containers without the docker proxy",
		remedy: `telemetry { publish_allocation_metrics = true collection_interval = "10s" }`,
	},
	connectionLimit,
}

// serverSettings are those of deploy/nomad/server.hcl.
var serverSettings = []setting{
	{
		what: "event_buffer_size", result: report.Warn,
		read: func(a *agentSelf) (string, bool) {
			n, ok := a.Config.sub("Server").number("EventBufferSize")
			if !ok {
				n = 100
			}
			return strconv.FormatInt(n, 10), n >= 5000
		},
		breaks: "when many pods start at once, events are lost and everything is listed again",
		remedy: "server { event_buffer_size = 20000 }",
	},
	{
		what: "job_gc_threshold", result: report.Warn,
		read: func(a *agentSelf) (string, bool) {
			d, ok := a.Config.sub("Server").duration("JobGCThreshold")
			if !ok {
				d = 4 * time.Hour
			}
			return d.String(), d >= 24*time.Hour
		},
		breaks: "the logs of completed pods are gone after that time",
		remedy: `server { job_gc_threshold = "24h" }`,
	},
	connectionLimit,
}

// server checks the agent that the daemon talks to. The other servers must be
// set alike; they are not asked, since a load balancer may hide them.
func (d *Doctor) server(ctx context.Context, r *report.Report) {
	q, stop := query(ctx, "")
	defer stop()
	a, err := self(d.Nomad, q)
	where := "agent " + d.Nomad.Address()
	if err != nil {
		r.Add(report.Check{Where: where, What: "server settings", Result: report.Unknown, Found: err.Error(),
			Breaks: "fast starts of many pods and logs of completed pods depend on them",
			Remedy: "on the servers compare the configuration with deploy/nomad/server.hcl: nomad agent-info"})
		return
	}
	if v, ok := a.Config.sub("Version")["Version"].(string); ok {
		r.Add(version(where, v))
	}
	if !a.Config.sub("Server").boolean("Enabled") {
		connectionLimit.check(r, where, a)
		r.Add(report.Check{Where: where, What: "server settings", Result: report.Unknown, Found: "this agent is no server",
			Remedy: "run the doctor with NOMAD_ADDR set to each server"})
		return
	}
	for _, s := range serverSettings {
		s.check(r, where, a)
	}
}

// version: 1.11.2 brought memory without limit and the finer rights.
func version(where, v string) report.Check {
	c := report.Check{Where: where, What: "Nomad version", Result: report.OK, Found: v}
	var major, minor, patch int
	if n, _ := fmt.Sscanf(v, "%d.%d.%d", &major, &minor, &patch); n < 3 {
		c.Result = report.Unknown
		return c
	}
	if major*1e6+minor*1e3+patch < 1_011_002 {
		c.Result, c.Breaks = report.Warn, "nomad-kubelet is made for Nomad 1.11.3; pods without a memory limit need 1.11.2"
		c.Remedy = "upgrade Nomad"
	}
	return c
}
