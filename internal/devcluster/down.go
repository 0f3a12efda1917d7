package devcluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Down stops everything and clears away what it made, whatever state it is in:
// half started, or with processes killed. Only the cache and the logs stay.
// It goes on after errors, and returns them together.
func (c *Cluster) Down(ctx context.Context) error {
	start := time.Now()
	var errs []error
	try := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	try(c.stopOne(ctx, Kubelet))
	try(c.stopOne(ctx, NomadKubelet))
	if !c.opts.NoNomad {
		try(c.stopJobs(ctx))
	}
	try(c.forgetNodes(ctx))
	if c.ownNomad() {
		try(c.stopNomad(ctx))
		try(c.removeContainers(ctx))
	}
	for _, name := range slices.Backward(components) {
		try(c.stopOne(ctx, name))
	}
	c.killLeftovers(ctx)
	if c.ownNomad() {
		try(c.clearNetwork())
	} else {
		try(c.deleteBridge(c.bridge()))
	}
	try(c.clearPodNetwork(ctx))
	try(c.clearMounts())
	try(c.clearOnPremNode())
	if c.ownNomad() {
		c.clearFrame()
	}
	try(c.clearFiles())
	if len(errs) == 0 {
		c.say("Everything is stopped, in %.1f s. Kept: %s (for a fast next start) and %s.",
			time.Since(start).Seconds(), c.opts.CacheDir, filepath.Join(c.opts.Dir, "logs"))
	}
	return errors.Join(errs...)
}

func (c *Cluster) stopOne(ctx context.Context, name string) error {
	if !c.Running(name) {
		return nil
	}
	if err := c.Stop(ctx, name); err != nil {
		return err
	}
	c.say("  stopped %s", name)
	return nil
}

// ourJobs are the jobs to stop: in a Nomad of our own all, in somebody else's
// only those of this cluster's pods and their companions.
func (c *Cluster) ourJobs(client *api.Client) ([]*api.JobListStub, error) {
	jobs, _, err := client.Jobs().List(&api.QueryOptions{Namespace: "*"})
	if err != nil || c.ownNomad() {
		return jobs, err
	}
	return slices.DeleteFunc(jobs, func(j *api.JobListStub) bool {
		return !slices.ContainsFunc(translate.JobIDPrefixes(c.opts.ClusterID), func(p string) bool { return strings.HasPrefix(j.ID, p) })
	}), nil
}

// stopJobs stops the pods' jobs while Nomad can still clear up after them. A
// Nomad that was killed is started once more for that.
func (c *Cluster) stopJobs(ctx context.Context) error {
	if c.ownNomad() && !c.nomadRuns() {
		if !exists(filepath.Join(c.nomadDir(), "client")) || len(c.allocations()) == 0 {
			return nil
		}
		c.say("  nomad was not running: starting it to stop its jobs")
		if c.ownDocker() {
			if err := c.Start(ctx, Docker); err != nil {
				return nil // the harder ways below remain
			}
		}
		if c.proxied() {
			if err := c.Start(ctx, DockerProxy); err != nil {
				return nil
			}
		}
		if err := c.startNomad(ctx); err != nil {
			return nil
		}
	}
	client, err := c.NomadClient()
	if err != nil {
		return err
	}
	jobs, err := c.ourJobs(client)
	if err != nil {
		if c.ownNomad() {
			return nil // half started; its processes and mounts are found below
		}
		return fmt.Errorf("list Nomad jobs: %w", err)
	}
	if len(jobs) == 0 {
		return nil
	}
	for _, j := range jobs {
		q := &api.WriteOptions{Namespace: j.JobSummary.Namespace}
		if _, _, err := client.Jobs().Deregister(j.ID, false, q); err != nil && !jobGone(client, j) {
			return fmt.Errorf("stop job %s: %w", j.ID, err)
		}
	}
	// Pods may ask for a long farewell; nobody waits for it here.
	patient, cancel := context.WithTimeout(ctx, 4*time.Second)
	defer cancel()
	if c.awaitStopped(patient, client, jobs) != nil {
		c.killTasks(ctx)
		hard, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		if err := c.awaitStopped(hard, client, jobs); err != nil {
			c.say("  %v", err)
		}
	}
	for _, j := range jobs {
		_, _, _ = client.Jobs().Deregister(j.ID, true, &api.WriteOptions{Namespace: j.JobSummary.Namespace})
		c.removeVariables(client, j)
	}
	c.say("  stopped %d Nomad jobs", len(jobs))
	return nil
}

