package mesh

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
)

// tape is a store whose machine can lose power at every byte that is written.
type tape struct {
	value  []byte
	left   int // bytes until then
	saves  int
	full   bool // appending fails without a trace
	failed error
}

var errPower = errors.New("no power")

func (s *tape) Load(string) ([]byte, error) { return bytes.Clone(s.value), nil }

// Save replaces all or nothing, as renaming a file does.
func (s *tape) Save(_ string, b []byte) error {
	if s.left -= len(b); s.left < 0 {
		return errPower
	}
	s.saves++
	s.value = bytes.Clone(b)
	return nil
}

func (s *tape) Append(_ string, size int, b []byte) error {
	switch {
	case size != len(s.value):
		s.failed = fmt.Errorf("added to %d bytes as if they were %d", len(s.value), size)
		return s.failed
	case s.full:
		return errors.New("disk full")
	}
	n := min(len(b), max(0, s.left))
	s.value = append(s.value, b[:n]...)
	if s.left -= len(b); s.left < 0 {
		return errPower
	}
	return nil
}

const plenty = 1 << 30

// best is what a roster keeps of all items.
func (s *stuff) best(t *testing.T) []byte {
	t.Helper()
	return s.roster(t, list(s.items...)).Snapshot()
}

func list(items ...[]byte) []byte {
	b := []byte{byte(listVersion)}
	for _, item := range items {
		b = appendItem(b, item)
	}
	return b
}

// keep gives a roster items one by one until the store fails, and tells how many were taken.
func (r *Roster) keep(items [][]byte) int {
	for i, item := range items {
		if r.AddRaw(item) != nil {
			return i
		}
	}
	return len(items)
}

func TestRosterIsWrittenAtItsEnd(t *testing.T) {
	s, disk := makeStuff(), &tape{left: plenty}
	all := s.roster(t, list(s.items...)).Digest()
	r, err := newRoster(s.cluster, disk, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := r.keep(s.items); n != len(s.items) {
		t.Fatalf("took %d of %d items", n, len(s.items))
	}
	if disk.saves != 1 || disk.failed != nil {
		t.Errorf("%d times all was written, want once; %v", disk.saves, disk.failed)
	}
	again, err := newRoster(s.cluster, disk, disk.value, nil)
	if err != nil || !bytes.Equal(again.Digest(), all) {
		t.Errorf("what was written is not what was taken: %v", err)
	}
}

// Power fails at every byte. What was said to be kept is there afterwards; the node goes on, and ends with all.
func TestRosterSurvivesPowerLoss(t *testing.T) {
	s := makeStuff()
	whole, memo := &tape{left: plenty}, NewMemo()
	r, _ := newRoster(s.cluster, whole, nil, memo)
	after := [][]byte{r.Digest()} // so many items
	for _, item := range s.items {
		r.keep([][]byte{item})
		after = append(after, r.Digest())
	}
	all := after[len(s.items)]
	for left := range plenty - whole.left {
		disk := &tape{left: left}
		r, _ := newRoster(s.cluster, disk, nil, memo)
		kept := r.keep(s.items)
		if kept == len(s.items) {
			t.Fatalf("power for %d bytes was enough for all", left)
		}
		disk.left = plenty
		again, err := newRoster(s.cluster, disk, disk.value, memo)
		if got := again.Digest(); !bytes.Equal(got, after[kept]) && !bytes.Equal(got, after[kept+1]) {
			t.Fatalf("power for %d bytes: %d items were kept, and are not there: %v", left, kept, err)
		}
		if again.keep(s.items); disk.failed != nil || !bytes.Equal(again.Digest(), all) {
			t.Fatalf("power for %d bytes: not all is there in the end; %v", left, disk.failed)
		}
		if last, err := newRoster(s.cluster, disk, disk.value, memo); err != nil || !bytes.Equal(last.Digest(), all) {
			t.Fatalf("power for %d bytes: after another start: %v", left, err)
		}
	}
}

// Bits flip on the disk, or its end is lost. What is good before is read; the node learns the rest, and what it writes then is good.
func TestRosterSurvivesADamagedDisk(t *testing.T) {
	s, memo := makeStuff(), NewMemo()
	good, best := list(s.items...), s.best(t)
	damaged := [][]byte{nil}
	for i := range good {
		flipped := slices.Clone(good)
		flipped[i] ^= 1 << (i % 8)
		damaged = append(damaged, flipped, good[:i])
	}
	for _, saved := range damaged {
		disk := &tape{value: slices.Clone(saved), left: plenty}
		r, err := newRoster(s.cluster, disk, saved, memo)
		if err != nil && bytes.Equal(saved, good) {
			t.Fatal(err)
		}
		r.keep(s.items)
		if disk.failed != nil {
			t.Fatal(disk.failed)
		}
		again, err := newRoster(s.cluster, disk, disk.value, memo)
		// A flipped item of a kind that nobody knows is one more of them.
		if !bytes.Equal(again.Digest(), r.Digest()) || !r.holds(best) {
			t.Fatalf("%d bytes, not good: what was learnt is not on the disk: %v", len(saved), err)
		}
	}
}

// A disk that takes no addition gets all of it, and so does one that holds mostly what is outdated.
func TestRosterIsWrittenAnew(t *testing.T) {
	s := makeStuff()
	disk := &tape{left: plenty, full: true}
	r, _ := newRoster(s.cluster, disk, nil, nil)
	if n := r.keep(s.items); n != len(s.items) || disk.saves < n/2 {
		t.Errorf("%d of %d items taken, written anew %d times", n, len(s.items), disk.saves)
	}
	a := archive{store: disk, size: len(disk.value)}
	disk.full, disk.saves = false, 0
	live := list(s.items[0])
	for range 2000 {
		if err := a.keep([]entry{{raw: s.items[0]}}, len(live), func() []byte { return live }); err != nil {
			t.Fatal(err)
		}
		if most := 2*len(live) + archiveSlack; len(disk.value) > most {
			t.Fatalf("%d bytes are stored for %d", len(disk.value), len(live))
		}
	}
	if disk.saves == 0 || disk.saves > 2000*len(live)/archiveSlack+1 {
		t.Errorf("written anew %d times", disk.saves)
	}
}
