package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// Bars on resident memory, in MB: of an idle daemon, and of a data plane with three peers under load.
const (
	daemonBar = 40
	wireBar   = 64

	settle    = 5 * time.Second // until an idle process is called idle
	loadLasts = 5 * time.Second
	loadFlows = 8       // TCP flows from each peer
	loadRate  = 200_000 // datagrams a second from each peer, more than a data plane carries
	loadSize  = 1392    // bytes of each, near the MTU: buffers fill quickest
	megabyte  = 1e6
	mebibyte  = 1 << 20
)

// weigh prints what the processes of machines occupy: idle, and the most that a data plane has taken after all peers of the
// first machine poured into its pod at once, first TCP, then datagrams faster than they are carried.
func (bd *bed) weigh(ctx context.Context, out io.Writer, machines []*cluster.Machine, pods []*cluster.Pod) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settle):
	}
	daemon, err := heaviest(machines, resident, func(m *cluster.Machine) int { return m.Daemon.Pid() })
	if err != nil {
		return err
	}
	idle, err := heaviest(machines, resident, (*cluster.Machine).Wire)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\nresident memory, idle, %d nodes: daemon %.1f MiB (bar: %d MB, %s), wire %.1f MiB\n",
		len(machines), daemon, daemonBar, verdict(daemon*mebibyte <= daemonBar*megabyte), idle)

	target := pods[0]
	if err := bd.serve(ctx, &contender{name: "load", src: pods[1].Host, dst: target.Host, addr: target.Addrs[0]}); err != nil {
		return err
	}
	to := target.Addrs[0]
	var sent float64 // GiB
	for _, load := range [][]string{
		{bd.blast, "-tcp", fmt.Sprint(loadFlows), "-congestion", bd.congestion, "-for", loadLasts.String(), "-to", fmt.Sprintf("%v:%d", to, sinkPort)},
		{bd.programs.Probe, "rain", "-json", "-rate", fmt.Sprint(loadRate), "-s", fmt.Sprint(loadSize), "-for", loadLasts.String(), fmt.Sprintf("%v:%d", to, blastPort)},
	} {
		var sources []*netlab.Cmd
		for _, p := range pods[1:] {
			c := p.Command(load[0], load[1:]...).Quiet()
			if err := c.Start(); err != nil {
				return err
			}
			sources = append(sources, c)
		}
		for _, c := range sources {
			var r struct {
				Bytes int64
				Sent  uint64
			}
			if err := answer(c, &r); err != nil {
				return fmt.Errorf("load: %w", err)
			}
			sent += (float64(r.Bytes) + float64(r.Sent)*loadSize) / gib
		}
	}
	loaded, err := heaviest(machines, residentPeak, (*cluster.Machine).Wire)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "resident memory, peak of the wire under load of %d peers (%.1f GiB sent): %.1f MiB (bar: %d MB, %s)\n",
		len(pods)-1, sent, loaded, wireBar, verdict(loaded*mebibyte <= wireBar*megabyte))
	return nil
}

// heaviest is the largest figure of a process that each machine has, in MiB.
func heaviest(machines []*cluster.Machine, of string, pid func(*cluster.Machine) int) (most float64, err error) {
	for _, m := range machines {
		mib, err := memoryMiB(pid(m), of)
		if err != nil {
			return 0, err
		}
		most = max(most, mib)
	}
	return most, nil
}
