package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"weft/crypto/tlv"
)

const (
	maxUserDevices = 4
	maxDeviceName  = 16
	maxDeviceText  = maxBody / 2
)

// ErrNoDevice answers what is asked of a WireGuard device that the wire has not got.
var ErrNoDevice = errors.New("the wire has no such WireGuard device")

// userDevices are the WireGuard devices that live in this process, by the names of their network devices. What they hold
// is told in the text of WireGuard's own configuration protocol; like all else it stays when weftd goes.
type userDevices struct {
	log  *slog.Logger
	port foreign

	mu     sync.Mutex // guards all below
	closed bool
	all    map[string]*userDevice
}

type userDevice struct {
	*device.Device
	bind  *portBind
	queue int // a copy of the TUN device's descriptor, for the wire that follows
}

// close ends it.
func (d *userDevice) close() {
	d.Device.Close()
	closeFDs([]int{d.queue})
}

func newUserDevices(log *slog.Logger) *userDevices {
	return &userDevices{log: log, all: map[string]*userDevice{}}
}

// answer does one request. It takes fds over.
func (u *userDevices) answer(k kind, body []byte, fds []int) (reply []byte, out []int, err error) {
	if k == kindDeviceOpen {
		return nil, nil, u.open(body, fds)
	}
	closeFDs(fds)
	switch k {
	case kindDeviceShut:
		err = u.shut(body)
	case kindDeviceSet:
		err = u.set(body)
	case kindDeviceLend:
		return u.lend(body)
	default:
		reply, err = u.get(body)
	}
	return reply, nil, err
}

// open starts a device on a TUN descriptor, in place of one of the same name. With a text it takes up what the device of
// another wire held.
func (u *userDevices) open(body []byte, fds []int) error {
	name, text, err := parseDeviceText(body)
	if err == nil && len(fds) != 1 {
		err = fmt.Errorf("%w: a WireGuard device needs one descriptor, %d came", tlv.ErrMalformed, len(fds))
	}
	if err != nil {
		closeFDs(fds)
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || u.all[name] == nil && len(u.all) >= maxUserDevices {
		closeFDs(fds)
		return errors.New("no more WireGuard devices are taken")
	}
	u.drop(name)
	queue, err := duplicateFD(fds[0])
	if err != nil {
		closeFDs(fds)
		return fmt.Errorf("duplicate descriptor: %w", err)
	}
	b := newBind(&u.port)
	d, err := openUserDevice(fds[0], b, &device.Logger{
		Verbosef: device.DiscardLogf,
		Errorf: func(format string, args ...any) {
			u.log.Warn("trouble with a WireGuard device", "device", name, "err", fmt.Sprintf(format, args...))
		},
	})
	if err != nil {
		closeFDs([]int{queue})
		return err
	}
	u.port.add(b)
	u.all[name] = &userDevice{d, b, queue}
	if text == "" {
		return nil
	}
	if err := takeUp(d, text, time.Now()); err != nil {
		u.drop(name)
		return fmt.Errorf("take up %s: %w", name, err)
	}
	return nil
}

// drop ends a device; mu is held.
func (u *userDevices) drop(name string) {
	if d := u.all[name]; d != nil {
		u.port.remove(d.bind)
		d.close()
		delete(u.all, name)
	}
}

// shut ends one device, which may be gone.
func (u *userDevices) shut(body []byte) error {
	name, _, err := parseDeviceText(body)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.drop(name)
	return nil
}

// set changes a device.
func (u *userDevices) set(body []byte) error {
	name, text, err := parseDeviceText(body)
	if err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	d := u.all[name]
	if d == nil {
		return fmt.Errorf("%w: %s", ErrNoDevice, name)
	}
	if err := d.IpcSet(text); err != nil {
		return fmt.Errorf("configure %s: %w", name, err)
	}
	return nil
}

// get reads a device.
func (u *userDevices) get(body []byte) ([]byte, error) {
	name, _, err := parseDeviceText(body)
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	d := u.all[name]
	if d == nil {
		return nil, fmt.Errorf("%w: %s", ErrNoDevice, name)
	}
	text, err := d.IpcGet()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return appendDeviceText(nil, name, text), nil
}

// close ends all.
func (u *userDevices) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	for name := range u.all {
		u.drop(name)
	}
}

func appendDeviceText(dst []byte, name, text string) []byte {
	dst = tlv.AppendString(dst, 1, name)
	return tlv.AppendString(dst, 2, text)
}

func parseDeviceText(b []byte) (name, text string, err error) {
	r, err := reader(b)
	if err != nil {
		return "", "", err
	}
	r.Require(1)
	name = r.String(1, maxDeviceName)
	text = r.String(2, maxDeviceText)
	return name, text, r.Err()
}

// OpenDevice starts a WireGuard device in the wire, on the queue of a TUN device of that name.
func (c *Client) OpenDevice(ctx context.Context, name string, queue *os.File) error {
	c.uses(name, true)
	return c.give(ctx, kindDeviceOpen, appendDeviceText(nil, name, ""), []*os.File{queue})
}

// ShutDevice ends one, which may be gone.
func (c *Client) ShutDevice(ctx context.Context, name string) error {
	c.uses(name, false)
	_, err := c.call(ctx, kindDeviceShut, appendDeviceText(nil, name, ""))
	return noDevice(err)
}

// SetDevice changes a device by the text of WireGuard's configuration protocol.
func (c *Client) SetDevice(ctx context.Context, name, text string) error {
	_, err := c.call(ctx, kindDeviceSet, appendDeviceText(nil, name, text))
	return noDevice(err)
}

// Device reads a device in the same text; ErrNoDevice when the wire has none of that name.
func (c *Client) Device(ctx context.Context, name string) (text string, err error) {
	r, err := c.call(ctx, kindDeviceGet, appendDeviceText(nil, name, ""))
	if err != nil {
		return "", noDevice(err)
	}
	closeFDs(r.fds)
	c.uses(name, true)
	_, text, err = parseDeviceText(r.body)
	return text, err
}

// noDevice finds the error's meaning behind its words: an answer carries no more.
func noDevice(err error) error {
	if err != nil && strings.Contains(err.Error(), ErrNoDevice.Error()) {
		return ErrNoDevice
	}
	return err
}
