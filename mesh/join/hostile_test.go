package join

import (
	"bytes"
	"crypto/ed25519"
	"io"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/mesh/circuit"
	"weft/mesh/peer"
)

// Join sequences rise with every voter that joins, for ever. One that lies about them, or an issuer that signs an absurd one,
// must not bring them to their end: then nobody could join any more, also when it is removed.
func TestNobodyUsesUpTheJoinSequences(t *testing.T) {
	for name, spoil := range map[string]func(l *lab){
		"a voter that lies": func(l *lab) {
			l.node("n3").sponsor.ledger.promises[peer.ID{9}] = promise{joinSeq: math.MaxUint64 - 1, ephemeral: true, made: time.Now()}
		},
		"an issuer that signs the last": func(l *lab) {
			for _, seq := range []uint64{math.MaxUint64, maxSeq + 1, maxSeq} {
				cert := l.certify(must(identity.NewKey()), "spoilt", seq, false)
				for _, n := range l.nodes {
					must(0, n.roster.AddRaw(cert.Raw()))
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, 7, 3)
				spoil(l)
				text := l.invite(identity.Terms{}, "n1")
				last := uint64(0)
				for _, joiner := range []string{"a", "b", "c"} {
					r, err := l.join(text, joiner)
					if err != nil {
						t.Fatalf("%s: %v", joiner, err)
					}
					if seq := r.Certificate.JoinSeq; seq <= last && seq <= maxSeq {
						t.Errorf("%s has join sequence %d, the one before it %d", joiner, seq, last)
					} else {
						last = seq
					}
					l.gossip()
				}
			})
		})
	}
}

// Promises that a clock made which was ahead expire as others do, when it was set right and the daemon started again.
func TestPromisesOfAClockThatWasAheadExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		text := l.invite(identity.Terms{Uses: 1}, "n2")
		l.fault = func(n *node, step string) error {
			if n.name == "n2" && step == "before add" {
				return errDown
			}
			return nil
		}
		for _, n := range l.nodes {
			n.ahead = time.Hour
		}
		if _, err := l.join(text, "unlucky"); err == nil {
			t.Fatal("joined")
		}
		l.fault = nil
		for _, n := range l.nodes {
			n.ahead = 0
			n.start()
		}
		if _, err := l.join(text, "other"); Code(err) != CodeBusy {
			t.Errorf("at once: %v", err)
		}
		time.Sleep(PromiseLife)
		if _, err := l.join(text, "other"); err != nil {
			t.Errorf("later: %v", err)
		}
	})
}

// An issuer whose machine slept with the promises of voters in hand signs nothing: they have given them to others meanwhile.
// Its own monotonic clock stood still.
func TestAnIssuerThatSleptSignsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 3, 3)
		tok := must(token.Parse(l.invite(identity.Terms{Uses: 1}, "n2")))
		a := must(identity.Apply(tok.Root, must(identity.NewKey()), must(tok.Key()), "late"))
		n2 := l.node("n2")
		inv := must1(n2.roster.Invitation(a.Invitation()))
		var slept atomic.Bool
		n2.sponsor.cfg.Now = func() time.Time {
			if slept.Load() {
				return time.Now().Add(PromiseLife)
			}
			return time.Now()
		}
		l.fault = func(n *node, step string) error {
			if n == n2 && step == "after call "+MethodAsk {
				slept.Store(true)
			}
			return nil
		}
		by := must1(n2.sponsor.issuer())
		if cert, err := n2.sponsor.decide(t.Context(), by, a, inv); Code(err) != CodeBusy {
			t.Errorf("signed: %v, %v", cert != nil, err)
		}
	})
}

// Whoever can reach the port can be refused as often as he likes; the log does not grow with that.
func TestStrangersFillNoLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, 1, 1)
		n := l.nodes[0]
		var out bytes.Buffer
		n.sponsor.cfg.Log = slog.New(slog.NewTextHandler(&out, nil))
		unknown := must(token.New(identity.FingerprintOf(l.root.Public()), token.SeedOf(n.at, n.key.ID()))).Format()
		const each = 50
		for range each {
			if _, err := l.join(unknown, "x"); Code(err) != CodeUnknown {
				t.Fatal(err)
			}
			conn := must(circuit.DialJoin(t.Context(), must(l.dial(t.Context(), n.at)), func(ed25519.PublicKey, *identity.Certificate) error { return nil }))
			must(0, writeFrame(conn, frameItems, nil))
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}
		synctest.Wait()
		if lines := strings.Count(out.String(), "\n"); lines == 0 || lines > each {
			t.Errorf("%d refusals are %d lines", 2*each, lines)
		}
	})
}
