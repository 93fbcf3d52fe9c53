package ipam

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"weft/ipam/ring"
	"weft/mesh/peer"
)

// proposal is one by the first machine to remove nobody who matters.
func proposal(t testing.TB, c *cluster, number uint64) *ring.Proposal {
	t.Helper()
	p, err := ring.Propose(c.u, c.nodes[0].key, number, []ring.Named{{Node: peer.ID{9}, Incarnation: 1}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func addrOf(s string) netip.Addr { return netip.MustParseAddr(s) }

func values(t testing.TB, c *cluster) []Op {
	p := proposal(t, c, 5)
	held := claim{Claim: Claim{
		V4: addrOf("10.32.0.2"), Container: "c1", IfName: "eth0", NetNS: "/run/netns/x", Pod: "default/p",
		MTU: 1300, MAC: "02:00:5e:10:00:07", Created: time.Unix(1_700_000_000, 5).UTC(),
	}}
	return []Op{
		putFormat(), putIncarnation(7), putStopped("its disk was set back"), putClaim(held),
		putClaim(claim{Claim: held.Claim, host: true}),
		putRest(held.V4), putHeard(peer.ID{1}, start{3, 4}), putServed(peer.ID{2}, served{requestID{9}, []ring.ID{{1}, {2}}}),
		putPromise(p), putRefused(peer.ID{9}, 4), putTaken(ring.ID{3}),
	}
}

func TestStoredValuesReadBack(t *testing.T) {
	c := newCluster(t, 1, "10.32.0.0/12", 26)
	m := newMemory()
	if err := m.Commit(values(t, c)); err != nil {
		t.Fatal(err)
	}
	st, err := load(m, c.u, linked6)
	if err != nil {
		t.Fatal(err)
	}
	if !st.format || st.incarnation != 7 || st.stopped != "its disk was set back" || len(st.claims) != 1 || len(st.resting) != 1 ||
		st.heard[peer.ID{1}] != (start{3, 4}) || len(st.served[peer.ID{2}].grants) != 2 ||
		st.promised == nil || st.promised.Number() != 5 || st.refused[peer.ID{9}] != 4 || len(st.taken) != 1 {
		t.Errorf("%+v", st)
	}
	if got := st.claims[0]; !got.host || got.Pod != "default/p" || got.V6 != addrOf("fd12:3456:789a::a20:2") ||
		!got.Created.Equal(time.Unix(1_700_000_000, 5)) || got.MTU != 1300 || got.MAC != "02:00:5e:10:00:07" {
		t.Errorf("%+v", got)
	}
}

// FuzzStoredValue: a store with any value in it is loaded or refused, and what is loaded is stored as it was.
func FuzzStoredValue(f *testing.F) {
	c := newCluster(f, 2, "10.32.0.0/12", 26)
	for _, op := range values(f, c) {
		f.Add(string(op.Table), op.Key, op.Value)
	}
	_, report, err := ring.New(c.u).Grant(c.nodes[0].key, netip.MustParsePrefix("10.40.0.0/13"), c.nodes[1].key.ID())
	if err != nil {
		f.Fatal(err)
	}
	grant := putGrant(report.Added[0])
	f.Add(string(grant.Table), grant.Key, grant.Value)
	f.Fuzz(func(t *testing.T, table string, key, value []byte) {
		m := newMemory()
		if err := m.Commit([]Op{{Table(table), key, append([]byte{}, value...)}}); err != nil {
			t.Fatal(err)
		}
		st, err := load(m, c.u, linked6)
		if err != nil {
			return
		}
		if err := st.ring.Check(); err != nil {
			t.Fatal(err)
		}
		for _, cl := range st.claims {
			again, err := parseClaim(putClaim(cl).Key, putClaim(cl).Value, linked6)
			if err != nil || again != cl {
				t.Fatalf("%+v becomes %+v, %v", cl, again, err)
			}
		}
		for id, s := range st.heard {
			if again, err := parseStart(putHeard(id, s).Value); err != nil || again != s {
				t.Fatalf("%+v becomes %+v, %v", s, again, err)
			}
		}
		for id, s := range st.served {
			again, err := parseServed(putServed(id, s).Value)
			if err != nil || again.request != s.request || len(again.grants) != len(s.grants) {
				t.Fatalf("%+v becomes %+v, %v", s, again, err)
			}
		}
	})
}

// FuzzMessage: no call and no answer of another member breaks this node, and what can be read is written alike.
func FuzzMessage(f *testing.F) {
	f.Add(syncRequest{start{1, 2}, []byte("digest"), []byte("summary"), []byte("starts")}.encode())
	f.Add(syncAnswer{
		before: start{1, 2}, ring: []byte("ring"), voters: []peer.Voter{{ID: peer.ID{1}, JoinSeq: 5}}, roster: []byte("roster"), partial: true,
		heard: []heard{{peer.ID{1}, start{2, 3}}}, novice: true,
	}.encode())
	f.Add(spareRequest{[]byte("digest")}.encode())
	f.Add(spareAnswer{4096, lackNothing, nil}.encode())
	f.Add(spareAnswer{0, lackSpace, []byte("ring")}.encode())
	f.Add(grantRequest{requestID{1}}.encode())
	f.Add(grantAnswer{[]byte("ring"), lackNothing}.encode())
	f.Add(push{ring: []byte("ring"), roster: []byte("roster")}.encode())
	f.Add(push{heard: []heard{{peer.ID{1}, start{2, 3}}}}.encode())
	f.Add(push{refused: []peer.ID{{1}, {2}}}.encode())
	f.Add(pushAnswer{[]byte("summary")}.encode())
	f.Add(promiseRequest{[]byte("proposal"), []byte("digest"), []byte("summary"), []byte("delta")}.encode())
	f.Add(promiseAnswer{verdict: verdictUnproven, summary: []byte("summary")}.encode())
	f.Add(promiseAnswer{
		verdict: verdictYes, ring: []byte("ring"), roster: []byte("roster"), idle: true, novice: true,
		joining: []peer.Info{{ID: peer.ID{1}, JoinSeq: 7, Ephemeral: true}},
	}.encode())
	f.Add(promiseAnswer{
		verdict: verdictNewer, higher: []byte("proposal"), partial: true,
		newer: []ring.Named{{Node: peer.ID{2}, Incarnation: 3}},
	}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, first []byte, again func([]byte) ([]byte, error)) {
			if second, err := again(first); err != nil || !bytes.Equal(first, second) {
				t.Fatalf("%s: %x becomes %x, %v", what, first, second, err)
			}
		}
		type encoder interface{ encode() []byte }
		for what, parse := range map[string]func(b []byte) (encoder, error){
			"sync request":  func(b []byte) (encoder, error) { return parseSyncRequest(b) },
			"sync answer":   func(b []byte) (encoder, error) { return parseSyncAnswer(b) },
			"spare request": func(b []byte) (encoder, error) { return parseSpareRequest(b) },
			"spare answer":  func(b []byte) (encoder, error) { return parseSpareAnswer(b) },
			"proposal":      func(b []byte) (encoder, error) { return parsePromiseRequest(b) },
			"promise":       func(b []byte) (encoder, error) { return parsePromiseAnswer(b) },
			"push":          func(b []byte) (encoder, error) { return parsePush(b) },
			"push answer":   func(b []byte) (encoder, error) { return parsePushAnswer(b) },
			"grant request": func(b []byte) (encoder, error) { return parseGrantRequest(b) },
			"grant answer":  func(b []byte) (encoder, error) { return parseGrantAnswer(b) },
		} {
			m, err := parse(b)
			if err != nil {
				continue
			}
			same(what, m.encode(), func(b []byte) ([]byte, error) {
				m, err := parse(b)
				return m.encode(), err
			})
		}
	})
}
