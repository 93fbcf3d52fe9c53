package weftd

import (
	"log/slog"
	"net/netip"
	"testing"

	"weft/mesh/peer"
)

// TestOneOfTwoBegins: two members that just met agree which of them dials, whichever the reason, and it is the one that can.
func TestOneOfTwoBegins(t *testing.T) {
	at := func(addrs ...string) (all []netip.AddrPort) {
		for _, a := range addrs {
			all = append(all, netip.AddrPortFrom(netip.MustParseAddr(a), 6783))
		}
		return all
	}
	const lower, higher, byID = "the lower ID", "the higher ID", "the lower ID"
	for name, c := range map[string]struct {
		low, high peer.Info
		begins    string
	}{
		"nothing is known of either": {peer.Info{}, peer.Info{}, byID},
		"one has not told where it is yet, and might be anywhere": {
			peer.Info{Endpoints: at("10.0.0.1")}, peer.Info{Dialable: true}, byID,
		},
		"both are in one private network": {
			peer.Info{Endpoints: at("10.0.0.1")}, peer.Info{Endpoints: at("10.0.0.2")}, byID,
		},
		"both are public": {
			peer.Info{Endpoints: at("198.51.100.1")}, peer.Info{Endpoints: at("203.0.113.2")}, byID,
		},
		"the higher is public, the lower private": {
			peer.Info{Endpoints: at("192.168.1.1")}, peer.Info{Endpoints: at("203.0.113.2")}, lower,
		},
		"the lower is public, the higher private": {
			peer.Info{Endpoints: at("198.51.100.1")}, peer.Info{Endpoints: at("172.16.0.2")}, higher,
		},
		"the higher is behind a carrier's NAT": {
			peer.Info{Endpoints: at("198.51.100.1")}, peer.Info{Endpoints: at("100.64.3.2")}, higher,
		},
		"a public address among private ones counts": {
			peer.Info{Endpoints: at("10.0.0.1", "198.51.100.1")}, peer.Info{Endpoints: at("10.0.0.2")}, higher,
		},
		"an IPv6 address tells nothing of who lets others in": {
			peer.Info{Endpoints: at("2001:db8::1")}, peer.Info{Endpoints: at("10.0.0.2")}, byID,
		},
		"the lower was dialled from outside": {
			peer.Info{Endpoints: at("10.0.0.1"), Dialable: true}, peer.Info{Endpoints: at("10.0.0.2")}, higher,
		},
		"the lower was dialled from outside, through its NAT": {
			peer.Info{Endpoints: at("10.0.0.1"), Dialable: true, NAT: peer.NATHard}, peer.Info{Endpoints: at("10.0.0.2")}, byID,
		},
		"the higher says that it can be dialled, and the lower too": {
			peer.Info{Endpoints: at("10.0.0.1"), Dialable: true}, peer.Info{Endpoints: at("10.0.0.2"), Dialable: true}, byID,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c.low.ID, c.high.ID = peer.ID{1}, peer.ID{2}
			begins := func(self, other peer.Info) bool {
				p := newPairs(slog.New(slog.DiscardHandler), self.ID)
				p.easier = func(m peer.Info) int { return easierThan(self, m) }
				return p.mayBegin(other)
			}
			low, high := begins(c.low, c.high), begins(c.high, c.low)
			if low == high || low != (c.begins == lower) {
				t.Errorf("the lower ID begins: %v, the higher: %v, want %s", low, high, c.begins)
			}
			if forth, back := easierThan(c.low, c.high), easierThan(c.high, c.low); forth != -back {
				t.Errorf("seen from the lower ID %d, from the higher %d", forth, back)
			}
		})
	}
	p := newPairs(slog.New(slog.DiscardHandler), peer.ID{1})
	if !p.mayBegin(peer.Info{ID: peer.ID{2}}) || p.mayBegin(peer.Info{ID: peer.ID{0, 9}}) {
		t.Error("where nobody knows who can be dialled, it is not the lower ID that begins")
	}
}
