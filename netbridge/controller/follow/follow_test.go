package follow

import (
	"errors"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/consultest"
	"github.com/nomad-kubelet/nomad-kubelet/internal/netlab"
)

type answer struct {
	value string
	err   error
}

// A key is followed through the death of its server and through a server that has
// lost all: each answer is whole, and what is none comes as an error.
func TestRun(t *testing.T) {
	netlab.Root(t)
	srv := consultest.Start(t, netlab.New(t, "consul"), false)
	put := func(value string) {
		t.Helper()
		if _, err := srv.Client.KV().Put(&api.KVPair{Key: "k", Value: []byte(value)}, nil); err != nil {
			t.Fatal(err)
		}
	}
	answers := make(chan answer, 100)
	go Run(t.Context(), func(q *api.QueryOptions) (*api.KVPair, *api.QueryMeta, error) { return srv.Client.KV().Get("k", q) }, func(p *api.KVPair, err error) {
		a := answer{err: err}
		if p != nil {
			a.value = string(p.Value)
		}
		answers <- a
	})
	until := func(what string, ok func(answer) bool) {
		t.Helper()
		for limit := time.After(30 * time.Second); ; {
			select {
			case a := <-answers:
				if ok(a) {
					return
				}
			case <-limit:
				t.Fatal("no answer: ", what)
			}
		}
	}
	is := func(value string) func(answer) bool {
		return func(a answer) bool { return a.err == nil && a.value == value }
	}
	until("none yet", is(""))
	put("one")
	until("one", is("one"))
	srv.Stop()
	until("failure", func(a answer) bool { return a.err != nil })
	srv.Up()
	until("one again", is("one"))
	put("two")
	until("two", is("two"))
	srv.Wipe()
	until("nothing", is(""))
	put("three")
	until("three", is("three"))
}

// Consul answers blocking queries for health from a stream, whose answers lack what
// makes them whole.
func TestServices(t *testing.T) {
	netlab.Root(t)
	srv := consultest.Start(t, netlab.New(t, "consul"), false)
	answers := make(chan int, 100)
	failed := make(chan error, 100)
	go Run(t.Context(), func(q *api.QueryOptions) ([]*api.ServiceEntry, *api.QueryMeta, error) {
		return srv.Client.Health().Service("db", "", false, q)
	}, func(list []*api.ServiceEntry, err error) {
		if err != nil {
			failed <- err
			return
		}
		answers <- len(list)
	})
	for n := range 4 {
		for limit, told := time.After(30*time.Second), false; !told; {
			select {
			case got := <-answers:
				told = got == n
			case err := <-failed:
				t.Fatalf("with %d instances: %v", n, err)
			case <-limit:
				t.Fatalf("no answer with %d instances", n)
			}
		}
		reg := &api.CatalogRegistration{Node: "plain", Address: "192.0.2.1", Service: &api.AgentService{ID: string(rune('a' + n)), Service: "db"}}
		if _, err := srv.Client.Catalog().Register(reg, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// What rights have cut is no answer. (Without any token Consul does not tell that it
// has cut: what it may hide is behind Intact of package registry.)
func TestPartialAnswers(t *testing.T) {
	netlab.Root(t)
	srv := consultest.Start(t, netlab.New(t, "consul"), true)
	policy, _, err := srv.Client.ACL().PolicyCreate(&api.ACLPolicy{Name: "other", Rules: `service "other" { policy = "read" }`}, nil)
	if err != nil {
		t.Fatal(err)
	}
	token, _, err := srv.Client.ACL().TokenCreate(&api.ACLToken{Policies: []*api.ACLLink{{ID: policy.ID}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	somebody, err := api.NewClient(&api.Config{Address: srv.Address, Token: token.SecretID})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 100)
	go Run(t.Context(), somebody.Catalog().Services, func(_ map[string][]string, err error) {
		select {
		case told <- err:
		default:
		}
	})
	select {
	case err := <-told:
		if !errors.Is(err, ErrPartial) {
			t.Errorf("an answer that is cut comes with %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("neither an answer nor an error")
	}
}
