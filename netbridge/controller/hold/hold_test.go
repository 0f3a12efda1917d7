package hold

import (
	"slices"
	"testing"
	"time"
)

var ten = []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"}

func TestFewGoAtOnce(t *testing.T) {
	g := Guard{Hold: time.Minute}
	free, held, again := g.Release(time.Unix(0, 0), ten[:5], 10)
	if len(free) != 5 || len(held) != 0 || !again.IsZero() {
		t.Error(free, held, again)
	}
	if free, held, _ := g.Release(time.Unix(0, 0), []string{"only"}, 1); len(free) != 1 || len(held) != 0 {
		t.Error(free, held)
	}
}

func TestManyMustStayMissing(t *testing.T) {
	g := Guard{Hold: time.Minute}
	start := time.Unix(1000, 0)
	free, held, again := g.Release(start, ten[:6], 10)
	if len(free) != 0 || len(held) != 6 || !again.Equal(start.Add(time.Minute)) {
		t.Fatal(free, held, again)
	}
	// One comes back, and another goes, which is no mass any more.
	free, held, _ = g.Release(start.Add(30*time.Second), append(slices.Clone(ten[1:4]), "j"), 10)
	if !slices.Equal(free, []string{"j"}) || !slices.Equal(held, ten[1:4]) {
		t.Error(free, held)
	}
	// The one that was back waits anew in a mass.
	free, held, again = g.Release(start.Add(time.Minute), ten[:7], 10)
	if !slices.Equal(free, ten[1:4]) || !slices.Equal(held, []string{"a", "e", "f", "g"}) || !again.Equal(start.Add(2*time.Minute)) {
		t.Error(free, held, again)
	}
	// What could not be taken away is tried again without another wait.
	if free, _, _ = g.Release(start.Add(61*time.Second), ten[:7], 10); !slices.Equal(free, ten[1:4]) {
		t.Error(free)
	}
}

func TestDoubt(t *testing.T) {
	g := Guard{Hold: time.Minute}
	start := time.Unix(1000, 0)
	g.Doubt(start)
	if free, held, _ := g.Release(start.Add(time.Second), ten[:1], 10); len(free) != 0 || len(held) != 1 {
		t.Error(free, held)
	}
	// It holds for what goes missing until it is over, and no longer.
	free, held, again := g.Release(start.Add(61*time.Second), ten[:2], 10)
	if !slices.Equal(free, []string{"a", "b"}) || len(held) != 0 || !again.IsZero() {
		t.Error(free, held, again)
	}
}
