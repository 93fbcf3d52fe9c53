package runtimes_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/test/runtimes"
)

// pod is an attachment in the making, as a runtime sees it.
type pod struct {
	s     *story
	w     *runtimes.Weft
	id    string
	netns string
}

// pod makes a namespace, as a runtime does before it calls.
func (s *story) pod(w *runtimes.Weft, id string) *pod {
	s.Helper()
	s.sh(w, "ip netns add "+id)
	return &pod{s, w, id, "/run/netns/" + id}
}

const single = `{"cniVersion":"1.1.0","name":"weft","type":"weft-cni"%s}`

func (p *pod) start(plugin, command, conf string, env ...string) *runtimes.Cmd {
	p.s.Helper()
	c := p.w.Plugin(plugin, command, conf, "CNI_CONTAINERID="+p.id, "CNI_NETNS="+p.netns, "CNI_IFNAME=eth0").Env(env...)
	p.s.must(c.Start())
	return c
}

// call expects an exit code and returns stdout.
func (p *pod) call(command string, want int, more string, env ...string) string {
	p.s.Helper()
	c := p.start("weft-cni", command, fmt.Sprintf(single, more), env...)
	<-c.Done()
	if c.ExitCode() != want {
		p.s.Errorf("%s of %s: exit %d, want %d:\n%s%s", command, p.id, c.ExitCode(), want, c.Stdout(), c.Stderr())
	}
	return c.Stdout()
}

// code is the error code in an answer.
func code(answer string) int {
	var e struct{ Code int }
	_ = json.Unmarshal([]byte(answer), &e)
	return e.Code
}

// The commands in the order of a pod's life, each again where the specification asks for it.
func TestPluginThroughALife(t *testing.T) {
	s := tell(t, 1)
	w := s.nodes[0]
	s.unchanged(w, func() {
		a, b := s.pod(w, "pod-a"), s.pod(w, "pod-b")
		a.call("STATUS", 0, "")
		a.call("VERSION", 0, "")
		result := a.call("ADD", 0, "")
		if again := a.call("ADD", 0, ""); again != result {
			t.Errorf("ADD again says something else:\n%s\n%s", result, again)
		}
		b.call("ADD", 0, "")
		a.call("CHECK", 0, `,"prevResult":`+result)
		v4, v6 := s.addresses(w, b.netns)
		s.sh(w, "ip netns exec pod-a ping -c1 -W20 "+v4)
		s.sh(w, "ip netns exec pod-a ping -c1 -W20 "+v6)
		for what, line := range map[string]string{
			"the pod's default route":  "ip -n pod-a route del default",
			"the pod's IPv6 address":   "ip -n pod-a -6 addr flush dev eth0 scope global",
			"the pod's interface":      "ip -n pod-a link set eth0 down",
			"the interface altogether": "ip -n pod-a link del eth0",
		} {
			a.call("DEL", 0, "")
			result = a.call("ADD", 0, "")
			s.sh(w, line)
			if got := a.call("CHECK", 1, `,"prevResult":`+result); code(got) != 100 {
				t.Errorf("without %s CHECK says %s", what, got)
			}
		}
		a.call("DEL", 0, "")
		a.call("DEL", 0, "")
		if got := a.call("CHECK", 1, `,"prevResult":`+result); code(got) != 3 {
			t.Errorf("after DEL CHECK says %s", got)
		}
		a.call("ADD", 0, "")
		s.sh(w, "ip netns del pod-a")
		a.call("DEL", 0, "")
		a.call("DEL", 0, "", "CNI_NETNS=")
		// GC releases what is not listed, of this network only.
		s.sh(w, "ip netns add by-hand && weft attach by-hand")
		c := s.pod(w, "pod-c")
		c.call("ADD", 0, "")
		c.call("GC", 0, `,"cni.dev/valid-attachments":[{"containerID":"pod-b","ifname":"eth0"}]`)
		claims, err := w.Claims(t.Context())
		s.must(err)
		var names []string
		for _, c := range claims {
			if c.Address.Is4() {
				names = append(names, c.Container)
			}
		}
		if len(names) != 2 || strings.Contains(fmt.Sprint(names), "pod-c") {
			t.Errorf("after GC there are %v", names)
		}
		b.call("DEL", 0, "")
		s.sh(w, "weft detach by-hand; ip netns del by-hand; ip netns del pod-b; ip netns del pod-c")
	})
}

