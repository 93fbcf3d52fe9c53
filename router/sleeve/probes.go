package sleeve

import (
	"time"

	"weft/mesh/path"
)

// ask adds a probe to out, padded to the inner size that it names.
func (l *link) ask(a path.Ask, out []message) []message {
	p := probe{number: a.Number, size: uint16(a.Size)}
	body := p.append(make([]byte, 0, max(a.Size, probeSize)))
	if n := a.Size - len(body); n > 0 {
		body = append(body, make([]byte, n)...)
	}
	if !a.Halved || l.current == nil {
		return l.control(a.Path, kindProbe, body, out)
	}
	first, second, err := l.current.sealHalves(meta{kind: kindProbe}, body)
	if err != nil { // as in control
		return out
	}
	return append(out, message{a.Path, first}, message{a.Path, second})
}

func (l *link) control(to path.Path, kind uint8, body []byte, out []message) []message {
	if l.current == nil || to.IsZero() {
		return out
	}
	b, err := l.current.seal(nil, meta{kind: kind}, body)
	if err != nil { // counters used up: step makes new keys
		return out
	}
	return append(out, message{to, b})
}

// probed answers a probe where it came from, on the keys that seal now.
func (l *link) probed(k *keys, body []byte, from path.Path, out []message) []message {
	p, ok := parseProbe(body)
	if !ok {
		return out
	}
	e := echo{probe: p}
	_, e.received = k.carried()
	if !from.Relayed() {
		e.observed = from.Endpoint
	}
	return l.control(from, kindEcho, e.append(nil), out)
}

// echoed takes the answer to a probe in.
func (l *link) echoed(body []byte, from path.Path, now time.Time) {
	e, ok := parseEcho(body)
	if !ok {
		return
	}
	l.paths.Plain = e.plain
	if e.observed.IsValid() && from.Direct() {
		l.observed = e.observed
	}
	l.paths.Answer(e.number, int(e.size), now)
	if w := &l.witness; !e.plain && w.keys == l.current && w.number == e.number {
		if w.begun {
			l.paths.Carried(w.sent-w.lastSent, e.received-w.received, now)
		}
		w.begun, w.lastSent, w.received = true, w.sent, e.received
	}
}

// witness compares what was sealed by the time of a probe with what its answer says had arrived by then.
type witness struct {
	keys     *keys // that both count
	number   uint32
	sent     uint32 // when it was asked
	begun    bool   // an answer came before
	lastSent uint32 // as of that answer
	received uint32
}

// testify notes how much was sealed when a probe of the way in use goes out.
func (l *link) testify(a path.Ask) {
	if a.Number&(path.NumberSize|path.NumberTest) != 0 || l.current == nil {
		return
	}
	w := &l.witness
	if w.keys != l.current {
		*w = witness{keys: l.current}
	}
	w.number = a.Number
	w.sent, _ = l.current.carried()
}
