package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

const (
	burstPods   = 200
	burstAtOnce = 16
	bareLinks   = 40 // of each of the two measurements, before and after the detaches
	burstTime   = 4 * time.Minute
)

// burst measures what a machine goes through that is told to run everything at once: many attaches and detaches side by
// side, asked over the socket as the container runtime's plugin does. What a detach leaves to be done later, the links, is
// held against the rate at which the same kernel deletes bare veth pairs just before and just after.
func burst(ctx context.Context, out io.Writer, lab *netlab.Lab, o options) error {
	ctx, cancel := context.WithTimeout(ctx, burstTime)
	defer cancel()
	m := cluster.On(netlab.ThreeSites(lab).A, o.programs)
	if _, err := m.Found(ctx); err != nil {
		return err
	}
	client := control.NewClient(filepath.Join(m.Dir(), "weft.sock"))
	pods := make([]*netlab.Host, burstPods)
	for i := range pods {
		pods[i] = m.Pod(fmt.Sprintf("burst%d", i))
	}
	before, err := bareRate(m, pods)
	if err != nil {
		return err
	}
	attach := func(p *netlab.Host) error {
		_, err := client.Attach(ctx, control.AttachRequest{Netns: p.Path(), Container: p.Name()})
		return err
	}
	took, cpu, err := inParallel(m, pods, attach)
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	fmt.Fprintf(out, "\nattach, %d at %d in parallel: p50 %.1f ms, p99 %.1f ms (bar: 30 ms, %s; 150 ms, %s), %.2f CPU-ms of the daemon each\n",
		len(took), burstAtOnce, percentile(took, 0.5), percentile(took, 0.99), verdict(percentile(took, 0.5) <= 30),
		verdict(percentile(took, 0.99) <= 150), cpu)

	start := time.Now()
	detach := func(p *netlab.Host) error {
		_, err := client.Detach(ctx, control.DetachRequest{Netns: p.Path()})
		return err
	}
	took, cpu, err = inParallel(m, pods, detach)
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	answered := time.Since(start)
	if err := cluster.Poll(ctx, func() error { return noLinks(m) }); err != nil {
		return err
	}
	rate := burstPods / time.Since(start).Seconds()
	after, err := bareRate(m, pods)
	if err != nil {
		return err
	}
	bare := (before + after) / 2
	fmt.Fprintf(out, "detach, %d at %d in parallel: p50 %.1f ms, p99 %.1f ms, all answered after %.0f ms (bar: p50 30 ms, %s), %.2f CPU-ms of the daemon each\n",
		len(took), burstAtOnce, percentile(took, 0.5), percentile(took, 0.99), answered.Seconds()*1e3,
		verdict(percentile(took, 0.5) <= 30), cpu)
	fmt.Fprintf(out, "links deleted: %.1f a second from the first detach on; bare veth pairs one by one: %.1f and %.1f; ratio %.2f (bar: 0.8, %s)\n",
		rate, before, after, rate/bare, verdict(rate >= 0.8*bare))
	var left control.Claims
	if left, err = client.IPList(ctx); err == nil && len(left.Claims) > 0 {
		err = fmt.Errorf("%d claims are left", len(left.Claims))
	}
	return err
}

// inParallel does f for each pod, a few at a time, and lists how long each took, in milliseconds and in order, and what it
// cost the daemon on average.
func inParallel(m *cluster.Machine, pods []*netlab.Host, f func(*netlab.Host) error) (took []float64, cpu float64, err error) {
	before, err := cpuTime(m.Daemon.Pid())
	if err != nil {
		return nil, 0, err
	}
	var mu sync.Mutex // guards took and failed
	var failed []error
	todo := make(chan *netlab.Host)
	var wg sync.WaitGroup
	for range burstAtOnce {
		wg.Go(func() {
			for p := range todo {
				start := time.Now()
				err := f(p)
				ms := float64(time.Since(start).Microseconds()) / 1e3
				mu.Lock()
				took, failed = append(took, ms), append(failed, err)
				mu.Unlock()
			}
		})
	}
	for _, p := range pods {
		todo <- p
	}
	close(todo)
	wg.Wait()
	slices.Sort(took)
	after, err := cpuTime(m.Daemon.Pid())
	return took, (after - before).Seconds() * 1e3 / float64(len(pods)), errors.Join(append(failed, err)...)
}

// bareRate is how many veth pairs into pods' namespaces this kernel deletes in a second, one after the other.
func bareRate(m *cluster.Machine, pods []*netlab.Host) (float64, error) {
	var add, del strings.Builder
	for i := range bareLinks {
		fmt.Fprintf(&add, "link add bare%d up type veth peer name bare0 netns %s\n", i, pods[i].NSName())
		fmt.Fprintf(&del, "link del bare%d\n", i)
	}
	if err := m.Command("ip", "-batch", "-").In(add.String()).Quiet().Run(); err != nil {
		return 0, fmt.Errorf("make bare links: %w", err)
	}
	start := time.Now()
	if err := m.Command("ip", "-batch", "-").In(del.String()).Quiet().Run(); err != nil {
		return 0, fmt.Errorf("delete bare links: %w", err)
	}
	return bareLinks / time.Since(start).Seconds(), nil
}

// noLinks reports the pods' links that the machine still has.
func noLinks(m *cluster.Machine) error {
	return m.Do(func() error {
		all, err := net.Interfaces()
		if err != nil {
			return err
		}
		n := 0
		for _, l := range all {
			if strings.HasPrefix(l.Name, "wf") {
				n++
			}
		}
		if n > 0 {
			return fmt.Errorf("%d links of pods are left", n)
		}
		return nil
	})
}
