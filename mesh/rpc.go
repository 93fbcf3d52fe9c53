package mesh

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Limits of a call.
const (
	MaxMessage  = 1 << 20  // bytes of a request, and of an answer unless stated
	MaxSnapshot = 16 << 20 // bytes of an answer that carries replicated state
	MaxMethod   = 64       // bytes of a method's name

	defaultCallTime = 10 * time.Second // when the caller's context has no deadline
	maxCallTime     = 2 * time.Minute  // no handler runs longer, whatever the caller asked for
	requestTime     = 10 * time.Second // for the request to arrive
	answerTime      = 20 * time.Second // for the answer to leave

	callsPerPeer = 16  // served at once for one member
	callsServed  = 128 // served at once in total
	callsMade    = 128 // made at once in total; more wait
)

// The protocol of a stream of kind StreamCall: one request, one answer, end.
//
//	request  version(1)  method length(1)  method  milliseconds left(4)  body length(4)  body
//	answer   version(1)  outcome(1)  body length(4)  body        outcome 0: the answer; 1: a Fault as fields
//
// Numbers are big endian. A newer minor version may use more outcomes, never other lengths.
const (
	callVersion = tlv.Version(0x10)

	outcomeAnswer = 0
	outcomeFault  = 1

	tagFaultCode = 1
	tagFaultText = 2
	maxFaultText = 1024
)

// Handler answers one request. It must end soon after ctx does. The error reaches the caller as a Fault: its own when
// it wraps one, else one with the code CodeFailed and the error's text.
type Handler func(ctx context.Context, from peer.ID, req []byte) ([]byte, error)

// Fault is an error that crossed the wire: a code for programs and a sentence for people.
type Fault struct {
	Code string
	Text string
}

// Codes of faults that the mesh itself answers with. Handlers define their own beside these.
const (
	CodeFailed  = "failed"         // the handler returned an error without a code
	CodeUnknown = "unknown-method" // the other end has no such handler: an older build
	CodeBusy    = "busy"           // too many calls at once; try again later
	CodeVersion = "version"        // the request has a format that the other end does not read
	CodeTooBig  = "too-big"        // request or answer beyond the limit
)

// Error is the sentence.
func (f *Fault) Error() string { return f.Text }

// HasCode reports whether err is, or wraps, a Fault with this code.
func HasCode(err error, code string) bool {
	var f *Fault
	return errors.As(err, &f) && f.Code == code
}

// Handle registers the handler of a method, in place of the one before.
func (m *Mesh) Handle(method string, h Handler) {
	m.calls.mu.Lock()
	defer m.calls.mu.Unlock()
	m.calls.handlers[method] = h
}

// Call asks a member and waits for its answer, at most until ctx ends or 10 s when ctx has no deadline.
func (m *Mesh) Call(ctx context.Context, to peer.ID, method string, req []byte) ([]byte, error) {
	return m.call(ctx, to, method, req, MaxMessage)
}

func (m *Mesh) call(ctx context.Context, to peer.ID, method string, req []byte, limit int) ([]byte, error) {
	ans, err := m.exchange(ctx, to, method, req, limit)
	if err != nil {
		return nil, fmt.Errorf("call %s at %s: %w", method, to.Short(), err)
	}
	return ans, nil
}

func (m *Mesh) exchange(ctx context.Context, to peer.ID, method string, req []byte, limit int) ([]byte, error) {
	switch {
	case len(method) == 0 || len(method) > MaxMethod:
		return nil, fmt.Errorf("a method's name has 1 to %d bytes", MaxMethod)
	case len(req) > MaxMessage:
		return nil, &Fault{CodeTooBig, fmt.Sprintf("request of %d bytes, at most %d", len(req), MaxMessage)}
	case to == m.self:
		return nil, errors.New("that is this node")
	case !m.roster.Member(to):
		return nil, ErrNotMember
	}
	limitTime := maxCallTime
	if _, ok := ctx.Deadline(); !ok {
		limitTime = defaultCallTime
	}
	ctx, cancel := context.WithTimeout(ctx, limitTime)
	defer cancel()
	select {
	case m.calls.made <- struct{}{}:
		defer func() { <-m.calls.made }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}

	conn, err := m.dial(ctx, to, StreamCall)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	left := uint32(max(0, time.Until(deadline).Milliseconds()))
	b := appendRequest(make([]byte, 0, 10+len(method)+len(req)), method, left, req)
	if _, err := conn.Write(b); err != nil {
		return nil, cause(ctx, fmt.Errorf("send request: %w", err))
	}
	ans, err := readAnswer(conn, limit)
	if err != nil {
		return nil, cause(ctx, err)
	}
	m.heard(to)
	return ans, nil
}

