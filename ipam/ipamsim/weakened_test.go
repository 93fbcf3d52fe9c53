package ipamsim_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"weft/ipam"
	"weft/ipam/ipamsim"
	"weft/ipam/ring"
)

// A simulator that finds nothing wrong with wrong rules is broken itself. Each rule has a story here that holds with it,
// and in which without it two machines own the same address.

// weakened plays a story with all rules, then without one.
func weakened(t *testing.T, rule ipam.Weakness, voters int, play func(g *ground)) {
	t.Helper()
	if err := lived(t, 99, 0, false, voters, play); err != nil {
		t.Errorf("with the rule: %v", err)
	}
	// Two timers of one moment may ring in either order, so that not every life comes to the point.
	for seed := uint64(99); seed < 104; seed++ {
		err := lived(t, seed, rule, rule == 0, voters, play) // R12 is a rule of joining, which is not ipam's
		if err == nil {
			continue
		}
		t.Log(err)
		if name, _, _ := strings.Cut(err.Error(), ":"); name != "I1" && name != "I3" && name != "I4" && name != "I10" && name != "I11" {
			t.Errorf("broken otherwise: %v", err)
		}
		return
	}
	t.Error("nothing is broken without the rule")
}

// lived is what is broken at the end of a story of voters and whoever else it wants; lone machines join by one word.
func lived(t *testing.T, seed uint64, without ipam.Weakness, lone bool, voters int, play func(*ground)) (err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := ipamsim.Setup{Seed: seed, Lone: lone}
		if without != 0 {
			s.Configure = func(c *ipam.Config) { c.Weaken = without }
		}
		if testing.Verbose() {
			s.Log = t.Logf
		}
		w, fault := ipamsim.New(s)
		if fault != nil {
			t.Fatal(fault)
		}
		defer w.Close()
		g := &ground{w, t}
		for range voters {
			g.grow(true)
		}
		play(g)
		err = w.Err()
	})
	return err
}

// secret lets a donor grant to a new machine so that only these two know, or, where late, only the donor does and the
// grant is on its way for that long. Then the donor dies.
func (g *ground) secret(donor, sponsor *ipamsim.Machine, late time.Duration) *ipamsim.Machine {
	g.t.Helper()
	joiner := g.Join(sponsor, false, nil)
	g.Fate = func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
		switch {
		case from == donor && to == joiner && kind == state && late > 0:
			return ipamsim.Fate{Late: late}
		case from == donor && to == joiner && kind == answerGrant && late == 0:
			return ipamsim.Fate{}
		case from == donor && (kind == answerGrant || kind == state || kind == digest),
			from != donor && to == joiner && kind == "answer ipam.spare",
			from == joiner && (kind == state || kind == digest || to == donor && kind != "ipam.spare" && kind != askGrant):
			return ipamsim.Fate{Lost: true}
		}
		return ipamsim.Fate{}
	}
	g.lends(donor, joiner)
	if late == 0 {
		g.wait("the joiner has it", 10*time.Second, func() bool { return len(blocks(joiner, joiner)) > 0 })
	} else {
		// Something makes the donor tell the joiner: it is on the way when the donor dies.
		g.Meet(joiner, donor)
		g.Fate = func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
			return ipamsim.Fate{
				Late: map[bool]time.Duration{true: late}[from == donor && to == joiner && kind == state],
				Lost: from == donor && to != joiner && (kind == state || kind == digest),
			}
		}
		g.Run(time.Second)
	}
	g.Kill(donor)
	return joiner
}

// only lets nothing but requests for promises, and what a donor once sent, reach a machine.
func only(m, donor *ipamsim.Machine) func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
	return func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
		return ipamsim.Fate{Lost: to == m && from != donor && kind != askPromise && kind != "roster"}
	}
}

func TestWeakenedFence(t *testing.T) { // R10
	weakened(t, ipam.WithoutFence, 3, func(g *ground) {
		joiner := g.secret(g.n(0), g.n(1), 0)
		g.Fate = func(_, to *ipamsim.Machine, _ string) ipamsim.Fate { return ipamsim.Fate{Lost: to == joiner} }
		g.Remove(g.n(1), ipamsim.ByHand, g.n(0))
		g.Run(time.Minute)
	})
}

func TestWeakenedRefusal(t *testing.T) { // R9
	weakened(t, ipam.WithoutRefusal, 3, func(g *ground) {
		joiner := g.secret(g.n(0), g.n(1), time.Minute)
		g.Fate = only(joiner, g.n(0))
		for _, m := range []*ipamsim.Machine{g.n(1), joiner} { // it hears of it on some way
			g.Remove(m, ipamsim.ByHand, g.n(0))
		}
		g.Run(2 * time.Minute)
	})
}

