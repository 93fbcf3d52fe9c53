package netlab_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"weft/test/netlab"
)

var overlay = netip.MustParsePrefix("10.32.0.0/12")

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// frame puts an Ethernet header before an IP packet.
func frame(ip []byte) []byte {
	kind := uint16(0x0800)
	if ip[0]>>4 == 6 {
		kind = 0x86dd
	}
	return append(binary.BigEndian.AppendUint16(make([]byte, 12), kind), ip...)
}

func concat(parts ...[]byte) []byte { return slices.Concat(parts...) }

func TestCleartextFindsOverlayAddressesWhereverTheyShow(t *testing.T) {
	inner := netlab.UDPPacket(ap("10.32.0.5:1"), ap("10.40.0.6:2"), []byte("secret"))
	inner6 := netlab.UDPPacket(ap("[fd00:32::5]:1"), ap("[fd00:32::6]:2"), []byte("secret"))
	other := netlab.UDPPacket(ap("198.18.1.2:1"), ap("198.18.2.2:2"), []byte("public"))
	outside := func(payload []byte) []byte {
		return frame(netlab.UDPPacket(ap("198.18.1.2:6783"), ap("198.18.2.2:6783"), payload))
	}
	vxlan := []byte{8, 0, 0, 0, 0, 0, 42, 0}
	tunnel := func(proto byte, payload []byte) []byte {
		ip := netlab.UDPPacket(ap("198.18.1.2:1"), ap("198.18.2.2:2"), nil)[:20]
		ip[9] = proto
		binary.BigEndian.PutUint16(ip[2:], uint16(20+len(payload)))
		return frame(append(ip, payload...))
	}
	arp := append(binary.BigEndian.AppendUint16(make([]byte, 12), 0x0806), make([]byte, 28)...)
	copy(arp[14+24:], netip.MustParseAddr("10.32.0.9").AsSlice())
	broken := bytes.Clone(inner)
	broken[10] ^= 1 // the checksum of the inner header

	for name, test := range map[string]struct {
		frame []byte
		want  bool
	}{
		"the packet itself":             {frame(inner), true},
		"the packet itself, IPv6":       {frame(inner6), true},
		"a packet of the underlay":      {frame(other), false},
		"inside VXLAN":                  {outside(concat(vxlan, frame(inner))), true},
		"inside VXLAN, IPv6":            {outside(concat(vxlan, frame(inner6))), true},
		"inside VXLAN, bad checksum":    {outside(concat(vxlan, frame(broken))), true},
		"another packet inside VXLAN":   {outside(concat(vxlan, frame(other))), false},
		"at the start of a datagram":    {outside(inner), true},
		"after a header of 13 bytes":    {outside(concat(make([]byte, 13), inner)), true},
		"after a header, IPv6":          {outside(concat(make([]byte, 13), inner6)), true},
		"noise that is no valid header": {outside(concat(make([]byte, 13), broken)), false},
		"IP in IP":                      {tunnel(4, inner), true},
		"IPv6 in IP":                    {tunnel(41, inner6), true},
		"GRE":                           {tunnel(47, concat([]byte{0, 0, 8, 0}, inner)), true},
		"quoted by an ICMP error":       {tunnel(1, concat([]byte{3, 1, 0, 0, 0, 0, 0, 0}, inner[:28])), true},
		"asked for by ARP":              {arp, true},
		"a cut frame":                   {frame(inner)[:20], false},
		"nothing":                       {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			match := netlab.Cleartext(overlay, netip.MustParsePrefix("fd00:32::/64"))
			if got := match(&netlab.Packet{Data: test.frame, Len: len(test.frame)}); got != test.want {
				t.Errorf("matched %v, want %v", got, test.want)
			}
		})
	}
}

func TestDatagramsOfASuperPacket(t *testing.T) {
	payload := bytes.Repeat([]byte("0123456789"), 25)
	p := netlab.Packet{Data: frame(netlab.UDPPacket(ap("198.18.1.2:1"), ap("198.18.2.2:2"), payload)), Segment: 100}
	var sizes []int
	for _, d := range p.Datagrams() {
		sizes = append(sizes, len(d))
	}
	if !slices.Equal(sizes, []int{100, 100, 50}) {
		t.Errorf("cut into %v", sizes)
	}
}

