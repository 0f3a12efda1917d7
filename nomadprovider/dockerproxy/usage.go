package dockerproxy

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// What [CallUsage] asks for and answers. One call answers for all containers of a
// client, in whichever of them it is asked.
type (
	// UsageRequest is its input, one line of JSON.
	UsageRequest struct {
		Containers []UsageOf `json:"containers"`
	}
	// UsageOf names a container, and says whether its network's counters are
	// wanted: containers of one pod share them.
	UsageOf struct {
		Name    string `json:"name"`
		Network bool   `json:"network,omitempty"`
	}
	// UsageAnswer is its output, in JSON: by name, the containers of Nomad's that
	// run.
	UsageAnswer map[string]Usage

	// Usage is what a container uses: the kernel's counters as they are, memory by
	// the kubelet's rules.
	Usage struct {
		// ID is the engine's, and another after each start.
		ID string    `json:"id"`
		At time.Time `json:"at"` // by the client's clock
		// CPU is the time used since the container's start, in nanoseconds.
		CPU uint64 `json:"cpu"`
		// Periods of the CPU quota and those in which it was used up; Throttled is in
		// nanoseconds.
		Periods          uint64 `json:"periods,omitempty"`
		ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
		Throttled        uint64 `json:"throttled,omitempty"`
		// Memory is in bytes.
		Memory     uint64  `json:"memory"`
		WorkingSet uint64  `json:"workingSet"`
		RSS        uint64  `json:"rss"`
		Cache      uint64  `json:"cache"`
		Swap       *uint64 `json:"swap,omitempty"` // nil where the kernel does not tell
		// Page faults since the start.
		Faults      uint64      `json:"faults"`
		MajorFaults uint64      `json:"majorFaults"`
		Interfaces  []Interface `json:"interfaces,omitempty"`
	}
)

const (
	// usageAtOnce bounds the requests to the engine of one call.
	usageAtOnce = 8
	// usageLimit bounds a call.
	usageLimit = 5 * time.Second
	// usageLine bounds its input, in bytes.
	usageLine = 4 << 20
	// nomadLabel is on every container of Nomad's (drivers/docker/driver.go).
	nomadLabel = "com.hashicorp.nomad.alloc_id"
)

// containerNames are those that the engine gives (daemon/names in its source).
var containerNames = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// usage answers a [UsageRequest].
func (p *Proxy) usage(ctx context.Context, s io.ReadWriter) error {
	ctx, cancel := context.WithTimeout(ctx, usageLimit)
	defer cancel()
	line, err := bufio.NewReader(io.LimitReader(s, usageLine)).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read what is asked for: %w", err)
	}
	var want UsageRequest
	if err := json.Unmarshal(line, &want); err != nil {
		return fmt.Errorf("read what is asked for: %w", err)
	}
	var mu sync.Mutex
	answer := UsageAnswer{}
	var g errgroup.Group
	g.SetLimit(usageAtOnce)
	for _, c := range want.Containers {
		g.Go(func() error {
			u, err := p.usageOf(ctx, c)
			if err != nil {
				p.log.Debug("the usage of a container", "container", c.Name, "error", err)
				return nil
			}
			mu.Lock()
			defer mu.Unlock()
			answer[c.Name] = u
			return nil
		})
	}
	_ = g.Wait() // none fails
	return json.NewEncoder(s).Encode(answer)
}

func (p *Proxy) usageOf(ctx context.Context, c UsageOf) (u Usage, err error) {
	if !containerNames.MatchString(c.Name) {
		return u, errors.New("no name of a container")
	}
	var about struct {
		ID     string `json:"Id"`
		State  struct{ Pid int }
		Config struct{ Labels map[string]string }
	}
	if err := p.ask(ctx, "/containers/"+c.Name+"/json", &about); err != nil {
		return u, err
	}
	if about.Config.Labels[nomadLabel] == "" {
		return u, errors.New("not Nomad's")
	}
	if about.State.Pid == 0 {
		return u, errors.New("it does not run")
	}
	var stats engineStats
	// Without one-shot the engine takes two samples, a second apart.
	if err := p.ask(ctx, "/containers/"+about.ID+"/stats?stream=false&one-shot=true", &stats); err != nil {
		return u, err
	}
	u = stats.usage()
	u.ID = about.ID
	if c.Network {
		if u.Interfaces, err = interfacesOf(about.State.Pid); err != nil {
			p.log.Debug("the network of a container", "container", c.Name, "error", err)
		}
	}
	return u, nil
}

// engineStats are the engine's (api/types/container, StatsResponse).
type engineStats struct {
	Read time.Time `json:"read"`
	CPU  struct {
		Usage struct {
			Total uint64 `json:"total_usage"`
		} `json:"cpu_usage"`
		Throttling struct {
			Periods          uint64 `json:"periods"`
			ThrottledPeriods uint64 `json:"throttled_periods"`
			ThrottledTime    uint64 `json:"throttled_time"`
		} `json:"throttling_data"`
	} `json:"cpu_stats"`
	Memory struct {
		Usage uint64            `json:"usage"`
		Stats map[string]uint64 `json:"stats"` // of memory.stat
	} `json:"memory_stats"`
}

func (s *engineStats) usage() Usage {
	u := Usage{
		At: s.Read, CPU: s.CPU.Usage.Total,
		Periods: s.CPU.Throttling.Periods, ThrottledPeriods: s.CPU.Throttling.ThrottledPeriods, Throttled: s.CPU.Throttling.ThrottledTime,
		Memory: s.Memory.Usage,
		RSS:    s.stat("total_rss", "anon"), Cache: s.stat("total_cache", "file"),
		Faults: s.stat("total_pgfault", "pgfault"), MajorFaults: s.stat("total_pgmajfault", "pgmajfault"),
	}
	if u.At.IsZero() {
		u.At = time.Now()
	}
	// The kubelet's working set (cAdvisor, container/libcontainer/handler.go,
	// setMemoryStats): all but the files that have not been used of late.
	u.WorkingSet = u.Memory - min(u.Memory, s.stat("total_inactive_file", "inactive_file"))
	if swap, known := s.Memory.Stats["total_swap"]; known {
		u.Swap = &swap
	}
	return u
}

// stat is the first of the counters that is there: that of cgroup v1, with all
// that is below it, or that of v2.
func (s *engineStats) stat(names ...string) uint64 {
	for _, n := range names {
		if v, ok := s.Memory.Stats[n]; ok {
			return v
		}
	}
	return 0
}
