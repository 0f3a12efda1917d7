package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// Config is the file given to nomad-kubelet run --config.
type Config struct {
	// Cluster is the short stable ID of the Kubernetes cluster, part of every
	// job's ID, [a-z0-9]{1,20}. Empty: the first 8 characters of the UID of the
	// kube-system namespace.
	Cluster string `json:"cluster,omitempty"`
	// Kubeconfig is a path; empty: $KUBECONFIG, then the in-cluster account.
	Kubeconfig string `json:"kubeconfig,omitempty"`
	Nomad      Nomad  `json:"nomad,omitempty"`
	// LeaderElection lets several processes share one configuration; one acts.
	LeaderElection LeaderElection `json:"leaderElection,omitempty"`
	Kubelet        Kubelet        `json:"kubelet,omitempty"`
	// VirtualNodes are the nodes this process registers, at least one.
	VirtualNodes []VirtualNode `json:"virtualNodes"`
	// LogLevel is one of trace, debug, info, warn, error.
	LogLevel string `json:"logLevel,omitempty"`
	// LogFormat is text or json.
	LogFormat string  `json:"logFormat,omitempty"`
	Volumes   Volumes `json:"volumes,omitempty"`
	// OrphanGuard is how long jobs whose pods are gone, without the deletion
	// having been seen, are left alone when they are many at once: the sign of
	// an empty or restored API server.
	OrphanGuard metav1.Duration `json:"orphanGuard,omitempty"`
}

// Nomad says how to reach Nomad; what is empty is taken from Nomad's own
// environment variables (NOMAD_ADDR, NOMAD_TOKEN, NOMAD_REGION, NOMAD_CACERT, ...).
type Nomad struct {
	Address string `json:"address,omitempty"`
	Region  string `json:"region,omitempty"`
	// TokenFile holds the ACL token; the token itself is never put into the
	// configuration.
	TokenFile     string `json:"tokenFile,omitempty"`
	CAFile        string `json:"caFile,omitempty"`
	CertFile      string `json:"certFile,omitempty"`
	KeyFile       string `json:"keyFile,omitempty"`
	TLSServerName string `json:"tlsServerName,omitempty"`
}

