package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// Two homes have the same private addresses: a and b are both 192.168.1.2, each behind a NAT of its own. c is a second machine
// of b's home, and at its private address there is a stranger in a's home, with a weft of its own. Whoever answers must prove
// to be the member, so all find straight ways: by the outside addresses between the homes, by the inside ones within b's.
func TestSameAddressesInTwoHomes(t *testing.T) {
	t.Parallel()
	w := &walk{story: &story{T: t, lab: netlab.New(t)}}
	w.net = netlab.NewInternet(w.lab)
	p := w.net.Home("p", netlab.Public)
	at, bt := w.net.HomeAt("a", netlab.BehindHome, "192.168.1"), w.net.HomeAt("b", netlab.BehindStrict, "192.168.1")
	stranger := cluster.On(at.Neighbour("x", 1), programs)
	hub, a, b, c := cluster.On(p.Host, programs), cluster.On(at.Host, programs), cluster.On(bt.Host, programs), cluster.On(bt.Neighbour("c", 1), programs)
	if a.Addr4() != b.Addr4() || c.Addr4() != stranger.Addr4() {
		t.Fatalf("a %v, b %v, c %v, the stranger %v", a.Addr4(), b.Addr4(), c.Addr4(), stranger.Addr4())
	}
	_, err := stranger.Found(w.within(patience))
	w.must(err)
	w.machines = []*cluster.Machine{hub, a, b, c}
	began := time.Now()
	w.form()
	w.took("four machines joined", began)
	pods := w.pods()
	w.connected(pods)

	for _, way := range []struct {
		from *cluster.Machine
		to   string
		want netip.Addr // where it is reached
	}{
		{a, "b", bt.Outside},
		{b, "a", at.Outside},
		{a, "c", bt.Outside},
		{c, "a", at.Outside},
		{b, "c", c.Addr4()}, // c hears b at its box, as one home's machines mostly do not, or at 192.168.1.2
	} {
		began := time.Now()
		_, err := way.from.WaitFor(w.within(3*time.Minute), func(st control.Status) error {
			got := peerOf(st, way.to)
			if got.Path != control.PathDirect || got.Endpoint.Addr() != way.want {
				return fmt.Errorf("%s reaches %s by path %q at %v via %v, want it at %v (%s)", way.from, way.to, got.Path, got.Endpoint, got.Via, way.want, got.Reason)
			}
			return nil
		})
		w.must(err)
		w.took(fmt.Sprintf("%s reaches %s straight at %v", way.from, way.to, way.want), began)
	}
	w.connected(pods)
	st, err := stranger.Status()
	w.must(err)
	if st.Node.State != "ready" || len(st.Peers) != 0 {
		t.Errorf("the stranger is %s and has peers: %+v", st.Node.State, st.Peers)
	}
	w.whole()
}
