package sleeve

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/crypto/noise"
	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
)

// The tests in this file use the kernel's TUN device, forwarding and veth, in network namespaces of their own.

// space is a network namespace. It has no name and ends with its last descriptor.
type space struct{ fd int }

func newSpace(t testing.TB) *space {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	type result struct {
		fd  int
		err error
	}
	c := make(chan result)
	go func() { // the thread is in the new namespace and dies with the goroutine
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- result{err: err}
			return
		}
		fd, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		c <- result{fd, err}
	}()
	r := <-c
	if r.err != nil {
		t.Skipf("cannot make a network namespace: %v", r.err)
	}
	t.Cleanup(func() { unix.Close(r.fd) })
	return &space{r.fd}
}

// do runs f on a thread in the namespace.
func (s *space) do(t testing.TB, f func() error) {
	t.Helper()
	c := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Setns(s.fd, unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		c <- err
	}()
	if err := <-c; err != nil {
		t.Fatal(err)
	}
}

// ip runs lines of the ip program in the namespace.
func (s *space) ip(t testing.TB, lines ...string) {
	t.Helper()
	for _, l := range lines {
		s.do(t, func() error {
			if out, err := exec.Command("ip", strings.Fields(l)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", l, err, out)
			}
			return nil
		})
	}
}

// openTUN makes a device with the offloads that the kernel has.
func openTUN(t testing.TB, offload Offload) (*os.File, Offload) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no TUN device: %v", err)
	}
	req, err := unix.NewIfreq("weft-sl")
	if err != nil {
		t.Fatal(err)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if offload.Vnet {
		flags |= unix.IFF_VNET_HDR
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(err)
	}
	if offload.Vnet {
		features := unix.TUN_F_CSUM
		if offload.TSO {
			features |= unix.TUN_F_TSO4 | unix.TUN_F_TSO6
		}
		if offload.USO {
			if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, features|unix.TUN_F_USO4|unix.TUN_F_USO6); err != nil {
				offload.USO = false
			}
		}
		if !offload.USO {
			if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, features); err != nil {
				t.Fatal(err)
			}
		}
	}
	return os.NewFile(uintptr(fd), "tun"), offload
}

// site is an engine with a device of the kernel, in a namespace.
type site struct {
	*space
	n      int
	e      *Engine
	public [32]byte
	id     peer.ID
	addr   netip.AddrPort
}

func (s *site) inner() netip.Addr  { return netip.AddrFrom4([4]byte{10, 32, byte(s.n), 1}) }
func (s *site) inner6() netip.Addr { return netip.AddrFrom16([16]byte{0: 0xfd, 14: byte(s.n), 15: 1}) }

