package sleeve

import (
	"bytes"
	"log/slog"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/mesh/path"
)

// What comes in one receive is passed on in runs of WireGuard's datagrams, in their order, and the rest is not.
func TestWireGuardsDatagramsArePassedOnInRuns(t *testing.T) {
	const size = 64
	var (
		runs  [][]byte
		taken = true
	)
	from := netip.MustParseAddrPort("192.0.2.7:6783")
	e, err := New(Config{Log: slog.New(slog.DiscardHandler), Foreign: func(run []byte, each int, at netip.AddrPort) bool {
		if each != size || at != from {
			t.Errorf("datagrams of %d bytes from %s", each, at)
		}
		runs = append(runs, slices.Clone(run))
		return taken
	}})
	if err != nil {
		t.Fatal(err)
	}
	datagram := func(first byte, n int) []byte {
		return append([]byte{first, 0, 0, 0}, bytes.Repeat([]byte{first}, n-4)...)
	}
	guest := func(n int) []byte { return datagram(4, n) }
	sealed := datagram(firstLane, size)
	together := slices.Concat(guest(size), guest(size), sealed, guest(size), datagram(9, size), guest(size), guest(minForeign))

	in := newInbound(e)
	in.from = path.Direct(from)
	in.batch(slices.Clone(together), size, 0, time.Now())
	want := [][]byte{slices.Concat(guest(size), guest(size)), guest(size), slices.Concat(guest(size), guest(minForeign))}
	if !slices.EqualFunc(runs, want, bytes.Equal) {
		t.Errorf("runs are %x, want %x", runs, want)
	}

	junk := func() uint32 { return e.handshakes.sieve.seen[classForeign].Load() }
	if n := junk(); n != 0 {
		t.Errorf("%d datagrams count as a flood, though somebody takes them", n)
	}
	taken = false
	in.batch(slices.Clone(together), size, 0, time.Now())
	if n, dropped := junk(), e.Stats().Drops["malformed"]; n != 5 || dropped != 5+1+1 {
		t.Errorf("of five datagrams that nobody takes %d count as a flood, %d as dropped", n, dropped)
	}

	runs, in.from = nil, path.Path{} // as what a relay brings
	in.batch(slices.Clone(together), size, 0, time.Now())
	if len(runs) > 0 {
		t.Errorf("%d runs came from nowhere", len(runs))
	}
}
