package mesh

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

type nowhere struct{}

func (nowhere) Send(peer.ID, []byte) error { return net.ErrClosed }
func (nowhere) Receive(ctx context.Context) (peer.ID, []byte, error) {
	<-ctx.Done()
	return peer.ID{}, nil, ctx.Err()
}
func (nowhere) Dial(context.Context, peer.ID, byte) (net.Conn, error) { return nil, net.ErrClosed }

func lonely(t *testing.T) *Mesh {
	t.Helper()
	s := makeStuff()
	cert, err := identity.ParseCertificate(s.items[0])
	if err != nil {
		t.Fatal(err)
	}
	m, err := New(Config{
		Key: s.keys[0], Cluster: s.cluster, Certificate: cert, Items: s.items,
		Packets: nowhere{}, Streams: nowhere{}, Store: discard{}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func rumoured(id peer.ID) *memberlist.Node {
	return &memberlist.Node{
		Name: id.String(), Addr: gossipAddr(id).AsSlice(), Port: gossipPort,
		PMin: memberlist.ProtocolVersionMin, PMax: memberlist.ProtocolVersionMax, PCur: memberlist.ProtocolVersion2Compatible,
	}
}

func TestRumoursThatWouldHarmAreRefused(t *testing.T) {
	m := lonely(t)
	d := &delegate{m}
	id := makeStuff().keys[1].ID()
	if err := d.NotifyAlive(rumoured(id)); err != nil {
		t.Fatalf("a member: %v", err)
	}
	for _, c := range []struct {
		name string
		bad  func(*memberlist.Node)
	}{
		{"a name that is no id", func(n *memberlist.Node) { n.Name = "node-1" }},
		{"another address", func(n *memberlist.Node) { n.Addr = net.IPv4(192, 0, 2, 1) }},
		{"no address", func(n *memberlist.Node) { n.Addr = nil }},
		{"another port", func(n *memberlist.Node) { n.Port = 1 }},
		{"a protocol version that would split the cluster", func(n *memberlist.Node) { n.PMin = 5 }},
		{"another one", func(n *memberlist.Node) { n.PMax = 1 }},
		{"a third one", func(n *memberlist.Node) { n.PCur = 4 }},
		{"a delegate version", func(n *memberlist.Node) { n.DMin = 1 }},
		{"much metadata", func(n *memberlist.Node) { n.Meta = make([]byte, 500) }},
	} {
		n := rumoured(id)
		c.bad(n)
		if err := d.NotifyAlive(n); err == nil {
			t.Errorf("%s was believed", c.name)
		}
	}
}

func TestStrangersInRumoursAreFew(t *testing.T) {
	m := lonely(t)
	d := &delegate{m}
	believed := 0
	for i := range 10 * maxStrangers {
		n := rumoured(peer.ID{byte(i), byte(i >> 8), 1})
		if d.NotifyAlive(n) == nil {
			believed++
			d.NotifyJoin(n)
		}
	}
	if believed != maxStrangers {
		t.Errorf("%d strangers believed, want %d", believed, maxStrangers)
	}
	if n := len(m.Peers()); n != 3 {
		t.Errorf("%d peers shown, want those with a certificate", n)
	}
	if n := len(m.alive()); n != 0 {
		t.Errorf("%d alive", n)
	}
	if err := d.NotifyAlive(rumoured(makeStuff().keys[2].ID())); err != nil {
		t.Errorf("strangers kept a member out: %v", err)
	}
	d.NotifyLeave(rumoured(peer.ID{0, 0, 1}))
	if err := d.NotifyAlive(rumoured(peer.ID{7, 7, 7})); err != nil {
		t.Errorf("a place that became free was not given: %v", err)
	}
}

// A carrier that cannot send must look like loss: for other errors memberlist does not suspect the peer.
func TestSendErrorsLookLikeLoss(t *testing.T) {
	m := lonely(t)
	tr := newTransport(t.Context(), m)
	id := makeStuff().keys[1].ID()
	if _, err := tr.WriteToAddress([]byte("ping"), memberlist.Address{Name: id.String()}); err != nil {
		t.Error(err)
	}
	if m.Stats().SendFailed != 1 {
		t.Error("not counted")
	}
	if _, err := tr.WriteToAddress(make([]byte, MaxDatagram), memberlist.Address{Name: id.String()}); err != nil {
		t.Error(err)
	}
	if m.Stats().Dropped != 1 {
		t.Error("a datagram that is too long was not dropped")
	}
}

func TestQueuesDropWhenFull(t *testing.T) {
	m := lonely(t)
	tr := newTransport(t.Context(), m)
	id := makeStuff().keys[1].ID()
	for range gossipQueue + 10 {
		m.ingest(tr, id, []byte{datagramGossip, 1})
	}
	if got := m.Stats().Dropped; got != 10 {
		t.Errorf("%d dropped, want 10", got)
	}
}

func TestGossipLogIsDebugOnly(t *testing.T) {
	var b strings.Builder
	quiet := gossipLogger(slog.New(slog.NewTextHandler(&b, nil)))
	quiet.Print("[ERR] memberlist: Push/Pull with x failed")
	if b.Len() > 0 {
		t.Errorf("logged %q", b.String())
	}
	loud := gossipLogger(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: slog.LevelDebug})))
	loud.Print("[ERR] memberlist: Push/Pull with x failed")
	if got := b.String(); !strings.Contains(got, `level=DEBUG msg=gossip level=err text="Push/Pull with x failed"`) {
		t.Errorf("logged %q", got)
	}
}

