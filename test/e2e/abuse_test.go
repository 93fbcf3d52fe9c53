package e2e

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"weft/prog/control"
	"weft/test/cluster"
	"weft/test/netlab"
)

// How hard the stories of this file press. What a machine can send of it, it sends.
const (
	floodRate = 50_000 // datagrams a second
	floodTime = 2 * time.Second
	dialers   = 32 // that open TLS connections at the same time

	// mayGrow is what a process may weigh more after a flood than before, MiB: queues and tables are bounded, whatever comes.
	mayGrow = 64
)

// Floods of every kind come in at the weft port of a machine while its pods talk. The pods keep their tunnel, the machine
// its memory, and the flood is counted.
func TestFloodsAreBorne(t *testing.T) {
	s := tell(t)
	s.machines = s.machines[:2]
	tp := s.record(s.a, s.b)
	s.form()
	pods := s.pods()
	s.connected(pods)
	victim := s.b.AddrPort4(6783)
	attacker := s.sites.Internet
	shakes := tp.some(64, isHandshake)
	if len(shakes) == 0 {
		t.Fatal("no handshake was recorded")
	}
	recorded := s.payloads("shakes", shakes)
	sealed := s.payloads("sealed", tp.some(512, isSealed))

	drizzle := func(from *netlab.Host, to netip.AddrPort, args ...string) *netlab.Cmd {
		t.Helper()
		c := from.Command(programs.Probe, append(append([]string{"rain", "-rate", strconv.Itoa(floodRate), "-for", floodTime.String()}, args...), to.String())...)
		s.must(c.Start())
		return c
	}
	for _, flood := range []struct {
		name  string
		start func() (wait func() string)
		drops []string // at least one of these is counted at the victim; none: it does not come so far
	}{
		{"garbage", s.rains(drizzle, attacker, victim), []string{"malformed", "unknown_index", "mac", "handshake", "foreign"}},
		{
			"what looks like handshakes, from everywhere", s.rains(drizzle, attacker, victim, "-first", "10", "-s", "148", "-from", "100.64.0.0/10"),
			[]string{"mac", "malformed", "handshake"},
		},
		{
			"recorded handshakes, from everywhere", s.rains(drizzle, attacker, victim, "-file", recorded, "-from", "100.64.0.0/10"),
			[]string{"rate", "cookie", "old_counter", "mac", "handshake", "unknown_index", "no_secret"},
		},
		{
			"recorded packets, from everywhere", s.rains(drizzle, attacker, victim, "-file", sealed, "-from", "100.64.0.0/10"),
			[]string{"replay", "unknown_index", "unauthentic"},
		},
		{
			"what looks like WireGuard's, from everywhere", s.rains(drizzle, attacker, victim, "-first", "04000000", "-s", "148", "-from", "100.64.0.0/10"),
			[]string{"malformed", "flood"},
		},
		{"connections, from everywhere", s.rains(drizzle, attacker, victim, "-syn", "-from", "100.64.0.0/10"), nil},
		{"TLS handshakes", s.dials(attacker, victim), nil},
		{"a pod to the ports of both machines", func() func() string {
			var all []func() string
			for _, to := range []netip.AddrPort{victim, s.a.AddrPort4(6783), s.a.AddrPort4(6785)} {
				all = append(all, s.rains(drizzle, pods[0].Host, to, "-rate", strconv.Itoa(floodRate/3))())
			}
			return func() (text string) {
				for _, wait := range all {
					text = wait()
				}
				return text
			}
		}, nil},
	} {
		before, weight := s.metrics(s.b), s.weight()
		talk := s.flood(pods[0].Host, pods[1].Addrs[0].String(), floodTime)
		sent := flood.start()()
		_, heard := talk()
		grown := s.weight() - weight
		t.Logf("%s: %s; a pod meanwhile: %s; memory %+.0f MiB", flood.name, sent, heard, grown)
		if grown > mayGrow {
			t.Errorf("%s: data planes and daemons weigh %.0f MiB more than before", flood.name, grown)
		}
		s.must(pods[0].WaitPing(s.within(patience), pods[1].Addrs[0]))
		if len(flood.drops) == 0 {
			continue
		}
		s.must(cluster.Poll(s.within(patience), func() error {
			now := s.metrics(s.b)
			for _, kind := range flood.drops {
				if now.Events("sleeve", "drop_"+kind, "peer_drop_"+kind) > before.Events("sleeve", "drop_"+kind, "peer_drop_"+kind) {
					return nil
				}
			}
			return fmt.Errorf("%s: none of %v was counted:\n%s", flood.name, flood.drops, differences(before, now))
		}))
	}
	s.whole()
	s.connected(pods)
}

