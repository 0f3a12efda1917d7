package kubelet

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/nomad/api"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	statsapi "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/config"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/taskexec"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

const (
	// streamIdle and streamCreation are the kubelet's
	// (pkg/kubelet/apis/config/v1beta1/defaults.go; cri/streaming).
	streamIdle     = 4 * time.Hour
	streamCreation = 30 * time.Second

	readHeaderTimeout = 10 * time.Second
	keepAliveIdle     = 90 * time.Second
	maxHeaderBytes    = 64 << 10
	shutdownTimeout   = 2 * time.Second
)

// Pods finds the pods of this virtual node.
type Pods interface {
	// Find returns a pod and its Nomad allocation as Nomad last told it, which is
	// nil while the pod is not placed; the error says that there is no such pod
	// here.
	Find(namespace, name string) (pod *corev1.Pod, alloc *api.Allocation, err error)
}

// Stats tells what the node and its pods use.
type Stats interface {
	// Summary leaves out all but CPU and memory if it is asked to.
	Summary(ctx context.Context, onlyCPUAndMemory bool) (*statsapi.Summary, error)
}

// Metrics are those of the kubelet's paths below /metrics.
type Metrics struct {
	Resource, CAdvisor, Probes prometheus.Gatherer
}

// Options are what a Server is made from.
type Options struct {
	// Node is the virtual node's name.
	Node   string
	Config config.Kubelet
	// NodeIP and Port are published on the Node; the port is also the one
	// listened on, at Config.Address.
	NodeIP string
	Port   int
	// Kube answers TokenReviews and SubjectAccessReviews.
	Kube  kubernetes.Interface
	Nomad *api.Client
	// Exec runs commands in tasks.
	Exec *taskexec.Runner
	// Namespace is the Nomad namespace of the node's jobs.
	Namespace string
	Pods      Pods
	// List returns all pods of the node; /pods is not served without it.
	List func() []*corev1.Pod
	// PodNetwork is set when a pod's address is nobody else's, from wherever it is
	// reached: port-forward then dials it.
	PodNetwork bool
	// Stats and Metrics are what the node's pods use; without them the paths are
	// not served.
	Stats   Stats
	Metrics Metrics
	// Runtimes is the driver table, by RuntimeClass name.
	Runtimes map[string]translate.Runtime
	Log      hclog.Logger
}

// Server is the kubelet API of one virtual node.
type Server struct {
	o    Options
	auth *auth
	cert func(*tls.ClientHelloInfo) (*tls.Certificate, error)
}

// New checks the options, loads the certificates and sets up authentication;
// it fails rather than make a server that lets anybody in.
func New(o Options) (*Server, error) {
	if o.Pods == nil || o.Nomad == nil || o.Exec == nil {
		return nil, errors.New("kubelet API: pods, Nomad and exec are needed")
	}
	a, err := newAuth(o.Kube, o.Node, o.Config.ClientCAFile, o.Log)
	if err != nil {
		return nil, fmt.Errorf("kubelet API of node %q: %w", o.Node, err)
	}
	cert, err := servingCertificate(o.Config, o.Node, o.NodeIP)
	if err != nil {
		return nil, fmt.Errorf("kubelet API of node %q: %w", o.Node, err)
	}
	return &Server{o: o, auth: a, cert: cert}, nil
}

// Run listens and serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	addr := net.JoinHostPort(s.o.Config.Address, strconv.Itoa(s.o.Port))
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("kubelet API of node %q: listen on %s: %w", s.o.Node, addr, err)
	}
	return s.Serve(ctx, ln)
}

// Serve serves on ln until ctx ends, and closes it.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	// Streams outlive a deadline for writes or reads; only the headers have
	// one.
	srv := &http.Server{
		Handler:           s.auth.wrap(s.routes()),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       keepAliveIdle,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          s.o.Log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: s.cert,
			// The authenticator verifies it: a token will do as well.
			ClientAuth: tls.RequestClientCert,
		},
	}
	if s.o.Config.ServerTLSBootstrap {
		b, err := newBootstrap(ctx, s.o.Kube, s.o.Config, s.o.Node, s.o.NodeIP, s.cert)
		if err != nil {
			return fmt.Errorf("kubelet API of node %q: %w", s.o.Node, err)
		}
		srv.TLSConfig.GetCertificate = b.get
		b.manager.Start()
		defer b.manager.Stop()
	}
	s.auth.start(ctx)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			_ = srv.Close()
		}
	}()
	s.o.Log.Info("the kubelet API listens", "node", s.o.Node, "address", ln.Addr().String())
	err := srv.ServeTLS(ln, "", "")
	if ctx.Err() != nil {
		<-stopped
		return nil
	}
	return fmt.Errorf("kubelet API of node %q: serve: %w", s.o.Node, err)
}
