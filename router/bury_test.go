package router

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"weft/router/host"
	"weft/router/host/hosttest"
)

// A runtime asks twice to detach a pod whose link waits to be deleted, because its first request was not answered. Who
// waits for the link meanwhile must hear of its end all the same.
func TestADetachThatIsRepeatedForgetsNobodyWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pod := Pod{Name: "a", V4: netip.MustParseAddr("10.32.4.9")}
		in := exampleInput()
		in.Pods = []Pod{pod}
		r, err := New(Config{Host: hosttest.New(nil)})
		if err != nil {
			t.Fatal(err)
		}
		r.Update(in)
		link := host.VethName(pod.id())
		if _, known := r.forget(pod.id()); !known {
			t.Fatal("the pod is not known")
		}
		r.bury(link)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		waited := make(chan error, 1)
		go func() { waited <- r.buried(ctx, link) }()
		synctest.Wait()
		r.Update(in) // its claim is not released yet
		if _, known := r.forget(pod.id()); !known {
			t.Fatal("the pod is not known the second time")
		}
		if due, _ := r.due(time.Now().Add(time.Hour)); len(due) != 0 {
			t.Errorf("%v is to be deleted before the pod is cut off anew", due)
		}
		r.bury(link)
		r.close(link)
		if err := <-waited; err != nil {
			t.Errorf("who waited for the link: %v", err)
		}
	})
}

// One link that the kernel does not let go of must not hold the addresses of all other pods back.
func TestOneLinkThatStaysHoldsNoOtherBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck, fine := Pod{Name: "a", V4: netip.MustParseAddr("10.32.4.9")}, Pod{Name: "b", V4: netip.MustParseAddr("10.32.4.10")}
		h := hosttest.New(nil)
		h.Fail = func(change string) error {
			if change == "unplug "+host.VethName(stuck.id()) {
				return errors.New("device or resource busy")
			}
			return nil
		}
		r, err := New(Config{Host: h})
		if err != nil {
			t.Fatal(err)
		}
		in := exampleInput()
		r.Update(in)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() {
			if err := r.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		for _, p := range []Pod{stuck, fine} {
			if _, err := r.Attach(ctx, AttachRequest{Pod: p, NetNS: "x"}); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range []Pod{stuck, fine} {
			if err := r.Detach(ctx, p.Name, ""); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if r.Lingers(fine.V4) {
			t.Error("the address of the other pod is held back")
		}
		if !r.Lingers(stuck.V4) {
			t.Error("the address that is on an interface still is free")
		}
	})
}
