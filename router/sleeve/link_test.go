package sleeve

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"weft/crypto/noise"
	"weft/crypto/psk"
	"weft/mesh/path"
	"weft/mesh/peer"
)

// sim plays two links against each other on a clock and a network of its own.
type sim struct {
	t    *testing.T
	now  time.Time
	rng  *rand.Rand
	ends [2]*simEnd
	air  []flight
	// deliver decides about each datagram; nil delivers all. It may change the flight, such as its source.
	deliver func(f *flight) bool
	rtt     time.Duration
}

type simEnd struct {
	s       *sim
	r       *remote
	local   noise.Local
	public  [32]byte
	indexes directory
	counter uint64
	addr    netip.AddrPort
	busy    bool
	refused []error
	opened  int
}

type flight struct {
	at       time.Time
	from, to netip.AddrPort
	b        []byte
}

func newSim(t *testing.T, secrets ...psk.Secret) *sim {
	t.Helper()
	s := &sim{t: t, now: time.Unix(1_000_000, 0), rng: rand.New(rand.NewPCG(1, 2)), rtt: 10 * time.Millisecond}
	for i := range s.ends {
		private, public, err := noise.GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		key, err := noise.NewKey(private)
		if err != nil {
			t.Fatal(err)
		}
		s.ends[i] = &simEnd{
			s: s, local: noise.Local{Key: key, Cluster: testClusterID}, public: public,
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 6783),
		}
	}
	for i, e := range s.ends {
		e.start(i == 1)
		e.configure(true, secrets...)
	}
	return s
}

var testClusterID = [32]byte{'c'}

