package wireguard

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
)

// Remote is what records and agreements say about a peer.
type Remote struct {
	Public    Key
	Secrets   []psk.Secret // newest first; none: those that the device has stay
	Host      netip.Addr   // its own address in the overlay, of the family of Self; zero: it has told none
	NATed     bool         // one of the two is behind a NAT, which must be kept open
	Hidden    bool         // the peer is, and no port but the weft port is open there: it must come to us
	Reachable bool         // it is heard over another way
}

// Directory tells about peers.
type Directory interface {
	// Self is this machine's own address in the overlay, from which tunnels are tested: the IPv4 one where there is one;
	// zero while there is none.
	Self() netip.Addr
	// Rest is after what time without traffic a tunnel is tested no more; 0: never.
	Rest() time.Duration
	// Remote is about one peer; false where it has told no WireGuard key.
	Remote(id peer.ID) (Remote, bool)
}

// config is what makes one transport differ from the other.
type config struct {
	name    string // of the network device
	host    Host
	device  Device
	private Key
	port    uint16
	// endpoint is where a tunnel's packets go; zero: the peer must come to us.
	endpoint  func(t router.Tunnel, r Remote) netip.AddrPort
	directory Directory
	log       *slog.Logger
}

// transport keeps one device.
type transport struct {
	config
	public Key

	mu       sync.Mutex // guards all below
	stranger Key
	echo     *host.Echoer // nil until it is needed, and where there is no right to have one
	tunnels  map[peer.ID]*tunnel
	fault    string          // why nothing works; empty when something may
	holders  map[Key]peer.ID // who has each public key, as the device was told last
}

var _ router.Transport = (*transport)(nil)

func open(c config) (*transport, error) {
	t := &transport{config: c, tunnels: make(map[peer.ID]*tunnel)}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	// Any 32 bytes are a public key; nobody has the private one of these.
	if _, err := rand.Read(t.stranger[:]); err != nil {
		return nil, fmt.Errorf("make a stranger's key: %w", err)
	}
	private, err := ecdh.X25519().NewPrivateKey(t.private[:])
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	t.public = Key(private.PublicKey().Bytes())
	return t, nil
}

// Apply makes the device and its peers.
func (t *transport) Apply(ctx context.Context, want []router.Tunnel) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.tunnels
	t.tunnels = make(map[peer.ID]*tunnel, len(want))
	for _, w := range want {
		u := old[w.Peer]
		if u == nil {
			u = &tunnel{}
		}
		u.Tunnel = w
		t.tunnels[w.Peer] = u
	}
	if len(want) == 0 {
		return t.remove(ctx)
	}
	err := t.device.Ensure(ctx, t.mtu())
	if err == nil {
		err = t.sync(ctx, time.Now())
	}
	if errors.Is(err, ErrAway) {
		return nil // Links goes on trying
	}
	return err
}

// Links reports each tunnel of the last Apply. Being asked every now and then is what drives the transport: it looks at
// the device, repairs what somebody changed, and sends echoes.
func (t *transport) Links(ctx context.Context) ([]router.Link, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.tunnels) == 0 {
		return nil, nil
	}
	now := time.Now()
	err := t.sync(ctx, now)
	if errors.Is(err, ErrNoDevice) {
		if err = t.device.Ensure(ctx, t.mtu()); err == nil {
			err = t.sync(ctx, now)
		}
	}
	t.fault = ""
	if err != nil {
		t.fault = err.Error()
	} else if err := t.measure(ctx); err != nil {
		t.fault = err.Error()
	}
	out := make([]router.Link, 0, len(t.tunnels))
	now = time.Now()
	for _, u := range t.tunnels {
		out = append(out, t.link(u, now))
	}
	slices.SortFunc(out, func(a, b router.Link) int { return a.Peer.Compare(b.Peer) })
	if errors.Is(err, ErrAway) {
		err = nil // the reason of each link
	}
	return out, err
}

// mtu is that of the device: of the largest tunnel.
func (t *transport) mtu() (mtu int) {
	for _, u := range t.tunnels {
		mtu = max(mtu, u.MTU)
	}
	return mtu
}

