package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
)

const (
	loadPods    = 25
	loadAtOnce  = 8
	loadRounds  = 8
	loadDurable = 12  // points of a round at which the daemon makes something last, about
	loadNetlink = 250 // messages to the kernel in it
)

// Two hundred pods start or end, a few at a time, while the daemon is killed at points drawn at random, and so are those who ask it. In the
// end nothing is left of them, and at no moment two pods have the same address, although the pool is so small that each
// address is used again and again.
func TestNothingLeaksWhenKilledUnderLoad(t *testing.T) {
	s := tell(t)
	s.machines = s.machines[:1]
	args := []string{"--pool", "10.9.0.0/26", "--address-rest", "1s"}
	s.form(args...)
	rest := args[2:]
	s.must(s.a.Stop())
	trap, err := s.a.Trap(0, nil, rest...)
	s.must(err)
	s.whole()
	clean := s.idle()
	pods := make([]*cluster.Pod, loadPods)
	for i := range pods {
		pods[i] = &cluster.Pod{Host: s.a.Pod(fmt.Sprint(i)), Machine: s.a}
	}
	watch, stop := context.WithCancel(t.Context())
	defer stop()
	var watcher sync.WaitGroup
	watcher.Go(func() { s.neverTwice(watch, pods) })

	kills, cut := 0, 0
	for round := range loadRounds {
		kinds, points := cluster.Durable, loadDurable
		if round%2 == 1 {
			kinds, points = cluster.Netlink, loadNetlink
		}
		trap.Arm(1+rand.IntN(points), kinds)
		cut += s.inParallel(pods, func(p *cluster.Pod) bool {
			words := []string{"attach", p.Path(), "--name", p.Name()}
			if rand.IntN(2) == 0 {
				words = []string{"detach", p.Path()}
			}
			return s.ask(words, rand.IntN(4) == 0)
		})
		if trap.Disarm() {
			kills++
			<-s.a.Daemon.Done()
			trap, err = s.a.Trap(0, nil, rest...)
			s.must(err)
		}
		s.whole()
		s.distinct()
	}
	t.Logf("%d requests: killed the daemon %d times in %d rounds, and %d of those who asked it", loadRounds*loadPods, kills, loadRounds, cut)
	if kills == 0 || cut == 0 {
		t.Error("nobody was killed: does the trap work?")
	}

	// Whoever's attach failed asks again, as a container runtime does; then all pods talk to the host, and end.
	s.inParallel(pods, func(p *cluster.Pod) bool {
		s.try(cluster.Poll(s.within(patience), func() error { return p.Attach() }))
		return false
	})
	host := s.hostAddress(s.a)
	for _, p := range pods {
		s.try(p.WaitPing(s.within(patience), host))
	}
	s.inParallel(pods, func(p *cluster.Pod) bool { s.try(p.Detach()); return false })
	s.must(cluster.Poll(s.within(patience), func() error {
		if now := s.ours(); now != clean {
			return fmt.Errorf("left behind:\n%s\nbefore:\n%s", now, clean)
		}
		return nil
	}))
	stop()
	watcher.Wait()
}

// A daemon that is killed right after it has answered a detach leaves a link; the next one deletes it, and gives its address
// to nobody before.
func TestLinksOfFormerPodsGoAtTheStart(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.machines = s.machines[:1]
	args := []string{"--pool", "10.9.0.0/26", "--address-rest", "1s"}
	s.form(args...)
	clean := s.idle()
	var pods []*cluster.Pod
	for i := range 6 {
		p, err := s.a.Attach(fmt.Sprint(i))
		s.must(err)
		pods = append(pods, p)
	}
	for _, p := range pods[:5] {
		s.must(p.Detach())
	}
	s.must(s.a.Kill()) // before the links' time has come, or in the middle of it
	s.must(s.a.Up(args[2:]...))
	s.whole()
	s.must(cluster.Poll(s.within(patience), func() error {
		if links := s.vethsOf(s.a); len(links) != 1 {
			return fmt.Errorf("links %v, want that of one pod", links)
		}
		return nil
	}))
	s.must(pods[5].WaitPing(s.within(patience), s.hostAddress(s.a)))
	s.must(pods[5].Detach())
	s.must(cluster.Poll(s.within(patience), func() error {
		if now := s.ours(); now != clean {
			return fmt.Errorf("left behind:\n%s\nbefore:\n%s", now, clean)
		}
		return nil
	}))
}

// try is must for goroutines.
func (s *story) try(err error) {
	s.Helper()
	if err != nil {
		s.Error(err)
	}
}

// inParallel does f for each pod, a few at a time, and counts how often it says yes.
func (s *story) inParallel(pods []*cluster.Pod, f func(*cluster.Pod) bool) (yes int) {
	var mu sync.Mutex // guards yes
	todo := make(chan *cluster.Pod)
	var wg sync.WaitGroup
	for range loadAtOnce {
		wg.Go(func() {
			for p := range todo {
				if f(p) {
					mu.Lock()
					yes++
					mu.Unlock()
				}
			}
		})
	}
	for _, i := range rand.Perm(len(pods)) {
		todo <- pods[i]
	}
	close(todo)
	wg.Wait()
	return yes
}

