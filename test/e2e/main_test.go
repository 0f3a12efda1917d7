package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	deploynomad "github.com/nomad-kubelet/nomad-kubelet/deploy/nomad"
	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// The shared hybrid. Tests that break components start hybrids of their own.
var (
	cluster *devcluster.Cluster
	kube    *kubernetes.Clientset
	restCfg *rest.Config
	nomad   *api.Client
)

const (
	sharedPorts = 21000
	// secondNode is another virtual node of the same process.
	secondNode = "nomad-second"
	// drainedNode is one whose pods are evicted.
	drainedNode = "nomad-drained"
)

// ports is where the ports of the hybrids begin, the shared one's first.
// E2E_PORT_BASE moves it, so that two checkouts can be tested at once.
func ports() int {
	if n, err := strconv.Atoi(os.Getenv("E2E_PORT_BASE")); err == nil {
		return n
	}
	return sharedPorts
}

// binDir is the repository's bin/.
func binDir() string {
	dir, err := filepath.Abs("../../bin")
	if err != nil {
		panic(err)
	}
	return dir
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "nke2e")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	opts := options(dir, ports())
	opts.MockRuntime, opts.VMImage = true, true
	opts.ClientHCL = withTap(deploynomad.Client)
	opts.CacheDir = filepath.Join(binDir(), "..", ".dev", "test-cache")
	opts.Out = os.Stdout
	opts.Configure = func(c *config.Config) {
		allowDiary(c)
		c.VirtualNodes[0].HostAccess.HostPorts = true
		allowTap(&c.VirtualNodes[0])
		allowFuture(&c.VirtualNodes[0])
		second := c.VirtualNodes[0]
		second.Name, second.Labels = secondNode, map[string]string{"example.com/second": "yes"}
		second.HostAccess = translate.HostAccess{}
		// Pods ask for it by name; what asks for any virtual node is for the first.
		second.Taints = &[]corev1.Taint{{Key: "example.com/second", Effect: corev1.TaintEffectNoSchedule}}
		drained := second
		drained.Name, drained.Labels = drainedNode, map[string]string{"example.com/drained": "yes"}
		drained.Taints = &[]corev1.Taint{{Key: "example.com/drained", Effect: corev1.TaintEffectNoSchedule}}
		c.VirtualNodes = append(c.VirtualNodes, second, drained)
	}
	if err := devcluster.Prerequisites(ctx, opts, true, os.Stdout); err != nil {
		return fail(err)
	}
	start := time.Now()
	cluster, err = devcluster.Up(ctx, opts)
	if err != nil {
		if cluster != nil {
			_ = cluster.Down(ctx) // the first error is the one to tell
		}
		return fail(err)
	}
	fmt.Printf("the shared hybrid is up after %.1f s\n", time.Since(start).Seconds())
	defer func() {
		if err := cluster.Down(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "stopping the hybrid:", err)
		}
	}()
	if restCfg, kube, nomad, err = clients(cluster); err != nil {
		return fail(err)
	}
	code := m.Run()
	if code != 0 {
		saveLogs(cluster)
	}
	return code
}

// allowDiary lets pods write where the tests read.
func allowDiary(c *config.Config) {
	c.VirtualNodes[0].HostAccess.HostPaths = []string{"/tmp/nke2e-allowed"}
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// options are what every hybrid of the tests has in common.
func options(dir string, ports int) devcluster.Options {
	return devcluster.Options{
		Dir: dir, BinDir: binDir(), PortBase: ports, OwnDocker: true,
	}
}

func clients(c *devcluster.Cluster) (*rest.Config, *kubernetes.Clientset, *api.Client, error) {
	cfg, err := c.RESTConfig()
	if err != nil {
		return nil, nil, nil, err
	}
	cfg.QPS, cfg.Burst = 500, 1000
	k, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, nil, err
	}
	n, err := c.NomadClient()
	return cfg, k, n, err
}

// saveLogs keeps the components' logs of a failed run under .dev/e2e-logs.
func saveLogs(c *devcluster.Cluster) {
	to := filepath.Join(binDir(), "..", ".dev", "e2e-logs", c.ClusterID())
	_ = os.RemoveAll(to) // an older run's
	if err := os.CopyFS(to, os.DirFS(filepath.Join(c.Dir(), "logs"))); err != nil {
		fmt.Fprintln(os.Stderr, "keep the logs:", err)
		return
	}
	fmt.Fprintln(os.Stderr, "the components' logs are in .dev/e2e-logs/"+c.ClusterID())
}

// jobID is the ID of a pod's job.
func jobID(c *devcluster.Cluster, p *corev1.Pod) string {
	return translate.JobID(c.ClusterID(), p.UID)
}
