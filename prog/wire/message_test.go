package wire

import (
	"bytes"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"weft/crypto/psk"
	"weft/crypto/tlv"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router"
	"weft/router/sleeve"
)

func testSecret(t testing.TB, b byte) psk.Secret {
	t.Helper()
	s, err := psk.Parse(bytes.Repeat([]byte{b}, psk.Size))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// codecs lists every message with a way to read it and write it again.
var codecs = []struct {
	name  string
	again func([]byte) (any, []byte, error)
}{
	{"hello request", again(parseHelloRequest, appendHelloRequest)},
	{"hello", again(parseHello, appendHello)},
	{"identity", again(parseIdentity, appendIdentity)},
	{"peers", again(parsePeers, appendPeers)},
	{"tunnels", again(parseTunnels, appendTunnels)},
	{"local", again(parseLocal, appendLocal)},
	{"tun", again(parseTUN, appendTUN)},
	{"relay", again(parseRelay, appendRelay)},
	{"punch", again(parsePunch, appendPunch)},
	{"datagram", again(parseDatagram, appendDatagram)},
	{"stats", again(parseStats, appendStats)},
	{"failure", again(parseFailure, appendFailure)},
	{"sparse", again(parseSparse, appendSparse)},
}

func again[T any](parse func([]byte) (T, error), add func([]byte, T) []byte) func([]byte) (any, []byte, error) {
	return func(b []byte) (any, []byte, error) {
		v, err := parse(b)
		if err != nil {
			return nil, nil, err
		}
		return v, add(nil, v), nil
	}
}

// samples are one filled message of each codec.
func samples(t testing.TB) map[string][]byte {
	t.Helper()
	endpoint := netip.MustParseAddrPort("192.0.2.7:6783")
	link := router.Link{
		Peer: peer.ID{1}, Up: true, Endpoint: endpoint, MTU: 1420, RTT: time.Millisecond, Loss: 0.25,
		LastSeen: time.Unix(1700000000, 5), KeyAge: -1, RxBytes: 7, TxBytes: 8, Reason: "why",
		Via: []peer.ID{{2}, {3}}, TCP: true, Asleep: true,
	}
	stats := sleeve.Stats{
		Peers: []sleeve.PeerStats{{
			ID: peer.ID{1}, Endpoint: endpoint, Cipher: "AES", RxPackets: 1, TxPackets: 2, Handshakes: 3,
			LastSeen: time.Unix(5, 6), Drops: map[string]uint64{"replayed": 4}, Via: []peer.ID{{2}}, TCP: true, Observed: endpoint, Asleep: true,
			Paths: []sleeve.PathStats{
				{Via: []peer.ID{{2}}, Active: true, State: path.Works, RTT: time.Second, Loss: 0.5, MTU: 1280},
				{Endpoint: endpoint, TCP: true, State: path.Dead, Reason: "why not"},
			},
		}},
		Drops: map[string]uint64{"short": 9}, Flood: 11,
	}
	return map[string][]byte{
		"hello request": appendHelloRequest(nil, "v1"),
		"hello": appendHello(nil, Hello{
			Version: "v1", PID: 77, Started: time.Unix(1, 2), Generation: 3, Identity: peer.ID{9},
			Held: Held{
				UDP: []netip.AddrPort{endpoint}, TCP: []netip.AddrPort{netip.MustParseAddrPort("[2001:db8::1]:1")},
				TUN: TUN{Name: "weft-sl", Offload: sleeve.Offload{Vnet: true, USO: true}}, Queues: 2,
			},
			Peers: []router.Link{link},
		}),
		"identity": appendIdentity(nil, Identity{
			ID: peer.ID{1}, Cluster: [32]byte{2}, NoisePrivate: [32]byte{3}, Epoch: 4, Counter: 5,
		}),
		"peers": appendPeers(nil, []Peer{
			{
				ID: peer.ID{1}, NoisePublic: [32]byte{2}, Endpoints: []netip.AddrPort{endpoint},
				Secrets: []psk.Secret{testSecret(t, 1), testSecret(t, 2)},
				Relays:  []peer.ID{{3}, {4}}, TCP: []netip.AddrPort{endpoint}, Pinned: true,
			},
			{ID: peer.ID{2}},
		}),
		"tunnels": appendTunnels(nil, []router.Tunnel{
			{Peer: peer.ID{1}, Endpoint: endpoint, Blocks: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/26")}, MTU: 1420},
		}),
		"local":    appendLocal(nil, []netip.Prefix{netip.MustParsePrefix("10.32.0.64/26"), netip.MustParsePrefix("fd00::/64")}),
		"tun":      appendTUN(nil, TUN{Name: "weft-sl", Offload: sleeve.Offload{TSO: true}}),
		"relay":    appendRelay(nil, true),
		"punch":    appendPunch(nil, punch{peer.ID{1}, []netip.AddrPort{endpoint}}),
		"datagram": appendDatagram(nil, Datagram{peer.ID{1}, []byte("gossip")}),
		"stats":    appendStats(nil, Stats{Stats: stats, Counters: Counters{1, 2, 3, 4, 5, 6, 7}}),
		"failure":  appendFailure(nil, failure{codeFailed, "no"}),
		"sparse":   appendSparse(nil, Sparse{On: true, Idle: time.Minute}),
	}
}

func TestMessagesSurviveARoundTrip(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.name, func(t *testing.T) {
			b := samples(t)[c.name]
			v, b2, err := c.again(b)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, b2) {
				t.Errorf("encoded again as\n%x\nwant\n%x", b2, b)
			}
			v2, _, err := c.again(b2)
			if err != nil || !reflect.DeepEqual(v, v2) {
				t.Errorf("read again as %v, %v; want %v", v2, err, v)
			}
			if reflect.ValueOf(v).IsZero() {
				t.Error("the sample says nothing")
			}
		})
	}
}

func TestMessagesOfANewerVersionAreRead(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.name, func(t *testing.T) {
			b := samples(t)[c.name]
			want, _, err := c.again(b)
			if err != nil {
				t.Fatal(err)
			}
			got, _, err := c.again(tlv.AppendString(bytes.Clone(b), 60000, "a field of next year"))
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("read %v, %v; want %v", got, err, want)
			}
		})
	}
}

// Truncations must be refused or read as a shorter message, never panic.
func TestTruncatedMessages(t *testing.T) {
	for _, c := range codecs {
		b := samples(t)[c.name]
		for n := range b {
			_, _, _ = c.again(b[:n])
		}
	}
}

func FuzzMessages(f *testing.F) {
	s := samples(f)
	for i, c := range codecs {
		f.Add(uint8(i), s[c.name])
	}
	f.Fuzz(func(t *testing.T, which uint8, b []byte) {
		c := codecs[int(which)%len(codecs)]
		v, b2, err := c.again(b)
		if err != nil {
			return
		}
		v2, b3, err := c.again(b2)
		if err != nil {
			t.Fatalf("%s: cannot read what was written: %v", c.name, err)
		}
		if !bytes.Equal(b2, b3) {
			t.Fatalf("%s: %#v became %#v", c.name, v, v2)
		}
	})
}

func FuzzHeader(f *testing.F) {
	f.Add(appendHeader(nil, header{size: 7, version: protocol, files: 1, kind: kindHello, id: 3}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < headerSize {
			return
		}
		h, err := parseHeader(b, maxBody)
		if err != nil {
			return
		}
		if got := appendHeader(nil, h); !bytes.Equal(got, b[:headerSize]) {
			t.Fatalf("%x became %x", b[:headerSize], got)
		}
	})
}