func appendRequest(b []byte, method string, milliseconds uint32, req []byte) []byte {
	b = tlv.AppendVersion(b, callVersion)
	b = append(b, byte(len(method)))
	b = append(b, method...)
	b = binary.BigEndian.AppendUint32(b, milliseconds)
	b = binary.BigEndian.AppendUint32(b, uint32(len(req)))
	return append(b, req...)
}

// cause prefers the context's reason: a closed or timed out connection is only how it showed.
func cause(ctx context.Context, err error) error {
	var f *Fault
	switch {
	case errors.As(err, &f):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded): // the connection's clock was the first of the two
		return context.DeadlineExceeded
	}
	return err
}

func readAnswer(r io.Reader, limit int) ([]byte, error) {
	var head [6]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if v := tlv.Version(head[0]); v.Major() != callVersion.Major() {
		return nil, &tlv.VersionError{What: "answer", Got: v, Want: callVersion}
	}
	size := binary.BigEndian.Uint32(head[2:])
	if uint64(size) > uint64(limit) {
		return nil, &Fault{CodeTooBig, fmt.Sprintf("answer of %d bytes, at most %d", size, limit)}
	}
	body, err := readBody(r, int(size))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	switch head[1] {
	case outcomeAnswer:
		return body, nil
	case outcomeFault:
		return nil, parseFault(body)
	}
	return nil, fmt.Errorf("read answer: unknown outcome %d", head[1])
}

