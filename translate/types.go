package translate

import (
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
)

const (
	// GroupName is the name of the one task group of every pod's job.
	GroupName = "pod"

	// ShapeVersion names the layout of the jobs this release writes. A
	// release that changes the layout raises it and still understands the
	// older ones.
	ShapeVersion = 1

	// Domain is the prefix of this project's annotations, labels and
	// condition types.
	Domain = "nomad-kubelet.io"

	// AnnotationConstraints and AnnotationAffinities ask for a place among the
	// pool's clients: a YAML list of {attribute, operator, value} and, for
	// affinities, weight (-100..100), in the terms of Nomad's constraint and
	// affinity blocks.
	AnnotationConstraints = Domain + "/constraints"
	AnnotationAffinities  = Domain + "/affinities"
	// AnnotationJob, AnnotationAllocation, AnnotationClient and AnnotationUI tell
	// where in Nomad a pod is, with the address of Nomad's page on it.
	AnnotationJob        = Domain + "/job"
	AnnotationAllocation = Domain + "/allocation"
	AnnotationClient     = Domain + "/client"
	AnnotationUI         = Domain + "/ui"
	// AnnotationImageChecksum is the checksum ("sha256:...") of a VM's disk
	// image that is named by URL.
	AnnotationImageChecksum = Domain + "/image-checksum"
)

// NetworkMode says how a virtual node's pods are connected.
type NetworkMode string

// The network modes of a virtual node.
const (
	// NetworkBridge is Nomad's own bridge: an address local to the client.
	NetworkBridge NetworkMode = "bridge"
	// NetworkHost gives pods their client's network namespace.
	NetworkHost NetworkMode = "host"
	// NetworkNetbridge is the pod network of docs/networking.md: an address that the
	// cluster and all clients reach.
	NetworkNetbridge NetworkMode = "cni/netbridge"
)

// CNI says that pods join a network of the clients' cni_config_dir, and which.
func (m NetworkMode) CNI() (name string, ok bool) { return strings.CutPrefix(string(m), "cni/") }

// NetbridgeMeta is the metadata of clients that give addresses of the pod network;
// its agent keeps it there, as NetbridgeReady.
const (
	NetbridgeMeta  = "netbridge"
	NetbridgeReady = "ready"
)

// AcceleratorMeta is the metadata of clients that says by which accelerator their
// VMs run, one of the two below.
const (
	AcceleratorMeta = "qemu_accelerator"
	AcceleratorKVM  = "kvm"
	AcceleratorTCG  = "tcg"
)

// HostAccess lists what pods of a virtual node may take from the Nomad client
// they run on. The zero value allows nothing.
type HostAccess struct {
	// HostPaths are the directories under which hostPath volumes may lie.
	HostPaths []string `json:"hostPaths,omitempty"`
	// Privileged allows privileged containers.
	Privileged bool `json:"privileged,omitempty"`
	// Capabilities are the Linux capabilities (without CAP_) that containers
	// may add beyond Docker's default set.
	Capabilities []string `json:"capabilities,omitempty"`
	// HostNetwork, HostPID and HostIPC allow the namespaces of that name.
	HostNetwork bool `json:"hostNetwork,omitempty"`
	HostPID     bool `json:"hostPID,omitempty"`
	HostIPC     bool `json:"hostIPC,omitempty"`
	// HostPorts allows containers to take ports of the client.
	HostPorts bool `json:"hostPorts,omitempty"`
	// Sysctls are the kernel parameters that pods may set beyond Kubernetes' safe set.
	Sysctls []string `json:"sysctls,omitempty"`
	// Unconfined allows seccomp and AppArmor profiles of type Unconfined and Localhost.
	Unconfined bool `json:"unconfined,omitempty"`
	// ImagePaths are the directories on clients from which VM disk images may be taken by path.
	ImagePaths []string `json:"imagePaths,omitempty"`
	// HugePages is where clients mount their huge pages (hugetlbfs); empty: VMs may not ask for them.
	HugePages string `json:"hugePages,omitempty"`
	// PCIDevices are the addresses, such as 0000:3b:00.0, of devices of clients that VMs may be given as
	// their own. They must be bound to vfio-pci there. Such a guest can do to the device what root can.
	PCIDevices []string `json:"pciDevices,omitempty"`
	// ImageCache is the directory on clients that keeps VM disk images from URLs and
	// container images; empty: each pod has its own.
	ImageCache string `json:"imageCache,omitempty"`
}

// Runtime is one row of the driver table: what a RuntimeClass means on a
// virtual node.
type Runtime struct {
	// Driver is the Nomad task driver: docker, qemu, mock_driver.
	Driver string `json:"driver"`
	// Config is merged over the task configuration that translation produces,
	// key by key; it is the operator's, and wins.
	Config map[string]any `json:"config,omitempty"`
	// NoLogs turns Nomad's log collection off for these pods' tasks, and
	// kubectl logs with it.
	NoLogs bool `json:"noLogs,omitempty"`
	// NoNetwork is set for drivers that cannot join a network namespace:
	// their pods get no address of their own.
	NoNetwork bool `json:"noNetwork,omitempty"`
}

