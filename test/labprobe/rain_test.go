package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestRainComesFromWhereItIsTold(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: raw sockets")
	}
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	payload := []byte("a drop of a recorded kind")
	file := filepath.Join(t.TempDir(), "drops")
	if err := os.WriteFile(file, []byte(hex.EncodeToString(payload)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	from := netip.MustParsePrefix("127.77.0.0/16")
	code, out, words := probe(t, "rain", "-json", "-rate", "2000", "-for", "1s", "-file", file, "-from", from.String(), c.LocalAddr().String())
	if code != 0 {
		t.Fatalf("exit %d: %s", code, words)
	}
	var r rainResult
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Sent == 0 || r.Sent > 10_000 || r.Bytes != r.Sent*uint64(len(payload)) {
		t.Errorf("%+v, %v", r, err)
	}
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	sources := map[netip.Addr]bool{}
	buf := make([]byte, 2048)
	for range min(r.Sent, 50) {
		n, src, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(buf[:n], payload) || !from.Contains(src.Addr()) {
			t.Fatalf("%q from %v", buf[:n], src)
		}
		sources[src.Addr()] = true
	}
	if len(sources) < 2 {
		t.Errorf("all from %v", sources)
	}
}

// A SYN is one that the kernel answers: the far end takes the connection that the machine itself then denies to have opened.
func TestRainOpensConnections(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: raw sockets")
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	answers, err := net.ListenIP("ip4:tcp", &net.IPAddr{IP: net.IPv4(127, 78, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	code, out, words := probe(t, "rain", "-json", "-syn", "-rate", "2000", "-for", "100ms", "-from", "127.78.0.1/32", l.Addr().String())
	if code != 0 {
		t.Fatalf("exit %d: %s", code, words)
	}
	var r rainResult
	if err := json.Unmarshal([]byte(out), &r); err != nil || r.Sent == 0 || r.Bytes != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	const flags, synAck = 13, 0x12
	_ = answers.SetReadDeadline(time.Now().Add(time.Minute))
	for buf := make([]byte, 2048); ; {
		n, _, err := answers.ReadFromIP(buf)
		if err != nil {
			t.Fatalf("no connection is answered: %v", err)
		}
		if n > flags && int(buf[0])<<8|int(buf[1]) == l.Addr().(*net.TCPAddr).Port && buf[flags] == synAck {
			return
		}
	}
}

func TestRainIsAskedForProperly(t *testing.T) {
	for _, args := range [][]string{
		{"rain"},
		{"rain", "::1"},
		{"rain", "-rate", "0", "127.0.0.1:1"},
		{"rain", "-s", "2000", "127.0.0.1:1"},
		{"rain", "-first", "xyz", "127.0.0.1:1"},
		{"rain", "-from", "::/0", "127.0.0.1:1"},
	} {
		if code, _, _ := probe(t, args...); code != 2 {
			t.Errorf("%q: exit %d", args, code)
		}
	}
}
