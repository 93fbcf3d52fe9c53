package netlab_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"weft/test/netlab"
)

// patience bounds every wait of these tests.
var patience = netlab.Patience(30 * time.Second)

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func mustPing(t *testing.T, from *netlab.Host, to netip.Addr) {
	t.Helper()
	if err := from.WaitPing(within(t), to); err != nil {
		t.Fatal(err)
	}
}

// mustDrop waits until so many packets were lost: what one machine sends is not yet handled when another's is.
func mustDrop(t *testing.T, cut *netlab.Cut, want uint64) {
	t.Helper()
	for end := time.Now().Add(patience); cut.Dropped() < want; <-time.After(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d packets were dropped, want %d", cut.Dropped(), want)
		}
	}
}

func mustNotPing(t *testing.T, from *netlab.Host, to netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := from.Ping(ctx, to); err == nil {
		t.Fatalf("%v reaches %v, it should not", from, to)
	}
}

func TestThreeSitesReachEachOtherAndTheInternet(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	all := append(s.Hosts(), s.Internet)
	for _, from := range all {
		for _, to := range all {
			for _, a := range to.Addrs() {
				mustPing(t, from, a)
			}
		}
	}
}

func TestHostsAreMachinesOfTheirOwn(t *testing.T) {
	lab := netlab.New(t)
	a, b := lab.Host("a"), lab.Host("b")
	lab.Link(a.Port("eth0", "10.0.0.1/24"), b.Port("eth0", "10.0.0.2/24"))
	if got := a.Devices(); !slices.Contains(got, "eth0") || !slices.Contains(got, "lo") {
		t.Errorf("devices of a: %v", got)
	}
	if pod := a.Pod("p"); !slices.Equal(withoutSit(pod.Devices()), []string{"lo"}) || pod.Parent() != a {
		t.Errorf("a pod is not bare: %v", pod.Devices())
	}

	// A server in b, a client in a, and the handler runs on any thread.
	l, err := b.Listen("tcp", "10.0.0.2:80")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.RemoteAddr) })}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	client := http.Client{Transport: &http.Transport{DialContext: a.Dial}}
	defer client.CloseIdleConnections()
	resp, err := client.Get("http://10.0.0.2/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); !strings.HasPrefix(string(body), "10.0.0.1:") {
		t.Errorf("the server saw %q", body)
	}

	out, err := b.Exec("cat", "/proc/net/dev")
	if err != nil || !strings.Contains(out, "eth0") {
		t.Errorf("a process sees other devices: %v\n%s", err, out)
	}
}

func withoutSit(devs []string) []string {
	return slices.DeleteFunc(devs, func(s string) bool { return s != "lo" && s != "eth0" }) // fallback tunnels of the kernel
}

func TestDoLeavesNoThreadBehind(t *testing.T) {
	lab := netlab.New(t)
	h := lab.Host("h")
	home, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	spoil := []func() error{
		func() error { return nil },
		func() error { return unix.Unshare(unix.CLONE_NEWNET) }, // f may leave its thread anywhere
		func() error { panic("boom") },
	}
	for range 50 {
		for _, f := range spoil {
			func() {
				defer func() { _ = recover() }()
				_ = h.Do(f)
			}()
		}
	}
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != home {
			t.Errorf("%s is in %s, home is %s", task, ns, home)
		}
	}
	if err := h.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Goexit inside Do went unnoticed")
	}
}

func TestSwitchJoinsHostsOfOneSubnet(t *testing.T) {
	lab := netlab.New(t)
	sw := lab.Switch("sw")
	var hosts []*netlab.Host
	for i := range 3 {
		h := lab.Host(fmt.Sprintf("h%d", i))
		lab.Link(h.Port("eth0", fmt.Sprintf("10.0.0.%d/24", i+1), fmt.Sprintf("fd00::%d/64", i+1)), sw.Port(h.Name()))
		hosts = append(hosts, h)
	}
	mustPing(t, hosts[0], hosts[2].Addr4())
	mustPing(t, hosts[0], hosts[2].Addr6())

	cut := lab.Partition(hosts[:1], hosts[2:])
	mustNotPing(t, hosts[0], hosts[2].Addr4())
	mustNotPing(t, hosts[0], hosts[2].Addr6())
	mustPing(t, hosts[0], hosts[1].Addr4())
	cut.Heal()
	mustPing(t, hosts[0], hosts[2].Addr4())
}

