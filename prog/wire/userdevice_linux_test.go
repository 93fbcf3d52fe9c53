package wire

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"weft/router/sleeve"
	"weft/test/netlab"
)

const userDeviceName = "weft-wu"

// guarded is the address of a station on its WireGuard device.
func guarded(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, n}) }

// replaced makes the client of a wire that followed the station's the station's.
func (s *station) replaced(next *Client) {
	pid := next.Hello().PID
	s.t.Cleanup(func() {
		next.Close()
		_ = kill(context.Background(), pid, s.o.Socket)
	})
	s.c = next
}

// guard gives two stations a WireGuard device each, through which they reach the addresses 10.99.0.1 and 10.99.0.2.
func guard(t *testing.T, a, b *station, ha, hb *netlab.Host) {
	t.Helper()
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	hosts := []*netlab.Host{ha, hb}
	for i, s := range []*station{a, b} {
		var q *os.File
		err := hosts[i].Do(func() (err error) {
			q, err = openTUN(userDeviceName)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"address", "add", fmt.Sprintf("10.99.0.%d/24", i+1), "dev", userDeviceName},
			{"link", "set", userDeviceName, "mtu", "1400", "txqueuelen", "10000", "up"},
		} {
			if _, err := hosts[i].Exec("ip", args...); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.c.OpenDevice(t.Context(), userDeviceName, q); err != nil {
			t.Fatal(err)
		}
		if err := q.Close(); err != nil {
			t.Fatal(err)
		}
		other := [...]*station{b, a}[i]
		text := fmt.Sprintf("private_key=%x\npublic_key=%x\npreshared_key=%064x\nendpoint=%s\nallowed_ip=10.99.0.%d/32\n",
			keys[i].Bytes(), keys[1-i].PublicKey().Bytes(), 7, other.at, 2-i)
		if err := s.c.SetDevice(t.Context(), userDeviceName, text); err != nil {
			t.Fatal(err)
		}
	}
}

// WireGuard's devices outlive their wire: the network device stays, packets wait in it, and sessions are made anew at once.
func TestAReplacedWireHandsItsDevicesOn(t *testing.T) {
	a, b, ha, hb := namespacePair(t)
	guard(t, a, b, ha, hb)
	pings(t, ha, guarded(2))
	index := func() string {
		t.Helper()
		out, err := ha.Exec("ip", "-o", "link", "show", userDeviceName)
		if err != nil {
			t.Fatal(err)
		}
		number, _, _ := strings.Cut(out, ":")
		return number
	}
	before := index()
	was, err := a.c.Device(t.Context(), userDeviceName)
	if err != nil {
		t.Fatal(err)
	}
	stops := []func() (int, int){
		floodLate(t, ha, hb, guarded(2), time.Second), floodLate(t, hb, ha, guarded(1), time.Second),
	}
	wait(t, 300*time.Millisecond)
	id := a.id
	id.Counter += sleeve.CounterSpan
	next, err := a.c.Replace(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	a.replaced(next)
	wait(t, 500*time.Millisecond)
	for i, stop := range stops {
		sent, lost := stop()
		t.Logf("%s: %d of %d packets lost, one for each millisecond (bar: 2000)", [...]string{"out", "in"}[i], lost, sent)
		if lost == sent {
			t.Error("nothing arrived")
		}
	}
	if now := index(); now != before {
		t.Errorf("the device was number %s and is %s", before, now)
	}
	now, err := next.Device(t.Context(), userDeviceName)
	if err != nil {
		t.Fatal(err)
	}
	wasConfig, _ := inherit(was, time.Now())
	nowConfig, _ := inherit(now, time.Now())
	if wasConfig != nowConfig {
		t.Errorf("the device held\n%s\nand holds\n%s", strings.ReplaceAll(wasConfig, "key=", "key "), nowConfig)
	}
	// And by the next exchange, too, which knows the device from the one before.
	id.Counter += sleeve.CounterSpan
	third, err := next.Replace(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	a.replaced(third)
	pings(t, ha, guarded(2))
	pings(t, hb, guarded(1))
	if now := index(); now != before {
		t.Errorf("the device was number %s and is %s", before, now)
	}
	// Once it is shut nothing holds it any more.
	if err := third.ShutDevice(t.Context(), userDeviceName); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for {
		if _, err := ha.Exec("ip", "link", "show", userDeviceName); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a device that was shut is still there")
		}
		wait(t, 10*time.Millisecond)
	}
}

// A device that was deleted by hand does not keep the wire from being exchanged.
func TestADeadDeviceIsNotHandedOn(t *testing.T) {
	a, b, ha, hb := namespacePair(t)
	guard(t, a, b, ha, hb)
	pings(t, ha, guarded(2))
	if _, err := ha.Exec("ip", "link", "delete", userDeviceName); err != nil {
		t.Fatal(err)
	}
	id := a.id
	id.Counter += sleeve.CounterSpan
	next, err := a.c.Replace(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	a.replaced(next)
	a.waitUp()
	pings(t, ha, b.inner())
}

func TestWhatADeviceInherits(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	peer := func(key byte, handshake int64) string {
		return fmt.Sprintf("public_key=%s\npreshared_key=00\nprotocol_version=1\nendpoint=192.0.2.1:6783\n"+
			"last_handshake_time_sec=%d\nlast_handshake_time_nsec=5\ntx_bytes=1\nrx_bytes=2\n"+
			"persistent_keepalive_interval=25\nallowed_ip=10.0.0.%d/32\n", strings.Repeat(fmt.Sprintf("%02x", key), 32), handshake, key)
	}
	config, sessions := inherit("private_key=aa\nlisten_port=6783\n"+peer(1, 999_900)+peer(2, 0)+peer(3, 990_000), now)
	if len(sessions) != 1 || sessions[0] != device.NoisePublicKey([]byte(strings.Repeat("\x01", 32))) {
		t.Errorf("sessions with %x", sessions)
	}
	for _, gone := range []string{"last_handshake", "bytes="} {
		if strings.Contains(config, gone) {
			t.Errorf("%s in\n%s", gone, config)
		}
	}
	if n := strings.Count(config, "\n"); n != 2+3*6 {
		t.Errorf("%d lines:\n%s", n, config)
	}
}
