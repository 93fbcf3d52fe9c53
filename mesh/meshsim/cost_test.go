package meshsim_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"weft/crypto/identity"
	"weft/mesh"
	"weft/mesh/circuit"
	"weft/mesh/peer"
)

// flow counts what passes through one end of a connection.
type flow struct {
	net.Conn
	written *atomic.Int64
	writes  *atomic.Int64
}

func (f flow) Write(b []byte) (int, error) {
	f.writes.Add(1)
	f.written.Add(int64(len(b)))
	return f.Conn.Write(b)
}

// What a stream costs before its first byte is a constant of the simulation; here it is measured on a real circuit, with
// certificates like those of the simulation.
func TestStreamsCostWhatIsCounted(t *testing.T) {
	var w *World
	synctest.Test(t, func(t *testing.T) { // makes certificates
		w = New(t, Spec{Conditions: wan(), Seed: 1})
		w.Join()
		w.Join()
		w.End()
	})
	a, b := w.Nodes[1], w.Nodes[2]
	var bytes, writes atomic.Int64
	queue := make(chan net.Conn, 1)
	circuits := func(n *Node) *circuit.Circuits {
		c, err := circuit.New(circuit.Config{
			Key: n.key, Root: w.root.Public(),
			Cert:      func() *identity.Certificate { return n.cert },
			Allowed:   func(peer.ID, *identity.Certificate) error { return nil },
			Endpoints: func(peer.ID) []netip.AddrPort { return []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:6783")} },
			Open: func(context.Context, peer.ID, netip.AddrPort) (net.Conn, error) {
				near, far := net.Pipe()
				queue <- flow{far, &bytes, &writes}
				return flow{near, &bytes, &writes}, nil
			},
			Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- circuits(b).Serve(ctx, func(ctx context.Context) (net.Conn, error) {
			select {
			case c := <-queue:
				return c, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}, circuit.Handlers{Circuit: func(_ context.Context, c *circuit.Conn) { _, _ = c.Write([]byte{1}) }})
	}()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	conn, err := circuits(a).Dial(ctx, b.ID, 'x')
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// Each write is at least one packet; TCP adds its own opening, closing and acknowledgements, of 52 bytes each.
	total := bytes.Load() + streamFrames*52
	t.Logf("opening a stream: %d bytes of TLS in %d writes, with TCP's about %d; counted as %d", bytes.Load(), writes.Load(), total, streamCost)
	if total < streamCost*8/10 || total > streamCost*12/10 {
		t.Errorf("streamCost should be %d", total)
	}
}

// BenchmarkNodeOf measures one node that knows a cluster, everything verified and kept by itself: its heap, the time of
// its start, and the sizes of what is stored and exchanged. Memberlist's part is not in it: see the simulation.
func BenchmarkNodeOf(b *testing.B) {
	for _, members := range []int{100, 1000} {
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			var w *World
			var records, roster int
			var items [][]byte
			var known []byte
			w = New(b, Spec{Conditions: wan(), Seed: 1})
			for range members - 1 {
				w.admit(w.Nodes[0])
			}
			defer w.End()
			first := w.Nodes[0].Mesh()
			known = first.Snapshot("records")
			for _, n := range w.Nodes[1:] { // each signs its record
				m, err := mesh.New(n.config(nil))
				if err != nil {
					b.Fatal(err)
				}
				known = append(known, m.Snapshot("records")[1:]...) // its own, without the list's version
			}
			items = first.Roster().Items()
			roster, records = len(first.Snapshot("roster")), len(known)
			var before, after runtime.MemStats
			var heap uint64
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				n := w.Nodes[1]
				c := n.config(nil)
				c.Items, c.Records, c.Store = items, known, nothing{}
				start := cpuTime()
				m, err := mesh.New(c)
				if err != nil {
					b.Fatal(err)
				}
				took := cpuTime() - start
				runtime.GC()
				runtime.ReadMemStats(&after)
				heap = after.HeapAlloc - min(after.HeapAlloc, before.HeapAlloc)
				b.ReportMetric(took.Seconds()*1e3, "cpu-ms/start")
				runtime.KeepAlive(m)
			}
			b.ReportMetric(float64(heap)/float64(members), "heap-B/member")
			b.ReportMetric(float64(roster)/float64(members), "roster-B/member")
			b.ReportMetric(float64(records)/float64(members), "records-B/member")
		})
	}
}

// nothing is a mesh.Store that keeps nothing.
type nothing struct{}

func (nothing) Load(string) ([]byte, error) { return nil, nil }
func (nothing) Save(string, []byte) error   { return nil }
