package translate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/nomad/api"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
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

// Files is what the companion writes before the containers start, and again
// when an object changes. Paths are the companion's own.
type Files struct {
	Volumes []FileVolume
	Dirs    []Dir
	Disks   []Disk
	// Guest is the MAC of a VM's guest that is to have the pod's address, empty
	// for none.
	Guest string
	// Items are the sources of the files' contents.
	Items []Item
}

// FileVolume is a directory whose files change at once.
type FileVolume struct {
	Path  string
	GID   *int64 // that owns it, root's without
	Files []VolumeFile
}

// VolumeFile holds an item's value, or Data when Item is empty.
type VolumeFile struct {
	Path string
	Item string // key of an item
	Data string
	Mode int32
}

// Disk is one of a VM's, made once before it starts. It begins as a copy of Base,
// or empty, or holds Files.
type Disk struct {
	Path string
	// Base is an image, qcow2 or raw, of which only what the VM changes is stored
	// in the disk; Backing is how qemu names it, relative to the disk or absolute, and
	// Image the user.
	Base, Backing, Image string
	// SizeMB is the disk's size, 0 for the image's.
	SizeMB int64
	// Raw disks have no format, and are kept when the pod goes; of those that are
	// ReadOnly none is made.
	Raw, ReadOnly bool
	// Label is the name of the file system (ISO 9660) that Files lie on.
	Label string
	// Archive is set for a disk that is an archive (tar) of Files and Program, and
	// is kept current.
	Archive bool
	Files   []VolumeFile
	Program *Program
}

// Program is a container's process, in a VM: its environment, and the words of its
// command, none for what the VM itself starts.
type Program struct {
	Env   []Variable
	Words []Value
	// Dir is the command's working directory, and Message the file of its
	// termination message.
	Dir, Message string
}

// Variable is one of the environment.
type Variable struct {
	Name  string
	Value Value
}

// Value is put together from parts.
type Value []Part

// Part of a value: Text, or an item's value, or a variable in the companion's
// environment.
type Part struct{ Text, Item, Run string }

// Dir is a directory for the containers to write in.
type Dir struct {
	Path string
	GID  *int64
	Mode uint32
	// Kept directories that are there keep their mode and owner, but that they are
	// given to the group, if there is one.
	Kept bool
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

// JobID is the ID of a pod's job: k8s-<cluster>-<pod UID>. It has no dots,
// which Variable paths do not take, and none is a prefix of another.
func JobID(cluster string, uid types.UID) string {
	return fmt.Sprintf("k8s-%s-%s", cluster, uid)
}

// JobIDPrefix is common to the jobs of a cluster's pods and to no others.
func JobIDPrefix(cluster string) string { return "k8s-" + cluster + "-" }

// PodUID is the inverse of [JobID]; ok is false for jobs of others, those of
// other clusters included.
func PodUID(cluster, jobID string) (uid types.UID, ok bool) {
	rest, ok := strings.CutPrefix(jobID, JobIDPrefix(cluster))
	return types.UID(rest), ok && rest != ""
}

// CompanionID is the ID of a job that runs beside a pod's own, on the same
// client: k8sx-<cluster>-<pod UID>-<name>.
func CompanionID(cluster string, uid types.UID, name string) string {
	return CompanionPrefix(cluster, uid) + name
}

// CompanionPrefix is common to the companion jobs of a pod and to no others.
func CompanionPrefix(cluster string, uid types.UID) string {
	return companionPrefix(cluster) + string(uid) + "-"
}

func companionPrefix(cluster string) string { return "k8sx-" + cluster + "-" }

// JobIDPrefixes are those of all jobs of a cluster's pods, companions included,
// and of no others.
func JobIDPrefixes(cluster string) []string {
	return []string{JobIDPrefix(cluster), companionPrefix(cluster)}
}

// uidLength is how long the UIDs of the API server are (RFC 4122).
const uidLength = 36

// Owner is the inverse of [JobID] and [CompanionID]: companion is empty for the
// pod's own job. ok is false for jobs of others, those of other clusters
// included.
func Owner(cluster, jobID string) (uid types.UID, companion string, ok bool) {
	if uid, ok := PodUID(cluster, jobID); ok {
		return uid, "", true
	}
	rest, ok := strings.CutPrefix(jobID, companionPrefix(cluster))
	if !ok || len(rest) < uidLength+2 || rest[uidLength] != '-' {
		return "", "", false
	}
	return types.UID(rest[:uidLength]), rest[uidLength+1:], true
}

// TaskName is the task of a container. Nomad reserves "alloc".
func TaskName(container string) string {
	if container == "alloc" {
		return "alloc-"
	}
	return container
}

// VariablePath is where a job's projected data lies.
func VariablePath(jobID string) string { return "nomad/jobs/" + jobID }

// GatePath is the Variable that opens or holds a task; see [Result.ClosedGates].
func GatePath(jobID, task string) string {
	return "nomad/jobs/" + jobID + "/" + GroupName + "/" + task
}

// The items of a gate Variable. A task that started open is held while its
// gate exists with GateHold; one that started closed waits until its gate
// exists with GateOpen, and is held again by GateHold.
const (
	GateItem = "gate"
	GateOpen = "open"
	GateHold = "hold"
)
