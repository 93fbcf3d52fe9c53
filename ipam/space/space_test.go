package space

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/ipam/ring"
)

const coolFor = time.Minute

func prefixes(ss ...string) (ps []netip.Prefix) {
	for _, s := range ss {
		ps = append(ps, netip.MustParsePrefix(s))
	}
	return ps
}

func pools(prefix string, atomBits int) []ring.Pool {
	return []ring.Pool{{Prefix: netip.MustParsePrefix(prefix), AtomBits: atomBits}}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestSequences(t *testing.T) {
	type step struct {
		do   string // next, take, release, wake
		addr string // argument, or what next and wake must answer; "" for none
	}
	for _, tt := range []struct {
		name   string
		pool   string
		blocks []string
		steps  []step
	}{
		{"lowest first, without the pool's first", "10.32.0.0/12", []string{"10.32.0.0/12"}, []step{
			{"next", "10.32.0.1"}, {"next", "10.32.0.2"}, {"next", "10.32.0.3"},
		}},
		{"a block inside the pool is used up to its edges", "10.32.0.0/12", []string{"10.33.0.0/30"}, []step{
			{"next", "10.33.0.0"}, {"next", "10.33.0.1"}, {"next", "10.33.0.2"}, {"next", "10.33.0.3"}, {"next", ""},
		}},
		{"the pool's last address is not given", "10.0.0.0/29", []string{"10.0.0.4/30"}, []step{
			{"next", "10.0.0.4"}, {"next", "10.0.0.5"}, {"next", "10.0.0.6"}, {"next", ""},
		}},
		{"a gap is filled after its rest", "10.0.0.0/24", []string{"10.0.0.0/24"}, []step{
			{"next", "10.0.0.1"},
			{"next", "10.0.0.2"},
			{"next", "10.0.0.3"},
			{"release", "10.0.0.2"},
			{"next", "10.0.0.4"},
			{"wake", "10.0.0.2"},
			{"next", "10.0.0.2"},
			{"next", "10.0.0.5"},
		}},
		{"an address by name ends its rest", "10.0.0.0/24", []string{"10.0.0.0/24"}, []step{
			{"take", "10.0.0.9"}, {"release", "10.0.0.9"}, {"take", "10.0.0.9"}, {"wake", ""},
		}},
		{"the next block when one is full", "10.0.0.0/24", []string{"10.0.0.128/31", "10.0.0.8/31"}, []step{
			{"next", "10.0.0.8"}, {"next", "10.0.0.9"}, {"next", "10.0.0.128"}, {"next", "10.0.0.129"}, {"next", ""},
		}},
		{"the end of the address space", "255.255.255.0/24", []string{"255.255.255.252/30"}, []step{
			{"next", "255.255.255.252"}, {"next", "255.255.255.253"}, {"next", "255.255.255.254"}, {"next", ""},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(pools(tt.pool, 32), coolFor)
			s.SetBlocks(prefixes(tt.blocks...))
			now := time.Unix(0, 0)
			for i, step := range tt.steps {
				switch step.do {
				case "next":
					a, ok := s.Lowest()
					if ok != (step.addr != "") || ok && a.String() != step.addr {
						t.Fatalf("step %d: lowest is %v, %v, want %q", i, a, ok, step.addr)
					}
					if ok {
						s.Take(a)
					}
				case "take":
					if err := s.Check(addr(step.addr)); err != nil {
						t.Fatalf("step %d: %v", i, err)
					}
					s.Take(addr(step.addr))
				case "release":
					s.Release(addr(step.addr), now)
				case "wake":
					now = now.Add(coolFor)
					woken := s.Wake(now, nil)
					if len(woken) != min(1, len(step.addr)) || len(woken) == 1 && woken[0].String() != step.addr {
						t.Fatalf("step %d: woke %v, want %q", i, woken, step.addr)
					}
				}
			}
		})
	}
}

func TestWhyAnAddressCannotBeTaken(t *testing.T) {
	s := New(pools("10.0.0.0/24", 26), coolFor)
	s.SetBlocks(prefixes("10.0.0.0/25"))
	s.Take(addr("10.0.0.5"))
	for a, want := range map[string]error{
		"10.0.0.0": ErrReserved, "10.0.0.5": ErrTaken, "10.0.0.200": ErrOutside, "fd00::1": ErrOutside, "10.0.0.6": nil,
	} {
		if err := s.Check(addr(a)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", a, err, want)
		}
	}
}

func TestSpare(t *testing.T) {
	for _, tt := range []struct {
		name   string
		blocks []string
		taken  []string
		keep   int
		want   string
	}{
		{"the upper half of all", []string{"10.32.0.0/12"}, nil, 16, "10.40.0.0/13"},
		{"with pods at the bottom", []string{"10.32.0.0/12"}, []string{"10.32.0.1", "10.32.3.9"}, 16, "10.40.0.0/13"},
		{"a pod in the upper half", []string{"10.32.0.0/12"}, []string{"10.40.0.1"}, 16, "10.44.0.0/14"},
		{"a pod in the upper half of the upper half", []string{"10.32.0.0/12"}, []string{"10.44.0.1"}, 16, "10.36.0.0/14"},
		{"the largest block", []string{"10.32.0.0/22", "10.33.0.0/19"}, nil, 16, "10.33.16.0/20"},
		{"a second block goes whole", []string{"10.32.0.0/22", "10.33.0.0/21"}, nil, 16, "10.32.0.0/22"},
		{"also one that is a little smaller", []string{"10.32.0.0/23", "10.33.0.0/21"}, nil, 16, "10.32.0.0/23"},
		{"but not where a pod is", []string{"10.32.0.0/22", "10.33.0.0/21"}, []string{"10.32.0.1"}, 16, "10.33.4.0/22"},
		{"of equal blocks one", []string{"10.32.0.0/22", "10.33.0.0/22"}, nil, 16, "10.32.0.0/22"},
		{"two atoms", []string{"10.32.0.0/25"}, []string{"10.32.0.1"}, 16, "10.32.0.64/26"},
		{"two atoms, the upper one used", []string{"10.32.0.0/25"}, []string{"10.32.0.65"}, 16, "10.32.0.0/26"},
		{"a whole atom beside others", []string{"10.32.0.0/26", "10.32.1.0/26"}, []string{"10.32.0.1"}, 16, "10.32.1.0/26"},
		{"nothing but one atom", []string{"10.32.0.0/26"}, nil, 16, ""},
		{"all atoms used a little", []string{"10.32.0.0/25"}, []string{"10.32.0.1", "10.32.0.64"}, 16, ""},
		{"less where too few would stay", []string{"10.32.0.0/24"}, []string{"10.32.0.1"}, 180, "10.32.0.192/26"},
		{"too few would stay", []string{"10.32.0.0/25"}, []string{"10.32.0.1"}, 64, ""},
		{"nothing", nil, nil, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(pools("10.32.0.0/12", 26), coolFor)
			s.SetBlocks(prefixes(tt.blocks...))
			for _, a := range tt.taken {
				s.Take(addr(a))
			}
			got, ok := s.Spare(tt.keep)
			if ok != (tt.want != "") || ok && got.String() != tt.want {
				t.Errorf("spare %v, %v, want %q", got, ok, tt.want)
			}
		})
	}
}

