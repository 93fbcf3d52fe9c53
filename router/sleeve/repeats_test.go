package sleeve

import (
	"encoding/binary"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"weft/crypto/noise"
)

// shake is an initiation as far as repeats look at it.
func shake(b []byte, key uint32) []byte {
	b[0] = noise.TypeInitiation
	binary.BigEndian.PutUint32(b[4:], key)
	return b
}

// TestRecordingsAreToldFromNewHandshakes plays floods of recordings, mixed with handshakes that come once or in a burst: all
// recordings are found however many others pass, nothing else is, and what is remembered stays small.
func TestRecordingsAreToldFromNewHandshakes(t *testing.T) {
	const listed = 200
	rapid.Check(t, func(t *rapid.T) {
		var (
			r        repeats
			recorded = uint32(rapid.SampledFrom([]int{0, 1, 2, 7, 64, listed, listed + 1}).Draw(t, "recordings"))
			others   = rapid.IntRange(0, 2).Draw(t, "new ones for each recording")
			burst    = rapid.IntRange(1, repeatMost).Draw(t, "copies of a new one")
			next     = uint32(1 << 20)
			b        = make([]byte, noise.MinInitiation)
		)
		for range 8 * repeatMost {
			for key := range recorded {
				r.again(shake(b, key))
				for range others {
					if r.again(shake(b, next)) {
						t.Fatal("a handshake that never came before is taken for a recording")
					}
					next++
				}
			}
			if len(r.seen) > repeatTable {
				t.Fatalf("%d are remembered", len(r.seen))
			}
		}
		for copy := range burst {
			if r.again(shake(b, next)) {
				t.Fatalf("the %d. copy in a burst is taken for a recording", copy+1)
			}
		}
		worst := r.worst(listed)
		if want := min(int(recorded), listed); len(worst) != want || !slices.IsSorted(worst) {
			t.Fatalf("of %d recordings %d are found", recorded, len(worst))
		}
		for _, key := range worst {
			if key >= recorded || !r.again(shake(b, key)) {
				t.Fatalf("%#x is no recording", key)
			}
		}
	})
}

// TestManyRecordingsFillNothing: who has recorded more than can be remembered is met by the sieve; what is remembered stays small.
func TestManyRecordingsFillNothing(t *testing.T) {
	r, b := repeats{}, make([]byte, noise.MinInitiation)
	for range repeatMost / 8 {
		for key := range uint32(10 * repeatTable) {
			r.again(shake(b, key))
			if len(r.seen) > repeatTable {
				t.Fatalf("%d are remembered", len(r.seen))
			}
		}
	}
	if n := len(r.worst(5)); n > 5 {
		t.Fatalf("%d are listed", n)
	}
}
