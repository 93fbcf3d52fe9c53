package e2e

import (
	"fmt"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/netlab"
)

// A path gets smaller under a connection, and tells nobody: packets of more than 1,400 bytes are swallowed, and so is all
// ICMP; then a cable takes 1,280 only, and its router cuts what may be cut. The connection goes on, with any transport, and
// what arrives is what was sent. Where packets of 1,280 bytes do not pass a transport any more, the sleeve takes over, which
// sends them in halves.
func TestPathsShrinkUnderAStream(t *testing.T) {
	long(t)
	each(t, func(s *story, w way) {
		s.form(w.args...)
		pods := s.pods()
		s.by(w.name)
		for _, k := range s.sites.Links() {
			k.SetSegmentation(false) // a packet is a packet
		}
		// Errors of the underlay's routers; pods' own pings are inside of tunnels.
		s.sites.Router.Drop(netlab.Drop{Proto: "icmp"}, netlab.Drop{Proto: "icmpv6", Larger: 1200})
		tr := s.transfer(pods[0], pods[1], pods[1].Addrs[0])
		six := s.transfer(pods[1], pods[0], pods[0].Addrs[1])
		s.flows(tr, 4<<20)
		s.flows(six, 4<<20)
		cuts := w.name == "vxlan" || w.name == "sleeve" // what is too large for the path, or lets routers cut it
		for _, size := range []int{1400, 1280} {
			tr.stall()
			began := time.Now()
			if size > 1280 {
				s.sites.LinkB.Drop(netlab.Drop{Larger: size})
			} else {
				s.sites.LinkB.SetMTU(size)
			}
			s.flows(tr, 2<<20)
			s.flows(six, 2<<20)
			s.Logf("path of %d bytes: both flow again after %.1f s, longest pause %.1f s (aim: 2 s)", size, time.Since(began).Seconds(), tr.stall().Seconds())
			if size == 1280 && !cuts {
				s.by("sleeve")
			}
		}
		s.finish(tr)
		s.finish(six)
	})
}

// Large packets are used where the path has them.
func TestJumboIsUsedWhenReal(t *testing.T) {
	long(t)
	each(t, func(s *story, w way) {
		for _, k := range s.sites.Links() {
			k.SetMTU(9000)
		}
		s.form(w.args...)
		pods := s.pods()
		s.by(w.name)
		_, err := s.a.WaitFor(s.within(patience), func(st control.Status) error {
			for _, p := range st.Peers {
				if p.MTU != 9000-80 {
					return fmt.Errorf("MTU %d: %s", p.MTU, p.Reason)
				}
			}
			return nil
		})
		s.must(err)
		tr := s.transfer(pods[0], pods[1], pods[1].Addrs[0])
		large := s.sites.LinkB.Capture(netlab.CaptureOptions{Keep: 1, Match: func(p *netlab.Packet) bool { return p.Len > 8500 && p.Segment == 0 }})
		for _, k := range s.sites.Links() {
			k.SetSegmentation(false)
		}
		s.flows(tr, 4<<20)
		s.must(large.WaitFor(s.within(patience), 1))
		large.Stop()
		s.finish(tr)
	})
}

// What passes tunnels, forwarding, connection tracking, masquerade and veths arrives as it was sent, whatever is lost on the
// way: between pods, and from a pod to the world.
func TestLossDamagesNothing(t *testing.T) {
	long(t)
	each(t, func(s *story, w way) {
		s.form(w.args...)
		pods := s.pods()
		s.by(w.name)
		for _, k := range s.sites.Links() {
			k.SetSegmentation(false)
		}
		for _, share := range []float64{0.002, 0.005, 0.02} {
			cut := s.sites.LinkB.Loss(share)
			tr, six := s.transfer(pods[0], pods[1], pods[1].Addrs[0]), s.transfer(pods[1], pods[0], pods[0].Addrs[1])
			s.flows(tr, 8<<20)
			s.flows(six, 8<<20)
			s.finish(tr)
			s.finish(six)
			cut.Heal()
		}
	})
}
