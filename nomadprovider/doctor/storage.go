package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/hashicorp/nomad/api"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// storage looks for the objects that claims need.
func (d *Doctor) storage(ctx context.Context, r *report.Report) {
	const remedy = "kubectl apply -f deploy/kubernetes/storage.yaml"
	what := "CSIDriver " + translate.DriverHostVolume
	_, err := d.Kube.StorageV1().CSIDrivers().Get(ctx, translate.DriverHostVolume, metav1.GetOptions{})
	switch {
	case err == nil:
		r.OK(atKubernetes, what, "exists")
	case apierrors.IsNotFound(err):
		r.Add(report.Check{Where: atKubernetes, What: what, Result: report.Warn, Found: "does not exist",
			Breaks: "on nodes that have volumes attached, Kubernetes waits for Nomad's host volumes to be", Remedy: remedy})
	default:
		r.Add(report.Check{Where: atKubernetes, What: what, Result: report.Unknown, Found: err.Error(), Remedy: remedy})
	}
	if d.Config.Volumes.NoProvisioning {
		r.OK(atKubernetes, "StorageClass", "none needed: volumes.noProvisioning is set")
		return
	}
	classes, err := d.Kube.StorageV1().StorageClasses().List(ctx, metav1.ListOptions{})
	if err != nil {
		r.Add(report.Check{Where: atKubernetes, What: "StorageClass", Result: report.Unknown, Found: err.Error(), Remedy: remedy})
		return
	}
	var names []string
	for _, c := range classes.Items {
		if c.Provisioner == translate.DriverHostVolume {
			names = append(names, c.Name)
		}
	}
	if len(names) == 0 {
		r.Add(report.Check{Where: atKubernetes, What: "StorageClass", Result: report.Warn, Found: "none with provisioner " + translate.DriverHostVolume,
			Breaks: "no claim gets a volume on Nomad", Remedy: remedy})
		return
	}
	r.OK(atKubernetes, "StorageClass", strings.Join(names, ", "))
}

// volumePlugins counts the clients that can make host volumes, which Nomad has from
// version 1.10 on.
func (d *Doctor) volumePlugins(r *report.Report, where string, clients []*api.Node) {
	const what = "host volume plugin mkdir"
	able := 0
	for _, c := range clients {
		if c.Attributes["plugins.host_volume.mkdir.version"] != "" {
			able++
		}
	}
	switch {
	case len(clients) == 0 || d.Config.Volumes.NoProvisioning:
	case able == 0:
		r.Add(report.Check{Where: where, What: what, Result: report.Warn, Found: fmt.Sprintf("on none of %d clients", len(clients)),
			Breaks: "claims of StorageClass nomad-host-volume stay unbound", Remedy: "use Nomad 1.10 or later on servers and clients"})
	default:
		r.OK(where, what, fmt.Sprintf("on %d of %d clients", able, len(clients)))
	}
}