func TestCaptureCatchesAPlantedLeak(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	all := lab.CaptureAll(netlab.CaptureOptions{Match: netlab.Cleartext(overlay)})
	marked := s.LinkB.Capture(netlab.CaptureOptions{Match: netlab.Contains([]byte("plaintext marker"))})
	mustPing(t, s.A, s.B.Addr4())
	send := func(packet []byte) {
		t.Helper()
		if err := s.A.SendIP(packet); err != nil {
			t.Fatal(err)
		}
	}
	hidden := netlab.UDPPacket(s.A.AddrPort4(6783), s.B.AddrPort4(6783), []byte("nothing to see"))
	send(hidden)
	send(netlab.UDPPacket(s.A.AddrPort4(6783), s.B.AddrPort4(6783), []byte("a plaintext marker in here")))
	if err := marked.WaitFor(within(t), 1); err != nil {
		t.Fatal(err)
	}
	if n := all.Count(); n != 0 {
		t.Fatalf("%d packets match on a clean underlay:\n%s", n, all.Describe(5))
	}

	leak := netlab.UDPPacket(ap("10.32.0.5:1"), ap("10.40.0.6:2"), []byte("leak"))
	send(netlab.UDPPacket(s.A.AddrPort4(6785), s.B.AddrPort4(6785), concat([]byte{8, 0, 0, 0, 0, 0, 42, 0}, frame(leak))))
	s.A.Route(overlay, netip.MustParseAddr("198.18.1.1")) // the router has no way on for it, so only A's link sees it
	send(leak)
	for _, c := range all[:1] { // A's link
		if err := c.WaitFor(within(t), 2); err != nil {
			t.Fatal(err)
		}
	}
	all.Stop()
	if err := all.Err(); err != nil {
		t.Error(err)
	}
	if all.Count() < 3 || all.Seen() <= all.Count() {
		t.Errorf("%d of %d packets match:\n%s", all.Count(), all.Seen(), all.Describe(10))
	}
	path := filepath.Join(t.TempDir(), "leak.pcap")
	if err := all[0].WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || !bytes.Contains(b, leak[12:]) || binary.LittleEndian.Uint32(b) != 0xa1b23c4d {
		t.Errorf("the file does not hold the leak: %v", err)
	}
}

func TestCaptureSeesBothDirectionsAndForgetsTheOldest(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	c := s.LinkB.Capture(netlab.CaptureOptions{Match: netlab.UDP(9), Keep: 3})
	first := s.LinkB.Capture(netlab.CaptureOptions{Match: netlab.UDP(9), Keep: 3, First: true})
	for i := range 5 { // one after the other: two processors may overtake each other
		if err := s.A.SendUDP(s.A.AddrPort4(9), s.B.AddrPort4(9), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if err := c.WaitFor(within(t), uint64(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.B.SendUDP(s.B.AddrPort4(9), s.A.AddrPort4(9), []byte{5}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct {
		c     *netlab.Capture
		kept  []byte
		isOut []bool
	}{
		{c, []byte{3, 4, 5}, []bool{true, true, false}},
		{first, []byte{0, 1, 2}, []bool{true, true, true}},
	} {
		if err := want.c.WaitFor(within(t), 6); err != nil {
			t.Fatal(err)
		}
		for i, p := range want.c.Packets() {
			if d := p.Datagrams(); len(d) != 1 || d[0][0] != want.kept[i] || p.Out != want.isOut[i] {
				t.Errorf("packet %d is %v (%x, out %v)", i, p.String(), d, p.Out)
			}
		}
	}
}

// Sealed traffic is noise: the matcher must neither fire on it nor cost so much that a capture falls behind.
func BenchmarkCleartextOverNoise(b *testing.B) {
	payload := make([]byte, 1400)
	x := uint64(88172645463325252)
	for i := range payload {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		payload[i] = byte(x)
	}
	p := netlab.Packet{Data: frame(netlab.UDPPacket(ap("198.18.1.2:6783"), ap("198.18.2.2:6783"), payload))}
	match := netlab.Cleartext(overlay, netip.MustParsePrefix("fd00:32::/64"))
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		if match(&p) {
			b.Fatal("noise matched")
		}
	}
}

func FuzzCleartext(f *testing.F) {
	f.Add(frame(netlab.UDPPacket(ap("10.32.0.5:1"), ap("10.40.0.6:2"), []byte("x"))))
	f.Add(frame(netlab.UDPPacket(ap("[fd00::5]:1"), ap("[fd00::6]:2"), []byte("x"))))
	match := netlab.Cleartext(overlay)
	f.Fuzz(func(_ *testing.T, b []byte) {
		p := netlab.Packet{Data: b, Len: len(b), Segment: len(b) / 3}
		match(&p)
		p.Datagrams()
		_ = p.String()
	})
}

// The kernel's own VXLAN, with whatever offloads it uses, is seen through.
func TestCleartextSeesThroughVXLANOfTheKernel(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2")
	}
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	for i, h := range []*netlab.Host{s.A, s.B} {
		other := []*netlab.Host{s.B, s.A}[i]
		for _, args := range [][]string{
			{"link", "add", "vx", "type", "vxlan", "id", "42", "dstport", "6785", "local", h.Addr4().String(), "remote", other.Addr4().String()},
			{"link", "set", "vx", "up"},
			{"addr", "add", fmt.Sprintf("10.32.0.%d/24", i+1), "dev", "vx"},
		} {
			if out, err := h.Exec("ip", args...); err != nil {
				t.Skipf("needs VXLAN in the kernel: %v %s", err, out)
			}
		}
	}
	watch := s.LinkB.Capture(netlab.CaptureOptions{Match: netlab.Cleartext(overlay), Keep: 1 << 16})
	l, err := s.B.Listen("tcp4", "10.32.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	c, err := s.A.Dial(within(t), "tcp4", "10.32.0.2:9")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write(make([]byte, 1<<20))
	_ = c.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, c)
	_ = c.Close()
	watch.Stop()
	if err := watch.Err(); err != nil {
		t.Error(err)
	}
	// Everything but ARP and neighbour discovery of the cable itself carries a pod's packet.
	if watch.Count() < 20 || watch.Seen()-watch.Count() > 20 {
		t.Errorf("saw through %d of %d packets", watch.Count(), watch.Seen())
	}
}
