package translate

import (
	"encoding/json"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

const annotationVM = Domain + "/vm-"

// Annotations of VM pods.
const (
	// AnnotationVMUserData is cloud-init's user-data, and AnnotationVMUserDataFrom
	// where it is kept: configmap/NAME/KEY or secret/NAME/KEY, the key being
	// user-data if none is given.
	AnnotationVMUserData     = annotationVM + "user-data"
	AnnotationVMUserDataFrom = annotationVM + "user-data-from"
	// AnnotationVMNetworkConfig is cloud-init's network-config, in the place of
	// the one that is made of the pod's DNS settings.
	AnnotationVMNetworkConfig = annotationVM + "network-config"
	// AnnotationVMNetwork is what network the guest has: user or tap.
	AnnotationVMNetwork = annotationVM + "network"
	// AnnotationVMSSHKeys are public keys, one a line, for the image's default user.
	AnnotationVMSSHKeys = annotationVM + "ssh-keys"
	// AnnotationVMKernel and AnnotationVMInitrd are files of the Nomad client that
	// are booted in the place of the disk, with the command line
	// AnnotationVMCmdline.
	AnnotationVMKernel  = annotationVM + "kernel"
	AnnotationVMInitrd  = annotationVM + "initrd"
	AnnotationVMCmdline = annotationVM + "cmdline"
	// AnnotationVMFirmware is a file of the Nomad client with the UEFI firmware
	// (OVMF) that boots the VM in the place of the BIOS.
	AnnotationVMFirmware = annotationVM + "firmware"
	// AnnotationVMReady says when a VM has started: when its guest agent answers
	// (agent), or when cloud-init is done (cloud-init).
	AnnotationVMReady = annotationVM + "ready"
	// AnnotationVMImagePath is where in a container image its disk lies, if it is
	// not the only file below /disk.
	AnnotationVMImagePath = annotationVM + "image-path"
	// AnnotationVMCPUTopology is how the VM's CPUs are arranged:
	// sockets,cores,threads.
	AnnotationVMCPUTopology = annotationVM + "cpu-topology"
	// AnnotationVMHugePages asks, with "true", for memory of the client's huge pages
	// ([HostAccess].HugePages), and AnnotationVMPCIDevices, addresses between commas,
	// for devices of the client ([HostAccess].PCIDevices).
	AnnotationVMHugePages  = annotationVM + "hugepages"
	AnnotationVMPCIDevices = annotationVM + "pci-devices"
)

var vmAnnotations = map[string]bool{
	AnnotationVMUserData: true, AnnotationVMUserDataFrom: true, AnnotationVMNetworkConfig: true, AnnotationVMNetwork: true, AnnotationVMSSHKeys: true,
	AnnotationVMKernel: true, AnnotationVMInitrd: true, AnnotationVMCmdline: true, AnnotationVMFirmware: true,
	AnnotationVMReady: true, AnnotationVMCPUTopology: true, AnnotationVMHugePages: true, AnnotationVMPCIDevices: true,
	AnnotationVMImagePath: true,
}

// The files of cloud-init's NoCloud data source.
const (
	seedUserData      = "user-data"
	seedMetaData      = "meta-data"
	seedNetworkConfig = "network-config"
	seedLabel         = "cidata"
	// vmSeedDisk lies where Nomad's file system API does not reach: what it holds
	// may be secret.
	vmSeedDisk = "/secrets/seed.iso"
)

// UserDataRef is the object that holds a VM's user-data.
type UserDataRef struct {
	// Secret says that it is a Secret and no ConfigMap.
	Secret    bool
	Name, Key string
}

// UserDataFrom reads [AnnotationVMUserDataFrom]; ok is false when it is not
// there or not to be understood.
func UserDataFrom(pod *corev1.Pod) (ref UserDataRef, ok bool) {
	kind, rest, _ := strings.Cut(pod.Annotations[AnnotationVMUserDataFrom], "/")
	name, key, given := strings.Cut(rest, "/")
	if !given {
		key = seedUserData
	}
	ok = (kind == string(kindConfigMap) || kind == string(kindSecret)) && name != "" && key != "" && !strings.Contains(key, "/")
	return UserDataRef{Secret: kind == string(kindSecret), Name: name, Key: key}, ok
}

// vmSeed is the disk from which cloud-init configures the guest
// (the NoCloud data source). It is made once: cloud-init looks at it on the
// instance's first boot only, and the instance is the pod.
func (b *builder) vmSeed() Disk {
	d := Disk{Path: vmSeedDisk, Label: seedLabel}
	add := func(name string, f VolumeFile) {
		f.Path, f.Mode = name, 0o400
		d.Files = append(d.Files, f)
	}
	add(seedUserData, b.vmUserData(&b.fileItems))
	add(seedMetaData, VolumeFile{Data: b.vmMetaData()})
	network := b.pod.Annotations[AnnotationVMNetworkConfig]
	if network == "" {
		network = b.vmNetworkConfig()
	}
	add(seedNetworkConfig, VolumeFile{Data: network})
	return d
}

// vmUserData is cloud-init's user-data; where an object holds it, it is one of the
// items.
func (b *builder) vmUserData(items *items) VolumeFile {
	const none = "#cloud-config\n{}\n"
	inline, from := b.pod.Annotations[AnnotationVMUserData], b.pod.Annotations[AnnotationVMUserDataFrom]
	field := "metadata.annotations[" + AnnotationVMUserDataFrom + "]"
	switch ref, ok := UserDataFrom(b.pod); {
	case from == "" && inline == "":
		return VolumeFile{Data: none}
	case from == "":
		return VolumeFile{Data: inline}
	case inline != "":
		b.refuse(field, "is given beside %s", AnnotationVMUserData)
	case !ok:
		b.refuse(field, "%q is neither configmap/NAME/KEY nor secret/NAME/KEY", from)
	default:
		kind := kindConfigMap
		if ref.Secret {
			kind = kindSecret
		}
		if keys, known := b.objectKeys(kind, ref.Name, false); known {
			if !slices.Contains(keys, ref.Key) {
				b.miss("couldn't find key %s in %s %s/%s", ref.Key, kind, b.pod.Namespace, ref.Name)
			}
		}
		return VolumeFile{Item: items.add(kind.item(ref.Name, ref.Key, false))}
	}
	return VolumeFile{}
}

// vmMetaData names the guest. JSON is YAML.
func (b *builder) vmMetaData() string {
	m := map[string]any{"instance-id": string(b.pod.UID), "local-hostname": b.hostname()}
	var keys []string
	for _, line := range strings.Split(b.pod.Annotations[AnnotationVMSSHKeys], "\n") {
		if line = strings.TrimSpace(line); line != "" {
			keys = append(keys, line)
		}
	}
	if len(keys) > 0 {
		m["public-keys"] = keys
	}
	return asJSON(m)
}

// vmNetworkConfig has the guest take its address by DHCP, and its name servers
// from the pod: qemu's user network would hand it the client's. With the pod's own
// address it is the same: that may change when the client reboots, and cloud-init
// looks at this once.
func (b *builder) vmNetworkConfig() string {
	card := map[string]any{"match": map[string]any{"macaddress": b.vmMAC().String()}, "set-name": "eth0", "dhcp4": true}
	if d := b.group.Networks[0].DNS; d != nil && len(d.Servers) > 0 {
		card["dhcp4-overrides"] = map[string]any{"use-dns": false}
		card["nameservers"] = map[string]any{"addresses": d.Servers, "search": append([]string{}, d.Searches...)}
	}
	return asJSON(map[string]any{"version": 2, "ethernets": map[string]any{"eth0": card}})
}

func asJSON(v any) string {
	data, _ := json.Marshal(v) // strings, lists and maps cannot fail
	return string(data) + "\n"
}
