package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion/vmimage"
)

// fetchImage leaves the image behind a URL in dir.
func fetchImage(ctx context.Context, dir, cache string, u vmimage.URL) error {
	c, err := vmimage.Open(cache, companion.CheckDisk)
	if err != nil {
		return err
	}
	image, err := c.Fetch(ctx, u)
	if err != nil {
		return err
	}
	defer image.Close()
	return vmimage.Point(dir, image.Name())
}

// copyImage leaves the disk of the container image that we are in in dir, and
// removes this program, which is not wanted there any more.
func copyImage(ctx context.Context, dir, cache, path string) error {
	disk, err := vmimage.Find("/", path)
	if err != nil {
		return err
	}
	if cache == "" {
		err = vmimage.CopyTo(ctx, disk, filepath.Join(dir, vmimage.Base), companion.CheckDisk)
	} else {
		err = cacheImage(ctx, dir, cache, disk)
	}
	if err != nil {
		return fmt.Errorf("%s of the container image: %w", disk, err)
	}
	return os.Remove(filepath.Join(dir, vmimage.Program))
}

func cacheImage(ctx context.Context, dir, cache, disk string) error {
	c, err := vmimage.Open(cache, companion.CheckDisk)
	if err != nil {
		return err
	}
	image, err := c.Copy(ctx, disk)
	if err != nil {
		return err
	}
	defer image.Close()
	return vmimage.Point(dir, image.Name())
}

// hold keeps an image until it is called again. One that is gone is told of where
// the VM's disk is made.
func hold(image string) (release func()) {
	f, err := vmimage.Hold(image)
	if err != nil {
		fmt.Fprintln(os.Stderr, "companion:", err)
		return func() {}
	}
	return func() { f.Close() }
}
