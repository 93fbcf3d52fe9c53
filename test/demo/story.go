package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

const (
	podsPerHost = 2
	webPort     = 80 // which webURL need not say
	sinkPort    = 5001
	stepTimeout = 2 * time.Minute
)

// demo plays the story once.
type demo struct {
	*screen
	options
	lab      *netlab.Lab
	machines []*machine
	internet *netlab.Host
	pools    []netip.Prefix  // what pods have their addresses from
	watch    netlab.Captures // on every cable
	reached  *matrix
}

// step is a line of the story; what run returns in words is shown behind the name.
type step struct {
	name string
	run  func(ctx context.Context) (detail string, err error)
}

// play runs the chapters in order; the first step that fails ends it.
func (d *demo) play(ctx context.Context) (err error) {
	defer netlab.Recover(&err)
	start := time.Now()
	d.title("Three machines on three subnets, one encrypted pod network")
	err = d.chapter(ctx,
		step{"three hosts, a router between them, a web server outside", d.build},
		step{"weft up --init on host a", d.found},
		step{"weft up --join … on hosts b and c", d.join},
		step{"all three see each other", d.complete},
		step{"weft attach: two pods on each host", d.attach},
		step{"web servers in the pods and outside", d.serve},
	)
	if err != nil {
		return err
	}
	d.watch = d.lab.CaptureAll(netlab.CaptureOptions{Match: netlab.Cleartext(d.overlay()...), Keep: 16})
	err = d.chapter(ctx,
		step{"first packets between all pods", d.warmUp},
		step{"every pod and host pings every other, IPv4 and IPv6", d.pings},
		step{"every pod and host fetches a page from every pod", d.pages},
		step{"every pod reaches the web server outside through NAT", d.world},
	)
	d.watch.Stop()
	if d.reached != nil {
		d.title("Who reaches whom")
		d.reached.print(d.screen)
	}
	if err != nil {
		return err
	}
	d.title("Between the hosts")
	err = d.chapter(ctx,
		step{"nothing in clear on any cable", d.clean},
		step{fmt.Sprintf("%v of TCP, pod a-1 to pod b-1", d.stream), d.throughput},
	)
	if err != nil {
		return err
	}
	return d.showEnd(time.Since(start))
}

func (d *demo) chapter(ctx context.Context, steps ...step) error {
	for _, s := range steps {
		err := d.step(s.name, func() (string, error) {
			within, cancel := context.WithTimeout(ctx, stepTimeout)
			defer cancel()
			return s.run(within)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) build(context.Context) (string, error) {
	sites := netlab.ThreeSites(d.lab)
	for _, h := range sites.Hosts() {
		m := cluster.On(h, cluster.Programs{Weft: d.weft, Probe: d.probe})
		m.Keep = d.keep
		d.machines = append(d.machines, &machine{Machine: m})
	}
	d.internet = sites.Internet
	return "", nil
}

// found starts the first daemon and reads the join line that it prints.
func (d *demo) found(ctx context.Context) (string, error) {
	a := d.machines[0]
	if err := a.Up("--init"); err != nil {
		return "", err
	}
	_, err := a.waitReady(ctx, 1)
	return "", err
}

// join types the line that the founder printed on all other machines at once.
func (d *demo) join(ctx context.Context) (string, error) {
	a := d.machines[0]
	line, err := a.Daemon.WaitOutput(ctx, `weft up --join (weft1[a-z2-7]+)`)
	if err != nil {
		return "", err
	}
	for _, m := range d.machines[1:] {
		if err := m.Up("--join", line[1]); err != nil {
			return "", err
		}
	}
	for _, m := range d.machines[1:] {
		if _, err := m.waitReady(ctx, 2); err != nil {
			return "", err
		}
	}
	return "", nil
}

func (d *demo) complete(ctx context.Context) (string, error) {
	for _, m := range d.machines {
		st, err := m.waitReady(ctx, len(d.machines))
		if err != nil {
			return "", err
		}
		d.pools = st.Cluster.Pools
	}
	return "", nil
}

func (d *demo) attach(context.Context) (string, error) {
	var slowest time.Duration
	for _, m := range d.machines {
		for i := range podsPerHost {
			start := time.Now()
			if err := m.attach(fmt.Sprint(i + 1)); err != nil {
				return "", err
			}
			slowest = max(slowest, time.Since(start))
		}
	}
	return fmt.Sprintf("slowest %d ms", slowest.Milliseconds()), nil
}

func (d *demo) serve(ctx context.Context) (string, error) {
	start := func(h *netlab.Host, page string) (*netlab.Cmd, error) {
		c := h.Command(d.probe, "serve", "-http", fmt.Sprint(webPort), "-tcp", fmt.Sprint(sinkPort), "-page", page)
		if d.keep {
			c.Outlive()
		}
		return c.Quiet(), c.Start()
	}
	var all []*netlab.Cmd
	for _, m := range d.machines {
		for _, p := range m.pods {
			c, err := start(p.Host, "pod "+p.Name())
			if err != nil {
				return "", err
			}
			all = append(all, c)
		}
	}
	c, err := start(d.internet, "the outside")
	if err != nil {
		return "", err
	}
	for _, c := range append(all, c) {
		if _, err := c.WaitOutput(ctx, fmt.Sprintf("listening on tcp %d", sinkPort)); err != nil {
			return "", err
		}
		if _, err := c.WaitOutput(ctx, fmt.Sprintf("listening on tcp %d\n", webPort)); err != nil {
			return "", err
		}
	}
	return "", nil
}