func TestARestingAddressIsNotLent(t *testing.T) {
	s := New(pools("10.32.0.0/24", 26), coolFor)
	s.SetBlocks(prefixes("10.32.0.0/24"))
	now := time.Unix(0, 0)
	s.Take(addr("10.32.0.200"))
	s.Release(addr("10.32.0.200"), now)
	if p, _ := s.Spare(0); p.Contains(addr("10.32.0.200")) {
		t.Errorf("lends %s", p)
	}
	if until, ok := s.NextWake(); !ok || !until.Equal(now.Add(coolFor)) {
		t.Errorf("next wake %v, %v", until, ok)
	}
	s.Wake(now.Add(coolFor), nil)
	if p, _ := s.Spare(0); p.String() != "10.32.0.128/25" {
		t.Errorf("lends %s", p)
	}
}

// TestSpaceAgainstAMap compares with the plainest model: a map of what is taken. The IPv6 pools lie at both ends of a network
// of 64 bits.
func TestSpaceAgainstAMap(t *testing.T) {
	for _, p := range prefixes("10.0.0.0/26", "fd00::/122", "fd00::ffff:ffff:ffff:ffc0/122") {
		t.Run(p.Addr().String(), func(t *testing.T) { againstAMap(t, p) })
	}
}

func againstAMap(t *testing.T, pool netip.Prefix) {
	cut := func(n uint64, bits int) netip.Prefix {
		return netip.PrefixFrom(numberOf(pool.Addr()).plus(n).addr(pool.Addr().Is6()), pool.Bits()+bits)
	}
	first, last := pool.Addr(), spanOf(pool).last.addr(pool.Addr().Is6())
	rapid.Check(t, func(t *rapid.T) {
		blocks := rapid.SampledFrom([][]netip.Prefix{{pool}, {cut(32, 1)}, {cut(0, 2), cut(32, 2)}, nil})
		s := New(pools(pool.String(), pool.Bits()+2), coolFor)
		own := blocks.Draw(t, "blocks")
		s.SetBlocks(own)
		now := time.Unix(0, 0)
		taken := map[netip.Addr]bool{}
		resting := map[netip.Addr]time.Time{}
		usable := func(a netip.Addr) bool {
			in := a != first && a != last
			for _, p := range own {
				if p.Contains(a) {
					return in
				}
			}
			return false
		}
		drawn := rapid.Custom(func(t *rapid.T) netip.Addr {
			return numberOf(first).plus(rapid.Uint64Range(0, 63).Draw(t, "addr")).addr(first.Is6())
		})
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"next", "take", "release", "drop", "time", "blocks"}).Draw(t, "do") {
			case "next":
				got, ok := s.Lowest()
				want := netip.Addr{}
				for a := pool.Addr(); pool.Contains(a); a = a.Next() {
					if _, rests := resting[a]; usable(a) && !taken[a] && !rests {
						want = a
						break
					}
				}
				if got != want || ok != want.IsValid() {
					t.Fatalf("lowest %v, want %v", got, want)
				}
				if ok {
					s.Take(got)
					taken[got] = true
				}
			case "take":
				a := drawn.Draw(t, "a")
				if err := s.Check(a); (err == nil) != (usable(a) && !taken[a]) {
					t.Fatalf("check %v: %v", a, err)
				}
				s.Take(a)
				taken[a] = true
				delete(resting, a)
			case "release":
				if a := drawn.Draw(t, "a"); taken[a] {
					s.Release(a, now)
					delete(taken, a)
					resting[a] = now.Add(coolFor)
				}
			case "drop":
				a := drawn.Draw(t, "a")
				s.Drop(a)
				delete(taken, a)
				delete(resting, a)
			case "time":
				now = now.Add(time.Duration(rapid.IntRange(0, 90).Draw(t, "seconds")) * time.Second)
				for _, a := range s.Wake(now, nil) {
					if until, ok := resting[a]; !ok || until.After(now) {
						t.Fatalf("%v woke too early", a)
					}
					delete(resting, a)
				}
				for a, until := range resting {
					if !until.After(now) {
						t.Fatalf("%v did not wake", a)
					}
				}
			case "blocks":
				own = blocks.Draw(t, "blocks")
				s.SetBlocks(own)
			}
			used, free := 0, 0
			for a := pool.Addr(); pool.Contains(a); a = a.Next() {
				switch {
				case taken[a] && s.Owns(a):
					used++
				case usable(a):
					free++
				}
			}
			gotUsed, gotFree := s.Count()
			if reservedTaken := taken[first] || taken[last]; !reservedTaken && resting[first].IsZero() && resting[last].IsZero() && (used != gotUsed || free != gotFree) {
				t.Fatalf("count %d used, %d free, want %d and %d", gotUsed, gotFree, used, free)
			}
			if p, ok := s.Spare(0); ok {
				for a := p.Addr(); p.Contains(a); a = a.Next() {
					if _, rests := resting[a]; taken[a] || rests || !s.Owns(a) {
						t.Fatalf("would lend %s, where %s is not free", p, a)
					}
				}
			}
		}
	})
}

