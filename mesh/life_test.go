package mesh_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"weft/mesh"
	"weft/mesh/peer"
)

func TestNodeRestartsWithItsDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(5)
		w.settle(5 * time.Second)
		n := w.nodes[2]
		before, _ := n.mesh.Record(n.id())
		n.stop()
		time.Sleep(time.Minute)
		for _, other := range w.nodes {
			if info, _ := other.mesh.Peer(n.id()); other != n && info.State != peer.Dead {
				t.Errorf("%s says the stopped node is %s", other.name, info.State)
			}
		}
		n.items, n.seeds = nil, nil // what it knows is on its disk
		n.start()
		if got := len(n.mesh.Roster().Members()); got != 5 {
			t.Errorf("it remembers %d members", got)
		}
		if got := n.mesh.Stats().RecordsStored; got != 5 {
			t.Errorf("it remembers %d records", got)
		}
		t.Logf("back after %v", w.settle(5*time.Second))
		if after, _ := n.mesh.Record(n.id()); after.Epoch != before.Epoch {
			t.Errorf("saying nothing new took epoch %d to %d", before.Epoch, after.Epoch)
		}
	})
}

func TestNodeThatLostItsDiskIsANewNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(5 * time.Second)
		old := w.nodes[2]
		old.stop()
		w.join(w.nodes[1])
		alive := []*node{w.nodes[0], w.nodes[1], w.nodes[3]}
		w.within(5*time.Second, func() string { return w.settled(alive) })
		time.Sleep(time.Minute)
		for _, n := range alive {
			if info, ok := n.mesh.Peer(old.id()); !ok || info.State != peer.Dead || !info.Known {
				t.Errorf("%s says of the lost one: %v %+v", n.name, ok, info)
			}
			if got := len(n.mesh.Roster().Voters()); got != 4 {
				t.Errorf("%s counts %d voters: a rumour must not remove one", n.name, got)
			}
		}
	})
}

func TestWholeClusterStartsCold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		if mesh.RaceEnabled {
			w.form(8)
		} else {
			w.form(30)
		}
		w.settle(20 * time.Second)
		for _, n := range w.nodes {
			n.stop()
			n.items, n.seeds = nil, nil
		}
		time.Sleep(time.Hour)
		for _, i := range rand.Perm(len(w.nodes)) {
			w.nodes[i].start()
			time.Sleep(rand.N(300 * time.Millisecond))
		}
		t.Logf("together after %v", w.settle(20*time.Second))
	})
}

func TestRecordOfARestoredDiskIsMadeNewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(5 * time.Second)
		n := w.nodes[1]
		backup := n.store.copy()
		for mtu := range 5 {
			if err := n.mesh.Publish(func(r *mesh.Record) { r.MTU = 1300 + mtu }); err != nil {
				t.Fatal(err)
			}
		}
		w.settle(time.Second)
		high, _ := n.mesh.Record(n.id())
		n.stop()
		n.store = backup
		n.record.MTU = 1234
		n.start()
		if low, _ := n.mesh.Record(n.id()); low.Epoch >= high.Epoch {
			t.Fatalf("the backup is not old: epoch %d, before %d", low.Epoch, high.Epoch)
		}
		w.settle(10 * time.Second)
		for _, other := range w.nodes {
			info, _ := other.mesh.Peer(n.id())
			if info.Epoch <= high.Epoch || info.MTU != 1234 {
				t.Errorf("%s holds epoch %d with mtu %d, want above %d with 1234", other.name, info.Epoch, info.MTU, high.Epoch)
			}
		}
		n.stop()
		n.start() // and that was saved
		if again, _ := n.mesh.Record(n.id()); again.Epoch <= high.Epoch {
			t.Errorf("after another start the epoch is %d", again.Epoch)
		}
	})
}

func TestNothingSpreadsThatWasNotSaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(5 * time.Second)
		n := w.nodes[0]
		full := errors.New("disk full")
		n.store.mu.Lock()
		n.store.fail = full
		n.store.mu.Unlock()
		key := newKey(t)
		cert := w.certify(key, 9)
		if err := n.mesh.Roster().Add(cert); !errors.Is(err, full) {
			t.Errorf("adding to a full disk: %v", err)
		}
		if err := n.mesh.Publish(func(r *mesh.Record) { r.MTU = 9000 }); !errors.Is(err, full) {
			t.Errorf("publishing on a full disk: %v", err)
		}
		time.Sleep(time.Minute)
		for _, other := range w.nodes {
			if other.mesh.Roster().Has(key.ID()) {
				t.Errorf("%s knows what was not saved", other.name)
			}
			if info, _ := other.mesh.Peer(n.id()); info.MTU == 9000 {
				t.Errorf("%s has a record that was not saved", other.name)
			}
		}
		// Another node learns it; the first takes it over once it can save.
		if err := w.nodes[1].mesh.Roster().Add(cert); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if n.mesh.Roster().Has(key.ID()) {
			t.Error("the full disk took it")
		}
		n.store.mu.Lock()
		n.store.fail = nil
		n.store.mu.Unlock()
		w.within(time.Minute, func() string {
			if !n.mesh.Roster().Has(key.ID()) {
				return "not taken over"
			}
			return ""
		})
	})
}

func TestLeaveIsNoticedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(4)
		w.settle(5 * time.Second)
		n := w.nodes[3]
		if err := n.mesh.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		took := w.within(2*time.Second, func() string {
			for _, other := range w.nodes[:3] {
				if info, _ := other.mesh.Peer(n.id()); info.State != peer.Dead {
					return other.name + " says it is " + info.State.String()
				}
			}
			return ""
		})
		t.Logf("known after %v", took)
		n.stop()
		if err := n.mesh.Leave(t.Context()); err == nil {
			t.Error("leaving after the end is no error")
		}
		n.start()
		w.settle(5 * time.Second)
	})
}

func TestHintIsFollowedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(6)
		w.settle(5 * time.Second)
		left, right := w.nodes[:3], w.nodes[3:]
		w.net.Split(w.ids(left), w.ids(right))
		time.Sleep(10 * time.Minute)
		w.net.Mend()
		left[0].mesh.Hint(right[0].id())
		took := w.settle(3 * time.Second)
		t.Logf("settled after %v", took)
	})
}

// One machine that is gone for good is looked for by all, about once a second together.
func TestLookingForTheMissingIsThinned(t *testing.T) {
	if mesh.RaceEnabled {
		t.Skip("too long for the race detector; runs without it")
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(30)
		w.settle(20 * time.Second)
		w.nodes[7].stop()
		time.Sleep(2 * time.Minute)
		before := w.net.Stats()
		time.Sleep(5 * time.Minute)
		perSecond := float64(w.net.Stats().Dials-before.Dials) / 300
		// Beside the tries, every node makes a state exchange each 30 s.
		perSecond -= float64(w.net.Stats().Streams-before.Streams) / 300
		if perSecond < 0.5 || perSecond > 1.5 {
			t.Errorf("the missing node is tried %.2f times a second", perSecond)
		}
	})
}

func TestStrangersAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(5 * time.Second)
		n := w.nodes[0]
		key := newKey(t)
		port := w.net.Port(key.ID())
		before := n.mesh.Stats()
		send(t, port, n.id(), []byte{1, 2, 3})
		send(t, port, n.id(), []byte{2, 0x10})
		for _, kind := range []byte{mesh.StreamCall, mesh.StreamGossip} {
			conn, err := port.Dial(t.Context(), n.id(), kind)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("a stranger's stream of kind %q got %d bytes", kind, got)
			}
			conn.Close()
		}
		synctest.Wait()
		if got := n.mesh.Stats().Refused - before.Refused; got != 4 {
			t.Errorf("%d refusals, want 4", got)
		}
		if _, err := n.mesh.Call(t.Context(), key.ID(), "echo", nil); !errors.Is(err, mesh.ErrNotMember) {
			t.Errorf("calling a stranger: %v", err)
		}
		// The certificate that it shows makes it a member for all.
		if err := n.mesh.Roster().Add(w.certify(key, 3)); err != nil {
			t.Fatal(err)
		}
		w.within(time.Second, func() string {
			for _, other := range w.nodes {
				if !other.mesh.Roster().Has(key.ID()) {
					return other.name + " does not know it"
				}
			}
			return ""
		})
	})
}

func TestFloodIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(5 * time.Second)
		bad, good := w.nodes[2], w.nodes[0]
		before := good.mesh.Stats()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		// A member that tells other digests all the time, rubbish, and gossip.
		rnd := rand.New(rand.NewPCG(1, 1))
		for i := 0; ctx.Err() == nil; i++ {
			b := make([]byte, 100)
			for j := range b {
				b[j] = byte(rnd.Uint32())
			}
			switch i % 4 {
			case 0: // "counter" has another digest
				head := []byte{2, 0x10, 0, 2, 0, 0, 0, 4 + 16 + 7, 0, 0, 0, 16 + 7}
				b = append(append(head, b[:16]...), "counter"...)
			case 1:
				b[0] = 1
			case 2:
				b[0] = 2
			case 3:
				b[0] = 200
			}
			send(t, bad.port, good.id(), b)
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		after := good.mesh.Stats()
		if pulls := after.Pulls - before.Pulls; pulls > 250 || pulls == 0 {
			t.Errorf("a flood of 2,500 digests in 10 s caused %d pulls", pulls)
		}
		if after.Malformed == before.Malformed || after.Unknown == before.Unknown {
			t.Errorf("rubbish was not counted: %+v", after)
		}
		if why := w.settled(w.nodes[:2]); why != "" {
			t.Error("the flood harmed others:", why)
		}
	})
}
