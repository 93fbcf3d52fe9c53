package circuit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/mesh/peer"
)

// town is a few members, each with one address, and who can open a connection to whom.
type town struct {
	*testing.T
	*cluster
	net   *underlay
	nodes map[peer.ID]*resident
	book  map[peer.ID][]netip.AddrPort
	bells int // rung so far
	mute  int // of them, how many are lost
}

type resident struct {
	member
	*Circuits
	carries bool
	shy     bool // does not ring: it cannot be dialled
	via     []peer.ID
	blocked peer.Set // to whom it cannot open a connection
}

func newTown(t *testing.T) *town {
	return &town{
		T: t, cluster: newCluster(), net: newUnderlay(), nodes: map[peer.ID]*resident{}, book: map[peer.ID][]netip.AddrPort{},
	}
}

func (w *town) live(name string, h func(context.Context, *Conn)) *resident {
	w.Helper()
	r := &resident{member: w.cluster.member(name), carries: true, blocked: peer.Set{}}
	host := at(byte(len(w.nodes) + 2))
	w.book[r.ID()] = []netip.AddrPort{host}
	r.Circuits = w.net.node(w.T, w.root.Public(), r.member, w.book, func(c *Config) {
		c.Relays = func(peer.ID) ([]peer.ID, bool) { return r.via, len(r.via) > 0 }
		c.Carries = func() bool { return r.carries }
		c.Ring = func(to peer.ID, n Nonce) error {
			if r.shy {
				return errors.New("nobody could dial back")
			}
			if w.bells++; w.bells > w.mute {
				return w.nodes[to].Answer(r.ID(), n)
			}
			return nil
		}
		c.Open = func(ctx context.Context, to peer.ID, ep netip.AddrPort) (net.Conn, error) {
			if r.blocked.Has(to) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return w.net.open(ctx, ep)
		}
	})
	w.nodes[r.ID()] = r
	serve(w.T, r.Circuits, w.net.listen(host), Handlers{Circuit: h})
	return r
}

// part makes two members unable to dial each other.
func part(a, b *resident) {
	a.blocked.Add(b.ID())
	b.blocked.Add(a.ID())
}

// talk dials, says something and hears it back.
func (w *town) talk(a, b *resident) *Conn {
	w.Helper()
	conn, err := a.Dial(w.Context(), b.ID(), 'x')
	if err != nil {
		w.Fatal(err)
	}
	if err := repeat(conn); err != nil {
		w.Fatal(err)
	}
	return conn
}

func repeat(conn *Conn) error {
	said := []byte("is anybody there?")
	if _, err := conn.Write(said); err != nil {
		return err
	}
	heard := make([]byte, len(said))
	if _, err := io.ReadFull(conn, heard); err != nil {
		return err
	}
	if string(heard) != string(said) {
		return fmt.Errorf("heard %q", heard)
	}
	return nil
}

func TestStreamsThroughAPeer(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  func(w *town, a, r, q, b *resident)
		took time.Duration // at most, of the second dial: the first has to find out
	}{
		{"the relay dials", func(_ *town, a, r, _, b *resident) {
			part(a, b)
			a.shy, a.via = true, []peer.ID{r.ID()}
		}, 0},
		{"the other end is called", func(_ *town, a, r, _, b *resident) {
			part(a, b)
			r.blocked.Add(b.ID())
			a.shy, a.via = true, []peer.ID{r.ID()}
		}, DialStagger},
		{"the other end is called again", func(w *town, a, r, _, b *resident) {
			part(a, b)
			r.blocked.Add(b.ID())
			a.shy, a.via = true, []peer.ID{r.ID()}
			w.mute = 2
		}, DialStagger + 3*ringAgain},
		{"this node calls for itself", func(_ *town, a, _, _, b *resident) {
			a.blocked.Add(b.ID())
		}, DialStagger},
		{"through a relay of each side", func(_ *town, a, r, q, b *resident) {
			part(a, b)
			part(r, b)
			part(a, q)
			r.shy = true
			a.shy, a.via, r.via = true, []peer.ID{r.ID()}, []peer.ID{q.ID()}
		}, DialStagger},
		{"a relay that is gone does not hold up the next", func(_ *town, a, r, q, b *resident) {
			part(a, b)
			part(a, r)
			a.shy, a.via = true, []peer.ID{r.ID(), q.ID()}
		}, 2 * DialStagger},
		{"a relay that does not carry neither", func(_ *town, a, r, q, b *resident) {
			part(a, b)
			r.carries = false
			a.shy, a.via = true, []peer.ID{r.ID(), q.ID()}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t)
				a, r, q := w.live("a", echo), w.live("r", echo), w.live("q", echo)
				var from peer.ID
				var there *Conn
				b := w.live("b", func(ctx context.Context, conn *Conn) {
					from, there = conn.Peer, conn
					echo(ctx, conn)
				})
				c.cut(w, a, r, q, b)
				w.talk(a, b).Close()
				w.bells = 0
				began := time.Now()
				conn := w.talk(a, b)
				if took := time.Since(began); took > c.took {
					t.Errorf("it took %v", took)
				}
				if conn.Peer != b.ID() || from != a.ID() || there.Kind != 'x' {
					t.Errorf("%s dialled %s, %s was dialled by %s for %q", a.ID().Short(), conn.Peer.Short(), b.ID().Short(), from.Short(), there.Kind)
				}
				one, err := conn.Exporter("test", nil, 32)
				two, err2 := there.Exporter("test", nil, 32)
				if err != nil || err2 != nil || string(one) != string(two) {
					t.Errorf("the ends share no secret: %v %v", err, err2)
				}
				conn.Close()
			})
		})
	}
}

