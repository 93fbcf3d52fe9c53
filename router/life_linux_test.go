package router_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"weft/router"
	"weft/router/host"
	"weft/router/host/hosttest"
)

// A pod is given another address while it runs: nothing knows the old one any more, and the new one works from and to
// another machine.
func TestAttachExchangesAddresses(t *testing.T) {
	l := newLab(t)
	n1, n2 := l.n[1], l.n[2]
	a, far := n1.pod("a", 10), n2.pod("far", 10)
	for _, p := range []*pod{a, far} {
		echo(t, p.NS, netip.MustParseAddrPort("[::]:7"))
	}
	reach(t, "before", a.NS, far.v4, a.v4.String())
	old4, old6 := a.v4, a.v6
	a.v4, a.v6 = addr("10.32.4.%d", 77), addr("fd77::10.32.4.%d", 77)
	if _, err := n1.r.Attach(t.Context(), router.AttachRequest{NetNS: a.Path, Pod: router.Pod{Name: "a", V4: a.v4, V6: a.v6}}); err != nil {
		t.Fatal(err)
	}
	for _, old := range []string{old4.String(), old6.String()} {
		for _, m := range []struct {
			where string
			text  string
		}{{"the machine", dump(t, n1)}, {"the pod", interfacesOf(t, a.NS)}} {
			for line := range strings.Lines(m.text) {
				if strings.Contains(line, old+"/") || strings.Contains(line, old+" ") || strings.HasSuffix(strings.TrimSpace(line), old) {
					t.Errorf("%s still knows %s: %s", m.where, old, line)
				}
			}
		}
	}
	reach(t, "from the new address", a.NS, far.v4, a.v4.String())
	reach(t, "from the new IPv6 address", a.NS, far.v6, a.v6.String())
	reach(t, "to the new address", far.NS, a.v4, far.v4.String())
}

// interfacesOf lists addresses and routes of a namespace.
func interfacesOf(t *testing.T, ns *hosttest.NS) string {
	t.Helper()
	s, err := ns.Host().Snapshot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, x := range s.Addresses {
		fmt.Fprintln(&b, "address", x.Prefix)
	}
	for _, r := range s.Routes {
		fmt.Fprintln(&b, "route", r)
	}
	return b.String()
}

// A pod that is attached again right after its detach gets its interface, although the former one was there a moment ago;
// so does one that comes under another name.
func TestAttachWaitsForTheFormerInterface(t *testing.T) {
	l := newLab(t)
	n1 := l.n[1]
	p := n1.pod("a", 10)
	for i, name := range []string{"a", "b", "a"} {
		if i > 0 {
			if _, err := n1.r.Attach(t.Context(), router.AttachRequest{NetNS: p.Path, Pod: router.Pod{Name: name, V4: p.v4, V6: p.v6}}); err != nil {
				t.Fatalf("attach as %s: %v", name, err)
			}
		}
		if err := n1.r.Detach(t.Context(), name, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// Many pods come and go side by side; in the end the machine is as it was.
func TestPodsComeAndGoSideBySide(t *testing.T) {
	l := newLab(t)
	n1 := l.n[1]
	before := dump(t, n1)
	var wg sync.WaitGroup
	for i := range 24 {
		ns := hosttest.NewNS(t)
		wg.Go(func() {
			for round := range 3 {
				pod := router.Pod{Name: fmt.Sprint("p", i), V4: addr("10.32.4.%d", 20+i), V6: addr("fd77::10.32.4.%d", 20+i)}
				if _, err := n1.r.Attach(t.Context(), router.AttachRequest{NetNS: ns.Path, Pod: pod}); err != nil {
					t.Errorf("attach %s: %v", pod.Name, err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				if round == 1 {
					cancel() // whoever asked has gone away
				}
				if err := n1.r.Detach(ctx, pod.Name, ""); err != nil && round != 1 {
					t.Errorf("detach %s: %v", pod.Name, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	await(t, "all is as before", func() bool { return dump(t, n1) == before })
	for i := range 24 {
		await(t, "no address lingers", func() bool { return !n1.r.Lingers(addr("10.32.4.%d", 20+i)) })
	}
}

// What a former run left is deleted when the next one begins, and nothing else; until then no address is free.
func TestSweepDeletesWhatAFormerRunLeft(t *testing.T) {
	h := hosttest.New(nil)
	kept := router.Pod{Name: "kept", IfName: "eth0", V4: addr("10.32.4.%d", 9)}
	for _, name := range []string{host.VethName("kept/eth0"), host.VethName("former/eth0"), host.VethName("stray/eth0")} {
		h.AddLink(host.Link{Name: name, Kind: "veth", Up: true})
	}
	h.AddLink(host.Link{Name: "wf0", Kind: ""}) // another's, of another kind
	told := make(chan struct{}, 8)
	r, err := router.New(router.Config{Host: h, Buried: func() { told <- struct{}{} }})
	if err != nil {
		t.Fatal(err)
	}
	if !r.Lingers(addr("10.32.4.%d", 5)) {
		t.Error("says that an address is free before it has looked")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	r.Update(router.Input{Pods: []router.Pod{kept, {Name: "stray", IfName: "eth0"}}})
	<-told
	s, err := h.Snapshot(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		host.VethName("kept/eth0"): true, host.VethName("stray/eth0"): true, host.VethName("former/eth0"): false, "wf0": true,
	} {
		if _, is := s.Link(name); is != want {
			t.Errorf("%s is there: %v, want %v", name, is, want)
		}
	}
	if r.Lingers(addr("10.32.4.%d", 5)) {
		t.Error("an address lingers although all former links are gone")
	}
}
