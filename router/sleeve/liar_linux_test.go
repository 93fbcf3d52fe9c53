package sleeve

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"weft/crypto/seal"
)

// A relay passes what it carries on in any order and any number of times, each time sealed anew as its own: each packet is taken
// once, and none is refused that was not taken before. What has been passed twice is counted as such.
func TestARelayThatRepeatsAndReorders(t *testing.T) {
	p := newLone(t, seal.AES256GCM, full)
	k, direct := p.r.link.current, p.r.sending.Load()
	rapid.Check(t, func(rt *rapid.T) {
		p.r.sending.Store(direct) // what the relay brought has turned it to the relay, which nobody here can reach
		var frames [][]byte
		for i := range rapid.IntRange(1, 40).Draw(rt, "packets") {
			v, b := vnet{}, udpPacket(p.src, p.dst, fmt.Appendf(nil, "packet %d", i))
			if rapid.Bool().Draw(rt, "large") {
				v, b = superPacket(p.src, p.dst, protoTCP, 1200, make([]byte, 5000))
			}
			run, size := p.sealed(v, b)
			for d := range slices.Chunk(run, size) {
				frames = append(frames, d)
			}
		}
		var schedule []int
		for i := range frames {
			for range rapid.SampledFrom([]int{0, 1, 1, 1, 2, 3}).Draw(rt, "times") {
				schedule = append(schedule, i)
			}
		}
		if len(schedule) > 0 {
			schedule = rapid.Permutation(schedule).Draw(rt, "order")
		}
		distinct := map[int]bool{}
		taken, replays, others := p.r.rx.packets.Load(), p.r.drops[dropReplay].Load(), p.r.drops[dropUnauthentic].Load()
		for _, i := range schedule {
			distinct[i] = true
			b, err := k.seal(nil, meta{kind: kindRelayed, place: legDown}, slices.Concat(p.r.id[:], frames[i]))
			if err != nil {
				rt.Fatal(err)
			}
			p.arrive(b, len(b), 0, time.Now())
		}
		if got := p.r.rx.packets.Load() - taken; got != uint64(len(distinct)) {
			rt.Fatalf("%d of %d frames were taken, which came %d times: %v", got, len(distinct), len(schedule), p.r.drops.snapshot())
		}
		if got := p.r.drops[dropReplay].Load() - replays; got != uint64(len(schedule)-len(distinct)) {
			rt.Fatalf("%d repeated frames were refused, %d were sent: %v", got, len(schedule)-len(distinct), p.r.drops.snapshot())
		}
		if n := p.r.drops[dropUnauthentic].Load() - others; n != 0 {
			rt.Fatalf("%d frames did not open", n)
		}
	})
}