// TestSplicedEndsTogether: whichever end closes, the other one hears it, after all that was said.
func TestSplicedEndsTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		said := make([]byte, 300_000)
		ended := make(chan error, 1)
		a, r := w.live("a", echo), w.live("r", echo)
		b := w.live("b", func(_ context.Context, conn *Conn) {
			if conn.Kind == 'w' {
				_, _ = conn.Write(said)
				return
			}
			_, err := io.Copy(io.Discard, conn)
			ended <- err
		})
		part(a, b)
		a.shy, a.via = true, []peer.ID{r.ID()}
		conn := must(a.Dial(t.Context(), b.ID(), 'w'))
		heard, err := io.ReadAll(conn)
		if len(heard) != len(said) || err != nil {
			t.Errorf("heard %d bytes: %v", len(heard), err)
		}
		conn.Close()
		conn = must(a.Dial(t.Context(), b.ID(), 'r'))
		conn.Close()
		began := time.Now()
		if err := <-ended; err != nil || time.Since(began) > spliceLinger {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

func TestIdleSpliceEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, r, b := w.live("a", echo), w.live("r", echo), w.live("b", echo)
		part(a, b)
		a.shy, a.via = true, []peer.ID{r.ID()}
		conn := w.talk(a, b)
		for range 3 { // it lives while something moves
			time.Sleep(spliceIdle * 3 / 4)
			if err := repeat(conn); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		if _, _ = io.ReadAll(conn); time.Since(began) != spliceIdle {
			t.Errorf("it ended after %v", time.Since(began))
		}
		conn.Close()
	})
}

// TestSplicesAreLimited: one peer cannot have more than its share carried.
func TestSplicesAreLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, r, b := w.live("a", echo), w.live("r", echo), w.live("b", echo)
		part(a, b)
		a.shy, a.via = true, []peer.ID{r.ID()}
		var open []*Conn
		for range MaxSplicesPeer {
			open = append(open, w.talk(a, b))
		}
		if _, err := a.Dial(t.Context(), b.ID(), 'x'); !errors.Is(err, ErrRelay) {
			t.Errorf("one more: %v", err)
		}
		open[0].Close()
		synctest.Wait()
		w.talk(a, b).Close()
		for _, conn := range open[1:] {
			conn.Close()
		}
	})
}

// TestCirclesAreRefused: a relay carries nothing to itself or back to who asks, understands what it is asked, and takes nobody's
// word for how many relays may still be passed.
func TestCirclesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, r, b := w.live("a", echo), w.live("r", echo), w.live("b", echo)
		a.shy, r.shy, b.shy = true, true, true
		ask := func(what []byte) outcome {
			t.Helper()
			conn, err := a.Dial(t.Context(), r.ID(), kindSplice)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			var answer [1]byte
			if _, err := conn.Write(what); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(conn, answer[:]); err != nil {
				t.Fatal(err)
			}
			return outcome(answer[0])
		}
		to := func(version, hops byte, id peer.ID) []byte { return append([]byte{version, hops}, id[:]...) }
		for name, c := range map[string]struct {
			ask  []byte
			want outcome
		}{
			"to itself":           {to(spliceVersion, 1, r.ID()), badAsk},
			"back to who asks":    {to(spliceVersion, 1, a.ID()), badAsk},
			"of another version":  {to(spliceVersion+1, 1, b.ID()), badAsk},
			"to nobody":           {to(spliceVersion, 0, peer.ID{1}), notReached},
			"by 255 more, to b":   {to(spliceVersion, 255, b.ID()), joined},
			"by itself to nobody": {to(spliceVersion, 255, peer.ID{1}), notReached},
		} {
			r.via = []peer.ID{r.ID(), a.ID()} // as a record that lies may say
			if got := ask(c.ask); got != c.want {
				t.Errorf("%s: outcome %d, want %d", name, got, c.want)
			}
		}
	})
}