// secretOf is a pair secret that the tests agree about.
func secretOf(t testing.TB, name string) psk.Secret {
	t.Helper()
	b := make([]byte, psk.Size)
	copy(b, name)
	s, err := psk.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// start is a fresh process: no session, counters further on.
func (e *simEnd) start(second bool) {
	e.counter += CounterSpan
	e.indexes = directory{}
	e.r = &remote{id: peer.ID{1}}
	e.r.link = link{owner: e.r, second: second, key: e.other().public, node: &node{
		local: e.local, counter: func() uint64 { e.counter++; return e.counter }, jitter: e.s.rng.Float64,
		indexes: &e.indexes,
	}}
	e.r.link.paths.WantMTU(1420)
}

func (e *simEnd) other() *simEnd {
	if e.s.ends[0] == e {
		return e.s.ends[1]
	}
	return e.s.ends[0]
}

func (e *simEnd) configure(endpoints bool, secrets ...psk.Secret) {
	p := Peer{NoisePublic: e.other().public, Secrets: secrets}
	if endpoints {
		p.Endpoints = []netip.AddrPort{e.other().addr}
	}
	e.r.link.configure(p, e.s.now)
}

func (e *simEnd) link() *link { return &e.r.link }

// active is what the link knows about the way that packets take.
func (l *link) active() path.Report { return l.paths.Report(time.Time{})[0] }

func (e *simEnd) send(out []message) {
	for _, m := range out {
		f := flight{at: e.s.now.Add(e.s.rtt / 2), from: e.addr, to: m.to.Endpoint, b: slices.Clone(m.b)}
		if e.s.deliver == nil || e.s.deliver(&f) {
			e.s.air = append(e.s.air, f)
		}
	}
}

// run lets time pass; after is called after each event.
func (s *sim) run(d time.Duration, after func()) {
	s.t.Helper()
	for end := s.now.Add(d); ; {
		next := end
		for _, e := range s.ends {
			out, wake := e.link().step(s.now, e.busy, nil)
			e.send(out)
			if !wake.IsZero() && wake.Before(next) {
				next = wake
			}
		}
		if after != nil {
			after()
		}
		for _, f := range s.air {
			if f.at.Before(next) {
				next = f.at
			}
		}
		if !next.After(s.now) {
			next = s.now.Add(time.Millisecond)
		}
		if next.After(end) || next.Equal(end) && !slices.ContainsFunc(s.air, func(f flight) bool { return !f.at.After(end) }) {
			s.now = end
			return
		}
		s.now = next
		var due []flight
		s.air = slices.DeleteFunc(s.air, func(f flight) bool {
			if f.at.After(s.now) {
				return false
			}
			due = append(due, f)
			return true
		})
		for _, f := range due {
			for _, e := range s.ends {
				if e.addr == f.to {
					e.receive(f)
				}
			}
		}
	}
}

// receive is what the workers of an engine do with a datagram.
func (e *simEnd) receive(f flight) {
	l, now := e.link(), e.s.now
	switch noise.Type(f.b) {
	case noise.TypeInitiation:
		var a noise.Answer
		msg, secret, err := noise.Respond(e.local, f.b, func(_ [32]byte, o noise.Offer) (noise.Answer, [32]byte, error) {
			answer, s, err := l.accept(o, now)
			a = answer
			return answer, s, err
		})
		if err != nil {
			e.refused = append(e.refused, err)
			return
		}
		l.responded(secret, a, noise.Index(f.b), now)
		e.send([]message{{path.Direct(f.from), msg}})
		return
	case noise.TypeResponse:
		if err := l.response(f.b, path.Direct(f.from), now); err != nil {
			e.refused = append(e.refused, err)
		}
		return
	}
	h, ok := parseHeader(f.b)
	if !ok {
		e.s.t.Fatalf("a link sent %x", f.b)
	}
	entry, ok := e.indexes.find(h.index)
	if !ok || entry.keys == nil {
		return
	}
	plain, newest, why := entry.keys.open(h, slices.Clone(f.b))
	if why != reasons {
		e.s.t.Logf("refused: %v", why)
		return
	}
	e.opened++
	from, m := path.Direct(f.from), parseMeta(plain)
	body := plain[metaSize:]
	l.heard(entry.keys, from, newest, tests(m, body), now)
	if kind := m.kind & kindMask; kind == kindFirst || kind == kindSecond {
		m, _, body = entry.keys.join(h, m, 0, body, nil)
	}
	switch {
	case body == nil:
	case m.kind == kindProbe:
		e.send(l.probed(entry.keys, body, from, nil))
	case m.kind == kindEcho:
		l.echoed(body, from, now)
	}
}

// mustBeUp checks both ends.
func (s *sim) mustBeUp() {
	s.t.Helper()
	for i, e := range s.ends {
		if up, why := e.link().state(s.now); !up {
			s.t.Fatalf("end %d is not up: %s", i, why)
		}
	}
}

func TestLinkOpensWithinTwoRoundTrips(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(2*s.rtt, nil)
	s.mustBeUp()
	for i, e := range s.ends {
		if e.link().active().RTT == 0 && i == 0 {
			t.Errorf("end %d has no RTT", i)
		}
	}
}

func TestLinkNeedsOneAddressOnly(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.ends[0].configure(false, secretOf(t, "s"))
	if _, why := s.ends[0].link().state(s.now); why == "" {
		t.Error("no reason given")
	}
	s.run(time.Second, nil)
	s.mustBeUp()
}

func TestLinkWithoutSecretStaysSilent(t *testing.T) {
	s := newSim(t)
	s.deliver = func(f *flight) bool { t.Errorf("sent %x", f.b); return false }
	s.run(time.Minute, nil)
	if up, why := s.ends[0].link().state(s.now); up || why == "" {
		t.Error("up without a secret")
	}
}

func TestCrossedInitiationsMakeAWorkingSession(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.ends[1].link().retryAt = s.now // no courtesy
	s.run(time.Second, nil)
	s.mustBeUp()
	for i := range s.ends {
		if s.ends[i].link().completed == 0 {
			t.Error("no handshake completed")
		}
	}
	s.run(10*time.Minute, s.mustBeUp)
}

// TestLinkLivesForHours: nobody tells the links anything, and they never stop working nor use a key for too long.
func TestLinkLivesForHours(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	oldest := time.Duration(0)
	s.run(3*time.Hour, func() {
		s.mustBeUp()
		for _, e := range s.ends {
			oldest = max(oldest, s.now.Sub(e.link().current.created))
		}
	})
	if n := s.ends[0].link().completed; n < 3*3600/130 || n > 3*3600/115 {
		t.Errorf("%d handshakes in 3 hours", n)
	}
	if oldest > rekeyLate {
		t.Errorf("a key of age %v was in use", oldest)
	}
	if n := len(s.ends[0].indexes.entries); n > 4 {
		t.Errorf("%d indexes in use: leaking", n)
	}
}

func TestLinkLivesThroughLoss(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	s.deliver = func(*flight) bool { return s.rng.Float64() > 0.3 }
	s.run(2*time.Hour, func() {
		for i, e := range s.ends {
			if e.link().current == nil {
				t.Fatalf("end %d has no session", i)
			}
		}
	})
	if loss := s.ends[0].link().active().Loss; loss < 0.2 || loss > 0.8 { // of two ways: 51 %
		t.Errorf("loss measured as %.2f", loss)
	}
}

func TestOldKeysOpenNothing(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	a, b := s.ends[0], s.ends[1]
	old := a.link().current
	s.run(rekeyAfter+10*time.Second, nil)
	if a.link().current == old {
		t.Fatal("not rekeyed")
	}
	late, err := old.seal(nil, meta{kind: kindControl}, []byte("in flight"))
	if err != nil {
		t.Fatal(err)
	}
	before := b.opened
	b.receive(flight{from: a.addr, to: b.addr, b: late})
	if b.opened != before+1 {
		t.Error("a datagram in flight over a rekey is lost")
	}
	s.run(rekeyAfter+keyLife, nil)
	later, _ := old.seal(nil, meta{kind: kindControl}, []byte("stolen key"))
	before = b.opened
	b.receive(flight{from: a.addr, to: b.addr, b: later})
	if b.opened != before {
		t.Error("an old key opens datagrams")
	}
}

// TestKeysExpireWithoutAnswer: better no session than an old key.
func TestKeysExpireWithoutAnswer(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	s.deliver = func(*flight) bool { return false }
	s.run(keyLife-2*time.Second, nil)
	if s.ends[0].link().current == nil {
		t.Error("keys dropped too early")
	}
	s.run(2*time.Second, nil)
	for i, e := range s.ends {
		if e.link().current != nil || len(e.indexes.entries) > 1 { // the attempt has one
			t.Errorf("end %d still has keys", i)
		}
	}
}

func TestSilenceBringsNewHandshakes(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	var tries []time.Time
	cut := true
	s.deliver = func(f *flight) bool {
		if noise.Type(f.b) == noise.TypeInitiation && f.from == s.ends[0].addr && cut {
			tries = append(tries, s.now)
		}
		return !cut
	}
	start := s.now
	s.run(60*time.Second, nil)
	if up, why := s.ends[0].link().state(s.now); up || why == "" {
		t.Error("up while cut off")
	}
	if len(tries) < 10 || len(tries) > 25 {
		t.Errorf("%d tries in a minute", len(tries))
	}
	if first := tries[0].Sub(start); first < silentAfter || first > silentAfter+5*time.Second+time.Second {
		t.Errorf("first try %v after the cut", first)
	}
	cut = false
	s.run(retryMax*2, nil)
	s.mustBeUp()
}

func TestRestartedPeerIsBackAtOnce(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(30*time.Second, nil)
	s.ends[1].start(true)
	s.ends[1].configure(true, secretOf(t, "s"))
	s.run(500*time.Millisecond, nil)
	s.mustBeUp()
	if s.ends[0].link().current.local == 0 {
		t.Error("no key")
	}
}

func TestEndpointFollowsAuthenticatedDatagrams(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	a, b := s.ends[0], s.ends[1]
	var captured []flight
	s.deliver = func(f *flight) bool {
		if f.from == b.addr && noise.Type(f.b) == 0 {
			captured = append(captured, *f)
		}
		return true
	}
	s.run(6*time.Second, nil)
	elsewhere := netip.MustParseAddrPort("198.51.100.9:1234")
	for _, f := range captured {
		f.from = elsewhere
		a.receive(f)
	}
	if got := a.link().paths.Active().Endpoint; got != b.addr {
		t.Errorf("a replayed datagram moved the endpoint to %v", got)
	}
	b.addr = netip.MustParseAddrPort("192.0.2.77:6783")
	s.run(6*time.Second, nil)
	if got := a.link().paths.Active().Endpoint; got != b.addr {
		t.Errorf("the endpoint is %v, the peer is at %v", got, b.addr)
	}
	s.run(6*time.Second, nil)
	s.mustBeUp()
}

// TestDelayedDatagramDoesNotMoveTheEndpoint: one that was held back on the way is new to the window, but not newest.
func TestDelayedDatagramDoesNotMoveTheEndpoint(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	a, b := s.ends[0], s.ends[1]
	held, _ := b.link().current.seal(nil, meta{kind: kindControl}, []byte("held back"))
	s.run(6*time.Second, nil)
	before := a.opened
	a.receive(flight{from: netip.MustParseAddrPort("198.51.100.9:1234"), to: a.addr, b: held})
	if a.opened != before+1 || a.link().paths.Active().Endpoint != b.addr {
		t.Errorf("opened %d, endpoint %v", a.opened-before, a.link().paths.Active().Endpoint)
	}
}

func TestReplayedInitiationIsRefused(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	var first *flight
	s.deliver = func(f *flight) bool {
		if noise.Type(f.b) == noise.TypeInitiation && first == nil {
			g := *f
			first = &g
		}
		return true
	}
	s.run(10*time.Second, nil)
	b := s.ends[1]
	for range 3 {
		b.receive(*first)
		s.run(time.Second, nil)
	}
	if len(b.refused) != 3 || !errors.Is(b.refused[0], errOldCounter) {
		t.Errorf("refused: %v", b.refused)
	}
	s.mustBeUp()
}

func TestSecretsRotateWithoutTearing(t *testing.T) {
	one, two, three := secretOf(t, "one"), secretOf(t, "two"), secretOf(t, "three")
	s := newSim(t, one)
	s.run(time.Second, nil)
	keys := s.ends[0].link().current
	s.ends[0].configure(true, two, one) // the other end is still behind
	s.run(time.Minute, s.mustBeUp)
	if s.ends[0].link().current != keys {
		t.Error("a new secret tore the session")
	}
	s.ends[1].configure(true, two, one)
	s.run(5*time.Minute, s.mustBeUp)
	s.ends[0].configure(true, three, two)
	s.ends[1].configure(true, three, two)
	s.run(10*time.Minute, s.mustBeUp)
}

func TestRemovedSecretIsNeverUsedAgain(t *testing.T) {
	one, two := secretOf(t, "one"), secretOf(t, "two")
	s := newSim(t, one)
	s.run(time.Second, nil)
	n := s.ends[0].link().completed
	s.ends[0].configure(true, two)
	s.run(10*time.Minute, nil)
	for i, e := range s.ends {
		if e.link().completed != n || e.link().current != nil {
			t.Errorf("end %d: %d handshakes, before %d", i, e.link().completed, n)
		}
	}
	if !errors.Is(s.ends[0].refused[0], noise.ErrPSK) {
		t.Errorf("refused: %v", s.ends[0].refused[0])
	}
	s.ends[1].configure(true, two)
	s.run(10*time.Second, nil)
	s.mustBeUp()
}

// TestSecretRemovedUnderWay: between initiation and response.
func TestSecretRemovedUnderWay(t *testing.T) {
	one, two := secretOf(t, "one"), secretOf(t, "two")
	s := newSim(t, one)
	s.deliver = func(f *flight) bool {
		if noise.Type(f.b) == noise.TypeResponse {
			s.ends[0].configure(true, two)
		}
		return true
	}
	s.run(time.Minute, nil)
	if s.ends[0].link().current != nil {
		t.Error("a removed secret made a session")
	}
}

// TestNoSecretsIsNoNews: a daemon that has just started has agreed on none yet, and must not end what works.
func TestNoSecretsIsNoNews(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Second, nil)
	for _, e := range s.ends {
		e.configure(true)
	}
	s.run(10*time.Minute, s.mustBeUp)
}

