package figures

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Row is one figure beside what it is measured against.
type Row struct {
	Figure   string `json:"figure"`
	Measured string `json:"measured"`
	Beside   string `json:"beside,omitempty"`
	Goal     string `json:"goal,omitempty"`
	Met      *bool  `json:"met,omitempty"`
	// Unjudged says why it is not known whether the goal was met.
	Unjudged string `json:"unjudged,omitempty"`
}

// Report gathers the figures of a run.
type Report struct {
	Begin   time.Time      `json:"begin"`
	End     time.Time      `json:"end"`
	Before  string         `json:"machineBefore"`
	After   string         `json:"machineAfter"`
	Rows    []Row          `json:"rows"`
	Details map[string]any `json:"details"`

	strict bool
}

// New begins a run. Where strict, a benchmark that misses a goal fails.
func New(strict bool) *Report {
	return &Report{Begin: time.Now(), Before: machine(), Details: map[string]any{}, strict: strict}
}

// Add notes a figure without a goal.
func (r *Report) Add(figure, measured, beside string) {
	r.add(Row{Figure: figure, Measured: measured, Beside: beside})
}

// Goal notes a figure with one, and fails the benchmark if it was missed and that
// matters.
func (r *Report) Goal(b testing.TB, figure, measured, beside, goal string, met bool) {
	b.Helper()
	r.add(Row{Figure: figure, Measured: measured, Beside: beside, Goal: goal, Met: &met})
	if !met && r.strict {
		b.Errorf("%s: %s, the goal is %s", figure, measured, goal)
	}
}

// Unjudged notes a figure with a goal that this run says nothing about; where
// goals matter, that is no success either.
func (r *Report) Unjudged(b testing.TB, figure, measured, beside, goal, why string) {
	b.Helper()
	r.add(Row{Figure: figure, Measured: measured, Beside: beside, Goal: goal, Unjudged: why})
	if r.strict {
		b.Errorf("%s: %s cannot be judged, %s", figure, measured, why)
	}
}

// add tells a figure at once, too: a run that dies after half an hour has said
// what it knew.
func (r *Report) add(x Row) {
	line := x.Figure + ": " + x.Measured
	if x.Beside != "" {
		line += " (" + x.Beside + ")"
	}
	fmt.Println(line)
	r.Rows = append(r.Rows, x)
}

// Detail keeps raw values in the JSON file.
func (r *Report) Detail(name string, v any) { r.Details[name] = v }

// Write ends the run: the table goes to standard output, all of it to the file,
// whose directory is made.
func (r *Report) Write(path string) error {
	r.End, r.After = time.Now(), machine()
	fmt.Print("\n", r.markdown(), "\n")
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(data, '\n'), 0o644)
}

func (r *Report) markdown() string {
	cells := [][]string{{"Figure", "Measured", "Beside", "Goal", "Met"}}
	for _, x := range r.Rows {
		cells = append(cells, []string{x.Figure, x.Measured, x.Beside, x.Goal, x.met()})
	}
	width := make([]int, 5)
	for _, line := range cells {
		for i, c := range line {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Before: %s. After: %s. %.0f s in all.\n\n", r.Before, r.After, r.End.Sub(r.Begin).Seconds())
	for n, line := range cells {
		for i, c := range line {
			fmt.Fprintf(&b, "| %-*s ", width[i], c)
		}
		b.WriteString("|\n")
		if n == 0 {
			for i := range line {
				b.WriteString("|" + strings.Repeat("-", width[i]+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

func (x Row) met() string {
	switch {
	case x.Met != nil && *x.Met:
		return "yes"
	case x.Met != nil:
		return "no"
	case x.Unjudged != "":
		return "not judged: " + x.Unjudged
	}
	return ""
}

// machine tells what the figures were measured on and under which load.
func machine() string {
	var load string
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		load = strings.Join(strings.Fields(string(data))[:3], " ")
	}
	var info unix.Sysinfo_t
	mem := 0.0
	if unix.Sysinfo(&info) == nil {
		mem = float64(info.Totalram) * float64(info.Unit) / (1 << 30)
	}
	return fmt.Sprintf("%d cores, %.0f GiB, load average %s", runtime.NumCPU(), mem, load)
}
