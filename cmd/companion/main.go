// Command companion runs beside a pod on its Nomad client, where a feature
// needs code there. It is static and small, and comes as an image of its own.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"k8s.io/utils/clock"

	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/companion/vmimage"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/dockerproxy"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/forward"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/probes"
	"github.com/nomad-kubelet/nomad-kubelet/nomadprovider/vmnet"
)

const usage = `usage: companion COMMAND
  serve            wait for SIGTERM; other commands are run beside it
  files            read a list of files from standard input and write them
  get              read a request from standard input and make it
  probes AGENT     run the probes that standard input lists, and report them;
                   AGENT is how they call themselves (kube-probe/1.35)
  forward          carry connections to ports of the pod over standard input and
                   output
  docker-proxy LISTEN ENGINE
                   stand between Nomad and the Docker engine on the socket
                   ENGINE, and mend what the docker driver gets wrong by haste
  vm MONITOR DISK AGENT [PORT FILE CONTROL]
                   on SIGTERM, press the power button of the VM whose qemu monitor
                   is on the socket MONITOR, and wait until it is off; until then,
                   hand the archive DISK to the guest that was not there to take
                   it, by its agent on the socket AGENT, and have the VM end with
                   the code that its command tells on the serial port PORT, of
                   which FILE is the log, by the qemu monitor (QMP) CONTROL;
                   other commands are run beside it
  hold IMAGE vm ...
                   the same, and IMAGE stays in the client's cache until then
  image-fetch DIR CACHE POLICY URL [CHECKSUM]
                   leave in DIR a link to the VM's image from URL, which the
                   client's CACHE has or is given
  image-program DIR
                   leave this program in DIR
  image-copy DIR CACHE PATH
                   leave in DIR a link to a copy in CACHE, or without CACHE ("")
                   a copy, of the disk that the container image holds that this
                   is run in: at PATH, or without PATH ("") the one below /disk
  vm-tap ...       the same, and answer the DHCP requests of the guest, which has
                   the pod's address
  vm-press MONITOR press the power button
  vm-cut MONITOR   end the VM at once
  vm-memory MONITOR
                   print the guest's memory, as its balloon device tells it
  vm-exec AGENT DISK SIGN COMMAND...
  vm-check AGENT DISK SIGN COMMAND...
                   say SIGN, wait for a line, and run COMMAND by the guest agent
                   on the socket AGENT, in the environment of the archive DISK:
                   with the input that follows, or as a probe
  vm-console CONSOLE SIGN
                   the same with the serial console on the socket CONSOLE
`

func main() {
	stop, release := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer release()
	var err error
	args := os.Args[1:]
	if len(args) > 2 && args[0] == "hold" {
		defer hold(args[1])()
		args = args[2:]
	}
	switch {
	case len(args) == 1 && args[0] == "serve":
		<-stop.Done()
	case len(args) == 1 && args[0] == "files":
		answer(companion.WriteFiles(os.Stdin))
	case len(args) == 1 && args[0] == "get":
		answer(companion.Get(stop, os.Stdin))
	case len(args) == 2 && args[0] == "probes":
		err = companion.Probes(stop, os.Stdin, os.Stdout, probes.NewNetwork(args[1], vmnet.Via), clock.RealClock{})
	case len(args) == 1 && args[0] == "forward":
		err = forward.Serve(stop, stdio{os.Stdin, os.Stdout}, vmnet.Local)
	case len(args) == 3 && args[0] == "docker-proxy":
		err = dockerproxy.Serve(stop, args[1], args[2], hclog.Default())
	case (len(args) == 4 || len(args) == 7) && (args[0] == "vm" || args[0] == "vm-tap"):
		if args[0] == "vm-tap" {
			go serveDHCP()
		}
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGUSR1)
		go companion.KeepUp(stop, told, args[2], args[3])
		if len(args) == 7 {
			go companion.Ends(context.Background(), companion.Exit{Port: args[4], File: args[5], Monitor: args[6]})
		}
		err = companion.PowerButton(context.Background(), stop.Done(), args[1])
	case (len(args) == 5 || len(args) == 6) && args[0] == "image-fetch":
		err = vmimage.Try(stop, args[1], companion.LastWords, func(ctx context.Context) error {
			return fetchImage(ctx, args[1], args[2], vmimage.URL{Policy: args[3], Address: args[4], Checksum: strings.Join(args[5:], "")})
		})
	case len(args) == 2 && args[0] == "image-program":
		err = vmimage.Try(stop, args[1], companion.LastWords, func(context.Context) error { return vmimage.PutProgram(args[1]) })
	case len(args) == 4 && args[0] == "image-copy":
		err = vmimage.Try(stop, args[1], companion.LastWords, func(ctx context.Context) error {
			return copyImage(ctx, args[1], args[2], args[3])
		})
	case len(args) == 2 && args[0] == "vm-press":
		answer(companion.Press(stop, args[1]))
	case len(args) == 2 && args[0] == "vm-cut":
		answer(companion.Cut(stop, args[1]))
	case len(args) == 2 && args[0] == "vm-memory":
		var m companion.Memory
		if m, err = companion.GuestMemory(stop, args[1]); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(m)
		}
		time.Sleep(companion.Linger)
	case len(args) > 4 && args[0] == "vm-exec":
		code := companion.GuestExec(stop, args[1], args[2], args[3], args[4:], os.Stdin, os.Stdout, os.Stderr)
		time.Sleep(companion.Linger)
		os.Exit(code)
	case len(args) > 4 && args[0] == "vm-check":
		companion.GuestCheck(stop, args[1], args[2], args[3], args[4:], os.Stdin, os.Stdout)
		time.Sleep(companion.Linger)
	case len(args) == 3 && args[0] == "vm-console":
		err = companion.GuestConsole(stop, args[1], args[2], os.Stdin, os.Stdout)
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "companion:", err)
		os.Exit(1)
	}
}

// serveDHCP ends the program when it cannot: Nomad starts it again, and all that was
// made stays.
func serveDHCP() {
	if err := vmnet.Serve(context.Background(), "/etc/resolv.conf"); err != nil {
		fmt.Fprintln(os.Stderr, "companion:", err)
		os.Exit(1)
	}
}

// stdio is standard input and output as one stream.
type stdio struct {
	io.ReadCloser
	io.Writer
}

// answer is one line; the exit code tells nothing that it does not.
func answer(err error) {
	if err != nil {
		fmt.Println(companion.AnswerFailed + err.Error())
	} else {
		fmt.Println(companion.AnswerDone)
	}
	time.Sleep(companion.Linger)
}
