package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"

	"github.com/nomad-kubelet/nomad-kubelet/internal/connect"
	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
)

const (
	atNomad     = "nomad"
	applyPolicy = "nomad acl policy apply nomad-kubelet deploy/nomad/policy.hcl"
	// aclsDisabled is how Nomad calls everybody while ACLs are off
	// (nomad/structs/acl.go).
	aclsDisabled = "ACLs disabled token"
)

// nomad checks that there is one with a leader, and its region; the rest makes
// no sense without.
func (d *Doctor) nomad(ctx context.Context, r *report.Report) bool {
	remedy := "set NOMAD_ADDR (and NOMAD_CACERT, NOMAD_TOKEN), or nomad.address in the configuration, and try: nomad server members"
	if d.Nomad == nil {
		found := "no address"
		if d.NomadErr != nil {
			found = d.NomadErr.Error()
		}
		r.Add(report.Check{Where: atNomad, What: "address", Result: report.Fail, Found: found, Breaks: "everything: there is no Nomad", Remedy: remedy})
		return false
	}
	q, stop := query(ctx, "")
	defer stop()
	var leader string
	_, err := d.Nomad.Raw().Query("/v1/status/leader", &leader, q)
	switch {
	case err == nil && leader != "":
		r.OK(atNomad, "leader", leader+" (by way of "+d.Nomad.Address()+")")
	case err == nil || strings.Contains(err.Error(), "No cluster leader"):
		r.Add(report.Check{Where: atNomad, What: "leader", Result: report.Fail, Found: "none",
			Breaks: "nothing can be started or stopped", Remedy: "nomad operator raft list-peers"})
		return false
	default:
		r.Add(report.Check{Where: atNomad, What: "reachable", Result: report.Fail, Found: err.Error(), Breaks: "everything: there is no Nomad", Remedy: remedy})
		return false
	}
	d.region(r)
	return true
}

func (d *Doctor) region(r *report.Report) {
	want := d.Config.Nomad.Region
	regions, err := d.Nomad.Regions().List()
	switch {
	case err != nil:
		r.Add(report.Check{Where: atNomad, What: "region", Result: report.Unknown, Found: err.Error(), Remedy: "nomad server members"})
	case want != "" && !slices.Contains(regions, want):
		r.Add(report.Check{Where: atNomad, What: "region", Result: report.Fail, Found: fmt.Sprintf("there is no region %q, only %s", want, strings.Join(regions, ", ")),
			Breaks: "every job is refused", Remedy: "correct nomad.region in the configuration"})
	default:
		r.OK(atNomad, "region", strings.Join(regions, ", "))
	}
}

// attempt is a cheap call that shows whether a capability is there.
type attempt struct {
	what, capability, breaks string
	vital                    bool
	try                      func(q *api.QueryOptions) error
}

// token checks who we are and tries what the daemon does, namespace by
// namespace.
func (d *Doctor) token(ctx context.Context, r *report.Report) {
	if !d.self(ctx, r) {
		return
	}
	seen := map[string]bool{}
	for _, vn := range d.Config.VirtualNodes {
		if seen[vn.Namespace] {
			continue
		}
		seen[vn.Namespace] = true
		for _, a := range d.attempts(vn.Namespace, vn.NodePool) {
			q, stop := query(ctx, vn.Namespace)
			err := a.try(q)
			stop()
			what := fmt.Sprintf("%s (%s)", a.what, a.capability)
			switch {
			case err == nil:
				r.OK(atNomad, what, "allowed in namespace "+vn.Namespace)
			case connect.Denied(err):
				res := report.Warn
				if a.vital {
					res = report.Fail
				}
				r.Add(report.Check{Where: atNomad, What: what, Result: res, Found: "denied in namespace " + vn.Namespace, Breaks: a.breaks, Remedy: applyPolicy})
			default:
				r.Add(report.Check{Where: atNomad, What: what, Result: report.Unknown, Found: err.Error(), Breaks: a.breaks})
			}
		}
	}
}

