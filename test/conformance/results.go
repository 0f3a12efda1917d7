package main

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The states of a spec.
const (
	passed  = "passed"
	failed  = "failed"
	skipped = "skipped"
)

// result is one spec's.
type result struct {
	Spec    string  `json:"spec"`
	State   string  `json:"state"`
	Seconds float64 `json:"seconds"`
	// Failure is the beginning of what the spec said, on one line; of a skipped
	// one, its reason.
	Failure string `json:"failure,omitempty"`
}

// pass is one run of the suite over a selection of specs.
type pass struct {
	Started  time.Time `json:"started"`
	Seconds  float64   `json:"seconds"`
	Command  string    `json:"command"`
	Software software  `json:"software"`
	Results  []result  `json:"results"`
}

// results are all kept passes of a node, by name.
type results map[string]*pass

func (p *pass) count(state string) int {
	n := 0
	for _, r := range p.Results {
		if r.State == state {
			n++
		}
	}
	return n
}

func (p *pass) summary() string {
	return fmt.Sprintf("%d passed, %d failed", p.count(passed), p.count(failed))
}

// all are the results of all passes, by spec.
func (r results) all() map[string]result {
	out := map[string]result{}
	for _, p := range r {
		for _, one := range p.Results {
			out[one.Spec] = one
		}
	}
	return out
}

// junitReport is what ginkgo writes.
type junitReport struct {
	Suites []struct {
		Cases []junitCase `xml:"testcase"`
	} `xml:"testsuite"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Status  string        `xml:"status,attr"`
	Time    float64       `xml:"time,attr"`
	Failure *junitMessage `xml:"failure"`
	Error   *junitMessage `xml:"error"`
	Skipped *junitMessage `xml:"skipped"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// specLabels is the list of labels that ginkgo writes behind a spec's text.
var specLabels = regexp.MustCompile(` \[[^][]*, [^][]*\]$`)

// readJUnit reads the specs that a run selected, in the order of their names. A
// failure outside of any spec is an error: nothing was measured then.
func readJUnit(data []byte) ([]result, error) {
	var report junitReport
	if err := xml.Unmarshal(data, &report); err != nil {
		return nil, fmt.Errorf("read JUnit report: %w", err)
	}
	var out []result
	for _, suite := range report.Suites {
		for _, c := range suite.Cases {
			r := c.result()
			spec, isSpec := strings.CutPrefix(c.Name, "[It] ")
			if !isSpec {
				if r.State == failed {
					return nil, fmt.Errorf("%s failed: %s", c.Name, r.Failure)
				}
				continue
			}
			if r.State == "" {
				continue
			}
			r.Spec = specLabels.ReplaceAllString(spec, "")
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b result) int { return strings.Compare(a.Spec, b.Spec) })
	return out, nil
}

// result has no state for a spec that the selection left out.
func (c junitCase) result() result {
	r := result{Seconds: float64(int(c.Time*10+0.5)) / 10}
	switch {
	case c.Failure != nil:
		r.State, r.Failure = failed, oneLine(c.Failure.Message)
	case c.Error != nil:
		r.State, r.Failure = failed, oneLine(c.Error.Message)
	case c.Skipped != nil:
		// A spec that skips itself says why.
		if why, ok := strings.CutPrefix(c.Skipped.Message, "skipped - "); ok {
			r.State, r.Failure = skipped, oneLine(why)
		}
	case c.Status == "passed":
		r.State = passed
	}
	return r
}

const maxFailure = 240

// goType is how gomega says what a value is, with its place in memory.
var goType = regexp.MustCompile(`<\*?[\w.]+( \| 0x[0-9a-f]+)?>: ?`)

// longWord is a part of a message, such as the pattern of an address, that would
// push all else out of the line.
var longWord = regexp.MustCompile(`(\S{40})\S{40,}`)

// oneLine is the beginning of a message without its line breaks.
func oneLine(message string) string {
	words := longWord.ReplaceAllString(goType.ReplaceAllString(message, ""), "$1...")
	text := []rune(strings.Join(strings.Fields(words), " "))
	if len(text) > maxFailure {
		return string(text[:maxFailure]) + "..."
	}
	return string(text)
}

func resultsFile(root, node string) string {
	return filepath.Join(root, "test", "conformance", "results", node+".json")
}

// loadResults returns no results, and no error, when there is no file.
func loadResults(root, node string) (results, error) {
	r := results{}
	data, err := os.ReadFile(resultsFile(root, node))
	if errors.Is(err, os.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("results of the node %q: %w", node, err)
	}
	return r, nil
}

// keep replaces one pass of a node's results.
func keep(root, node, name string, p *pass) error {
	all, err := loadResults(root, node)
	if err != nil {
		return err
	}
	all[name] = p
	return writeJSON(resultsFile(root, node), all)
}

func writeJSON(file string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o644)
}
