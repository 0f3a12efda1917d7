package companion

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"
)

// Whoever gives up waiting for a socket does not keep others from it.
func TestExclusive(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "qa.sock")
	first, err := exclusive(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if f, err := exclusive(short, socket); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%v, %v while another one has it", f, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	long, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	next, err := exclusive(long, socket)
	if err != nil {
		t.Fatal(err)
	}
	_ = next.Close() // nothing was written
}
