package wireguard

import (
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var stranger = Key{0xff}

// model is a device as WireGuard keeps one: a prefix belongs to one peer.
type model struct{ State }

func newModel() *model { return &model{State{Peers: map[Key]Peer{}}} }

func (m *model) configure(c Config) {
	if c.Private != nil {
		m.Private = clamp(*c.Private)
	}
	if c.Port != nil {
		m.Port = *c.Port
	}
	for _, p := range c.Peers {
		m.change(p)
	}
}

func (m *model) change(c Change) {
	if c.Remove {
		delete(m.Peers, c.Public)
		return
	}
	p := m.Peers[c.Public]
	if c.Preshared != nil {
		p.Preshared = *c.Preshared
	}
	if c.Endpoint.IsValid() {
		p.Endpoint = c.Endpoint
	}
	if c.Keepalive != nil {
		p.Keepalive = *c.Keepalive
	}
	for k, q := range m.Peers {
		q.Allowed = slices.DeleteFunc(slices.Clone(q.Allowed), func(a netip.Prefix) bool { return slices.Contains(c.Allowed, a) })
		m.Peers[k] = q
	}
	p.Allowed = append(slices.DeleteFunc(slices.Clone(p.Allowed), func(a netip.Prefix) bool {
		return slices.Contains(c.Allowed, a)
	}), c.Allowed...)
	m.Peers[c.Public] = p
}

// lookup is the peer that a packet to a goes to.
func (m *model) lookup(a netip.Addr) (who Key, found bool) {
	best := -1
	for k, p := range m.Peers {
		for _, q := range p.Allowed {
			if q.Contains(a) && q.Bits() > best {
				who, best = k, q.Bits()
			}
		}
	}
	return who, best >= 0
}

func first(k Key, _ bool) Key { return k }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func TestNothingIsChangedTwice(t *testing.T) {
	psk := Key{9}
	want := wanted{private: Key{1}, port: 6784, peers: []wantedPeer{{
		public: Key{2}, preshared: &psk, endpoint: netip.MustParseAddrPort("192.0.2.2:6784"), move: true,
		allowed: []netip.Prefix{prefix("10.32.4.0/22")},
	}}}
	m := newModel()
	for _, c := range diff(m.State, want, stranger) {
		m.configure(c)
	}
	if again := diff(m.State, want, stranger); len(again) != 0 {
		t.Errorf("a device that is as wanted is changed: %+v", again)
	}
}

func TestAPeerWithoutSecretIsNeverAdded(t *testing.T) {
	want := wanted{peers: []wantedPeer{{public: Key{2}, allowed: []netip.Prefix{prefix("10.32.4.0/22")}}}}
	if steps := diff(newModel().State, want, stranger); len(steps) != 0 {
		t.Errorf("a peer without a secret is configured: %+v", steps)
	}
	// One that the device knows already keeps its secret.
	m := newModel()
	m.Peers[Key{2}] = Peer{Preshared: Key{7}}
	for _, c := range diff(m.State, want, stranger) {
		m.configure(c)
	}
	if p := m.Peers[Key{2}]; p.Preshared != (Key{7}) || len(p.Allowed) != 1 {
		t.Errorf("known peer became %+v", p)
	}
}

func TestARoamingPeerIsLeftWhereItIs(t *testing.T) {
	psk := Key{9}
	at, home := netip.MustParseAddrPort("203.0.113.9:4711"), netip.MustParseAddrPort("192.0.2.2:6784")
	m := newModel()
	m.Peers[Key{2}] = Peer{Preshared: psk, Endpoint: at}
	w := wantedPeer{public: Key{2}, preshared: &psk, endpoint: home}
	if steps := diff(m.State, wanted{peers: []wantedPeer{w}}, stranger); len(steps) != 0 {
		t.Errorf("a peer that roamed is sent home: %+v", steps)
	}
	w.move = true
	steps := diff(m.State, wanted{peers: []wantedPeer{w}}, stranger)
	if len(steps) != 1 || steps[0].Peers[0].Endpoint != home {
		t.Errorf("a new endpoint is not set: %+v", steps)
	}
}

// TestBlocksMoveWithoutAHole plays random changes of ownership, and looks after each single change of the device: an
// address that has an owner before and after always leads to one of the two.
func TestBlocksMoveWithoutAHole(t *testing.T) {
	blocks := []netip.Prefix{
		prefix("10.32.0.0/21"), prefix("10.32.0.0/22"), prefix("10.32.4.0/22"), prefix("10.32.8.0/22"),
		prefix("fd77::a20:0/118"), prefix("10.32.4.0/24"),
	}
	var samples []netip.Addr
	for _, b := range blocks {
		samples = append(samples, b.Addr().Next())
	}
	drawWanted := func(t *rapid.T) wanted {
		w := wanted{private: Key{1}, port: 6784}
		owner := map[netip.Prefix]int{}
		for _, b := range blocks {
			owner[b] = rapid.IntRange(0, 3).Draw(t, "owner of "+b.String()) // 0: nobody
		}
		for i := 1; i <= 3; i++ {
			psk := Key{rapid.Byte().Draw(t, "psk") | 1}
			p := wantedPeer{public: Key{byte(i)}, preshared: &psk, keepalive: time.Duration(rapid.IntRange(0, 1).Draw(t, "nat")) * time.Second}
			for _, b := range blocks {
				if owner[b] == i {
					p.allowed = append(p.allowed, b)
				}
			}
			if rapid.Bool().Draw(t, "there") {
				w.peers = append(w.peers, p)
			}
		}
		return w
	}
	rapid.Check(t, func(t *rapid.T) {
		m := newModel()
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			want := drawWanted(t)
			after := newModel()
			for _, w := range want.peers {
				after.change(Change{Public: w.public, Preshared: w.preshared, Keepalive: &w.keepalive, Allowed: w.allowed})
			}
			before := &model{State{Peers: maps.Clone(m.Peers)}}
			for _, c := range diff(m.State, want, stranger) {
				if c.Private != nil || c.Port != nil {
					m.configure(Config{Private: c.Private, Port: c.Port})
				}
				for _, p := range c.Peers {
					m.change(p)
					for _, a := range samples {
						old, had := before.lookup(a)
						next, will := after.lookup(a)
						now, has := m.lookup(a)
						if had && will && (!has || now != old && now != next) {
							t.Fatalf("%s goes from peer %x to %x and meanwhile to %x (%t)", a, old[:1], next[:1], now[:1], has)
						}
					}
				}
			}
			for _, a := range samples {
				if now, _ := m.lookup(a); now != first(after.lookup(a)) {
					t.Fatalf("%s goes to peer %x in the end", a, now[:1])
				}
			}
			for k, p := range m.Peers {
				w, there := after.Peers[k]
				if !there || w.Preshared != p.Preshared || w.Keepalive != p.Keepalive {
					t.Fatalf("peer %x is %+v, want %+v", k[:1], p, w)
				}
			}
			if len(m.Peers) != len(after.Peers) {
				t.Fatalf("%d peers, want %d", len(m.Peers), len(after.Peers))
			}
		}
	})
}

func TestTwoThatWantOneBlock(t *testing.T) {
	psk := Key{9}
	b := []netip.Prefix{prefix("10.32.0.0/22")}
	want := wanted{peers: []wantedPeer{{public: Key{1}, preshared: &psk, allowed: b}, {public: Key{2}, preshared: &psk, allowed: b}}}
	m := newModel()
	m.Peers[Key{2}] = Peer{Preshared: psk, Allowed: b}
	for _, c := range diff(m.State, want, stranger) {
		m.configure(c)
	}
	if len(m.Peers[Key{2}].Allowed) != 1 || len(m.Peers[Key{1}].Allowed) != 0 {
		t.Errorf("who has the block should keep it: %+v", m.Peers)
	}
	if steps := diff(m.State, want, stranger); len(steps) != 0 {
		t.Errorf("the quarrel goes on: %+v", steps)
	}
}
