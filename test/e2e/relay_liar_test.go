package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// lie is what becomes of a datagram that a liar should pass on: it hands on what it likes, as often as it likes. The datagram is
// its own.
type lie func(d []byte, pass func(d []byte, after time.Duration))

// liar stands at the door of a home and has all datagrams of it in its hands, both directions. TCP passes by it: what the daemons
// say to each other is sound, so nobody is told that something is wrong.
type liar struct {
	home netip.Addr
	lie  atomic.Pointer[lie]
	out  *net.IPConn
	held sync.WaitGroup
}

// liarAt puts one at a home that has an address of its own. It is honest until it is told otherwise.
func (w *walk) liarAt(h *netlab.Home) *liar {
	w.Helper()
	l := &liar{home: h.Outside}
	core := w.net.Core
	w.must(core.Do(func() (err error) {
		if l.out, err = net.ListenIP("ip4:udp", nil); err == nil {
			_, err = ipv4.NewRawConn(l.out) // headers are ours from now on
		}
		return err
	}))
	at := netip.PrefixFrom(l.home, 32)
	var watches []*netlab.Capture
	for _, other := range w.homes {
		watches = append(watches, other.Link.Capture(netlab.CaptureOptions{Keep: 1, Match: l.take}))
	}
	core.Drop(netlab.Drop{Proto: "udp", From: []netip.Prefix{at}}, netlab.Drop{Proto: "udp", To: []netip.Prefix{at}})
	w.Cleanup(func() {
		for _, c := range watches {
			c.Stop()
		}
		l.held.Wait()
		_ = l.out.Close()
	})
	return l
}

// take has what came in at the core, before the core drops it.
func (l *liar) take(p *netlab.Packet) bool {
	const udp = 17
	h, ok := p.IP()
	if !ok || p.Out || h.Proto != udp || h.Src != l.home && h.Dst != l.home {
		return false
	}
	src, dst := netip.AddrPortFrom(h.Src, h.SrcPort), netip.AddrPortFrom(h.Dst, h.DstPort)
	pass := func(d []byte, after time.Duration) {
		send := func() {
			_, _ = l.out.WriteToIP(netlab.UDPPacket(src, dst, d), &net.IPAddr{IP: dst.Addr().AsSlice()}) // or it is lost
		}
		if after == 0 {
			send()
			return
		}
		l.held.Add(1)
		time.AfterFunc(after, func() { defer l.held.Done(); send() })
	}
	for _, d := range p.Datagrams() {
		d = bytes.Clone(d)
		if how := l.lie.Load(); how != nil {
			(*how)(d, pass)
		} else {
			pass(d, 0)
		}
	}
	return false
}

// tell makes it lie; nil makes it honest.
func (l *liar) tell(how lie) {
	if how == nil {
		l.lie.Store(nil)
		return
	}
	l.lie.Store(&how)
}

// A relay that is a member in good standing handles what it carries badly, in each way that small probes and sound words of its
// daemon could hide. Both machines leave it for the other relay, what the pods send arrives as it was sent, and nobody's state is
// touched.
func TestALyingRelayIsLeft(t *testing.T) {
	t.Parallel() // it mostly waits
	w := walkAround(t, netlab.Public, netlab.Public, netlab.BehindHard, netlab.BehindHard)
	for _, h := range w.homes {
		h.Link.SetSegmentation(false) // each datagram is lied about by itself
	}
	liars := []*liar{w.liarAt(w.homes[0]), w.liarAt(w.homes[1])}
	w.form("--transport", "sleeve")
	pods := w.pods()
	w.connected(pods)
	a, b := w.machines[2], w.machines[3]
	// carried waits until both are relayed by one machine alone, and not by that one.
	carried := func(not string) (via string) {
		t.Helper()
		for m, other := range map[*cluster.Machine]string{a: "b", b: "a"} {
			_, err := m.WaitFor(w.within(startPatience), func(st control.Status) error {
				p := peerOf(st, other)
				if p.Path != control.PathRelay || len(p.Via) != 1 || p.Via[0] == not {
					return fmt.Errorf("%s is reached by path %q via %v (%s)", other, p.Path, p.Via, p.Reason)
				}
				via = p.Via[0]
				return nil
			})
			w.must(err)
		}
		return via
	}
	talk := w.transfer(pods[2], pods[3], pods[3].Addrs[0])
	w.flows(talk, 1<<20)

	for _, c := range []struct {
		name string
		lie  lie
		seen []string // at least one of each is counted by somebody
	}{
		{"holds back, disorders, repeats and spoils", func(d []byte, pass func([]byte, time.Duration)) {
			late := func() time.Duration { return time.Duration(rand.Int64N(int64(80 * time.Millisecond))) }
			if rand.IntN(10) == 0 {
				pass(d, late())
			}
			if rand.IntN(50) == 0 {
				d = bytes.Clone(d)
				d[rand.IntN(len(d))] ^= 1 << rand.IntN(8)
			}
			pass(d, late())
		}, []string{"unauthentic", "replay"}},
		{"passes on what is small", func(d []byte, pass func([]byte, time.Duration)) {
			if len(d) <= 700 {
				pass(d, 0)
			}
		}, nil},
		{"passes on probes and what daemons say, and no packets", func(d []byte, pass func([]byte, time.Duration)) {
			if !isPacket(d) {
				pass(d, 0)
			}
		}, nil},
	} {
		before := w.counts()
		via := carried("")
		talk.stall()
		l := liars[strings.Index("pq", via)]
		began := time.Now()
		l.tell(c.lie)
		carried(via)
		left := time.Since(began)
		w.flows(talk, 1<<20)
		t.Logf("a relay that %s was left after %.1f s; the longest time without a byte was %.1f s", c.name, left.Seconds(), talk.stall().Seconds())
		w.must(cluster.Poll(w.within(patience), func() error {
			now := w.counts()
			for _, kind := range c.seen {
				if now[kind] == before[kind] {
					return fmt.Errorf("a relay that %s: nothing was counted as %s", c.name, kind)
				}
			}
			return nil
		}))
		l.tell(nil)
		w.flows(talk, 1<<20)
	}
	w.finish(talk)
	w.whole()
	w.connected(pods)
	w.distinct()
}

// counts are the drops of all machines by kind, with peers and without.
func (w *walk) counts() map[string]float64 {
	w.Helper()
	all := map[string]float64{}
	for _, m := range w.machines {
		now := w.metrics(m)
		for _, kind := range []string{"unauthentic", "replay"} {
			all[kind] += now.Events("sleeve", "drop_"+kind, "peer_drop_"+kind)
		}
	}
	return all
}
