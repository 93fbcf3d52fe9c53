package sleeve

import (
	"sync"
	"time"

	"weft/crypto/noise"
	"weft/crypto/replay"
	"weft/crypto/seal"
)

// keys are the result of one handshake: what a session seals and opens with until the next one.
type keys struct {
	owner     *remote
	local     uint32 // index on datagrams to us
	far       uint32 // index on datagrams to the peer
	suite     seal.Suite
	initiator bool
	created   time.Time
	secret    noise.Keys

	send [lanes]sendLane
	recv [lanes]recvLane
}

// sendLane is guarded by its lock, which is held over a whole super-packet.
type sendLane struct {
	sync.Mutex
	sealer *seal.Sealer
}

// recvLane is guarded by its lock. The window is behind a pointer since most lanes are never used.
type recvLane struct {
	sync.Mutex
	opener *seal.Opener
	window *replay.Window
	opened uint32
	halves *halves // nil: none ever came
}

// ready makes the lane's key on first use; the lock is held.
func (l *sendLane) ready(k *keys, lane uint8) error {
	if l.sealer != nil {
		return nil
	}
	key := seal.LaneKey(&k.secret.Send, lane)
	s, err := seal.NewSealer(k.suite, &key)
	l.sealer = s
	return err
}

func (l *recvLane) ready(k *keys, lane uint8) error {
	if l.opener != nil {
		return nil
	}
	key := seal.LaneKey(&k.secret.Receive, lane)
	o, err := seal.NewOpener(k.suite, &key)
	if err != nil {
		return err
	}
	l.opener, l.window = o, new(replay.Window)
	return nil
}

// seal appends one whole datagram on the control lane.
func (k *keys) seal(dst []byte, m meta, body []byte) ([]byte, error) {
	l := &k.send[controlLane]
	l.Lock()
	defer l.Unlock()
	return k.sealLocked(l, dst, m, body)
}

func (k *keys) sealLocked(l *sendLane, dst []byte, m meta, body []byte) ([]byte, error) {
	if err := l.ready(k, controlLane); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = append(dst, make([]byte, headerSize)...)
	header{lane: controlLane, index: k.far, counter: l.sealer.Next()}.put(dst[start:])
	dst = append(dst, make([]byte, metaSize)...)
	m.put(dst[start+headerSize:])
	dst = append(dst, body...)
	plain := dst[start+headerSize:]
	sealed, err := l.sealer.Seal(plain[:0], plain, dst[start:start+headerSize])
	if err != nil {
		return dst[:start], err
	}
	return append(dst[:start+headerSize], sealed...), nil
}

// used is the highest number of datagrams that any lane has sealed.
func (k *keys) used() uint64 {
	var n uint64
	for i := range k.send {
		l := &k.send[i]
		l.Lock()
		if l.sealer != nil {
			n = max(n, l.sealer.Next())
		}
		l.Unlock()
	}
	return n
}

// carried is how many datagrams with packets were sealed, and opened, on all lanes; both wrap.
func (k *keys) carried() (sealed, opened uint32) {
	for i := range lanes {
		if i == controlLane {
			continue
		}
		s, r := &k.send[i], &k.recv[i]
		s.Lock()
		if s.sealer != nil {
			sealed += uint32(s.sealer.Next())
		}
		s.Unlock()
		r.Lock()
		opened += r.opened
		r.Unlock()
	}
	return sealed, opened
}
