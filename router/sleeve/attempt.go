package sleeve

import (
	"fmt"
	"slices"
	"time"

	"weft/crypto/noise"
	"weft/crypto/psk"
	"weft/crypto/seal"
	"weft/mesh/path"
)

// attempt is an initiation that waits for its response.
type attempt struct {
	pending *noise.Pending
	index   uint32
	msg     []byte
}

func (l *link) canInitiate() bool {
	return !l.asleep && len(l.peer.Secrets) > 0 && l.paths.Len() > 0
}

// handshakeDue is when a handshake is wanted, by the state of the session alone.
func (l *link) handshakeDue(now time.Time) time.Time {
	k := l.current
	if k == nil || l.force || k.used() >= rekeyMessages {
		return now
	}
	due := k.created.Add(rekeyLate)
	if k.initiator {
		due = k.created.Add(rekeyAfter)
		if l.second {
			due = due.Add(rekeyCourtesy)
		}
	}
	if t := l.paths.Quiet(); !t.IsZero() && t.Add(silentAfter).Before(due) {
		due = t.Add(silentAfter)
	}
	return due
}

// initiate sends a new initiation and sets the time of the next try.
func (l *link) initiate(now time.Time, out []message) []message {
	l.abandon()
	if l.since.IsZero() {
		l.since = now
	}
	o := noise.Offer{Counter: l.node.counter(), Epoch: l.node.epoch, MTU: uint16(l.paths.MTU())}
	for _, s := range seal.Supported() {
		o.Ciphers = append(o.Ciphers, uint8(s))
	}
	for _, s := range l.peer.Secrets {
		o.PSKs = append(o.PSKs, noise.ID(s.ID()))
	}
	back := min(retryMin<<min(l.tries, 10), retryMax)
	l.retryAt = now.Add(time.Duration(float64(back) * (0.8 + 0.4*l.node.jitter())))
	targets := l.targets(now)
	l.tries++
	index := l.node.indexes.reserve(l.owner)
	p, msg, err := noise.Initiate(l.node.local, l.key, index, o)
	if err != nil { // an unusable key of the peer: nothing to be done until it changes
		l.node.indexes.release(index)
		return out
	}
	l.jar.Sign(msg, now)
	l.attempt = &attempt{pending: p, index: index, msg: msg}
	for _, to := range targets {
		out = append(out, message{to, msg})
	}
	return out
}

// targets are where the next initiation goes: along the living session first, else to all candidates at once. The peer
// answers the copy that comes first, and if just that path is deaf in the other direction every round would fail the
// same way: so every second round has one candidate to itself.
func (l *link) targets(now time.Time) []path.Path {
	alive := l.current != nil && l.paths.Silence(now) < silentAfter
	if to := l.paths.Active(); alive && !to.IsZero() && l.tries < 3 {
		return []path.Path{to}
	}
	all := l.paths.Targets()
	if l.tries%2 == 1 && len(all) > 1 {
		i := l.tries / 2 % len(all)
		return all[i : i+1]
	}
	return all
}

// secret finds a secret that is still wanted.
func (l *link) secret(id noise.ID) ([32]byte, bool) {
	for _, s := range l.peer.Secrets {
		if noise.ID(s.ID()) == id {
			return s.Derive(psk.Sleeve), true
		}
	}
	return [32]byte{}, false
}

// accept decides about an initiation that the peer proved to have made. It reserves the index in the answer, which the
// caller releases if no answer is made of it.
func (l *link) accept(o noise.Offer, now time.Time) (noise.Answer, [32]byte, error) {
	if o.Counter <= l.seen {
		return noise.Answer{}, [32]byte{}, errOldCounter
	}
	if !l.answered.IsZero() && now.Sub(l.answered) < answerGap {
		return noise.Answer{}, [32]byte{}, errRate
	}
	l.seen, l.answered = o.Counter, now
	a := noise.Answer{Epoch: l.node.epoch, MTU: uint16(l.paths.MTU())}
	for _, s := range seal.Supported() {
		if slices.Contains(o.Ciphers, uint8(s)) {
			a.Cipher = uint8(s)
			break
		}
	}
	if a.Cipher == 0 {
		return noise.Answer{}, [32]byte{}, errCipher
	}
	for _, id := range o.PSKs {
		if secret, ok := l.secret(id); ok {
			a.PSK, a.Index = id, l.node.indexes.reserve(l.owner)
			return a, secret, nil
		}
	}
	return noise.Answer{}, [32]byte{}, noise.ErrPSK
}

// responded keeps the keys of an initiation that was answered, until the peer uses them.
func (l *link) responded(secret noise.Keys, a noise.Answer, far uint32, now time.Time) {
	l.drop(&l.next)
	l.next = &keys{
		owner: l.owner, local: a.Index, far: far, suite: seal.Suite(a.Cipher), created: now, secret: secret,
	}
	l.node.indexes.bind(l.next)
}

// response completes our initiation.
func (l *link) response(msg []byte, from path.Path, now time.Time) error {
	if l.attempt == nil || l.attempt.index != noise.Index(msg) {
		return fmt.Errorf("%w: response to nothing", noise.ErrMessage)
	}
	a, secret, err := l.attempt.pending.Finish(msg, l.secret)
	if err != nil {
		return err
	}
	k := &keys{
		owner: l.owner, local: l.attempt.index, far: a.Index, suite: seal.Suite(a.Cipher), initiator: true,
		created: now, secret: secret,
	}
	l.attempt = nil // its index lives on in k
	l.node.indexes.bind(k)
	l.retire(l.next) // handshakes crossed: the peer may be sealing with it already
	l.next = nil
	l.establish(k, from, now)
	return nil
}

// cookie keeps a cookie for the next try, which is made soon.
func (l *link) cookie(msg []byte, now time.Time) error {
	if l.attempt == nil || l.attempt.index != noise.Index(msg) {
		return fmt.Errorf("%w: cookie for nothing", noise.ErrMessage)
	}
	return l.jar.Put(msg, l.attempt.msg, l.key, now)
}
