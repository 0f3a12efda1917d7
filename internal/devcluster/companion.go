package devcluster

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
)

// companionProgram is cmd/companion, built static.
const companionProgram = "companion"

// companionImage names the image by its content, so that a new build is a new
// image. The error is [os.ErrNotExist] when the program is not there: VM pods
// then run without.
func (c *Cluster) companionImage() (string, error) {
	_, sum, err := c.companion()
	return sum, err
}

func (c *Cluster) companion() (program []byte, image string, err error) {
	path, err := c.find(companionProgram)
	if err != nil {
		return nil, "", os.ErrNotExist
	}
	if program, err = os.ReadFile(path); err != nil {
		return nil, "", err
	}
	return program, fmt.Sprintf("nomad-kubelet/companion:%x", sha256.Sum256(program))[:len("nomad-kubelet/companion:")+12], nil
}

// prepareCompanion makes the image of the one static program.
func (c *Cluster) prepareCompanion(ctx context.Context) error {
	program, image, err := c.companion()
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("companion: %w", err)
	}
	e := c.engine()
	if e.hasImage(ctx, image) {
		return nil
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: companionProgram, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(program))}); err != nil {
		return err
	}
	if _, err := w.Write(program); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if err := e.importImage(ctx, image, &buf, `ENTRYPOINT ["/companion"]`); err != nil {
		return fmt.Errorf("image %s: %w", image, err)
	}
	return nil
}
