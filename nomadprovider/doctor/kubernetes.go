package doctor

import (
	"context"
	"fmt"
	"regexp"
	"sort"
	"strconv"
	"strings"

	authzv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/node"
)

const (
	atKubernetes = "kubernetes"
	applyRBAC    = "kubectl apply -f deploy/kubernetes/rbac.yaml"
)

func (d *Doctor) kubernetes(ctx context.Context, r *report.Report) {
	if d.Kube == nil {
		d.noAPIServer(r, d.KubeErr)
		return
	}
	v, err := d.Kube.Discovery().ServerVersion()
	if err != nil {
		d.noAPIServer(r, err)
		return
	}
	r.Add(skew(node.KubeletVersion(""), v.GitVersion))
	d.permissions(ctx, r)
	d.runtimeClasses(ctx, r)
	d.storage(ctx, r)
}

func (d *Doctor) noAPIServer(r *report.Report, err error) {
	found := "no API server"
	if err != nil {
		found = err.Error()
	}
	r.Add(report.Check{Where: atKubernetes, What: "API server", Result: report.Fail, Found: found,
		Breaks: "everything: there is no cluster to join",
		Remedy: "set KUBECONFIG, or kubeconfig in the configuration, and try: kubectl version"})
}

var minorVersion = regexp.MustCompile(`^v?1\.(\d+)`)

// skew applies Kubernetes' policy: a kubelet may be up to three minor versions
// older than the API server, and not newer.
func skew(ours, server string) report.Check {
	c := report.Check{Where: atKubernetes, What: "API server", Result: report.OK, Found: server}
	a, b := minorVersion.FindStringSubmatch(ours), minorVersion.FindStringSubmatch(server)
	if a == nil || b == nil {
		c.Result, c.Breaks = report.Unknown, "the versions cannot be compared: "+ours+" and "+server
		return c
	}
	mine, _ := strconv.Atoi(a[1])
	theirs, _ := strconv.Atoi(b[1])
	if d := theirs - mine; d < 0 || d > 3 {
		c.Result = report.Warn
		c.Breaks = fmt.Sprintf("nomad-kubelet is built for Kubernetes 1.%d; supported are API servers 1.%d to 1.%d", mine, mine, mine+3)
		c.Remedy = "use the release of nomad-kubelet that fits the cluster"
	}
	return c
}

// permissions asks for each rule that the daemon needs, as whoever runs the
// doctor.
func (d *Doctor) permissions(ctx context.Context, r *report.Report) {
	granted := 0
	for _, p := range permissions {
		var denied []string
		var failed error
		for _, verb := range p.verbs {
			ok, err := d.may(ctx, p, verb)
			switch {
			case err != nil:
				failed = err
			case !ok:
				denied = append(denied, verb)
			}
		}
		what := "may " + strings.Join(p.verbs, ", ") + " " + p.String()
		switch {
		case failed != nil:
			r.Add(report.Check{Where: atKubernetes, What: what, Result: report.Unknown, Found: failed.Error(), Breaks: p.breaks,
				Remedy: "kubectl auth can-i --list --as system:serviceaccount:kube-system:nomad-kubelet"})
		case len(denied) > 0:
			res := report.Warn
			if p.vital {
				res = report.Fail
			}
			r.Add(report.Check{Where: atKubernetes, What: what, Result: res, Found: "denied: " + strings.Join(denied, ", "),
				Breaks: p.breaks, Remedy: applyRBAC})
		default:
			granted++
		}
	}
	if granted == len(permissions) {
		r.OK(atKubernetes, "permissions", fmt.Sprintf("all %d rules that nomad-kubelet needs are granted to this account", granted))
	}
}

func (p permission) String() string {
	s := p.resource
	if p.sub != "" {
		s += "/" + p.sub
	}
	if p.name != "" {
		s += " " + p.name
	}
	if p.namespace != "" {
		s += " in " + p.namespace
	}
	return s
}

func (d *Doctor) may(ctx context.Context, p permission, verb string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	review, err := d.Kube.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authzv1.SelfSubjectAccessReview{
		Spec: authzv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authzv1.ResourceAttributes{
			Namespace: p.namespace, Verb: verb, Group: p.group, Resource: p.resource, Subresource: p.sub, Name: p.name,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask for permissions: %w", err)
	}
	return review.Status.Allowed, nil
}

// runtimeClasses looks for the object of every row of the driver tables.
func (d *Doctor) runtimeClasses(ctx context.Context, r *report.Report) {
	names := map[string]bool{}
	for _, n := range d.Config.VirtualNodes {
		for class := range n.Runtimes {
			if class != "" {
				names[class] = true
			}
		}
	}
	sorted := make([]string, 0, len(names))
	for n := range names {
		sorted = append(sorted, n)
	}
	sort.Strings(sorted)
	for _, name := range sorted {
		what := "RuntimeClass " + name
		_, err := d.Kube.NodeV1().RuntimeClasses().Get(ctx, name, metav1.GetOptions{})
		switch {
		case err == nil:
			r.OK(atKubernetes, what, "exists")
		case apierrors.IsNotFound(err):
			r.Add(report.Check{Where: atKubernetes, What: what, Result: report.Warn, Found: "does not exist",
				Breaks: "pods with runtimeClassName " + name + " are rejected by the API server",
				Remedy: "kubectl apply -f deploy/kubernetes/runtimeclass.yaml"})
		default:
			r.Add(report.Check{Where: atKubernetes, What: what, Result: report.Unknown, Found: err.Error(),
				Breaks: "pods with runtimeClassName " + name + " may be rejected by the API server",
				Remedy: "kubectl get runtimeclass " + name})
		}
	}
}
