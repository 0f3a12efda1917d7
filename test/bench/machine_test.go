package bench

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
)

// tick is how /proc counts CPU time (USER_HZ), on every architecture.
const tick = 0.01

// The rows of a cpuTimes besides the components.
const (
	cpuBench = "the benchmark"
	// cpuOthers is all else: helpers of Nomad and Docker, and what does not
	// belong to the benchmark at all.
	cpuOthers = "others"
)

// cpuTimes are CPU seconds used so far, by component.
type cpuTimes map[string]float64

var components = []string{
	devcluster.Etcd, devcluster.APIServer, devcluster.ControllerManager, devcluster.Scheduler,
	devcluster.Nomad, devcluster.NomadKubelet,
}

func (h *hybrid) pid(component string) (int, error) {
	data, err := os.ReadFile(filepath.Join(h.Dir(), "run", component+".pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

func (h *hybrid) cpu() (cpuTimes, error) {
	out := cpuTimes{}
	sum := 0.0
	for _, name := range components {
		pid, err := h.pid(name)
		if err != nil {
			return nil, err
		}
		if out[name], err = processCPU(pid); err != nil {
			return nil, err
		}
		sum += out[name]
	}
	self, err := processCPU(os.Getpid())
	if err != nil {
		return nil, err
	}
	all, err := busyCPU()
	if err != nil {
		return nil, err
	}
	out[cpuBench], out[cpuOthers] = self, all-sum-self
	return out, nil
}

func processCPU(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat: %q", pid, data)
	}
	return ticks(f[11], f[12])
}

// busyCPU is the CPU time of the whole machine but idle, waiting and stolen.
func busyCPU() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	f := strings.Fields(strings.SplitN(string(data), "\n", 2)[0])
	if len(f) < 8 {
		return 0, fmt.Errorf("/proc/stat: %q", f)
	}
	return ticks(f[1], f[2], f[3], f[6], f[7])
}

func ticks(fields ...string) (sum float64, err error) {
	for _, s := range fields {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return 0, err
		}
		sum += n * tick
	}
	return sum, nil
}

// quiet waits until the hybrid does next to nothing; what others do on the
// machine cannot be waited for.
func (h *hybrid) quiet(ctx context.Context) error {
	const window, calm, need, patience = time.Second, 0.25, 2, time.Minute
	deadline := time.Now().Add(patience)
	for streak := 0; streak < need && time.Now().Before(deadline); {
		before, err := h.cpu()
		if err != nil {
			return err
		}
		select {
		case <-time.After(window):
		case <-ctx.Done():
			return ctx.Err()
		}
		after, err := h.cpu()
		if err != nil {
			return err
		}
		used := 0.0
		for _, name := range components {
			used += after[name] - before[name]
		}
		if streak++; used > calm {
			streak = 0
		}
	}
	return nil
}

// collect makes Nomad forget what has ended, so that no variant works on the
// remains of the one before.
func (h *hybrid) collect(ctx context.Context) error {
	if err := h.nomad.System().GarbageCollect(); err != nil {
		return err
	}
	return h.quiet(ctx)
}

// memory reads a process's resident memory and its peak, in MiB.
func memory(pid int) (now, peak float64, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, 0, err
	}
	for _, line := range strings.Split(string(data), "\n") {
		var kb float64
		switch {
		case strings.HasPrefix(line, "VmRSS:"):
			_, err = fmt.Sscanf(line, "VmRSS: %f kB", &kb)
			now = kb / 1024
		case strings.HasPrefix(line, "VmHWM:"):
			_, err = fmt.Sscanf(line, "VmHWM: %f kB", &kb)
			peak = kb / 1024
		}
		if err != nil {
			return 0, 0, fmt.Errorf("%q: %w", line, err)
		}
	}
	return now, peak, nil
}

// own is the sum over the hybrid and the benchmark. Unlike seconds it hardly
// depends on what others do on the machine.
func (c cpuTimes) own() float64 {
	sum := 0.0
	for name, s := range c {
		if name != cpuOthers {
			sum += s
		}
	}
	return sum
}

// String lists the greatest first.
func (c cpuTimes) String() string {
	names := slices.SortedFunc(maps.Keys(c), func(a, b string) int {
		switch {
		case c[a] > c[b]:
			return -1
		case c[a] < c[b]:
			return 1
		}
		return strings.Compare(a, b)
	})
	var parts []string
	for _, n := range names {
		if c[n] >= 0.05 {
			parts = append(parts, fmt.Sprintf("%s %.1f", n, c[n]))
		}
	}
	return strings.Join(parts, ", ")
}
