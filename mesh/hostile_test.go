package mesh

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// byRoot is an issuer of the cluster of makeStuff.
func byRoot(t *testing.T) identity.Issuer {
	t.Helper()
	root, err := identity.ParseKey(bytes.Repeat([]byte{1}, identity.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	return identity.Issuer{Key: root}
}

// removalOf is signed now.
func removalOf(t *testing.T, id peer.ID) *identity.Removal {
	t.Helper()
	r, err := byRoot(t).Remove(id, identity.Silence, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Members that died and were removed, as machines that come and go do by the hundred, leave nothing behind, and count for
// no cut of the network: a death long after is believed at once.
func TestTheRemovedAreNotMissed(t *testing.T) {
	m := lonely(t)
	keys := makeStuff().keys[1:]
	for _, k := range keys {
		m.hearRumour(k.ID().String(), true)
	}
	last := keys[len(keys)-1].ID()
	for _, k := range keys[:len(keys)-1] {
		m.hearRumour(k.ID().String(), false)
		if err := m.roster.Add(removalOf(t, k.ID())); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(m.life); n != 1 {
		t.Errorf("%d lives are kept, of 1 member", n)
	}
	m.alive() // as somebody always asks
	m.hearRumour(last.String(), false)
	if info, _ := m.Peer(last); info.State != peer.Dead {
		t.Errorf("it is %v", info.State)
	}
}

// A message of nothing but tiny items is not worth more memory than one of a large cluster.
func TestListsAreBounded(t *testing.T) {
	tiny := func(n int) []byte {
		b := []byte{byte(listVersion)}
		for i := range n {
			b = appendItem(b, fmt.Appendf(nil, "%07x", i))
		}
		return b
	}
	items, err := splitList(received("items", tiny(maxListed+1)))
	if len(items) != maxListed || !errors.Is(err, errTooMany) {
		t.Errorf("%d items, %v", len(items), err)
	}
	if items, err = splitList(received("items", tiny(maxListed))); len(items) != maxListed || err != nil {
		t.Errorf("%d items, %v", len(items), err)
	}
}

// full is a disk without room.
type full struct {
	failing bool
	saved   []byte
}

func (f *full) Load(string) ([]byte, error) { return nil, nil }
func (f *full) Save(_ string, b []byte) error {
	if f.failing {
		return errors.New("no space left on device")
	}
	f.saved = bytes.Clone(b)
	return nil
}

// Who was removed is cut off here also while the disk is full; what cannot be kept is not said to be.
func TestRemovalsHoldWhileTheDiskIsFull(t *testing.T) {
	s, disk := makeStuff(), &full{}
	r, err := newRoster(s.cluster, disk, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.AddRaw(s.items[0]); err != nil {
		t.Fatal(err)
	}
	told := 0
	r.changed = func(g growth) {
		if g.removals {
			told++
		}
	}
	disk.failing = true
	gone := s.keys[1].ID()
	removal, certificate := removalOf(t, gone), s.items[len(s.items)-4] // a certificate of the last member
	err = r.Merge(list(removal.Raw(), certificate))
	if err == nil {
		t.Error("it says that it was saved")
	}
	if !r.Removed(gone) || told != 1 {
		t.Errorf("removed: %v, and that was told %d times", r.Removed(gone), told)
	}
	if len(r.Members()) != 1 {
		t.Error("a certificate is shown that is not kept")
	}
	// What this node signs itself is all or nothing: whoever typed it is told, and types it again.
	other := s.keys[2].ID()
	if err := r.Add(removalOf(t, other)); err == nil || r.Removed(other) {
		t.Errorf("removed: %v, %v", r.Removed(other), err)
	}
	if _, err := (&Mesh{roster: r}).serveItems(t.Context(), s.keys[0].ID(),
		tlv.AppendList(tlv.AppendVersion(nil, itemsVersion), itemsList, [][]byte{removal.Raw()})); err == nil {
		t.Error("asked again, it says that it was saved")
	}
	if err := r.AddRaw(removal.Raw()); err != nil {
		t.Errorf("what is known is no error: %v", err)
	}
	disk.failing = false
	if err := r.AddRaw(certificate); err != nil || !r.Removed(gone) || len(r.Members()) != 2 {
		t.Errorf("with room again: %v, %d members", err, len(r.Members()))
	}
	if kept := r.roundTrip(t, s); !kept.Removed(gone) {
		t.Error("the removal was not saved with what came after it")
	}
}

// What holds and is not saved is saved as soon as there is room, without anything else that comes.
func TestWhatIsOwedIsSavedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, disk := makeStuff(), &full{}
		r, err := newRoster(s.cluster, disk, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		disk.failing = true
		removal := removalOf(t, s.keys[1].ID()).Raw()
		if err := r.Merge(list(removal)); err == nil {
			t.Error("it says that it was saved")
		}
		disk.failing = false
		_ = r.AddRaw(removal) // as any stream of a member brings something that is known
		if disk.saved != nil {
			t.Error("it is saved at once: a disk that is full would be asked all the time")
		}
		time.Sleep(saveAgain)
		_ = r.AddRaw(removal)
		if again, err := newRoster(s.cluster, discard{}, disk.saved, nil); err != nil || !again.Removed(s.keys[1].ID()) || r.owes.Load() {
			t.Errorf("not saved: %v, %v", err, r.owes.Load())
		}
	})
}

// roundTrip is the roster that comes of a snapshot.
func (r *Roster) roundTrip(t *testing.T, s *stuff) *Roster {
	t.Helper()
	again, err := newRoster(s.cluster, discard{}, r.Snapshot(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return again
}

// A member with all that a record may hold, and a long name, can say so: what matters least is left out.
func TestNobodyHasTooMuchToSay(t *testing.T) {
	key := makeStuff().keys[1]
	ep := func(s string, n int) (all []netip.AddrPort) {
		for i := range n {
			all = append(all, netip.AddrPortFrom(netip.MustParseAddr(s), uint16(1000+i)))
		}
		return all
	}
	rec := Record{
		ID: key.ID(), Epoch: 1, Name: strings.Repeat("n", identity.MaxName), Endpoints: ep("2001:db8::1", MaxEndpoints),
		Noise: [32]byte{1}, NoiseEpoch: 1, WireGuard: [32]byte{2}, MTU: 1500, Build: strings.Repeat("b", maxBuild),
		Transports: []string{"wireguard", "wireguard-user", "vxlan", "sleeve"}, Abilities: AbilityRelay | AbilityDialable,
		Hosts:     []netip.Addr{netip.MustParseAddr("10.32.0.1"), netip.MustParseAddr("fd00::1")},
		Reflected: ep("2001:db8::2", MaxReflected), NAT: peer.NATHard, TCPPort: 443,
	}
	for i := range byte(MaxHomes) {
		rec.Homes = append(rec.Homes, peer.Home{ID: peer.ID{i}, RTT: time.Second})
	}
	raw, err := rec.normal().sign(key)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseRecord(raw)
	if err != nil || got.Name != rec.Name || len(got.Endpoints) == 0 || len(got.Homes) == 0 || len(got.Reflected) == 0 {
		t.Errorf("%+v, %v", got, err)
	}
	// What was said at the start, when nobody had told it anything, can be said ever after.
	rec.Reflected, rec.Homes, rec.Build = nil, nil, ""
	for i := 0; ; i++ {
		more := rec
		more.Trusted = append(rec.Trusted, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16))
		if _, err := more.normal().sign(key); err != nil {
			break
		}
		rec = more
	}
	rec.Reflected, rec.Homes, rec.Build = ep("2001:db8::2", 2), []peer.Home{{ID: peer.ID{1}}}, "v1.0.0"
	if _, err := rec.normal().sign(key); err != nil {
		t.Errorf("with %d trusted subnets: %v", len(rec.Trusted), err)
	}
}

// One member has a few streams of gossip at once, whatever it opens: memberlist lays out memory by what the head of each
// announces.
func TestOneMemberHasAFewGossipStreams(t *testing.T) {
	m := lonely(t)
	m.gossip = newTransport(t.Context(), m)
	var served sync.WaitGroup
	open := func(from peer.ID) net.Conn {
		a, b := net.Pipe()
		t.Cleanup(func() { a.Close() })
		served.Go(func() { m.ServeStream(t.Context(), from, StreamGossip, b) })
		return a
	}
	liar, other := makeStuff().keys[1].ID(), makeStuff().keys[2].ID()
	for range streamsEach {
		open(liar)
		<-m.gossip.streams
	}
	if _, err := open(liar).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("one more is kept: %v", err)
	}
	open(other)
	<-m.gossip.streams // or the test hangs
	if err := m.gossip.Shutdown(); err != nil {
		t.Fatal(err)
	}
	served.Wait()
	if m.gossip.enter(liar) == nil {
		t.Error("places were not given back")
	}
}