// sync makes the device what is wanted; one that is already costs one look.
func (t *transport) sync(ctx context.Context, now time.Time) error {
	have, err := t.device.State(ctx)
	if err != nil {
		return err
	}
	want := wanted{private: t.private, port: t.port}
	holders := t.claim()
	for _, id := range t.sorted() {
		if u := t.tunnels[id]; u.known {
			want.peers = append(want.peers, t.want(u, have, now))
		}
	}
	if t.removeAnew(have, &want) {
		rest := wanted{private: t.private, port: t.port, peers: without(want.peers, t.tunnels)}
		if err := carryOut(ctx, t.device, diff(have, rest, t.stranger), dismiss(have, want)); err != nil {
			return err
		}
		if have, err = t.device.State(ctx); err != nil {
			return err
		}
	}
	t.holders = holders
	steps := diff(have, want, t.stranger)
	if err := carryOut(ctx, t.device, steps, dismiss(have, want)); err != nil {
		return err
	}
	if len(steps) > 0 {
		if have, err = t.device.State(ctx); err != nil {
			return err
		}
	}
	for _, u := range t.tunnels {
		u.anew = false
		u.now, u.added = have.Peers[u.remote.Public]
		if !u.added || !u.known {
			u.now, u.added, u.told = Peer{}, false, netip.AddrPort{}
		}
	}
	return nil
}

// claim asks the directory about all, and settles who has a public key that several claim: who had it before. The others
// have none, or a peer could take another's tunnel by its word alone.
func (t *transport) claim() map[Key]peer.ID {
	holders := make(map[Key]peer.ID, len(t.tunnels))
	ids := t.sorted()
	for _, id := range ids {
		u := t.tunnels[id]
		u.remote, u.known = t.directory.Remote(id)
		k := u.remote.Public
		if _, taken := holders[k]; u.known && (!taken || t.holders[k] == id) {
			holders[k] = id
		}
	}
	for _, id := range ids {
		u := t.tunnels[id]
		u.liar = u.known && holders[u.remote.Public] != id
		u.known = u.known && !u.liar
	}
	return holders
}

func (t *transport) sorted() []peer.ID {
	ids := make([]peer.ID, 0, len(t.tunnels))
	for id := range t.tunnels {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, peer.ID.Compare)
	return ids
}

// measure sends echoes and takes their answers.
func (t *transport) measure(ctx context.Context) error {
	link, exists, err := t.host.Link(ctx, t.name)
	if err != nil || !exists {
		return errors.Join(err, fmt.Errorf("%w: %s", ErrNoDevice, t.name))
	}
	if t.echo == nil {
		if t.echo, err = t.host.OpenEcho(); err != nil {
			return err
		}
	}
	answers := make(map[netip.Addr][]host.Echo)
	for _, a := range t.echo.Receive() {
		answers[a.From] = append(answers[a.From], a)
	}
	own, now := t.directory.Self(), time.Now() // after all that took time: an echo is as old as it is
	for _, u := range t.tunnels {
		u.health.Allow(u.MTU)
		u.health.Rest(t.directory.Rest())
		full := u.health.Full(link.MTU)
		send, help := u.health.step(now, look{
			peer: u.now, known: u.added, answers: answers[u.remote.Host], full: full,
			testable: own.IsValid() && own.BitLen() == u.remote.Host.BitLen() && link.Up, reachable: u.remote.Reachable,
			yields: bytes.Compare(t.public[:], u.remote.Public[:]) > 0,
		})
		for _, e := range send {
			if err := t.echo.Send(link.Index, own, u.remote.Host, e.Seq, e.Size); err != nil {
				t.log.Debug("tunnel not tested", "peer", u.Peer, "err", err)
			}
		}
		t.help(u, help)
	}
	return nil
}

// Close removes the device.
func (t *transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.tunnels)
	return t.remove(context.Background())
}

func (t *transport) remove(ctx context.Context) error {
	var err error
	if t.echo != nil {
		err = t.echo.Close()
		t.echo = nil
	}
	return errors.Join(err, t.device.Remove(ctx))
}
