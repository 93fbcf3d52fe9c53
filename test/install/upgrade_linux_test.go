package install

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"weft/test/cluster"
	"weft/test/netlab"
)

// mostLost is how many packets of a flood may be lost in a planned exchange of the data plane: those of 200 ms. How long
// answers were waited for is shown, and not judged: on a machine with other work that is the other work.
const (
	floodRate = 200 // a second
	mostLost  = floodRate / 5
)

// pods attaches one pod to each of two machines and waits until they reach each other.
func pods(a, b *room) (to string) {
	a.t.Helper()
	for _, r := range []*room{a, b} {
		r.must("ip netns add web")
		to = strings.Fields(r.must("weft attach web"))[0]
	}
	a.wait("ip netns exec web /lab/labprobe ping -c 1 " + to)
	return to
}

// flood sends a packet each 5 ms from a pod until the returned function is called, which says what came of them.
func (r *room) flood(to string) (end func() (lost int, gap float64)) {
	r.t.Helper()
	c := r.command(fmt.Sprintf("echo $$ >/run/flood; exec ip netns exec web /lab/labprobe flood -json -rate %d -for 10m %s", floodRate, to))
	must(r.t, c.Start())
	must(r.t, cluster.Poll(r.within(patience), func() error {
		_, err := r.sh("test -s /run/flood")
		return err
	}))
	return func() (int, float64) {
		r.t.Helper()
		r.must("kill -TERM $(cat /run/flood); rm /run/flood")
		<-c.Done()
		var result struct {
			Sent, Received int
			Gap            float64 `json:"longest_gap"`
		}
		if err := json.Unmarshal([]byte(c.Stdout()), &result); err != nil || result.Sent < 100 {
			r.t.Fatalf("flood: %v\n%s%s", err, c.Stdout(), c.Stderr())
		}
		return result.Sent - result.Received, result.Gap
	}
}

// wire is the process of the data plane, and the build that runs there.
func (r *room) wire() string {
	return strings.TrimSpace(r.must(`for p in /proc/[0-9]*; do
		set -- $({ tr '\0' ' ' <$p/cmdline; } 2>/dev/null)
		[ "${1##*/} ${2:-}" != 'weft wire' ] || echo ${p#/proc/} $(readlink $p/exe); done`))
}

// The same line upgrades a machine: the daemon restarts, and then the data plane is exchanged; pods notice next to nothing
// of either.
func TestUpgradeKeepsPacketsFlowing(t *testing.T) {
	s := newSite(t)
	founder, token := s.found()
	n2 := s.room("n2", "systemd")
	n2.must(s.oneLine("dist", token))
	to := pods(founder, n2)
	// Both ends, and both kinds of machine.
	for _, r := range []*room{n2, founder} {
		before := r.wire()
		end := founder.flood(to)
		began := time.Now()
		out := r.must(s.oneLine("next", token))
		if !strings.Contains(out, "packets flow meanwhile") || !strings.Contains(out, "Ready: weft "+newer) {
			t.Errorf("%s: %s", r.Name(), out)
		}
		r.wait("weft status", newer)
		if r.wire() == before {
			t.Logf("%s: the old data plane carries on", r.Name())
		}
		must(t, cluster.Poll(r.within(patience), func() error {
			now := r.wire()
			if strings.Contains(now, "deleted") || now == "" || strings.Contains(now, "\n") || now == before {
				return fmt.Errorf("the data plane is %q, and was %q", now, before)
			}
			return nil
		}))
		took := time.Since(began)
		r.wait("weft status", "direct")
		lost, gap := end()
		t.Logf("%s (%s) upgraded in %.1f s, the data plane with it: %d packets lost, longest gap %.0f ms",
			r.Name(), r.kind, took.Seconds(), lost, 1000*gap)
		if lost > mostLost {
			t.Errorf("%s: %d packets are lost", r.Name(), lost)
		}
		if r.kind == "systemd" {
			r.must("systemctl is-active weft weft-wire")
			if main := strings.TrimSpace(r.must("systemctl show -p MainPID --value weft-wire")); !strings.HasPrefix(r.wire(), main+" ") {
				t.Errorf("systemd thinks that process %s is the data plane, and it is %s", main, r.wire())
			}
		}
	}
}

// The units do what an operator and a crash do to them.
func TestUnitsUnderSystemd(t *testing.T) {
	s := newSite(t)
	founder, token := s.found()
	n2 := s.room("n2", "systemd")
	n2.must(s.oneLine("dist", token))
	to := pods(founder, n2)
	n2.must("systemd-analyze verify /etc/systemd/system/weft*.service")

	before := n2.wire()
	end := founder.flood(to)
	n2.must("systemctl stop weft")
	if state := n2.refused("systemctl is-active weft"); !strings.Contains(state, "inactive") {
		t.Errorf("stopped, weft is %s", state)
	}
	n2.must("systemctl start weft && systemctl restart weft")
	n2.must("kill -KILL $(systemctl show -p MainPID --value weft)")
	n2.wait("systemctl is-active weft && weft status", "ready", "direct")
	lost, gap := end()
	t.Logf("stop, start, restart and crash of the daemon: %d packets lost, longest gap %.0f ms", lost, 1000*gap)
	if lost > 0 {
		t.Errorf("%d packets are lost", lost)
	}
	if now := n2.wire(); now != before {
		t.Errorf("the data plane was %s and is %s", before, now)
	}

	began := time.Now()
	n2.must("kill -KILL $(systemctl show -p MainPID --value weft-wire)")
	founder.wait("ip netns exec web /lab/labprobe ping -c 1 -w 200ms " + to)
	t.Logf("the data plane was killed; %.1f s later packets flow again", time.Since(began).Seconds())
	if now := n2.wire(); now == before || strings.Contains(now, "\n") {
		t.Errorf("the data plane was %s and is %s", before, now)
	}

	n2.must("weft down")
	n2.wait("systemctl is-active weft weft-wire || true", "inactive\ninactive")
	n2.must("ip route show | grep unreachable")
	n2.must("systemctl start weft")
	n2.wait("weft status", "ready", "direct")
	founder.wait("ip netns exec web /lab/labprobe ping -c 1 " + to)

	// As they stand in the sandboxes: what the daemon needs is not in its way.
	n2.must("weft doctor")
	n2.must("systemctl restart weft-wire")
	founder.wait("ip netns exec web /lab/labprobe ping -c 1 " + to)
}