// readBody lets memory grow with what arrives, not with what was announced.
func readBody(r io.Reader, size int) ([]byte, error) {
	const trusted = 64 << 10
	if size <= trusted {
		b := make([]byte, size)
		_, err := io.ReadFull(r, b)
		return b, err
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err == nil && len(b) < size {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}

func parseFault(b []byte) error {
	fields, err := tlv.Parse(b)
	if err != nil {
		return fmt.Errorf("read fault: %w", err)
	}
	r := tlv.NewReader(fields)
	f := &Fault{Code: r.String(tagFaultCode, MaxMethod), Text: r.String(tagFaultText, maxFaultText)}
	if r.Err() != nil {
		return fmt.Errorf("read fault: %w", r.Err())
	}
	return f
}

// calls is the serving side of RPC.
type calls struct {
	mu       sync.Mutex // guards all below
	handlers map[string]Handler
	serving  map[peer.ID]int
	total    int

	listeners map[byte]func(from peer.ID, body []byte) // of datagrams

	made chan struct{} // one token per call being made
}

func newCalls() *calls {
	return &calls{
		handlers:  map[string]Handler{},
		serving:   map[peer.ID]int{},
		listeners: map[byte]func(peer.ID, []byte){},
		made:      make(chan struct{}, callsMade),
	}
}

func (c *calls) enter(from peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.total >= callsServed || c.serving[from] >= callsPerPeer {
		return false
	}
	c.total++
	c.serving[from]++
	return true
}

func (c *calls) leave(from peer.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.serving[from]--; c.serving[from] == 0 {
		delete(c.serving, from)
	}
}

func (c *calls) handler(method string) Handler {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handlers[method]
}

func (c *calls) listener(kind byte) func(peer.ID, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listeners[kind]
}

// serveCall serves one stream of kind StreamCall and leaves closing it to the caller.
func (m *Mesh) serveCall(ctx context.Context, from peer.ID, conn net.Conn) {
	if !m.calls.enter(from) {
		m.count.refusedCalls.Add(1)
		_ = writeAnswer(conn, nil, &Fault{CodeBusy, "this node serves too many requests now; try again"})
		drain(conn)
		return
	}
	defer m.calls.leave(from)
	conn.SetDeadline(time.Now().Add(requestTime))
	method, left, req, err := readRequest(conn)
	if err != nil {
		if _, ok := errors.AsType[*Fault](err); ok {
			_ = writeAnswer(conn, nil, err)
			drain(conn)
		}
		m.log.Debug("bad request", "peer", from, "err", err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, min(left, maxCallTime))
	defer cancel()
	ans, err := m.invoke(ctx, from, method, req)
	if len(ans) > MaxSnapshot {
		ans, err = nil, &Fault{CodeTooBig, fmt.Sprintf("answer of %d bytes, at most %d", len(ans), MaxSnapshot)}
	}
	conn.SetDeadline(time.Now().Add(answerTime))
	if err := writeAnswer(conn, ans, err); err != nil {
		m.log.Debug("answer not sent", "peer", from, "method", method, "err", err)
	}
}

// invoke runs a handler and contains its panic: one bad request must not end the daemon.
func (m *Mesh) invoke(ctx context.Context, from peer.ID, method string, req []byte) (ans []byte, err error) {
	h := m.calls.handler(method)
	if h == nil {
		return nil, &Fault{CodeUnknown, fmt.Sprintf("this node does not know the request %q; it may be older", method)}
	}
	defer func() {
		if p := recover(); p != nil {
			m.count.panics.Add(1)
			m.log.Error("handler panicked", "peer", from, "method", method, "panic", p, "stack", string(debug.Stack()))
			ans, err = nil, &Fault{CodeFailed, fmt.Sprintf("internal error while serving %q", method)}
		}
	}()
	return h(ctx, from, req)
}

func readRequest(r io.Reader) (method string, left time.Duration, body []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", 0, nil, fmt.Errorf("read request: %w", err)
	}
	if v := tlv.Version(head[0]); v.Major() != callVersion.Major() {
		e := &tlv.VersionError{What: "request", Got: v, Want: callVersion}
		return "", 0, nil, &Fault{CodeVersion, e.Error()}
	}
	if head[1] == 0 || head[1] > MaxMethod {
		return "", 0, nil, &Fault{CodeUnknown, "a request without a method"}
	}
	rest := make([]byte, int(head[1])+8)
	if _, err := io.ReadFull(r, rest); err != nil {
		return "", 0, nil, fmt.Errorf("read request: %w", err)
	}
	method, rest = string(rest[:head[1]]), rest[head[1]:]
	left = time.Duration(binary.BigEndian.Uint32(rest)) * time.Millisecond
	size := binary.BigEndian.Uint32(rest[4:])
	if size > MaxMessage {
		return "", 0, nil, &Fault{CodeTooBig, fmt.Sprintf("request of %d bytes, at most %d", size, MaxMessage)}
	}
	if body, err = readBody(r, int(size)); err != nil {
		return "", 0, nil, fmt.Errorf("read request: %w", err)
	}
	return method, left, body, nil
}

func writeAnswer(w io.Writer, body []byte, err error) error {
	outcome := byte(outcomeAnswer)
	if err != nil {
		f := &Fault{Code: CodeFailed, Text: err.Error()}
		errors.As(err, &f)
		outcome = outcomeFault
		body = tlv.AppendString(nil, tagFaultCode, f.Code[:min(len(f.Code), MaxMethod)])
		body = tlv.AppendString(body, tagFaultText, clip(f.Text, maxFaultText))
	}
	b := tlv.AppendVersion(make([]byte, 0, 6+len(body)), callVersion)
	b = append(b, outcome)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	_, err = w.Write(append(b, body...))
	return err
}

// drain takes what is still on its way, so that the answer is read before the connection is reset.
func drain(conn net.Conn) {
	conn.SetDeadline(time.Now().Add(time.Second))
	_, _ = io.CopyN(io.Discard, conn, MaxMessage)
}
