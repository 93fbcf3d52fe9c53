package sleeve

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/crypto/noise"
	"weft/crypto/psk"
)

// Times and limits of a session.
const (
	rekeyAfter    = 120 * time.Second // by the initiator of the session
	rekeyLate     = 135 * time.Second // by the responder, should the initiator not
	keyLife       = 180 * time.Second // then keys neither seal nor open
	rekeyMessages = 1 << 60           // on one lane

	retryMin = 250 * time.Millisecond
	retryMax = 5 * time.Second

	// answerGap is the least time between two initiations of one peer that are answered.
	answerGap = 20 * time.Millisecond

	// The end with the higher id leaves the other this long to begin, so that two which hear of each other at the same
	// time make one session rather than two.
	courtesy      = 100 * time.Millisecond
	rekeyCourtesy = 5 * time.Second

	maxCandidates = 8 // endpoints of a peer that are used
)

// Errors about handshakes, counted apart.
var (
	errStranger   = errors.New("initiation from an unknown key")
	errOldCounter = errors.New("initiation with a counter that was seen")
	errRate       = errors.New("initiations too close to each other")
	errCipher     = errors.New("no cipher in common")
)

// node is what a link knows of this end.
type node struct {
	local   noise.Local
	epoch   uint64
	counter func() uint64 // rises with each call
	jitter  func() float64
	indexes *directory
}

// message is a datagram that a link wants to be sent.
type message struct {
	to netip.AddrPort
	b  []byte
}

// link is the session with one peer: a pure step machine. It has no clock, socket, goroutine or log: time comes in and
// datagrams come out as values, and its owner calls it under a lock. Three generations of keys may exist at a time:
//
//	our initiation answered ───────────────────────────> current ── newer current ──> previous ──┐
//	their initiation answered ──> next ── first packet ──^  │                           │        │
//	                               │                        │              2 newer ones │        v
//	                               └── newer next ──────────┴───────── 180 s old ───────┴────> gone (terminal)
//
// current seals; all open. next may not seal before something was opened with it, as the initiation may have been
// a replay. A handshake is attempted while there is no current, when current is 120 s old, and when probes were not
// answered for 5 s; an attempt is repeated after 0.25 s, doubling to 5 s, with a fresh initiation each time. Without an
// endpoint or a secret nothing is attempted, but an initiation of the peer is still answered if there is a secret.
type link struct {
	owner  *remote
	node   *node
	peer   Peer
	key    [noise.KeySize]byte
	second bool // our id is the higher one

	current, next *keys
	previous      [2]*keys // newest first; the second is in use after handshakes that crossed each other

	attempt *attempt
	tries   int       // since the last success
	retryAt time.Time // not before
	since   time.Time // when the first try was made; zero when none is under way
	force   bool      // a handshake is due whatever the age of the keys
	jar     noise.Jar

	endpoint  netip.AddrPort // where the peer was heard from last
	seen      uint64         // highest counter of its initiations
	answered  time.Time      // when the last one was answered
	lastHeard time.Time
	completed uint64 // handshakes

	prober prober
	mtu    mtuSearch
}

// configure takes the wanted state in. A changed static key is not its business: the owner makes a new link.
func (l *link) configure(p Peer, now time.Time) {
	p.Endpoints = slices.Clone(p.Endpoints[:min(len(p.Endpoints), maxCandidates)])
	p.Secrets = slices.Clone(p.Secrets[:min(len(p.Secrets), MaxSecrets)])
	p.Secrets = slices.DeleteFunc(p.Secrets, psk.Secret.IsZero)
	if len(p.Secrets) == 0 { // a daemon that has just started knows none yet; removing a peer takes them all
		p.Secrets = l.peer.Secrets
	}
	if l.current == nil && (!slices.Equal(p.Endpoints, l.peer.Endpoints) || len(l.peer.Secrets) == 0) {
		l.tries, l.retryAt = 0, now // news: no reason to wait any longer
		if l.second {
			l.retryAt = now.Add(courtesy)
		}
	}
	l.peer = p
}

// rekey asks for a handshake beside the running session.
func (l *link) rekey() {
	l.force, l.retryAt = true, time.Time{}
	l.abandon()
}

// close ends everything.
func (l *link) close() {
	l.abandon()
	for _, slot := range l.slots() {
		l.drop(slot)
	}
}

func (l *link) slots() [4]**keys {
	return [...]**keys{&l.current, &l.next, &l.previous[0], &l.previous[1]}
}

// retire keeps keys for receiving only.
func (l *link) retire(k *keys) {
	if k != nil {
		l.drop(&l.previous[1])
		l.previous = [2]*keys{k, l.previous[0]}
	}
}

