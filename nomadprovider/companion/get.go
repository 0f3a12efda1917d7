package companion

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/vmnet"
)

// Request is what [Get] reads: the request of an httpGet lifecycle hook.
type Request struct {
	URL    string      `json:"url"`
	Header http.Header `json:"header,omitempty"`
}

// maxHookBody is how much of an answer is read, so that the server sees it taken.
const maxHookBody = 10 << 10

// Get reads one request and makes it from within the pod's network. Like the
// kubelet's (pkg/kubelet/lifecycle/handlers.go) it verifies no certificate, and
// any answer will do.
func Get(ctx context.Context, r io.Reader) error {
	var want Request
	if err := json.NewDecoder(r).Decode(&want); err != nil {
		return fmt.Errorf("read the request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, want.URL, nil)
	if err != nil {
		return err
	}
	if want.Header != nil {
		req.Header = want.Header
	}
	req.Host = want.Header.Get("Host")
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, vmnet.Via(address))
		},
	}}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.CopyN(io.Discard, resp.Body, maxHookBody)
	if err == io.EOF {
		err = nil
	}
	return err
}