func TestPartitionCutsAndHeals(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	mustPing(t, s.A, s.B.Addr4())
	cut := lab.Partition([]*netlab.Host{s.A}, []*netlab.Host{s.B, s.C})
	for _, to := range append(s.B.Addrs(), s.C.Addrs()...) {
		mustNotPing(t, s.A, to)
	}
	mustPing(t, s.A, s.Internet.Addr4())
	mustPing(t, s.B, s.C.Addr6())
	mustDrop(t, cut, 4)
	cut.Heal()
	cut.Heal()
	mustPing(t, s.A, s.B.Addr4())
	mustPing(t, s.A, s.C.Addr6())
}

func TestPartitionOneWayLetsTheOtherWayPass(t *testing.T) {
	lab := netlab.New(t)
	a, b := lab.Host("a"), lab.Host("b") // a cable and no router: the receiver drops
	lab.Link(a.Port("eth0", "10.0.0.1/24"), b.Port("eth0", "10.0.0.2/24"))
	mustPing(t, a, b.Addr4())
	cut := lab.PartitionOneWay([]*netlab.Host{a}, []*netlab.Host{b})
	defer cut.Heal()
	got := receive(t, a, "udp", "10.0.0.1:9")
	if err := a.SendUDP(netip.MustParseAddrPort("10.0.0.1:9"), netip.MustParseAddrPort("10.0.0.2:9"), []byte("lost")); err != nil {
		t.Fatal(err)
	}
	if err := b.SendUDP(netip.MustParseAddrPort("10.0.0.2:9"), netip.MustParseAddrPort("10.0.0.1:9"), []byte("kept")); err != nil {
		t.Fatal(err)
	}
	if d := <-got; d.text != "kept" {
		t.Errorf("a got %q", d.text)
	}
	mustDrop(t, cut, 1)
}

type datagram struct {
	text string
	from netip.AddrPort
}

// receive opens a socket and delivers what arrives; the channel is closed after patience.
func receive(t *testing.T, h *netlab.Host, network, address string) <-chan datagram {
	t.Helper()
	c, err := h.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	out := make(chan datagram, 1024)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer close(out)
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			out <- datagram{string(buf[:n]), from.(*net.UDPAddr).AddrPort()}
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
	return out
}

