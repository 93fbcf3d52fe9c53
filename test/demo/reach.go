package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"weft/test/netlab"
)

// ends are all pods, then all hosts by their address in the container network.
func (d *demo) ends() (pods, hosts []end) {
	for _, m := range d.machines {
		for _, p := range m.pods {
			pods = append(pods, end{p.Host, p.Name(), p.Addrs, true})
		}
		hosts = append(hosts, end{m.Host, m.Name(), m.overlay, false})
	}
	return pods, hosts
}

// overlay is what must not be seen on a cable: the pools and, whatever they are said to be, every address in use.
func (d *demo) overlay() []netip.Prefix {
	pods, hosts := d.ends()
	out := slices.Clone(d.pools)
	for _, e := range append(pods, hosts...) {
		for _, a := range e.addrs {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// warmUp waits until each pod has heard from each other once: how long that takes is shown, what follows is counted.
func (d *demo) warmUp(ctx context.Context) (string, error) {
	pods, _ := d.ends()
	return "", each(pods, func(from end) error {
		for _, to := range pods {
			if to.name == from.name {
				continue
			}
			for _, a := range to.addrs {
				if err := from.host.WaitPing(ctx, a); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// each runs f for all at once and joins their errors.
func each[T any](all []T, f func(T) error) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, v := range all {
		wg.Go(func() { errs[i] = f(v) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// pings sends five pings from everybody to everybody, all at once.
func (d *demo) pings(context.Context) (string, error) {
	pods, hosts := d.ends()
	m := newMatrix(append(pods, hosts...))
	d.reached = m
	err := each(m.ends, func(from end) error {
		args := []string{"ping", "-json", "-c", "5", "-i", "5ms"}
		owner := make(map[netip.Addr]string)
		for _, to := range m.ends {
			// A host's own address answers to itself; pods and hosts alike ping all others.
			if to.name == from.name {
				continue
			}
			for _, a := range to.addrs {
				owner[a] = to.name
				args = append(args, a.String())
			}
		}
		if len(owner) == 0 {
			return errors.New("nobody has an address")
		}
		var results []struct {
			Addr     netip.Addr `json:"addr"`
			Sent     int        `json:"sent"`
			Received int        `json:"received"`
			Error    string     `json:"error"`
		}
		if err := d.ask(from.host, &results, args...); err != nil {
			return err
		}
		var errs []error
		for _, r := range results {
			ok := r.Sent > 0 && r.Sent == r.Received
			m.set(from.name, owner[r.Addr], "ping"+family(r.Addr), ok)
			if !ok {
				errs = append(errs, fmt.Errorf("%s to %s (%v): %d of %d pings answered %s",
					from.name, owner[r.Addr], r.Addr, r.Received, r.Sent, r.Error))
			}
		}
		return errors.Join(errs...)
	})
	return m.summary(), err
}

// ask runs the probe, which prints JSON also when the answer is no.
func (d *demo) ask(h *netlab.Host, into any, args ...string) error {
	out, err := h.Exec(d.probe, args...)
	if jerr := json.Unmarshal([]byte(out), into); jerr != nil {
		return errors.Join(err, fmt.Errorf("labprobe on %s printed %q", h.Name(), out))
	}
	return nil
}

type page struct {
	URL    string `json:"url"`
	Status int    `json:"status"`
	Body   string `json:"body"`
	Error  string `json:"error"`
}

// pages fetches from every pod; the page must be the right pod's, and between pods it must see the visitor's own address.
func (d *demo) pages(context.Context) (string, error) {
	pods, hosts := d.ends()
	n := 0
	for _, from := range append(pods, hosts...) {
		for _, to := range pods {
			if from.name != to.name {
				n += len(to.addrs)
			}
		}
	}
	err := each(append(pods, hosts...), func(from end) error {
		args := []string{"get", "-json", "-w", "5s"}
		owner := make(map[string]end)
		for _, to := range pods {
			if to.name == from.name {
				continue
			}
			for _, a := range to.addrs {
				url := webURL(a)
				owner[url] = to
				args = append(args, url)
			}
		}
		var results []page
		if err := d.ask(from.host, &results, args...); err != nil {
			return err
		}
		var errs []error
		for _, r := range results {
			to := owner[r.URL]
			ok := r.Status == 200 && strings.HasPrefix(r.Body, "pod "+to.name+",") && (!from.pod || seen(r.Body, from.addrs))
			f := "4"
			if strings.Contains(r.URL, "[") {
				f = "6"
			}
			d.reached.set(from.name, to.name, "page"+f, ok)
			if !ok {
				errs = append(errs, fmt.Errorf("%s fetches %s (%s): status %d %s %s", from.name, to.name, r.URL, r.Status, strings.TrimSpace(r.Body), r.Error))
			}
		}
		return errors.Join(errs...)
	})
	return fmt.Sprintf("%d pages", n), err
}

func webURL(a netip.Addr) string {
	if a.Is6() {
		return "http://[" + a.String() + "]/"
	}
	return "http://" + a.String() + "/"
}

// seen reports whether the page's visitor is one of those.
func seen(body string, visitors []netip.Addr) bool {
	_, from, _ := strings.Cut(strings.TrimSpace(body), "visitor from ")
	a, err := netip.ParseAddr(from)
	return err == nil && slices.Contains(visitors, a.Unmap())
}

// world fetches from the server outside, which must see the address of the pod's host. IPv6 is tried too and told.
func (d *demo) world(context.Context) (string, error) {
	over6 := 0
	for _, m := range d.machines {
		for _, p := range m.pods {
			var results []page
			if err := d.ask(p.Host, &results, "get", "-json", "-w", "5s", webURL(d.internet.Addr4()), webURL(d.internet.Addr6())); err != nil {
				return "", err
			}
			if r := results[0]; r.Status != 200 || !seen(r.Body, m.Addrs()) {
				return "", fmt.Errorf("pod %s fetches %s: status %d %s %s; want host %s (%v) as the visitor",
					p.Name(), r.URL, r.Status, strings.TrimSpace(r.Body), r.Error, m.Name(), m.Addr4())
			}
			if r := results[1]; r.Status == 200 && seen(r.Body, m.Addrs()) {
				over6++
			}
		}
	}
	if over6 == 0 {
		return "IPv4 only", nil
	}
	return fmt.Sprintf("IPv4, and IPv6 from %d pods", over6), nil
}

// clean is the proof of the watch: it saw traffic and none of it in clear.
func (d *demo) clean(context.Context) (string, error) {
	watch := d.watch
	if err := watch.Err(); err != nil {
		return "", err
	}
	detail := fmt.Sprintf("%d of %d packets show a pod's address", watch.Count(), watch.Seen())
	if watch.Count() > 0 {
		return detail, fmt.Errorf("packets in clear:\n%s", watch.Describe(10))
	}
	if watch.Seen() == 0 {
		return detail, errors.New("the watch saw nothing, so it proves nothing")
	}
	return detail, nil
}

func (d *demo) throughput(context.Context) (string, error) {
	from, to := d.machines[0].pods[0], d.machines[1].pods[0]
	var r struct {
		Mbps float64 `json:"mbit_per_s"`
	}
	target := netip.AddrPortFrom(to.Addrs[0], sinkPort).String()
	out, err := from.Exec(d.probe, "stream", "-json", "-for", d.stream.String(), target)
	if err != nil {
		return "", err
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return "", fmt.Errorf("labprobe printed %q: %w", out, err)
	}
	return fmt.Sprintf("%.0f Mbit/s", r.Mbps), nil
}

func family(a netip.Addr) string {
	if a.Is6() {
		return "6"
	}
	return "4"
}