func TestPluginTakesWishes(t *testing.T) {
	s := tell(t, 1, "--pool", "10.99.0.0/24")
	w := s.nodes[0]
	s.unchanged(w, func() {
		p := s.pod(w, "wish")
		p.call("ADD", 0, `,"mtu":1300,"runtimeConfig":{"ips":["10.99.0.77/24"],"mac":"02:00:5e:10:00:07","aliases":["db"]}`)
		if v4, _ := s.addresses(w, p.netns); v4 != "10.99.0.77" {
			t.Errorf("the pod has %s", v4)
		}
		if got := s.sh(w, "ip -n wish -o link show eth0"); !strings.Contains(got, "02:00:5e:10:00:07") || !strings.Contains(got, "mtu 1300") {
			t.Errorf("the pod's interface is %s", got)
		}
		if claims, err := w.Claims(t.Context()); err != nil || len(claims) != 2 || fmt.Sprint(claims[0].Aliases) != "[db]" {
			t.Errorf("the claims are %+v, %v", claims, err)
		}
		for what, c := range map[string]struct {
			more string
			code int
		}{
			"an address outside":    {`,"runtimeConfig":{"ips":["192.0.2.1"]}`, 100},
			"an address in use":     {`,"runtimeConfig":{"ips":["10.99.0.77"]}`, 100},
			"two addresses":         {`,"runtimeConfig":{"ips":["10.99.0.78","10.99.0.79"]}`, 7},
			"a multicast MAC":       {`,"runtimeConfig":{"mac":"01:00:5e:10:00:07"}`, 7},
			"an MTU that is no fit": {`,"mtu":9000`, 7},
		} {
			other := &pod{s, w, "other", "/run/netns/wish"}
			if got := other.call("ADD", 1, c.more, "CNI_IFNAME=eth1"); code(got) != c.code {
				t.Errorf("%s: %s", what, got)
			}
		}
		p.call("DEL", 0, "")
		s.sh(w, "ip netns del wish")
	})
}

// chain runs a list of plugins as a runtime does: each gets the result of the one before, DEL goes backwards.
func (p *pod) chain(command, version, result string, plugins ...string) string {
	p.s.Helper()
	if command == "DEL" {
		slices.Reverse(plugins)
	}
	for _, conf := range plugins {
		before := ""
		if result != "" {
			before = `,"prevResult":` + result
		}
		c := p.start(strings.Split(conf, `"`)[1], command, fmt.Sprintf(`{"cniVersion":%q,"name":"weft","type":%s%s}`, version, conf, before))
		if <-c.Done(); c.ExitCode() != 0 {
			p.s.Errorf("%s of %s: %s%s", command, conf, c.Stdout(), c.Stderr())
		}
		if command == "ADD" {
			result = c.Stdout()
		}
	}
	return result
}

