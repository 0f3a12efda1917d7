package election

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
)

// An API server that goes away while a term of office begins ends the term and
// not the process; what no other try would mend ends the process.
func TestFailedTerms(t *testing.T) {
	reset := fmt.Errorf("register node: %w", &url.Error{Op: "Patch", URL: "https://192.0.2.1", Err: syscall.ECONNRESET})
	taken := errors.New("listen on 192.0.2.1:10250: address already in use")
	for name, run := range map[string]func(*Election, context.Context, func(context.Context) error) error{
		"elected": (*Election).Run, "alone": (*Election).Alone,
	} {
		t.Run(name, func(t *testing.T) {
			e := &Election{Kube: fake.NewClientset(), Log: hclog.NewNullLogger(), Namespace: "kube-system", Name: "lease", LeaseDuration: 4 * time.Second}
			terms := []error{reset, apierrors.NewServiceUnavailable("starts"), taken}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			err := run(e, ctx, func(context.Context) error {
				if len(terms) == 0 {
					return errors.New("another term")
				}
				err := terms[0]
				terms = terms[1:]
				return err
			})
			if !errors.Is(err, taken) || len(terms) != 0 {
				t.Errorf("ended with %v, %d terms to go", err, len(terms))
			}
		})
	}
}

func TestPassing(t *testing.T) {
	nodes := schema.GroupResource{Resource: "nodes"}
	for _, err := range []error{
		apierrors.NewForbidden(nodes, "nomad", errors.New("no")), apierrors.NewUnauthorized("who"), errors.New("node \"nomad\" belongs to another kubelet"),
	} {
		if passing(err) {
			t.Errorf("%v is tried again", err)
		}
	}
	for _, err := range []error{apierrors.NewTooManyRequests("slower", 1), apierrors.NewInternalError(errors.New("etcd")), apierrors.NewServerTimeout(nodes, "patch", 1)} {
		if !passing(err) {
			t.Errorf("%v ends the process", err)
		}
	}
}
