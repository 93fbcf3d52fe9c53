package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// What an attacker on the router records of the sleeve, as its first byte tells: see the package comment of router/sleeve.
func isHandshake(d []byte) bool { return len(d) > 0 && d[0] >= 0x10 && d[0] <= 0x12 }
func isSealed(d []byte) bool    { return len(d) > 12 && d[0]&0xf0 == 0x20 }
func isPacket(d []byte) bool    { return isSealed(d) && d[0] != 0x20 }

// tape is what went from one machine to another on the weft port.
type tape struct {
	mu  sync.Mutex
	all [][]byte
}

// record begins before there is a cluster, so that the handshakes are on the tape.
func (s *story) record(from, to *cluster.Machine) *tape {
	s.Helper()
	tp := &tape{}
	from.LinkOf("eth0").Capture(netlab.CaptureOptions{Keep: 1, Match: func(p *netlab.Packet) bool {
		h, ok := p.IP()
		if !ok || h.DstPort != 6783 || !slices.Contains(from.Addrs(), h.Src) || !slices.Contains(to.Addrs(), h.Dst) {
			return false
		}
		tp.mu.Lock()
		defer tp.mu.Unlock()
		for _, d := range p.Datagrams() {
			tp.all = append(tp.all, bytes.Clone(d))
		}
		return false
	}})
	return tp
}

// some returns up to n of the newest recorded datagrams that are chosen.
func (tp *tape) some(n int, chosen func([]byte) bool) (out [][]byte) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	for i := len(tp.all) - 1; i >= 0 && len(out) < n; i-- {
		if chosen(tp.all[i]) {
			out = append(out, tp.all[i])
		}
	}
	return out
}

