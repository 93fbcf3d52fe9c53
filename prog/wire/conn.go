package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Limits of one connection.
const (
	maxOut       = 256      // frames that wait to be written, other than datagrams
	batchBytes   = 64 << 10 // of datagrams in one write
	readBuffer   = 32 << 10
	keepBuffer   = 256 << 10 // a larger read buffer is given back once empty
	writeTimeout = 5 * time.Second
)

var errBusy = errors.New("too many frames wait for the other side")

// conn frames one end of the control socket. One goroutine calls next, another runs write; post may be called by any.
type conn struct {
	unix  *net.UnixConn
	limit int    // of a body that is read
	bulk  *queue // datagrams to write when nothing else waits

	// Owned by the reader.
	buf  []byte
	r, w int // unread part of buf
	used int // end of the frame returned last; its start is r of then
	oob  []byte
	fds  []int // received, claimed by no frame yet

	once sync.Once
	done chan struct{} // closed by close
	wake chan struct{}

	mu   sync.Mutex
	out  []outFrame
	last bool // close once out is written
}

// outFrame is an encoded frame with the descriptors that travel with it, which are closed once sent.
type outFrame struct {
	b   []byte
	fds []int
}

func newConn(u *net.UnixConn, bulk *queue) *conn {
	return &conn{
		unix: u, bulk: bulk, limit: maxGreeting,
		buf: make([]byte, readBuffer), oob: make([]byte, rightsSpace(maxFiles)),
		done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
}

// close ends the connection; next and write return soon after.
func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		c.unix.Close()
	})
}

// next reads one frame. The bytes of the frame before are wiped: some hold keys.
func (c *conn) next() (frame, error) {
	clear(c.buf[c.r:c.used])
	c.r = max(c.r, c.used)
	for {
		need := headerSize
		if c.w-c.r >= headerSize {
			h, err := parseHeader(c.buf[c.r:], c.limit)
			if err != nil {
				return frame{}, err
			}
			need += h.size
			if c.w-c.r >= need {
				return c.claim(h)
			}
		}
		if err := c.fill(need); err != nil {
			return frame{}, err
		}
	}
}

// claim returns the complete frame at c.r with its descriptors.
func (c *conn) claim(h header) (frame, error) {
	if len(c.fds) < h.files {
		return frame{}, fmt.Errorf("%w: %d of %d descriptors arrived", errFrame, len(c.fds), h.files)
	}
	f := frame{header: h, fds: c.fds[:h.files:h.files]}
	c.fds = c.fds[h.files:]
	start := c.r + headerSize
	c.used = start + h.size
	f.body = c.buf[start:c.used:c.used]
	return f, nil
}

// fill reads once, with room for need bytes from c.r on. The buffer grows as bytes arrive, not as a header claims.
func (c *conn) fill(need int) error {
	if c.r == c.w {
		if len(c.fds) > 0 {
			return fmt.Errorf("%w: descriptors without a frame", errFrame)
		}
		if len(c.buf) > keepBuffer {
			c.buf = make([]byte, readBuffer)
		}
		c.r, c.w = 0, 0
	}
	if c.w == len(c.buf) && c.r > 0 {
		n := copy(c.buf, c.buf[c.r:])
		clear(c.buf[n:])
		c.r, c.w = 0, n
	}
	if c.w == len(c.buf) { // a frame begins at 0 and needs more
		bigger := make([]byte, min(2*len(c.buf), need))
		copy(bigger, c.buf)
		clear(c.buf)
		c.buf = bigger
	}
	c.used = c.r
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(c.buf[c.w:], c.oob)
	if oobn > 0 {
		fds, perr := parseRights(c.oob[:oobn], flags)
		c.fds = append(c.fds, fds...)
		if err = errors.Join(err, perr); err == nil && len(c.fds) > 2*maxFiles {
			err = fmt.Errorf("%w: descriptors pile up", errFrame)
		}
	}
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	c.w += n
	return nil
}

// release closes descriptors that arrived and were never claimed. Only the reader may call it, when it ends.
func (c *conn) release() {
	closeFDs(c.fds)
	c.fds = nil
	clear(c.buf)
}

// post queues a frame. It takes fds over in any case.
func (c *conn) post(k kind, id uint32, body []byte, fds ...int) error {
	b := make([]byte, 0, headerSize+len(body))
	b = appendHeader(b, header{size: len(body), version: protocol, files: len(fds), kind: k, id: id})
	b = append(b, body...)
	c.mu.Lock()
	var err error
	select {
	case <-c.done:
		err = net.ErrClosed
	default:
		if len(c.out) >= maxOut {
			err = errBusy
		} else {
			c.out = append(c.out, outFrame{b, fds})
		}
	}
	c.mu.Unlock()
	if err != nil {
		closeFDs(fds)
		return err
	}
	c.nudge()
	return nil
}

// waiting is how many posted frames are not written yet.
func (c *conn) waiting() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.out)
}

// write sends what is posted, and datagrams of the bulk queue when nothing else waits, until the connection ends.
func (c *conn) write() error {
	defer c.drop()
	defer c.close()
	var batch []byte
	for {
		o, ok, last := c.take()
		if last {
			return net.ErrClosed
		}
		if !ok {
			if batch = c.gather(batch[:0]); len(batch) > 0 {
				o = outFrame{b: batch}
			} else {
				select {
				case <-c.wake:
				case <-c.bulk.ready:
				case <-c.done:
					return net.ErrClosed
				}
				continue
			}
		}
		err := c.send(o)
		clear(o.b)
		if err != nil {
			return err
		}
	}
}

func (c *conn) take() (o outFrame, ok, last bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.out) == 0 {
		return outFrame{}, false, c.last
	}
	o = c.out[0]
	c.out[0] = outFrame{}
	c.out = c.out[1:]
	return o, true, false
}

// finish closes the connection once what was posted is written.
func (c *conn) finish() {
	c.mu.Lock()
	c.last = true
	c.mu.Unlock()
	c.nudge()
}

func (c *conn) nudge() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// gather encodes waiting datagrams, up to about batchBytes.
func (c *conn) gather(b []byte) []byte {
	for len(b) < batchBytes {
		d, ok := c.bulk.pop()
		if !ok {
			break
		}
		start := len(b)
		b = append(b, make([]byte, headerSize)...)
		b = appendDatagram(b, d)
		appendHeader(b[start:start], header{size: len(b) - start - headerSize, version: protocol, kind: kindDatagram})
	}
	return b
}

func (c *conn) send(o outFrame) error {
	defer closeFDs(o.fds)
	c.unix.SetWriteDeadline(time.Now().Add(writeTimeout))
	n := 0
	if len(o.fds) > 0 {
		var err error
		if n, _, err = c.unix.WriteMsgUnix(o.b, rights(o.fds), nil); err != nil {
			return err
		}
	}
	_, err := c.unix.Write(o.b[n:])
	return err
}

// drop closes the descriptors of frames that were never written.
func (c *conn) drop() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, o := range c.out {
		closeFDs(o.fds)
	}
	c.out = nil
}
