package weftd

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router/sleeve"
)

func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func heardBy(from, at string) sight { return sight{netip.MustParseAddr(from), ap(at)} }

func TestWhatNATSightsShow(t *testing.T) {
	own := []netip.Addr{netip.MustParseAddr("192.168.1.2"), netip.MustParseAddr("2001:db8::2")}
	for _, c := range []struct {
		name   string
		tested peer.NAT
		sights []sight
		nat    peer.NAT
		agreed string
		unsure string
	}{
		{"nobody hears it", 0, nil, peer.NATUnknown, "", ""},
		{"at its own address", 0, []sight{heardBy("192.168.1.3", "192.168.1.2:6783")}, peer.NATNone, "", ""},
		{"by one from outside", 0, []sight{heardBy("192.0.2.9", "203.0.113.1:6783")}, peer.NATUnknown, "", "203.0.113.1:6783"},
		{
			"by two of one network", 0,
			[]sight{heardBy("192.0.2.9", "203.0.113.1:6783"), heardBy("192.0.2.10", "203.0.113.1:6783")},
			peer.NATUnknown, "", "203.0.113.1:6783",
		},
		{
			"by two networks alike", 0,
			[]sight{heardBy("192.0.2.9", "203.0.113.1:6783"), heardBy("198.51.100.9", "203.0.113.1:6783"), heardBy("192.168.1.3", "192.168.1.2:6783")},
			peer.NATEasy, "203.0.113.1:6783", "",
		},
		{
			"by two networks differently", 0,
			[]sight{heardBy("192.0.2.9", "203.0.113.1:4001"), heardBy("198.51.100.9", "203.0.113.1:4002")},
			peer.NATHard, "", "203.0.113.1:4001 203.0.113.1:4002",
		},
		{
			"one lies among three", 0,
			[]sight{heardBy("192.0.2.9", "203.0.113.1:1"), heardBy("198.51.100.9", "203.0.113.1:1"), heardBy("203.0.113.77", "9.9.9.9:1")},
			peer.NATEasy, "203.0.113.1:1", "9.9.9.9:1",
		},
		{
			"one from outside, and a second port of it alike", peer.NATEasy,
			[]sight{heardBy("192.0.2.9", "203.0.113.1:6783")},
			peer.NATEasy, "203.0.113.1:6783", "",
		},
		{
			"one from outside, and a second port of it not", peer.NATHard,
			[]sight{heardBy("192.0.2.9", "203.0.113.1:6783")},
			peer.NATHard, "", "203.0.113.1:6783",
		},
		{
			"IPv6 is no proof for IPv4", 0,
			[]sight{heardBy("2001:db8::9", "[2001:db8::2]:6783"), heardBy("192.0.2.9", "203.0.113.1:6783")},
			peer.NATUnknown, "", "203.0.113.1:6783",
		},
		{"IPv6 alone", 0, []sight{heardBy("2001:db8::9", "[2001:db8::2]:6783")}, peer.NATNone, "", ""},
	} {
		nat, agreed, unsure := judge(c.sights, own, c.tested)
		if nat != c.nat || list(agreed) != c.agreed || list(unsure) != c.unsure {
			t.Errorf("%s: %s, agreed [%s], unsure [%s]", c.name, nat, list(agreed), list(unsure))
		}
	}
}

func list(all []netip.AddrPort) string {
	var words []string
	for _, a := range all {
		words = append(words, a.String())
	}
	return strings.Join(words, " ")
}

// seenBy is the statistics of a peer that hears this node without anybody between.
func seenBy(id byte, endpoint, observed string) sleeve.PeerStats {
	return sleeve.PeerStats{ID: peer.ID{id}, Up: true, Endpoint: ap(endpoint), Observed: ap(observed)}
}

