package companion

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// The qcow2 format (qemu, docs/interop/qcow2.txt), version 3, all big-endian.
const (
	qcowMagic      = 0x514649fb
	qcowVersion    = 3
	qcowHeaderSize = 104
	clusterBits    = 16
	clusterSize    = 1 << clusterBits
	refcountOrder  = 4 // 16 bits a cluster
	// qcowBackingFormat is the header extension with the image's format, without
	// which qemu would look at its content.
	qcowBackingFormat = 0xe2792aca
	// qcowDataFile is the incompatible feature of data in a file of its own.
	qcowDataFile = 1 << 2
	// maxVersion is the last version that there is.
	maxVersion = 3
)

type qcowHeader struct {
	Magic, Version                      uint32
	BackingOffset                       uint64
	BackingSize, ClusterBits            uint32
	Size                                uint64
	CryptMethod, L1Size                 uint32
	L1Offset, RefcountOffset            uint64
	RefcountClusters, Snapshots         uint32
	SnapshotsOffset                     uint64
	Incompatible, Compatible, Autoclear uint64
	RefcountOrder, HeaderLength         uint32
}

const mebibyte = 1 << 20

// makeDisk makes a disk that stores what differs from its image, or from nothing
// but zeroes. The error says what is wrong with the image.
func makeDisk(e Entry) error {
	if _, err := os.Lstat(e.Disk); err == nil {
		return nil
	}
	size := uint64(e.SizeMB) * mebibyte
	format := ""
	if e.Base != "" {
		var least uint64
		var err error
		if format, least, err = inspect(e.Base); err != nil {
			return fmt.Errorf("image %s: %w", e.Image, err)
		}
		switch {
		case size == 0:
			size = least
		case size < least:
			return fmt.Errorf("image %s has %d MiB, which is more than the disk's %d MiB (ephemeral-storage)", e.Image, (least+mebibyte-1)/mebibyte, e.SizeMB)
		}
	}
	data, err := overlay(size, e.Backing, format)
	if err != nil {
		return err
	}
	return atomicFile(e.Disk, data)
}

// atomicFile has the file there as a whole or not at all.
func atomicFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), tempStyle)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is none
	_, err = f.Write(data)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// CheckDisk says why a file is no disk image for a VM.
func CheckDisk(path string) error {
	_, _, err := inspect(path)
	return err
}

// inspect tells an image's format and size in bytes. An image may name other
// files, which qemu, root on the client, would open for it: that is refused.
func inspect(path string) (format string, size uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, errors.New("cannot be read")
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return "", 0, err
	case info.Mode()&fs.ModeDevice == 0 && !info.Mode().IsRegular():
		return "", 0, errors.New("is no file")
	}
	var head [qcowHeaderSize]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", 0, err
	}
	if n < len(head) || binary.BigEndian.Uint32(head[:]) != qcowMagic {
		return inspectRaw(f, head[:n])
	}
	var h qcowHeader
	_ = binary.Read(bytes.NewReader(head[:]), binary.BigEndian, &h) // as long as the header is
	switch {
	case h.Version < 2 || h.Version > maxVersion:
		return "", 0, fmt.Errorf("is qcow2 of version %d, which is not known", h.Version)
	case h.BackingOffset != 0, h.Version > 2 && h.Incompatible&qcowDataFile != 0:
		return "", 0, errors.New("is made of more than one file: convert it into one (qemu-img convert)")
	case h.CryptMethod != 0:
		return "", 0, errors.New("is encrypted")
	case h.Size == 0:
		return "", 0, errors.New("is empty")
	}
	return "qcow2", h.Size, nil
}

// others are the signs of what may be taken for a disk and is none.
var others = []struct{ sign, name string }{
	{"\x1f\x8b", "gzip"}, {"\xfd7zXZ\x00", "xz"}, {"BZh", "bzip2"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"PK\x03\x04", "zip"},
	{"KDMV", "a VMDK image"}, {"vhdxfile", "a VHDX image"}, {"conectix", "a VHD image"}, {"QED\x00", "a QED image"},
	{"\x7fELF", "a program"}, {"<", "a text, such as a web page"},
}

// inspectRaw takes anything that is whole sectors long for a disk, but what is
// known to be none.
func inspectRaw(f *os.File, head []byte) (string, uint64, error) {
	for _, o := range others {
		if bytes.HasPrefix(head, []byte(o.sign)) {
			return "", 0, fmt.Errorf("is no disk image of the formats qcow2 and raw, but %s", o.name)
		}
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", 0, err
	}
	const sector = 512
	if size == 0 || size%sector != 0 {
		return "", 0, fmt.Errorf("is no disk image of the formats qcow2 and raw: it has %d bytes", size)
	}
	return "raw", uint64(size), nil
}

// overlay is the content of an empty qcow2 disk of that size over an image: the
// header, one cluster each for the table of reference counts and its only block,
// and the table of what is allocated, which is empty.
func overlay(size uint64, backing, format string) ([]byte, error) {
	const perL2 = clusterSize / 8 // clusters that one cluster of a second table names
	clusters := func(n, by uint64) uint64 { return (n + by - 1) / by }
	l1 := clusters(clusters(size, clusterSize), perL2)
	used := 3 + clusters(l1*8, clusterSize)
	// The block of reference counts names 32768 clusters, which is far more.
	const maxSize = 1 << 50
	if size == 0 || size > maxSize {
		return nil, fmt.Errorf("a disk has between 1 byte and %d TiB", uint64(maxSize)>>40)
	}
	h := qcowHeader{
		Magic: qcowMagic, Version: qcowVersion, ClusterBits: clusterBits, Size: size,
		L1Size: uint32(l1), L1Offset: 3 * clusterSize, RefcountOffset: clusterSize, RefcountClusters: 1,
		RefcountOrder: refcountOrder, HeaderLength: qcowHeaderSize,
	}
	var extensions bytes.Buffer
	if backing != "" {
		for _, word := range []any{uint32(qcowBackingFormat), uint32(len(format)), []byte(format), make([]byte, (8-len(format)%8)%8), uint64(0)} {
			_ = binary.Write(&extensions, binary.BigEndian, word) // neither the type nor the buffer can fail
		}
		h.BackingOffset, h.BackingSize = uint64(qcowHeaderSize+extensions.Len()), uint32(len(backing))
	}
	const maxBacking = 1023
	if len(backing) > maxBacking {
		return nil, fmt.Errorf("the path of the image is longer than %d bytes", maxBacking)
	}
	out := make([]byte, used*clusterSize)
	var head bytes.Buffer
	_ = binary.Write(&head, binary.BigEndian, h)
	head.Write(extensions.Bytes())
	head.WriteString(backing)
	copy(out, head.Bytes())
	binary.BigEndian.PutUint64(out[clusterSize:], 2*clusterSize)
	for i := range used {
		binary.BigEndian.PutUint16(out[2*clusterSize+2*i:], 1)
	}
	return out, nil
}
