package ipam

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// The test below starts this program again, with the file to write to in this variable.
const writerVariable = "WEFT_TEST_BOLT_WRITER"

// spread writes number n to three tables in one transaction, and takes out number n-8.
func spread(n uint64) []Op {
	key := binary.BigEndian.AppendUint64(nil, n)
	value := make([]byte, 100+n%900)
	binary.BigEndian.PutUint64(value, n)
	ops := []Op{{tableMeta, []byte("n"), key}, {tableClaim, key, value}, {tableGrant, key, value}}
	if n > 8 {
		old := binary.BigEndian.AppendUint64(nil, n-8)
		ops = append(ops, Op{Table: tableClaim, Key: old}, Op{Table: tableGrant, Key: old})
	}
	return ops
}

// TestBoltWriter is the process that is killed: it says what is durable, for ever.
func TestBoltWriter(t *testing.T) {
	path := os.Getenv(writerVariable)
	if path == "" {
		t.Skip("this is the process that TestKilledInMidWrite kills")
	}
	b := openBolt(t, path)
	for n := lastOf(t, b) + 1; ; n++ {
		if err := b.Commit(spread(n)); err != nil {
			t.Fatal(err)
		}
		fmt.Println(n)
	}
}

// lastOf reads the number of the last transaction, and checks that it is there as a whole and none after it.
func lastOf(t *testing.T, b *Bolt) (last uint64) {
	t.Helper()
	counts := make(map[Table]int)
	var newest uint64
	if err := b.Load(func(table Table, _, value []byte) error {
		counts[table]++
		if table == tableMeta {
			last = binary.BigEndian.Uint64(value)
		} else {
			newest = max(newest, binary.BigEndian.Uint64(value))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := int(min(last, 8)); counts[tableClaim] != want || counts[tableGrant] != want || newest != last {
		t.Fatalf("after transaction %d there are %v, the newest of %d", last, counts, newest)
	}
	return last
}

func TestKilledInMidWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ipam.db")
	b := openBolt(t, path) // makes the file
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestBoltWriter$", "-test.v")
		cmd.Env = append(os.Environ(), writerVariable+"="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said uint64
		lives := 5 + rand.IntN(60)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			var n uint64
			if _, err := fmt.Sscan(lines.Text(), &n); err != nil {
				continue
			}
			said = n
			if lives--; lives == 0 {
				// Somewhere within the transactions that follow.
				time.AfterFunc(time.Duration(rand.IntN(2000))*time.Microsecond, func() { _ = cmd.Process.Kill() })
			}
		}
		if err := cmd.Wait(); err == nil || said == 0 {
			t.Fatalf("the writer ended by itself after %d: %v", said, err)
		}
		b := openBolt(t, path)
		if last := lastOf(t, b); last < said {
			t.Fatalf("transaction %d was durable, and the last one is %d", said, last)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFlippedBitsAndCutsAreNoticed damages a file in one place at a time: what can be read afterwards is what was
// written, or nothing can.
func TestFlippedBitsAndCutsAreNoticed(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "good")
	b := openBolt(t, path)
	for n := range uint64(60) {
		if err := b.Commit(spread(n + 1)); err != nil {
			t.Fatal(err)
		}
	}
	contents := func(b *Bolt) (map[string]string, error) {
		all := make(map[string]string)
		err := b.Load(func(table Table, key, value []byte) error {
			all[string(table)+string(key)] = string(value)
			return nil
		})
		return all, err
	}
	want, err := contents(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	refused, right := 0, 0
	try := func(what string, damaged []byte) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "bad") // a file of its own: bbolt keeps some locked after an error
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		b, err := OpenBolt(path)
		var have map[string]string
		if err == nil {
			have, err = contents(b)
			if e := guard(path, b.Close); err == nil {
				err = e
			}
		}
		switch {
		case errors.Is(err, ErrDamaged):
			refused++
		case err != nil:
			t.Errorf("%s: not called damage: %v", what, err)
		case maps.Equal(have, want):
			right++
		default:
			t.Errorf("%s: reads something else without a word", what)
		}
	}
	for range 600 {
		bad := append([]byte(nil), good...)
		at, bit := random.IntN(len(bad)), random.IntN(8)
		bad[at] ^= 1 << bit
		try(fmt.Sprintf("bit %d of byte %d flipped", bit, at), bad)
	}
	for range 40 {
		n := random.IntN(len(good))
		try(fmt.Sprintf("cut to %d bytes", n), good[:n])
	}
	t.Logf("%d refused, %d read as they were written", refused, right)
	if refused < 40 || right < 40 {
		t.Error("the damage was of one kind only")
	}
}