// Somebody on the router records what passes and sends it again: as it was, changed, cut, from elsewhere, to another
// machine. Nothing of it reaches a pod, all of it is counted, and nobody who talks notices.
func TestRecordedDatagramsDeliverNothing(t *testing.T) {
	const many = 200
	s := tell(t)
	tp := s.record(s.a, s.b)
	repeats := s.counters()
	s.form()
	pods := s.pods()
	s.connected(pods)
	talk := s.flood(pods[0].Host, pods[1].Addrs[0].String(), time.Second)
	if lost, text := talk(); lost != 0 {
		t.Logf("before the attack: %s", text) // a loaded machine
	}
	packets, sealed, shakes := tp.some(many, isPacket), tp.some(many, isSealed), tp.some(many, isHandshake)
	if len(packets) < many || len(shakes) == 0 {
		t.Fatalf("recorded %d packets and %d handshake messages", len(packets), len(shakes))
	}
	seen := s.arrivals(pods[1], pods[0].Addrs[0])
	seenC := s.arrivals(pods[2], pods[0].Addrs[0])

	send := func(src, dst *cluster.Machine, list [][]byte) {
		t.Helper()
		for _, d := range list {
			s.must(s.sites.Router.SendUDP(src.AddrPort4(6783), dst.AddrPort4(6783), d))
		}
	}
	attack := func(name string, victim *cluster.Machine, n int, kinds []string, f func()) {
		t.Helper()
		before := s.metrics(victim)
		f()
		s.must(cluster.Poll(s.within(patience), func() error {
			now := s.metrics(victim)
			var got float64
			for _, k := range kinds {
				got += now.Events("sleeve", "drop_"+k, "peer_drop_"+k) - before.Events("sleeve", "drop_"+k, "peer_drop_"+k)
			}
			if got < float64(n) {
				return fmt.Errorf("%s: %v of %d datagrams counted as %v:\n%s", name, got, n, kinds, differences(before, now))
			}
			return nil
		}))
	}

	attack("replayed", s.b, len(packets), []string{"replay"}, func() { send(s.a, s.b, packets) })
	attack("replayed control", s.b, len(sealed), []string{"replay"}, func() { send(s.a, s.b, sealed) })
	attack("from another address", s.b, len(packets), []string{"replay"}, func() { send(s.c, s.b, packets) })
	attack("to the third machine", s.c, len(packets), []string{"unknown_index", "unauthentic"}, func() { send(s.a, s.c, packets) })
	attack("back to the sender", s.a, len(packets), []string{"unknown_index", "unauthentic"}, func() { send(s.b, s.a, packets) })

	var flipped [][]byte
	for _, d := range packets {
		d = bytes.Clone(d)
		at := mathrand.IntN(8 * (len(d) - 12))
		d[12+at/8] ^= 1 << (at % 8)
		binary.BigEndian.PutUint64(d[4:], binary.BigEndian.Uint64(d[4:])+1<<20) // a number that was not there yet
		flipped = append(flipped, d)
	}
	attack("flipped", s.b, len(flipped), []string{"unauthentic"}, func() { send(s.a, s.b, flipped) })
	var renumbered [][]byte
	for _, d := range packets {
		d = bytes.Clone(d)
		binary.BigEndian.PutUint64(d[4:], binary.BigEndian.Uint64(d[4:])+1<<20)
		renumbered = append(renumbered, d)
	}
	attack("renumbered", s.b, len(renumbered), []string{"unauthentic"}, func() { send(s.a, s.b, renumbered) })
	var cut [][]byte
	for i, d := range renumbered {
		cut = append(cut, d[:1+i*(len(d)-1)/len(renumbered)])
	}
	attack("truncated", s.b, len(cut), []string{"unauthentic", "malformed", "unknown_index"}, func() { send(s.a, s.b, cut) })
	attack("handshakes replayed", s.b, len(shakes),
		[]string{"old_counter", "handshake", "mac", "rate", "cookie", "unknown_index", "no_secret"}, func() { send(s.a, s.b, shakes) })
	attack("handshakes to the third machine", s.c, len(shakes),
		[]string{"handshake", "mac", "rate", "cookie", "unknown_index", "stranger", "old_counter"}, func() { send(s.a, s.c, shakes) })

	// All that while two pods talk, and garbage rains on both.
	talk = s.flood(pods[0].Host, pods[1].Addrs[0].String(), 2*time.Second)
	garbage := mathrand.NewChaCha8([32]byte{1})
	var rain [][]byte
	for range 2000 {
		d := make([]byte, mathrand.IntN(1400))
		_, _ = garbage.Read(d)
		if len(d) > 0 && mathrand.IntN(2) == 0 {
			d[0] = byte(0x10 + mathrand.IntN(0x20))
		}
		rain = append(rain, d)
	}
	before := s.metrics(s.b)
	send(s.a, s.b, rain)
	send(s.a, s.b, shakes)
	send(s.a, s.b, packets)
	lost, text := talk()
	t.Logf("during the attack (bar: 20 lost): %s", text)
	if lost > 1000 { // a loaded machine loses some by itself
		t.Error("half of what two pods said during the attack was lost")
	}
	t.Logf("counted during the rain:\n%s", differences(before, s.metrics(s.b)))

	st, err := s.b.Status()
	s.must(err)
	for _, p := range st.Peers {
		if p.Name == "a" && !slices.Contains(s.a.Addrs(), p.Endpoint.Addr()) {
			t.Errorf("b now looks for a at %v", p.Endpoint)
		}
	}
	seen.Stop()
	seenC.Stop()
	// The flood above is the only thing that the pod may have heard: each of its numbers once.
	if twice := duplicates(seen); twice > 0 {
		t.Errorf("%d packets were delivered twice", twice)
	}
	if n := seenC.Count(); n > 0 {
		t.Errorf("%d packets of %s reached %s", n, pods[0], pods[2])
	}
	s.connected(pods)
	repeats()
}

// arrivals captures what reaches a pod from an address.
func (s *story) arrivals(p *cluster.Pod, from netip.Addr) *netlab.Capture {
	s.Helper()
	return p.Capture("eth0", netlab.CaptureOptions{Keep: 1 << 16, Match: func(p *netlab.Packet) bool {
		h, ok := p.IP()
		return ok && h.Src == from
	}})
}

func duplicates(c *netlab.Capture) (n int) {
	seen := map[string]bool{}
	for _, p := range c.Packets() {
		h, _ := p.IP()
		if len(h.Payload) < 8 || h.Payload[0] != 8 {
			continue
		}
		if seen[string(h.Payload)] {
			n++
		}
		seen[string(h.Payload)] = true
	}
	return n
}