func TestNATThatReboundIsNotHard(t *testing.T) {
	var r reach
	now := time.Now()
	before := []sleeve.PeerStats{seenBy(1, "192.0.2.1:1", "203.0.113.1:1000"), seenBy(2, "198.51.100.1:1", "203.0.113.1:1000")}
	if !r.observe(now, peer.ID{77}, before, nil, nil) || r.show(now).nat != peer.NATEasy {
		t.Fatalf("%+v", r.show(now))
	}
	rebound := []sleeve.PeerStats{seenBy(1, "192.0.2.1:1", "203.0.113.1:2000"), seenBy(2, "198.51.100.1:1", "203.0.113.1:1000")}
	if r.observe(now, peer.ID{77}, rebound, nil, nil) || r.show(now).nat != peer.NATEasy {
		t.Errorf("while it rebinds: %+v", r.show(now))
	}
	if now = now.Add(hardFor); !r.observe(now, peer.ID{77}, rebound, nil, nil) || r.show(now).nat != peer.NATHard {
		t.Errorf("when it lasts: %+v", r.show(now))
	}
	after := []sleeve.PeerStats{seenBy(1, "192.0.2.1:1", "203.0.113.1:2000"), seenBy(2, "198.51.100.1:1", "203.0.113.1:2000")}
	if !r.observe(now, peer.ID{77}, after, nil, nil) || list(r.show(now).reflected) != "203.0.113.1:2000" {
		t.Errorf("afterwards: %+v", r.show(now))
	}
	if r.observe(now, peer.ID{77}, nil, nil, nil) || r.show(now).nat != peer.NATEasy {
		t.Error("without a word from anybody it forgot")
	}
}

func TestHomesAreKeptWhileTheyAreGood(t *testing.T) {
	relays := map[peer.ID]peer.Info{}
	for id := byte(1); id < 7; id++ {
		relays[peer.ID{id}] = peer.Info{NAT: peer.NATNone}
	}
	relays[peer.ID{6}] = peer.Info{NAT: peer.NATEasy} // beside us, behind the same NAT
	at := func(id byte, rtt time.Duration) sleeve.PeerStats {
		return sleeve.PeerStats{ID: peer.ID{id}, Up: true, RTT: rtt}
	}
	const ms = time.Millisecond
	homes, changed := chooseHomes(peer.ID{77}, nil, []sleeve.PeerStats{
		at(1, 40*ms), at(2, 20*ms), at(3, 30*ms), at(4, 50*ms), at(6, ms), at(9, ms),
		{ID: peer.ID{5}, Up: true, RTT: ms, Via: []peer.ID{{1}}},
	}, relays)
	want := []peer.Home{{ID: peer.ID{2}, RTT: 20 * ms}, {ID: peer.ID{3}, RTT: 30 * ms}, {ID: peer.ID{1}, RTT: 40 * ms}}
	if !changed || !slices.Equal(homes, want) {
		t.Errorf("the best: %v", homes)
	}
	for _, stats := range [][]sleeve.PeerStats{
		{at(1, 41*ms), at(2, 23*ms), at(3, 28*ms), at(4, 39*ms)}, // noise, and one that is hardly better
		{at(1, 41*ms), at(2, 29*ms), at(3, 20*ms), at(4, 39*ms)}, // another order
		{}, // all are away
	} {
		if got, changed := chooseHomes(peer.ID{77}, homes, stats, relays); changed || !slices.Equal(got, want) {
			t.Errorf("%v: %v", stats, got)
		}
	}
	if got, changed := chooseHomes(peer.ID{77}, homes, []sleeve.PeerStats{at(1, 40*ms), at(2, 20*ms), at(3, 30*ms), at(4, 10*ms)}, relays); !changed || got[0].ID != (peer.ID{4}) {
		t.Errorf("a much better one: %v", got)
	}
	if got, changed := chooseHomes(peer.ID{77}, homes, []sleeve.PeerStats{at(1, 40*ms), at(3, 30*ms)}, relays); !changed || len(got) != 2 || got[0].ID != (peer.ID{3}) {
		t.Errorf("one is gone: %v", got)
	}
}