// self says whose token it is. It is false when the token is no good at all.
func (d *Doctor) self(ctx context.Context, r *report.Report) bool {
	q, stop := query(ctx, "")
	defer stop()
	tok, _, err := d.Nomad.ACLTokens().Self(q)
	var u api.UnexpectedResponseError
	switch {
	case err == nil && tok.Name == aclsDisabled, errors.As(err, &u) && strings.Contains(u.Body(), "ACL support disabled"):
		r.Add(report.Check{Where: atNomad, What: "token", Result: report.Warn, Found: "ACLs are off", Breaks: "nothing, but anybody who reaches Nomad may read every Secret that pods use",
			Remedy: "set acl { enabled = true } on all Nomad agents, then: nomad acl bootstrap"})
	case err == nil && tok.Type == "management":
		r.Add(report.Check{Where: atNomad, What: "token", Result: report.Warn, Found: "a management token", Breaks: "nothing, but it may do far more than it needs to",
			Remedy: applyPolicy + "\nnomad acl token create -name nomad-kubelet -policy nomad-kubelet"})
	case err == nil:
		r.OK(atNomad, "token", fmt.Sprintf("%q with policies %s", tok.Name, strings.Join(tok.Policies, ", ")))
		d.policies(q, r, tok)
	case connect.Denied(err) || errors.As(err, &u) && (u.StatusCode() == http.StatusNotFound || strings.Contains(u.Body(), "signed token")):
		// Nomad takes what is no UUID for a signed token, and answers 500.
		r.Add(report.Check{Where: atNomad, What: "token", Result: report.Fail, Found: "none, or Nomad does not know it", Breaks: "everything",
			Remedy: applyPolicy + "\nnomad acl token create -name nomad-kubelet -policy nomad-kubelet\nand put its secret into NOMAD_TOKEN or the file nomad.tokenFile"})
		return false
	default:
		r.Add(report.Check{Where: atNomad, What: "token", Result: report.Unknown, Found: err.Error(), Remedy: "nomad acl token self"})
	}
	return true
}

// policies looks for the capabilities that cannot be tried without a running
// pod. Policies may be read by the tokens that have them.
func (d *Doctor) policies(q *api.QueryOptions, r *report.Report, tok *api.ACLToken) {
	var rules strings.Builder
	for _, name := range tok.Policies {
		p, _, err := d.Nomad.ACLPolicies().Info(name, q)
		if err != nil {
			r.Add(report.Check{Where: atNomad, What: "policy " + name, Result: report.Unknown, Found: err.Error(), Remedy: "nomad acl policy info " + name})
			return
		}
		rules.WriteString(p.Rules)
	}
	if len(tok.Roles) > 0 || strings.Contains(rules.String(), `policy = "write"`) {
		return // more than can be told from the text
	}
	for capability, breaks := range map[string]string{
		"read-logs": "kubectl logs", "read-fs": "kubectl logs and termination messages",
		"alloc-exec": "kubectl exec", "alloc-lifecycle": "restarting a container after a failed probe",
		"host-volume-create": "claims of StorageClass nomad-host-volume", "host-volume-delete": "volumes of claims that were deleted",
	} {
		if !strings.Contains(rules.String(), `"`+capability+`"`) {
			r.Add(report.Check{Where: atNomad, What: "capability " + capability, Result: report.Warn, Found: "not in the token's policies", Breaks: breaks, Remedy: applyPolicy})
		}
	}
}

func (d *Doctor) attempts(namespace, pool string) []attempt {
	n := d.Nomad
	return []attempt{
		{"list jobs", "list-jobs", "pods are not recognized after a restart", true, func(q *api.QueryOptions) error {
			q.PerPage = 1
			_, _, err := n.Jobs().List(q)
			return err
		}},
		{"list allocations", "read-job", "the state of pods is not seen", true, func(q *api.QueryOptions) error {
			q.PerPage = 1
			_, _, err := n.Allocations().List(q)
			return err
		}},
		{"plan a job", "submit-job", "no pod starts", true, func(q *api.QueryOptions) error {
			_, _, err := n.Jobs().Plan(planned(namespace, pool), false, (&api.WriteOptions{Namespace: namespace}).WithContext(q.Context()))
			return err
		}},
		{"list variables", "variables on nomad/jobs/k8s-*", "pods with ConfigMaps, Secrets or init containers do not start", true, func(q *api.QueryOptions) error {
			q.PerPage = 1
			_, _, err := n.Variables().PrefixList("nomad/jobs/k8s-", q)
			return err
		}},
		{"list variables of companions", "variables on nomad/jobs/k8sx-*", "ephemeral containers with values of ConfigMaps or Secrets do not start", false, func(q *api.QueryOptions) error {
			q.PerPage = 1
			_, _, err := n.Variables().PrefixList("nomad/jobs/k8sx-", q)
			return err
		}},
		{"list host volumes", "host-volume-read", "claims stay unbound", false, func(q *api.QueryOptions) error {
			q.PerPage = 1
			_, _, err := n.HostVolumes().List(nil, q)
			return err
		}},
		{"list clients", "node read", "the node has no capacity, and pods are not scheduled", true, func(q *api.QueryOptions) error {
			q.PerPage = 1
			_, _, err := n.Nodes().List(q)
			return err
		}},
		{"read the scheduler's configuration", "operator read", "whether memory limits may exceed requests is not known; set memoryOversubscription", false, func(q *api.QueryOptions) error {
			_, _, err := n.Operator().SchedulerGetConfiguration(q)
			return err
		}},
	}
}

// planned is a job that is only ever planned.
func planned(namespace, pool string) *api.Job {
	id := "nomad-kubelet-doctor"
	job := api.NewBatchJob(id, id, "", 50)
	job.Namespace, job.NodePool = &namespace, &pool
	task := api.NewTask("doctor", "docker").SetConfig("image", "none")
	return job.AddTaskGroup(api.NewTaskGroup("doctor", 1).AddTask(task))
}