// LeaderElection names the Lease that the acting process holds.
type LeaderElection struct {
	// Disabled is for a process that is known to be the only one.
	Disabled  bool   `json:"disabled,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Name      string `json:"name,omitempty"`
	// LeaseDuration is how long a silent leader is waited for.
	LeaseDuration metav1.Duration `json:"leaseDuration,omitempty"`
}

// Volumes is about PersistentVolumes.
type Volumes struct {
	// NoProvisioning leaves claims of StorageClasses with provisioner
	// host-volume.nomad-kubelet.io to others; volumes that are there can be used all
	// the same.
	NoProvisioning bool `json:"noProvisioning,omitempty"`
}

// Kubelet is the HTTPS API that the API server calls for logs and exec.
type Kubelet struct {
	// Address is what to listen on.
	Address string `json:"address,omitempty"`
	// NodeIP is the address the Nodes publish; empty: the first global unicast
	// address of this machine.
	NodeIP string `json:"nodeIP,omitempty"`
	// Port is the first virtual node's; the following ones count up from it.
	Port int `json:"port,omitempty"`
	// TLSCertFile and TLSKeyFile are the serving certificate; empty: a
	// self-signed one made at start, as the kubelet's default.
	TLSCertFile string `json:"tlsCertFile,omitempty"`
	TLSKeyFile  string `json:"tlsKeyFile,omitempty"`
	// ServerTLSBootstrap asks the API server for the serving certificates by
	// CertificateSigningRequests (kubernetes.io/kubelet-serving), as the kubelet's
	// setting of that name does. Somebody approves them; until then the self-signed
	// ones serve.
	ServerTLSBootstrap bool `json:"serverTLSBootstrap,omitempty"`
	// CertDir keeps them; empty: each process asks for its own.
	CertDir string `json:"certDir,omitempty"`
	// ClientCAFile verifies client certificates, such as the API server's; empty:
	// the CA that the API server publishes (kube-system/extension-apiserver-authentication).
	ClientCAFile string `json:"clientCAFile,omitempty"`
}

// VirtualNode is one Node, backed by one Nomad node pool (or some of its
// datacenters) in one region and one Nomad namespace.
type VirtualNode struct {
	Name        string   `json:"name"`
	NodePool    string   `json:"nodePool,omitempty"`
	Datacenters []string `json:"datacenters,omitempty"`
	Namespace   string   `json:"namespace,omitempty"`
	// Network is bridge, host, or cni/NAME; cni/netbridge is the pod network of
	// docs/networking.md.
	Network translate.NetworkMode `json:"network,omitempty"`
	Labels  map[string]string     `json:"labels,omitempty"`
	// Taints replaces the default taint nomad-kubelet.io/provider=nomad:NoSchedule;
	// an empty list leaves the node untainted.
	Taints *[]corev1.Taint `json:"taints,omitempty"`
	// PodsPerClient times the number of clients is the Node's capacity of pods.
	PodsPerClient int `json:"podsPerClient,omitempty"`
	// UnreachableAfter is how long Nomad may be away before the Node turns
	// NotReady.
	UnreachableAfter metav1.Duration `json:"unreachableAfter,omitempty"`
	// MemoryOversubscription says whether Nomad's scheduler honours memory_max;
	// empty: asked of Nomad, and taken as false where the token may not ask.
	MemoryOversubscription *bool `json:"memoryOversubscription,omitempty"`
	// DefaultMemory is reserved for containers that name neither request nor
	// limit, in MiB.
	DefaultMemoryMB int                  `json:"defaultMemoryMB,omitempty"`
	ClusterDNS      []string             `json:"clusterDNS,omitempty"`
	ClusterDomain   string               `json:"clusterDomain,omitempty"`
	HostAccess      translate.HostAccess `json:"hostAccess,omitempty"`
	// CompanionImage is the image of cmd/companion, which pods have beside them
	// whose volumes, network probes, httpGet hooks or VM ask for it. Empty: they
	// run without, and a note tells what is left out.
	CompanionImage string `json:"companionImage,omitempty"`
	// Runtimes is the driver table by RuntimeClass name; rows given here are
	// added to the built-in ones ("" is docker, "nomad-vm" is qemu) or replace
	// them.
	Runtimes map[string]translate.Runtime `json:"runtimes,omitempty"`
}

// Defaults.
const (
	DefaultVirtualNode      = "nomad"
	DefaultNodePool         = "default"
	DefaultNamespace        = "default"
	DefaultKubeletPort      = 10250
	DefaultPodsPerClient    = 250
	DefaultUnreachableAfter = 40 * time.Second
	DefaultOrphanGuard      = 10 * time.Minute
	DefaultLeaseDuration    = 6 * time.Second
	DefaultMemoryMB         = 128
)

// minLease leaves the election's retries, an eighth of it, a time that an API
// server can keep up with.
const minLease = time.Second

// rowMachineType is the qemu driver's key for a machine type, and machineType one that
// VMs' arguments fit: a PC with PCI, by the names of qemu's versions
// (hw/i386/pc_piix.c, pc_q35.c).
const rowMachineType = "machine_type"

var machineType = regexp.MustCompile(`^(pc|q35|pc-(i440fx|q35)-[0-9]+\.[0-9]+)$`)

var clusterID = regexp.MustCompile(`^[a-z0-9]{1,20}$`)

// Load reads, completes and checks a file. Its errors name the key.
func Load(file string) (*Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	c := &Config{}
	if err := decode(data, c); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	c.Complete()
	if err := c.Validate(); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", file, err)
	}
	return c, nil
}

// decode is strict as Kubernetes' own files are: keys are case-sensitive, and
// an unknown one is an error.
func decode(data []byte, c *Config) error {
	raw, err := yaml.YAMLToJSONStrict(data)
	if err != nil {
		return err
	}
	strict, err := json.UnmarshalStrict(raw, c)
	return errors.Join(append(strict, err)...)
}

// Complete fills in what was left empty.
func (c *Config) Complete() {
	def(&c.LogLevel, "info")
	def(&c.LogFormat, "text")
	def(&c.OrphanGuard.Duration, DefaultOrphanGuard)
	def(&c.LeaderElection.Namespace, "kube-system")
	def(&c.LeaderElection.Name, "nomad-kubelet")
	def(&c.LeaderElection.LeaseDuration.Duration, DefaultLeaseDuration)
	def(&c.Kubelet.Port, DefaultKubeletPort)
	if len(c.VirtualNodes) == 0 {
		c.VirtualNodes = []VirtualNode{{Name: DefaultVirtualNode}}
	}
	for i := range c.VirtualNodes {
		c.VirtualNodes[i].complete()
	}
}

func (n *VirtualNode) complete() {
	def(&n.NodePool, DefaultNodePool)
	def(&n.Namespace, DefaultNamespace)
	def(&n.Network, translate.NetworkBridge)
	def(&n.PodsPerClient, DefaultPodsPerClient)
	def(&n.UnreachableAfter.Duration, DefaultUnreachableAfter)
	def(&n.DefaultMemoryMB, DefaultMemoryMB)
	def(&n.ClusterDomain, "cluster.local")
	if n.Taints == nil {
		n.Taints = &[]corev1.Taint{{Key: translate.Domain + "/provider", Value: "nomad", Effect: corev1.TaintEffectNoSchedule}}
	}
	rows := map[string]translate.Runtime{
		"":         {Driver: "docker"},
		"nomad-vm": {Driver: "qemu"},
	}
	for name, row := range n.Runtimes {
		rows[name] = row
	}
	n.Runtimes = rows
}

func def[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Validate tells all that is wrong at once.
func (c *Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Cluster != "" && !clusterID.MatchString(c.Cluster) {
		bad("cluster: %q must be 1 to 20 characters of a-z and 0-9", c.Cluster)
	}
	switch c.LogLevel {
	case "trace", "debug", "info", "warn", "error":
	default:
		bad("logLevel: %q is none of trace, debug, info, warn, error", c.LogLevel)
	}
	if c.LogFormat != "text" && c.LogFormat != "json" {
		bad("logFormat: %q is neither text nor json", c.LogFormat)
	}
	if c.Kubelet.ServerTLSBootstrap && c.Kubelet.TLSCertFile != "" {
		bad("kubelet.serverTLSBootstrap: there are tlsCertFile and tlsKeyFile, too: leave out one or the other")
	}
	if (c.Kubelet.TLSCertFile == "") != (c.Kubelet.TLSKeyFile == "") {
		bad("kubelet: tlsCertFile and tlsKeyFile go together")
	}
	if last := c.Kubelet.Port + len(c.VirtualNodes) - 1; c.Kubelet.Port < 1 || last > 65535 {
		bad("kubelet.port: %d to %d, one per virtual node, must lie in 1 to 65535", c.Kubelet.Port, last)
	}
	if c.OrphanGuard.Duration < 0 {
		bad("orphanGuard: %s is negative", c.OrphanGuard.Duration)
	}
	if c.LeaderElection.LeaseDuration.Duration < minLease {
		bad("leaderElection.leaseDuration: %s is less than %s", c.LeaderElection.LeaseDuration.Duration, minLease)
	}
	seen := map[string]bool{}
	for i, n := range c.VirtualNodes {
		at := fmt.Sprintf("virtualNodes[%d]", i)
		if msgs := validation.IsDNS1123Subdomain(n.Name); len(msgs) > 0 {
			bad("%s.name: %q: %s", at, n.Name, msgs[0])
		}
		if seen[n.Name] {
			bad("%s.name: %q is used twice", at, n.Name)
		}
		seen[n.Name] = true
		if name, cni := n.Network.CNI(); name == "" && cni || !cni && n.Network != translate.NetworkBridge && n.Network != translate.NetworkHost {
			bad("%s.network: %q is none of bridge, host, and cni/ with the name of a network", at, n.Network)
		}
		n.validateNumbers(at, bad)
		n.validateTaints(at, bad)
		for _, dir := range slices.Concat(n.HostAccess.HostPaths, n.HostAccess.ImagePaths) {
			if !path.IsAbs(dir) {
				bad("%s.hostAccess: %q is not an absolute path", at, dir)
			}
		}
		if dir := n.HostAccess.HugePages; dir != "" && !path.IsAbs(dir) {
			bad("%s.hostAccess.hugePages: %q is not an absolute path", at, dir)
		}
		for _, a := range n.HostAccess.PCIDevices {
			if !translate.ValidPCIAddress(a) {
				bad("%s.hostAccess.pciDevices: %q is not a device's address in lower case, such as 0000:3b:00.0", at, a)
			}
		}
		if dir := n.HostAccess.ImageCache; dir != "" && (!path.IsAbs(dir) || path.Clean(dir) == "/" || strings.ContainsAny(dir, ":,$%")) {
			bad("%s.hostAccess.imageCache: %q is not an absolute path without ':', ',', '$' and '%%'", at, dir)
		}
		for class, r := range n.Runtimes {
			if r.Driver == "" {
				bad("%s.runtimes[%q].driver: is missing", at, class)
			}
			if v, given := r.Config[translate.RowNetwork]; given && r.Driver == "qemu" && v != translate.VMNetworkUser && v != translate.VMNetworkTap {
				bad("%s.runtimes[%q].config.network: %q is neither user nor tap", at, class, v)
			}
			if v, given := r.Config[rowMachineType]; given && r.Driver == "qemu" && !machineType.MatchString(fmt.Sprint(v)) {
				bad("%s.runtimes[%q].config.machine_type: \"%v\" is neither pc, q35 nor one of their versions, such as pc-q35-7.2", at, class, v)
			}
		}
		for k, v := range n.Labels {
			if msgs := validation.IsQualifiedName(k); len(msgs) > 0 {
				bad("%s.labels: key %q: %s", at, k, msgs[0])
			}
			if msgs := validation.IsValidLabelValue(v); len(msgs) > 0 {
				bad("%s.labels[%s]: %q: %s", at, k, v, msgs[0])
			}
		}
	}
	return errors.Join(errs...)
}

func (n *VirtualNode) validateNumbers(at string, bad func(string, ...any)) {
	if n.PodsPerClient < 0 {
		bad("%s.podsPerClient: %d is negative", at, n.PodsPerClient)
	}
	if n.DefaultMemoryMB < 0 {
		bad("%s.defaultMemoryMB: %d is negative", at, n.DefaultMemoryMB)
	}
	if n.UnreachableAfter.Duration < 0 {
		bad("%s.unreachableAfter: %s is negative", at, n.UnreachableAfter.Duration)
	}
	for _, ip := range n.ClusterDNS {
		if _, err := netip.ParseAddr(ip); err != nil {
			bad("%s.clusterDNS: %q is not an IP address", at, ip)
		}
	}
}

func (n *VirtualNode) validateTaints(at string, bad func(string, ...any)) {
	if n.Taints == nil {
		return
	}
	for _, t := range *n.Taints {
		if msgs := validation.IsQualifiedName(t.Key); len(msgs) > 0 {
			bad("%s.taints: key %q: %s", at, t.Key, msgs[0])
		}
		switch t.Effect {
		case corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule, corev1.TaintEffectNoExecute:
		default:
			bad("%s.taints[%s].effect: %q is none of NoSchedule, PreferNoSchedule, NoExecute", at, t.Key, t.Effect)
		}
	}
}