func TestWeakenedMemory(t *testing.T) { // R9
	weakened(t, ipam.WithoutMemory, 4, func(g *ground) {
		joiner := g.secret(g.n(0), g.n(1), 2*time.Minute)
		g.Fate = only(joiner, g.n(0))
		g.Remove(g.n(1), ipamsim.ByHand, g.n(0))
		g.Remove(joiner, ipamsim.ByHand, g.n(0))
		g.Run(30 * time.Second)
		g.Kill(g.n(4))
		for _, m := range []*ipamsim.Machine{g.n(1), joiner} { // it hears of it on some way
			g.Remove(m, ipamsim.ByHand, g.n(4))
		}
		g.Run(3 * time.Minute)
	})
}

func TestWeakenedSync(t *testing.T) { // R4
	weakened(t, ipam.WithoutSync, 4, func(g *ground) {
		victim := g.n(4)
		g.Kill(victim)
		g.Remove(g.n(0), ipamsim.ByHand, victim)
		g.Run(time.Minute)
		g.Part([]*ipamsim.Machine{victim})
		g.Start(victim)
		g.Run(time.Minute)
	})
}

func TestWeakenedIncarnation(t *testing.T) { // R7
	weakened(t, ipam.WithoutIncarnation, 5, func(g *ground) {
		victim := g.n(5)
		g.Kill(victim)
		g.Part([]*ipamsim.Machine{g.n(0)})
		g.Remove(g.n(0), ipamsim.ByHand, victim)
		g.Start(victim) // a quorum hears of it that has not heard of the removal
		g.Run(10 * time.Second)
		g.Fate = func(_, to *ipamsim.Machine, _ string) ipamsim.Fate { return ipamsim.Fate{Lost: to == victim} }
		g.Heal()
		g.Run(20 * time.Second)
	})
}

func TestWeakenedDisk(t *testing.T) { // R1
	weakened(t, ipam.WithoutDisk, 3, func(g *ground) {
		joiner := g.secret(g.n(0), g.n(1), 0)
		g.Fate = func(from, _ *ipamsim.Machine, _ string) ipamsim.Fate { return ipamsim.Fate{Lost: from == joiner} }
		g.Start(g.n(0))
		g.Run(30 * time.Second)
	})
}

func TestWeakenedQuorum(t *testing.T) { // R10
	weakened(t, ipam.WithoutQuorum, 4, func(g *ground) {
		few, many := []*ipamsim.Machine{g.n(0), g.n(1)}, []*ipamsim.Machine{g.n(2), g.n(3), g.n(4)}
		for _, m := range many {
			g.Kill(m)
		}
		g.Part(few)
		g.Remove(g.n(0), ipamsim.ByHand, many...)
		g.Run(time.Minute)
		for _, m := range many {
			g.Start(m)
		}
		g.Run(time.Minute)
	})
}

func TestWeakenedMinority(t *testing.T) { // R10
	weakened(t, ipam.WithoutMinority, 4, func(g *ground) {
		joiner := g.secret(g.n(0), g.n(1), 0)
		g.Fate = func(from, to *ipamsim.Machine, _ string) ipamsim.Fate {
			return ipamsim.Fate{Lost: to == joiner || from == joiner}
		}
		g.Remove(g.n(1), ipamsim.ByHand, g.n(0))
		g.Run(time.Minute)
	})
}

func TestWeakenedClosure(t *testing.T) { // R10
	weakened(t, ipam.WithoutClosure, 4, func(g *ground) {
		remover, donor := g.n(1), g.n(0)
		g.Part([]*ipamsim.Machine{remover})
		joiner := g.secret(donor, g.n(2), 0)
		g.Fate = func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
			gossip := kind == "roster" || kind == digest || kind == state
			return ipamsim.Fate{Lost: gossip && to == remover || to == joiner && kind != askPromise || from == joiner && kind != answerPromise}
		}
		g.Heal()
		g.Remove(remover, ipamsim.ByHand, donor)
		g.Run(time.Minute)
	})
}