// counters checks, from now until the function that it returns is called, that no two sealed datagrams between the same
// machines carry the same lane, index and counter: that would be a nonce used twice.
func (s *story) counters() (done func()) {
	s.Helper()
	type nonce struct {
		src, dst netip.Addr
		header   [12]byte
	}
	var mu sync.Mutex
	seen := map[nonce]bool{}
	var twice int
	var all []*netlab.Capture
	for _, m := range s.machines {
		all = append(all, m.LinkOf("eth0").Capture(netlab.CaptureOptions{Keep: 1, Match: func(p *netlab.Packet) bool {
			h, ok := p.IP()
			if !ok || h.SrcPort != 6783 || p.Out || h.Src != m.Addr4() && h.Src != m.Addr6() {
				return false // only as it comes from its sender: the router's own forgeries go the other way
			}
			mu.Lock()
			defer mu.Unlock()
			for _, d := range p.Datagrams() {
				if isSealed(d) {
					k := nonce{h.Src, h.Dst, [12]byte(d)}
					if seen[k] {
						twice++
					}
					seen[k] = true
				}
			}
			return false
		}}))
	}
	return func() {
		s.Helper()
		for _, c := range all {
			c.Stop()
			s.must(c.Err())
		}
		if twice > 0 || len(seen) == 0 {
			s.Errorf("%d of %d sealed datagrams carry a counter that was used before", twice, len(seen))
		}
	}
}

func (s *story) metrics(m *cluster.Machine) cluster.Metrics {
	s.Helper()
	all, err := m.Metrics(s.Context())
	s.must(err)
	return all
}

// differences lists the events that grew.
func differences(before, after cluster.Metrics) string {
	var b strings.Builder
	for k, v := range after {
		if v != before[k] && strings.HasPrefix(k, "weft_events") {
			fmt.Fprintf(&b, "    %s +%v\n", k, v-before[k])
		}
	}
	return b.String()
}

// Strangers knock at the weft port: without a certificate, with one of a foreign root, with words that are no protocol.
// None is let in, and none is told anything, but for a joiner that it speaks nonsense.
func TestStrangersGetNothing(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:2]
	s.form()
	foreign := selfSigned(t)
	dial := func() net.Conn {
		t.Helper()
		c, err := s.sites.Internet.Dial(s.within(patience), "tcp", s.a.AddrPort4(6783).String())
		s.must(err)
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(patience))
		return c
	}
	// nothing says how many bytes came before the end.
	nothing := func(c io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(c, 1<<16))
		if len(b) > 0 && !bytes.Contains(b, []byte("did not understand each other")) {
			return fmt.Errorf("it answered %q", b)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("it did not hang up: %w", err)
		}
		return nil
	}
	var wg sync.WaitGroup
	for name, cfg := range map[string]*tls.Config{
		"a member without a certificate":    {NextProtos: []string{"weft/1"}},
		"a member of a foreign root":        {NextProtos: []string{"weft/1"}, Certificates: []tls.Certificate{foreign}},
		"no protocol":                       {},
		"a browser":                         {NextProtos: []string{"h2", "http/1.1"}},
		"an older TLS":                      {NextProtos: []string{"weft/1"}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS12},
		"a joiner who talks something else": {NextProtos: []string{"weft-join/1"}},
	} {
		cfg.InsecureSkipVerify = true
		raw := dial()
		wg.Go(func() {
			c := tls.Client(raw, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			began := time.Now()
			err := c.HandshakeContext(ctx)
			if err == nil {
				_, _ = c.Write(bytes.Repeat([]byte("GET / HTTP/1.1\r\n\r\n"), 100))
				err = nothing(c)
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			t.Logf("%s: ended after %.2f s: %v", name, time.Since(began).Seconds(), err)
		})
	}
	raw := dial()
	wg.Go(func() {
		_, _ = raw.Write([]byte("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"))
		b, _ := io.ReadAll(io.LimitReader(raw, 1<<16))
		// A TLS alert, seven bytes, is all that may come.
		if len(b) > 7 || bytes.Contains(b, []byte("HTTP")) {
			t.Errorf("to plain HTTP it answered %q", b)
		}
	})
	for range 100 {
		c := dial() // and says nothing
		defer c.Close()
	}
	wg.Wait()
	s.whole()
	st, err := s.a.Status()
	s.must(err)
	if st.Cluster.Members != 2 {
		t.Errorf("%d members", st.Cluster.Members)
	}
	s.connected(s.pods())
}

// selfSigned is a certificate that nobody knows.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
