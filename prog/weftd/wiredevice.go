package weftd

import (
	"context"
	"errors"
	"fmt"
	"os"

	"weft/prog/wire"
	"weft/router/wireguard"
)

// wireDevices is the wire as the place of WireGuard devices. A wire that follows another has none of its devices: the
// transport notices and opens them again.
type wireDevices struct{ link *wirelink }

var _ wireguard.Process = wireDevices{}

func (w wireDevices) OpenDevice(ctx context.Context, name string, queue *os.File) error {
	return w.do(ctx, func(ctx context.Context, c *wire.Client) error { return c.OpenDevice(ctx, name, queue) })
}

func (w wireDevices) ShutDevice(ctx context.Context, name string) error {
	err := w.do(ctx, func(ctx context.Context, c *wire.Client) error { return c.ShutDevice(ctx, name) })
	if errors.Is(err, wireguard.ErrAway) {
		return nil // it went with its process
	}
	return err
}

func (w wireDevices) SetDevice(ctx context.Context, name, text string) error {
	return w.do(ctx, func(ctx context.Context, c *wire.Client) error { return c.SetDevice(ctx, name, text) })
}

func (w wireDevices) Device(ctx context.Context, name string) (text string, err error) {
	err = w.do(ctx, func(ctx context.Context, c *wire.Client) (err error) {
		text, err = c.Device(ctx, name)
		return err
	})
	return text, err
}

func (w wireDevices) do(ctx context.Context, f func(context.Context, *wire.Client) error) error {
	c, _ := w.link.current()
	if c == nil {
		return wireguard.ErrAway
	}
	ctx, cancel := context.WithTimeout(ctx, wireTellTime)
	defer cancel()
	err := f(ctx, c)
	switch {
	case errors.Is(err, wire.ErrLost):
		return wireguard.ErrAway
	case errors.Is(err, wire.ErrNoDevice):
		return fmt.Errorf("%w: %w", wireguard.ErrNoDevice, err)
	}
	return err
}
