package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/crypto/tlv"
)

func TestMalformedFramesEndOnlyTheirConnection(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	hello := appendHelloRequest(nil, "")
	greeting := append(appendHeader(nil, header{size: len(hello), version: protocol, kind: kindHello, id: 1}), hello...)
	frame := func(h header, body ...byte) []byte {
		h.version, h.size = protocol, max(h.size, len(body))
		return append(appendHeader(nil, h), body...)
	}
	for name, b := range map[string][]byte{
		"nothing":                 {},
		"noise":                   bytes.Repeat([]byte{0xa5}, 100),
		"huge greeting":           frame(header{size: maxGreeting + 1, kind: kindHello}),
		"stats before hello":      frame(header{kind: kindStats, id: 1}),
		"bad hello":               frame(header{kind: kindHello, id: 1}, 1, 2, 3),
		"huge frame":              slices.Concat(greeting, frame(header{size: maxBody + 1, kind: kindPeers})),
		"absent descriptors":      slices.Concat(greeting, frame(header{files: 3, kind: kindUDP, id: 2})),
		"too many descriptors":    slices.Concat(greeting, frame(header{files: 255, kind: kindUDP, id: 2})),
		"hello with a descriptor": frame(header{files: 1, kind: kindHello, id: 1}),
	} {
		u, err := dial(t.Context(), o.Socket)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := u.Write(b); err != nil && !errors.Is(err, unix.EPIPE) {
			t.Errorf("%s: %v", name, err)
		}
		_ = u.CloseWrite()
		_ = u.SetReadDeadline(time.Now().Add(patience))
		if _, err := bufio.NewReader(u).WriteTo(discard{}); err != nil && !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
		u.Close()
	}
	again := mustEnsure(t, o)
	if again.Hello().PID != c.Hello().PID {
		t.Error("the wire did not survive")
	}
	// A body that cannot be read is answered and costs nothing.
	for k, body := range map[kind][]byte{kindPeers: {1}, kindTUN: {2}, kindIdentity: nil, kindTunnels: {0, 1, 0, 0, 0, 1, 9}} {
		if _, err := again.call(t.Context(), k, body); err == nil {
			t.Errorf("kind %d with nonsense was accepted", k)
		}
	}
	again.out.push(Datagram{Data: make([]byte, maxDatagram+1)})
	if _, err := again.call(t.Context(), 999, nil); !errors.Is(err, ErrUnsupported) {
		t.Errorf("unknown kind: %v", err)
	}
	eventually(t, "everything bad is counted", func() bool {
		s, err := again.Stats(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s.Counters.DatagramsFailed == 1 && s.Counters.Malformed > 0
	})
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func TestAControllerOfAnotherMajorVersionMayAskForRoom(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	u, err := dial(t.Context(), o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	_ = u.SetDeadline(time.Now().Add(patience))
	other := tlv.V(protocol.Major()+1, 0)
	if _, err := u.Write(appendHeader(nil, header{version: other, kind: kindHello, id: 5})); err != nil {
		t.Fatal(err)
	}
	b := newConn(u, newQueue())
	f, err := b.next()
	if err != nil || f.kind != kindHello || f.id != 5 || f.version != protocol {
		t.Fatalf("answered %+v, %v", f.header, err)
	}
	if h, err := parseHello(f.body); err != nil || h.PID != c.Hello().PID {
		t.Fatalf("answered %+v, %v", h, err)
	}
	if _, err := u.Write(appendHeader(nil, header{version: other, kind: kindStop})); err != nil {
		t.Fatal(err)
	}
	waitDone(t, c, ErrLost)
}

func TestAWireOfAnotherMajorVersionIsReplaced(t *testing.T) {
	o := testOptions(t)
	ln, err := bind(o.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	old := make(chan error, 1)
	go func() {
		u, err := ln.AcceptUnix()
		if err != nil {
			old <- err
			return
		}
		defer u.Close()
		c := newConn(u, newQueue())
		f, err := c.next()
		if err != nil {
			old <- err
			return
		}
		_, _ = u.Write(appendHeader(nil, header{version: tlv.V(protocol.Major()+1, 3), kind: kindHello, id: f.id}))
		f, err = c.next()
		if err == nil && f.kind != kindStop {
			err = fmt.Errorf("asked for %d", f.kind)
		}
		ln.Close()
		old <- err
	}()
	c := mustEnsure(t, o)
	if !c.Started() {
		t.Error("attached to it")
	}
	if err := <-old; err != nil {
		t.Error(err)
	}
}
