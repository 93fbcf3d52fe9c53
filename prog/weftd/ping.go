package weftd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"weft/mesh/peer"
	"weft/prog/control"
	"weft/router/sleeve"
)

const (
	pingInterval    = time.Second
	pingMinInterval = time.Millisecond
	pingTimeout     = 2 * time.Second
	pingMaxTimeout  = time.Minute
)

// Ping sends ICMP echo requests from this host's own pod address to the peer's: they take the routes, devices and tunnels
// that pods' packets take, and are answered by the peer's kernel.
func (d *daemon) Ping(ctx context.Context, r control.PingRequest, reply func(control.PingReply) error) error {
	n, err := d.current()
	if err != nil {
		return err
	}
	info, to, err := n.target(r.Peer)
	if err != nil {
		return err
	}
	own, ok := n.ring.HostAddress()
	if !ok {
		return &control.Error{Code: control.NotReady, Message: "this node has no address of its own yet", Cause: n.ring.Status().Reason}
	}
	from := own.V4
	if to.Is6() {
		from = own.V6
	}
	interval, timeout := time.Duration(r.Interval), time.Duration(r.Timeout)
	if interval <= 0 {
		interval = pingInterval
	}
	if timeout <= 0 {
		timeout = pingTimeout
	}
	p, err := newPinger(from, to, min(timeout, pingMaxTimeout))
	if err != nil {
		return err
	}
	defer p.close()
	tick := time.NewTicker(max(interval, pingMinInterval))
	defer tick.Stop()
	for seq := 1; r.Count == 0 || seq <= r.Count; seq++ {
		rtt, err := p.ping(ctx, seq)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		answer := control.PingReply{
			Seq: seq, Peer: n.peerName(info.ID), Address: to, Path: control.PathNone,
			RTTms: float64(rtt.Microseconds()) / 1000,
		}
		n.nameRoute(ctx, info.ID, &answer)
		if err != nil {
			answer.Lost = err.Error()
		}
		if err := reply(answer); err != nil {
			return err
		}
		if seq == r.Count {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// nameRoute says which way the answer came: as the wire sends now, which the router hears of a little later.
func (n *node) nameRoute(ctx context.Context, id peer.ID, answer *control.PingReply) {
	for _, ps := range n.router.Status().Peers {
		if ps.Peer != id || ps.Transport == "" {
			continue
		}
		link := ps.Link
		if ps.Transport == sleeve.Name {
			if stats, err := n.link.stats(ctx); err == nil {
				for _, p := range stats.Peers {
					if p.ID == id {
						link = p.Link()
					}
				}
			}
		}
		answer.Transport, answer.Endpoint, answer.TCP, answer.Path = ps.Transport, link.Endpoint, link.TCP, control.PathDirect
		for _, relay := range link.Via {
			answer.Path = control.PathRelay
			answer.Via = append(answer.Via, n.peerName(relay))
		}
	}
}

// target is the member that a person means, by name, ID or an address of its blocks, and what to probe: that address, or
// the machine's own.
func (n *node) target(word string) (peer.Info, netip.Addr, error) {
	if addr, err := netip.ParseAddr(word); err == nil {
		for id, blocks := range n.ring.Blocks() {
			if slices.ContainsFunc(blocks, func(b netip.Prefix) bool { return b.Contains(addr) }) {
				info, _ := n.mesh.Peer(id)
				return info, addr, nil
			}
		}
		return peer.Info{}, addr, &control.Error{
			Code: control.NotFound, Message: addr.String() + " is in no member's block", Hint: "Try: weft ip ring",
		}
	}
	info, err := n.find(word)
	if err != nil {
		return info, netip.Addr{}, err
	}
	rec, _ := n.mesh.Record(info.ID)
	if len(rec.Hosts) == 0 {
		return info, netip.Addr{}, &control.Error{
			Code: control.NotReady, Message: n.peerName(info.ID) + " has told no address of its own yet",
			Hint: "Try: weft peer show " + n.peerName(info.ID),
		}
	}
	return info, rec.Hosts[0], nil
}

// pinger sends echo requests on one raw socket.
type pinger struct {
	conn    *icmp.PacketConn
	to      netip.Addr
	id      int
	nonce   uint64 // tells our echoes from those of a pinger with the same id
	timeout time.Duration
}

func newPinger(from, to netip.Addr, timeout time.Duration) (*pinger, error) {
	network := "ip4:icmp"
	if to.Is6() {
		network = "ip6:ipv6-icmp"
	}
	conn, err := icmp.ListenPacket(network, from.String())
	if err != nil {
		return nil, fmt.Errorf("open ICMP socket on %s: %w", from, err)
	}
	return &pinger{conn: conn, to: to, id: rand.IntN(1 << 16), nonce: rand.Uint64(), timeout: timeout}, nil
}

func (p *pinger) close() { _ = p.conn.Close() }

// errNoAnswer is what a lost probe says.
var errNoAnswer = errors.New("no answer")

// ping sends one request and waits for its answer.
func (p *pinger) ping(ctx context.Context, seq int) (time.Duration, error) {
	var kind, answer icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	protocol := 1
	if p.to.Is6() {
		kind, answer, protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	message := icmp.Message{Type: kind, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: binary.BigEndian.AppendUint64(nil, p.nonce)}}
	b, err := message.Marshal(nil)
	if err != nil {
		return 0, fmt.Errorf("encode echo: %w", err)
	}
	deadline := time.Now().Add(p.timeout)
	if err := p.conn.SetDeadline(deadline); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.conn.SetDeadline(time.Now()) })
	defer stop()
	sent := time.Now()
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.to.AsSlice()}); err != nil {
		return 0, fmt.Errorf("send echo: %w", err)
	}
	buf := make([]byte, 1500)
	for {
		size, from, err := p.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, errNoAnswer
		}
		if err != nil {
			return 0, fmt.Errorf("receive echo: %w", err)
		}
		m, err := icmp.ParseMessage(protocol, buf[:size])
		if err != nil || m.Type != answer || from.String() != p.to.String() {
			continue
		}
		echo, ok := m.Body.(*icmp.Echo)
		if ok && echo.ID == p.id && echo.Seq == seq&0xffff && len(echo.Data) == 8 && binary.BigEndian.Uint64(echo.Data) == p.nonce {
			return time.Since(sent), nil
		}
	}
}
