package vmimage

import (
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strings"
)

// kinds are those of Nomad's artifacts (go-getter), which VM pods use where
// there is no cache.
var kinds = map[string]func() hash.Hash{"md5": md5.New, "sha1": sha1.New, "sha256": sha256.New, "sha512": sha512.New}

// checksum is what an image is to have: "sha256:<hex>"; the zero value is met by
// any.
type checksum struct {
	kind, want string
	sum        hash.Hash
}

func parseChecksum(s string) (checksum, error) {
	if s == "" {
		return checksum{}, nil
	}
	kind, want, _ := strings.Cut(s, ":")
	make, known := kinds[kind]
	if !known {
		return checksum{}, fmt.Errorf("annotation nomad-kubelet.io/image-checksum: %q is none of md5:, sha1:, sha256: and sha512: with a value", s)
	}
	c := checksum{kind: kind, want: strings.ToLower(want), sum: make()}
	if value, err := hex.DecodeString(want); err != nil || len(value) != c.sum.Size() {
		return checksum{}, fmt.Errorf("annotation nomad-kubelet.io/image-checksum: %q has not the %d hexadecimal digits of %s", s, 2*c.sum.Size(), kind)
	}
	return c, nil
}

func (c checksum) String() string { return c.kind + ":" + c.want }

// writer is given the image's bytes.
func (c checksum) writer() io.Writer {
	if c.sum == nil {
		return io.Discard
	}
	return c.sum
}

func (c checksum) verify() error {
	if c.sum == nil {
		return nil
	}
	if have := hex.EncodeToString(c.sum.Sum(nil)); have != c.want {
		return fmt.Errorf("the checksum is %s:%s, and not %s: correct annotation nomad-kubelet.io/image-checksum, or what is fetched", c.kind, have, c)
	}
	return nil
}
