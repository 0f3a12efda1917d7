package devcluster

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// vmModules are the kernel modules the demonstration's VM loads, in the order
// in which they depend on each other: network card, and power button.
var vmModules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"failover", "net_failover", "virtio_net", "button", "evdev",
}

// vmFiles is the VM's system beside busybox and the modules.
var vmFiles = map[string]string{
	"init": "#!/bin/sh\nexec /bin/busybox init\n",

	"etc/inittab": `::sysinit:/etc/rc
ttyS0::respawn:-/bin/sh
::shutdown:/etc/rc.stop
`,

	"etc/rc": `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in ` + strings.Join(vmModules, " ") + `; do insmod /lib/$m.ko 2>/dev/null; done
hostname demo-vm
ip link set lo up
for card in /sys/class/net/e*; do
  [ -e "$card" ] || continue
  ip link set "${card##*/}" up
  udhcpc -i "${card##*/}" -s /etc/dhcp -t 3 -T 1 -b >/dev/null 2>&1
done
echo "<h1>Hello from a VM pod</h1><p>Linux $(uname -r), $(nproc) CPU, $(awk '/MemTotal/{print int($2/1024)}' /proc/meminfo) MiB</p>" >/www/index.html
httpd -p 8080 -h /www
acpid
echo "demo-vm is up: Linux $(uname -r), http on port 8080, address $(ip -4 -o addr show scope global | awk '{print $4}')"
`,

	"etc/rc.stop": "#!/bin/sh\necho 'demo-vm powers off'\nsync\n",

	"etc/dhcp": `#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
ip link set "$interface" up
for r in $router; do ip route replace default via "$r" dev "$interface"; done
for d in $dns; do echo "nameserver $d"; done >/etc/resolv.conf
`,

	// What busybox acpid runs when the power button is pressed.
	"etc/acpi/PWRF/00000080": "#!/bin/sh\npoweroff\n",
	"etc/passwd":             "root:x:0:0:root:/root:/bin/sh\n",
	"etc/group":              "root:x:0:\n",
}

// initramfs packs the VM's whole system.
func initramfs(modules string) ([]byte, error) {
	busybox, err := StaticBusybox()
	if err != nil {
		return nil, err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return nil, err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --list: %w", busybox, err)
	}
	var a cpio
	for _, dir := range []string{"bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "proc", "root", "run", "sys", "tmp", "var", "var/log", "var/run", "www"} {
		a.add(dir, 0o040755, nil)
	}
	a.add("bin/busybox", 0o100755, program)
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			a.add("bin/"+name, 0o120777, []byte("busybox"))
		}
	}
	a.add("sbin", 0o120777, []byte("bin"))
	for name, text := range vmFiles {
		a.add(name, 0o100755, []byte(text))
	}
	found := map[string]string{}
	err = filepath.WalkDir(modules, func(path string, _ fs.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok {
			found[name] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, name := range vmModules {
		// Which parts are modules and which are built in differs by kernel.
		if data, err := os.ReadFile(found[name]); err == nil {
			a.add("lib/"+name+".ko", 0o100644, data)
		}
	}
	return a.gzip()
}

// cpio writes the archive format of initial RAM disks ("newc").
type cpio struct {
	buf bytes.Buffer
	ino int
}

func (a *cpio) add(name string, mode int, data []byte) {
	a.ino++
	fmt.Fprintf(&a.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		a.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

func (a *cpio) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *cpio) gzip() ([]byte, error) {
	a.add("TRAILER!!!", 0, nil)
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(a.buf.Bytes()); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
