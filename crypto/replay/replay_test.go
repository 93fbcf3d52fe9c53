package replay

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// model is the definition: everything accepted, ever.
type model struct {
	top  uint64
	any  bool
	seen map[uint64]bool
}

func (m *model) accept(c uint64) bool {
	if m.any && c <= m.top && (m.seen[c] || m.top-c >= Size) {
		return false
	}
	if !m.any || c > m.top {
		m.top, m.any = c, true
	}
	m.seen[c] = true
	return true
}

func TestWindowMatchesModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w, m := Window{}, model{seen: map[uint64]bool{}}
		next := rapid.OneOf(rapid.Uint64Range(0, 3*Size), rapid.Just(uint64(math.MaxUint64-2*Size))).Draw(t, "start")
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			step := rapid.OneOf(
				rapid.Int64Range(-3, 3),
				rapid.Int64Range(-70, 130),
				rapid.Int64Range(-Size-2, Size+2),
				rapid.Int64Range(Size, 5*Size),
			).Draw(t, "step")
			c := next + uint64(step) // wraps: far jumps are wanted
			refused := w.Refuses(c)
			got, want := w.Accept(c), m.accept(c)
			if refused == got {
				t.Fatalf("Refuses(%d) = %v before Accept says %v", c, refused, got)
			}
			if got != want {
				t.Fatalf("Accept(%d) = %v, want %v; top %d", c, got, want, m.top)
			}
			if top, ok := w.Top(); top != m.top || ok != m.any {
				t.Fatalf("Top() = %d, %v, want %d, %v", top, ok, m.top, m.any)
			}
			if m.top-next < 1<<40 {
				next = m.top
			}
		}
	})
}

func TestWindowEdges(t *testing.T) {
	type step struct {
		counter uint64
		want    bool
	}
	for name, steps := range map[string][]step{
		"zero is a counter":             {{0, true}, {0, false}, {1, true}, {0, false}},
		"the oldest place is usable":    {{Size, true}, {1, true}, {1, false}, {0, false}},
		"one step too old":              {{5, true}, {5 + Size, true}, {5, false}, {6, true}},
		"a jump forgets nothing needed": {{10, true}, {10 + Size - 1, true}, {10, false}, {11, true}},
		"a far jump clears":             {{1, true}, {1 << 50, true}, {1<<50 - Size + 1, true}, {1<<50 - Size, false}},
		"the end of the range":          {{math.MaxUint64, true}, {math.MaxUint64, false}, {math.MaxUint64 - 1, true}, {0, false}},
	} {
		t.Run(name, func(t *testing.T) {
			var w Window
			for _, s := range steps {
				if got := w.Accept(s.counter); got != s.want {
					t.Fatalf("Accept(%d) = %v, want %v", s.counter, got, s.want)
				}
			}
		})
	}
}

func TestAcceptDoesNotAllocate(t *testing.T) {
	var w Window
	var c uint64
	if n := testing.AllocsPerRun(1000, func() { c += 3; w.Accept(c); w.Accept(c - 1) }); n != 0 {
		t.Errorf("%v allocations per run, want 0", n)
	}
}

func BenchmarkAccept(b *testing.B) {
	var w Window
	var c uint64
	for b.Loop() {
		c++
		w.Accept(c)
	}
}
