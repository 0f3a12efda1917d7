package companion

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestGet(t *testing.T) {
	var got *http.Request
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r
		http.Error(w, strings.Repeat("x", 100<<10), http.StatusTeapot)
	})
	for _, server := range []*httptest.Server{httptest.NewServer(handler), httptest.NewTLSServer(handler)} {
		defer server.Close()
		got = nil
		body := `{"url":"` + server.URL + `/echo?msg=a","header":{"Host":["example.com"],"X-Hook":["1","2"]}}`
		if err := Get(t.Context(), strings.NewReader(body)); err != nil {
			t.Errorf("%s: %v", server.URL, err)
		}
		if got == nil || got.RequestURI != "/echo?msg=a" || got.Host != "example.com" || len(got.Header.Values("X-Hook")) != 2 {
			t.Errorf("%s: the server got %+v", server.URL, got)
		}
		server.Close()
		if err := Get(t.Context(), strings.NewReader(body)); err == nil {
			t.Errorf("%s: no error though nobody listens", server.URL)
		}
	}
	if err := Get(t.Context(), strings.NewReader("")); err == nil {
		t.Error("no error without a request")
	}
}
