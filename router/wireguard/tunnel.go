package wireguard

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
)

const keepaliveNATed = 25 * time.Second

// tunnel is one peer's.
type tunnel struct {
	router.Tunnel
	remote Remote
	known  bool           // the remote has told a key
	liar   bool           // but it is another's
	told   netip.AddrPort // the endpoint that the device was given last
	former bool           // the pair's former secret is in use
	newest psk.Secret
	anew   bool      // to be removed and added
	after  time.Time // unless there was a handshake after this one
	health health
	now    Peer
	added  bool // the device has the peer
}

// removeAnew reports whether a peer that the device has is to be removed and added. Its secret is read from the device
// where we have none, so that it is not lost.
func (t *transport) removeAnew(have State, want *wanted) (due bool) {
	for _, u := range t.tunnels {
		h, there := have.Peers[u.remote.Public]
		u.anew = u.anew && u.known && there && u.after.Equal(h.Handshake)
		if !u.anew {
			continue
		}
		due = true
		for i, w := range want.peers {
			if w.public == u.remote.Public && w.preshared == nil {
				want.peers[i].preshared = &h.Preshared
			}
		}
	}
	return due
}

// without leaves out the peers that are to be added anew.
func without(peers []wantedPeer, tunnels map[peer.ID]*tunnel) []wantedPeer {
	return slices.DeleteFunc(slices.Clone(peers), func(w wantedPeer) bool {
		for _, u := range tunnels {
			if u.anew && u.known && u.remote.Public == w.public {
				return true
			}
		}
		return false
	})
}

// want is what the device should hold of a peer.
func (t *transport) want(u *tunnel, have State, now time.Time) wantedPeer {
	r := u.remote
	w := wantedPeer{public: r.Public, allowed: u.Blocks, endpoint: t.endpoint(u.Tunnel, r)}
	if len(r.Secrets) > 0 {
		if !r.Secrets[0].Equal(u.newest) {
			u.newest, u.former = r.Secrets[0], false
		}
		use := r.Secrets[0]
		if u.former && len(r.Secrets) > 1 {
			use = r.Secrets[1]
		}
		key := Key(use.Derive(psk.WireGuard))
		w.preshared = &key
	}
	if r.NATed {
		w.keepalive = keepaliveNATed
	}
	h := have.Peers[r.Public]
	session := !h.Handshake.IsZero() && now.Sub(h.Handshake) < 3*time.Minute
	switch {
	case u.told.IsValid():
		w.move = w.endpoint != u.told || !u.health.Up && now.Sub(u.health.Since) > mendFirst
	default:
		w.move = !session // a daemon that takes a living tunnel over believes where the peer is heard
	}
	u.told = w.endpoint
	return w
}

// help does what may mend a tunnel; the next look carries it out.
func (t *transport) help(u *tunnel, r remedy) {
	u.after = u.now.Handshake
	switch r {
	case otherSecret:
		if len(u.remote.Secrets) < 2 {
			u.anew = !u.health.Up
			break
		}
		u.former = !u.former
	case addAnew:
		u.former, u.anew = false, true
	case again:
		u.anew = true
		return
	case nothing:
		return
	}
	t.log.Info("handshakes fail, mending the tunnel", "peer", u.Peer, "former_secret", u.former, "anew", u.anew)
}

// link describes a tunnel.
func (t *transport) link(u *tunnel, now time.Time) router.Link {
	h := &u.health
	l := router.Link{
		Peer: u.Peer, Up: h.Up && !h.Asleep && t.fault == "", Asleep: h.Asleep && t.fault == "",
		Endpoint: u.now.Endpoint, RTT: h.RTT, Loss: h.Loss, LastSeen: h.Answered,
		KeyAge: -1, RxBytes: u.now.Received, TxBytes: u.now.Sent,
	}
	if h.seen.After(l.LastSeen) {
		l.LastSeen = h.seen
	}
	if !h.handshake.IsZero() {
		l.KeyAge = now.Sub(h.shaken)
	}
	l.MTU, l.Again = h.Limit(), h.Again()
	if !l.Up && !l.Asleep {
		l.Reason = t.reason(u)
	}
	return l
}

// reason says why a tunnel is not up.
func (t *transport) reason(u *tunnel) string {
	switch {
	case t.fault != "":
		return t.fault
	case u.liar:
		return "the peer claims the WireGuard key of another"
	case !u.known:
		return "the peer has told no WireGuard key"
	case u.now.Preshared.IsZero():
		return "no secret is agreed with the peer yet"
	case !u.remote.Host.IsValid():
		return "the peer has no address of its own yet to test the tunnel with"
	case !t.directory.Self().IsValid():
		return "this node has no address of its own yet to test the tunnel with"
	case u.health.handshake.IsZero():
		return fmt.Sprintf("no handshake with %s yet", whereOf(u))
	}
	if u.health.Narrow() {
		return fmt.Sprintf("packets of %d bytes do not pass the tunnel to %s", router.MinMTU, whereOf(u))
	}
	return fmt.Sprintf("no answer through the tunnel to %s", whereOf(u))
}

func whereOf(u *tunnel) string {
	if u.now.Endpoint.IsValid() {
		return u.now.Endpoint.String()
	}
	return "the peer, whose address is not known"
}
