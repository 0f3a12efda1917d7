package companion

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// bootSector is a guest that tells exit code 6 on its second serial port, waits for
// an answer, and powers off.
var bootSector = []byte{
	0xba, 0xf8, 0x02, // mov dx, 0x2f8
	0xb0, '6', 0xee, // mov al, '6'; out dx, al
	0xb0, '\n', 0xee, // mov al, 10; out dx, al
	0xba, 0xfd, 0x02, // mov dx, 0x2fd
	0xec, 0xa8, 0x01, 0x74, 0xfb, // wait: in al, dx; test al, 1; jz wait
	0xba, 0x04, 0x06, // mov dx, 0x604
	0xb8, 0x00, 0x20, 0xef, // mov ax, 0x2000; out dx, ax
	0xf4, 0xeb, 0xfd, // off: hlt; jmp off
}

// A VM whose command has failed ends with its code made odd, in order, also when
// the companion comes late.
func TestEnds(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("qemu is not installed")
	}
	for _, late := range []bool{false, true} {
		dir := t.TempDir()
		disk := make([]byte, 1<<20)
		copy(disk, bootSector)
		disk[510], disk[511] = 0x55, 0xaa
		image := filepath.Join(dir, "boot.img")
		if err := os.WriteFile(image, disk, 0o600); err != nil {
			t.Fatal(err)
		}
		e := Exit{Port: filepath.Join(dir, "exit.sock"), File: filepath.Join(dir, "exit"), Monitor: filepath.Join(dir, "end.sock")}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, qemu, "-machine", "pc,accel=tcg", "-m", "16", "-display", "none", "-nodefaults",
			"-drive", "file="+image+",format=raw,if=ide", "-device", "isa-debug-exit", "-serial", "null",
			"-chardev", "socket,id=exit,path="+e.Port+",server=on,wait=off,logfile="+e.File, "-serial", "chardev:exit",
			"-chardev", "socket,id=end,path="+e.Monitor+",server=on,wait=off", "-mon", "chardev=end,mode=control")
		cmd.Stderr = os.Stderr
		ended := make(chan struct{})
		ends := func() { Ends(ctx, e); close(ended) }
		if !late {
			go ends()
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if late {
			for e.code() == 0 && ctx.Err() == nil {
				time.Sleep(20 * time.Millisecond)
			}
			go ends()
		}
		err := cmd.Wait()
		if x := (*exec.ExitError)(nil); !errors.As(err, &x) || x.ExitCode() != 7 {
			t.Errorf("late %v: %v", late, err)
		}
		if told, err := os.ReadFile(e.File); err != nil || string(told) != "6\n" {
			t.Errorf("late %v: %q, %v", late, told, err)
		}
		cancel()
		<-ended
	}
}
