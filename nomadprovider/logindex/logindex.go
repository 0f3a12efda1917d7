package logindex

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// prefix begins the names of segments.
const prefix = ".k8s-log."

// version is the form's; a reader leaves other ones alone.
const version = 1

// Segment names one file of the index.
type Segment struct {
	// Run is the start of the container in Unix nanoseconds.
	Run    int64
	Number int
}

// Name is the segment's file name.
func (s Segment) Name() string { return fmt.Sprintf("%s%d.%d", prefix, s.Run, s.Number) }

// Segments finds the segments among names of files, in the order in which they
// were written.
func Segments(names []string) []Segment {
	var out []Segment
	for _, name := range names {
		rest, ok := strings.CutPrefix(name, prefix)
		run, number, _ := strings.Cut(rest, ".")
		start, errRun := strconv.ParseInt(run, 10, 64)
		n, errNumber := strconv.Atoi(number)
		if ok && errRun == nil && errNumber == nil {
			out = append(out, Segment{start, n})
		}
	}
	slices.SortFunc(out, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.Run, b.Run), cmp.Compare(a.Number, b.Number))
	})
	return out
}

// Position is a place in the files of a stream: the number in the file's name
// and the offset in it. The offset may lie beyond a file that Nomad has turned
// meanwhile, and then counts on into the next.
type Position struct {
	File int64 `json:"file"`
	At   int64 `json:"at"`
}

// Header begins a segment.
type Header struct {
	Version int `json:"version"`
	// Time is when the segment was begun, in Unix microseconds.
	Time int64 `json:"time"`
	// Begin is where its first byte of each stream is, by kind.
	Begin [2]Position `json:"begin"`
}

// Bytes is the header as it is written.
func (h Header) Bytes() []byte {
	h.Version = version
	line, _ := json.Marshal(h) // numbers can be written
	return append(line, '\n')
}

// ParseHeader reads the header at the beginning of a segment and says how long
// it is, 0 for one that is not complete.
func ParseHeader(p []byte) (h Header, n int, err error) {
	n = bytes.IndexByte(p, '\n') + 1
	if n == 0 {
		return h, 0, nil
	}
	if err := json.Unmarshal(p[:n], &h); err != nil {
		return h, n, fmt.Errorf("header of a log's index: %w", err)
	}
	if h.Version != version {
		return h, n, fmt.Errorf("version %d of a log's index is not known", h.Version)
	}
	return h, n, nil
}

// Kind is what a record is about.
type Kind uint8

const (
	// Stdout and Stderr are bytes of that stream.
	Stdout Kind = iota
	Stderr
	// Next ends a segment after which the run goes on in the next one.
	Next
	// Over ends the last segment of a run.
	Over
)

// Mark says whether a record stands for an end and not for bytes.
func (k Kind) Mark() bool { return k >= Next }

// Record is of bytes that were written at one time.
type Record struct {
	Kind  Kind
	Bytes int64
	// Time is of the first of them, in Unix microseconds.
	Time int64
	// Lines is how many lines begin in them.
	Lines int64
	// Continued is set when they go on with a line that began before.
	Continued bool
}

// When is the record's time.
func (r Record) When() time.Time { return time.UnixMicro(r.Time) }

const (
	kindBits      = 0b011
	continuedBit  = 0b100
	bytesShift    = 3
	longestRecord = 3 * binary.MaxVarintLen64
)

// Coder writes, or reads, the records of a segment one after the other.
type Coder struct {
	last int64 // time of the record before
}

// NewCoder is for the records after a header.
func NewCoder(h Header) Coder { return Coder{last: h.Time} }

// Append adds a record. Times never go back: a record that seems to be earlier
// than the one before gets its time.
func (c *Coder) Append(to []byte, r Record) []byte {
	r.Time = max(r.Time, c.last)
	first := uint64(r.Bytes)<<bytesShift | uint64(r.Kind)
	if r.Continued {
		first |= continuedBit
	}
	to = binary.AppendUvarint(to, first)
	to = binary.AppendUvarint(to, uint64(r.Time-c.last))
	c.last = r.Time
	if !r.Kind.Mark() {
		to = binary.AppendUvarint(to, uint64(r.Lines))
	}
	return to
}

var errRecord = errors.New("a record of a log's index is damaged")

// Next reads the first record of p and says how long it is, 0 when p ends
// before it does.
func (c *Coder) Next(p []byte) (r Record, n int, err error) {
	var v [3]uint64
	for i := range v {
		if i == 2 && r.Kind.Mark() {
			break
		}
		x, m := binary.Uvarint(p[n:])
		if m < 0 || m == 0 && len(p) >= longestRecord {
			return r, 0, errRecord
		}
		if m == 0 {
			return r, 0, nil
		}
		v[i], n = x, n+m
		r.Kind = Kind(v[0] & kindBits)
	}
	r.Bytes, r.Continued = int64(v[0]>>bytesShift), v[0]&continuedBit != 0
	r.Time, r.Lines = c.last+int64(v[1]), int64(v[2])
	c.last = r.Time
	return r, n, nil
}
