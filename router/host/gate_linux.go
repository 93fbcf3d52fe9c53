package host

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// A gate is a program at the place where the kernel takes packets from the device (clsact, ingress), asked for each packet
// of that device and of no other. Where the kernel has no such thing, it is policy routing rules for what the device brings.
// These come dear: with the first rule that a machine ever had its kernel looks up each packet's source and destination, of
// whatever device, by going through all rules and tables, and never goes back to the short way, also when the rule goes.

// Priorities of the policy rules that stand in for programs.
const ruleGateOpen, ruleGateShut = 6783, 6784

// gates are what Host remembers of them.
type gates struct {
	mu      sync.Mutex // guards what follows
	wanted  map[string]Gate
	dropped map[int]uint64 // by each device that ever had one, by index: the sum never goes back
	tried   bool           // whether the kernel was asked if it can
	cannot  error          // why it cannot
}

// ProbeGate puts a program before a device.
func ProbeGate(ctx context.Context) error {
	return probe(ctx, "programs before a device (clsact, bpf)", "Try: modprobe -a sch_ingress cls_bpf", func() error {
		t, err := newTalk()
		if err != nil {
			return err
		}
		defer t.close() //nolint:errcheck // everything was answered
		raw, _ := Gate{}.program()
		return t.putGate(loopback, raw)
	})
}

// canGate answers whether gates are programs here. It is asked once for all.
func (h *Host) canGate() bool {
	g := &h.gates
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.tried {
		g.tried, g.cannot = true, ProbeGate(context.Background())
		if g.cannot != nil {
			h.log.Debug("policy rules stand in for programs before devices", "err", g.cannot)
		}
	}
	return g.cannot == nil
}

// changeGate puts a gate in place or takes it away. A device that is not there yet gets its own as Apply makes it.
func (h *Host) changeGate(op Op, want *Gate) error {
	g := &h.gates
	g.mu.Lock()
	if g.wanted == nil {
		g.wanted, g.dropped = make(map[string]Gate), make(map[int]uint64)
	}
	if op == Delete {
		delete(g.wanted, want.Link)
	} else {
		g.wanted[want.Link] = *want
	}
	g.mu.Unlock()
	l, err := h.nl.LinkByName(want.Link)
	if err != nil && !gone(err) {
		return err
	}
	there := err == nil
	if op == Delete {
		if there {
			if err := h.talk.dropGate(l.Attrs().Index); err != nil {
				return err
			}
		}
		return h.gateRules(Gate{Link: want.Link}, false)
	}
	raw, fits := want.program()
	if !fits || !h.canGate() {
		return h.gateRules(*want, true)
	}
	if there {
		switch err := h.gateDevice(want.Link, l.Attrs().Index, raw); {
		case err != nil && gone(err): // just now; its successor gets it
		case err != nil:
			h.log.Debug("policy rules stand in for the program before a device", "device", want.Link, "err", err)
			return h.gateRules(*want, true)
		}
	}
	return h.gateRules(Gate{Link: want.Link}, false)
}

func (h *Host) gateDevice(name string, index int, raw []bpf.RawInstruction) error {
	if err := h.talk.putGate(index, raw); err != nil {
		return fmt.Errorf("put a gate before %s: %w", name, err)
	}
	h.gates.mu.Lock()
	defer h.gates.mu.Unlock()
	h.gates.dropped[index] += 0 // it is known from now on
	return nil
}

// gateNew gives a device that was just made, and is not up yet, its gate.
func (h *Host) gateNew(name string, index int) error {
	h.gates.mu.Lock()
	want, ok := h.gates.wanted[name]
	h.gates.mu.Unlock()
	if raw, fits := want.program(); ok && fits && h.canGate() {
		return h.gateDevice(name, index, raw)
	}
	return nil
}

