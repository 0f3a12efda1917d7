package election

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// retryPause is between two terms of office.
const retryPause = time.Second

// Election is for the lead by a Lease. Set the fields, then call Run or Alone.
type Election struct {
	Kube kubernetes.Interface
	Log  hclog.Logger
	// Namespace and Name are the Lease's.
	Namespace, Name string
	// LeaseDuration is how long a silent leader is waited for.
	LeaseDuration time.Duration
	// Led, if set, is told whenever another one leads.
	Led func(leader string)
}

// passing says whether an error is of an API server that is away or overloaded,
// which another try may find better.
func passing(err error) bool {
	var way *url.Error // of every request that got no answer
	return errors.As(err, &way) || apierrors.IsInternalError(err) || apierrors.IsServiceUnavailable(err) ||
		apierrors.IsServerTimeout(err) || apierrors.IsTimeout(err) || apierrors.IsTooManyRequests(err)
}

// Alone runs lead, without an election, until ctx ends or something is wrong that
// another try would not mend.
func (e *Election) Alone(ctx context.Context, lead func(context.Context) error) error {
	for {
		err := lead(ctx)
		if err == nil || ctx.Err() != nil || !passing(err) {
			return err
		}
		e.Log.Warn("the API server failed, tries again", "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

// Run stands for election again and again and runs lead while in office. It
// returns lead's error, unless another try may mend it, or nil when ctx ends.
//
// The shares of the lease follow client-go's defaults (15 s, 10 s, 2 s), so a
// standby takes over within the lease's duration plus one retry, and at once
// when the leader stops in order.
func (e *Election) Run(ctx context.Context, lead func(context.Context) error) error {
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("this machine's name, for the election: %w", err)
	}
	identity := host + "_" + string(uuid.NewUUID())
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, e.Namespace, e.Name, e.Kube.CoreV1(), e.Kube.CoordinationV1(),
		resourcelock.ResourceLockConfig{Identity: identity})
	if err != nil {
		return fmt.Errorf("lease %s/%s: %w", e.Namespace, e.Name, err)
	}
	for ctx.Err() == nil {
		var failure error
		term, resign := context.WithCancel(ctx)
		done := make(chan struct{})
		var started atomic.Bool
		elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock, Name: e.Name, ReleaseOnCancel: true,
			LeaseDuration: e.LeaseDuration, RenewDeadline: e.LeaseDuration * 2 / 3, RetryPeriod: e.LeaseDuration / 8,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(ctx context.Context) {
					started.Store(true)
					defer close(done)
					defer resign()
					e.Log.Info("leads", "identity", identity)
					failure = lead(ctx)
				},
				OnStoppedLeading: func() {},
				OnNewLeader: func(who string) {
					if who == identity {
						return
					}
					e.Log.Info("stands by", "leader", who)
					if e.Led != nil {
						e.Led(who)
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
			e.Log.Warn("lost the lead, stands for election again", "error", failure)
			select {
			case <-ctx.Done():
			case <-time.After(retryPause):
			}
		}
	}
	return nil
}
