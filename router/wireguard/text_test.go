package wireguard

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTextIsAsTheProtocolSays(t *testing.T) {
	private, psk, port, keep := Key{1}, Key{3}, uint16(6783), 25*time.Second
	c := Config{Private: &private, Port: &port, Peers: []Change{
		{
			Public: Key{2}, Preshared: &psk, Endpoint: netip.MustParseAddrPort("[2001:db8::2]:6783"), Keepalive: &keep,
			Allowed: []netip.Prefix{prefix("10.32.4.0/22"), prefix("fd77::a20:400/118")},
		},
		{Public: Key{4}, Remove: true},
	}}
	hex := func(first string) string { return first + strings.Repeat("00", KeySize-1) }
	want := "private_key=" + hex("01") + "\nlisten_port=6783\npublic_key=" + hex("02") + "\npreshared_key=" + hex("03") +
		"\nendpoint=[2001:db8::2]:6783\npersistent_keepalive_interval=25\nallowed_ip=10.32.4.0/22\nallowed_ip=fd77::a20:400/118\n" +
		"public_key=" + hex("04") + "\nremove=true\n"
	if got := string(appendText(nil, c)); got != want {
		t.Errorf("written\n%s\nwant\n%s", got, want)
	}
}

const example = `private_key=0100000000000000000000000000000000000000000000000000000000000000
listen_port=6783
something_new=7
public_key=0200000000000000000000000000000000000000000000000000000000000000
preshared_key=0300000000000000000000000000000000000000000000000000000000000000
protocol_version=1
endpoint=192.0.2.2:6783
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
tx_bytes=10
rx_bytes=20
persistent_keepalive_interval=25
allowed_ip=10.32.4.0/22
public_key=0400000000000000000000000000000000000000000000000000000000000000
last_handshake_time_sec=0
last_handshake_time_nsec=0
`

func TestTextIsRead(t *testing.T) {
	got, err := parseText(example)
	if err != nil {
		t.Fatal(err)
	}
	want := State{Private: Key{1}, Port: 6783, Peers: map[Key]Peer{
		{2}: {
			Preshared: Key{3}, Endpoint: netip.MustParseAddrPort("192.0.2.2:6783"), Keepalive: 25 * time.Second,
			Allowed: []netip.Prefix{prefix("10.32.4.0/22")}, Handshake: time.Unix(1700000000, 5), Received: 20, Sent: 10,
		},
		{4}: {},
	}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

func FuzzText(f *testing.F) {
	f.Add(example)
	f.Add("public_key=\nendpoint=x")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := parseText(text)
		if err != nil {
			return
		}
		for k, p := range s.Peers {
			c := Config{Peers: []Change{{Public: k, Preshared: &p.Preshared, Endpoint: p.Endpoint, Keepalive: &p.Keepalive, Allowed: p.Allowed}}}
			again, err := parseText(string(appendText(nil, c)))
			if err != nil {
				t.Fatalf("%v of what was written", err)
			}
			q := again.Peers[k]
			if q.Preshared != p.Preshared || q.Endpoint != p.Endpoint || q.Keepalive != p.Keepalive || !reflect.DeepEqual(q.Allowed, p.Allowed) {
				t.Fatalf("%+v became %+v", p, q)
			}
		}
	})
}