// TestRelaysShareTheLoad: among relays that are as near as each other every node keeps others, and what it keeps does not
// change with the noise of round trips.
func TestRelaysShareTheLoad(t *testing.T) {
	relays := map[peer.ID]peer.Info{}
	var stats []sleeve.PeerStats
	for id := byte(1); id <= 12; id++ {
		relays[peer.ID{id}] = peer.Info{NAT: peer.NATNone}
		stats = append(stats, sleeve.PeerStats{ID: peer.ID{id}, Up: true, RTT: 21 * time.Millisecond})
	}
	kept := map[peer.ID]int{}
	const nodes = 200
	for n := range nodes {
		homes, _ := chooseHomes(peer.ID{0xff, byte(n)}, nil, stats, relays)
		for _, h := range homes {
			kept[h.ID]++
		}
		for i := range stats {
			stats[i].RTT = 21*time.Millisecond + time.Duration((i*n)%300)*time.Microsecond
		}
		if again, changed := chooseHomes(peer.ID{0xff, byte(n)}, homes, stats, relays); changed {
			t.Fatalf("%v became %v", homes, again)
		}
	}
	for id := range relays {
		if n := kept[id]; n > 2*nodes*maxHomes/len(relays) {
			t.Errorf("%d of %d nodes keep %v", n, nodes, id.Short())
		}
	}
	a, b := peer.ID{1, 1}, peer.ID{2, 2}
	if spread(peer.ID{9}, a, b) != spread(peer.ID{9}, b, a) {
		t.Error("the two ends of a pair do not prefer the same relay")
	}
}

// TestNobodyIsMadeToFlood: a member that makes appointments without end, with any addresses, has few bursts sent.
func TestNobodyIsMadeToFlood(t *testing.T) {
	p, now, liar := newPuncher(peer.ID{1}), time.Now(), peer.ID{9}
	bursts := 0
	const second, minutes = 10, 10
	for i := range minutes * 60 * second {
		at := now.Add(time.Duration(i) * time.Second / second)
		if _, _, ok := p.hear(at, punchMessage{from: liar, kind: punchAsk, nonce: uint64(i + 1)}, 0); ok {
			bursts++
		}
		if i%second == 0 { // it is reached directly, so nothing is remembered of the appointments
			p.due(at, 0, nil, []sleeve.PeerStats{{ID: liar, Up: true}}, func(id peer.ID) (peer.Info, bool) { return peer.Info{ID: id}, true })
		}
	}
	if limit := punchAtOnce + minutes*6; bursts > limit {
		t.Errorf("%d bursts in %d minutes, want at most %d", bursts, minutes, limit)
	}
	later := now.Add(time.Hour)
	if p.due(later, 0, nil, nil, nil); len(p.spent) != 0 {
		t.Error("it is remembered for ever")
	}
	if _, _, ok := p.hear(later, punchMessage{from: liar, kind: punchAsk, nonce: 1}, 0); !ok {
		t.Error("it is never heard again")
	}
}

// TestLiesAboutAddresses: of what a member claims only addresses are tried that another machine can have, and no more than
// fit into its record.
func TestLiesAboutAddresses(t *testing.T) {
	n := &node{}
	n.pools = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}
	own := []netip.AddrPort{ap("192.168.1.2:6783")}
	claimed := []netip.AddrPort{
		ap("127.0.0.1:6783"), ap("224.0.0.1:6783"), ap("255.255.255.255:6783"), ap("0.0.0.0:6783"), ap("169.254.1.1:6783"),
		ap("[::1]:6783"), ap("[ff02::1]:6783"), ap("[fe80::1]:6783"), ap("[::ffff:127.0.0.1]:6783"), ap("[::]:6783"),
		ap("10.32.0.1:6783"), ap("192.168.1.2:6783"), ap("198.51.100.1:0"),
	}
	if got := n.punchable(claimed, own); len(got) != 0 {
		t.Errorf("bursts would go to %v", got)
	}
	good := ap("198.51.100.1:6783")
	if got := n.punchable(append(claimed, good, good), own); !slices.Equal(got, []netip.AddrPort{good}) {
		t.Errorf("bursts go to %v", got)
	}
	m := punchMessage{kind: punchAsk, nonce: 1}
	for i := range 1000 {
		m.at = append(m.at, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), 6783))
	}
	if got, ok := parsePunch(peer.ID{}, m.append(nil)); !ok || len(got.at) > path.MaxPunch {
		t.Errorf("%d addresses of one appointment", len(got.at))
	}
	b := m.append(nil)
	b[11] = 255
	if _, ok := parsePunch(peer.ID{}, append(b, make([]byte, 255*punchAddress)...)); ok {
		t.Error("255 addresses were read")
	}
}