// Blocks of IPv6 have more addresses than can be counted, and the first of each network is nobody's.
func TestIPv6Pool(t *testing.T) {
	s := New(pools("fd00:1::/48", 64), coolFor)
	s.SetBlocks(prefixes("fd00:1::/49"))
	next := func(want string) {
		t.Helper()
		if a, ok := s.Lowest(); !ok || a != addr(want) {
			t.Fatalf("lowest %s, %v, want %s", a, ok, want)
		}
	}
	next("fd00:1::1")
	s.Take(addr("fd00:1::1"))
	next("fd00:1::2")
	if err := s.Check(addr("fd00:1:0:7::")); !errors.Is(err, ErrAnycast) {
		t.Error(err)
	}
	if err := s.Check(addr("fd00:1:0:7::1:2:3")); err != nil {
		t.Error(err)
	}
	if err := s.Check(addr("10.0.0.1")); !errors.Is(err, ErrOutside) {
		t.Error(err)
	}
	if used, free := s.Count(); used != 1 || free < Many-8 {
		t.Errorf("%d used, %d free", used, free)
	}
	if p, ok := s.Spare(8); !ok || p.String() != "fd00:1:0:4000::/50" {
		t.Errorf("lends %s, %v", p, ok)
	}
	s.SetBlocks(prefixes("fd00:1:0:8000::/49"))
	next("fd00:1:0:8000::1")
	s.SetBlocks(prefixes("fd00:1:0:8000::/63"))
	next("fd00:1:0:8000::1")
	if p, ok := s.Spare(8); !ok || p.String() != "fd00:1:0:8001::/64" {
		t.Errorf("lends %s, %v: one network is as good as two", p, ok)
	}
	s.SetBlocks(prefixes("fd00:1:0:8001::/64"))
	if p, ok := s.Spare(8); ok {
		t.Errorf("lends %s, all that it has", p)
	}
	s.SetBlocks(nil)
	if a, ok := s.Lowest(); ok {
		t.Errorf("%s of nothing", a)
	}
}

