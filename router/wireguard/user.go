package wireguard

import (
	"context"
	"errors"
	"fmt"
	"os"

	"weft/router/host"
)

// Process is the process that runs devices beside the kernel, seen from the daemon.
type Process interface {
	// OpenDevice starts a device on the queue of a TUN device of that name.
	OpenDevice(ctx context.Context, name string, queue *os.File) error
	// ShutDevice ends one, which may be gone.
	ShutDevice(ctx context.Context, name string) error
	// SetDevice changes a device, and Device reads it, both in the text of WireGuard's configuration protocol; an error
	// wraps ErrNoDevice when there is none of that name.
	SetDevice(ctx context.Context, name, text string) error
	Device(ctx context.Context, name string) (text string, err error)
}

// UserHost is what such a device needs of the machine beside Host.
type UserHost interface {
	Host
	OpenTUN(name string, queues int, super bool) ([]*os.File, host.Offload, error)
}

var _ UserHost = (*host.Host)(nil)

// user is a device of a process.
type user struct {
	host    UserHost
	process Process
	name    string
}

var _ Device = (*user)(nil)

// User is the device of a name in a process. Nothing is touched yet.
func User(h UserHost, p Process, name string) Device { return &user{host: h, process: p, name: name} }

// Ensure makes the TUN device or takes over the one that a former process left, and hands it over.
func (u *user) Ensure(ctx context.Context, mtu int) error {
	now, exists, err := u.host.Link(ctx, u.name)
	if err != nil {
		return err
	}
	_, err = u.process.Device(ctx, u.name)
	switch {
	case err != nil && !errors.Is(err, ErrNoDevice):
		return fmt.Errorf("ask for %s: %w", u.name, err)
	case err != nil || !exists:
		queues, _, err := u.host.OpenTUN(u.name, 1, true)
		if err != nil {
			return err
		}
		// wireguard-go asks for the size once, and fills packets up to it.
		err = u.host.Apply(ctx, []host.Change{{Link: &host.Link{Name: u.name, MTU: mtu, Up: true}}})
		if err == nil {
			err = u.process.OpenDevice(ctx, u.name, queues[0])
		}
		for _, q := range queues {
			err = errors.Join(err, q.Close())
		}
		if err != nil {
			return fmt.Errorf("hand %s over: %w", u.name, err)
		}
	case !now.Up:
		return u.host.Apply(ctx, []host.Change{{Link: &host.Link{Name: u.name, Up: true}}})
	}
	return nil
}

func (u *user) State(ctx context.Context) (State, error) {
	text, err := u.process.Device(ctx, u.name)
	if err != nil {
		return State{}, fmt.Errorf("read %s: %w", u.name, err)
	}
	_, exists, err := u.host.Link(ctx, u.name)
	if err != nil {
		return State{}, err
	}
	if !exists {
		return State{}, fmt.Errorf("%w: %s", ErrNoDevice, u.name)
	}
	return parseText(text)
}

func (u *user) Configure(ctx context.Context, c Config) error {
	if err := u.process.SetDevice(ctx, u.name, string(appendText(nil, c))); err != nil {
		return fmt.Errorf("configure %s: %w", u.name, err)
	}
	return nil
}

func (u *user) Remove(ctx context.Context) error {
	err := u.process.ShutDevice(ctx, u.name)
	return errors.Join(err, u.host.Apply(ctx, []host.Change{{Op: host.Delete, Link: &host.Link{Name: u.name}}}))
}
