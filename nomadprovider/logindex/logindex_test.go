package logindex

import (
	"math"
	"reflect"
	"testing"
)

func TestSegments(t *testing.T) {
	names := []string{"local", ".k8s-image", ".k8s-log.9.0", ".k8s-log.10.10", ".k8s-log.10.9", ".k8s-log.x.1", ".k8s-log.10", ".k8s-log.10.0.tmp"}
	want := []Segment{{9, 0}, {10, 9}, {10, 10}}
	got := Segments(names)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if name := got[2].Name(); name != ".k8s-log.10.10" {
		t.Error(name)
	}
}

// What is written is read, however it is cut.
func TestRecords(t *testing.T) {
	h := Header{Version: version, Time: 1_700_000_000_000_000, Begin: [2]Position{{0, 5}, {12, 10 << 20}}}
	records := []Record{
		{Stdout, 1, h.Time, 1, false},
		{Stderr, 16 << 10, h.Time + 3, 1, false},
		{Stderr, math.MaxInt64 >> bytesShift, h.Time + 3_600_000_000, 0, true},
		{Stdout, 100_000_000, h.Time + 3_600_000_001, 1_000_000, true},
		{Next, 0, h.Time + 3_600_000_002, 0, false},
		{Over, 0, h.Time + 3_600_000_003, 0, false},
	}
	file := h.Bytes()
	c := NewCoder(h)
	for _, r := range records {
		file = c.Append(file, r)
	}
	for cut := range len(file) + 1 {
		var got []Record
		var c Coder
		var rest []byte
		for _, part := range [][]byte{file[:cut], file[cut:]} {
			rest = append(rest, part...)
			if c == (Coder{}) {
				head, n, err := ParseHeader(rest)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					continue
				}
				if head != h {
					t.Fatalf("%+v", head)
				}
				c, rest = NewCoder(head), rest[n:]
			}
			for {
				r, n, err := c.Next(rest)
				if err != nil {
					t.Fatal(err)
				}
				if n == 0 {
					break
				}
				got, rest = append(got, r), rest[n:]
			}
		}
		if !reflect.DeepEqual(got, records) || len(rest) > 0 {
			t.Fatalf("cut at %d: %v, and %d bytes", cut, got, len(rest))
		}
	}
}

func TestTimesNeverGoBack(t *testing.T) {
	h := Header{Time: 100}
	w, r := NewCoder(h), NewCoder(h)
	p := w.Append(nil, Record{Bytes: 1, Time: 90})
	p = w.Append(p, Record{Bytes: 1, Time: 120})
	p = w.Append(p, Record{Bytes: 1, Time: 110})
	for _, want := range []int64{100, 120, 120} {
		got, n, err := r.Next(p)
		if err != nil || got.Time != want {
			t.Errorf("%v, %v", got, err)
		}
		p = p[n:]
	}
}

func TestDamaged(t *testing.T) {
	var c Coder
	long := make([]byte, 2*longestRecord)
	for i := range long {
		long[i] = 0xff
	}
	if _, _, err := c.Next(long); err == nil {
		t.Error("a varint without end is a record")
	}
	for _, head := range []string{"{}\n", "{\"version\":2}\n", "no\n"} {
		if _, _, err := ParseHeader([]byte(head)); err == nil {
			t.Errorf("%q is a header", head)
		}
	}
}
