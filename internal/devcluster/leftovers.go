package devcluster

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// processes calls f with every process but our own.
func processes(f func(pid int)) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			f(pid)
		}
	}
}

// otherClusters are the state directories of other clusters that run on this
// machine.
func otherClusters(dir string) []string {
	var out []string
	processes(func(pid int) {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil || !alive(pid) {
			return
		}
		for _, kv := range bytes.Split(env, []byte{0}) {
			other, ok := bytes.CutPrefix(kv, []byte(mark+"="))
			if ok && string(other) != dir && !slices.Contains(out, string(other)) {
				out = append(out, string(other))
			}
		}
	})
	return out
}

// ours tells whether a process belongs to the cluster: by its mark, by a root
// file system in the data of our Docker or our containerd, or as a container of one of our allocations.
func (c *Cluster) ours(pid int) bool {
	if marked(pid, c.opts.Dir) {
		return true
	}
	data, onPrem := filepath.Join(c.opts.CacheDir, "docker"), c.onPremDir("containerd")
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false
	}
	lines := bufio.NewScanner(bytes.NewReader(mounts))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if f := strings.Fields(lines.Text()); len(f) > 4 && f[4] == "/" {
			return strings.Contains(lines.Text(), data+"/") || strings.Contains(lines.Text(), onPrem+"/")
		}
	}
	return false
}

// killLeftovers ends whatever of ours outlived its parent.
func (c *Cluster) killLeftovers(ctx context.Context) {
	// Ending one may let another go on for a moment, so look again.
	for range 5 {
		var pids []int
		processes(func(pid int) {
			if alive(pid) && c.ours(pid) {
				pids = append(pids, pid)
			}
		})
		if len(pids) == 0 {
			return
		}
		for _, pid := range pids {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			if syscall.Kill(pid, syscall.SIGKILL) == nil {
				c.say("  killed %s (process %d)", strings.TrimSpace(string(name)), pid)
			}
		}
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		for _, pid := range pids {
			_ = waitGone(ctx, pid)
		}
		cancel()
	}
}

// killTasks ends the tasks of our allocations at once, for Nomad to notice:
// containers, and VMs, which carry the mark of the agent that started them.
func (c *Cluster) killTasks(ctx context.Context) {
	if c.dockerHost != "" {
		all, _ := c.engine().containers(ctx)
		for _, ct := range all {
			if c.ourContainer(ct) && !strings.HasPrefix(strings.Join(ct.Names, ""), "/nomad_init_") {
				_ = c.engine().do(ctx, "POST", "/containers/"+ct.ID+"/kill", nil, nil)
			}
		}
	}
	processes(func(pid int) {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.HasPrefix(string(name), "qemu-system") && marked(pid, c.opts.Dir) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	})
}

// ourContainer recognises containers of our allocations in an engine that is
// not only ours.
func (c *Cluster) ourContainer(ct container) bool {
	if c.ownDocker() {
		return true
	}
	id := ct.Labels["com.hashicorp.nomad.alloc_id"]
	if id == "" {
		return false
	}
	return slices.Contains(c.allocations(), id)
}

// removeContainers removes those that Nomad did not get to.
func (c *Cluster) removeContainers(ctx context.Context) error {
	if c.dockerHost == "" || c.engine().ping(ctx) != nil {
		return nil
	}
	all, err := c.engine().containers(ctx)
	if err != nil {
		return err
	}
	n := 0
	for _, ct := range all {
		if c.ourContainer(ct) && c.engine().remove(ctx, ct.ID) == nil {
			n++
		}
	}
	if n > 0 {
		c.say("  removed %d containers", n)
	}
	return nil
}

// clearMounts undoes every mount at or below our directories, and the network
// namespaces that Nomad bound for VMs of our allocations.
func (c *Cluster) clearMounts() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	below := []string{c.opts.Dir, c.opts.CacheDir, c.opts.shortDir()}
	allocs := c.allocations()
	n := 0
	lines := strings.Split(string(data), "\n")
	for _, line := range slices.Backward(lines) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := strings.ReplaceAll(f[4], `\040`, " ")
		netns := filepath.Dir(at) == "/run/netns" || filepath.Dir(at) == "/var/run/netns"
		mine := netns && slices.Contains(allocs, filepath.Base(at)) ||
			slices.ContainsFunc(below, func(dir string) bool { return at == dir || strings.HasPrefix(at, dir+"/") })
		if !mine {
			continue
		}
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
		n++
	}
	for _, id := range allocs {
		os.Remove(filepath.Join("/var/run/netns", id))
	}
	if n > 0 {
		c.say("  unmounted %d leftovers", n)
	}
	return nil
}

// clearFrame removes what Nomad and Docker made once for the whole machine,
// unless somebody else uses it: the mount of /run/netns, and empty cgroups.
func (c *Cluster) clearFrame() {
	if len(otherClusters(c.opts.Dir)) > 0 || programRuns("nomad") {
		return
	}
	const netns = "/run/netns"
	if entries, err := os.ReadDir(netns); err == nil && len(entries) == 0 {
		if unix.Unmount(netns, 0) == nil {
			os.Remove(netns)
		}
	}
	groups := []string{"/sys/fs/cgroup/nomad.slice", "/sys/fs/cgroup/*/nomad"}
	if c.ownDocker() && !programRuns("dockerd") {
		groups = append(groups, "/sys/fs/cgroup/docker", "/sys/fs/cgroup/*/docker")
	}
	for _, pattern := range groups {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			removeGroup(dir)
		}
	}
}

// removeGroup removes a cgroup and those below it; the kernel keeps any that
// has processes.
func removeGroup(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			removeGroup(filepath.Join(dir, e.Name()))
		}
	}
	_ = unix.Rmdir(dir) // whoever is still in it keeps it
}

func programRuns(name string) bool {
	found := false
	processes(func(pid int) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		found = found || strings.TrimSpace(string(comm)) == name && alive(pid)
	})
	return found
}