func TestPunchMessages(t *testing.T) {
	m := punchMessage{
		from: peer.ID{7}, kind: punchAnswer, nonce: 1 << 60, nat: peer.NATHard,
		at: []netip.AddrPort{ap("203.0.113.1:40000"), ap("[2001:db8::1]:6783")},
	}
	got, ok := parsePunch(m.from, append(m.append(nil), "of a newer weft"...))
	if !ok || got.kind != m.kind || got.nonce != m.nonce || got.nat != m.nat || !slices.Equal(got.at, m.at) {
		t.Errorf("%+v", got)
	}
	whole := m.append(nil)
	for i := range whole {
		if _, ok := parsePunch(m.from, whole[:i]); ok {
			t.Errorf("%d of %d bytes were taken", i, len(whole))
		}
	}
	for _, e := range []echoMessage{
		{from: peer.ID{1}, step: echoAsk, nonce: 3},
		{from: peer.ID{1}, step: echoPort, nonce: 3, at: netip.AddrPortFrom(netip.IPv6Unspecified(), 5)},
		{from: peer.ID{1}, step: echoSeen, nonce: 3, at: ap("203.0.113.1:40000")},
	} {
		if got, ok := parseEcho(e.from, e.append(nil)); !ok || got != e {
			t.Errorf("%+v became %+v", e, got)
		}
		if _, ok := parseEcho(e.from, e.append(nil)[:len(e.append(nil))-1]); ok {
			t.Errorf("%+v was taken without its end", e)
		}
	}
}

// FuzzPunch: whatever a member sends, what is read is bounded and reads the same again.
func FuzzPunch(f *testing.F) {
	f.Add(punchMessage{kind: punchAsk, nonce: 1, at: []netip.AddrPort{ap("203.0.113.1:40000")}}.append(nil))
	f.Add(echoMessage{step: echoSeen, nonce: 1, at: ap("203.0.113.1:40000")}.append(nil))
	f.Add([]byte{1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 9, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, ok := parsePunch(peer.ID{}, b); ok {
			again, ok := parsePunch(peer.ID{}, m.append(nil))
			if !ok || again.nonce != m.nonce || again.nat != m.nat || !slices.Equal(again.at, m.at) {
				t.Fatalf("%+v, then %+v", m, again)
			}
		}
		if e, ok := parseEcho(peer.ID{}, b); ok {
			if again, ok := parseEcho(peer.ID{}, e.append(nil)); !ok || again != e {
				t.Fatalf("%+v, then %+v", e, again)
			}
		}
	})
}

