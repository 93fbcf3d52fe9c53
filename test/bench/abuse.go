package main

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// abuseBar is what a pair of honest pods keeps of its rate while its machine is flooded at the weft port, in terms of what it
// has under the same flood at a closed port: the kernel's price for the packets is nobody's fault.
const abuseBar = 0.9

// The flood. A machine with few cores makes less of it, for both sides alike; the table says how much.
const (
	abuseRate   = 50_000 // datagrams a second
	closedPort  = 6799
	openerCount = 16   // clients that open TCP connections at the same time
	openerRate  = 2000 // connections a second of all of them
	// A flood that lasts is measured, not its first moment, in which those who call too often are still given their due.
	abuseLasts = time.Second
)

// assault is one kind of flood at a port of the victim.
type assault struct {
	name  string
	start func(ctx context.Context, port uint16) (wait func() (uint64, error), err error)
}

// abuse measures the TCP flow of an honest pair under floods at the weft port and at a closed one, in turn.
func abuse(ctx context.Context, out io.Writer, lab *netlab.Lab, o options) error {
	bd := &bed{Lab: lab, options: o}
	s := bd.site("abuse")
	attacker := lab.Host("attacker")
	lab.Link(attacker.Port("eth0", "203.0.113.10/24"), s.b.Port("eth1", "203.0.113.2/24"))
	// As on a machine that nobody has prepared: a closed port answers with an error now and then, and answers leave.
	s.b.Sysctl("net.ipv4.icmp_ratelimit", "1000")
	s.b.DefaultVia(netip.MustParseAddr("203.0.113.10"))
	victim := netip.MustParseAddr("203.0.113.2")

	shakes := &recording{}
	capture := s.cable.Capture(netlab.CaptureOptions{Keep: 1, Match: shakes.take})
	a, b, src, dst, err := bd.pair(ctx, s, "--transport", "sleeve")
	if err != nil {
		return err
	}
	c := &contender{name: nameSleeve, cable: s.cable, src: src.Host, dst: dst.Host, addr: dst.Addrs[0], pids: []int{a.Wire(), b.Wire()}}
	if err := bd.serve(ctx, c); err != nil {
		return err
	}
	capture.Stop()
	recorded, err := shakes.write(lab.Dir())
	if err != nil {
		return err
	}
	s.cable.SetSegmentation(false)
	s.cable.SetCoalescing(true)

	rain := func(args ...string) func(context.Context, uint16) (func() (uint64, error), error) {
		return func(_ context.Context, port uint16) (func() (uint64, error), error) {
			all := append([]string{"rain", "-json", "-rate", strconv.Itoa(abuseRate), "-for", (bd.length + abuseLasts + time.Second).String()}, args...)
			p := attacker.Command(bd.programs.Probe, append(all, netip.AddrPortFrom(victim, port).String())...).Quiet()
			if err := p.Start(); err != nil {
				return nil, err
			}
			return func() (uint64, error) {
				_ = p.Signal(os.Interrupt)
				var r struct{ Sent uint64 }
				err := answer(p, &r)
				return r.Sent, err
			}, nil
		}
	}
	fmt.Fprintf(out, "\nflooded at the weft port / at a closed port: one TCP flow between pods, median of %d ratios [%.0f %% interval]\n\n",
		bd.pairs, 100*level(bd.pairs))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "flood\tper second\tCPU-µs each\tGbit/s\t\tratio\tbar\tmemory")
	for _, f := range []assault{
		{"garbage of all lengths", rain()},
		{"what looks like handshakes, from everywhere", rain("-first", "10", "-s", "320", "-from", "100.64.0.0/10")},
		{"recorded handshakes, from everywhere", rain("-file", recorded, "-from", "100.64.0.0/10")},
		{"what looks like WireGuard's, from everywhere", rain("-first", "04000000", "-s", "148", "-from", "100.64.0.0/10")},
		{"TLS connections", openers(attacker, victim)},
		{"SYN, from everywhere", rain("-syn", "-from", "100.64.0.0/10")},
	} {
		if !bd.floods.MatchString(f.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s …\n", f.name)
		if err := bd.underFlood(ctx, w, c, f, []*cluster.Machine{a, b}); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return w.Flush()
}

// underFlood measures one kind of flood.
func (bd *bed) underFlood(ctx context.Context, out io.Writer, c *contender, f assault, machines []*cluster.Machine) error {
	var open, closed, ratios []float64
	var sent uint64
	var flooded time.Duration
	before, err := weights(machines)
	if err != nil {
		return err
	}
	price, err := bd.priceOf(ctx, f, machines[1].Wire())
	if err != nil {
		return err
	}
	for i := range bd.pairs + 1 { // the first is not counted
		var got [2]float64
		order := []int{0, 1}
		if i%2 == 1 {
			order = []int{1, 0}
		}
		for _, side := range order {
			port := []uint16{6783, closedPort}[side]
			began := time.Now()
			wait, err := f.start(ctx, port)
			if err != nil {
				return err
			}
			select {
			case <-ctx.Done():
			case <-time.After(abuseLasts):
			}
			s, err := bd.flows(c, 1, bd.length, flowNames{rate: qFlow, price: qFlowCPU, machine: qFlowAll})
			n, werr := wait()
			if err != nil {
				return err
			}
			if werr != nil {
				return werr
			}
			got[side] = s[qFlow]
			if side == 0 && i > 0 {
				sent, flooded = sent+n, flooded+time.Since(began)
			}
		}
		if i > 0 && got[1] > 0 {
			open, closed, ratios = append(open, got[0]), append(closed, got[1]), append(ratios, got[0]/got[1])
		}
	}
	after, err := weights(machines)
	if err != nil {
		return err
	}
	ratio := estimateOf(ratios)
	_, err = fmt.Fprintf(out, "%s\t%.0f\t%.1f\t%s\t/ %s\t%v\t%s\t%+.0f MiB\n", f.name, float64(sent)/flooded.Seconds(), price, figure(estimateOf(open)),
		figure(estimateOf(closed)), ratio, ratio.against(abuseBar, false), after-before)
	return err
}

// priceOf is what the victim's data plane pays for one of a flood that lasts while it has nothing else to do, in microseconds of CPU.
func (bd *bed) priceOf(ctx context.Context, f assault, wire int) (float64, error) {
	began := time.Now()
	wait, err := f.start(ctx, 6783)
	if err != nil {
		return 0, err
	}
	pause := func(d time.Duration) {
		select {
		case <-ctx.Done():
		case <-time.After(d):
		}
	}
	pause(abuseLasts)
	before, err := cpuTime(wire)
	pause(bd.length)
	after, aerr := cpuTime(wire)
	share := bd.length.Seconds() / time.Since(began).Seconds()
	n, werr := wait()
	return float64((after - before).Microseconds()) / (share * float64(max(n, 1))), errors.Join(err, aerr, werr)
}

// weights is what the daemons and data planes of machines occupy, MiB.
func weights(machines []*cluster.Machine) (sum float64, err error) {
	for _, m := range machines {
		for _, pid := range []int{m.Daemon.Pid(), m.Wire()} {
			mib, err := memoryMiB(pid, resident)
			if err != nil {
				return 0, err
			}
			sum += mib
		}
	}
	return sum, nil
}

// recording keeps the handshakes that pass.
type recording struct {
	mu     sync.Mutex // guards shakes
	shakes [][]byte
}

func (r *recording) take(p *netlab.Packet) bool {
	h, ok := p.IP()
	if !ok || h.DstPort != 6783 {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range p.Datagrams() {
		if len(d) > 0 && d[0] == 0x10 && len(r.shakes) < 64 {
			r.shakes = append(r.shakes, append([]byte(nil), d...))
		}
	}
	return false
}

// write makes the file that labprobe reads.
func (r *recording) write(dir string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.shakes) == 0 {
		return "", errors.New("no handshake was recorded")
	}
	path := filepath.Join(dir, "shakes")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	w := bufio.NewWriter(f)
	for _, d := range r.shakes {
		_, _ = w.WriteString(hex.EncodeToString(d) + "\n")
	}
	if err := w.Flush(); err != nil {
		return "", err
	}
	return path, f.Close()
}

// openers open TCP connections at a steady rate, say the head of a TLS hello on each, and hang up.
func openers(from *netlab.Host, victim netip.Addr) func(context.Context, uint16) (func() (uint64, error), error) {
	return func(ctx context.Context, port uint16) (func() (uint64, error), error) {
		ctx, cancel := context.WithCancel(ctx)
		var (
			wg sync.WaitGroup
			n  atomic.Uint64
		)
		for range openerCount {
			wg.Go(func() {
				tick := time.NewTicker(time.Second * openerCount / openerRate)
				defer tick.Stop()
				for {
					select {
					case <-ctx.Done():
						return
					case <-tick.C:
					}
					n.Add(1)
					c, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(victim, port).String())
					if err != nil {
						continue
					}
					_, _ = c.Write([]byte{22, 3, 1, 2, 0, 1})
					_ = c.Close()
				}
			})
		}
		return func() (uint64, error) {
			cancel()
			wg.Wait()
			return n.Load(), nil
		}, nil
	}
}
