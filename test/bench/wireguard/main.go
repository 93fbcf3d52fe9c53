// Wireguard runs one wireguard-go tunnel to one peer, made by the Go module as its own program makes it: what the sleeve is
// compared with. Addresses and routes are left to the caller; it prints "ready" when the device is up and ends with SIGTERM.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

func main() {
	name := flag.String("device", "wg0", "name of the TUN device")
	mtu := flag.Int("mtu", device.DefaultMTU, "of the device")
	port := flag.Int("port", 51820, "UDP port")
	private := flag.String("private", "", "our key, hexadecimal")
	public := flag.String("peer", "", "the peer's key, hexadecimal")
	endpoint := flag.String("endpoint", "", "the peer's address:port")
	allowed := flag.String("allowed", "", "prefix behind the peer")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *name, *mtu, fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nendpoint=%s\nallowed_ip=%s\n",
		*private, *port, *public, *endpoint, *allowed)); err != nil {
		fmt.Fprintln(os.Stderr, "wireguard:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, name string, mtu int, configuration string) error {
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return fmt.Errorf("make device %s: %w", name, err)
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer d.Close()
	if err := d.IpcSet(configuration); err != nil {
		return fmt.Errorf("configure: %w", err)
	}
	if err := d.Up(); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
	case <-d.Wait():
	}
	return nil
}
