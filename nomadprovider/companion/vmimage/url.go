package vmimage

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// The pull policies, as Kubernetes names them.
const (
	PullAlways = "Always"
	PullNever  = "Never"
)

// URL is an image on a web server.
type URL struct {
	Address string
	// Checksum is "sha256:<hex>", or another kind's; empty: any image will do.
	Checksum string
	// Policy is the container's imagePullPolicy: Always asks the server whether the
	// image has changed, unless it has a checksum, and Never does not ask it at all.
	Policy string
}

// Fetch returns the image behind a URL, which it holds: the one in the cache,
// where there is one.
func (c *Cache) Fetch(ctx context.Context, u URL) (*os.File, error) {
	if _, err := parseChecksum(u.Checksum); err != nil {
		return nil, err
	}
	// Not by the checksum alone: who knows it is not yet somebody who may fetch it.
	return c.get(ctx, "url\x00"+u.Address+"\x00"+u.Checksum, func(old *record) (*record, error) {
		switch {
		case old != nil && (u.Policy != PullAlways || u.Checksum != ""):
			return old, nil
		case u.Policy == PullNever:
			return nil, errors.New("imagePullPolicy is Never, and the client's cache has no image of this URL")
		}
		return c.download(ctx, u, old)
	})
}

// How long a server may say nothing.
const (
	answerTime = 30 * time.Second
	stillTime  = time.Minute
)

func (c *Cache) download(ctx context.Context, u URL, old *record) (*record, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Address, nil)
	if err != nil {
		return nil, err
	}
	if old != nil {
		setIf(req.Header, "If-None-Match", old.ETag)
		setIf(req.Header, "If-Modified-Since", old.Modified)
	}
	resp, err := client().Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer resp.Body.Close()
	if old != nil && resp.StatusCode == http.StatusNotModified {
		return old, nil
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the server answers %s: correct the URL, or have the image there", resp.Status)
	}
	want, err := parseChecksum(u.Checksum)
	if err != nil {
		return nil, err
	}
	silence := time.AfterFunc(stillTime, func() { cancel(fmt.Errorf("the server has sent nothing for %s", stillTime)) })
	defer silence.Stop()
	body := readerFunc(func(p []byte) (int, error) {
		n, err := resp.Body.Read(p)
		silence.Reset(stillTime)
		return n, err
	})
	name, err := c.store(ctx, body, resp.ContentLength, want)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, err
	}
	return &record{Image: name, ETag: resp.Header.Get("ETag"), Modified: resp.Header.Get("Last-Modified")}, nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func setIf(h http.Header, key, value string) {
	if value != "" {
		h.Set(key, value)
	}
}

// withoutURL leaves out what the pod says already.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// resolvConf is where a task sees its client's, whose names an image server has:
// the pod's name servers, which Nomad gives every task, may know others.
const resolvConf = "/client/resolv.conf"

func client() *http.Client {
	dialer := &net.Dialer{Timeout: answerTime}
	if servers := nameServers(resolvConf); len(servers) > 0 {
		turn := 0
		dialer.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			turn++
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(servers[turn%len(servers)], "53"))
		}}
	}
	return &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: answerTime, ResponseHeaderTimeout: answerTime,
		// A disk image is its bytes, as its checksum is of them.
		DisableCompression: true,
	}}
}

func nameServers(path string) (servers []string) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil // the task's own will do
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	return servers
}
