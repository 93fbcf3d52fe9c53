package wireguard

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
)

// stubborn is a device that refuses some changes.
type stubborn struct {
	*model
	refuses func(Config) error
}

func (s *stubborn) Ensure(context.Context, int) error { return nil }

func (s *stubborn) Remove(context.Context) error { return nil }

func (s *stubborn) State(context.Context) (State, error) { return s.model.State, nil }

func (s *stubborn) Configure(_ context.Context, c Config) error {
	if err := s.refuses(c); err != nil {
		return err
	}
	s.configure(c)
	return nil
}

// known tells one key and one secret for each peer.
type known map[peer.ID]Remote

func (k known) Self() netip.Addr { return netip.Addr{} }

func (k known) Rest() time.Duration { return 0 }

func (k known) Remote(id peer.ID) (Remote, bool) { r, ok := k[id]; return r, ok }

func TestARemovedPeerGoesThoughOtherChangesFail(t *testing.T) {
	remote := func(n byte) Remote {
		raw := make([]byte, psk.Size)
		raw[0] = n
		s, err := psk.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return Remote{Public: Key{n}, Secrets: []psk.Secret{s}}
	}
	one, two, three := peer.ID{1}, peer.ID{2}, peer.ID{3}
	all := known{one: remote(1), two: remote(2), three: remote(3)}
	tunnel := func(id peer.ID, block string) router.Tunnel {
		return router.Tunnel{Peer: id, Blocks: []netip.Prefix{prefix(block)}, MTU: 1420}
	}
	dev := &stubborn{model: newModel(), refuses: func(Config) error { return nil }}
	tr, err := open(config{
		name: "weft-wg", device: dev, private: Key{9}, port: Port, directory: all,
		endpoint: func(router.Tunnel, Remote) netip.AddrPort { return netip.AddrPort{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.Apply(t.Context(), []router.Tunnel{tunnel(one, "10.32.4.0/22"), tunnel(two, "10.32.8.0/22")}); err != nil {
		t.Fatal(err)
	}
	if len(dev.Peers) != 2 {
		t.Fatalf("peers %v", dev.Peers)
	}
	busy := errors.New("no memory for another peer")
	dev.refuses = func(c Config) error {
		for _, p := range c.Peers {
			if p.Public == (Key{3}) {
				return busy
			}
		}
		return nil
	}
	delete(all, two)
	// What two had, three is to have: the change that moves it fails.
	err = tr.Apply(t.Context(), []router.Tunnel{tunnel(one, "10.32.4.0/22"), tunnel(three, "10.32.8.0/22")})
	if !errors.Is(err, busy) {
		t.Errorf("apply: %v", err)
	}
	if _, there := dev.Peers[Key{2}]; there {
		t.Error("the device still takes packets of the peer that was removed")
	}
	if p := dev.Peers[Key{1}]; len(p.Allowed) != 1 {
		t.Errorf("another peer lost its block: %v", p.Allowed)
	}
	if _, there := dev.Peers[Key{3}]; there {
		t.Error("a peer without a secret was made")
	}
}

func TestARemovedClientGoesThoughAnotherCannotCome(t *testing.T) {
	dev := &stubborn{model: newModel(), refuses: func(Config) error { return nil }}
	guest := func(n byte, addr string) Guest {
		return Guest{Public: Key{n}, Preshared: Key{n, n}, Allowed: []netip.Prefix{prefix(addr)}}
	}
	if _, err := Welcome(t.Context(), dev, Key{9}, 1, []Guest{guest(1, "10.32.4.1/32")}); err != nil {
		t.Fatal(err)
	}
	busy := errors.New("no memory for another peer")
	dev.refuses = func(c Config) error {
		if len(c.Peers) > 0 && c.Peers[0].Public == (Key{2}) {
			return busy
		}
		return nil
	}
	if _, err := Welcome(t.Context(), dev, Key{9}, 1, []Guest{guest(2, "10.32.4.2/32")}); !errors.Is(err, busy) {
		t.Errorf("welcome: %v", err)
	}
	if len(dev.Peers) != 0 {
		t.Errorf("the device still has %d clients", len(dev.Peers))
	}
}