// behindNAT is an inside host, a NAT router, and two outside servers, each on its own address.
func behindNAT(t *testing.T, kind netlab.NATKind) (inside, nat *netlab.Host, servers []*netlab.Host) {
	t.Helper()
	lab := netlab.New(t)
	inside, nat = lab.Host("inside"), lab.Router("nat")
	sw := lab.Switch("outside")
	lab.Link(inside.Port("eth0", "192.168.1.2/24", "2001:db8:1::2/64"), nat.Port("lan", "192.168.1.1/24", "2001:db8:1::1/64"))
	lab.Link(nat.Port("wan", "203.0.113.1/24", "2001:db8:2::1/64"), sw.Port("nat"))
	inside.DefaultVia(netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("2001:db8:1::1"))
	for i := range 2 {
		h := lab.Host(fmt.Sprintf("server%d", i))
		lab.Link(h.Port("eth0", fmt.Sprintf("203.0.113.1%d/24", i), fmt.Sprintf("2001:db8:2::1%d/64", i)), sw.Port(h.Name()))
		h.DefaultVia(netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:2::1"))
		servers = append(servers, h)
	}
	nat.NAT("wan", kind)
	return inside, nat, servers
}

func TestNATKinds(t *testing.T) {
	for _, kind := range []netlab.NATKind{netlab.EndpointIndependent, netlab.Symmetric} {
		t.Run(kind.String(), func(t *testing.T) {
			inside, nat, servers := behindNAT(t, kind)
			c, err := inside.ListenPacket("udp4", "192.168.1.2:6783")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var seen []netip.AddrPort
			for i, s := range servers {
				got := receive(t, s, "udp4", fmt.Sprintf("203.0.113.1%d:6783", i))
				if _, err := c.WriteTo([]byte("hello"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(s.Addr4(), 6783))); err != nil {
					t.Fatal(err)
				}
				d, ok := <-got
				if !ok {
					t.Fatal("nothing arrived")
				}
				if d.from.Addr() != nat.Addr4() && d.from.Addr() != netip.MustParseAddr("203.0.113.1") {
					t.Errorf("the source is %v, not the router's", d.from)
				}
				seen = append(seen, d.from)
			}
			if same := seen[0] == seen[1]; same != (kind == netlab.EndpointIndependent) {
				t.Errorf("two servers saw %v", seen)
			}

			// Nothing comes in unasked, from another port or to an inside address, in either family.
			mustNotPing(t, servers[0], netip.MustParseAddr("192.168.1.2"))
			mustNotPing(t, servers[0], netip.MustParseAddr("2001:db8:1::2"))
			mustPing(t, inside, servers[0].Addr4())
			mustPing(t, inside, servers[0].Addr6())
		})
	}
}

func TestHolePunchingWorksOnlyThroughEasyNAT(t *testing.T) {
	inside, _, servers := behindNAT(t, netlab.EndpointIndependent)
	stun, friend := servers[0], servers[1]
	socket, err := inside.ListenPacket("udp4", "192.168.1.2:6783")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	got := receive(t, stun, "udp4", ":6783")
	_, _ = socket.WriteTo([]byte("who am I"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(stun.Addr4(), 6783)))
	outside := (<-got).from

	// The friend's first try is dropped and must not spoil the hole that the inside host then makes.
	if err := friend.SendUDP(netip.AddrPortFrom(friend.Addr4(), 6783), outside, []byte("too early")); err != nil {
		t.Fatal(err)
	}
	fromInside := receive(t, friend, "udp4", ":6783")
	_, _ = socket.WriteTo([]byte("punch"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(friend.Addr4(), 6783)))
	if d := <-fromInside; d.from != outside {
		t.Fatalf("the hole is at %v, the friend was told %v", d.from, outside)
	}
	if err := friend.SendUDP(netip.AddrPortFrom(friend.Addr4(), 6783), outside, []byte("welcome")); err != nil {
		t.Fatal(err)
	}
	_ = socket.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 64)
	if n, _, err := socket.ReadFrom(buf); err != nil || string(buf[:n]) != "welcome" {
		t.Errorf("inside got %q, %v", buf[:n], err)
	}
}

func TestPortForward(t *testing.T) {
	inside, nat, servers := behindNAT(t, netlab.Symmetric)
	nat.PortForward("wan", "udp", 6783, netip.MustParseAddrPort("192.168.1.2:7000"))
	got := receive(t, inside, "udp4", "192.168.1.2:7000")
	if err := servers[0].SendUDP(netip.AddrPortFrom(servers[0].Addr4(), 1), netip.MustParseAddrPort("203.0.113.1:6783"), []byte("in")); err != nil {
		t.Fatal(err)
	}
	if d := <-got; d.text != "in" {
		t.Errorf("got %q", d.text)
	}
}

