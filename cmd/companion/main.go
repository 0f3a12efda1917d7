// Command companion runs beside a pod on its Nomad client, where a feature
// needs code there. It is static and small, and comes as an image of its own.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
)

const usage = `usage: companion vm-power SOCKET
  on SIGTERM, press the power button of the VM whose qemu monitor is SOCKET, and wait until it is off
`

func main() {
	if len(os.Args) != 3 || os.Args[1] != "vm-power" {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	stop, release := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer release()
	if err := companion.PowerButton(context.Background(), stop.Done(), os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "companion:", err)
		os.Exit(1)
	}
}
