package doctor

import (
	"context"
	"net/netip"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
)

// nodeObject is what the API server tells of the Node; the zero value is one that is
// not asked for.
type nodeObject struct {
	asked  bool
	uid    string
	ranges []netip.Prefix
	err    error
}

func (d *Doctor) lookNode(ctx context.Context) nodeObject {
	if d.Kube == nil {
		return nodeObject{}
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	n, err := d.Kube.CoreV1().Nodes().Get(ctx, d.Config.Node.Name, metav1.GetOptions{})
	if err != nil {
		return nodeObject{asked: true, err: err}
	}
	o := nodeObject{asked: true, uid: string(n.UID)}
	for _, c := range n.Spec.PodCIDRs {
		if p, err := netip.ParsePrefix(c); err == nil && p.Addr().Is4() {
			o.ranges = append(o.ranges, p)
		}
	}
	return o
}

// judgeNodeObject: an agent that was here before goes on as who it was then.
func judgeNodeObject(o nodeObject, c *agent.Config, n node) []report.Check {
	check := report.Check{Where: atCluster, What: "Node " + c.Node.Name, Result: report.OK, Found: "UID " + o.uid + ", ranges " + some(o.ranges)}
	switch {
	case !o.asked:
		return nil
	case o.err != nil:
		check.Result, check.Found, check.Breaks = report.Fail, o.err.Error(), "the agent waits for it"
		if n.last != nil {
			check.Result, check.Breaks = report.Warn, "changes of its ranges are not followed"
		}
		check.Remedy = "kubectl get node " + c.Node.Name + "; kubectl apply -f deploy/kubernetes/netbridge"
	case len(o.ranges) == 0 && len(c.Node.PodCIDRs) == 0:
		check.Result, check.Found = report.Fail, "no IPv4 range in spec.podCIDRs"
		check.Breaks = "this node announces no pods"
		check.Remedy = "kube-controller-manager --allocate-node-cidrs, or node.podCIDRs in the agent's configuration"
	}
	return []report.Check{check}
}
