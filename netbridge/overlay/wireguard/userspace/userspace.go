package userspace

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/hashicorp/go-hclog"
	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// queue is how many packets wait for this process. The 500 that a tun device has by
// itself are fewer than a pod or two send while a busy machine does not let it run.
const queue = 2048

// Run makes the device and carries it until ctx ends, or until somebody removes
// device or socket, which is an error.
func Run(ctx context.Context, name string, log hclog.Logger) error {
	// The socket comes first: whoever is told that the device is there finds it, and
	// waits until it is answered.
	file, err := ipc.UAPIOpen(name)
	if err != nil {
		return fmt.Errorf("open the socket of WireGuard device %s: %w", name, err)
	}
	defer file.Close()
	listener, err := ipc.UAPIListen(name, file)
	if err != nil {
		return fmt.Errorf("listen at the socket of WireGuard device %s: %w", name, err)
	}
	defer listener.Close()
	t, err := tun.CreateTUN(name, device.DefaultMTU)
	if err != nil {
		return fmt.Errorf("make tun device %s: %w", name, err)
	}
	if err := lengthen(name); err != nil {
		return errors.Join(err, t.Close())
	}
	dev := device.NewDevice(t, conn.NewDefaultBind(), &device.Logger{
		Verbosef: func(format string, args ...any) { log.Debug(fmt.Sprintf(format, args...)) },
		Errorf:   func(format string, args ...any) { log.Error(fmt.Sprintf(format, args...)) },
	})
	defer dev.Close()
	failed := make(chan error, 1)
	go func() { failed <- serve(listener, dev) }()
	log.Info("carries the device until it ends", "device", name, "socket", listener.Addr())
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return fmt.Errorf("the socket of WireGuard device %s is no more: %w", name, err)
	case <-dev.Wait():
		return errors.New("the tun device " + name + " is no more")
	}
}

func lengthen(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetTxQLen(link, queue)
	}
	if err != nil {
		return fmt.Errorf("set the queue of tun device %s: %w", name, err)
	}
	return nil
}

func serve(l net.Listener, dev *device.Device) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go dev.IpcHandle(c)
	}
}
