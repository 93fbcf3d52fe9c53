package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// A machine is started anew while it is cut off: nobody confirms it, so it serves its pods from what it believes to own. The
// others have removed it meanwhile, and one of its addresses is another pod's. When the cable is back nobody ever reaches the
// wrong one of the two, nor hears it, and within 10 s of the contact the latecomer's pods have other addresses, their MAC
// addresses and MTUs as before, and are reached.
func TestDuplicateOfAnUnconfirmedMachine(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	after := []string{"--remove-after", "12s", "--address-rest", "1s"}
	s.form(after...)
	pods := s.pods()
	special := s.attachAs(s.c, "special", "02:00:5e:10:00:07", 1300)
	s.connected(append(pods, special))
	watch := s.watch(s.pools()...)
	before, err := s.c.Status()
	s.must(err)
	twice := pods[2].Addrs[0]

	s.must(s.c.Kill())
	s.must(s.c.KillWire(s.within(patience)))
	cut := s.lab.Partition(s.sites.Hosts()[:2], s.sites.Hosts()[2:])
	down := time.Now()
	s.must(s.c.Up(after...))
	_, err = s.c.WaitFor(s.within(startPatience), func(st control.Status) error {
		if st.IPAM.State != control.IPAMUnconfirmed {
			return fmt.Errorf("it is %s: %s", st.IPAM.State, st.IPAM.Reason)
		}
		return nil
	})
	s.must(err)
	late, err := s.c.Attach("late") // it has blocks, so its pods need not wait for anybody
	s.must(err)
	s.must(late.WaitPing(s.within(patience), twice))

	var heir *cluster.Pod
	heirs := []*cluster.Pod{{Host: s.a.Pod("heir"), Machine: s.a}, {Host: s.b.Pod("heir"), Machine: s.b}}
	for _, m := range []*cluster.Machine{s.a, s.b} {
		_, err := m.WaitFor(s.within(startPatience), removedPeer(before.Node.ID, "silence"))
		s.must(err)
	}
	t.Logf("c is removed %.1f s after it was cut off", time.Since(down).Seconds())
	s.reclaimed(down, before.Node.ID, s.a, s.b)
	s.must(cluster.Poll(s.within(90*time.Second), func() error {
		for _, heir = range heirs {
			if err = heir.Attach("--ip", twice.String()); err == nil {
				return nil
			}
		}
		return err
	}))
	from := pods[1] // of the machine that has neither
	if heir.Machine == s.b {
		from = pods[0]
	}
	s.must(from.WaitPing(s.within(patience), twice))
	s.must(late.WaitPing(s.within(patience), twice)) // each side has its own
	t.Logf("%s is a pod's on %s and another one's on c, %.1f s after c was cut off", twice, heir.Machine, time.Since(down).Seconds())

	// Whatever is sent to the address after the contact arrives at the heir, and what the other one sends from it nowhere.
	marker := []byte("for the heir alone")
	marked := netlab.Contains(marker)
	to := func(p *netlab.Packet) bool { return !p.Out && marked(p) }
	right := heir.Capture("eth0", netlab.CaptureOptions{Keep: 1, Match: to})
	wrong := netlab.Captures{pods[2].Capture("eth0", netlab.CaptureOptions{Keep: 4, Match: to})}
	impostor := []byte("from the former owner")
	heard := from.Capture("eth0", netlab.CaptureOptions{Keep: 4, Match: func(p *netlab.Packet) bool { return !p.Out && netlab.Contains(impostor)(p) }})
	send := s.repeat(from, marker, netip.AddrPortFrom(twice, 9))
	forge := s.repeat(pods[2], impostor, netip.AddrPortFrom(from.Addrs[0], 9))
	s.must(right.WaitFor(s.within(patience), 20))

	contact := time.Now()
	cut.Heal()
	var renumbered time.Duration
	s.must(cluster.Poll(s.within(startPatience), func() error {
		for _, p := range []*cluster.Pod{pods[2], special, late} {
			now, err := onInterface(p)
			if err != nil {
				return err
			}
			if len(now) == 0 || now[0] == p.Addrs[0] {
				return fmt.Errorf("%s has %v", p, now)
			}
		}
		renumbered = time.Since(contact)
		return nil
	}))
	for _, p := range []*cluster.Pod{pods[2], special, late} {
		if p.Addrs, err = onInterface(p); err != nil {
			t.Fatal(err)
		}
		s.must(p.WaitPing(s.within(patience), heir.Addrs[0]))
		s.must(from.WaitPing(s.within(patience), p.Addrs[0]))
	}
	reached := time.Since(contact)
	send()
	forge()
	right.Stop()
	wrong.Stop()
	heard.Stop()
	t.Logf("3 pods have other addresses %.2f s after the contact, and reach and are reached %.2f s after it; %d packets arrived at the heir",
		renumbered.Seconds(), reached.Seconds(), right.Count())
	if wrong.Count()+heard.Count() > 0 {
		t.Errorf("%d packets for the heir arrived at the former owner and %d of it were taken for the heir's:\n%s%s",
			wrong.Count(), heard.Count(), wrong.Describe(4), netlab.Captures{heard}.Describe(4))
	}
	if link, err := special.Exec("ip", "link", "show", "dev", "eth0"); err != nil || !strings.Contains(link, "mtu 1300") ||
		!strings.Contains(link, "02:00:5e:10:00:07") {
		t.Errorf("the interface that had a MAC address and an MTU of its own is now\n%s%v", link, err)
	}
	st, err := s.c.WaitReady(s.within(patience), 3)
	s.must(err)
	if st.Node.ID == before.Node.ID {
		t.Error("it came back under its former identity")
	}
	s.connected(append(pods, heir))
	s.distinct()
	s.sealed(watch)
}

