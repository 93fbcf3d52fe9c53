package meshsim_test

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"weft/mesh"
)

// sample is what has been used up to a moment.
type sample struct {
	at    time.Time // of the bubble
	cpu   time.Duration
	loads []Load // by node
	calls calls
}

// calls is the counters of all meshes.
type calls struct{ pulls, pullsFailed, dropped, news uint64 }

func (c *calls) add(s mesh.Stats) {
	c.pulls += s.Pulls
	c.pullsFailed += s.PullsFailed
	c.dropped += s.Dropped
	c.news += s.News
}

// cpuTime is what this process has used. The mesh's part of it is the larger one; the network in memory is in it too.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (w *World) sample() sample {
	s := sample{at: time.Now(), cpu: cpuTime()}
	for _, n := range w.Nodes {
		s.loads = append(s.loads, n.Load())
		s.calls.add(n.past)
		s.calls.add(n.Mesh().Counters())
	}
	return s
}

// rates is what nodes sent between two samples.
type rates struct {
	over           time.Duration
	nodes          int
	packets, bytes [3]float64 // per second: the median node, the 99th percentile, the busiest
	total          Load
	cpu            time.Duration // of this process
	pulls          float64       // per node and second
	lost           uint64        // datagrams and streams that found a queue full
}

// between takes the difference. Nodes that came later count from their start.
func (w *World) between(a, b sample) rates {
	r := rates{over: b.at.Sub(a.at), nodes: len(b.loads), cpu: b.cpu - a.cpu}
	var packets, bytes []float64
	for i, l := range b.loads {
		if i < len(a.loads) {
			l = l.minus(a.loads[i])
		}
		r.total = r.total.plus(l)
		packets = append(packets, float64(l.Packets)/r.over.Seconds())
		bytes = append(bytes, float64(l.Bytes)/r.over.Seconds())
	}
	r.packets, r.bytes = spread(packets), spread(bytes)
	r.pulls = float64(b.calls.pulls-a.calls.pulls) / r.over.Seconds() / float64(r.nodes)
	r.lost = b.calls.dropped - a.calls.dropped
	return r
}

func spread(v []float64) [3]float64 {
	slices.Sort(v)
	return [3]float64{v[len(v)/2], v[len(v)*99/100], v[len(v)-1]}
}

func (r rates) String() string {
	perNode := func(v uint64) float64 { return float64(v) / r.over.Seconds() / float64(r.nodes) }
	return fmt.Sprintf("%.1f/%.1f/%.1f packets/s, %.2f/%.2f/%.2f kB/s (median/p99/busiest node); mean: %.2f streams/s, %.2f pulls/s, "+
		"%.2f relayed/s; CPU %.3f %% of a core; %d dropped",
		r.packets[0], r.packets[1], r.packets[2], r.bytes[0]/1e3, r.bytes[1]/1e3, r.bytes[2]/1e3,
		perNode(r.total.Streams), r.pulls, perNode(r.total.Relayed), 100*r.cpu.Seconds()/r.over.Seconds()/float64(r.nodes), r.lost)
}

// memory is what a node holds: heap and stacks of the process by the number of nodes.
func (w *World) memory() string {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	n := float64(len(w.Living()))
	open, most := 0, 0
	for _, node := range w.Living() {
		o := node.sessions.count(len(w.Nodes) - 1)
		open, most = open+o, max(most, o)
	}
	return fmt.Sprintf("%.1f sessions (at most %d), %.0f KiB heap, %.0f KiB stacks, %.1f goroutines per node; %.0f MiB in all", float64(open)/n, most,
		float64(m.HeapAlloc)/n/1024, float64(m.StackInuse)/n/1024, float64(runtime.NumGoroutine())/n, float64(m.Sys)/(1<<20))
}

// disk is what the mean node has written.
func (w *World) disk() string {
	var saves, written, held int
	for _, n := range w.Nodes {
		s, b, h := n.disk.size()
		saves, written, held = saves+s, written+b, held+h
	}
	n := float64(len(w.Nodes))
	return fmt.Sprintf("%.1f saves, %.2f MB written, %.1f kB held per node", float64(saves)/n, float64(written)/n/1e6, float64(held)/n/1e3)
}

// report prints one line of a life.
func (w *World) report(what, format string, args ...any) {
	w.t.Helper()
	w.t.Logf("%-22s %s", what, strings.TrimSpace(fmt.Sprintf(format, args...)))
}
