package vxlan

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"weft/router"
	"weft/router/host"
	"weft/router/pulse"
)

// echoer tests a device; *host.Echoer is the real one.
type echoer interface {
	Send(device int, from, to netip.Addr, seq uint16, size int) error
	Receive() []host.Echo
	Close() error
}

var _ echoer = (*host.Echoer)(nil)

// tunnel is one peer's.
type tunnel struct {
	router.Tunnel
	host  netip.Addr // the peer's own address, as the device knows it
	pulse pulse.Pulse
	asked time.Time // when the last echo was sent
	flows time.Time // when packets flowed to it last
}

// Links reports each tunnel of the last Apply. Being asked every now and then is what drives the tests.
func (t *transport) Links(ctx context.Context) ([]router.Link, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.tunnels) == 0 {
		return nil, nil
	}
	fault, err := t.measure(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]router.Link, 0, len(t.tunnels))
	for _, u := range t.sorted() {
		out = append(out, t.link(u, fault))
	}
	return out, nil
}

// measure sends echoes and takes their answers; fault says why it cannot.
func (t *transport) measure(ctx context.Context) (fault string, err error) {
	device, exists, err := t.host.Link(ctx, t.device)
	if err != nil {
		return "", err
	}
	if !exists || !device.Up {
		for _, u := range t.tunnels {
			u.pulse.Fall(time.Now())
		}
		return "the device " + t.device + " is missing or down", nil
	}
	for _, u := range t.tunnels {
		if t.hostOf(u) != u.host {
			if err := t.sync(ctx); err != nil {
				return "", err
			}
			break
		}
	}
	if t.echo == nil {
		if t.echo, err = t.openEcho(); err != nil {
			t.echo = nil
			return err.Error(), nil //nolint:nilerr // it is each link's reason
		}
	}
	answers := make(map[netip.Addr][]host.Echo)
	for _, a := range t.echo.Receive() {
		answers[a.From] = append(answers[a.From], a)
	}
	traffic, err := t.traffic(ctx, time.Now(), device.RxBytes+device.TxBytes)
	if err != nil {
		return "", err
	}
	own := t.directory.Own()
	heard := device.RxBytes != t.received && len(t.tunnels) == 1 // of several peers nobody tells whose bytes they were
	t.received = device.RxBytes
	now := time.Now() // after all that took time: an echo is as old as it is
	for _, u := range t.tunnels {
		if heard {
			u.pulse.Felt(now)
		}
		u.pulse.Allow(u.MTU)
		u.pulse.Rest(t.directory.Rest())
		full := u.pulse.Full(device.MTU)
		u.pulse.Look(now, answers[u.host], full)
		if !own.IsValid() || !u.host.IsValid() {
			u.pulse.Fall(now)
			continue
		}
		for _, e := range u.pulse.Next(now, traffic(u), full) {
			if err := t.echo.Send(device.Index, own, u.host, e.Seq, e.Size); err != nil {
				t.log.Debug("tunnel not tested", "peer", u.Peer, "err", err)
			}
			u.asked = now
		}
	}
	return "", nil
}

// link describes a tunnel.
func (t *transport) link(u *tunnel, fault string) router.Link {
	p := &u.pulse
	l := router.Link{
		Peer: u.Peer, Up: p.Up && !p.Asleep && fault == "", Endpoint: u.Endpoint, RTT: p.RTT, Loss: p.Loss,
		LastSeen: p.Answered, KeyAge: -1, Reason: fault, Asleep: p.Asleep && fault == "",
	}
	l.MTU, l.Again = p.Limit(), p.Again()
	if l.Up || l.Asleep || fault != "" {
		return l
	}
	switch {
	case !u.host.IsValid():
		l.Reason = "the peer has no address of its own yet to test the tunnel with"
	case !t.directory.Own().IsValid():
		l.Reason = "this node has no address of its own yet to test the tunnel with"
	case p.Narrow():
		l.Reason = fmt.Sprintf("packets of %d bytes do not pass the tunnel to %s", router.MinMTU, u.Endpoint.Addr().Unmap())
	default:
		l.Reason = fmt.Sprintf("no answer through the tunnel to %s", u.Endpoint.Addr().Unmap())
	}
	return l
}
