package wire

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router"
)

// relayed are three stations: a and b do not know where the other is, and r carries for them.
func relayed(t *testing.T) (a, b, r *station) {
	t.Helper()
	a, b, r = newStation(t, 1), newStation(t, 2), newStation(t, 3)
	a.others, b.others, r.others = []*station{b, r}, []*station{a, r}, []*station{a, b}
	via := Peer{Relays: []peer.ID{r.id.ID}}
	a.ties, b.ties, r.ties = map[*station]Peer{b: via}, map[*station]Peer{a: via}, map[*station]Peer{a: {}, b: {}}
	for _, s := range []*station{a, b, r} {
		if err := s.listen(netip.MustParseAddr("127.0.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	return a, b, r
}

// talk sends datagrams both ways.
func talk(t *testing.T, a, b *station) {
	t.Helper()
	for i := range 20 {
		for _, way := range [2][2]*station{{a, b}, {b, a}} {
			want := fmt.Appendf(nil, "datagram %d", i)
			if err := way[0].c.Send(way[1].id.ID, want); err != nil {
				t.Fatal(err)
			}
			from, got, err := way[1].c.Receive(t.Context())
			if err != nil || from != way[0].id.ID || !bytes.Equal(got, want) {
				t.Fatalf("received %q from %v, %v", got, from.Short(), err)
			}
		}
	}
}

func TestAWireCarriesForOthers(t *testing.T) {
	a, b, r := relayed(t)
	for _, s := range []*station{a, b, r} {
		s.attach()
		if err := s.c.SetRelay(t.Context(), s == r); err != nil {
			t.Fatal(err)
		}
	}
	a.waitUp()
	b.waitUp()
	talk(t, a, b)
	stats, err := a.c.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	links, err := a.c.Links(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range stats.Peers {
		switch p.ID {
		case b.id.ID:
			if want := []peer.ID{r.id.ID}; !slices.Equal(p.Via, want) || !slices.Equal(links[i].Via, want) {
				t.Errorf("via %v, link via %v", p.Via, links[i].Via)
			}
			if len(p.Paths) != 1 || !p.Paths[0].Active || p.Paths[0].State != path.Works {
				t.Errorf("paths %+v", p.Paths)
			}
		case r.id.ID:
			if p.Observed != a.at || len(p.Via) != 0 {
				t.Errorf("observed at %v, via %v", p.Observed, p.Via)
			}
		}
	}

	detach(t, r.c) // it carries on without its weftd
	talk(t, a, b)

	// The two hear of each other's addresses.
	if err := a.c.Punch(t.Context(), b.id.ID, []netip.AddrPort{b.at}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the pair talks directly", func() bool {
		links, err := a.c.Links(t.Context())
		return err == nil && slices.ContainsFunc(links, func(l router.Link) bool { return l.Endpoint == b.at && len(l.Via) == 0 })
	})
	talk(t, a, b)
	if err := a.c.Punch(t.Context(), peer.ID{99}, nil); err == nil {
		t.Error("punched to somebody unknown")
	}
}

// TestDatagramsTravelByTCP: all that is known of the other station is where it accepts TCP connections.
func TestDatagramsTravelByTCP(t *testing.T) {
	a, b := newStation(t, 1), newStation(t, 2)
	a.others, b.others = []*station{b}, []*station{a}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().(*net.TCPAddr).AddrPort()
	a.ties, b.ties = map[*station]Peer{b: {TCP: []netip.AddrPort{at}}}, map[*station]Peer{a: {}}
	b.attach()
	given := files(t, ln.(*net.TCPListener))
	if err := b.c.GiveTCP(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	given[0].Close()
	ln.Close()
	a.attach() // neither has a UDP socket
	a.waitUp()
	b.waitUp()
	talk(t, a, b)
	for s, o := range map[*station]*station{a: b, b: a} {
		links, err := s.c.Links(t.Context())
		if err != nil || len(links) != 1 || !links[0].TCP || links[0].Peer != o.id.ID {
			t.Errorf("links %+v, %v", links, err)
		}
	}

	// The port serves everybody else as before.
	dialled := make(chan error, 1)
	go func() {
		c, err := tls.Dial("tcp", at.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"weft-join/1"}})
		if err == nil {
			c.Close()
		}
		dialled <- err
	}()
	c, err := b.c.Accept(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hello := make([]byte, 5)
	if _, err := c.Read(hello); err != nil || hello[0] != recordHandshake {
		t.Errorf("weftd reads %x, %v", hello, err)
	}
	c.Close()
	if err := <-dialled; err == nil {
		t.Error("nobody answered, and the handshake is done")
	}

	// One that says nothing is given up, and one that breaks its word too.
	mute, err := net.Dial("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	liar, err := tls.Dial("tcp", at.String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{dataProtocol}})
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	if _, err := liar.Write(bytes.Repeat([]byte{0, 40, 0x21}, 1000)); err != nil {
		t.Fatal(err)
	}
	_ = liar.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := liar.Read(hello); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a stream without a peer stays open: %v", err)
	}
	talk(t, a, b)
}
