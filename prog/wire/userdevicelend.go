package wire

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// sessionLife is how long WireGuard's sessions live: those of a device that is taken up are made anew at once.
const sessionLife = 3 * time.Minute

// settable are the lines of a device's text that may be said to another.
var settable = []string{
	"private_key", "listen_port", "fwmark", "public_key", "preshared_key", "protocol_version", "endpoint",
	"persistent_keepalive_interval", "allowed_ip",
}

// lend copies a device: its text, and the descriptor of its TUN device, which outlives this process that way.
func (u *userDevices) lend(body []byte) (reply []byte, fds []int, err error) {
	if reply, err = u.get(body); err != nil {
		return nil, nil, err
	}
	name, _, err := parseDeviceText(body)
	if err != nil {
		return nil, nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	d := u.all[name]
	if d == nil {
		return nil, nil, fmt.Errorf("%w: %s", ErrNoDevice, name)
	}
	fd, err := duplicateFD(d.queue)
	if err != nil {
		return nil, nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return reply, []int{fd}, nil
}

// takeUp tells a new device what another held, and begins handshakes where that had sessions: the other ends go on sending
// by those, which nobody can open any more.
func takeUp(d *device.Device, text string, now time.Time) error {
	config, sessions := inherit(text, now)
	if err := d.IpcSet(config); err != nil {
		return err
	}
	for _, key := range sessions {
		if p := d.LookupPeer(key); p != nil {
			_ = p.SendHandshakeInitiation(false) // else WireGuard itself, with the next packet
		}
	}
	return nil
}

// inherit takes what can be set out of a device's text, and the peers with which there is a session.
func inherit(text string, now time.Time) (config string, sessions []device.NoisePublicKey) {
	var b strings.Builder
	var peer device.NoisePublicKey
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		key, value, _ := strings.Cut(line, "=")
		switch key {
		case "public_key":
			if peer.FromHex(value) != nil {
				peer = device.NoisePublicKey{}
			}
		case "last_handshake_time_sec":
			at, err := strconv.ParseInt(value, 10, 64)
			if err == nil && now.Sub(time.Unix(at, 0)) < sessionLife {
				sessions = append(sessions, peer)
			}
		}
		if slices.Contains(settable, key) {
			b.WriteString(line + "\n")
		}
	}
	return b.String(), sessions
}

// uses notes that this weftd has a device in the wire, or no more.
func (c *Client) uses(device string, does bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !does {
		delete(c.devices, device)
		return
	}
	if c.devices == nil {
		c.devices = make(map[string]bool)
	}
	c.devices[device] = true
}

// lentDevice is a device on its way to another wire.
type lentDevice struct {
	name, text string
	queue      int
}

// lendDevices fetches the devices that this weftd uses. One that cannot be had is made anew by whoever uses it, as with a
// wire of an older weft that lends none.
func (c *Client) lendDevices(ctx context.Context) (lent []lentDevice) {
	c.mu.Lock()
	names := slices.Sorted(maps.Keys(c.devices))
	c.mu.Unlock()
	for _, name := range names {
		d, err := c.lendDevice(ctx, name)
		switch {
		case errors.Is(err, ErrUnsupported), errors.Is(noDevice(err), ErrNoDevice):
		case err != nil:
			c.log.Warn("a WireGuard device does not outlive its wire", "device", name, "err", err)
		default:
			lent = append(lent, d)
		}
	}
	return lent
}

func (c *Client) lendDevice(ctx context.Context, name string) (lentDevice, error) {
	r, err := c.call(ctx, kindDeviceLend, appendDeviceText(nil, name, ""))
	if err != nil {
		return lentDevice{}, err
	}
	_, text, err := parseDeviceText(r.body)
	if err == nil && len(r.fds) != 1 {
		err = fmt.Errorf("%d descriptors arrived", len(r.fds))
	}
	if err != nil {
		closeFDs(r.fds)
		return lentDevice{}, fmt.Errorf("fetch %s: %w", name, err)
	}
	return lentDevice{name, text, r.fds[0]}, nil
}

// takeOverDevices gives the devices of another wire to this one.
func (c *Client) takeOverDevices(ctx context.Context, lent []lentDevice) {
	for _, d := range lent {
		if err := c.lend(ctx, kindDeviceOpen, appendDeviceText(nil, d.name, d.text), d.queue); err != nil {
			c.log.Warn("a WireGuard device does not outlive its wire", "device", d.name, "err", err)
			continue
		}
		c.uses(d.name, true)
	}
}

func closeLent(lent []lentDevice) {
	for _, d := range lent {
		closeFDs([]int{d.queue})
	}
}