// The sandboxes leave room for what is switched on later: Docker's plugin, whose socket lies outside of weft's own folders, and
// WireGuard in the data plane, which has no devices of its own to open.
func TestOptionsInTheSandboxes(t *testing.T) {
	s := newSite(t)
	founder, token := s.found()
	n2 := s.room("n2", "systemd")
	n2.must(s.oneLine("dist", token))
	to := pods(founder, n2)
	n2.must("mkdir -p /etc/weft && printf 'docker: true\n' >/etc/weft/weft.yaml && weft config check && systemctl restart weft")
	const ask = "curl -sS --unix-socket /run/docker/plugins/weft.sock -X POST http://weft/"
	n2.wait(ask+"Plugin.Activate", "NetworkDriver", "IpamDriver")
	if caps := n2.must(ask + "NetworkDriver.GetCapabilities"); !strings.Contains(caps, "Scope") {
		t.Error(caps)
	}
	n2.must("weft client add phone >/run/phone.conf && grep -q PrivateKey /run/phone.conf")
	n2.wait("ip -o link show up", "wf-clients")
	n2.must("systemctl restart weft-wire")
	n2.wait("ip -o link show up", "wf-clients")
	founder.wait("ip netns exec web /lab/labprobe ping -c 1 " + to)
	n2.must("systemctl stop weft")
	n2.refused("test -e /run/docker/plugins/weft.sock")
}

// From the first moment of a boot on no packet of the pools leaves in clear, though weft itself starts late: seen on the
// cable. Without weft-guard the same captures do see some.
func TestGuardFromBootOn(t *testing.T) {
	s := newSite(t)
	_, token := s.found()
	first := s.room("first", "systemd")
	first.must(s.oneLine("dist", token))
	first.wait("ip -4 route show type unreachable", pool4)
	first.must("systemctl stop weft weft-wire && tar -cf /lab/kept.tar -C / var/lib/weft usr/local/bin/weft etc/systemd/system")
	first.kill()

	for _, guarded := range []bool{true, false} {
		name := map[bool]string{true: "guarded", false: "bare"}[guarded]
		t.Run(name, func(t *testing.T) {
			h := s.lab.Host(name)
			s.plug(h)
			capture := h.Capture("eth0", netlab.CaptureOptions{Match: netlab.Cleartext(netip.MustParsePrefix(pool4)), Keep: 16})
			r := enter(t, h, "systemd", func(r *room) {
				r.must("tar -xf /lab/kept.tar -C / && rm /var/lib/weft/wire.sock*")
				if !guarded {
					r.must("systemctl disable --quiet weft-guard.service")
				}
				// Whatever sends, sends as soon as there may be a network; the daemon comes later.
				r.must("ip route add default via 192.0.2.1")
				r.write("/etc/systemd/system/chatter.service", chatter)
				r.write("/etc/systemd/system/late.service", "[Service]\nType=oneshot\nExecStart=/bin/sleep 2\n[Install]\nWantedBy=multi-user.target\n")
				r.write("/etc/systemd/system/weft.service.d/late.conf", "[Unit]\nAfter=late.service\n")
				r.must("systemctl enable --quiet chatter.service late.service")
			})
			r.wait("systemctl is-active weft", "active")
			r.wait("cat /run/chatter", "sent")
			capture.Stop()
			must(t, capture.Err())
			t.Logf("%d packets on the cable, %d with an address of the pool in clear", capture.Seen(), capture.Count())
			if guarded {
				r.must("systemctl is-active weft-guard && journalctl -q -u weft-guard | grep 'Guards .* until weft runs'")
				if capture.Count() > 0 {
					t.Errorf("in clear: %v", capture.Packets())
				}
			} else if capture.Count() == 0 {
				t.Error("without the guard nothing was to be seen either, so the capture proves nothing")
			}
		})
	}
}

// pool4 is the first that weft takes where nobody has it.
const pool4 = "10.32.0.0/12"

// chatter sends with addresses of the pool, to them and from them.
const chatter = `[Unit]
DefaultDependencies=no
Wants=network-pre.target
After=network-pre.target
[Service]
Type=simple
ExecStart=/bin/sh -c '\
	ip address add 10.33.7.7/32 dev lo; ip link set lo up; \
	for i in $(seq 60); do \
		/lab/labprobe ping -c 1 -w 30ms 10.44.0.9; /lab/labprobe ping -c 1 -w 30ms -from 10.33.7.7 192.0.2.1; \
	done; echo sent >/run/chatter'
[Install]
WantedBy=multi-user.target
`