func (l *link) drop(slot **keys) {
	if *slot != nil {
		l.node.indexes.release((*slot).local)
		*slot = nil
	}
}

func (l *link) abandon() {
	if l.attempt != nil {
		l.node.indexes.release(l.attempt.index)
		l.attempt = nil
	}
}

// step does what is due and returns when it wants to be called again; zero is never. busy says that packets flow.
func (l *link) step(now time.Time, busy bool, out []message) ([]message, time.Time) {
	var wake time.Time
	at := func(t time.Time) {
		if wake.IsZero() || t.Before(wake) {
			wake = t
		}
	}
	for _, slot := range l.slots() {
		if k := *slot; k != nil {
			if now.Sub(k.created) >= keyLife {
				l.drop(slot)
			} else {
				at(k.created.Add(keyLife))
			}
		}
	}
	if l.current != nil {
		if due := l.prober.due(busy); !now.Before(due) {
			out = l.ask(probe{number: l.prober.ask(now)}, out)
		}
		at(l.prober.due(busy))
		if l.prober.silence(now) < lostAfter { // else nothing passes, whatever its size
			if p, ok := l.mtu.ask(now); ok {
				p.number |= mtuNumbers
				out = l.ask(p, out)
			}
			if t, ok := l.mtu.due(); ok {
				at(t)
			}
		}
	}
	if l.canInitiate() {
		due := later(l.handshakeDue(now), l.retryAt)
		if !now.Before(due) {
			out = l.initiate(now, out)
			due = l.retryAt
		}
		at(due)
	}
	return out, wake
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// establish makes k current.
func (l *link) establish(k *keys, from netip.AddrPort, now time.Time) {
	l.retire(l.current)
	l.current = k
	l.tries, l.retryAt, l.since, l.force = 0, time.Time{}, time.Time{}, false
	l.completed++
	l.lastHeard = now
	l.move(from)
	l.prober.restart() // the first probe confirms the keys to the peer
}

// heard is told of a datagram that k opened. newest means that none with a higher counter came before on its lane: only
// then may it move the endpoint, else a delayed copy could.
func (l *link) heard(k *keys, from netip.AddrPort, newest bool, now time.Time) {
	l.lastHeard = now
	switch {
	case k == l.next:
		l.next = nil
		l.abandon() // ours would only replace what was just agreed
		l.establish(k, from, now)
	case k == l.current && newest:
		l.move(from)
	}
}

func (l *link) move(to netip.AddrPort) {
	if to != l.endpoint {
		l.endpoint = to
		l.prober.moved()
		l.mtu.restart()
	}
}

// mtuNumbers marks the probes of the MTU search: their loss says nothing about the path.
const mtuNumbers = 1 << 31

// ask adds a probe to out, padded to the inner size that it names.
func (l *link) ask(p probe, out []message) []message {
	body := p.append(make([]byte, 0, max(int(p.size), probeSize)))
	if n := int(p.size) - len(body); n > 0 {
		body = append(body, make([]byte, n)...)
	}
	return l.control(kindProbe, body, out)
}

func (l *link) control(kind uint8, body []byte, out []message) []message {
	if l.current == nil || !l.endpoint.IsValid() {
		return out
	}
	b, err := l.current.seal(nil, kind, body)
	if err != nil { // counters used up: step makes new keys
		return out
	}
	return append(out, message{l.endpoint, b})
}

// probed answers a probe, on the keys that seal now.
func (l *link) probed(body []byte, out []message) []message {
	p, ok := parseProbe(body)
	if !ok {
		return out
	}
	return l.control(kindEcho, p.append(nil), out)
}

// echoed takes the answer to a probe in.
func (l *link) echoed(body []byte, now time.Time) {
	p, ok := parseProbe(body)
	if !ok {
		return
	}
	if p.number&mtuNumbers != 0 {
		p.number &^= mtuNumbers
		l.mtu.answer(p, now)
		return
	}
	l.prober.answer(p.number, now)
}

// state is whether the link works, or why it does not.
func (l *link) state(now time.Time) (up bool, why string) {
	switch {
	case l.current == nil && len(l.peer.Secrets) == 0:
		return false, "no pair secret agreed yet"
	case l.current == nil && !l.canInitiate():
		return false, "no address known, waiting for the peer to call"
	case l.current == nil && l.since.IsZero():
		return false, "no handshake tried yet"
	case l.current == nil:
		return false, fmt.Sprintf("no answer to handshakes for %v (tries %d, addresses %d)",
			now.Sub(l.since).Round(100*time.Millisecond), l.tries, len(l.peer.Endpoints))
	}
	if s := l.prober.silence(now); s >= lostAfter {
		return false, fmt.Sprintf("probes unanswered for %v", s.Round(100*time.Millisecond))
	}
	return true, ""
}
