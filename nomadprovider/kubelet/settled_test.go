package kubelet

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
)

// growing is a log that is longer at each look, as the list says.
func growing(t *testing.T, sizes ...int64) (l *logReader, looks *int) {
	t.Helper()
	looks = new(int)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		size := sizes[min(*looks, len(sizes)-1)]
		*looks++
		_ = json.NewEncoder(w).Encode([]*api.AllocFileInfo{{Name: "c.stdout.0", Size: size}})
	}))
	t.Cleanup(srv.Close)
	client, err := api.NewClient(&api.Config{Address: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return &logReader{nomad: client, allocID: "a", task: "c"}, looks
}

// The log of a container that has just ended is read when it has come to rest.
func TestLogSettles(t *testing.T) {
	for name, r := range map[string]struct {
		ended       time.Duration // ago; negative: not yet
		sizes       []int64
		want        int64
		least, most int
	}{
		"comes late":     {0, []int64{0, 0, 5, 9, 9, 9}, 9, 5, 5},
		"is there":       {0, []int64{9}, 9, 2, 2},
		"runs":           {-1, []int64{0, 9}, 0, 1, 1},
		"ended long ago": {time.Minute, []int64{0, 9}, 0, 1, 1},
		"says nothing":   {settle - time.Second, []int64{0}, 0, 2, 20},
	} {
		l, looks := growing(t, r.sizes...)
		var end time.Time
		if r.ended >= 0 {
			end = time.Now().Add(-r.ended)
		}
		streams, err := l.settled(t.Context(), end)
		if err != nil {
			t.Fatal(err)
		}
		if got := streams[0].size() + streams[1].size(); got != r.want || *looks < r.least || *looks > r.most {
			t.Errorf("%s: %d bytes after %d looks", name, got, *looks)
		}
	}
}
