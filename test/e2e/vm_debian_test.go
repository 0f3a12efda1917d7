package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nomad-kubelet/nomad-kubelet/internal/devcluster"
	"github.com/nomad-kubelet/nomad-kubelet/translate"
)

// buildDebian makes a Debian guest with cloud-init and the guest agent: a root
// file system as a disk, and its kernel and initial RAM disk. Nothing is mounted
// for it.
const buildDebian = `set -e
mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | awk '/^deb /{for(i=2;i<=NF;i++) if($i ~ /^http/){print $i; exit}} /^URIs:/{print $2; exit}')
debootstrap --variant=minbase --include=systemd-sysv,dbus,udev,python3-cffi-backend,cloud-init,qemu-guest-agent,openssh-server,iproute2,locales,linux-image-cloud-amd64 \
  bookworm root "$mirror"
chroot root apt-get clean
chroot root systemctl enable systemd-networkd
: >root/etc/machine-id
rm -f root/etc/ssh/ssh_host_*
mkdir made
cp root/boot/vmlinuz-* made/vmlinuz
cp root/boot/initrd.img-* made/initrd
truncate -s 1200M made/disk
mkfs.ext4 -q -d root -L root made/disk
`

// debianGuest puts the guest's files where VMs may boot from. They are built
// once, which takes some ten minutes on two busy cores, and kept.
func debianGuest(t *testing.T, name string) (disk, kernel, initrd string) {
	t.Helper()
	if os.Getenv("E2E_DEBIAN") == "" {
		t.Skip("a whole Debian boots for minutes without KVM: set E2E_DEBIAN=1")
	}
	cached := filepath.Join(binDir(), "..", ".dev", "test-cache", "debian")
	if _, err := os.Stat(cached); err != nil {
		work := t.TempDir()
		cmd := exec.CommandContext(t.Context(), "sh", "-c", buildDebian)
		cmd.Dir = work
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build the Debian guest: %v\n%s", err, out[max(0, len(out)-2000):])
		}
		if err := os.Rename(filepath.Join(work, "made"), cached); err != nil {
			t.Fatal(err)
		}
	}
	at := filepath.Join(devcluster.VMImageDir, name)
	if err := os.CopyFS(at, os.DirFS(cached)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(at) })
	return filepath.Join(at, "disk"), filepath.Join(at, "vmlinuz"), filepath.Join(at, "initrd")
}

// cloud-init in a real guest takes what the pod gives it: the host name, keys,
// name servers, and user-data from a Secret; its end is what makes the pod ready.
func TestVirtualMachineCloudInit(t *testing.T) {
	ns := namespace(t, kube)
	disk, kernel, initrd := debianGuest(t, ns)
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "seed"},
		StringData: map[string]string{"config": "#cloud-config\nlocale: C.UTF-8\nwrite_files: [{path: /root/secret, content: s3cret}]\nruncmd: [[sh, -c, 'echo seeded >/root/ran']]\n"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	p := create(t, kube, ns, vmPod("debian-guest", func(p *corev1.Pod) {
		p.Annotations = map[string]string{
			translate.AnnotationVMKernel: kernel, translate.AnnotationVMInitrd: initrd,
			translate.AnnotationVMCmdline:      "root=/dev/vda rw console=ttyS0",
			translate.AnnotationVMUserDataFrom: "secret/seed/config",
			translate.AnnotationVMSSHKeys:      "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGQf3nLZc2Rp5m9pYwUq0wZb0k9m8oJpS0Q7m1t2x3y4 me@e2e",
		}
		c := &p.Spec.Containers[0]
		c.Image, c.Ports = disk, []corev1.ContainerPort{{ContainerPort: 22}}
		c.Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("512Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("3Gi")},
		}
		c.ReadinessProbe = &corev1.Probe{
			ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"cloud-init", "status"}}}, PeriodSeconds: 3, TimeoutSeconds: 20, FailureThreshold: 1,
		}
	}))
	p = await(t, kube, p, 5*time.Minute, "ready", ready)
	t.Logf("its agent answered after %.0f s", time.Since(start).Seconds())
	eventually(t, 5*time.Minute, "cloud-init is done", func() error {
		if out, _, _ := execIn(t, p, "c", nil, "cloud-init", "status"); !strings.Contains(out, "status: done") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	t.Logf("cloud-init was done after %.0f s", time.Since(start).Seconds())
	out, errOut, _ := execIn(t, p, "c", nil, "sh", "-c", "hostname; cat /root/secret /root/ran ~debian/.ssh/authorized_keys; ip -br -4 addr show eth0; grep -h DNS= /run/systemd/network/* /etc/systemd/network/*; blockdev --getsize64 /dev/vda")
	for _, want := range []string{"debian-guest\n", "s3cret", "seeded", "me@e2e", "10.0.2.15", fmt.Sprint(3 << 30)} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q, %s", want, out, errOut)
		}
	}
	start = time.Now()
	remove(t, kube, p, nil)
	awaitGone(t, kube, p, 90*time.Second)
	t.Logf("shut down and gone after %.1f s", time.Since(start).Seconds())
}