// TestRelaysThatNameEachOther: neither reaches the other end, and each says that the other does. The ask goes from one to the
// other once, and ends.
func TestRelaysThatNameEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, b, r1, r2 := w.live("a", echo), w.live("b", echo), w.live("r1", echo), w.live("r2", echo)
		opened := 0
		for _, r := range []*resident{a, r1, r2} {
			r.shy = true // nobody is asked to dial back
			part(r, b)
			open := r.cfg.Open
			r.cfg.Open = func(ctx context.Context, to peer.ID, ep netip.AddrPort) (net.Conn, error) {
				if to == b.ID() {
					return nil, errors.New("no route")
				}
				opened++
				return open(ctx, to, ep)
			}
		}
		a.via, r1.via, r2.via = []peer.ID{r1.ID(), r2.ID()}, []peer.ID{r2.ID()}, []peer.ID{r1.ID()}
		began := time.Now()
		if _, err := a.Dial(t.Context(), b.ID(), 'x'); !errors.Is(err, ErrRelay) {
			t.Errorf("it ended with %v", err)
		}
		if took := time.Since(began); took > DialTimeout {
			t.Errorf("it went on for %v", took)
		}
		if opened > 4 { // two asks, each passed on once
			t.Errorf("%d connections were opened for it", opened)
		}
	})
}

// TestRelayCannotPretend: a relay that brings the stream to somebody else is found out.
func TestRelayCannotPretend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, b, c := w.live("a", echo), w.live("b", echo), w.live("c", echo)
		evil := w.cluster.member("evil")
		host := at(99)
		w.book[evil.ID()] = []netip.AddrPort{host}
		r := w.net.node(t, w.root.Public(), evil, w.book)
		serve(t, r, w.net.listen(host), Handlers{})
		r.cfg.Carries = func() bool { return true }
		r.cfg.Endpoints = func(peer.ID) []netip.AddrPort { return w.book[c.ID()] }
		r.cfg.Open = func(ctx context.Context, _ peer.ID, to netip.AddrPort) (net.Conn, error) { return w.net.open(ctx, to) }
		part(a, b)
		a.shy, a.via = true, []peer.ID{evil.ID()}
		if _, err := a.Dial(t.Context(), b.ID(), 'x'); err == nil {
			t.Error("somebody else was taken for the peer")
		}
	})
}

// TestOnlyTheCalledMayAnswer: another member cannot take a call with the nonce that it overheard.
func TestOnlyTheCalledMayAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		a, b, thief := w.live("a", echo), w.live("b", echo), w.live("thief", echo)
		a.blocked.Add(b.ID())
		a.cfg.Ring = func(_ peer.ID, n Nonce) error { return thief.Answer(a.ID(), n) }
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := a.Dial(ctx, b.ID(), 'x'); err == nil {
			t.Error("a thief answered")
		}
	})
}

// TestSpliceOverTCP: the same over real connections, many at once.
func TestSpliceOverTCP(t *testing.T) {
	c := newCluster()
	book, carriers := map[peer.ID][]netip.AddrPort{}, []peer.ID{}
	launch := func(name string, change func(*Config)) (*Circuits, member) {
		m := c.member(name)
		ln := must((&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0"))
		book[m.ID()] = []netip.AddrPort{ln.Addr().(*net.TCPAddr).AddrPort()}
		n := must(New(Config{
			Key: m.Key, Root: c.root.Public(), Cert: func() *identity.Certificate { return m.cert }, Log: quiet,
			Allowed: func(peer.ID, *identity.Certificate) error { return nil }, Endpoints: func(id peer.ID) []netip.AddrPort { return book[id] },
			Relays: func(peer.ID) ([]peer.ID, bool) { return carriers, true },
		}))
		change(&n.cfg)
		serve(t, n, Listener(ln), Handlers{Circuit: echo})
		return n, m
	}
	var b *Circuits
	refuse := func(context.Context, peer.ID, netip.AddrPort) (net.Conn, error) { return nil, errors.New("no route") }
	_, rm := launch("r", func(cfg *Config) {
		cfg.Carries = func() bool { return true }
		cfg.Ring = func(_ peer.ID, n Nonce) error { return b.Answer(cfg.Key.ID(), n) }
		cfg.Open = refuse
	})
	b, bm := launch("b", func(*Config) {})
	a, _ := launch("a", func(cfg *Config) {
		cfg.Open = func(ctx context.Context, to peer.ID, ep netip.AddrPort) (net.Conn, error) {
			if to == bm.ID() {
				return refuse(ctx, to, ep)
			}
			return openTCP(ctx, to, ep)
		}
	})
	carriers = append(carriers, rm.ID())
	var wg sync.WaitGroup
	for range MaxSplicesPeer {
		wg.Go(func() {
			conn, err := a.Dial(t.Context(), bm.ID(), 'x')
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			if err := repeat(conn); err != nil {
				t.Error(err)
			}
			if conn.Via != rm.ID() {
				t.Error("it was not carried")
			}
		})
	}
	wg.Wait()
	if !a.Barred(bm.ID()) {
		t.Error("the next dial would not know better")
	}
}
