package sleeve

import (
	"fmt"
	"net/netip"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
)

// Punch sends a burst to addresses of a peer, now and four times within 400 ms, while the peer does the same to ours:
// that opens a way through two NATs where there is one. Addresses beyond path.MaxPunch are not used. The burst is of
// probes, or of one handshake message while there is no session.
func (e *Engine) Punch(to peer.ID, endpoints []netip.AddrPort) error {
	e.mu.RLock()
	r := e.peers[to]
	e.mu.RUnlock()
	if r == nil {
		return fmt.Errorf("punch to peer %s: %w", to.Short(), ErrUnknownPeer)
	}
	r.mu.Lock()
	r.link.punch(endpoints, time.Now())
	r.mu.Unlock()
	e.wake()
	return nil
}

// volley is a handshake message that is sent several times.
type volley struct {
	at time.Time // of the first; zero: there is none
	n  int       // that were sent
}

// punch starts a burst.
func (l *link) punch(endpoints []netip.AddrPort, now time.Time) {
	l.paths.Punch(endpoints, now)
	if l.current == nil {
		l.hurry(now)
		l.retryAt, l.volley = now, volley{at: now}
	}
}

// again repeats the handshake message of a burst, to all addresses: the first ones may have been lost at a NAT that the
// peer had not opened from its side yet. It returns when to be called again.
func (l *link) again(now time.Time, out []message) ([]message, time.Time) {
	v := &l.volley
	if v.at.IsZero() || l.current != nil || l.attempt == nil {
		l.volley = volley{}
		return out, time.Time{}
	}
	if v.n == 0 { // initiate has just sent it
		v.n = 1
	}
	if due := v.at.Add(path.Burst[v.n]); now.Before(due) {
		return out, due
	}
	for _, to := range l.paths.Targets() {
		if to.Direct() {
			out = append(out, message{to, l.attempt.msg})
		}
	}
	if v.n++; v.n == len(path.Burst) {
		l.volley = volley{}
		return out, time.Time{}
	}
	return out, v.at.Add(path.Burst[v.n])
}
