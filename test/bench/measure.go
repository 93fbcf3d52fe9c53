package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"weft/test/netlab"
)

// quantity is a line of the table.
type quantity struct {
	name  string
	unit  string
	less  bool // less is better
	bars  map[string]float64
	needs int // which measurement yields it
}

// Measurements: one of them may yield several quantities.
const (
	measureFlow   = iota // one TCP flow, with a few pings beside it
	measureFlows         // eight
	measureLarge         // UDP
	measureSmall         // UDP
	measureSilent        // pings alone
)

const (
	qFlow       = "TCP 1 flow"
	qFlowCPU    = "TCP 1 flow, CPU"
	qFlowAll    = "TCP 1 flow, all CPUs"
	qFlows      = "TCP 8 flows"
	qFlowsCPU   = "TCP 8 flows, CPU"
	qFlowsAll   = "TCP 8 flows, all CPUs"
	qLarge      = "UDP 1400 B"
	qLargeCPU   = "UDP 1400 B, CPU"
	qSmall      = "UDP 64 B"
	qSmallCPU   = "UDP 64 B, CPU"
	qPing       = "ping p50, idle"
	qPingBeside = "ping p50, beside 1 flow"
)

// quantities in the order of the table, with the bars for sleeve against wireguard-go.
func quantities() []quantity {
	return []quantity{
		{name: qFlow, unit: "Gbit/s", bars: map[string]float64{columnOff: 1.6, columnOn: 2.0}, needs: measureFlow},
		{name: qFlowCPU, unit: "CPU-s/GiB", less: true, bars: map[string]float64{columnOff: 0.6, columnOn: 0.5}, needs: measureFlow},
		{name: qFlowAll, unit: "CPU-s/GiB", less: true, needs: measureFlow},
		{name: qFlows, unit: "Gbit/s", needs: measureFlows},
		{name: qFlowsCPU, unit: "CPU-s/GiB", less: true, needs: measureFlows},
		{name: qFlowsAll, unit: "CPU-s/GiB", less: true, needs: measureFlows},
		{name: qLarge, unit: "kpacket/s", needs: measureLarge},
		{name: qLargeCPU, unit: "CPU-µs/packet", less: true, needs: measureLarge},
		{name: qSmall, unit: "kpacket/s", needs: measureSmall},
		{name: qSmallCPU, unit: "CPU-µs/packet", less: true, needs: measureSmall},
		{name: qPing, unit: "µs", less: true, needs: measureSilent},
		{name: qPingBeside, unit: "µs", less: true, needs: measureFlow},
	}
}

// sample is what one measurement of one contender yielded, by the name of the quantity.
type sample map[string]float64

const gib = 1 << 30

// measure takes one measurement.
func (bd *bed) measure(c *contender, what int, length time.Duration) (sample, error) {
	switch what {
	case measureFlow:
		return bd.flows(c, 1, length, flowNames{qFlow, qFlowCPU, qFlowAll, qPingBeside})
	case measureFlows:
		return bd.flows(c, 8, length, flowNames{qFlows, qFlowsCPU, qFlowsAll, ""})
	case measureLarge:
		return bd.datagrams(c, 1400, length, qLarge, qLargeCPU)
	case measureSmall:
		return bd.datagrams(c, 64, length, qSmall, qSmallCPU)
	case measureSilent:
		rtt, err := finish(bd.pings(c, 300*time.Millisecond, 5*time.Millisecond))
		return sample{qPing: rtt}, err
	}
	return nil, fmt.Errorf("no such measurement: %d", what)
}

// flowNames are what flows yields: price is the CPU time of the contender's processes, machine that of everything, which alone
// tells what the kernel does. Without a name for pings there are none.
type flowNames struct{ rate, price, machine, ping string }

// flows pours TCP through the contender.
func (bd *bed) flows(c *contender, n int, length time.Duration, names flowNames) (sample, error) {
	before, err := cpuTimes(c.pids)
	if err != nil {
		return nil, err
	}
	allBefore, err := busyTime()
	if err != nil {
		return nil, err
	}
	stream := c.src.Command(bd.blast, "-tcp", strconv.Itoa(n), "-congestion", bd.congestion,
		"-to", fmt.Sprintf("%v:%d", c.addr, sinkPort), "-for", length.String()).Quiet()
	if err := stream.Start(); err != nil {
		return nil, err
	}
	s := sample{}
	if names.ping != "" {
		if s[names.ping], err = finish(bd.pings(c, length*8/10, 10*time.Millisecond)); err != nil {
			return nil, err
		}
	}
	var r struct {
		Bytes   int64
		Seconds float64
	}
	if err := answer(stream, &r); err != nil {
		return nil, err
	}
	after, err := cpuTimes(c.pids)
	if err != nil {
		return nil, err
	}
	allAfter, err := busyTime()
	if err != nil {
		return nil, err
	}
	s[names.rate] = float64(r.Bytes) * 8 / 1e9 / r.Seconds
	s[names.machine] = (allAfter - allBefore).Seconds() / (float64(r.Bytes) / gib)
	if len(c.pids) > 0 {
		s[names.price] = (after - before).Seconds() / (float64(r.Bytes) / gib)
	}
	return s, nil
}

// datagrams sends UDP through the contender as fast as it arrives.
func (bd *bed) datagrams(c *contender, size int, length time.Duration, rate, price string) (sample, error) {
	before, err := cpuTimes(c.pids)
	if err != nil {
		return nil, err
	}
	blast := c.src.Command(bd.blast, "-to", fmt.Sprintf("%v:%d", c.addr, blastPort), "-size", strconv.Itoa(size), "-for", length.String()).Quiet()
	if err := blast.Start(); err != nil {
		return nil, err
	}
	var r struct {
		Received uint64
		Seconds  float64
	}
	if err := answer(blast, &r); err != nil {
		return nil, err
	}
	after, err := cpuTimes(c.pids)
	if err != nil {
		return nil, err
	}
	s := sample{rate: float64(r.Received) / 1e3 / r.Seconds}
	if len(c.pids) > 0 && r.Received > 0 {
		s[price] = float64((after - before).Microseconds()) / float64(r.Received)
	}
	return s, nil
}

// pings starts pings to the far pod for so long.
func (bd *bed) pings(c *contender, length, pause time.Duration) (*netlab.Cmd, error) {
	p := c.src.Command(bd.programs.Probe, "ping", "-json", "-c", strconv.Itoa(max(int(length/pause), 3)), "-i", pause.String(), c.addr.String()).Quiet()
	return p, p.Start()
}

// finish waits for pings and returns the median, in microseconds. Lost ones do not count: others look after loss.
func finish(p *netlab.Cmd, err error) (float64, error) {
	if err != nil {
		return 0, err
	}
	var r []struct {
		Received uint64
		RTT      struct{ Median float64 } `json:"rtt_ms"`
	}
	if err := answer(p, &r); len(r) != 1 || r[0].Received == 0 {
		return 0, fmt.Errorf("no answer to pings: %w", err)
	}
	return r[0].RTT.Median * 1000, nil
}

// answer waits for a process and reads what it printed.
func answer(p *netlab.Cmd, into any) error {
	err := p.Wait()
	if jerr := json.NewDecoder(strings.NewReader(p.Stdout())).Decode(into); jerr != nil && err == nil {
		err = fmt.Errorf("read what %s printed: %w", p, jerr)
	}
	return err
}
