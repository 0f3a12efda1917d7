package loop

import (
	"context"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/client-go/tools/cache"
)

const (
	// interval is the time between two passes in the long run, burst how many may
	// come at once before that.
	interval = 200 * time.Millisecond
	burst    = 3
	// retry is when a pass that failed is made again.
	retry = 2 * time.Second
)

// Bell wakes a loop. The zero value is not ready: use [NewBell].
type Bell chan struct{}

// NewBell makes one that has rung.
func NewBell() Bell {
	b := make(Bell, 1)
	b.Ring()
	return b
}

// Ring never blocks.
func (b Bell) Ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

// Watch rings for whatever the informers tell.
func (b Bell) Watch(informers ...cache.SharedInformer) error {
	for _, i := range informers {
		_, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { b.Ring() }, UpdateFunc: func(any, any) { b.Ring() }, DeleteFunc: func(any) { b.Ring() },
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Run makes a pass at each ring, at the time that the last one named, and after a
// failed one, until ctx ends.
func Run(ctx context.Context, bell Bell, pass func(context.Context) (again time.Time, err error)) {
	pace := rate.NewLimiter(rate.Every(interval), burst)
	var timer <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-bell:
		case <-timer:
		}
		if pace.Wait(ctx) != nil {
			return
		}
		again, err := pass(ctx)
		timer = nil
		switch {
		case err != nil:
			timer = time.After(retry)
		case !again.IsZero():
			timer = time.After(time.Until(again))
		}
	}
}