// TestAppointments plays two members whose packets take a detour.
func TestAppointments(t *testing.T) {
	const rtt = 40 * time.Millisecond
	now := time.Now()
	low, high := peer.ID{1}, peer.ID{2}
	mine := []netip.AddrPort{ap("192.168.1.2:6783")}
	known := map[peer.ID]peer.Info{low: {ID: low}, high: {ID: high}}
	info := func(id peer.ID) (peer.Info, bool) { i, ok := known[id]; return i, ok }
	flows := func(id peer.ID, bytes uint64) []sleeve.PeerStats {
		return []sleeve.PeerStats{{ID: id, Up: true, RTT: rtt, Via: []peer.ID{{9}}, RxBytes: bytes}}
	}
	a, b := newPuncher(low), newPuncher(high)
	if ids := b.due(now, 0, mine, flows(low, 0), info); len(ids) != 0 {
		t.Error("the higher one began")
	}
	if ids := a.due(now, 0, mine, flows(high, 0), info); !slices.Equal(ids, []peer.ID{high}) {
		t.Fatalf("the lower one asks %v", ids)
	}
	nonce := a.pairs[high].nonce
	answer, later, ok := b.hear(now, punchMessage{from: low, kind: punchAsk, nonce: nonce, at: mine}, rtt)
	if !answer || !ok || later.when.Sub(now) != rtt/2 || later.to != low || !slices.Equal(later.at, mine) {
		t.Errorf("answer %v, burst %+v", answer, later)
	}
	if answer, _, ok := b.hear(now, punchMessage{from: low, kind: punchAsk, nonce: nonce}, rtt); answer || ok {
		t.Error("it can be made to send as often as somebody likes")
	}
	if ids := b.due(now.Add(punchYield), 0, mine, flows(low, 0), info); len(ids) != 0 {
		t.Error("both asked")
	}
	if _, _, ok := a.hear(now, punchMessage{from: high, kind: punchAnswer, nonce: nonce + 1}, rtt); ok {
		t.Error("it took an answer to another question")
	}
	if _, at, ok := a.hear(now, punchMessage{from: high, kind: punchAnswer, nonce: nonce, at: mine}, rtt); !ok || !at.when.Equal(now) {
		t.Errorf("burst %+v", at)
	}
	if _, _, ok := a.hear(now, punchMessage{from: high, kind: punchAnswer, nonce: nonce, at: mine}, rtt); ok {
		t.Error("it took an answer twice")
	}

	// The pauses grow, and how far depends on traffic.
	count := func(traffic bool, d time.Duration) (n int) {
		for i := range int(d / time.Second) {
			bytes := uint64(0)
			if traffic {
				bytes = uint64(i)
			}
			now = now.Add(time.Second)
			n += len(a.due(now, 0, mine, flows(high, bytes), info))
		}
		return n
	}
	if n := count(true, 10*time.Minute); n < 14 || n > 32 {
		t.Errorf("%d attempts in ten minutes with traffic", n)
	}
	if n := count(false, time.Hour); n < 4 || n > 10 {
		t.Errorf("%d attempts in an hour without", n)
	}
	known[high] = peer.Info{ID: high, Reflected: mine}
	if ids := a.due(now.Add(time.Second), 0, mine, flows(high, 0), info); len(ids) != 1 {
		t.Error("a new address is no reason to try again")
	}
	known[high] = peer.Info{ID: high, NAT: peer.NATHard}
	if ids := a.due(now.Add(time.Hour), peer.NATHard, mine, flows(high, 0), info); len(ids) != 0 {
		t.Error("two hard NATs were tried")
	}
	if a.due(now, 0, mine, []sleeve.PeerStats{{ID: high, Up: true}}, info); len(a.pairs) != 0 {
		t.Error("it remembers a member that is reached directly")
	}
}

func TestWhyItIsADetour(t *testing.T) {
	via := []peer.ID{{9}}
	for _, c := range []struct {
		s     sleeve.PeerStats
		own   peer.NAT
		other peer.NAT
		tries int
		want  string
	}{
		{sleeve.PeerStats{}, 0, 0, 5, ""},
		{sleeve.PeerStats{TCP: true}, 0, 0, 0, "UDP is blocked"},
		{sleeve.PeerStats{Via: via}, peer.NATHard, peer.NATHard, 0, "hard NAT on both sides"},
		{sleeve.PeerStats{Via: via}, peer.NATEasy, peer.NATEasy, 1, "is being tried"},
		{sleeve.PeerStats{Via: via}, peer.NATHard, peer.NATEasy, 3, "hard NAT here"},
		{sleeve.PeerStats{Via: via}, peer.NATEasy, peer.NATHard, 3, "hard NAT on its side"},
		{sleeve.PeerStats{Via: via}, peer.NATNone, peer.NATNone, 3, "firewall"},
		{sleeve.PeerStats{Via: via}, peer.NATEasy, peer.NATUnknown, 3, "the NAT here lets no datagram in"},
	} {
		if got := why(c.s, c.own, peer.Info{NAT: c.other}, c.tries); !strings.Contains(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%+v: %q", c, got)
		}
	}
}