func TestBlockedPorts(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	udp := receive(t, s.B, "udp4", ":6783")
	l, err := s.B.Listen("tcp4", ":6783")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	send := func(text string) {
		t.Helper()
		if err := s.A.SendUDP(netip.AddrPortFrom(s.A.Addr4(), 6783), netip.AddrPortFrom(s.B.Addr4(), 6783), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	to := netip.AddrPortFrom(s.B.Addr4(), 6783)
	cut := s.Router.BlockUDP(6783)
	send("lost")
	if err := dial(s.A, to, true); err != nil {
		t.Errorf("TCP is cut as well: %v", err)
	}
	mustDrop(t, cut, 1)
	cut.Heal()
	send("kept")
	if d := <-udp; d.text != "kept" {
		t.Errorf("got %q", d.text)
	}
	tcp := s.Router.BlockTCP(6783)
	if dial(s.A, to, false) == nil {
		t.Error("TCP passes a block")
	}
	tcp.Heal()
	if err := dial(s.A, to, true); err != nil {
		t.Error(err)
	}
}

func TestLossIsAboutWhatWasAsked(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	const sent, chance = 4000, 0.2
	cut := s.LinkA.Loss(chance)
	got := receive(t, s.B, "udp4", ":9")
	for range sent {
		if err := s.A.SendUDP(netip.AddrPortFrom(s.A.Addr4(), 9), netip.AddrPortFrom(s.B.Addr4(), 9), []byte("x")); err != nil {
			t.Fatal(err)
		}
		select { // keep the receiver's buffer empty
		case <-got:
		default:
		}
	}
	mustDrop(t, cut, sent*chance*8/10)
	if dropped := float64(cut.Dropped()); dropped > sent*chance*1.2 {
		t.Errorf("lost %v of %d, want about %v", dropped, sent, sent*chance)
	}
}

func TestMTUAndBigPacketHole(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	s.LinkA.SetMTU(1400)
	out, err := s.A.Exec("cat", "/proc/net/dev_mcast") // any command: the link still works
	if err != nil {
		t.Fatal(err, out)
	}
	mustPing(t, s.A, s.B.Addr4())
	cut := s.Router.Drop(netlab.Drop{Larger: 1300})
	got := receive(t, s.B, "udp4", ":9")
	for _, size := range []int{1350, 1000} {
		if err := s.A.SendUDP(netip.AddrPortFrom(s.A.Addr4(), 9), netip.AddrPortFrom(s.B.Addr4(), 9), make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	if d := <-got; len(d.text) != 1000 {
		t.Errorf("a packet of %d bytes passed", len(d.text))
	}
	mustDrop(t, cut, 1)
}

func TestLinkDownAndUp(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	mustPing(t, s.A, s.B.Addr6())
	s.LinkA.Down()
	mustNotPing(t, s.B, s.A.Addr4())
	s.LinkA.Up()
	mustPing(t, s.A, s.B.Addr4())
	mustPing(t, s.B, s.A.Addr6())
}

func TestAddressesComeAndGo(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	s.A.AddAddr("eth0", "198.18.1.9/24")
	mustPing(t, s.B, netip.MustParseAddr("198.18.1.9"))
	s.A.DelAddr("eth0", "198.18.1.2/24")
	if a := s.A.Addr4(); a != netip.MustParseAddr("198.18.1.9") {
		t.Errorf("the first address is %v", a)
	}
	mustNotPing(t, s.B, netip.MustParseAddr("198.18.1.2"))
}

// Between veths a super-packet passes whole; with segmentation off each packet fits the MTU.
func TestSegmentation(t *testing.T) {
	lab := netlab.New(t)
	s := netlab.ThreeSites(lab)
	l, err := s.B.Listen("tcp4", ":9")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, c)
			_ = c.Close()
		}
	}()
	longest := func() (n int) {
		t.Helper()
		watch := s.LinkA.Capture(netlab.CaptureOptions{Match: netlab.TCP(9)})
		c, err := s.A.Dial(within(t), "tcp4", "198.18.2.2:9")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		_ = c.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, c) // until the other side has read all and closed
		_ = c.Close()
		watch.Stop()
		for _, p := range watch.Packets() {
			n = max(n, p.Len)
		}
		return n
	}
	if n := longest(); n < 2000 {
		t.Errorf("the longest packet has %d bytes, want super-packets", n)
	}
	s.LinkA.SetSegmentation(false)
	if n := longest(); n > 1514 {
		t.Errorf("the longest packet has %d bytes with segmentation off", n)
	}
	s.LinkA.SetSegmentation(true)
	if n := longest(); n < 2000 {
		t.Errorf("the longest packet has %d bytes, want super-packets again", n)
	}
}

