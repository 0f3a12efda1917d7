package kubelet

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// What comes while a piece is sent goes on as one, in order, and the end waits for
// all of it.
func TestGather(t *testing.T) {
	r, w := io.Pipe()
	g := gather(w)
	var want []byte
	put := func(b byte) {
		p := bytes.Repeat([]byte{b}, 1000)
		want = append(want, p...)
		if n, err := g.Write(p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
	}
	put(0)
	first := make([]byte, 1) // of what is being sent
	if _, err := io.ReadFull(r, first); err != nil {
		t.Fatal(err)
	}
	for i := range byte(50) {
		put(i)
	}
	got := first
	buf := make([]byte, gatherMost)
	var pieces []int
	for len(got) < len(want) {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		got, pieces = append(got, buf[:n]...), append(pieces, n)
	}
	if !bytes.Equal(got, want) || len(pieces) != 2 {
		t.Errorf("%d bytes of %d, in pieces of %v", len(got), len(want), pieces)
	}
	// A writer is held up by a reader that does not read, and not for ever.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if n, err := g.Write(make([]byte, 3*gatherMost)); n != 3*gatherMost || err != nil {
			t.Error(n, err)
		}
		g.end(t.Context())
	}()
	if n, err := io.CopyN(io.Discard, r, gatherMost); err != nil {
		t.Fatal(n, err)
	}
	select {
	case <-ended:
		t.Error("it does not wait")
	default:
	}
	if n, err := io.CopyN(io.Discard, r, 2*gatherMost); err != nil {
		t.Fatal(n, err)
	}
	<-ended
	if _, err := g.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// A client that is gone fails the writer and does not hold up the end.
func TestGatherFails(t *testing.T) {
	r, w := io.Pipe()
	gone := errors.New("gone")
	_ = r.CloseWithError(gone)
	g := gather(w)
	var err error
	for err == nil {
		_, err = g.Write(make([]byte, 1000))
	}
	if !errors.Is(err, gone) {
		t.Error(err)
	}
	g.end(t.Context())
}
