package devcluster

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// engine is the little of Docker's API that is needed here, so that the docker
// command is not.
type engine struct {
	http *http.Client
	base string
}

const systemDocker = "unix:///var/run/docker.sock"

func newEngine(host string) *engine {
	if path, ok := strings.CutPrefix(host, "unix://"); ok {
		return &engine{base: "http://docker", http: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", path)
			},
		}}}
	}
	return &engine{base: strings.Replace(host, "tcp://", "http://", 1), http: &http.Client{}}
}

func (c *Cluster) engine() *engine { return newEngine(c.dockerHost) }

func (e *engine) do(ctx context.Context, method, path string, body io.Reader, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, e.base+path, body)
	if err != nil {
		return err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("docker: %s", strings.TrimSpace(string(data)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(data, out)
}

func (e *engine) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	return e.do(ctx, http.MethodGet, "/_ping", nil, nil)
}

func (e *engine) hasImage(ctx context.Context, name string) bool {
	return e.do(ctx, http.MethodGet, "/images/"+name+"/json", nil, nil) == nil
}

// pull fetches an image; its progress, read to the end, carries the error.
func (e *engine) pull(ctx context.Context, name string) error {
	repo, tag := splitImage(name)
	q := url.Values{"fromImage": {repo}, "tag": {tag}}
	return e.create(ctx, q, nil)
}

// importImage makes an image of a tar archive; change are Dockerfile lines.
func (e *engine) importImage(ctx context.Context, name string, tar io.Reader, changes ...string) error {
	repo, tag := splitImage(name)
	q := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}, "changes": changes}
	return e.create(ctx, q, tar)
}

func (e *engine) create(ctx context.Context, q url.Values, body io.Reader) error {
	return e.makeImages(ctx, "/images/create?"+q.Encode(), body)
}

// load takes over the images of an archive, as `docker save` makes them.
func (e *engine) load(ctx context.Context, tar io.Reader) error {
	return e.makeImages(ctx, "/images/load?quiet=1", tar)
}

// makeImages reads the progress to its end, since it carries the error.
func (e *engine) makeImages(ctx context.Context, path string, body io.Reader) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.base+path, body)
	if err != nil {
		return err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := json.NewDecoder(resp.Body)
	for {
		var line struct{ Error, Message string }
		if err := lines.Decode(&line); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		if line.Error != "" || resp.StatusCode >= 300 {
			return fmt.Errorf("docker: %s%s", line.Error, line.Message)
		}
	}
	return nil
}

// saveImages writes images as `docker save` does.
func (e *engine) saveImages(ctx context.Context, w io.Writer, names ...string) error {
	q := url.Values{"names": names}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.base+"/images/get?"+q.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("docker: save images %s: %s", strings.Join(names, ", "), resp.Status)
	}
	_, err = io.Copy(w, resp.Body)
	return err
}

func splitImage(name string) (repo, tag string) {
	i := strings.LastIndexByte(name, ':')
	if i < 0 || strings.Contains(name[i:], "/") {
		return name, "latest"
	}
	return name[:i], name[i+1:]
}

// container is what Docker's listing says of one.
type container struct {
	ID     string `json:"Id"`
	Names  []string
	Mounts []struct{ Source string }
	Labels map[string]string
}

func (e *engine) containers(ctx context.Context) ([]container, error) {
	var out []container
	return out, e.do(ctx, http.MethodGet, "/containers/json?all=1", nil, &out)
}

func (e *engine) remove(ctx context.Context, id string) error {
	return e.do(ctx, http.MethodDelete, "/containers/"+id+"?force=1&v=1", nil, nil)
}

func (c *Cluster) ownDockerHost() string {
	return "unix://" + filepath.Join(c.opts.shortDir(), "run", "docker.sock")
}

func (c *Cluster) ownDocker() bool { return c.dockerHost == c.ownDockerHost() }

// startDocker uses the engine that answers, or starts one.
func (c *Cluster) startDocker(ctx context.Context) error {
	if c.dockerHost == "" && !c.opts.OwnDocker {
		for _, host := range []string{os.Getenv("DOCKER_HOST"), systemDocker} {
			if host != "" && newEngine(host).ping(ctx) == nil {
				c.dockerHost = host
				break
			}
		}
	}
	if c.dockerHost == "" {
		c.dockerHost = c.ownDockerHost()
	}
	if err := c.save(); err != nil {
		return err
	}
	if c.ownDocker() {
		if err := os.MkdirAll(filepath.Join(c.opts.shortDir(), "run"), 0o755); err != nil {
			return err
		}
		if err := c.Start(ctx, Docker); err != nil {
			return err
		}
		if !exists(filepath.Join(c.nomadDir(), "client")) {
			// The cache may remember containers of a cluster that was killed.
			return c.removeContainers(ctx)
		}
		return nil
	}
	return c.step("docker", func() (string, error) { return "already at " + c.dockerHost, c.engine().ping(ctx) })
}

// dockerProxyHost is where the proxy listens that stands before the engine; see
// package dockerproxy.
func (c *Cluster) dockerProxyHost() string {
	return "unix://" + filepath.Join(c.opts.shortDir(), "run", "docker-proxy.sock")
}

// proxied says whether Nomad talks to the engine by the proxy: where there is an
// engine, on a socket, and the program.
func (c *Cluster) proxied() bool {
	_, err := c.find(companionProgram)
	return err == nil && c.ownNomad() && strings.HasPrefix(c.dockerHost, "unix://")
}

func (c *Cluster) dockerProxyCommand() (command, error) {
	path, err := c.find(companionProgram)
	if err != nil {
		return command{}, err
	}
	socket := func(host string) string { return strings.TrimPrefix(host, "unix://") }
	listen := socket(c.dockerProxyHost())
	return command{path: path, args: []string{"docker-proxy", listen, socket(c.dockerHost)}}, os.MkdirAll(filepath.Dir(listen), 0o755)
}

func (c *Cluster) dockerdCommand() (command, error) {
	path, err := c.find("dockerd")
	if err != nil {
		return command{}, fmt.Errorf("no Docker engine answers and dockerd is not installed (package docker.io)")
	}
	run := filepath.Join(c.opts.shortDir(), "run")
	return command{path: path, args: []string{
		"--host=" + c.ownDockerHost(), "--data-root=" + filepath.Join(c.opts.CacheDir, "docker"),
		"--exec-root=" + filepath.Join(run, "docker"), "--pidfile=" + filepath.Join(run, "docker.pid"),
		// Nomad makes the pods' networks; Docker's own would only leave a bridge
		// and firewall rules behind.
		"--bridge=none", "--iptables=false", "--ip6tables=false",
		// An empty file: what the machine configures for its own engine is not ours.
		"--config-file=" + filepath.Join(c.opts.Dir, "run", "docker.json"),
	}}, os.WriteFile(filepath.Join(c.opts.Dir, "run", "docker.json"), []byte("{}\n"), 0o644)
}