func newSite(t testing.TB, n, mtu int, offload Offload) *site {
	t.Helper()
	s := &site{space: newSpace(t), n: n, id: peer.ID{byte(n)}}
	private, public, err := noise.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	s.public = public
	s.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 6783)
	if s.e, err = New(Config{}); err != nil {
		t.Fatal(err)
	}
	s.ip(t, "link set lo up")
	var tun *os.File
	var conns []*net.UDPConn
	s.do(t, func() error {
		tun, offload = openTUN(t, offload)
		conns, err = ListenUDP(t.Context(), netip.MustParseAddrPort("0.0.0.0:6783"))
		return err
	})
	s.ip(t, fmt.Sprintf("link set weft-sl mtu %d txqueuelen 1000 gso_max_size 61900 up", mtu),
		fmt.Sprintf("addr add %v/32 dev weft-sl", s.inner()), "route add 10.32.0.0/16 dev weft-sl",
		fmt.Sprintf("addr add %v/128 dev weft-sl nodad", s.inner6()), "route add fd00::/64 dev weft-sl")
	for _, err := range []error{
		s.e.SetIdentity(Identity{ID: s.id, NoisePrivate: private, Cluster: testCluster}),
		s.e.SetUDP(conns), s.e.SetTUN([]*os.File{tun}, offload),
		s.e.SetLocal([]netip.Prefix{netip.PrefixFrom(s.inner(), 32), netip.PrefixFrom(s.inner6(), 128)}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.e.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// twoSites are connected by a veth pair and have a session.
func twoSites(t testing.TB, mtu int, a, b Offload) (*site, *site) {
	t.Helper()
	one, two := newSite(t, 1, mtu-80, a), newSite(t, 2, mtu-80, b)
	connect(t, mtu, one, two)
	return one, two
}

// connect puts a veth pair between two sites, at their addresses, and waits for a session.
func connect(t testing.TB, mtu int, one, two *site) {
	t.Helper()
	one.ip(t, "link add up0 type veth peer name up1")
	one.ip(t, fmt.Sprintf("link set up1 netns /proc/%d/fd/%d", os.Getpid(), two.fd))
	for dev, s := range map[string]*site{"up0": one, "up1": two} {
		s.ip(t, fmt.Sprintf("link set %s mtu %d up", dev, mtu), fmt.Sprintf("addr add %v/24 dev %s %s", s.addr.Addr(), dev, map[bool]string{true: "nodad"}[s.addr.Addr().Is6()]))
	}
	for _, p := range [][2]*site{{one, two}, {two, one}} {
		if err := p[0].e.SetPeers([]Peer{{
			ID: p[1].id, NoisePublic: p[1].public, Endpoints: []netip.AddrPort{p[1].addr},
			Secrets: []psk.Secret{secretOf(t, "pair")},
		}}); err != nil {
			t.Fatal(err)
		}
		if err := p[0].e.SetTunnels([]router.Tunnel{{Peer: p[1].id, MTU: mtu - 80, Blocks: []netip.Prefix{
			netip.PrefixFrom(p[1].inner(), 32), netip.PrefixFrom(p[1].inner6(), 128),
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range []*site{one, two} {
		eventually(t, "the session is up", func() bool {
			p := s.e.Stats().Peers[0]
			return p.Up && p.MTU == mtu-80
		})
	}
}

// transfer sends n random bytes over TCP from one site to another and compares digests.
func transfer(t testing.TB, from, to *site, dst netip.Addr, n int) time.Duration {
	t.Helper()
	var l net.Listener
	to.do(t, func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	defer l.Close()
	type got struct {
		sum [32]byte
		n   int64
		err error
	}
	c := make(chan got, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			c <- got{err: err}
			return
		}
		defer conn.Close()
		h := sha256.New()
		n, err := io.Copy(h, conn)
		c <- got{[32]byte(h.Sum(nil)), n, err}
	}()
	data := random(1 << 20)
	want := sha256.New()
	start := time.Now()
	from.do(t, func() error {
		conn, err := net.DialTimeout("tcp", l.Addr().String(), patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		for sent := 0; sent < n; {
			part := data[:min(len(data), n-sent)]
			want.Write(part)
			if _, err := conn.Write(part); err != nil {
				return err
			}
			sent += len(part)
		}
		return nil
	})
	g := <-c
	d := time.Since(start)
	if g.err != nil || g.n != int64(n) || g.sum != [32]byte(want.Sum(nil)) {
		t.Fatalf("received %d of %d bytes, digest differs: %v, %v", g.n, n, g.sum != [32]byte(want.Sum(nil)), g.err)
	}
	return d
}

// tcpErrors is what a namespace's kernel counted against checksums.
func (s *site) checksumErrors(t testing.TB) string {
	t.Helper()
	var out string
	s.do(t, func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/net/snmp", syscall.Gettid()))
		if err != nil {
			return err
		}
		for _, proto := range []string{"Tcp:", "Udp:"} {
			var names []string
			for l := range strings.SplitSeq(string(b), "\n") {
				f := strings.Fields(l)
				if len(f) == 0 || f[0] != proto {
					continue
				}
				if names == nil {
					names = f
					continue
				}
				for i, name := range names {
					if (name == "InCsumErrors" || name == "InErrs") && f[i] != "0" {
						out += fmt.Sprintf("%s%s=%s ", proto, name, f[i])
					}
				}
			}
		}
		return nil
	})
	return out
}

func TestKernelTransfers(t *testing.T) {
	for name, o := range offloads {
		t.Run(name, func(t *testing.T) {
			a, b := twoSites(t, 1500, o, Offload{Vnet: true, TSO: true, USO: true})
			n := 8 << 20
			if testing.Short() {
				n = 1 << 20
			}
			for _, p := range []struct {
				from, to *site
				dst      netip.Addr
			}{{a, b, b.inner()}, {b, a, a.inner()}, {a, b, b.inner6()}, {b, a, a.inner6()}} {
				d := transfer(t, p.from, p.to, p.dst, n)
				t.Logf("%d to %v: %.2f Gbit/s", p.from.n, p.dst, float64(n)*8/1e9/d.Seconds())
			}
			for _, s := range []*site{a, b} {
				if e := s.checksumErrors(t); e != "" {
					t.Errorf("site %d: kernel counted %s", s.n, e)
				}
				st := s.e.Stats()
				t.Logf("site %d: %+v", s.n, st)
			}
		})
	}
}

func TestKernelDatagrams(t *testing.T) {
	o := Offload{Vnet: true, TSO: true, USO: true}
	a, b := twoSites(t, 1500, o, o)
	for _, dst := range []netip.Addr{b.inner(), b.inner6()} {
		var in *net.UDPConn
		b.do(t, func() (err error) {
			in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0)))
			return err
		})
		defer in.Close()
		const size, count = 1200, 20
		a.do(t, func() error {
			c, err := net.DialUDP("udp", nil, in.LocalAddr().(*net.UDPAddr))
			if err != nil {
				return err
			}
			defer c.Close()
			oob := make([]byte, sendOOB)
			_, _, err = c.WriteMsgUDPAddrPort(random(size*count-7), putSendOOB(oob, dst.Is6(), size, 0), netip.AddrPort{})
			if err != nil && !errors.Is(err, unix.EINVAL) {
				return err
			}
			return nil
		})
		want := random(size*count - 7)
		buf := make([]byte, 2000)
		in.SetReadDeadline(time.Now().Add(patience))
		for len(want) > 0 {
			n, err := in.Read(buf)
			if err != nil {
				t.Fatalf("%v: %d bytes missing: %v\n%+v\n%+v", dst, len(want), err, a.e.Stats(), b.e.Stats())
			}
			if string(buf[:n]) != string(want[:n]) {
				t.Fatalf("%v: wrong bytes", dst)
			}
			want = want[n:]
		}
	}
	for _, s := range []*site{a, b} {
		if e := s.checksumErrors(t); e != "" {
			t.Errorf("site %d: kernel counted %s", s.n, e)
		}
	}
	if p := a.e.Stats().Peers[0]; p.TxPackets < 40 {
		t.Errorf("%+v", p)
	}
}