// The disk of a machine is copied to another one, and both are started while they are cut off, the copy twice: two of one identity,
// neither confirmed, which give the same address to a pod each. The one that was started last is believed, whoever is heard first.
// The other one finds out within 10 s of its contact, says so and is silent; from then on all that is sent to the address arrives at one of the two pods alone. With a
// token it becomes a node of its own, and its pods get addresses of their own.
func TestCopiedDisk(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	s.form()
	pods := s.pods()
	s.connected(pods)
	token, _ := s.create(s.a)
	three := s.sites.Hosts()
	d := s.site("d")
	s.must(s.c.Kill())
	s.must(s.c.KillWire(s.within(patience)))
	s.must(exec.CommandContext(t.Context(), "cp", "-a", s.c.State()+"/.", d.State()).Run())
	cutC, cutD := s.lab.Partition(three[:2], three[2:]), s.lab.Partition(three, []*netlab.Host{d.Host})
	var twins []*cluster.Pod
	for _, m := range []*cluster.Machine{s.c, d} {
		s.must(m.Up())
	}
	unconfirmed := func(m *cluster.Machine) {
		_, err := m.WaitFor(s.within(startPatience), func(st control.Status) error {
			if st.IPAM.State != control.IPAMUnconfirmed {
				return fmt.Errorf("it is %s: %s", st.IPAM.State, st.IPAM.Reason)
			}
			return nil
		})
		s.must(err)
	}
	unconfirmed(d)
	s.must(d.Kill())
	s.must(d.Up())
	for _, m := range []*cluster.Machine{s.c, d} {
		unconfirmed(m)
		p, err := m.Attach("twin")
		s.must(err)
		twins = append(twins, p)
	}
	twice := twins[0].Addrs[0]
	if twins[1].Addrs[0] != twice {
		t.Fatalf("the twins have %s and %s: there is nothing to see", twice, twins[1].Addrs[0])
	}

	cutD.Heal()
	s.must(pods[0].WaitPing(s.within(patience), twice))
	marker := netlab.Contains([]byte("for one alone"))
	to := func(p *netlab.Packet) bool { return !p.Out && marker(p) }
	right := twins[1].Capture("eth0", netlab.CaptureOptions{Keep: 1, Match: to})
	wrong := netlab.Captures{twins[0].Capture("eth0", netlab.CaptureOptions{Keep: 4, Match: to})}
	send := s.repeat(pods[0], []byte("for one alone"), netip.AddrPortFrom(twice, 9))
	s.must(right.WaitFor(s.within(patience), 20))

	contact := time.Now()
	cutC.Heal()
	_, err := s.c.WaitFor(s.within(startPatience), func(st control.Status) error {
		if st.Node.State != control.NodeWaiting || !strings.Contains(st.Node.Reason, "its disk was set back or copied") {
			return fmt.Errorf("it is %s: %s", st.Node.State, st.Node.Reason)
		}
		return nil
	})
	s.must(err)
	s.must(cluster.Poll(s.within(startPatience), func() error {
		if pid := s.c.Wire(); pid != 0 {
			return fmt.Errorf("a wire runs on c, process %d", pid)
		}
		return nil
	}))
	silent := time.Since(contact)
	astray := wrong.Count() // a member that was too busy to say what it knew may have led to the former one until then
	s.refused(s.c.Type("ip", "claim").Failure(), "weft join TOKEN")
	// It stays so over a restart.
	s.must(s.c.Kill())
	s.must(s.c.Up())
	_, err = s.c.WaitFor(s.within(patience), inState(control.NodeWaiting))
	s.must(err)
	if pid := s.c.Wire(); pid != 0 {
		t.Errorf("a wire runs on c, process %d", pid)
	}

	joined := time.Now()
	s.must(cluster.Poll(s.within(startPatience), func() error { return s.c.Type("join", token).Failure() }))
	s.must(cluster.Poll(s.within(startPatience), func() error {
		now, err := onInterface(twins[0])
		if err == nil && (len(now) == 0 || now[0] == twice) {
			err = fmt.Errorf("it has %v", now)
		}
		return err
	}))
	renumbered := time.Since(joined)
	if twins[0].Addrs, err = onInterface(twins[0]); err != nil {
		t.Fatal(err)
	}
	s.connected([]*cluster.Pod{twins[0], twins[1], pods[0]})
	send()
	right.Stop()
	wrong.Stop()
	t.Logf("silent %.2f s after the contact, other addresses %.2f s after the join; %d packets arrived at the one, %d at the other, "+
		"%d of them before it was silent", silent.Seconds(), renumbered.Seconds(), right.Count(), wrong.Count(), astray)
	if wrong.Count() > astray {
		t.Errorf("%d packets arrived at the other when it was silent:\n%s", wrong.Count()-astray, wrong.Describe(4))
	}
}

