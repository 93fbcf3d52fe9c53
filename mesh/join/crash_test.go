package join

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
)

// A member dies at each step that it takes in a join: nothing happened, or the join completes when it is tried again, with
// one use of the token and one certificate.
func TestCrashOfAMemberAtEachStep(t *testing.T) {
	for _, victim := range []string{"n1", "n2", "n3"} { // issuer, sponsor, voter
		steps := 0
		for crashed := true; crashed; steps++ {
			t.Run(fmt.Sprintf("%s at step %d", victim, steps), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newLab(t, 3, 1)
					text := l.invite(identity.Terms{Uses: 1}, "n2")
					key := must(identity.NewKey())
					var count atomic.Int64
					var where string
					l.fault = func(n *node, step string) error {
						if n.name == victim && count.Add(1) == int64(steps)+1 {
							where = step
							return errDown
						}
						return nil
					}
					first, err := Join(t.Context(), l.config(text, key, "new"))
					l.served.Wait()
					if crashed = where != ""; !crashed && err != nil {
						t.Fatalf("without crash: %v", err)
					}
					l.mu.Lock()
					l.fault = nil
					l.mu.Unlock()
					l.node(victim).start()
					again, err := Join(t.Context(), l.config(text, key, "new"))
					if err != nil {
						t.Fatalf("tried again after a crash %s: %v", where, err)
					}
					l.check(again, key)
					l.settled(again, text)
					if first != nil {
						l.check(first, key)
					}
				})
			})
		}
		if steps < 4 {
			t.Errorf("%s took %d steps only", victim, steps)
		}
	}
}

// settled checks that all members agree on one certificate and one use.
func (l *lab) settled(r *Result, text string) {
	l.t.Helper()
	l.gossip()
	l.gossip()
	kept := must1(l.nodes[0].roster.Certificate(r.Certificate.ID()))
	if kept.Compare(r.Certificate) > 0 {
		l.t.Error("the cluster has a younger certificate than the node")
	}
	for _, n := range l.nodes {
		if c := must1(n.roster.Certificate(r.Certificate.ID())); !bytes.Equal(c.Raw(), kept.Raw()) {
			l.t.Errorf("%s has another certificate", n.name)
		}
		if users := len(n.roster.JoinedWith(r.Certificate.Invitation.ID())); users != 1 {
			l.t.Errorf("%s counts %d uses", n.name, users)
		}
	}
	if _, err := l.join(text, "thief"); Code(err) != CodeUsedUp {
		l.t.Errorf("the used token: %v", err)
	}
}

// The joiner dies at each read and write of its session.
func TestCrashOfTheJoinerAtEachStep(t *testing.T) {
	ops := 0
	for crashed := true; crashed; ops++ {
		t.Run(fmt.Sprint("at operation ", ops), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, 3, 1)
				text := l.invite(identity.Terms{Uses: 1}, "n2")
				key := must(identity.NewKey())
				cfg := l.config(text, key, "new")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var count atomic.Int64
				crashed = false
				cfg.Dial = func(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
					conn, err := l.dial(ctx, to)
					return &counted{Conn: conn, op: func() {
						if count.Add(1) == int64(ops)+1 {
							crashed = true
							cancel()
						}
					}}, err
				}
				_, err := Join(ctx, cfg)
				l.served.Wait()
				if crashed && err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("cancelled: %v", err)
				}
				if !crashed && err != nil {
					t.Fatal(err)
				}
				again, err := Join(t.Context(), l.config(text, key, "new"))
				if err != nil {
					t.Fatalf("tried again: %v", err)
				}
				l.check(again, key)
				l.settled(again, text)
			})
		})
		if ops > 400 {
			t.Fatal("the join never ends")
		}
		if ops > 12 { // the welcome is many operations alike
			ops += ops / 4
		}
	}
}

// counted calls op before each read and write.
type counted struct {
	net.Conn
	op func()
}

func (c *counted) Read(b []byte) (int, error)  { c.op(); return c.Conn.Read(b) }
func (c *counted) Write(b []byte) (int, error) { c.op(); return c.Conn.Write(b) }

// A joiner whose first sponsor is slow asks a second one while the first is still at work.
func TestTwoIssuersWorkOnOneNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 5, 3)
		text := l.invite(identity.Terms{Uses: 1}, "n1")
		tok := must(token.Parse(text))
		key := must(identity.NewKey())
		l.fault = func(n *node, step string) error {
			if n.name == "n1" && step == "before call "+MethodCommit {
				time.Sleep(time.Second)
			}
			return nil
		}
		var wg sync.WaitGroup
		results := make([]*Result, 3)
		for i := range results {
			n := l.nodes[i]
			tok := tok
			tok.Seeds = []token.Seed{token.SeedOf(n.at, n.key.ID())}
			wg.Go(func() {
				var err error
				if results[i], err = Join(t.Context(), l.config(tok.Format(), key, "new")); err != nil {
					t.Errorf("through %s: %v", n.name, err)
				}
			})
		}
		wg.Wait()
		l.fault = nil
		for _, r := range results {
			if r != nil {
				l.check(r, key)
			}
		}
		again := must(Join(t.Context(), l.config(text, key, "new")))
		l.settled(again, text)
	})
}
