package weftd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"weft/mesh/peer"
	"weft/prog/control"
	"weft/prog/wire"
)

// Doctor lists what this machine can and cannot do, or what stands between this node and one peer.
func (d *daemon) Doctor(ctx context.Context, r control.DoctorRequest) (control.Doctor, error) {
	doc := control.Doctor{Version: control.Version}
	n, err := d.current()
	if r.Peer != "" {
		if err != nil {
			return doc, err
		}
		info, err := n.find(r.Peer)
		if err != nil {
			return doc, err
		}
		if info.ID == n.key.ID() {
			return doc, &control.Error{
				Code: control.Usage, Message: "that is this node", Hint: "Try: weft doctor",
			}
		}
		n.examine(ctx, info, &doc)
		return doc, nil
	}
	doc.Checks = examineMachine(ctx)
	if n != nil {
		doc.Checks = append(doc.Checks, n.examineSelf(ctx)...)
	}
	return doc, nil
}

// Doctor is the same while no daemon runs: the machine, the port and what the state directory holds. It changes nothing.
func Doctor(ctx context.Context, cfg Config) (control.Doctor, error) {
	checks := append(examineMachine(ctx), examinePort(ctx, cfg))
	return control.Doctor{Version: control.Version, Checks: append(checks, examineState(cfg.State)...)}, nil
}

// examinePort tries the weft port.
func examinePort(ctx context.Context, cfg Config) control.Check {
	c := control.Check{Name: "port", State: control.CheckOK, Reason: fmt.Sprintf("%d is free, or its wire has it", cfg.Listen.Port())}
	var told *control.Error
	if err := checkPort(ctx, cfg.Listen, stateFile(cfg.State, fileWireSocket)); errors.As(err, &told) {
		c.State, c.Reason, c.Hint = control.CheckFailed, told.Message+" ("+told.Cause+")", told.Hint
	} else if err != nil {
		c.State, c.Reason = control.CheckFailed, err.Error()
	}
	return c
}

// examineState reads what a daemon would begin with.
func examineState(path string) []control.Check {
	c := control.Check{Name: "state", State: control.CheckOK}
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.Reason = path + " is not there yet, so weft up begins a new life"
		return []control.Check{c}
	case err != nil:
		c.State, c.Reason = control.CheckUnknown, stateError(path, "look at", err).Error()
		return []control.Check{c}
	case !fi.IsDir():
		c.State, c.Reason, c.Hint = control.CheckFailed, path+" is no directory", "Choose another one: --state DIR"
		return []control.Check{c}
	}
	c.Reason = path + " is there"
	if fi.Mode().Perm()&0o077 != 0 {
		c.State, c.Reason, c.Hint = control.CheckWarn, fmt.Sprintf("%s is open to others (mode %o)", path, fi.Mode().Perm()),
			"weft up closes it; what others may have read of it they know"
	}
	member := control.Check{Name: "membership", State: control.CheckOK}
	m, _, err := loadMembership(&stateDir{path: path})
	switch {
	case err != nil:
		member.State, member.Reason = control.CheckFailed, explain(err).Error()
	case m == nil:
		member.Reason = "none yet: weft init makes a cluster, weft join TOKEN enters one"
	default:
		member.Reason = fmt.Sprintf("%s in cluster %s", m.certificate.Name(), clusterName(m.cluster))
	}
	return []control.Check{c, member}
}

// examineMachine asks the machine.
func examineMachine(ctx context.Context) []control.Check {
	var checks []control.Check
	for _, p := range probes() {
		c := control.Check{Name: p.name, State: control.CheckOK, Reason: "works"}
		if err := p.run(ctx); err != nil {
			c.State, c.Reason, c.Hint = control.CheckUnknown, err.Error(), p.hint
			if isUnsupported(err) {
				c.State = control.CheckFailed
				if p.optional {
					c.State = control.CheckWarn
				}
			}
		}
		checks = append(checks, c)
	}
	return checks
}