// The reference plugins that follow in a list find what they need in our result, in every version that they speak.
func TestPluginIsFirstInAList(t *testing.T) {
	s := tell(t, 1)
	w := s.nodes[0]
	plugins := []string{
		`"weft-cni"`, `"portmap","runtimeConfig":{"portMappings":[{"hostPort":8099,"containerPort":80,"protocol":"tcp"}]}`,
		`"bandwidth","runtimeConfig":{"bandwidth":{"ingressRate":8000000,"ingressBurst":800000,"egressRate":8000000,"egressBurst":800000}}`,
		`"tuning","sysctl":{"net.core.somaxconn":"77"}`,
	}
	life := func(version string) {
		p := s.pod(w, "listed")
		result := p.chain("ADD", version, "", plugins...)
		host := s.sh(w, "ip -o link show | grep -om1 'wf[0-9a-f]*' | head -1")
		if got := s.sh(w, "tc qdisc show dev "+host); !strings.Contains(got, "tbf") {
			t.Errorf("bandwidth has not found %s: %s", host, got)
		}
		if got := s.sh(w, "ip netns exec listed cat /proc/sys/net/core/somaxconn"); got != "77" {
			t.Errorf("tuning has not found the namespace: %s", got)
		}
		if got := s.sh(w, "iptables-save -t nat | grep -c 8099"); got == "0" {
			t.Error("portmap has made no rule")
		}
		if version > "0.4" {
			// Not that of portmap 1.1: with two families it looks for IPv4 rules in the IPv6 table, whoever made the pod.
			p.chain("CHECK", version, result, plugins[0], plugins[2], plugins[3])
		}
		for range 2 {
			p.chain("DEL", version, result, slices.Clone(plugins)...)
		}
		s.sh(w, "ip netns del listed")
	}
	life("1.0.0") // portmap keeps some chains, for ever
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0"} {
		s.unchanged(w, func() { life(version) })
	}
}

// Whatever goes wrong, nothing is left behind.
func TestPluginLeavesNothingBehind(t *testing.T) {
	s := tell(t, 1)
	w := s.nodes[0]
	a := s.pod(w, "a")
	s.sh(w, "ip -n a link add eth0 type veth peer name other; ip netns add b; touch /run/netns/no-namespace")
	for _, c := range []struct {
		what string
		code int
		conf string
		env  []string
	}{
		{"a namespace that is not there", 8, fmt.Sprintf(single, ""), []string{"CNI_NETNS=/run/netns/none"}},
		{"a file that is no namespace", 8, fmt.Sprintf(single, ""), []string{"CNI_NETNS=/run/netns/no-namespace"}},
		{"the machine's own namespace", 100, fmt.Sprintf(single, ""), []string{"CNI_NETNS=/proc/1/ns/net"}},
		{"an interface name that is taken", 100, fmt.Sprintf(single, ""), nil},
		{"no JSON", 6, "{", nil},
		{"an unknown version", 1, `{"cniVersion":"7.0.0","name":"weft","type":"weft-cni"}`, nil},
		{"300 KB of stdin", 6, strings.Repeat("x", 300<<10), nil},
		{"a strange container", 4, fmt.Sprintf(single, ""), []string{"CNI_CONTAINERID=a/../b"}},
		{"a daemon that is not there", 11, `{"cniVersion":"1.1.0","name":"weft","type":"weft-cni","socket":"/run/none.sock"}`, nil},
	} {
		s.unchanged(w, func() {
			p := a.start("weft-cni", "ADD", c.conf, c.env...)
			if <-p.Done(); p.ExitCode() == 0 || code(p.Stdout()) != c.code {
				t.Errorf("%s: exit %d: %s", c.what, p.ExitCode(), p.Stdout())
			}
		})
	}
}

func TestPluginWithAFullPool(t *testing.T) {
	s := tell(t, 1, "--pool", "10.99.0.0/26")
	w := s.nodes[0]
	s.unchanged(w, func() {
		n := 0
		for ; n < 70; n++ {
			p := s.pod(w, fmt.Sprintf("full%d", n))
			c := p.start("weft-cni", "ADD", fmt.Sprintf(single, ""))
			if <-c.Done(); c.ExitCode() != 0 {
				if code(c.Stdout()) != 11 || !strings.Contains(c.Stdout(), "no free address") {
					t.Errorf("a full pool: %s", c.Stdout())
				}
				break
			}
		}
		if n < 58 || n > 62 {
			t.Errorf("%d pods fit a /26", n)
		}
		for i := range n + 1 {
			p := &pod{s, w, fmt.Sprintf("full%d", i), fmt.Sprintf("/run/netns/full%d", i)}
			p.call("DEL", 0, "")
			s.sh(w, "ip netns del "+p.id)
		}
	})
}

