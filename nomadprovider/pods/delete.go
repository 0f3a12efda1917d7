package pods

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/allocs"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// terminate ends a pod that is being deleted: the job is stopped, its end is
// awaited and told, and only then the object goes.
func (c *Controller) terminate(ctx context.Context, pod *corev1.Pod, entry allocs.Entry, known bool) (time.Duration, error) {
	if !known {
		return 0, c.bury(ctx, pod, pod.Status)
	}
	alloc := primary(pod, entry)
	if alloc == nil {
		if !entry.Job.Stopped {
			if err := c.stop(ctx, entry.Job); err != nil {
				return 0, err
			}
		}
		return c.terminateUnplaced(ctx, pod, entry)
	}
	again, err := c.windDown(ctx, pod, entry, alloc, deadlineOf(pod))
	if err != nil {
		return 0, err
	}
	c.workProbes(pod, alloc)
	_ = c.readMessages(ctx, pod, alloc) // a pod that goes is not kept for them
	status := translate.Status(pod, alloc, c.facts(pod, alloc, "", nil))
	if len(remaining(entry)) == 0 {
		return 0, c.bury(ctx, pod, translate.Final(pod, status, c.facts(pod, alloc, "", nil)))
	}
	return again, c.report(ctx, pod, status)
}

// terminateUnplaced makes sure that Nomad was not about to place the pod.
func (c *Controller) terminateUnplaced(ctx context.Context, pod *corev1.Pod, entry allocs.Entry) (time.Duration, error) {
	stubs, _, err := c.Nomad.Jobs().Allocations(entry.Job.ID, true, (&api.QueryOptions{Namespace: entry.Job.Namespace}).WithContext(ctx))
	if err != nil && !notFound(err) {
		return 0, fmt.Errorf("list the allocations of job %s: %w", entry.Job.ID, err)
	}
	if len(stubs) > 0 {
		return time.Second, nil // its event is on the way
	}
	return 0, c.bury(ctx, pod, pod.Status)
}

// deadlineOf is when a pod that is being deleted is to have ended. The API server
// cuts the time to whole seconds; nobody is to get less than was granted.
func deadlineOf(pod *corev1.Pod) time.Time { return pod.DeletionTimestamp.Add(time.Second) }

// killAt kills what still runs at the deadline, and says until then how long
// that is. Nomad's own kill timeout, frozen when a task starts
// (client/allocrunner/taskrunner/driver_handle.go), knows nothing of a deletion
// with less time, nor of what hooks and sidecars took.
func (c *Controller) killAt(ctx context.Context, driver string, alloc *api.Allocation, deadline time.Time) (time.Duration, error) {
	if left := deadline.Sub(c.Clock.Now()); left > 0 {
		return left, nil
	}
	return minimumGrace, c.kill(ctx, driver, alloc)
}

// kill sends SIGKILL to every running task.
func (c *Controller) kill(ctx context.Context, driver string, alloc *api.Allocation) error {
	var errs []error
	for task, ts := range alloc.TaskStates {
		if ts.State == "running" {
			errs = append(errs, c.signal(ctx, driver, alloc, task, sigkill))
		}
	}
	return errors.Join(errs...)
}

