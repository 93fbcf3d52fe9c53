package wireguard

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// KeySize is the length of keys, in bytes.
const KeySize = 32

// Key is a private, public or preshared key. It prints as nothing.
type Key [KeySize]byte

// IsZero reports whether there is none.
func (k Key) IsZero() bool { return k == Key{} }

// Base64 is how WireGuard's own tools write a key.
func (k Key) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String keeps keys out of logs.
func (k Key) String() string { return "key" }

// Format is String under every verb.
func (k Key) Format(f fmt.State, _ rune) { fmt.Fprint(f, k.String()) }

// ErrNoDevice says that the network device does not exist.
var ErrNoDevice = errors.New("no such WireGuard device")

// ErrAway says that the process which runs the device is not there just now; it will be.
var ErrAway = errors.New("the process that runs the WireGuard device is not there")

// Device is a WireGuard device, wherever it is implemented.
type Device interface {
	// Ensure makes the network device if it is missing, for packets of that size.
	Ensure(ctx context.Context, mtu int) error
	// State reads everything; ErrNoDevice when there is no device.
	State(ctx context.Context) (State, error)
	// Configure carries out the changes in order.
	Configure(ctx context.Context, c Config) error
	// Remove removes the device, which may be gone.
	Remove(ctx context.Context) error
}

// State is what a device holds.
type State struct {
	Private Key
	Port    uint16
	Peers   map[Key]Peer // by public key
}

// Peer is one peer of a device.
type Peer struct {
	Preshared Key
	Endpoint  netip.AddrPort // where it was heard last, or was said to be; zero: unknown
	Keepalive time.Duration
	Allowed   []netip.Prefix

	Handshake time.Time // the last; zero: none
	Received  uint64    // bytes, with WireGuard's own
	Sent      uint64
}

// Config changes a device. What is nil or absent stays.
type Config struct {
	Private *Key
	Port    *uint16
	Peers   []Change
}

// Change is of one peer; a peer that the device does not know is added, unless it is to be removed.
type Change struct {
	Public    Key
	Remove    bool
	Preshared *Key
	Endpoint  netip.AddrPort // zero: stays
	Keepalive *time.Duration
	Allowed   []netip.Prefix // added, and taken from whoever has them
}

// carryOut makes a device take the steps. Where one fails, those who are not wanted go all the same: in the steps they come
// last, so that no block is nobody's for a moment, and one who was removed must not stay for want of memory for another.
func carryOut(ctx context.Context, d Device, steps []Config, unwanted Config) error {
	for _, c := range steps {
		err := d.Configure(ctx, c)
		if err == nil {
			continue
		}
		if !unwanted.empty() && !errors.Is(err, ErrNoDevice) && !errors.Is(err, ErrAway) {
			err = errors.Join(err, d.Configure(ctx, unwanted))
		}
		return err
	}
	return nil
}

// empty reports whether nothing would change.
func (c Config) empty() bool { return c.Private == nil && c.Port == nil && len(c.Peers) == 0 }