// Two requests for one container, and requests that are killed at any moment.
func TestPluginIsAskedTwiceAndKilled(t *testing.T) {
	s := tell(t, 1)
	w := s.nodes[0]
	s.unchanged(w, func() {
		p := s.pod(w, "twice")
		for range 5 {
			var both [2]*runtimes.Cmd
			var wg sync.WaitGroup
			for i := range both {
				wg.Go(func() { both[i] = p.start("weft-cni", "ADD", fmt.Sprintf(single, "")); <-both[i].Done() })
			}
			wg.Wait()
			if both[0].ExitCode() != 0 || both[0].Stdout() != both[1].Stdout() {
				t.Errorf("two ADDs at once say\n%s\n%s", both[0].Stdout(), both[1].Stdout())
			}
			for i := range both {
				wg.Go(func() { both[i] = p.start("weft-cni", "DEL", fmt.Sprintf(single, "")); <-both[i].Done() })
			}
			wg.Wait()
			if both[0].ExitCode() != 0 || both[1].ExitCode() != 0 {
				t.Errorf("two DELs at once: %s %s", both[0].Stdout(), both[1].Stdout())
			}
		}
		for after := time.Duration(0); after < 40*time.Millisecond; after += 3 * time.Millisecond {
			c := p.start("weft-cni", "ADD", fmt.Sprintf(single, ""))
			<-time.After(after)
			_ = c.Signal(unix.SIGKILL)
			<-c.Done()
			p.call("ADD", 0, "")
			v4, _ := s.addresses(w, p.netns)
			s.sh(w, "ping -c1 -W20 "+v4)
			p.call("DEL", 0, "")
		}
		// The daemon dies with requests in its hands.
		for _, after := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 12 * time.Millisecond} {
			c := p.start("weft-cni", "ADD", fmt.Sprintf(single, ""))
			<-time.After(after)
			w.Crash()
			<-c.Done()
			if c.ExitCode() != 0 && code(c.Stdout()) != 11 {
				t.Errorf("ADD of a daemon that died: %s", c.Stdout())
			}
			s.must(w.Up())
			s.must(w.WaitReady(within(t, startPatience), 1))
			p.call("ADD", 0, "")
			p.call("DEL", 0, "")
		}
		s.sh(w, "ip netns del twice")
	})
}

// No runtime collects garbage, so weft does.
func TestClaimsOfGoneNamespacesAreReclaimed(t *testing.T) {
	s := tell(t, 1, "--reclaim-after", "2s")
	w := s.nodes[0]
	for _, name := range []string{"stays", "goes", "broken", "hidden", "reborn"} {
		s.pod(w, name).call("ADD", 0, "")
	}
	s.sh(w, "ip -n broken link del eth0") // its namespace lives
	s.must(w.Command("ip", "netns", "exec", "hidden", "sleep", "1000").Start())
	s.must(runtimes.Poll(within(t, patience), func() error {
		_, err := w.Exec(t.Context(), "sh", "-c", "ip netns pids hidden | grep -q .")
		return err
	}))
	s.sh(w, "umount /run/netns/hidden && rm /run/netns/hidden") // so does this one, by its process
	gone := time.Now()
	s.sh(w, "ip netns del goes; ip netns del reborn; ip netns add between; ip netns add reborn")
	left := func(want ...string) error {
		claims, err := w.Claims(t.Context())
		var names []string
		for _, c := range claims {
			if c.Address.Is4() {
				names = append(names, c.Container)
			}
		}
		if err == nil && fmt.Sprint(names) != fmt.Sprint(want) {
			err = fmt.Errorf("claims of %v, want %v", names, want)
		}
		return err
	}
	if err := left("stays", "goes", "broken", "hidden", "reborn"); err != nil && time.Since(gone) < 2*time.Second {
		t.Error(err)
	}
	s.must(runtimes.Poll(within(t, patience), func() error { return left("stays", "broken", "hidden") }))
	if took := time.Since(gone); took < 2*time.Second {
		t.Errorf("the claim was released after %v", took)
	}
	s.must(runtimes.Poll(within(t, patience), func() error { // both come a moment after the claim has gone
		if log := w.Daemon.Stderr(); strings.Count(log, "released the claim") != 2 || !strings.Contains(log, "container=goes") {
			return fmt.Errorf("the log says:\n%s", log)
		}
		if got := s.sh(w, "wget -qO- http://127.0.0.1:6782/metrics | grep reclaimed"); !strings.HasSuffix(got, " 2") {
			return fmt.Errorf("the metric says %q", got)
		}
		return nil
	}))
	// After a power cut no namespace is there any more.
	s.must(w.Kill())
	s.must(w.Boot())
	s.must(w.Up("--reclaim-after", "2s"))
	s.must(w.WaitReady(within(t, startPatience), 1))
	s.must(runtimes.Poll(within(t, patience), func() error { return left() }))
}