func TestNewRefuses(t *testing.T) {
	s := makeStuff()
	own, _ := identity.ParseCertificate(s.items[0])
	good := Config{
		Key: s.keys[0], Cluster: s.cluster, Certificate: own,
		Packets: nowhere{}, Streams: nowhere{}, Store: discard{}, Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range []struct {
		name string
		bad  func(*Config)
	}{
		{"no key", func(c *Config) { c.Key = identity.Key{} }},
		{"no cluster", func(c *Config) { c.Cluster = nil }},
		{"no certificate", func(c *Config) { c.Certificate = nil }},
		{"another node's certificate", func(c *Config) { c.Key = s.keys[1] }},
		{"no store", func(c *Config) { c.Store = nil }},
		{"a name that cannot be shown", func(c *Config) { c.Record.Name = "\x1b[31m" }},
		{"a record of another node in the store", func(c *Config) { c.Store = holding{storeSelf, s.records[len(s.records)-1]} }},
		{"a roster of a newer build in the store", func(c *Config) { c.Store = holding{storeRoster, []byte{0x20}} }},
	} {
		bad := good
		c.bad(&bad)
		if _, err := New(bad); err == nil {
			t.Errorf("%s was accepted", c.name)
		}
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	// One bad item on the disk does not keep the daemon from starting.
	damaged := appendItem(appendItem([]byte{byte(listVersion)}, []byte("rot")), s.items[2])
	good.Store = holding{storeRoster, damaged}
	m, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.roster.Invitations()) != 1 {
		t.Error("the good item beside the bad one was lost")
	}
}

// holding is a Store with one value.
type holding struct {
	name  string
	value []byte
}

func (h holding) Load(name string) ([]byte, error) {
	if name == h.name {
		return h.value, nil
	}
	return nil, nil
}
func (holding) Save(string, []byte) error { return nil }

// Two machines with one key outbid each other, but not as fast as messages travel.
func TestOutbiddingIsSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := lonely(t)
		start := m.own.now.Epoch
		for range 100 {
			if err := m.outbid(m.own.now.Epoch); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if got := m.own.now.Epoch - start; got != 2 {
			t.Errorf("%d new records in 10 s, want 2", got)
		}
	})
}

func TestSayingTheSameAgainIsNoNewRecord(t *testing.T) {
	m := lonely(t)
	long := func(r *Record) {
		r.Endpoints = nil
		for i := range 20 {
			r.Endpoints = append(r.Endpoints, netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1%eth0"), uint16(i+1)))
		}
		r.Trusted = nil
		for i := range byte(12) {
			r.Trusted = append(r.Trusted, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, i, 0, 1}), 16))
		}
		r.Build = "a build with spaces"
	}
	if err := m.Publish(long); err != nil {
		t.Fatal(err)
	}
	epoch := m.own.now.Epoch
	if err := m.Publish(long); err != nil || m.own.now.Epoch != epoch {
		t.Errorf("epoch %d became %d, %v", epoch, m.own.now.Epoch, err)
	}
	// A newer build wrote the saved record: what this build does not mean is not said any longer.
	newer := m.own.now.append(tlv.AppendVersion(nil, recordVersion))
	newer = tlv.AppendString(newer, 999, "an ability of tomorrow")
	newer = append(newer, m.key.Sign(recordDomain, newer)...)
	if err := m.startRecord(newer, m.own.now.clone()); err != nil {
		t.Fatal(err)
	}
	if m.own.now.Epoch != epoch+1 || bytes.Contains(m.own.now.raw, []byte("tomorrow")) {
		t.Errorf("epoch %d, %q", m.own.now.Epoch, m.own.now.raw)
	}
}