// After its promise a survivor lends on what it has of the removed one, to somebody who has promised too: the
// coordinator cannot know, and must not write that block.
func TestWeakenedRestraint(t *testing.T) { // R11
	weakened(t, ipam.WithoutRestraint, 4, func(g *ground) {
		donor, remover, slow, lender := g.n(0), g.n(1), g.n(3), g.n(4)
		poor := g.Join(g.n(2), false, nil)
		lends, release := false, false
		g.Fate = func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
			gossip := kind == state || kind == digest
			switch {
			case from == slow && kind == answerPromise:
				return ipamsim.Fate{Lost: !release}
			case to == poor && kind == "answer ipam.spare":
				return ipamsim.Fate{Lost: !lends || from != lender}
			case to == poor && release, from == lender && gossip && lends, from == poor && gossip && lends:
				return ipamsim.Fate{Lost: true}
			}
			return ipamsim.Fate{}
		}
		g.Run(3 * time.Second)
		g.Kill(donor)
		g.Remove(remover, ipamsim.ByHand, donor)
		promised := func(m *ipamsim.Machine) bool {
			r := m.Up().Status().Reclaims
			return len(r) == 1 && r[0].View > 0
		}
		g.wait("promises", time.Minute, func() bool { return promised(lender) && promised(poor) && promised(slow) })
		lends = true
		g.wait("a grant after the promise", 2*time.Minute, func() bool { return len(blocks(lender, poor)) > 0 && len(blocks(poor, poor)) > 0 })
		release = true
		g.Run(time.Minute)
	})
}

// Two issuers remove the same member at once. One survivor's promise is the last that both wait for.
func TestWeakenedNumbers(t *testing.T) { // R6
	weakened(t, ipam.WithoutNumbers, 4, func(g *ground) {
		victim, slow := g.n(4), g.n(3)
		release := false
		g.Fate = func(from, _ *ipamsim.Machine, kind string) ipamsim.Fate {
			gossip := kind == state || kind == digest || kind == "ipam.push"
			return ipamsim.Fate{Lost: gossip || from == slow && kind == answerPromise && !release}
		}
		g.Kill(victim)
		g.Remove(g.n(0), ipamsim.ByHand, victim)
		g.Remove(g.n(1), ipamsim.ByHand, victim)
		g.Run(2 * time.Minute) // by then the second one has lost its patience with the first
		release = true
		g.Run(30 * time.Second)
	})
}

// A survivor asks the removed one what it knows, shortly before it promises; the answer comes after all is complete.
func TestWeakenedSyncRefusal(t *testing.T) { // R9
	weakened(t, ipam.WithoutSyncRefusal, 4, func(g *ground) {
		donor := g.n(0)
		joiner := g.Join(g.n(1), false, nil)
		g.Fate = func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
			gossip := kind == state || kind == digest
			return ipamsim.Fate{
				Lost: from == donor && (gossip || kind == answerGrant) || from != donor && to == joiner && kind == "answer ipam.spare" ||
					gossip && to == joiner,
			}
		}
		g.lends(donor, joiner)
		g.Kill(joiner)
		known := g.Fate
		g.Fate = func(from, to *ipamsim.Machine, kind string) ipamsim.Fate {
			f := known(from, to, kind)
			if from == donor && to == joiner && kind == "answer ipam.sync" {
				f.Late = 1800 * time.Millisecond
			}
			f.Lost = f.Lost || to == joiner && kind == "ipam.push"
			return f
		}
		g.Start(joiner)
		g.Run(20 * time.Millisecond)
		g.Kill(donor)
		for _, m := range []*ipamsim.Machine{g.n(1), joiner} { // it hears of it on some way
			g.Remove(m, ipamsim.ByHand, donor)
		}
		g.Run(time.Minute)
	})
}

// One voter has promised that another one is removed, and heard no more of it; then it is removed itself, and so is a machine that
// is down. These three come up again away from who knows: two voters of three, of whom one knows that the other is none any more.
//
// Two rules keep their start from being confirmed, each by itself: a view names who was removed while the others promised, and
// answers to a start bring the roster. Where that cannot be saved they do not count.
func TestWeakenedSyncRoster(t *testing.T) { // R4, R10
	story := func(g *ground, full int) {
		leader, promises, other := g.n(0), g.n(1), g.n(2)
		victim := g.grow(false)
		g.Kill(victim)
		g.Kill(other)
		g.Fate = func(_, to *ipamsim.Machine, kind string) ipamsim.Fate {
			gossip := kind == state || kind == digest || kind == "roster" || kind == "ipam.push"
			return ipamsim.Fate{Lost: to == promises && gossip || to == victim && kind == askPromise} // so a round takes 2 s
		}
		g.Remove(leader, ipamsim.ByHand, other)
		g.wait("the promise", time.Second, func() bool { return len(promises.Up().Status().Reclaims) > 0 })
		g.Kill(promises)
		g.Remove(leader, ipamsim.ByHand, promises, victim)
		g.Until(time.Minute, func() bool { // in vain where the first view has to name all
			fenced := leader.Up().Fenced()
			return fenced.Has(other.ID()) && fenced.Has(promises.ID()) && len(blocks(leader, victim)) == 0
		})
		g.Fate = func(_, _ *ipamsim.Machine, kind string) ipamsim.Fate {
			return ipamsim.Fate{Lost: kind == state || kind == digest || kind == "roster"}
		}
		g.Part([]*ipamsim.Machine{leader})
		for _, m := range []*ipamsim.Machine{promises, other, victim} {
			g.Fill(m, full)
			g.Start(m)
		}
		g.Run(30 * time.Second)
	}
	play := func(g *ground) { story(g, 0) }
	weakened(t, ipam.WithoutSyncRoster|ipam.WithoutRecount, 2, play)
	if err := lived(t, 99, ipam.WithoutRecount, false, 2, play); err != nil {
		t.Errorf("with one rule of two: %v", err)
	}
	full := func(g *ground) { story(g, 1000) }
	if err := lived(t, 99, ipam.WithoutRecount, false, 2, full); err != nil {
		t.Errorf("with rosters that cannot be saved: %v", err)
	}
}