func TestCommandOutputSignalAndExit(t *testing.T) {
	lab := netlab.New(t)
	h := lab.Host("h")
	c := h.Command("sh", "-c", `trap 'echo bye; exit 7' TERM; echo "port 4711" >&2; while :; do sleep 0.01; done`)
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	m, err := c.WaitOutput(within(t), `port (\d+)`)
	if err != nil || m[1] != "4711" {
		t.Fatal(m, err)
	}
	if err := c.Stop(patience); err != nil {
		t.Error(err)
	}
	if c.ExitCode() != 7 || c.Stdout() != "bye\n" {
		t.Errorf("exit %d, stdout %q", c.ExitCode(), c.Stdout())
	}
	if _, err := c.WaitOutput(within(t), "never"); err == nil || !strings.Contains(err.Error(), "ended") {
		t.Errorf("waiting for the words of the dead: %v", err)
	}
	if _, err := h.Exec("sh", "-c", "echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("the error does not hold stderr: %v", err)
	}
	if err := h.Command("/nonexistent").Run(); err == nil {
		t.Error("a missing program ran")
	}
}

// countInside counts the processes in the lab's namespaces.
func countInside(t *testing.T, paths []string) int {
	t.Helper()
	n := 0
	for _, p := range paths {
		ns, err := os.Stat(p)
		if err != nil {
			continue
		}
		procs, _ := filepath.Glob("/proc/[0-9]*/ns/net")
		for _, proc := range procs {
			if st, err := os.Stat(proc); err == nil && os.SameFile(ns, st) {
				n++
			}
		}
	}
	return n
}

func leftovers(lab string) []string {
	var out []string
	for _, pattern := range []string{"/run/netns/" + lab + "-*", "/run/netlab/" + lab} {
		m, _ := filepath.Glob(pattern)
		out = append(out, m...)
	}
	return out
}

// sleepTime is in seconds, and by its end tells this program's sleepers from those of others that test beside it.
var sleepTime = fmt.Sprint(1_000_000_000 + os.Getpid())

func TestCloseLeavesNothing(t *testing.T) {
	var name string
	var session *netlab.Cmd
	t.Run("lab", func(t *testing.T) {
		lab := netlab.New(t)
		name = lab.Name()
		s := netlab.ThreeSites(lab)
		s.A.Pod("p")
		// A daemon that leaves its session and parent, as a data plane does.
		session = s.A.Command("sh", "-c", "setsid sleep "+sleepTime+" & echo started; sleep "+sleepTime)
		if err := session.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := session.WaitOutput(within(t), "started"); err != nil {
			t.Fatal(err)
		}
		if n := countInside(t, []string{s.A.Path()}); n < 2 {
			t.Fatalf("%d processes run inside", n)
		}
		s.LinkA.Capture(netlab.CaptureOptions{})
	})
	if left := leftovers(name); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	if err := unix.Kill(session.Pid(), 0); err == nil {
		t.Error("the process lives")
	}
	if out, _ := exec.Command("pgrep", "-x", "-f", "sleep "+sleepTime).Output(); len(out) != 0 {
		t.Errorf("a process of its own session lives: %s", out)
	}
}

// The tests below need a program that dies with a lab open: this test binary, told to by the environment.
const victimEnv = "NETLAB_TEST_VICTIM"

func TestMain(m *testing.M) {
	if how := os.Getenv(victimEnv); how != "" {
		victim(how)
	}
	goleak.VerifyTestMain(m)
}

