package probes

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Network makes the probes that go over the network, from wherever it runs.
type Network struct {
	agent string
	// via is where a connection to an address, host:port, goes.
	via  func(address string) string
	http *http.Transport
}

// NewNetwork makes a Network that calls itself agent, such as kube-probe/1.35, and
// connects where via says for an address.
func NewNetwork(agent string, via func(address string) string) *Network {
	n := &Network{agent: agent, via: via}
	n.http = &http.Transport{
		// As the kubelet: whose certificate it is does not matter, no proxy, and
		// each probe finds out anew whether the server takes connections.
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
		TLSHandshakeTimeout: 10 * time.Second,
		DisableKeepAlives:   true,
		DisableCompression:  true,
		ForceAttemptHTTP2:   true,
		DialContext:         n.dial,
	}
	return n
}

func (n *Network) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return dialer().DialContext(ctx, network, n.via(address))
}

// Probe implements [Prober].
func (n *Network) Probe(ctx context.Context, p Probe) (Outcome, string, error) {
	a := p.Action
	switch {
	case a.Broken != "":
		return Unknown, "", errors.New(a.Broken)
	case a.HTTP != nil:
		return n.get(ctx, a.HTTP, p.Timeout)
	case a.TCP != nil:
		return n.connect(ctx, a.TCP, p.Timeout)
	case a.GRPC != nil:
		return n.check(ctx, a.GRPC, p.Timeout)
	}
	return Unknown, "", errors.New("missing probe handler")
}

// dialer leaves no connections behind in TIME-WAIT for longer than a second
// (pkg/probe/dialer_others.go).
func dialer() *net.Dialer {
	return &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = syscall.SetsockoptLinger(int(fd), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 1})
		}), err)
	}}
}

// get is successful with any status from 200 to 399. Redirects to the same host
// are followed, those to another are a warning (pkg/probe/http/http.go).
func (n *Network) get(ctx context.Context, h *HTTP, timeout time.Duration) (Outcome, string, error) {
	req, err := n.request(ctx, h)
	if err != nil {
		return Unknown, "", err
	}
	client := &http.Client{Timeout: timeout, Transport: n.http, CheckRedirect: sameHost}
	res, err := client.Do(req)
	if err != nil {
		return Failure, err.Error(), nil
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, MaxOutput))
	switch {
	case err != nil:
		return Failure, "", fmt.Errorf("read the answer of %s: %w", req.URL, err)
	case res.StatusCode < http.StatusOK || res.StatusCode >= http.StatusBadRequest:
		// Not the body, which may hold what is not everybody's business
		// (kubernetes/kubernetes#99425).
		return Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", res.StatusCode), nil
	case res.StatusCode >= http.StatusMultipleChoices:
		return Warning, fmt.Sprintf("Probe terminated redirects, Response body: %s", body), nil
	}
	return Success, string(body), nil
}

func sameHost(req *http.Request, via []*http.Request) error {
	if req.URL.Hostname() != via[0].URL.Hostname() {
		return http.ErrUseLastResponse
	}
	if len(via) >= 10 {
		return errors.New("stopped after 10 redirects")
	}
	return nil
}

// request follows pkg/probe/http/request.go: an Accept header that is given but
// empty is left out.
func (n *Network) request(ctx context.Context, h *HTTP) (*http.Request, error) {
	u, err := url.Parse(h.Path)
	if err != nil {
		u = &url.URL{Path: h.Path}
	}
	u.Scheme = "http"
	if h.Scheme != "" {
		u.Scheme = strings.ToLower(h.Scheme)
	}
	u.Host = net.JoinHostPort(h.Host, strconv.Itoa(h.Port))
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	for _, header := range h.Headers {
		req.Header.Add(header.Name, header.Value)
	}
	if _, given := req.Header["User-Agent"]; !given {
		req.Header.Set("User-Agent", n.agent)
	}
	if _, given := req.Header["Accept"]; !given {
		req.Header.Set("Accept", "*/*")
	} else if req.Header.Get("Accept") == "" {
		req.Header.Del("Accept")
	}
	req.Host = req.Header.Get("Host")
	return req, nil
}

// connect is successful when the server takes the connection.
func (n *Network) connect(ctx context.Context, t *TCP, timeout time.Duration) (Outcome, string, error) {
	d := dialer()
	d.Timeout = timeout
	conn, err := d.DialContext(ctx, "tcp", n.via(net.JoinHostPort(t.Host, strconv.Itoa(t.Port))))
	if err != nil {
		return Failure, err.Error(), nil
	}
	_ = conn.Close() // that it was opened is the answer
	return Success, "", nil
}