// Two of four voters, one of them the oldest, confirm a start of the oldest, which was removed while it was down, and do not know
// of that. A fifth joins by the same two. Then the other witness is lost, and the fifth makes a quorum of three with those who know
// of the removal and of no start since.
func TestWeakenedTeaching(t *testing.T) { // R7, R10
	weakened(t, ipam.WithoutTeaching, 3, func(g *ground) {
		oldest, leader, witness := g.n(0), g.n(1), g.n(2)
		g.Kill(oldest)
		g.Part([]*ipamsim.Machine{oldest, witness})
		g.Remove(leader, ipamsim.ByHand, oldest)
		g.Start(oldest)
		g.wait("a start is confirmed", 20*time.Second, func() bool { return oldest.Up().Status().Confirmed })
		g.Fate = func(from, _ *ipamsim.Machine, kind string) ipamsim.Fate { // nobody hears of the start from who started
			return ipamsim.Fate{Lost: from == oldest && kind == askSync}
		}
		fifth := g.Join(witness, true, nil)
		g.wait("a fifth joins", 20*time.Second, func() bool { return fifth.Up() != nil })
		g.Run(3 * time.Second)
		g.Kill(witness)
		g.Part([]*ipamsim.Machine{oldest})
		g.Remove(leader, ipamsim.ByHand, witness)
		g.Run(30 * time.Second)
	})
}

// The key of the founder is stolen. After its removal the thief writes rivals of what the founder once gave away.
func TestWeakenedRivals(t *testing.T) { // R9, I11
	weakened(t, ipam.WithoutRefusal, 3, func(g *ground) {
		thief, victim := g.n(0), g.n(2)
		u, err := ring.NewUniverse([32]byte{1}, thief.ID(), []ring.Pool{{Prefix: netip.MustParsePrefix("10.0.0.0/22"), AtomBits: 28}})
		if err != nil {
			g.t.Fatal(err)
		}
		rivals := ring.New(u)
		for _, to := range []*ipamsim.Machine{thief, g.n(3)} {
			if rivals, _, err = rivals.Grant(thief.Signer(), blocks(victim, victim)[0], to.ID()); err != nil {
				g.t.Fatal(err)
			}
		}
		g.Kill(thief)
		g.Remove(g.n(1), ipamsim.Stolen, thief)
		g.wait("the removal", time.Minute, func() bool { return g.gone(thief) })
		_ = g.n(1).Up().Merge(rivals.Encode())
		g.Run(time.Second)
	})
}

// TestWeakenedJoin lets a sponsor admit on its own (R12): only the donor knows the joiner, and the donor dies.
func TestWeakenedJoin(t *testing.T) {
	weakened(t, 0, 4, func(g *ground) {
		donor := g.n(0)
		g.Part([]*ipamsim.Machine{donor}, []*ipamsim.Machine{})
		joiner := g.Join(donor, false, nil)
		g.Part([]*ipamsim.Machine{donor, joiner})
		g.Run(20 * time.Second)
		g.Kill(donor)
		g.Part([]*ipamsim.Machine{joiner})
		g.Remove(g.n(1), ipamsim.ByHand, donor)
		g.Run(time.Minute)
	})
}

// TestWeakenedIdentity gives an identity a second life without its disk's last state (R3), which ipam can only notice: it
// must never serve from what it had.
func TestWeakenedIdentity(t *testing.T) {
	story(t, 4, ipamsim.Setup{Seed: 98, Strict: true}, func(g *ground) {
		m := g.n(0)
		g.Save(m)
		for i := range 3 {
			g.mustClaim(m, fmt.Sprint(i))
		}
		g.grow(false)
		g.SetBack(m)
		g.Start(m)
		answered := false
		g.Claim(m, "new", netip.Addr{}, func(a netip.Addr, err error) {
			if answered = true; err == nil {
				t.Errorf("%s was given", a)
			}
		})
		g.wait("an answer", 10*time.Second, func() bool { return answered })
	})
}