// bury reports the last status and removes the object.
func (c *Controller) bury(ctx context.Context, pod *corev1.Pod, last corev1.PodStatus) error {
	if err := c.report(ctx, pod, last); err != nil {
		return err
	}
	c.letGo(pod.UID)
	zero := int64(0)
	err := c.Kube.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: &zero, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("remove pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// stop deregisters a job without purging it: what it wrote stays readable.
func (c *Controller) stop(ctx context.Context, job allocs.Job) error {
	_, _, err := c.Nomad.Jobs().Deregister(job.ID, false, (&api.WriteOptions{Namespace: job.Namespace}).WithContext(ctx))
	if err != nil && !notFound(err) {
		return fmt.Errorf("stop job %s: %w", job.ID, err)
	}
	return nil
}

// reap ends what is left in Nomad of a pod that is gone.
func (c *Controller) reap(ctx context.Context, uid types.UID, entry allocs.Entry, known bool) (time.Duration, error) {
	c.prober.Drop(uid)
	var seen, debugged bool
	var grace *int64
	var namespace, driver string
	c.with(uid, func(s *podState) {
		seen, debugged, grace, namespace, driver = s.gone, s.debugged, s.grace, s.namespace, s.driver
	})
	if !known && len(entry.Companions) == 0 {
		// Nomad may have collected the job by itself; it keeps the Variables.
		if seen {
			if err := c.deleteVariables(ctx, allocs.Job{ID: translate.JobID(c.Cluster, uid), Namespace: namespace}); err != nil {
				return 0, err
			}
		}
		gone := allocs.Entry{Job: allocs.Job{Namespace: namespace}}
		if err := c.purgeCompanions(ctx, gone, translate.CompanionPrefix(c.Cluster, uid), debugged); err != nil {
			return 0, err
		}
		c.forget(uid)
		return 0, nil
	}
	if !seen {
		wait, err := c.orphan(ctx, uid, entry)
		if err != nil || wait > 0 {
			return wait, err
		}
	}
	if known && !entry.Job.Stopped {
		if err := c.stop(ctx, entry.Job); err != nil {
			return 0, err
		}
	}
	if err := c.stopCompanions(ctx, entry); err != nil {
		return 0, err
	}
	if left := remaining(entry); len(left) > 0 {
		if seen && grace != nil && *grace == 0 {
			// Deleted by force: no more time.
			for _, a := range left {
				if err := c.kill(ctx, driver, a); err != nil {
					c.Log.Debug("a task that was to be killed", "error", err)
				}
			}
		}
		return 0, nil // its end comes as an event
	}
	if err := c.purgeCompanions(ctx, entry, translate.CompanionPrefix(c.Cluster, uid), known && debugged); err != nil {
		return 0, err
	}
	if !known {
		return 0, nil // that Nomad has forgotten the last comes as an event
	}
	if err := c.purge(ctx, entry.Job); err != nil {
		return 0, err
	}
	c.forget(uid)
	return 0, nil
}

// purge makes Nomad forget a job whose allocations have ended, with its
// Variables.
func (c *Controller) purge(ctx context.Context, job allocs.Job) error {
	if err := c.deleteVariables(ctx, job); err != nil {
		return err
	}
	w := (&api.WriteOptions{Namespace: job.Namespace}).WithContext(ctx)
	if _, _, err := c.Nomad.Jobs().Deregister(job.ID, true, w); err != nil && !notFound(err) {
		return fmt.Errorf("purge job %s: %w", job.ID, err)
	}
	return nil
}

func (c *Controller) deleteVariables(ctx context.Context, job allocs.Job) error {
	return c.deleteVariablesOf(ctx, job.Namespace, job.ID, func(id string) bool { return id == job.ID })
}

// deleteVariablesOf deletes the Variables of the jobs whose ID has the prefix
// and is among those meant: a companion's ID may be the prefix of another's.
func (c *Controller) deleteVariablesOf(ctx context.Context, namespace, prefix string, meant func(jobID string) bool) error {
	q := (&api.QueryOptions{Namespace: namespace}).WithContext(ctx)
	w := (&api.WriteOptions{Namespace: namespace}).WithContext(ctx)
	vars, _, err := c.Nomad.Variables().PrefixList(translate.VariablePath(prefix), q)
	if err != nil {
		return fmt.Errorf("list the Variables of job %s: %w", prefix, err)
	}
	for _, v := range vars {
		if !meant(jobOf(v.Path)) {
			continue
		}
		if _, err := c.Nomad.Variables().Delete(v.Path, w); err != nil {
			return fmt.Errorf("delete Variable %s: %w", v.Path, err)
		}
	}
	return nil
}

// jobOf is the ID of the job that a Variable belongs to.
func jobOf(path string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(path, translate.VariablePath("")), "/")
	return id
}

// sweep finds Variables of pods that are gone together with their jobs, which
// this process did not see go.
func (c *Controller) sweep(ctx context.Context) error {
	swept := map[string]bool{}
	for _, n := range c.Nodes {
		namespace := n.Profile().Namespace
		if swept[namespace] {
			continue
		}
		swept[namespace] = true
		for _, prefix := range translate.JobIDPrefixes(c.Cluster) {
			if err := c.sweepOf(ctx, namespace, translate.VariablePath(prefix)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Controller) sweepOf(ctx context.Context, namespace, prefix string) error {
	vars, _, err := c.Nomad.Variables().PrefixList(prefix, (&api.QueryOptions{Namespace: namespace}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("list Variables below %s: %w", prefix, err)
	}
	for _, v := range vars {
		uid, companion, ok := translate.Owner(c.Cluster, jobOf(v.Path))
		entry, known := c.cache.Get(uid)
		if !ok || known || len(entry.Companions) > 0 || c.pod(uid) != nil {
			continue
		}
		c.with(uid, func(s *podState) {
			s.gone, s.namespace = true, namespace
			s.debugged = s.debugged || companion != ""
		})
		c.enqueue(uid)
	}
	return nil
}
