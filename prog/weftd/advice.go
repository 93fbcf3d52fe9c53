package weftd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"weft/mesh/peer"
	"weft/prog/control"
)

// examine asks both ends for what they tried to reach each other, and says what would make the path direct.
func (n *node) examine(ctx context.Context, info peer.Info, doc *control.Doctor) {
	doc.Peer = n.peerName(info.ID)
	var (
		theirs way
		silent string
		asked  sync.WaitGroup
	)
	asked.Go(func() {
		told, quiet := n.askWays(ctx, []peer.Info{info}, n.key.ID())
		silent = quiet[info.ID]
		if list := told[info.ID]; len(list) > 0 && list[0].peer == n.key.ID() {
			theirs = list[0]
		}
	})
	doc.Checks = n.examinePeer(ctx, info)
	asked.Wait()
	ours, err := n.wayTo(ctx, info.ID)
	if silent != "" {
		doc.Checks = append(doc.Checks, control.Check{
			Name: "its own view", State: control.CheckWarn, Reason: doc.Peer + " did not tell what it tried: " + silent,
			Hint: "Try on " + doc.Peer + ": weft doctor " + n.name,
		})
	}
	doc.Tried = append(n.tried(n.name, ours), n.tried(doc.Peer, theirs)...)
	self, _ := n.mesh.Peer(n.key.ID())
	switch {
	case info.State == peer.Removed:
		doc.Advice = fmt.Sprintf("%s was removed from the cluster, and nobody reaches it until it joins again with a new token", doc.Peer)
	case err != nil && !errors.Is(err, errNotKnown):
		doc.Advice = adviseWire(n.name, n.state.file(fileWireLog), err, n.link.trouble())
	default:
		doc.Advice = advise(end{n.name, self.NAT, ours}, end{doc.Peer, info.NAT, theirs})
	}
}

// adviseWire is about a data plane that does not tell its ways: asking it ended with err, and trouble is why none runs.
func adviseWire(name, log string, err, trouble error) string {
	switch {
	case trouble != nil:
		return fmt.Sprintf("The data plane of %s does not run (%v), so that only WireGuard and VXLAN of the kernel go on: it is started again by itself, and its last words are in %s",
			name, explain(trouble), log)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("The data plane of %s does not answer: if that lasts, kill the process weft wire, and another one is started", name)
	}
	return fmt.Sprintf("The data plane of %s is being started, and what it has tried is not known before that: ask again", name)
}

func (n *node) tried(by string, w way) (all []control.TriedPath) {
	for _, t := range w.tries {
		p := control.TriedPath{
			By: by, Endpoint: t.endpoint, TCP: t.tcp, Active: t.active, State: t.state, RTTms: milliseconds(t.rtt), Loss: t.loss,
			MTU: t.mtu, Reason: t.reason,
		}
		for _, id := range t.via {
			p.Via = append(p.Via, n.peerName(id))
		}
		all = append(all, p)
	}
	return all
}

// end is one side of a pair for advise.
type end struct {
	name string
	nat  peer.NAT
	way  way
}

// advise says in one sentence what would make the path direct, or that it is.
func advise(a, b end) string {
	state := a.way.state
	if severity[b.way.state] > severity[state] {
		state = b.way.state
	}
	hard := slices.DeleteFunc([]end{a, b}, func(e end) bool { return e.nat != peer.NATHard })
	forward := func(e end) string {
		return fmt.Sprintf("forward UDP 6783 to %s on its router and start it with --advertise ADDRESS", e.name)
	}
	switch {
	case state == control.EdgeDirect:
		return fmt.Sprintf("%s and %s reach each other directly", a.name, b.name)
	case a.way.state == "":
		return fmt.Sprintf("%s does not know %s yet: ask again in some seconds", a.name, b.name)
	case state == control.EdgeUnknown || state == "":
		return fmt.Sprintf("%s and %s have nothing to say to each other now, so no way is open: send something (weft ping %s) and ask again",
			a.name, b.name, b.name)
	case a.way.state == control.EdgeDown && b.way.state == "":
		return fmt.Sprintf("%s is not reached in any way: see whether weft runs there, and whether UDP or TCP 6783 passes between it and any other member", b.name)
	case state == control.EdgeDown && (a.way.state == control.EdgeDown) != (b.way.state == control.EdgeDown):
		deaf, heard := a, b
		if a.way.state != control.EdgeDown {
			deaf, heard = b, a
		}
		return fmt.Sprintf("%s does not get answers of %s, which hears it: let UDP to port 6783 from %s in at %s", deaf.name, heard.name, heard.name, deaf.name)
	case state == control.EdgeTCP || !passesUDP(a.way) || !passesUDP(b.way):
		// Of two that get no datagrams from each other it is the one that nobody has ever heard over UDP.
		mute := func(e end) bool { return e.nat == peer.NATUnknown }
		switch passesA, passesB := passesUDP(a.way), passesUDP(b.way); {
		case passesA != passesB && passesB, passesA == passesB && mute(a) && !mute(b):
			return noUDP(a)
		case passesA != passesB, mute(b) && !mute(a):
			return noUDP(b)
		}
		return fmt.Sprintf("UDP does not pass between %s and %s: let it out to port 6783 at both, and its answers in", a.name, b.name)
	case state == control.EdgeRelayed && a.nat == peer.NATUnknown: // nobody has ever heard it over UDP
		return noUDP(a)
	case state == control.EdgeRelayed && b.nat == peer.NATUnknown:
		return noUDP(b)
	case len(hard) == 2:
		return fmt.Sprintf("Both are behind a hard NAT, which no hole can be punched through: %s, or %s", forward(a), forward(b))
	case len(hard) == 1:
		return fmt.Sprintf("%s is behind a hard NAT, which gives each destination another port: %s", hard[0].name, forward(hard[0]))
	case state == control.EdgeRelayed && (a.nat == peer.NATEasy || b.nat == peer.NATEasy):
		e := a
		if a.nat != peer.NATEasy {
			e = b
		}
		return fmt.Sprintf("No hole was punched yet; it is tried again by itself. For good: %s", forward(e))
	case state == control.EdgeRelayed:
		return fmt.Sprintf("A firewall stands between %s and %s: let UDP to port 6783 pass between them", a.name, b.name)
	}
	return fmt.Sprintf("No packets pass between %s and %s: let UDP to port 6783 pass between them, or between each of them and one other member",
		a.name, b.name)
}

func noUDP(e end) string {
	return fmt.Sprintf("UDP does not pass at %s: let it out of that network to port 6783, and its answers in", e.name)
}

// passesUDP reports whether any datagram path of this end has ever worked, or none was tried yet.
func passesUDP(w way) bool {
	tried := false
	for _, t := range w.tries {
		if t.tcp || t.state == "untried" || t.state == "probing" {
			continue
		}
		tried = true
		if t.rtt > 0 || t.state == "works" || t.state == "suspect" {
			return true
		}
	}
	return !tried
}