// Machines join at one that is being flooded, and their pods reach its pods: it is who they are, not where they come from, that
// lets them in.
func TestNewcomersEnterUnderFloods(t *testing.T) {
	s := tell(t)
	newcomer := s.c
	s.machines = s.machines[:2]
	tp := s.record(s.b, s.a)
	token := s.form("--transport", "sleeve")
	s.connected(s.pods())
	shakes := tp.some(64, isHandshake)
	if len(shakes) == 0 {
		t.Fatal("no handshake was recorded")
	}
	enter := func() time.Duration {
		t.Helper()
		began := time.Now()
		s.must(newcomer.Up("--join", token, "--transport", "sleeve"))
		_, err := newcomer.WaitTunnels(s.within(startPatience), len(s.machines))
		s.must(err)
		s.must(newcomer.WaitPing(s.within(startPatience), s.overlay(s.a)[0]))
		took := time.Since(began)
		_, err = newcomer.CLI("leave", "--purge")
		s.must(err)
		s.must(newcomer.Daemon.Wait())
		s.whole()
		return took
	}
	t.Logf("without a flood a machine was in after %.2f s", enter().Seconds())
	everywhere := []string{"-from", "100.64.0.0/10"}
	for _, flood := range []struct {
		name string
		args []string
	}{
		{"garbage", nil},
		{"what looks like handshakes, from everywhere", append([]string{"-first", "10", "-s", "320"}, everywhere...)},
		{"recorded handshakes, from everywhere", append([]string{"-file", s.payloads("shakes", shakes)}, everywhere...)},
		{"what looks like WireGuard's, from everywhere", append([]string{"-first", "04000000", "-s", "148"}, everywhere...)},
		{"connections, from everywhere", append([]string{"-syn"}, everywhere...)},
	} {
		args := append([]string{"rain", "-rate", strconv.Itoa(floodRate), "-for", "10m"}, flood.args...)
		rain := s.sites.Internet.Command(programs.Probe, append(args, s.a.AddrPort4(6783).String())...)
		s.must(rain.Start())
		took := enter()
		rain.Kill()
		t.Logf("under %s a machine was in after %.2f s", flood.name, took.Seconds())
	}
}

// While strangers flood a machine its status says so, with how many datagrams come; what the kernel drops of them is counted; and
// when it is over the status is as before.
func TestAFloodIsSeen(t *testing.T) {
	t.Parallel() // it mostly waits, and needs no more of the flood than there is
	s := tell(t)
	s.machines = s.machines[:2]
	s.form("--transport", "sleeve")
	const warning = "Strangers flood the weft port"
	warned := func(want bool) (words string) {
		s.Helper()
		_, err := s.b.WaitFor(s.within(startPatience), func(st control.Status) error {
			i := slices.IndexFunc(st.Warnings, func(w string) bool { return strings.Contains(w, warning) })
			if i >= 0 {
				words = st.Warnings[i]
			}
			if (i >= 0) != want {
				return fmt.Errorf("warnings: %q", st.Warnings)
			}
			return nil
		})
		s.must(err)
		return words
	}
	before := s.metrics(s.b)
	if n := before.Event("sleeve", "drop_flood"); n != 0 {
		t.Errorf("%v are counted before there was a flood", n)
	}
	rain := s.sites.Internet.Command(programs.Probe, "rain", "-rate", "20000", "-for", "10m", "-first", "10", "-s", "148", "-from", "100.64.0.0/10",
		s.b.AddrPort4(6783).String())
	s.must(rain.Start())
	t.Log(warned(true))
	out, err := s.b.CLI("status")
	s.must(err)
	t.Logf("what people read:\n%s", out)
	s.must(cluster.Poll(s.within(startPatience), func() error {
		if s.metrics(s.b).Event("sleeve", "drop_flood") == 0 {
			return errors.New("nothing is counted")
		}
		return nil
	}))
	rain.Kill()
	warned(false)
	s.whole()
}

// rains is a flood of datagrams; its end tells how many there were.
func (s *story) rains(drizzle func(*netlab.Host, netip.AddrPort, ...string) *netlab.Cmd, from *netlab.Host, to netip.AddrPort, args ...string) func() func() string {
	return func() func() string {
		c := drizzle(from, to, args...)
		return func() string {
			s.Helper()
			if err := c.Wait(); err != nil {
				s.Fatalf("the flood could not be sent: %v", err)
			}
			return strings.TrimSpace(c.Stdout())
		}
	}
}

// dials is a flood of TLS handshakes: half of them say hello and nothing more, the others go on until they are refused.
func (s *story) dials(from *netlab.Host, to netip.AddrPort) func() func() string {
	return func() func() string {
		ctx, cancel := context.WithTimeout(s.Context(), floodTime)
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex // guards tried, open
			tried int
			open  []func()
		)
		for i := range dialers {
			wg.Go(func() {
				for ctx.Err() == nil {
					raw, err := from.Dial(ctx, "tcp", to.String())
					if err != nil {
						continue
					}
					mu.Lock()
					tried++
					mu.Unlock()
					if i%2 == 0 {
						_, _ = raw.Write([]byte{22, 3, 1, 2, 0, 1}) // the head of a hello that never comes
						mu.Lock()
						open = append(open, func() { _ = raw.Close() })
						mu.Unlock()
						continue
					}
					c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"weft/1"}})
					_ = c.HandshakeContext(ctx)
					_ = raw.Close()
				}
			})
		}
		return func() string {
			wg.Wait()
			cancel()
			for _, hangUp := range open {
				hangUp()
			}
			return fmt.Sprintf("%d connections, %d of them left open", tried, len(open))
		}
	}
}

