package devcluster

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// vmModules are the kernel modules the demonstration's VM loads, in the order
// in which they depend on each other: network card, disks and what cloud-init
// would read, guest agent, power button, the sign of a crash, and the file system of volumes.
var vmModules = []string{
	"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci",
	"failover", "net_failover", "virtio_net", "virtio_blk", "cdrom", "isofs", "virtio_console", "button", "evdev", "virtio_balloon",
	"pvpanic", "pvpanic-mmio",
	"crc16", "crc32c_generic", "libcrc32c", "mbcache", "jbd2", "ext4",
}

// vmVersion names what the VM is made of here, so that a change is built anew.
func vmVersion() string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(vmFiles)) {
		fmt.Fprintf(h, "%s\x00%s\x00", name, vmFiles[name])
	}
	return fmt.Sprintf("%x", h.Sum(nil))[:12]
}

// vmFiles is the VM's system beside busybox and the modules.
var vmFiles = map[string]string{
	"init": "#!/bin/sh\nexec /bin/busybox init\n",

	"etc/inittab": `::sysinit:/etc/rc
ttyS0::respawn:-/bin/sh
::respawn:/etc/agent
::shutdown:/etc/rc.stop
`,

	"etc/rc": `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for m in ` + strings.Join(vmModules, " ") + `; do insmod /lib/$m.ko 2>/dev/null; done
hostname demo-vm
for disk in /sys/block/vd*; do
  [ "$(cat $disk/serial)" = seed ] && mount -t iso9660 -o ro /dev/${disk##*/} /seed
done
mount -t tmpfs run /run
ip link set lo up
for card in /sys/class/net/e*; do
  [ -e "$card" ] || continue
  ip link set "${card##*/}" up
  udhcpc -i "${card##*/}" -s /etc/dhcp -t 3 -T 1 -b >/dev/null 2>&1
done
echo "<h1>Hello from a VM pod</h1><p>Linux $(uname -r), $(nproc) CPU, $(awk '/MemTotal/{print int($2/1024)}' /proc/meminfo) MiB</p>" >/www/index.html
httpd -p 0.0.0.0:8080 -h /www
acpid
# What cloud-init would do with vendor-data.
[ ! -e /seed/vendor-data ] || sh /seed/vendor-data
echo "demo-vm is up: Linux $(uname -r), http on port 8080, address $(ip -4 -o addr show scope global | awk '{print $4}')"
`,

	// Debian's qemu-guest-agent.
	"etc/agent": `#!/bin/sh
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name)" = org.qemu.guest_agent.0 ] && exec qemu-ga -m virtio-serial -p /dev/${port##*/} -t /run -f /run/agent.pid
done
sleep 1000000
`,

	"etc/rc.stop": "#!/bin/sh\necho 'demo-vm powers off'\nsync\n",

	"etc/dhcp": `#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip addr flush dev "$interface"
ip addr add "$ip/${mask:-24}" dev "$interface"
[ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
ip link set "$interface" up
if [ -n "$staticroutes" ]; then
  set -- $staticroutes
  while [ $# -gt 1 ]; do
    via="via $2"
    [ "$2" != 0.0.0.0 ] || via=
    ip route replace "$1" $via dev "$interface"
    shift 2
  done
else
  for r in $router; do ip route replace default via "$r" dev "$interface"; done
fi
{
  [ -z "$search" ] || echo "search $search"
  for d in $dns; do echo "nameserver $d"; done
} >/etc/resolv.conf
`,

	// What busybox acpid runs when the power button is pressed.
	"etc/acpi/PWRF/00000080": "#!/bin/sh\npoweroff\n",
	"etc/passwd":             "root:x:0:0:root:/root:/bin/sh\n",
	"etc/group":              "root:x:0:\n",
}

// initramfs packs the VM's whole system. agent is Debian's qemu-ga.
func initramfs(modules, agent string) ([]byte, error) {
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
	for _, dir := range []string{"bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "proc", "root", "run", "seed", "sys", "tmp", "var", "var/log", "var/run", "www"} {
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
	if err := a.program("bin/qemu-ga", agent); err != nil {
		return nil, err
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

// program adds a program with the libraries that it is loaded with, which this
// machine has: its qemu needs the same.
func (a *cpio) program(name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	a.add(name, 0o100755, data)
	list, err := exec.Command("ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	made := map[string]bool{"lib": true}
	for _, line := range strings.Split(string(list), "\n") {
		if strings.Contains(line, "not found") {
			return fmt.Errorf("%s needs %s", name, strings.TrimSpace(line))
		}
		for _, word := range strings.Fields(line) {
			if !filepath.IsAbs(word) {
				continue
			}
			if data, err = os.ReadFile(word); err != nil {
				return err
			}
			a.dirs(made, filepath.Dir(word)[1:])
			a.add(word[1:], 0o100755, data)
		}
	}
	return nil
}

// dirs adds a directory and those above it that were not made yet.
func (a *cpio) dirs(made map[string]bool, dir string) {
	if dir == "." || made[dir] {
		return
	}
	a.dirs(made, filepath.Dir(dir))
	a.add(dir, 0o040755, nil)
	made[dir] = true
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