// attachAs attaches a pod as a container runtime does that wants more than an address.
func (s *story) attachAs(m *cluster.Machine, name, mac string, mtu int) *cluster.Pod {
	s.Helper()
	p := &cluster.Pod{Host: m.Pod(name), Machine: m}
	reply, err := control.NewClient(m.Socket()).Attach(s.within(patience), control.AttachRequest{
		Netns: p.Path(), Container: p.Name(), MAC: mac, MTU: mtu,
	})
	s.must(err)
	p.Addrs = reply.Addresses
	return p
}

// onInterface lists the addresses that a pod's interface has, whatever anybody believes.
func onInterface(p *cluster.Pod) (all []netip.Addr, err error) {
	for _, family := range []string{"-4", "-6"} {
		out, err := p.Exec("ip", family, "-o", "addr", "show", "dev", "eth0", "scope", "global")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			if len(words) < 4 {
				return nil, fmt.Errorf("ip addr printed %q", line)
			}
			prefix, err := netip.ParsePrefix(words[3])
			if err != nil {
				return nil, err
			}
			all = append(all, prefix.Addr())
		}
	}
	return all, nil
}

// repeat sends a UDP packet from the pod's own address every 20 ms until it is told to end.
func (s *story) repeat(p *cluster.Pod, payload []byte, to netip.AddrPort) (end func()) {
	s.Helper()
	c, err := p.ListenPacket("udp4", netip.AddrPortFrom(p.Addrs[0], 0).String())
	s.must(err)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_, _ = c.WriteTo(payload, net.UDPAddrFromAddrPort(to)) // refused when its address has gone: that is the point
			}
		}
	}()
	end = func() {
		cancel()
		<-done
		_ = c.Close()
	}
	s.Cleanup(end)
	return end
}
