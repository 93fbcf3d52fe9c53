package mesh

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"weft/mesh/peer"
)

var update = flag.Bool("update", false, "write the golden files anew")

// What travels and is stored must not change by accident: other builds read it.
func TestBytesAreThoseOfTheProtocol(t *testing.T) {
	s := makeStuff()
	record, err := Record{
		ID: s.keys[0].ID(), Epoch: 3, Name: "n0", Noise: [32]byte{1}, NoiseEpoch: 2, WireGuard: [32]byte{2},
		Endpoints:  []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6783"), netip.MustParseAddrPort("[2001:db8::1]:6783")},
		Transports: []string{"vxlan", "sleeve"}, Trusted: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		MTU: 1500, Build: "v1", Abilities: 1,
	}.sign(s.keys[0])
	if err != nil {
		t.Fatal(err)
	}
	natted, err := Record{
		ID: s.keys[0].ID(), Epoch: 4, Noise: [32]byte{1}, Abilities: AbilityRelay | AbilityDialable, NAT: peer.NATHard,
		Reflected: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:40000")}, TCPPort: 443,
		Homes: []peer.Home{{ID: s.keys[1].ID(), RTT: 20 * time.Millisecond}, {ID: s.keys[2].ID(), RTT: 300 * time.Millisecond}},
	}.sign(s.keys[0])
	if err != nil {
		t.Fatal(err)
	}
	var answer, fault bytes.Buffer
	err = errors.Join(writeAnswer(&answer, []byte("hello"), nil), writeAnswer(&fault, nil, &Fault{CodeBusy, "later"}))
	if err != nil {
		t.Fatal(err)
	}
	var tr tree
	tr.add(7, hash{7, 1})
	tr.add(9, hash{9, 1})
	for _, c := range []struct {
		name string
		b    []byte
	}{
		{"record", record},
		{"record-behind-nat", natted},
		{"digests", digestMessage(peer.ID{}, map[string]sum{"records": {2}, "roster": {1}})},
		{"digests-with-sender", digestMessage(peer.ID{1, 2, 3}, map[string]sum{"roster": {1}})},
		{"list", appendItem(appendItem([]byte{byte(listVersion)}, []byte("one")), []byte("three"))},
		{"summary", tr.summary()},
		{"digest", tr.digest()},
		{"request", appendRequest(nil, "mesh.pull", 1500, []byte("body"))},
		{"answer", answer.Bytes()},
		{"fault", fault.Bytes()},
	} {
		file := filepath.Join("testdata", "golden", c.name+".hex")
		if *update {
			if err := os.WriteFile(file, []byte(hex.Dump(c.b)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.Dump(c.b); got != string(want) {
			t.Errorf("%s:\n%swant\n%s", c.name, got, want)
		}
	}
}
