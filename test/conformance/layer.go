package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// entry is a file of a layer: one with text, a copy of a file of this machine, a
// link, or, when its name ends in a slash, a directory.
type entry struct {
	name string
	mode int64
	text string
	from string
	link string
}

// layerOf packs entries. Equal entries make equal layers.
func layerOf(entries []entry) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		if err := e.write(w); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", e.name, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return layer(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil })
}

func layerFromFile(file string) (v1.Layer, error) {
	return layer(func() (io.ReadCloser, error) { return os.Open(file) })
}

func layer(open tarball.Opener) (v1.Layer, error) {
	return tarball.LayerFromOpener(open, tarball.WithCompressionLevel(gzip.BestSpeed))
}

func (e entry) write(w *tar.Writer) error {
	h := &tar.Header{Name: e.name, Mode: e.mode, Linkname: e.link}
	text := []byte(e.text)
	switch {
	case e.link != "":
		h.Typeflag, h.Mode = tar.TypeSymlink, 0o777
	case e.name[len(e.name)-1] == '/':
		h.Typeflag = tar.TypeDir
	case e.from != "":
		var err error
		if text, err = os.ReadFile(filepath.Clean(e.from)); err != nil {
			return err
		}
	}
	h.Size = int64(len(text))
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(text)
	return err
}