// Other main plugins get their addresses from the ring, and their pods reach those of weft where the machine routes to them.
func TestAddressesAreLent(t *testing.T) {
	s := tell(t, 2)
	w, far := s.nodes[0], s.nodes[1]
	there := s.pod(far, "there")
	there.call("ADD", 0, "")
	far4, far6 := s.addresses(far, there.netns)
	s.sh(w, "ip link add br7 address 02:00:00:00:00:77 type bridge && ip link add p7 type veth peer name q7 && ip link set p7 master br7 up && ip link set q7 up && ip link set br7 up")
	s.must(runtimes.Poll(within(t, patience), func() error { // the kernel is up to a second late to say so
		_, err := w.Exec(t.Context(), "sh", "-c", "ip -o link show br7 | grep 'state UP'")
		return err
	}))
	for _, main := range []string{
		`"type":"ptp","ipam":{"type":"weft-ipam"}`,
		`"type":"bridge","bridge":"br7","isDefaultGateway":true,"ipam":{"type":"weft-ipam","routes":[]}`,
		`"type":"macvlan","master":"eth0","ipam":{"type":"weft-ipam"}`,
	} {
		s.unchanged(w, func() {
			p := s.pod(w, "lent")
			conf := `{"cniVersion":"1.0.0","name":"other",` + main + `%s}`
			plugin := strings.Split(main, `"`)[3]
			add := p.start(plugin, "ADD", fmt.Sprintf(conf, ""))
			if <-add.Done(); add.ExitCode() != 0 {
				t.Errorf("%s: %s%s", plugin, add.Stdout(), add.Stderr())
				return
			}
			v4, v6 := s.addresses(w, p.netns)
			for _, way := range []struct {
				from *runtimes.Weft
				line string
			}{
				{w, "ip netns exec lent ping -c1 -W1 " + far4},
				{w, "ip netns exec lent ping -c1 -W1 " + far6},
				{w, "ip netns exec lent ping -c1 -W1 203.0.113.10"}, // the world
				{w, "ping -c1 -W1 " + v4},
				{far, "ip netns exec there ping -c1 -W1 " + v4},
				{far, "ip netns exec there ping -c1 -W1 " + v6},
			} {
				if plugin == "macvlan" {
					break // its pods are on the wire, where weft is not
				}
				s.must(runtimes.Poll(within(t, patience), func() error {
					_, err := way.from.Exec(t.Context(), "sh", "-c", way.line)
					return err
				}))
			}
			claims, err := w.Claims(t.Context())
			s.must(err)
			if len(claims) != 2 || claims[0].Address.String() != v4 {
				t.Errorf("%s: the pod has %s, the ring lent %v", plugin, v4, claims)
			}
			for _, command := range []string{"CHECK", "DEL", "DEL"} {
				c := p.start(plugin, command, fmt.Sprintf(conf, `,"prevResult":`+add.Stdout()))
				if <-c.Done(); c.ExitCode() != 0 {
					t.Errorf("%s of %s: %s%s", command, plugin, c.Stdout(), c.Stderr())
				}
			}
			s.sh(w, "ip netns del lent; ip addr flush dev br7")
		})
	}
}
