package figures

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// benchmark notes what it fails of.
type benchmark struct {
	testing.TB
	errors []string
}

func (b *benchmark) Helper() {}

func (b *benchmark) Errorf(format string, args ...any) {
	b.errors = append(b.errors, fmt.Sprintf(format, args...))
}

// run notes one figure of each kind.
func run(strict bool) (*Report, *benchmark) {
	r, b := New(strict), &benchmark{}
	r.Add("a round trip", "40 µs", "")
	r.Goal(b, "writes", "2", "3 by hand", "none", false)
	r.Goal(b, "patches", "1", "", "at most 1", true)
	r.Unjudged(b, "starts", "2.0 s", "1.0 s", "at most twice", "others kept 1.5 cores busy")
	return r, b
}

func TestOnlyStrictGoalsFail(t *testing.T) {
	if _, b := run(false); len(b.errors) != 0 {
		t.Error(b.errors)
	}
	want := []string{"writes: 2, the goal is none", "starts: 2.0 s cannot be judged, others kept 1.5 cores busy"}
	if _, b := run(true); !slices.Equal(b.errors, want) {
		t.Error(b.errors)
	}
}

func TestMarkdown(t *testing.T) {
	r, _ := run(false)
	r.Before, r.After, r.End = "idle", "busy", r.Begin
	const want = `Before: idle. After: busy. 0 s in all.

| Figure       | Measured | Beside    | Goal          | Met                                    |
|--------------|----------|-----------|---------------|----------------------------------------|
| a round trip | 40 µs    |           |               |                                        |
| writes       | 2        | 3 by hand | none          | no                                     |
| patches      | 1        |           | at most 1     | yes                                    |
| starts       | 2.0 s    | 1.0 s     | at most twice | not judged: others kept 1.5 cores busy |
`
	if got := r.markdown(); got != want {
		t.Error("\n" + got)
	}
}

func TestWrite(t *testing.T) {
	r, _ := run(false)
	r.Detail("raw [ms]", []int{1, 2})
	path := filepath.Join(t.TempDir(), "new", "figures.json")
	if err := r.Write(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got Report
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Rows) != 4 || got.Rows[1].Met == nil || *got.Rows[1].Met || got.Rows[3].Met != nil || got.Details["raw [ms]"] == nil {
		t.Errorf("%s", data)
	}
	for _, line := range []string{got.Before, got.After} {
		if !strings.Contains(line, "cores, ") || strings.Contains(line, " 0 GiB") {
			t.Error(line)
		}
	}
	if got.End.Before(got.Begin) {
		t.Error(got.Begin, got.End)
	}
}

func TestQuantiles(t *testing.T) {
	var list []int
	for i := 20; i >= 1; i-- {
		list = append(list, i)
	}
	for q, want := range map[float64]int{0.01: 1, 0.5: 10, 0.95: 19, 0.99: 20, 1: 20} {
		if got := Quantile(list, q); got != want {
			t.Errorf("%v: %d", q, got)
		}
	}
	if m := Median([]int{1, 4, 2}); m != 2 {
		t.Errorf("median %d", m)
	}
	if m := Median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("median %v", m)
	}
	if list[0] != 20 {
		t.Error("the values were reordered")
	}
	if Quantile[int](nil, 0.5) != 0 || Median[int](nil) != 0 {
		t.Error("of nothing")
	}
}
