package nomadprovider

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

var getOptions = metav1.GetOptions{}

// retryPause is between two terms of office.
const retryPause = time.Second

// passing says whether an error is of an API server that is away or overloaded,
// which another try may find better.
func passing(err error) bool {
	var way *url.Error // of every request that got no answer
	return errors.As(err, &way) || apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err)
}

// persist runs lead until ctx ends or something is wrong that another try would
// not mend.
func (p *Provider) persist(ctx context.Context, lead func(context.Context) error) error {
	for {
		err := lead(ctx)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		p.Log.Warn("the API server failed, tries again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

// elect stands for election again and again and runs lead while in office. It
// returns lead's error, unless another try may mend it, or nil when ctx ends.
//
// The shares of the lease follow client-go's defaults (15 s, 10 s, 2 s), so a
// standby takes over within the lease's duration plus one retry, and at once
// when the leader stops in order.
func (p *Provider) elect(ctx context.Context, lead func(context.Context) error) error {
	le := p.Config.LeaderElection
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("this machine's name, for the election: %w", err)
	}
	identity := host + "_" + string(uuid.NewUUID())
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, le.Namespace, le.Name, p.Kube.CoreV1(), p.Kube.CoordinationV1(),
		resourcelock.ResourceLockConfig{Identity: identity})
	if err != nil {
		return fmt.Errorf("lease %s/%s: %w", le.Namespace, le.Name, err)
	}
	for ctx.Err() == nil {
		var failure error
		term, resign := context.WithCancel(ctx)
		done := make(chan struct{})
		var started atomic.Bool
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, Name: le.Name, ReleaseOnCancel: true,
			LeaseDuration: le.LeaseDuration.Duration, RenewDeadline: le.LeaseDuration.Duration * 2 / 3, RetryPeriod: le.LeaseDuration.Duration / 8,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					started.Store(true)
					defer close(done)
					defer resign()
					p.Log.Info("leads", "identity", identity)
					failure = lead(ctx)
				},
				OnStoppedLeading: func() {},
				OnNewLeader: func(who string) {
					if who != identity {
						p.Log.Info("stands by", "leader", who)
					}
				},
			},
		})
		if err != nil {
			resign()
			return fmt.Errorf("leader election: %w", err)
		}
		elector.Run(term)
		resign()
		if started.Load() {
			<-done
		}
		if failure != nil && !passing(failure) {
			return failure
		}
		if ctx.Err() == nil {
			if failure == nil {
				failure = errors.New("the lease was not renewed in time")
			}
			p.Log.Warn("lost the lead, stands for election again", "error", failure)
			select {
			case <-ctx.Done():
			case <-time.After(retryPause):
			}
		}
	}
	return nil
}