// payloads writes recorded datagrams to a file for labprobe.
func (s *story) payloads(name string, list [][]byte) string {
	s.Helper()
	var b strings.Builder
	for _, d := range list {
		b.WriteString(hex.EncodeToString(d) + "\n")
	}
	path := filepath.Join(s.lab.Dir(), name)
	s.must(os.WriteFile(path, []byte(b.String()), 0o600))
	return path
}

// weight is what daemons and data planes occupy together, MiB.
func (s *story) weight() (sum float64) {
	s.Helper()
	for _, m := range s.machines {
		for _, pid := range []int{m.Daemon.Pid(), m.Wire()} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
			s.must(err)
			_, rest, _ := strings.Cut(string(b), "VmRSS:")
			var kib float64
			_, err = fmt.Sscan(rest, &kib)
			s.must(err)
			sum += kib / 1024
		}
	}
	return sum
}

// Whatever a stranger sends first, no more bytes come back than went in: nobody can use a machine to flood another. Each
// kind comes from an address of its own, so that an answer tells what it answers.
func TestFirstPacketsAreNotAmplified(t *testing.T) {
	s := tell(t)
	s.machines = s.machines[:2]
	tp := s.record(s.a, s.b)
	s.form()
	s.connected(s.pods())
	type kind struct {
		name string
		list [][]byte
	}
	var kinds []kind
	for first := range 256 {
		k := kind{name: fmt.Sprintf("random with first byte %#02x", first)}
		for _, size := range []int{1, 12, 32, 64, 92, 148, 176, 256, 1200, 1400} {
			d := make([]byte, size)
			for i := range d {
				d[i] = byte(i*7 + first*13)
			}
			d[0] = byte(first)
			k.list = append(k.list, d)
		}
		kinds = append(kinds, k)
	}
	shakes := tp.some(16, isHandshake)
	if len(shakes) == 0 {
		t.Fatal("no handshake was recorded")
	}
	for _, d := range shakes {
		kinds = append(kinds, kind{fmt.Sprintf("recorded handshake %#02x of %d bytes", d[0], len(d)), [][]byte{d}})
	}
	kinds = append(kinds, kind{"recorded packets", tp.some(32, isSealed)})
	kinds = append(kinds, kind{"many recorded handshakes", slices.Repeat(shakes, 200)}) // until it asks for cookies

	type count struct{ in, out int }
	var mu sync.Mutex
	counts := make([]count, len(kinds))
	spoofed := netip.MustParsePrefix("100.64.0.0/16")
	number := func(a netip.Addr) int { b := a.As4(); return int(b[2])<<8 | int(b[3]) }
	watch := s.b.LinkOf("eth0").Capture(netlab.CaptureOptions{Keep: 1, Match: func(p *netlab.Packet) bool {
		h, ok := p.IP()
		if !ok || !h.Src.Is4() {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		for _, d := range p.Datagrams() {
			switch {
			case h.Src == s.b.Addr4() && spoofed.Contains(h.Dst):
				counts[number(h.Dst)].out += len(d)
			case h.Dst == s.b.Addr4() && spoofed.Contains(h.Src):
				counts[number(h.Src)].in += len(d)
			}
		}
		return false
	}})
	for i, k := range kinds {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{100, 64, byte(i >> 8), byte(i)}), uint16(10_000+i))
		for _, d := range k.list {
			s.must(s.sites.Router.SendUDP(from, s.b.AddrPort4(6783), d))
		}
	}
	// Answers to the last of them have left once a later word of the same wire is there.
	s.must(cluster.Poll(s.within(patience), func() error {
		mu.Lock()
		defer mu.Unlock()
		for i, k := range kinds {
			if counts[i].in == 0 {
				return fmt.Errorf("%s did not arrive", k.name)
			}
		}
		return nil
	}))
	s.must(s.a.WaitPing(s.within(patience), s.overlay(s.b)[0]))
	watch.Stop()
	s.must(watch.Err())
	answered := 0
	for i, k := range kinds {
		if c := counts[i]; c.out > c.in {
			t.Errorf("%s: %d bytes in, %d bytes out", k.name, c.in, c.out)
		} else if c.out > 0 {
			answered++
			t.Logf("%s: %d bytes in, %d bytes out, ratio %.2f", k.name, c.in, c.out, float64(c.out)/float64(c.in))
		}
	}
	t.Logf("%d of %d kinds were answered at all", answered, len(kinds))
}
