package devcluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// poll calls check until it succeeds or ctx ends; the error is then check's last.
func poll(ctx context.Context, every time.Duration, check func(context.Context) error) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// ready waits for a component's check. It gives up early when the process ends,
// and its error carries the end of the log.
func (c *Cluster) ready(ctx context.Context, name string, ch *child, check func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	ended := make(chan struct{})
	if ch != nil {
		go func() {
			select {
			case <-ch.done:
				close(ended)
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	err := poll(ctx, 100*time.Millisecond, check)
	if err == nil {
		return nil
	}
	why := fmt.Sprintf("%s is not ready after %v: %v", name, c.opts.Timeout, err)
	select {
	case <-ended:
		why = fmt.Sprintf("%s ended while starting: %v", name, ch.err)
	default:
		if cause := context.Cause(ctx); cause == context.Canceled {
			why = fmt.Sprintf("%s was not ready yet: %v", name, err)
		}
	}
	return fmt.Errorf("%s\n  log: %s\n%s", why, c.LogFile(name), indent(c.tail(name, 12)))
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(s, "\n", "\n    ")
}

// loopback asks health endpoints of our own on loopback, whose certificates
// some components make up at start.
var loopback = &http.Client{
	Timeout:   3 * time.Second,
	Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
}

// httpOK is a check that an endpoint answers 200.
func httpOK(url string) func(context.Context) error { return httpSays(url, "") }

// httpSays is a check that an endpoint answers 200 and says a certain thing.
func httpSays(url, text string) func(context.Context) error {
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := loopback.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), text) {
			return fmt.Errorf("%s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
		}
		return nil
	}
}