// examineSelf asks the parts of the node.
func (n *node) examineSelf(ctx context.Context) []control.Check {
	wireCheck := control.Check{Name: "wire", State: control.CheckOK, Reason: "runs"}
	if stats, err := n.link.stats(ctx); err != nil {
		wireCheck.State, wireCheck.Reason, wireCheck.Hint = control.CheckFailed, err.Error(), "Its words are in "+n.state.file(fileWireLog)
	} else {
		wireCheck.Reason = fmt.Sprintf("runs, %d peers", len(stats.Peers))
	}
	guard := control.Check{Name: "guard", State: control.CheckOK, Reason: "routes and guard are in place"}
	if s := n.router.Status(); !s.Ready {
		guard.State, guard.Reason = control.CheckFailed, s.Reason
	}
	space := control.Check{Name: "addresses", State: control.CheckOK}
	ring := n.ring.Status()
	space.Reason = fmt.Sprintf("%s, %d used, %d free", ring.State, ring.Used, ring.Free)
	if ring.Reason != "" {
		space.State, space.Reason = control.CheckWarn, ring.Reason
	}
	live := n.liveIssuers()
	issuers := control.Check{Name: "issuers", State: control.CheckOK, Reason: fmt.Sprintf("%d alive", live)}
	if live < 2 && len(n.mesh.Peers()) > 0 {
		issuers.State, issuers.Hint = control.CheckWarn, "With none alive nobody can join. Try: weft issuer add NAME"
	}
	return []control.Check{wireCheck, guard, space, issuers}
}

// examine asks what is known of the way to a peer, from the outside in.
func (n *node) examinePeer(ctx context.Context, info peer.Info) []control.Check {
	var checks []control.Check
	add := func(name string, ok bool, reason, hint string) {
		c := control.Check{Name: name, State: control.CheckOK, Reason: reason}
		if !ok {
			c.State, c.Hint = control.CheckFailed, hint
		}
		checks = append(checks, c)
	}
	name := n.peerName(info.ID)
	add("membership", info.State == peer.Alive, info.State.String(), "Is weft running there? Try on "+name+": weft status")
	if !info.Known {
		add("record", false, name+" has told nothing about itself yet", "It arrives within seconds of the first contact")
		return checks
	}
	var unreached []int // of checks
	for _, ep := range n.endpointsOf(info.ID) {
		began := time.Now()
		tcp, cancel := context.WithTimeout(ctx, doctorDial)
		conn, err := dialTCP(tcp, ep)
		cancel()
		if err != nil {
			add("tcp "+ep.String(), false, unwrapped(err), "Is the port open there? Try on "+name+": weft doctor")
			unreached = append(unreached, len(checks)-1)
			continue
		}
		_ = conn.Close()
		add("tcp "+ep.String(), true, fmt.Sprintf("answers in %.1f ms", float64(time.Since(began).Microseconds())/1000), "")
	}
	secrets := n.pairs.secrets(info.ID)
	add("pair secret", len(secrets) > 0, fmt.Sprintf("%d agreed", len(secrets)), "It needs a TCP connection between the two")
	stats, err := n.link.stats(ctx)
	if err != nil {
		add("wire", false, err.Error(), "Its words are in "+n.state.file(fileWireLog))
		return checks
	}
	checks = append(checks, sessionCheck(stats, info.ID))
	for _, p := range n.router.Status().Peers {
		if p.Peer != info.ID {
			continue
		}
		for _, no := range p.Rejected {
			checks = append(checks, control.Check{Name: "transport " + no.Transport, State: control.CheckWarn, Reason: no.Reason})
		}
		add("transport "+p.Transport, p.Link.Up || p.Link.Asleep, strings.Trim(p.Reason+"; "+p.Link.Reason, "; "), "")
		for _, i := range unreached {
			if p.Link.Up { // an address that does not answer is no fault where another way works
				checks[i].State, checks[i].Hint = control.CheckWarn, ""
			}
		}
	}
	return checks
}

// doctorDial is for one TCP connection.
const doctorDial = 3 * time.Second

func sessionCheck(stats wire.Stats, id peer.ID) control.Check {
	c := control.Check{Name: "session", State: control.CheckFailed, Reason: "the wire does not know the peer yet"}
	for _, p := range stats.Peers {
		if p.ID != id {
			continue
		}
		c.State, c.Reason = control.CheckOK, fmt.Sprintf("%s with %s, round trip %.1f ms, loss %.1f %%", p.Cipher, p.Endpoint,
			float64(p.RTT.Microseconds())/1000, 100*p.Loss)
		switch {
		case p.Asleep: // no fault
			c.Reason = p.Reason
		case !p.Up:
			c.State, c.Reason, c.Hint = control.CheckFailed, p.Reason, "UDP must pass between the two, at least one way first"
		}
	}
	return c
}
