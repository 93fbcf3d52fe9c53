package host_test

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"weft/router/host"
	"weft/router/host/hosttest"
)

// Devices of pods that are made are no news to the one who makes them.
func TestWatchIsSilentAboutNewPods(t *testing.T) {
	machine := hosttest.NewNS(t)
	h := machine.Host()
	route := host.Route{Dst: netip.MustParsePrefix("10.32.0.0/12"), Kind: host.Unreachable, Metric: host.UnreachableMetric}
	if err := h.Apply(t.Context(), []host.Change{{Route: &route}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	events, err := h.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		pod := hosttest.NewNS(t)
		v := host.Veth{
			ID: fmt.Sprint("pod", i), NetNS: pod.Path, IfName: "eth0", MTU: 1420, V4: netip.AddrFrom4([4]byte{10, 32, 0, byte(10 + i)}),
			Routes: []netip.Prefix{route.Dst},
		}
		if err := h.Plug(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	// Events come in order: the first that is told is of what happens now.
	if err := h.Apply(t.Context(), []host.Change{{Op: host.Delete, Route: &route}}); err != nil {
		t.Fatal(err)
	}
	select {
	case e := <-events:
		if e.What != "route" {
			t.Errorf("told of %+v", e)
		}
	case <-time.After(time.Minute):
		t.Error("told of nothing at all")
	}
	cancel()
	for range events {
	}
}
