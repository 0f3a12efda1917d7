package controller

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/netbridge/agent"
	"github.com/nomad-kubelet/nomad-kubelet/netbridge/controller/hold"
)

// Config is the file given to netbridge controller --config.
type Config struct {
	// Fabric is the pod network's name, as the agents have it.
	Fabric     string           `json:"fabric,omitempty"`
	Consul     agent.Consul     `json:"consul,omitempty"`
	Nomad      agent.Nomad      `json:"nomad,omitempty"`
	Kubernetes agent.Kubernetes `json:"kubernetes,omitempty"`
	// LeaderElection is by a Lease.
	LeaderElection LeaderElection `json:"leaderElection,omitempty"`
	Collect        Collect        `json:"collect,omitempty"`
	Export         Export         `json:"export,omitempty"`
	Import         Import         `json:"import,omitempty"`
	// Hold is how long what is missing in numbers, or after a doubt, is kept.
	Hold metav1.Duration `json:"hold,omitempty"`
	// Address serves /metrics, /healthz and /readyz.
	Address   string `json:"address,omitempty"`
	LogLevel  string `json:"logLevel,omitempty"`
	LogFormat string `json:"logFormat,omitempty"`
}

// LeaderElection names the Lease.
type LeaderElection struct {
	Namespace     string          `json:"namespace,omitempty"`
	Name          string          `json:"name,omitempty"`
	LeaseDuration metav1.Duration `json:"leaseDuration,omitempty"`
}

// Collect is about nodes that are gone.
type Collect struct {
	Disabled bool `json:"disabled,omitempty"`
	// After is how long an agent has been silent.
	After metav1.Duration `json:"after,omitempty"`
	// Interval is how often records are looked at.
	Interval metav1.Duration `json:"interval,omitempty"`
}

// Export is about the cluster's Services in Consul.
type Export struct {
	Disabled bool `json:"disabled,omitempty"`
	// Node is the one of Consul's catalog that instances are on; empty: k8s- and the
	// fabric.
	Node string `json:"node,omitempty"`
}

// Import is about Consul's services in the cluster.
type Import struct {
	Disabled bool `json:"disabled,omitempty"`
}

// Load reads, completes and checks a file. Its errors name the key.
func Load(file string) (*Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c := &Config{}
	err = agent.DecodeStrict(data, c)
	if err == nil {
		c.Complete()
		err = c.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	return c, nil
}

// Complete fills in what was left empty.
func (c *Config) Complete() {
	def(&c.Fabric, "default")
	def(&c.LeaderElection.Namespace, metav1.NamespaceSystem)
	def(&c.LeaderElection.Name, "netbridge-controller")
	def(&c.LeaderElection.LeaseDuration.Duration, 15*time.Second)
	def(&c.Collect.After.Duration, 24*time.Hour)
	def(&c.Collect.Interval.Duration, time.Minute)
	def(&c.Export.Node, "k8s-"+c.Fabric)
	def(&c.Hold.Duration, hold.Default)
	def(&c.Address, ":9478")
	def(&c.LogLevel, "info")
	def(&c.LogFormat, "text")
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Validate names the key of what is wrong.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if strings.ContainsAny(c.Fabric, "/ ") {
		bad("fabric: %q must have no slash and no space", c.Fabric)
	}
	// The least that client-go's shares of it leave room for, in whole seconds.
	if d := c.LeaderElection.LeaseDuration.Duration; d < 4*time.Second {
		bad("leaderElection.leaseDuration: %s is not at least 4s", d)
	}
	for key, d := range map[string]metav1.Duration{"collect.after": c.Collect.After, "collect.interval": c.Collect.Interval, "hold": c.Hold} {
		if d.Duration < 0 {
			bad("%s: %s is less than nothing", key, d.Duration)
		}
	}
	if _, _, err := net.SplitHostPort(c.Address); err != nil {
		bad("address: %v", err)
	}
	return errors.Join(errs...)
}