// gateRules makes the policy rules for what a device brings those of g, or none. What lets pass comes first and goes last.
func (h *Host) gateRules(g Gate, shut bool) error {
	var want []Rule
	if shut {
		for _, w := range g.Open {
			want = append(want, Rule{V6: w.From.Addr().Is6(), Priority: ruleGateOpen, IIf: g.Link, From: w.From, To: w.To, Ours: true})
		}
		want = append(want, Rule{Priority: ruleGateShut, IIf: g.Link, Drop: true, Ours: true})
		if h.IPv6() == nil {
			want = append(want, Rule{V6: true, Priority: ruleGateShut, IIf: g.Link, Drop: true, Ours: true})
		}
	}
	have, err := h.ourRules()
	if err != nil {
		return err
	}
	for _, r := range want {
		if !slices.Contains(have, r) {
			if err := h.changeRule(Set, &r); err != nil {
				return fmt.Errorf("set rule %s: %w", r, err)
			}
		}
	}
	slices.SortFunc(have, func(a, b Rule) int { return b.Compare(a) })
	for _, r := range have {
		if r.IIf == g.Link && !slices.Contains(want, r) {
			if err := h.changeRule(Delete, &r); err != nil {
				return fmt.Errorf("delete rule %s: %w", r, err)
			}
		}
	}
	return nil
}

// readGates tells which gates stand, by device and as their String has them; one that is not as it was made has another
// text.
func (h *Host) readGates(links []Link, rules []Rule) (map[string]string, error) {
	out := make(map[string]string)
	h.gates.mu.Lock()
	wanted := maps.Clone(h.gates.wanted)
	program := h.gates.tried && h.gates.cannot == nil
	h.gates.mu.Unlock()
	present := make(map[string]bool)
	for _, l := range links {
		present[l.Name] = true
		if !strings.HasPrefix(l.Name, DevicePrefix) {
			continue
		}
		ops, err := h.talk.readGate(l.Index)
		if err != nil {
			return nil, fmt.Errorf("read the gate of %s: %w", l.Name, err)
		}
		switch raw, fits := wanted[l.Name].program(); {
		case ops == nil:
		case fits && bytes.Equal(ops, appendProgram(nil, raw)):
			out[l.Name] = wanted[l.Name].String()
		default:
			out[l.Name] = "another's"
		}
	}
	for name, g := range wanted { // what waits for its device is as good as there
		if _, fits := g.program(); fits && program && !present[name] {
			out[name] = g.String()
		}
	}
	byRules := make(map[string]*Gate)
	shut := make(map[string]int)
	for _, r := range rules {
		if byRules[r.IIf] == nil {
			byRules[r.IIf] = &Gate{Link: r.IIf}
		}
		if r.Drop {
			shut[r.IIf]++
		} else {
			byRules[r.IIf].Open = append(byRules[r.IIf].Open, Passage{r.From, r.To})
		}
	}
	for name, g := range byRules {
		switch text := g.String(); {
		case out[name] != "" && out[name] == text: // rules of a former run beside the program: they are to go
			out[name] += ", and rules"
		case shut[name] < h.countFamilies():
			out[name] = text + ", open"
		default:
			out[name] = text
		}
	}
	return out, nil
}

func (h *Host) countFamilies() int {
	if h.IPv6() == nil {
		return 2
	}
	return 1
}

// gateDrops counts what gates dropped, those of programs: policy rules do not count.
func (h *Host) gateDrops() (sum uint64, err error) {
	g := &h.gates
	g.mu.Lock()
	defer g.mu.Unlock()
	for index, former := range g.dropped {
		var b batch
		b.fine = func(error) bool { return true } // it went
		b.request(unix.RTM_GETQDISC, unix.NLM_F_ECHO, tcHeader(index, 0, clsact, 0))
		if err := h.talk.ask(&b, func(_ int, _ uint16, data []byte) { former = max(former, qdiscDrops(data)) }); err != nil {
			return 0, fmt.Errorf("count what gates dropped: %w", err)
		}
		g.dropped[index] = former
		sum += former
	}
	return sum, nil
}

// gateEvent knows that something before one of our devices was taken away.
func (h *Host) gateEvent(kind uint16, data []byte) bool {
	if kind != unix.RTM_DELTFILTER && kind != unix.RTM_DELQDISC || len(data) < sizeofTcMsg {
		return false
	}
	h.gates.mu.Lock()
	defer h.gates.mu.Unlock()
	_, ours := h.gates.dropped[int(binary.NativeEndian.Uint32(data[4:]))]
	return ours
}