// victim opens a lab, says its name, and waits to be killed or panics.
func victim(how string) {
	lab, err := netlab.Open(netlab.Options{})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	s := netlab.ThreeSites(lab)
	c := s.B.Command("sh", "-c", "setsid sleep "+sleepTime+" & echo started; sleep "+sleepTime)
	if how == "keep" {
		c.Outlive()
	}
	if err := c.Start(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if _, err := c.WaitOutput(context.Background(), "started"); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if how == "keep" {
		if err := lab.Keep(); err != nil {
			panic(err)
		}
		fmt.Println(lab.Name())
		_ = lab.Close()
		os.Exit(0)
	}
	fmt.Println(lab.Name())
	select {}
}

func startVictim(t *testing.T, how string) (*exec.Cmd, string) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), victimEnv+"="+how)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	var name string
	if _, err := fmt.Fscanln(out, &name); err != nil || !strings.HasPrefix(name, "nl") {
		t.Fatalf("the victim says %q, %v", name, err)
	}
	return c, name
}

// A lab that is closed while processes are being started, as by an interrupt, kills those, too, and does not wait for ever.
func TestCloseWhileProcessesStart(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	for range 20 {
		l, err := netlab.Open(netlab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		h := l.Host("a")
		var wg sync.WaitGroup
		var started []*netlab.Cmd
		begun := make(chan struct{})
		wg.Go(func() {
			for i := 0; ; i++ {
				c := h.Command("sleep", "600").Quiet()
				if c.Start() != nil { // the lab is closed
					return
				}
				started = append(started, c)
				if i == 0 {
					close(begun)
				}
			}
		})
		<-begun
		closed := make(chan error, 1)
		go func() { closed <- l.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Fatal(err)
			}
		case <-time.After(netlab.Patience(20 * time.Second)):
			t.Fatal("the lab does not close")
		}
		wg.Wait()
		for _, c := range started {
			select {
			case <-c.Done():
			default:
				t.Errorf("%s lives", c)
			}
		}
	}
}

func TestJanitorRemovesWhatSIGKILLLeft(t *testing.T) {
	netlab.New(t) // skips without rights
	c, name := startVictim(t, "wait")
	if len(leftovers(name)) != 7-1 { // five namespaces and the directory
		t.Errorf("the victim made %v", leftovers(name))
	}
	if err := netlab.Sweep(); err != nil {
		t.Fatal(err)
	}
	if len(leftovers(name)) == 0 {
		t.Fatal("the janitor took a living lab")
	}
	paths, _ := filepath.Glob("/run/netns/" + name + "-*")
	_ = c.Process.Kill()
	_ = c.Wait()
	if countInside(t, paths) == 0 {
		t.Log("every process died with the victim") // the one in its own session should not
	}
	if err := netlab.Sweep(); err != nil {
		t.Fatal(err)
	}
	if left := leftovers(name); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	sleeper := fmt.Sprint("sleep ", 1_000_000_000+c.Process.Pid) // its sleepTime
	if out, _ := exec.Command("pgrep", "-x", "-f", sleeper).Output(); len(out) != 0 {
		t.Errorf("a process lives: %s", out)
	}
}

func TestKeptLabStaysUntilRemoved(t *testing.T) {
	netlab.New(t)
	c, name := startVictim(t, "keep")
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = netlab.Remove(name) }()
	if err := netlab.Sweep(); err != nil {
		t.Fatal(err)
	}
	paths, _ := filepath.Glob("/run/netns/" + name + "-*")
	if len(paths) != 5 || countInside(t, paths) < 2 {
		t.Errorf("kept: %v with %d processes", paths, countInside(t, paths))
	}
	if stands, held := netlab.Find(name); !stands || held {
		t.Errorf("stands %v, held %v", stands, held)
	}
	found, err := netlab.Remove(name)
	if !found || err != nil || len(leftovers(name)) != 0 || countInside(t, paths) != 0 {
		t.Errorf("found %v, %v, left %v", found, err, leftovers(name))
	}
}

