package ipamsim

import (
	"bufio"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Plan is all that a life depends on. Its text is what String prints and Parse reads.
type Plan struct {
	Seed    uint64
	Bits    int // length of the pool's prefix, of IPv6 where it is above 32; atoms have 16 addresses
	Strict  bool
	Weather Weather
	Gossip  time.Duration
	Steps   []Step
}

// Step is something that people or fate do. A and B choose machines, and N is whatever the verb counts; each is taken
// modulo what there is, so that a step stays one when others are taken away.
type Step struct {
	After time.Duration // since the step before
	Verb  Verb
	A     int
	B     int
	N     int
}

// Verb is what a step does.
type Verb string

// The verbs. A machine that a verb does not fit, because it is up or down or not there, is left alone.
const (
	DoJoin     Verb = "join"      // a new machine asks A to become a member: a voter where N is even
	DoClaim    Verb = "claim"     // container N at A
	DoClaimAt  Verb = "claim-at"  // the Nth address of A's blocks
	DoRelease  Verb = "release"   // container N at A
	DoKill     Verb = "kill"      // A's process
	DoStop     Verb = "stop"      // A, in good order
	DoStart    Verb = "start"     // A
	DoStartAll Verb = "start-all" // all that are down
	DoRestart  Verb = "restart"   // A
	DoTrap     Verb = "trap"      // A dies at one of its next commits: N bit 0 says durable or not, the others count
	DoFail     Verb = "fail"      // one of A's next commits fails, and up to 7 rosters cannot be saved
	DoWipe     Verb = "wipe"      // A's disk is lost: its identity never comes back
	DoSave     Verb = "save"      // a snapshot of A's disk
	DoSetBack  Verb = "set-back"  // A starts from its snapshot
	DoCopy     Verb = "copy"      // a second machine starts from A's snapshot
	DoLeave    Verb = "leave"     // A gives all back and goes
	DoRemove   Verb = "remove"    // at A the machine B, which is down, is removed by hand
	DoSilence  Verb = "silence"   // A removes all that it cannot reach
	DoSteal    Verb = "steal"     // A removes B, which may be running, as stolen
	DoForce    Verb = "force"     // A finishes its removals without those who do not answer
	DoPart     Verb = "part"      // two sides: machine i is on the side that bit i of N says
	DoCut      Verb = "cut"       // the way from A to B, not back
	DoHeal     Verb = "heal"
	DoClock    Verb = "clock" // A's wall clock is set by N-128 times 12 minutes: by a day or less
)

// weights of the verbs in a drawn plan; dangerous ones come in some plans only.
var weights = []struct {
	verb   Verb
	weight int
}{
	{DoClaim, 30},
	{DoRelease, 10},
	{DoClaimAt, 4},
	{DoJoin, 6},
	{DoKill, 6},
	{DoStop, 2},
	{DoStart, 8},
	{DoStartAll, 3},
	{DoRestart, 6},
	{DoTrap, 6},
	{DoFail, 2},
	{DoWipe, 2},
	{DoLeave, 2},
	{DoRemove, 5},
	{DoSilence, 4},
	{DoSteal, 1},
	{DoPart, 6},
	{DoCut, 3},
	{DoHeal, 8},
}

const (
	manyMachines = 200
	manyEvery    = 200 // one plan in so many is of many machines
	sixEvery     = 8   // and one has an IPv6 pool
)

// Draw makes the plan of a seed.
func Draw(seed uint64) Plan {
	d := mix(seed, 'p')
	if seed%manyEvery == manyEvery-1 {
		return drawMany(seed, &d)
	}
	p := Plan{
		Seed: seed, Bits: pick(&d, 22, 23, 24, 24), Strict: d.chance(0.4),
		Gossip: pick(&d, time.Second, 3*time.Second, 8*time.Second),
		Weather: Weather{
			Loss: pick(&d, 0, 0.05, 0.2), Twice: pick(&d, 0, 0.1), Late: pick(&d, 0, 0, 0.02, 0.1),
			Delay: pick(&d, 5*time.Millisecond, 100*time.Millisecond, 1500*time.Millisecond),
		},
	}
	if seed%sixEvery == sixEvery-1 {
		p.Bits += 128 - 32
	}
	machines := 3 + d.n(5)
	for range machines - 1 {
		p.Steps = append(p.Steps, Step{d.span(4 * time.Second), DoJoin, d.n(100), 0, d.n(5)})
	}
	verbs := weights
	if d.chance(0.08) {
		verbs = append(slices.Clone(verbs), []struct {
			verb   Verb
			weight int
		}{{DoSave, 6}, {DoSetBack, 3}, {DoCopy, 2}}...)
	}
	if d.chance(0.08) {
		verbs = append(slices.Clone(verbs), struct {
			verb   Verb
			weight int
		}{DoForce, 4})
	}
	if clocks := mix(seed, 'w'); clocks.chance(0.3) { // with chance of its own: the other plans are as they were
		verbs = append(slices.Clone(verbs), struct {
			verb   Verb
			weight int
		}{DoClock, 6})
	}
	sum := 0
	for _, v := range verbs {
		sum += v.weight
	}
	for range 20 + d.n(40) {
		if d.chance(0.06) {
			p.Steps = append(p.Steps, motif(&d)...)
		}
		k := d.n(sum)
		var verb Verb
		for _, v := range verbs {
			if k < v.weight {
				verb = v.verb
				break
			}
			k -= v.weight
		}
		after := d.span(3 * time.Second)
		if d.chance(0.06) {
			after = d.span(time.Minute)
		}
		p.Steps = append(p.Steps, Step{after, verb, d.n(100), d.n(100), d.n(256)})
	}
	return p
}

// motif is a few steps about the same machines that chance alone would seldom put in a row.
func motif(d *dice) []Step {
	x, a, sides := d.n(100), d.n(100), d.n(256)
	soon := func() time.Duration { return d.span(1500 * time.Millisecond) }
	switch d.n(6) {
	case 0: // the removed one comes back in the half that has not heard of it
		return []Step{
			{soon(), DoPart, 0, 0, sides},
			{soon(), DoKill, x, 0, 0},
			{soon(), DoRemove, a, x, 0},
			{soon(), DoRestart, x, 0, 0},
			{4 * time.Second, DoJoin, d.n(100), 0, 1},
			{4 * time.Second, DoHeal, 0, 0, 0},
		}
	case 1: // its last grants are known to nobody, and it is removed
		return []Step{
			{soon(), DoCut, x, d.n(100), 0},
			{soon(), DoCut, x, d.n(100), 0},
			{soon(), DoJoin, d.n(100), 0, 1},
			{soon(), DoTrap, x, 0, d.n(8)},
			{2 * time.Second, DoKill, x, 0, 0},
			{soon(), DoRemove, a, x, 0},
			{soon(), DoHeal, 0, 0, 0},
		}
	case 2: // two remove the same in two halves
		return []Step{
			{soon(), DoKill, x, 0, 0},
			{soon(), DoPart, 0, 0, sides},
			{soon(), DoRemove, a, x, 0},
			{soon(), DoSilence, a + 1, 0, 0},
			{4 * time.Second, DoHeal, 0, 0, 0},
		}
	case 3: // the remover dies in between, the removed one starts
		return []Step{
			{soon(), DoKill, x, 0, 0},
			{soon(), DoRemove, a, x, 0},
			{d.span(100 * time.Millisecond), DoTrap, a, 0, d.n(8)},
			{d.span(300 * time.Millisecond), DoRestart, x, 0, 0},
			{soon(), DoStartAll, 0, 0, 0},
		}
	case 4: // one after the other is removed while survivors die and come back
		y := d.n(100)
		return []Step{
			{soon(), DoKill, x, 0, 0},
			{soon(), DoRemove, a, x, 0},
			{d.span(50 * time.Millisecond), DoRestart, y, 0, 0},
			{soon(), DoKill, y, 0, 0},
			{soon(), DoRemove, a, y, 0},
			{d.span(50 * time.Millisecond), DoRestart, d.n(100), 0, 0},
		}
	default: // it is away, removed for silence, and goes on
		return []Step{
			{soon(), DoPart, 0, 0, 1 << (x % 8)},
			{soon(), DoSilence, a, 0, 0},
			{soon(), DoJoin, x, 0, 1},
			{soon(), DoClaim, x, 0, 3},
			{3 * time.Second, DoHeal, 0, 0, 0},
		}
	}
}

// drawMany is the plan of a large cluster: it grows, a fifth of it dies, the dead are removed, it goes on.
func drawMany(seed uint64, d *dice) Plan {
	p := Plan{Seed: seed, Bits: 20, Gossip: 30 * time.Second, Weather: Weather{Loss: 0.02, Delay: 50 * time.Millisecond}}
	for i := range manyMachines - 1 {
		n := 1
		if i < 5 || d.chance(0.05) {
			n = 0 // a voter
		}
		p.Steps = append(p.Steps, Step{d.span(60 * time.Millisecond), DoJoin, d.n(100), 0, n})
	}
	for range manyMachines / 5 {
		p.Steps = append(p.Steps, Step{d.span(50 * time.Millisecond), DoKill, d.n(manyMachines), 0, 0})
	}
	p.Steps = append(p.Steps, Step{5 * time.Second, DoSilence, 0, 0, 0}, Step{10 * time.Second, DoStartAll, 0, 0, 0})
	return p
}

// String is the plan as text.
func (p Plan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "plan %d bits=%d strict=%t loss=%g twice=%g late=%g delay=%s gossip=%s\n", p.Seed, p.Bits, p.Strict,
		p.Weather.Loss, p.Weather.Twice, p.Weather.Late, p.Weather.Delay, p.Gossip)
	for _, s := range p.Steps {
		fmt.Fprintf(&b, "%s %s %d %d %d\n", s.After, s.Verb, s.A, s.B, s.N)
	}
	return b.String()
}

// Parse reads what String wrote.
func Parse(text string) (Plan, error) {
	var p Plan
	lines := bufio.NewScanner(strings.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" {
			continue
		}
		var words [2]string
		var err error
		if p.Gossip == 0 {
			_, err = fmt.Sscanf(line, "plan %d bits=%d strict=%t loss=%g twice=%g late=%g delay=%s gossip=%s", &p.Seed, &p.Bits,
				&p.Strict, &p.Weather.Loss, &p.Weather.Twice, &p.Weather.Late, &words[0], &words[1])
			if err == nil {
				p.Weather.Delay, err = time.ParseDuration(words[0])
			}
			if err == nil {
				p.Gossip, err = time.ParseDuration(words[1])
			}
		} else {
			var s Step
			if _, err = fmt.Sscanf(line, "%s %s %d %d %d", &words[0], &words[1], &s.A, &s.B, &s.N); err == nil {
				s.Verb = Verb(words[1])
				s.After, err = time.ParseDuration(words[0])
			}
			p.Steps = append(p.Steps, s)
		}
		if err != nil {
			return Plan{}, fmt.Errorf("line %d of a plan: %w", n, err)
		}
	}
	return p, nil
}
