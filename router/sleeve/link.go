package sleeve

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft/crypto/noise"
	"weft/crypto/psk"
	"weft/mesh/path"
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
	maxStreams    = 4 // addresses for streams

	lostAfter   = path.LostAfter
	silentAfter = path.DeadAfter
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
	ways    *ways
}

// message is a datagram that a link wants to be sent.
type message struct {
	to path.Path
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
	asleep  bool      // nothing is sent by itself
	helped  bool      // its relays were woken for it
	jar     noise.Jar
	volley  volley

	seen      uint64    // highest counter of its initiations
	answered  time.Time // when the last one was answered
	lastHeard time.Time
	completed uint64 // handshakes

	paths    path.Set
	from     path.Path // where the newest datagram came from
	known    uint64    // version of the ways that paths was told
	stale    bool      // paths was not told the wanted state yet
	observed netip.AddrPort
	witness  witness
}

// configure takes the wanted state in. A changed static key is not its business: the owner makes a new link.
func (l *link) configure(p Peer, now time.Time) {
	p.Endpoints = slices.Clone(p.Endpoints[:min(len(p.Endpoints), maxCandidates)])
	p.Relays = slices.Clone(p.Relays[:min(len(p.Relays), path.MaxRelays)])
	p.TCP = slices.Clone(p.TCP[:min(len(p.TCP), maxStreams)])
	p.Secrets = slices.Clone(p.Secrets[:min(len(p.Secrets), MaxSecrets)])
	p.Secrets = slices.DeleteFunc(p.Secrets, psk.Secret.IsZero)
	if len(p.Secrets) == 0 { // a daemon that has just started knows none yet; removing a peer takes them all
		p.Secrets = l.peer.Secrets
	}
	if l.current == nil && (!slices.Equal(p.Endpoints, l.peer.Endpoints) || len(l.peer.Secrets) == 0) {
		l.hurry(now)
	}
	l.peer, l.stale = p, true
}

// hurry makes the next handshake due: there is news, and no reason to wait any longer.
func (l *link) hurry(now time.Time) {
	l.tries, l.retryAt = 0, now
	if l.second {
		l.retryAt = now.Add(courtesy)
	}
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
				if slot == &l.current {
					l.paths.Forget()
				}
			} else {
				at(k.created.Add(keyLife))
			}
		}
	}
	l.look(now)
	if l.current != nil {
		asks, next := l.paths.Step(now, busy, nil)
		for _, a := range asks {
			l.testify(a)
			out = l.ask(a, out)
		}
		if !next.IsZero() {
			at(next)
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
	if !l.volley.at.IsZero() {
		var next time.Time
		if out, next = l.again(now, out); !next.IsZero() {
			at(next)
		}
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
func (l *link) establish(k *keys, from path.Path, now time.Time) {
	l.retire(l.current)
	l.current = k
	l.tries, l.retryAt, l.since, l.force, l.helped = 0, time.Time{}, time.Time{}, false, false
	l.completed++
	l.lastHeard = now
	l.look(now)
	l.from = from
	l.paths.Established(from, now)
}

// heard is told of a datagram that k opened. newest means that none with a higher counter came before on its lane: only
// then may it move the endpoint, else a delayed copy could. test says that the peer does not send its packets there.
func (l *link) heard(k *keys, from path.Path, newest, test bool, now time.Time) {
	l.lastHeard = now
	switch {
	case k == l.next:
		l.next = nil
		l.abandon() // ours would only replace what was just agreed
		l.establish(k, from, now)
	case k == l.current && newest:
		l.from = from
		l.paths.Heard(from, test, now)
	}
}

// state is whether the link works, or why it does not.
func (l *link) state(now time.Time) (up bool, why string) {
	switch {
	case l.asleep:
		return false, "asleep: nothing was sent for a while, and the next packet opens a session"
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
	if l.paths.Active().IsZero() {
		return false, "the way that was in use is gone, and no other is known"
	}
	if s := l.paths.Silence(now); s >= lostAfter {
		return false, fmt.Sprintf("probes unanswered for %v", s.Round(100*time.Millisecond))
	}
	return true, ""
}