func TestLinked(t *testing.T) {
	p := netip.MustParsePrefix("fd12:3456:789a::/96")
	six := Linked(p, addr("10.32.0.1"))
	if six.String() != "fd12:3456:789a::a20:1" {
		t.Error(six)
	}
	if four, ok := Unlinked(p, six); !ok || four != addr("10.32.0.1") {
		t.Error(four, ok)
	}
	if _, ok := Unlinked(p, addr("fd00::1")); ok {
		t.Error("a foreign address has a twin")
	}
	if got := LinkedBlock(p, netip.MustParsePrefix("10.32.4.0/22")).String(); got != "fd12:3456:789a::a20:400/118" {
		t.Error(got)
	}
	if Linked(netip.Prefix{}, addr("10.32.0.1")).IsValid() {
		t.Error("a twin without a prefix")
	}
}

func TestLateBlocks(t *testing.T) {
	now := time.Unix(0, 0)
	s := New(pools("10.0.0.0/24", 30), coolFor)
	s.Wake(now, nil)
	s.SetLate([]Late{
		{netip.MustParsePrefix("10.0.0.4/30"), now.Add(time.Hour)},
		{netip.MustParsePrefix("10.0.0.12/30"), now.Add(2 * time.Hour)},
		{netip.MustParsePrefix("10.0.0.64/26"), now.Add(time.Minute)}, // not the node's: it does not matter
	})
	s.SetBlocks(prefixes("10.0.0.0/28"))
	if used, free := s.Count(); used != 0 || free != 7 { // 1 to 3 and 8 to 11
		t.Errorf("%d used, %d free", used, free)
	}
	if err := s.Check(addr("10.0.0.5")); !errors.Is(err, ErrCools) {
		t.Errorf("an address of a block that is not open yet: %v", err)
	}
	var given []string
	take := func() {
		for {
			a, ok := s.Lowest()
			if !ok {
				return
			}
			s.Take(a)
			given = append(given, a.String())
		}
	}
	take()
	if next, ok := s.NextWake(); !ok || !next.Equal(now.Add(time.Hour)) {
		t.Errorf("next wake %v, %v", next, ok)
	}
	s.Wake(now.Add(time.Hour), nil)
	s.Drop(addr("10.0.0.9")) // goes before what is late
	take()
	want := "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.8 10.0.0.9 10.0.0.10 10.0.0.11 10.0.0.9 10.0.0.4 10.0.0.5 10.0.0.6 10.0.0.7"
	if got := strings.Join(given, " "); got != want {
		t.Errorf("given %s\nwant  %s", got, want)
	}
	if next, ok := s.NextWake(); !ok || !next.Equal(now.Add(2*time.Hour)) {
		t.Errorf("next wake %v, %v", next, ok)
	}
	if p, ok := s.Spare(0); ok {
		t.Errorf("would lend %s, which is not open yet", p)
	}
	s.Wake(now.Add(2*time.Hour), nil)
	if p, ok := s.Spare(0); !ok || p.String() != "10.0.0.12/30" {
		t.Errorf("would lend %s, %v", p, ok)
	}
	if _, ok := s.NextWake(); ok {
		t.Error("something wakes still")
	}
}

func TestAnAddressThatIsHeldRestsOn(t *testing.T) {
	s := New(pools("10.0.0.0/24", 26), coolFor)
	s.SetBlocks(prefixes("10.0.0.0/24"))
	now := time.Unix(0, 0)
	for _, a := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"} {
		s.Take(addr(a))
		s.Release(addr(a), now)
		now = now.Add(time.Millisecond)
	}
	held := func(a netip.Addr) bool { return a == addr("10.0.0.1") }
	now = now.Add(coolFor)
	if got := s.Wake(now, held); len(got) != 2 || s.Rests(addr("10.0.0.2")) || !s.Rests(addr("10.0.0.1")) {
		t.Errorf("woke %v", got)
	}
	if next, ok := s.NextWake(); !ok || next.After(now.Add(holdFor)) {
		t.Errorf("looks again at %v, %v", next, ok)
	}
	if got := s.Wake(now.Add(holdFor), nil); len(got) != 1 || got[0] != addr("10.0.0.1") {
		t.Errorf("woke %v", got)
	}
}
