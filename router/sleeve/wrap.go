package sleeve

import "errors"

// errStreamFull says that a stream took no more.
var errStreamFull = errors.New("the stream takes no more")

// relayLane is where relays pass on what they carry.
const relayLane = lanes - 1

// wrap seals datagrams once more, for the relay that carries them.
type wrap struct {
	plain []byte // of one
	out   []byte // sealed, back to back
}

// indirect sends datagrams by a stream or a relay.
func (o *outbound) indirect(h *hop, b []byte, size int, tos uint8, now int64) (refused int, err error) {
	if h.stream != nil {
		if refused = h.stream.put(b, size); refused > 0 {
			err = errStreamFull
		}
		return refused, err
	}
	s := h.relay.sending.Load()
	if s == nil || s.path.Relayed() {
		return (len(b) + size - 1) / size, ErrNoSession
	}
	w := &o.wrap
	if w.out == nil {
		w.plain, w.out = make([]byte, 0, maxPacket+overhead), make([]byte, 0, maxSend+overhead)
	}
	whole := size + len(h.ids) + overhead
	if whole > maxSend {
		return (len(b) + size - 1) / size, ErrTooLarge
	}
	lane := &s.keys.send[o.lane]
	for len(b) > 0 {
		w.out = w.out[:0]
		n := 0
		lane.Lock()
		if err := lane.ready(s.keys, o.lane); err != nil {
			lane.Unlock()
			return refused + (len(b)+size-1)/size, ErrNoSession
		}
		for ; len(b) > 0 && n < maxSegments && len(w.out)+whole <= maxSend; n++ {
			d := b[:min(size, len(b))]
			b = b[len(d):]
			w.plain = append(append(w.plain[:metaSize], h.ids...), d...)
			meta{kind: kindRelayed, place: h.leg}.put(w.plain)
			if w.out, err = lane.append(s.keys, o.lane, w.out, w.plain); err != nil {
				lane.Unlock()
				return refused + n + 1 + (len(b)+size-1)/size, ErrNoSession
			}
		}
		lane.Unlock()
		lost, e := o.emit(s, w.out, whole, tos, now)
		if refused += lost; e != nil {
			err = e
		}
		if lost < n {
			h.relay.carried.count(n-lost, len(w.out), now)
		}
	}
	return refused, err
}
