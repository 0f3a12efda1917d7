package vmimage

import (
	"bytes"
	"os"
)

// blockSize is what file systems allocate at least.
const blockSize = 4096

var zeroes [blockSize]byte

// sparse writes a new file, in which blocks of zeroes become holes.
type sparse struct {
	f  *os.File
	at int64
	// data counts the bytes that are not in holes.
	data int64
}

func (s *sparse) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		hole, n := stretch(p[done:], s.at)
		if !hole {
			n, err := s.f.WriteAt(p[done:done+n], s.at)
			s.data += int64(n)
			if err != nil {
				return done + n, err
			}
		}
		s.at += int64(n)
		done += n
	}
	return done, nil
}

// end gives the file its length.
func (s *sparse) end() error { return s.f.Truncate(s.at) }

// stretch is how many bytes from the beginning on, which is at that place of the
// file, are in blocks of zeroes, or are in blocks that hold something.
func stretch(p []byte, at int64) (hole bool, n int) {
	for n < len(p) {
		end := min(n+blockSize-int((at+int64(n))%blockSize), len(p))
		zero := bytes.Equal(p[n:end], zeroes[:end-n])
		if n > 0 && zero != hole {
			break
		}
		hole, n = zero, end
	}
	return hole, n
}
