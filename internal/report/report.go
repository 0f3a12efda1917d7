package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Result of a check.
type Result string

// The results.
const (
	OK      Result = "ok"
	Warn    Result = "warn"
	Fail    Result = "fail"
	Unknown Result = "unknown"
)

// Check is one thing that was looked at.
type Check struct {
	// Where is what was looked at: "kubernetes", "nomad", "node burst",
	// "client web-1".
	Where string `json:"where"`
	// What is the question, in a few words.
	What   string `json:"what"`
	Result Result `json:"result"`
	// Found is what was seen.
	Found string `json:"found,omitempty"`
	// Breaks is what will not work; Remedy is the line that mends it.
	Breaks string `json:"breaks,omitempty"`
	Remedy string `json:"remedy,omitempty"`
}

// Report is all that was looked at, in order.
type Report struct {
	Checks []Check `json:"checks"`
}

// Add takes checks in.
func (r *Report) Add(c ...Check) { r.Checks = append(r.Checks, c...) }

// OK takes in a check that found nothing wrong.
func (r *Report) OK(where, what, found string) {
	r.Add(Check{Where: where, What: what, Result: OK, Found: found})
}

// Count tells how many checks ended so.
func (r *Report) Count(res Result) (n int) {
	for _, c := range r.Checks {
		if c.Result == res {
			n++
		}
	}
	return n
}

// Err is not nil when pods would be at risk.
func (r *Report) Err() error {
	switch n := r.Count(Fail); n {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("pods would be at risk: 1 check failed")
	default:
		return fmt.Errorf("pods would be at risk: %d checks failed", n)
	}
}

// WriteJSON writes the report for programs.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(r)
}

// WriteText writes the report for people: a line for each check, and below
// those that are not ok what breaks and what to do.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	where, width := "", 0
	for _, c := range r.Checks {
		width = max(width, len(c.What))
	}
	for _, c := range r.Checks {
		if c.Where != where {
			if where != "" {
				b.WriteByte('\n')
			}
			where = c.Where
			b.WriteString(where + "\n")
		}
		fmt.Fprintf(&b, "  %-7s  %-*s  %s\n", c.Result, width, c.What, c.Found)
		if c.Result == OK {
			continue
		}
		for _, l := range [][2]string{{"breaks", c.Breaks}, {"do", c.Remedy}} {
			if l[1] == "" {
				continue
			}
			text := strings.ReplaceAll(l[1], "\n", "\n"+strings.Repeat(" ", 19))
			fmt.Fprintf(&b, "  %-7s    %-6s %s\n", "", l[0], text)
		}
	}
	fmt.Fprintf(&b, "\n%d ok, %d warn, %d fail, %d unknown\n", r.Count(OK), r.Count(Warn), r.Count(Fail), r.Count(Unknown))
	_, err := io.WriteString(w, b.String())
	return err
}
