package devcluster

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// clearOnPremNode removes what containerd and the kubelet left on the machine,
// once no process of theirs runs and nothing is mounted any more.
func (c *Cluster) clearOnPremNode() error {
	if !c.opts.OnPremNode {
		return nil
	}
	_, subnet, err := net.ParseCIDR(c.onPremSubnet().String())
	if err != nil {
		return err
	}
	errs := []error{c.deleteBridge(c.onPremBridge()), os.RemoveAll(c.onPremDir())}
	c.clearFirewall(subnet)
	// The kubelet names its pods' logs here, whatever directory they are in.
	links, _ := filepath.Glob("/var/log/containers/*.log")
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, c.onPremDir()+"/") {
			errs = append(errs, os.Remove(link))
		}
	}
	// CNI's own notes of pods that were killed.
	notes, _ := filepath.Glob("/var/lib/cni/results/" + c.onPremBridge() + "-*")
	for _, note := range notes {
		errs = append(errs, os.Remove(note))
	}
	if !programRuns("kubelet") {
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/kubepods")
		for _, dir := range groups {
			removeGroup(dir)
		}
	}
	// Where every containerd's shims meet; only what is empty goes.
	for _, dir := range []string{"runc/k8s.io", "runc", "s", ""} {
		os.Remove(filepath.Join("/run/containerd", dir))
	}
	return errors.Join(errs...)
}