func TestSignalTakesTheLabDown(t *testing.T) {
	netlab.New(t)
	// A whole test binary in miniature: itself, running the one test below.
	c := exec.Command(os.Args[0], "-test.run=^TestWaitsForASignal$", "-test.v")
	c.Env = append(os.Environ(), "NETLAB_TEST_SIGNAL=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill() }()
	var name string
	for line := ""; ; {
		if _, err := fmt.Fscanln(out, &line, &name); err != nil && line == "" {
			t.Fatal(err)
		}
		if line == "lab" {
			break
		}
		line = ""
	}
	if len(leftovers(name)) == 0 {
		t.Fatalf("no lab %q", name)
	}
	_ = c.Process.Signal(unix.SIGTERM)
	err = c.Wait()
	if st, ok := c.ProcessState.Sys().(interface{ Signaled() bool }); !ok || !st.Signaled() {
		t.Errorf("ended with %v, want the signal", err)
	}
	if left := leftovers(name); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWaitsForASignal(t *testing.T) {
	if os.Getenv("NETLAB_TEST_SIGNAL") == "" {
		t.Skip("runs only as the child of TestSignalTakesTheLabDown")
	}
	lab := netlab.New(t)
	netlab.ThreeSites(lab)
	fmt.Printf("lab %s\n", lab.Name())
	select {
	case <-t.Context().Done():
	case <-time.After(30 * time.Second):
	}
}

func TestTheMachineItselfIsNotTouched(t *testing.T) {
	read := func() string {
		var b strings.Builder
		for _, f := range []string{"/proc/net/route", "/proc/net/ipv6_route", "/proc/sys/net/ipv4/ip_forward"} {
			data, _ := os.ReadFile(f)
			if f == "/proc/net/ipv6_route" { // counters move by themselves
				data = nil
			}
			b.Write(data)
		}
		devs, _ := net.Interfaces()
		for _, d := range devs {
			fmt.Fprintln(&b, d.Index, d.Name, d.MTU, d.Flags)
		}
		return b.String()
	}
	if err := netlab.Supported(); err != nil {
		t.Skip(err)
	}
	// Others may change the machine just then; what a lab does to it, each does.
	const labs = 5
	for i := range labs {
		before, during := read(), ""
		t.Run("lab", func(t *testing.T) {
			s := netlab.ThreeSites(netlab.New(t))
			mustPing(t, s.A, s.C.Addr4())
			during = read()
		})
		after := read()
		if during == before && after == before || t.Failed() {
			break
		}
		if i == labs-1 {
			t.Errorf("changed from\n%s\nto\n%s\nand to\n%s", before, during, after)
		}
	}
}

func TestFailureOfAProgram(t *testing.T) {
	netlab.New(t)
	err := func() (err error) {
		lab, err := netlab.Open(netlab.Options{})
		if err != nil {
			return err
		}
		defer lab.Close()
		defer netlab.Recover(&err)
		lab.Host("x")
		lab.Host("x")
		return nil
	}()
	if err == nil || !strings.Contains(err.Error(), "make host x") {
		t.Errorf("got %v", err)
	}
}

// A power cut takes away what the kernel takes away at the same time: the devices of pods that died.
func TestDevicesGoWhileTheyAreDeleted(t *testing.T) {
	a := netlab.New(t).Host("a")
	for i := range 20 {
		x, y := fmt.Sprintf("x%d", i), fmt.Sprintf("y%d", i)
		if _, err := a.Exec("ip", "link", "add", x, "type", "veth", "peer", "name", y); err != nil {
			t.Fatal(err)
		}
	}
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() { a.DeleteDevices("lo") })
	}
	both.Wait()
	if got := withoutSit(a.Devices()); !slices.Equal(got, []string{"lo"}) {
		t.Fatalf("left: %v", got)
	}
}
