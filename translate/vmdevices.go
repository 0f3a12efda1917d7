package translate

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// pciAddress is domain:bus:device.function, as lspci -D prints it.
var pciAddress = regexp.MustCompile(`^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]$`)

// ValidPCIAddress tells whether an address names one function of one device.
func ValidPCIAddress(s string) bool { return pciAddress.MatchString(s) }

// vmHugePages takes the guest's memory from the client's huge pages, all of it at
// once: a VM that found too few later would be killed by SIGBUS.
func (b *builder) vmHugePages() []string {
	asked, given := b.pod.Annotations[AnnotationVMHugePages]
	field, dir := "metadata.annotations["+AnnotationVMHugePages+"]", b.in.Node.HostAccess.HugePages
	switch {
	case !given || asked == "false":
		return nil
	case asked != "true":
		b.refuse(field, "%q is neither true nor false", asked)
	case dir == "":
		b.refuse(field, "huge pages are not allowed: say in virtualNodes[].hostAccess.hugePages where clients mount them")
	}
	return []string{"-mem-path", path.Clean(dir), "-mem-prealloc"}
}

// vmPCIDevices hands devices of the client to the guest.
func (b *builder) vmPCIDevices() (args []string) {
	asked, given := b.pod.Annotations[AnnotationVMPCIDevices]
	if !given {
		return nil
	}
	field := "metadata.annotations[" + AnnotationVMPCIDevices + "]"
	for _, a := range strings.Split(asked, ",") {
		a = strings.ToLower(strings.TrimSpace(a))
		switch {
		case !ValidPCIAddress(a):
			b.refuse(field, "%q is not the address of a PCI device, such as 0000:3b:00.0", a)
		case !slices.Contains(b.in.Node.HostAccess.PCIDevices, a):
			b.refuse(field, "device %s of the Nomad client is not allowed: add it to virtualNodes[].hostAccess.pciDevices", a)
		case slices.Contains(args, "vfio-pci,host="+a):
			b.refuse(field, "device %s is asked for twice", a)
		default:
			args = append(args, "-device", "vfio-pci,host="+a)
		}
	}
	return args
}
