package doctor

import (
	"context"
	"time"

	"github.com/hashicorp/nomad/api"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
)

// callTimeout bounds every single call.
const callTimeout = 10 * time.Second

// Doctor holds what the checks need. A client that could not be made is nil,
// and its error is reported.
type Doctor struct {
	Config   *config.Config
	Kube     kubernetes.Interface
	KubeErr  error
	Nomad    *api.Client
	NomadErr error
}

// Run makes all checks; those that depend on a failed one are left out.
func (d *Doctor) Run(ctx context.Context) *report.Report {
	r := &report.Report{}
	d.kubernetes(ctx, r)
	if !d.nomad(ctx, r) {
		return r
	}
	d.token(ctx, r)
	clients := d.virtualNodes(ctx, r)
	d.server(ctx, r)
	for _, c := range clients {
		d.client(ctx, r, c)
	}
	return r
}

// query makes the options of one call; stop frees its timer.
func query(ctx context.Context, namespace string) (q *api.QueryOptions, stop context.CancelFunc) {
	ctx, stop = context.WithTimeout(ctx, callTimeout)
	return (&api.QueryOptions{Namespace: namespace}).WithContext(ctx), stop
}
