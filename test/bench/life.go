package main

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

const (
	attaches = 50
	joins    = 5 // the second and third member among them
	weighed  = 3 // of the joins: so many peers has each when memory is read
)

// life measures what is not traffic: how long an attach and a join take, and what daemon and data plane weigh.
func life(ctx context.Context, out io.Writer, lab *netlab.Lab, o options) error {
	within, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	sites := netlab.ThreeSites(lab)
	first := cluster.On(sites.A, o.programs)
	// The sleeve, since its packets go through a process, whatever the kernel has.
	token, err := first.Found(within, "--transport", "sleeve")
	if err != nil {
		return err
	}
	target, err := first.Attach("target")
	if err != nil {
		return err
	}
	hosts := []*netlab.Host{sites.B, sites.C}
	for n := range joins - len(hosts) {
		h, _ := sites.Site(lab, string(rune('d'+n)), 4+n)
		hosts = append(hosts, h)
	}
	machines, pods := []*cluster.Machine{first}, []*cluster.Pod{target}
	var took []float64
	for i, h := range hosts {
		m := cluster.On(h, o.programs)
		pod, d, err := join(within, m, token, target)
		if err != nil {
			return fmt.Errorf("join of %s: %w", m, err)
		}
		took = append(took, d.Seconds())
		machines, pods = append(machines, m), append(pods, pod)
		if i+1 != weighed {
			continue
		}
		bd := &bed{Lab: lab, options: o}
		if err := bd.weigh(within, out, machines, pods); err != nil {
			return err
		}
	}
	slices.Sort(took)
	fmt.Fprintf(out, "join to first ping: median %.2f s, longest %.2f s of %d (from `weft up --join` to a pod's answer; bar: 2 s, %s)\n",
		percentile(took, 0.5), took[len(took)-1], len(took), verdict(percentile(took, 0.5) <= 2))
	return attachLatency(within, out, first)
}

// join starts a machine and reports how long it took until a pod of its own heard one on the first machine.
func join(ctx context.Context, m *cluster.Machine, token string, target *cluster.Pod) (*cluster.Pod, time.Duration, error) {
	pod := &cluster.Pod{Host: m.Pod("1"), Machine: m}
	start := time.Now()
	if err := m.Up("--join", token, "--transport", "sleeve"); err != nil {
		return nil, 0, err
	}
	if err := cluster.Poll(ctx, func() error { return pod.Attach() }); err != nil {
		return nil, 0, err
	}
	if err := pod.WaitPing(ctx, target.Addrs[0]); err != nil {
		return nil, 0, err
	}
	return pod, time.Since(start), nil
}

// attachLatency attaches pods one after the other, and prints how long each took: asked over the socket, as the container
// runtime's plugin does, and by the command, the start of a process included.
func attachLatency(ctx context.Context, out io.Writer, m *cluster.Machine) error {
	client := control.NewClient(filepath.Join(m.Dir(), "weft.sock"))
	ways := []struct {
		name   string
		attach func(*netlab.Host) error
	}{
		{"request", func(p *netlab.Host) error {
			_, err := client.Attach(ctx, control.AttachRequest{Netns: p.Path(), Container: p.Name()})
			return err
		}},
		{"command", func(p *netlab.Host) error { _, err := m.CLI("attach", p.Path(), "--name", p.Name()); return err }},
	}
	for _, way := range ways {
		var took []float64
		for i := range attaches {
			pod := m.Pod(fmt.Sprintf("%s%d", way.name, i))
			start := time.Now()
			if err := way.attach(pod); err != nil {
				return fmt.Errorf("attach number %d: %w", i, err)
			}
			took = append(took, float64(time.Since(start).Microseconds())/1e3)
		}
		slices.Sort(took)
		fmt.Fprintf(out, "attach by %s: p50 %.1f ms, p99 %.1f ms of %d (bar: p50 30 ms, %s)\n",
			way.name, percentile(took, 0.5), percentile(took, 0.99), len(took), verdict(percentile(took, 0.5) <= 30))
	}
	return nil
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "MISSED"
}