// TestDeafCandidate: our initiation reaches the peer on a path where its answers are lost, and first.
func TestDeafCandidate(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	a, b := s.ends[0], s.ends[1]
	deaf := netip.MustParseAddrPort("203.0.113.1:6783")
	a.link().configure(Peer{Endpoints: []netip.AddrPort{deaf, b.addr}, Secrets: []psk.Secret{secretOf(t, "s")}}, s.now)
	b.configure(false, secretOf(t, "s")) // only a can begin
	s.deliver = func(f *flight) bool {
		if f.to == deaf {
			f.to, f.from = b.addr, deaf
			f.at = f.at.Add(-time.Millisecond)
			return f.b[0] != noise.TypeResponse
		}
		return true
	}
	s.run(5*time.Second, nil)
	s.mustBeUp()
}

func TestMTUIsMeasured(t *testing.T) {
	for _, c := range []struct{ path, want int }{{1500, 1420}, {1400, 1300}, {1492, 1412}, {1360, 1280}, {1359, 1280}, {1000, 1280}, {720, 1280}, {700, 0}} {
		t.Run(fmt.Sprint(c.path), func(t *testing.T) {
			s := newSim(t, secretOf(t, "s"))
			s.deliver = func(f *flight) bool { return len(f.b)+48 <= c.path }
			s.run(2*time.Minute, nil)
			for i, e := range s.ends {
				if got := e.link().active().MTU; got != c.want {
					t.Errorf("end %d found %d", i, got)
				}
				if got := e.link().paths.Halved(); got != (c.want > 0 && c.path < 1360) {
					t.Errorf("end %d halves: %v", i, got)
				}
			}
			s.mustBeUp()
			s.deliver = nil // the path grows
			s.run(12*time.Minute, nil)
			if got := s.ends[0].link().active().MTU; got != 1420 {
				t.Errorf("after the path grew: %d", got)
			}
			s.deliver = func(f *flight) bool { return len(f.b)+48 <= 1380 } // and shrinks
			s.run(2*time.Minute, nil)
			if got := s.ends[0].link().active().MTU; got != 1300 {
				t.Errorf("after the path shrank: %d", got)
			}
		})
	}
}

func TestTrafficQuickensProbes(t *testing.T) {
	s := newSim(t, secretOf(t, "s"))
	s.run(time.Minute, nil)
	count := func(d time.Duration) int {
		n := 0
		s.deliver = func(f *flight) bool {
			if f.from == s.ends[0].addr && len(f.b) == overhead+probeSize {
				n++
			}
			return true
		}
		s.run(d, nil)
		return n
	}
	if n := count(60 * time.Second); n < 11 || n > 14 {
		t.Errorf("%d probes in an idle minute", n)
	}
	s.ends[0].busy = true
	if n := count(60 * time.Second); n < 58 || n > 63 {
		t.Errorf("%d probes in a busy minute", n)
	}
}
