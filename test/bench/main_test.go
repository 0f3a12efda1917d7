package bench

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/nomad/api"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/internal/figures"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

var (
	strict     = flag.Bool("strict", false, "fail when a goal is missed")
	pairs      = flag.Int("pairs", 20, "how many single pods and direct jobs to time")
	manyCount  = flag.Int("pods", 300, "how many pods to create at once")
	rounds     = flag.Int("rounds", 2, "how often to create that many, by pods and directly")
	atOnce     = flag.Int("at-once", 32, "how many requests to have in flight")
	withLogs   = flag.Bool("logs", false, "collect logs of the mock tasks, on both sides")
	memoryPods = flag.Int("memory-pods", 1000, "with how many pods to measure memory")
	liveRounds = flag.Int("live-rounds", 5, "how often to change an object and see it arrive in volumes")
	window     = flag.Duration("probe-window", 20*time.Second, "how long to watch probes arrive")
	crashers   = flag.Int("crash-pods", 20, "how many pods to let crash")
	gatePods   = flag.Int("gate-pods", 1000, "with how many jobs to measure what gates cost Nomad")
	settle     = flag.Duration("settle", 20*time.Second, "how long to let nomad-kubelet rest before its memory is read")
	program    = flag.String("program", "", "nomad-kubelet to measure, an absolute path; bin/nomad-kubelet unless given")
	portBase   = flag.Int("port-base", 23000, "the first of the hybrid's 20 ports")
	output     = flag.String("figures", "../../.dev/bench.json", "where to write the figures")
)

const (
	image = "busybox:1.36"

	mockClass = "nomad-mock"
	// execClass is a mock whose tasks also pretend to run commands.
	execClass = "nomad-mock-exec"
	// directNamespace is Nomad's, for direct jobs: nomad-kubelet, which follows
	// the events of its own namespace, then does no work for them.
	directNamespace = "bench-direct"
	directCluster   = "direct"
)

// hybrid is the one under measurement.
type hybrid struct {
	*devcluster.Cluster
	kube    *kubernetes.Clientset
	nomad   *api.Client
	proxy   *proxy
	profile translate.NodeProfile
	pods    *podWatch
	direct  *jobWatch
	// marksDir is where containers may leave marks; see [hybrid.marks].
	marksDir string
}

var (
	hy     *hybrid
	report *figures.Report
)

func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" {
		os.Exit(m.Run())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background())
	code := 1
	// The API server waits for its watchers when it is asked to stop.
	defer func() { cancel(); stop(code == 0) }()
	if err := start(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return code
	}
	report = figures.New(*strict)
	code = m.Run()
	if err := report.Write(*output); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	return code
}

// start brings the hybrid up and the views of it that everything is timed by.
func start(ctx context.Context) error {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nkbench")
	if err != nil {
		return err
	}
	hy = &hybrid{}
	if hy.proxy, err = startProxy(*portBase+19, fmt.Sprintf("http://127.0.0.1:%d", *portBase+6)); err != nil {
		return err
	}
	hy.marksDir = filepath.Join(dir, "marks")
	if err := os.Mkdir(hy.marksDir, 0o755); err != nil {
		return err
	}
	var node config.VirtualNode
	hy.Cluster, err = devcluster.Up(ctx, devcluster.Options{
		Dir: dir, BinDir: bin, PortBase: *portBase, OwnDocker: true, MockRuntime: true, VMImage: true,
		CacheDir: filepath.Join(bin, "..", ".dev", "bench-cache"),
		// Its profiles tell how many queries wait in Nomad.
		ExtraNomadHCL: "enable_debug = true\n",
		Out:           os.Stdout, NomadKubelet: *program,
		Configure: func(c *config.Config) {
			c.Nomad.Address = hy.proxy.address
			vn := &c.VirtualNodes[0]
			vn.PodsPerClient = 2000
			mock := vn.Runtimes[mockClass]
			mock.NoLogs = !*withLogs
			vn.Runtimes[mockClass] = mock
			vn.Runtimes[execClass] = execRuntime(mock)
			vn.HostAccess.HostPaths = []string{hy.marksDir}
			c.Complete()
			node = *vn
		},
	})
	if err != nil {
		return err
	}
	return hy.connect(ctx, node)
}

func (h *hybrid) connect(ctx context.Context, node config.VirtualNode) error {
	cfg, err := h.RESTConfig()
	if err != nil {
		return err
	}
	cfg.QPS, cfg.Burst = 2000, 4000
	cfg.ContentType = "application/vnd.kubernetes.protobuf"
	if h.kube, err = kubernetes.NewForConfig(cfg); err != nil {
		return err
	}
	if h.nomad, err = h.NomadClient(); err != nil {
		return err
	}
	if _, err := h.nomad.Namespaces().Register(&api.Namespace{Name: directNamespace}, nil); err != nil {
		return err
	}
	// What nomad-kubelet finds out by itself; sameShape proves it right.
	h.profile = config.Profile(node)
	h.profile.MemoryOversubscription = true
	if h.profile.Region, err = h.nomad.Agent().Region(); err != nil {
		return err
	}
	h.pods = newPodWatch()
	factory := informers.NewSharedInformerFactory(h.kube, 0)
	if err := h.pods.follow(ctx, factory.Core().V1().Pods().Informer()); err != nil {
		return err
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	h.direct = newJobWatch()
	h.direct.follow(ctx, h.nomad, directNamespace)
	return nil
}

// stop clears everything away; the logs of a failed run go to .dev/bench-logs.
func stop(ok bool) {
	if hy == nil || hy.Cluster == nil {
		return
	}
	if !ok {
		const to = "../../.dev/bench-logs"
		_ = os.RemoveAll(to) // an older run's
		if err := os.CopyFS(to, os.DirFS(filepath.Join(hy.Dir(), "logs"))); err != nil {
			fmt.Fprintln(os.Stderr, "keep the logs:", err)
		}
	}
	if err := hy.Down(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "stop the hybrid:", err)
		return
	}
	_ = os.RemoveAll(hy.Dir()) // logs only
}
