package dockerproxy

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// What nomad-kubelet and the proxy say to each other: labels of a container, and
// a mark in the engine's version, which the docker driver makes an attribute of
// its client.
const (
	// LabelNonRoot asks that the container is only made if it does not run as
	// root. Its value names the container in the error.
	LabelNonRoot = "nomad-kubelet.io/run-as-non-root"
	// LabelGroup is the group to run as, with the image's user.
	LabelGroup = "nomad-kubelet.io/run-as-group"
	// LabelOwnMounts names files, separated by commas, at which a volume takes the
	// place of what the driver mounts: two mounts at one place are an error.
	LabelOwnMounts = "nomad-kubelet.io/own-mounts"
	// LabelStdinOnce asks that the container's input ends with that of the first
	// who is attached.
	LabelStdinOnce = "nomad-kubelet.io/stdin-once"
	// LabelSubPaths is a JSON object of the mounts that are sub-paths of volumes: where
	// they are, and of how many parts the sub-path is.
	LabelSubPaths = "nomad-kubelet.io/sub-paths"
	// VersionMark follows the engine's version, as build metadata does.
	VersionMark = "+nomad-kubelet"
)

// ImageFile is where the proxy leaves the ID of a container's image, in its task's
// directory, of which the container sees only parts.
const ImageFile = ".k8s-image"

// createLimit bounds what is read of a request for a container, in bytes.
const createLimit = 16 << 20

// create makes a container as its labels ask for, unless its image's user does
// not allow it.
func (p *Proxy) create(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, createLimit))
	if err != nil {
		refuse(w, http.StatusBadRequest, err)
		return
	}
	c := &request{}
	if err := c.decode(body); err != nil {
		refuse(w, http.StatusBadRequest, fmt.Errorf("read the request for a container: %w", err))
		return
	}
	if err := c.subPaths(); err != nil {
		refuse(w, http.StatusNotFound, err)
		return
	}
	p.tellImage(r.Context(), c)
	if err := p.user(r.Context(), c); err != nil {
		// The driver tries again only after this answer, and so does the kubelet: a
		// tag may come to name another image.
		refuse(w, http.StatusNotFound, err)
		return
	}
	if c.Labels[LabelStdinOnce] != "" {
		c.set("StdinOnce", true)
	}
	if own := c.Labels[LabelOwnMounts]; own != "" {
		c.dropMounts(strings.Split(own, ","))
	}
	if c.changed {
		if body, err = json.Marshal(c.all); err != nil {
			refuse(w, http.StatusInternalServerError, err)
			return
		}
	}
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	p.pass.ServeHTTP(w, r)
}

// request is for a container: what the proxy reads of it, and all of it, so that
// what it does not know stays as it is.
type request struct {
	Image, User string
	Labels      map[string]string
	HostConfig  struct {
		Binds  []string
		Mounts []struct{ Target, Source string }
	}

	all     map[string]json.RawMessage
	changed bool
}

func (c *request) decode(body []byte) error {
	return errors.Join(json.Unmarshal(body, c), json.Unmarshal(body, &c.all))
}

// set changes a part; the values are ours, and can be written.
func (c *request) set(key string, value any) {
	c.all[key], _ = json.Marshal(value)
	c.changed = true
}

// dropMounts takes the driver's mounts at these places away, since the container
// has its own there, which the driver writes as binds.
func (c *request) dropMounts(own []string) {
	host := map[string]json.RawMessage{}
	var mounts []json.RawMessage
	if json.Unmarshal(c.all["HostConfig"], &host) != nil || json.Unmarshal(host["Mounts"], &mounts) != nil {
		return // there are none
	}
	mounts = slices.DeleteFunc(mounts, func(m json.RawMessage) bool {
		var at struct{ Target string }
		return json.Unmarshal(m, &at) == nil && slices.Contains(own, at.Target)
	})
	host["Mounts"], _ = json.Marshal(mounts)
	c.set("HostConfig", host)
}

// refuse answers as the engine does.
func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"message": err.Error()}) // nobody to tell
}

// user checks and completes the user of a container that is to be made.
func (p *Proxy) user(ctx context.Context, c *request) error {
	who, nonRoot := c.Labels[LabelNonRoot]
	group := c.Labels[LabelGroup]
	if c.User != "" || !nonRoot && group == "" {
		return nil
	}
	image, err := p.image(ctx, c.Image)
	if err != nil {
		return err
	}
	user, _, _ := strings.Cut(image.Config.User, ":")
	if nonRoot {
		if err := verifyNonRoot(user, who); err != nil {
			return err
		}
	}
	if group != "" {
		c.set("User", cmp.Or(user, "0")+":"+group)
	}
	return nil
}

// verifyNonRoot is the kubelet's rule and its words
// (pkg/kubelet/kuberuntime/security_context_others.go, verifyRunAsNonRoot).
func verifyNonRoot(user, who string) error {
	uid, err := strconv.ParseInt(user, 10, 64)
	switch {
	case user == "" || err == nil && uid == 0:
		return fmt.Errorf("container has runAsNonRoot and image will run as root (%s)", who)
	case err != nil:
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root (%s)", user, who)
	}
	return nil
}

// image is what the engine knows of an image.
type image struct {
	ID          string `json:"Id"`
	RepoDigests []string
	Config      struct{ User string }
}

// id names the image as the kubelet's status does: by the digest under which it was
// pulled, or else by that of its configuration.
func (i *image) id() string {
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return i.ID
}

func (p *Proxy) image(ctx context.Context, name string) (*image, error) {
	var answer image
	if err := p.ask(ctx, "/images/"+url.PathEscape(name)+"/json", &answer); err != nil {
		return nil, fmt.Errorf("image %s: %w", name, err)
	}
	return &answer, nil
}

// tellImage leaves the ID of the image in the task's directory.
func (p *Proxy) tellImage(ctx context.Context, c *request) {
	place, ok := placeOf(c.HostConfig.Binds)
	if !ok {
		return
	}
	img, err := p.image(ctx, c.Image)
	if err == nil {
		err = os.WriteFile(filepath.Join(place.dir, ImageFile), []byte(img.id()), 0o644)
	}
	if err != nil {
		p.log.Debug("the ID of an image is not told", "image", c.Image, "error", err)
	}
}

// mark adds the [VersionMark] to the engine's version.
func mark(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK || !versionPath.MatchString(resp.Request.URL.Path) {
		return nil
	}
	all := map[string]json.RawMessage{}
	if err := json.NewDecoder(resp.Body).Decode(&all); err != nil {
		return fmt.Errorf("read the engine's version: %w", err)
	}
	_ = resp.Body.Close() // it has been read
	var version string
	if err := json.Unmarshal(all["Version"], &version); err != nil {
		return fmt.Errorf("read the engine's version: %w", err)
	}
	var err error
	if all["Version"], err = json.Marshal(version + VersionMark); err != nil {
		return err
	}
	body, err := json.Marshal(all)
	if err != nil {
		return err
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	resp.Header.Set("Content-Length", strconv.Itoa(len(body)))
	return nil
}