// ask runs a command, whatever comes of it, and kills it in the middle if it shall be so.
func (s *story) ask(words []string, kill bool) (killed bool) {
	c := s.a.Command(s.a.Weft, words...).Env("WEFT_SOCKET="+s.a.Socket(), "WEFT_STATE="+s.a.State()).Quiet()
	if err := c.Start(); err != nil {
		s.Error(err)
		return false
	}
	if !kill {
		<-c.Done()
		return false
	}
	select {
	case <-c.Done():
		return false
	case <-time.After(time.Duration(rand.IntN(40)) * time.Millisecond):
		c.Kill()
		return true
	}
}

// neverTwice looks again and again whether two pods have one address on their interfaces.
func (s *story) neverTwice(ctx context.Context, pods []*cluster.Pod) {
	looks := 0
	for ; ctx.Err() == nil; looks++ {
		holder := make(map[netip.Addr]string)
		for _, p := range pods {
			_ = p.Do(func() error {
				eth0, err := net.InterfaceByName("eth0")
				if err != nil {
					return err
				}
				addrs, err := eth0.Addrs()
				for _, a := range addrs {
					prefix, perr := netip.ParsePrefix(a.String())
					if perr != nil || !prefix.Addr().IsGlobalUnicast() {
						continue
					}
					if other := holder[prefix.Addr()]; other != "" && s.stillHas(pods, other, prefix.Addr()) && s.stillHas(pods, p.Name(), prefix.Addr()) {
						s.Errorf("%s is on the interfaces of %s and of %s", prefix.Addr(), other, p.Name())
					}
					holder[prefix.Addr()] = p.Name()
				}
				return err
			})
		}
	}
	if looks < loadRounds {
		s.Errorf("looked only %d times", looks)
	}
}

// stillHas looks once more: between two looks an address may have gone from one pod to the other.
func (s *story) stillHas(pods []*cluster.Pod, name string, addr netip.Addr) (has bool) {
	i := slices.IndexFunc(pods, func(p *cluster.Pod) bool { return p.Name() == name })
	_ = pods[i].Do(func() error {
		eth0, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := eth0.Addrs()
		has = slices.ContainsFunc(addrs, func(a net.Addr) bool { return strings.HasPrefix(a.String(), addr.String()+"/") })
		return err
	})
	return has
}

// idle is ours of a machine without pods, once its own addresses are in the guard.
func (s *story) idle() (clean string) {
	s.Helper()
	own := s.hostAddress(s.a).String()
	s.must(cluster.Poll(s.within(patience), func() error {
		if clean = s.ours(); !strings.Contains(clean, "elements = { "+own) {
			return fmt.Errorf("%s is not in the guard yet:\n%s", own, clean)
		}
		return nil
	}))
	return clean
}

// ours is what weft has on a machine for pods: claims, links, routes, and elements of the guard's sets.
func (s *story) ours() string {
	s.Helper()
	var list control.Claims
	s.must(s.a.JSON(&list, "ip", "list"))
	var b strings.Builder
	for _, c := range list.Claims {
		fmt.Fprintln(&b, "claim", c.Address, c.Container)
	}
	fmt.Fprintln(&b, "links", s.vethsOf(s.a))
	for _, words := range [][]string{
		{"ip", "-4", "route", "show", "proto", "0x57"},
		{"ip", "-6", "route", "show", "proto", "0x57"},
		{"nft", "list", "set", "inet", "weft", "pods4"},
		{"nft", "list", "set", "inet", "weft", "pods6"},
		{"nft", "list", "set", "inet", "weft", "local4"},
		{"nft", "list", "set", "inet", "weft", "local6"},
	} {
		c := s.a.Command(words[0], words[1:]...).Quiet()
		if err := c.Run(); err != nil {
			s.Fatalf("%s: %v. Is it there? Try: apt-get install -y iproute2 nftables", words[0], err)
		}
		b.WriteString(c.Stdout())
	}
	return b.String()
}

// vethsOf lists the host's ends of pods' links.
func (s *story) vethsOf(m *cluster.Machine) (names []string) {
	s.Helper()
	s.must(m.Do(func() error {
		all, err := net.Interfaces()
		for _, l := range all {
			if strings.HasPrefix(l.Name, "wf") {
				names = append(names, l.Name)
			}
		}
		return err
	}))
	return names
}

// hostAddress is the machine's own among the pods.
func (s *story) hostAddress(m *cluster.Machine) netip.Addr {
	s.Helper()
	st, err := m.Status()
	s.must(err)
	if len(st.Node.Overlay) == 0 {
		s.Fatalf("%s has no address", m)
	}
	return st.Node.Overlay[0]
}
