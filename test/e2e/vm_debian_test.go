package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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

// cloud-init in a real guest takes what the pod gives it: the host name, keys, name
// servers, and user-data from a Secret; its end is what makes the pod ready. Then
// the container's command runs, in its environment and with its volumes, and its
// exit is the container's.
func TestVirtualMachineCloudInit(t *testing.T) {
	ns := namespace(t, kube)
	disk, kernel, initrd := debianGuest(t, ns)
	guestObjects(t, ns)
	if _, err := kube.CoreV1().Secrets(ns).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "seed"},
		StringData: map[string]string{"config": "#cloud-config\nlocale: C.UTF-8\nwrite_files: [{path: /root/secret, content: s3cret}]\nruncmd: [[sh, -c, 'echo seeded >/root/ran']]\n"},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	key, public := sshKey(t)
	start := time.Now()
	p := create(t, kube, ns, vmPod("debian-guest", guestPod, func(p *corev1.Pod) {
		p.Annotations = map[string]string{
			translate.AnnotationVMKernel: kernel, translate.AnnotationVMInitrd: initrd,
			translate.AnnotationVMCmdline:      "root=/dev/vda rw console=ttyS0",
			translate.AnnotationVMUserDataFrom: "secret/seed/config",
			translate.AnnotationVMSSHKeys:      public,
			translate.AnnotationVMReady:        "cloud-init",
		}
		c := &p.Spec.Containers[0]
		c.Image, c.Ports, c.ReadinessProbe = disk, []corev1.ContainerPort{{ContainerPort: 22}}, nil
		c.Command = []string{"sh", "-c", `echo "the command: $(cat /root/ran) $C_greeting $(cat /etc/conf/greeting)"; until [ -e /data/end ]; do sleep 1; done; exit 6`}
		c.Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("512Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse("3Gi")},
		}
	}))
	p = await(t, kube, p, 6*time.Minute, "ready", ready)
	t.Logf("cloud-init was done after %.0f s", time.Since(start).Seconds())
	out, errOut, _ := execIn(t, p, "c", nil, "sh", "-c", "cloud-init status; hostname; cat /root/secret /root/ran ~debian/.ssh/authorized_keys; ip -br -4 addr show eth0; "+
		"grep -h DNS= /run/systemd/network/* /etc/systemd/network/*; blockdev --getsize64 /dev/vda; df -t ext4 -t tmpfs --output=target,size")
	for _, want := range []string{"status: done", "debian-guest\n", "s3cret", "seeded", "me@e2e", "10.0.2.15", fmt.Sprint(3 << 30), "/data ", "/mem "} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q, %s", want, out, errOut)
		}
	}
	if out, _, _ := execIn(t, p, "c", nil, "sh", "-c", "cat /sec/key; stat -Lc %a /sec/key; printf %s \"$KEY\""); out != "s3cret 'quoted' \"$(x)\"\nsecond400\ns3cret 'quoted' \"$(x)\"\nsecond" {
		t.Errorf("the Secret in the guest: %q", out)
	}
	login(t, key, p, "cat /etc/conf/greeting; cat /etc/hostname", "hellodebian-guest\n")
	eventually(t, time.Minute, "the command has begun", func() error {
		if out := logs(t, kube, p, &corev1.PodLogOptions{}); !strings.Contains(out, "the command: seeded hello hello") {
			return fmt.Errorf("log: %q", out[max(0, len(out)-500):])
		}
		return nil
	})
	if _, err := kube.CoreV1().ConfigMaps(ns).Patch(t.Context(), "conf", types.MergePatchType, []byte(`{"data":{"greeting":"good bye"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the change in the guest", func() error {
		if out, _, _ := execIn(t, p, "c", nil, "cat", "/etc/conf/greeting"); out != "good bye" {
			return fmt.Errorf("%q", out)
		}
		return nil
	})
	start = time.Now()
	_, _, _ = execIn(t, p, "c", nil, "touch", "/data/end")
	p = await(t, kube, p, 2*time.Minute, "failed", phase(corev1.PodFailed))
	if st := status(p, "c"); st.State.Terminated == nil || st.State.Terminated.ExitCode != 6 {
		t.Errorf("%+v", st)
	}
	t.Logf("its command ended, and the VM %.1f s later", time.Since(start).Seconds())
	if out := logs(t, kube, p, &corev1.PodLogOptions{}); !strings.Contains(out, "Power down") {
		t.Errorf("it was not shut down in order: %q", out[max(0, len(out)-500):])
	}
}

// The example runs as it stands, but for its image, which is far away, and the key.
func TestExampleVMCloudInit(t *testing.T) {
	ns := namespace(t, kube)
	disk, kernel, initrd := debianGuest(t, ns)
	key, public := sshKey(t)
	manifest, err := os.ReadFile("../../examples/vm-cloud-init/vm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	text := regexp.MustCompile("ssh-ed25519 .*").ReplaceAllString(string(manifest), strings.TrimSpace(public))
	text = regexp.MustCompile("image: https:.*").ReplaceAllString(text, "image: "+disk)
	text = strings.Replace(text, "  annotations:\n", "  annotations:\n    "+translate.AnnotationVMKernel+": "+kernel+"\n    "+translate.AnnotationVMInitrd+": "+initrd+
		"\n    "+translate.AnnotationVMCmdline+": root=/dev/vda rw console=ttyS0\n", 1)
	if out, err := tryKubectl(t, text, "-n", ns, "apply", "-f", "-"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	kubectl(t, "-n", ns, "wait", "--for=condition=Ready", "pod/debian-vm", "--timeout=6m")
	p, err := kube.CoreV1().Pods(ns).Get(t.Context(), "debian-vm", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	login(t, key, p, "cat /etc/greeting/greeting /run/seeded /etc/motd; df /data | grep -c /data", "helloseeded\nA pod that is a Debian.\n1\n")
	kubectl(t, "-n", ns, "delete", "--wait", "--timeout=120s", "pod/debian-vm")
}

// sshKey makes a pair of keys.
func sshKey(t *testing.T) (file, public string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "key")
	if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me@e2e", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v %s", err, out)
	}
	data, err := os.ReadFile(file + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	return file, string(data)
}

// login runs a command as the default user, by ssh to the pod's address.
func login(t *testing.T, key string, p *corev1.Pod, command, want string) {
	t.Helper()
	eventually(t, 2*time.Minute, "ssh", func() error {
		cmd := exec.CommandContext(t.Context(), "ssh", "-i", key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
			"-o", "ConnectTimeout=10", "-o", "BatchMode=yes", "debian@"+p.Status.PodIP, command)
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			return fmt.Errorf("%q, %v", out, err)
		}
		return nil
	})
}