// jobGone says that the job was purged after it was listed, as nomad-kubelet's
// last words may ask for. Nomad answers whoever stops it then with code 500.
func jobGone(client *api.Client, j *api.JobListStub) bool {
	_, _, err := client.Jobs().Info(j.ID, &api.QueryOptions{Namespace: j.JobSummary.Namespace})
	var r api.UnexpectedResponseError
	return errors.As(err, &r) && r.StatusCode() == http.StatusNotFound
}

// removeVariables clears what a job's pod projected; in our own Nomad it goes
// with the data.
func (c *Cluster) removeVariables(client *api.Client, j *api.JobListStub) {
	if c.ownNomad() {
		return
	}
	ns := j.JobSummary.Namespace
	vars, _, err := client.Variables().PrefixList(translate.VariablePath(j.ID), &api.QueryOptions{Namespace: ns})
	if err != nil {
		return
	}
	for _, v := range vars {
		_, _ = client.Variables().Delete(v.Path, &api.WriteOptions{Namespace: ns})
	}
}

func (c *Cluster) awaitStopped(ctx context.Context, client *api.Client, jobs []*api.JobListStub) error {
	return poll(ctx, 200*time.Millisecond, func(context.Context) error {
		for _, j := range jobs {
			allocs, _, err := client.Jobs().Allocations(j.ID, true, &api.QueryOptions{Namespace: j.JobSummary.Namespace})
			if err != nil {
				return err
			}
			for _, a := range allocs {
				if a.ClientStatus == api.AllocClientStatusRunning || a.ClientStatus == api.AllocClientStatusPending {
					return fmt.Errorf("job %s (%s) is still %s", j.ID, j.Name, a.ClientStatus)
				}
			}
		}
		return nil
	})
}

// allocations are the IDs of the allocations our Nomad client has on disk.
func (c *Cluster) allocations() []string {
	entries, err := os.ReadDir(filepath.Join(c.nomadDir(), "alloc"))
	if err != nil {
		return nil
	}
	var ids []string
	for _, e := range entries {
		if len(e.Name()) == 36 {
			ids = append(ids, e.Name())
		}
	}
	return ids
}

// forgetNodes removes from an existing cluster what we put there.
func (c *Cluster) forgetNodes(ctx context.Context) error {
	if c.ownKubernetes() || !exists(c.KubeconfigFile()) {
		return nil
	}
	client, err := c.kubernetes()
	if err != nil {
		return err
	}
	node := client.CoreV1().Nodes()
	if err := node.Delete(ctx, VirtualNode, metav1.DeleteOptions{}); err == nil {
		c.say("  removed node %s", VirtualNode)
	}
	ours := metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=" + fieldManager}
	return client.NodeV1().RuntimeClasses().DeleteCollection(ctx, metav1.DeleteOptions{}, ours)
}

// clearFiles removes the state, and what was put elsewhere for it.
func (c *Cluster) clearFiles() error {
	if c.opts.VMImage && len(otherClusters(c.opts.Dir)) == 0 {
		for file := range vmFilesBuilt {
			if os.Remove(file) == nil {
				c.say("  removed %s", file)
			}
		}
		// Only if empty: others may keep images there.
		os.Remove(VMImageDir)
		os.Remove(filepath.Dir(VMImageDir))
	}
	var errs []error
	if short := c.opts.shortDir(); short != c.opts.Dir {
		errs = append(errs, os.RemoveAll(short))
		os.Remove(filepath.Dir(short))
	}
	// By name, never all of the directory: --dir may name one with other things.
	for _, pattern := range []string{"run", "pki", "nomad-config", "etcd", "nomad", "nomad-server", "images", "consul", "netbridge*", "kubeconfig*", "nomad-kubelet.yaml", "*.token", "state.json"} {
		paths, _ := filepath.Glob(filepath.Join(c.opts.Dir, pattern))
		for _, path := range paths {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}