// NodeProfile is what translation has to know of the virtual node a pod is
// bound to.
type NodeProfile struct {
	// Name is the virtual node's name in Kubernetes.
	Name string
	// Region, Namespace, NodePool and Datacenters are Nomad's; an empty
	// Datacenters means all ("*").
	Region, Namespace, NodePool string
	Datacenters                 []string
	Network                     NetworkMode
	// MHzPerCore is how many of Nomad's MHz one CPU core of the pool counts,
	// 1000 where clients set cpu_total_compute = 1000 * cores.
	MHzPerCore int
	// MemoryOversubscription says whether Nomad honours memory_max, which is
	// what lets a memory limit differ from the request.
	MemoryOversubscription bool
	// DockerProxy says that clients of the pool have the proxy before their Docker
	// engine that knows the users of images (nomadprovider/dockerproxy).
	DockerProxy bool
	// KVM says that a client of the pool is known to run VMs by KVM
	// ([AcceleratorMeta]).
	KVM bool
	// DefaultMemoryMB is reserved for a container that names neither a memory
	// request nor a limit.
	DefaultMemoryMB int
	ClusterDNS      []string
	ClusterDomain   string
	HostAccess      HostAccess
	// Runtimes is the driver table, by RuntimeClass name; "" is the row for
	// pods without one.
	Runtimes map[string]Runtime
	// CompanionImage is the image of cmd/companion, for pods that need one
	// beside them; empty: none, and what it would do is left out with a note.
	CompanionImage string
}

// Keys tells which objects exist and which keys they hold; a missing entry
// means that the object does not exist.
type Keys map[string][]string

// Inputs is everything beyond the pod that translation is handed.
type Inputs struct {
	// Cluster is the short stable ID of the Kubernetes cluster, [a-z0-9]{1,20}.
	Cluster string
	Node    NodeProfile
	// ConfigMaps and Secrets of the pod's namespace that the pod refers to.
	// For Secrets of imagePullSecrets the keys are those of the Secret.
	ConfigMaps, Secrets Keys
	// BinaryKeys are those keys of ConfigMaps that stand in binaryData: volumes
	// show them, the environment does not.
	BinaryKeys Keys
	// Services are those whose environment variables the pod sees
	// (its namespace's, and default/kubernetes), sorted by name.
	Services []corev1.Service
	// Claims are the PersistentVolumeClaims that the pod names, by name; one that does
	// not exist has no entry.
	Claims map[string]Claim
	// Offline is set when there is no cluster to ask (the dry run): what is
	// not in ConfigMaps and Secrets is then assumed to exist, and noted where
	// the job depends on its keys.
	Offline bool
}

// Claim is a PersistentVolumeClaim with what it is bound to.
type Claim struct {
	// Pending says, in the kubelet's words, why it cannot be used yet.
	Pending     string
	AccessModes []corev1.PersistentVolumeAccessMode
	// Volume is what it is bound to, nil for none.
	Volume *corev1.PersistentVolumeSpec
	// Paths are where those Nomad clients of the virtual node that have it have the
	// host volume that the claim is bound to.
	Paths []string
}

// Item is one projected value: the key under which it lies in the job's
// Variable, and where the value comes from. Exactly one source is set.
// Values are stored base64-encoded unless they are Quoted.
type Item struct {
	Key       string
	ConfigMap *KeyRef
	Secret    *KeyRef
	// Field is a downward API field of the pod that may change during its
	// life or may not stand in a job: metadata.labels, metadata.annotations,
	// metadata.labels['x'], metadata.annotations['x'], and any other
	// metadata or spec field used in a volume.
	Field string
	// Literal is a value known at translation that is no secret.
	Literal *string
	Token   *TokenRef
	// Registry asks for the user name or password for Image that the Secret's
	// .dockerconfigjson or .dockercfg holds.
	Registry *RegistryRef
	// Optional items whose source does not exist are left empty.
	Optional bool
	// Quoted values are stored as JSON strings, quotes included: Nomad's secret
	// block, which reads them, decodes JSON escapes and no base64.
	Quoted bool
}

// KeyRef names a key of a ConfigMap or Secret in the pod's namespace.
type KeyRef struct{ Name, Key string }

// TokenRef asks for a bound service-account token.
type TokenRef struct {
	Audience          string // empty: the API server's own
	ExpirationSeconds int64
}

// RegistryRef asks for registry credentials, empty for none; Secrets are tried in
// order.
type RegistryRef struct {
	Secrets []string
	Image   string
	// Part is "username" or "password".
	Part string
}

// Note is something the user should know of a field that was carried
// approximately.
type Note struct {
	// Field is the path in the pod, such as spec.containers[web].resources.limits.cpu.
	Field   string
	Message string
	// Common is set for what holds of every pod of the virtual node or its
	// RuntimeClass: worth a word in a dry run, and no event for each pod.
	Common bool
}

// Result is a translated pod.
type Result struct {
	Job *api.Job
	// Items fill the Variable [VariablePath]; empty when the pod projects
	// nothing.
	Items []Item
	// Files is what the companion writes, nil for a pod without files.
	Files *Files
	// ClosedGates names the tasks whose gate is closed until the pods room
	// opens it, in the order in which they are to start: the init containers
	// after the first, whatever would start before the companion has written the
	// pod's files, and the containers after a sidecar with a startup probe.
	ClosedGates []string
	Notes       []Note
}

// Refusal names a field that this virtual node cannot carry, why, and the
// remedy.
type Refusal struct{ Field, Reason string }

// RefusedError is returned for a pod that cannot run on the virtual node.
type RefusedError struct{ Refusals []Refusal }

func (e *RefusedError) Error() string {
	parts := make([]string, len(e.Refusals))
	for i, r := range e.Refusals {
		parts[i] = r.Field + ": " + r.Reason
	}
	return strings.Join(parts, "; ")
}

// MissingError is returned for a pod that waits for an object or a key, or for a
// claim to be bound. Its text is the kubelet's ("configmap \"x\" not found").
type MissingError struct {
	Messages []string
	// Claims is what is said of volumes that cannot be mounted yet, which the
	// kubelet tells in events.
	Claims []string
}

func (e *MissingError) Error() string { return strings.Join(slices.Concat(e.Messages, e.Claims), "; ") }
