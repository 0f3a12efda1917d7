package doctor

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nomad-kubelet/nomad-kubelet/internal/report"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
)

// judgeAgent repeats what the agent itself says that is not well.
func judgeAgent(st agent.Status, running, made bool) []report.Check {
	var r report.Report
	if !running {
		if made {
			r.Add(report.Check{Where: atAgent, What: "runs", Result: report.Warn, Found: "no", Breaks: "what it has set up stays; new nodes are not followed", Remedy: "start netbridge agent"})
		} else {
			r.OK(atAgent, "runs", "not yet")
		}
		return r.Checks
	}
	r.OK(atAgent, "runs", st.Version+" as "+string(st.ID))
	if st.Fenced != "" {
		r.Add(report.Check{Where: atAgent, What: "fence", Result: report.Fail, Found: st.Fenced, Breaks: "it gives no addresses", Remedy: "own claims, above"})
	}
	if st.Consul != "" {
		r.Add(report.Check{Where: atAgent, What: "Consul", Result: report.Warn, Found: "away for it since " + st.ConsulSeen.Format(time.TimeOnly) + ": " + st.Consul,
			Breaks: "changes are not followed", Remedy: "above; a token that was replaced in its file is read at the agent's next start"})
	}
	for _, what := range slices.Sorted(maps.Keys(st.Problems)) {
		r.Add(report.Check{Where: atAgent, What: what, Result: report.Warn, Found: st.Problems[what], Breaks: "the agent tries it again", Remedy: "netbridge status; its log"})
	}
	if len(st.Drift) > 0 {
		r.Add(report.Check{Where: atAgent, What: "differs", Result: report.Warn, Found: strings.Join(st.Drift[:min(3, len(st.Drift))], "; "),
			Breaks: "somebody changes what the agent sets up; it mends it within 10 s", Remedy: "netbridge status, twice"})
	}
	return r.Checks
}
