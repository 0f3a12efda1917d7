package agent

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"

	nomadapi "github.com/hashicorp/nomad/api"
)

// A client that was ready for the network must not be when it is out of it: Nomad
// keeps metadata over a restart.
func TestARemovedClientIsNotReady(t *testing.T) {
	meta := map[string]string{MetaKey: MetaReady}
	down := false
	answer := func(w http.ResponseWriter, v any) {
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case down:
			http.Error(w, "no leader", http.StatusInternalServerError)
		case r.URL.Path == "/v1/node/one":
			answer(w, nomadapi.Node{ID: "one", Meta: meta})
		case r.URL.Path == "/v1/node/two":
			http.Error(w, "node not found", http.StatusNotFound)
		case r.URL.Path == "/v1/client/metadata":
			var req nomadapi.NodeMetaApplyRequest
			if err := json.NewDecoder(r.Body).Decode(&req); err != nil || req.NodeID != "one" {
				t.Error(req, err)
			}
			if v, ok := req.Meta[MetaKey]; ok && v == nil && len(req.Meta) == 1 {
				delete(meta, MetaKey)
			}
			answer(w, nomadapi.NodeMetaResponse{})
		default:
			t.Error("asked for ", r.URL)
		}
	}))
	defer srv.Close()
	client, err := nomadapi.NewClient(&nomadapi.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	c := &Config{Node: Node{Kind: "nomad", ID: "one"}, StateDir: t.TempDir()}
	down = true
	if unset, err := unready(t.Context(), c, client); unset || err == nil {
		t.Error("what could not be told is not an error: ", unset, err)
	}
	down = false
	if unset, err := unready(t.Context(), c, client); !unset || err != nil || len(meta) != 0 {
		t.Error(unset, err, meta)
	}
	if unset, err := unready(t.Context(), c, client); unset || err != nil {
		t.Error("once more: ", unset, err)
	}
	c.Node.ID = "two"
	if unset, err := unready(t.Context(), c, client); unset || err != nil {
		t.Error("a client that Nomad has forgotten: ", unset, err)
	}
	c.Node.ID = ""
	if unset, err := unready(t.Context(), c, client); unset || err != nil {
		t.Error("a machine that has never been in the network: ", unset, err)
	}
}
