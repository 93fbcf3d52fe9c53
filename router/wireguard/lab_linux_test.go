package wireguard_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
	"weft/router/host"
	"weft/router/wireguard"
	"weft/test/netlab"
)

// The tests of this folder that are named after the kernel's device need WireGuard in the kernel; make test-vm gives them
// kernels that have it. They run real routers over real devices on the three sites of netlab, each in a namespace.

var pools = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd77::/96")}

// soon is how long anything may take: WireGuard repeats a handshake after 5 s, mending begins after 15 s.
const soon = 20 * time.Second

// needKernel skips where the kernel has no WireGuard.
func needKernel(t testing.TB) {
	t.Helper()
	err := host.ProbeWireGuard(t.Context())
	if errors.Is(err, host.ErrUnsupported) && os.Getenv("WEFT_VM") == "" {
		t.Skipf("%v. Run: make test-vm", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// site is a machine with a router that has one transport.
type site struct {
	t    *testing.T
	n    int
	node *netlab.Host
	host *host.Host
	key  *ecdh.PrivateKey
	stop func()

	mu  sync.Mutex // guards all below
	r   *router.Router
	in  router.Input
	all map[peer.ID]wireguard.Remote
}

var _ wireguard.Directory = (*site)(nil)

func (s *site) Rest() time.Duration { return 0 }

func (s *site) Self() netip.Addr { return hostAddr(s.n) }

func (s *site) Remote(id peer.ID) (wireguard.Remote, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.all[id]
	return r, ok
}

func (s *site) public() wireguard.Key { return wireguard.Key(s.key.PublicKey().Bytes()) }

func id(n int) peer.ID { return peer.ID{byte(n)} }

func hostAddr(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.32.%d.1", 4*n)) }

// blocks are what site n owns, with the linked IPv6 one.
func blocks(n int) []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix(fmt.Sprintf("10.32.%d.0/22", 4*n)), netip.MustParsePrefix(fmt.Sprintf("fd77::a20:%x/118", 4*n<<8)),
	}
}

func podAddr(n, i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("10.32.%d.%d", 4*n, 10+i)) }

func podAddr6(n, i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd77::a20:%x", 4*n<<8|10+i))
}

// secret is what two sites agreed on in a round.
func secret(a, b, round int) psk.Secret {
	raw := make([]byte, psk.Size)
	raw[0], raw[1], raw[2] = byte(min(a, b)), byte(max(a, b)), byte(round)
	s, err := psk.Parse(raw)
	if err != nil {
		panic(err)
	}
	return s
}

type kernelLab struct {
	*testing.T // of the present step
	whole      *testing.T
	lab        *netlab.Lab
	sites      *netlab.Sites
	s          [4]*site // 1 to 3
}

// newLab makes three sites; change may prepare them before their routers start.
func newLab(t *testing.T, change ...func(l *kernelLab)) *kernelLab {
	t.Helper()
	l := &kernelLab{T: t, whole: t, lab: netlab.New(t)}
	l.sites = netlab.ThreeSites(l.lab)
	keys := sortedKeys(t, 3)
	for i, h := range l.sites.Hosts() {
		n := i + 1
		s := &site{t: t, n: n, node: h, key: keys[i], all: map[peer.ID]wireguard.Remote{}}
		var err error
		if s.host, err = host.Open(h.Path(), nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.host.Close() })
		s.in = router.Input{
			Self: id(n), Pools: pools, Blocks: blocks(n), Hosts: []netip.Addr{hostAddr(n)},
			Underlay: []netip.Addr{h.Addr4()}, UnderlayMTU: 1500,
		}
		l.s[n] = s
	}
	for n := 1; n <= 3; n++ {
		for o := 1; o <= 3; o++ {
			if n == o {
				continue
			}
			l.s[n].all[id(o)] = wireguard.Remote{
				Public: l.s[o].public(), Secrets: []psk.Secret{secret(n, o, 1)}, Host: hostAddr(o), Reachable: true,
			}
			l.s[n].in.Peers = append(l.s[n].in.Peers, router.Peer{
				Blocks: blocks(o),
				Info: peer.Info{
					ID: id(o), State: peer.Alive, Known: true, MTU: 1500, Transports: []string{wireguard.Name},
					Endpoints: []netip.AddrPort{netip.AddrPortFrom(l.s[o].node.Addr4(), 6783)},
				},
			})
		}
	}
	for _, c := range change {
		c(l)
	}
	for n := 1; n <= 3; n++ {
		l.s[n].start()
	}
	return l
}

// sortedKeys makes keys, the one with the lowest public key first: that end of a pair is the first to try its former secret.
func sortedKeys(t *testing.T, n int) (keys []*ecdh.PrivateKey) {
	t.Helper()
	for range n {
		k, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *ecdh.PrivateKey) int {
		return bytes.Compare(a.PublicKey().Bytes(), b.PublicKey().Bytes())
	})
	return keys
}

// start runs a router with a driver of its own, as a daemon that starts does.
func (s *site) start() {
	s.t.Helper()
	log := slog.New(slog.NewTextHandler(logTo{s.t}, &slog.HandlerOptions{Level: slog.LevelInfo})).With("machine", s.node.Name())
	r, err := router.New(router.Config{
		Host: s.host, Log: log,
		Drivers: []router.Driver{wireguard.Driver(s.host, wireguard.Key(s.key.Bytes()), s, log)},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	s.r = r
	s.mu.Unlock()
	r.Update(s.in)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("run: %v", err)
		}
	})
	s.t.Cleanup(s.stop)
}

type logTo struct{ t *testing.T }

func (l logTo) Write(b []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// update changes a site's input.
func (s *site) update(change func(in *router.Input)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in.Peers = append([]router.Peer(nil), s.in.Peers...)
	change(&s.in)
	s.r.Update(s.in)
}

// told changes what a site knows of a peer.
func (s *site) told(n int, change func(r *wireguard.Remote)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.all[id(n)]
	change(&r)
	s.all = maps.Clone(s.all)
	s.all[id(n)] = r
}

func (s *site) link(n int) router.Link {
	for _, p := range s.r.Status().Peers {
		if p.Peer == id(n) {
			return p.Link
		}
	}
	return router.Link{}
}

// await polls a condition.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(netlab.Patience(soon))
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("not within %s: %s", netlab.Patience(soon), what)
		case <-tick.C:
		}
	}
}

// up waits until all see all through their tunnels.
func (l *kernelLab) up() {
	l.Helper()
	for n := 1; n <= 3; n++ {
		for o := 1; o <= 3; o++ {
			if n != o {
				await(l, fmt.Sprintf("tunnel from %d to %d up", n, o), func() bool { return l.s[n].link(o).Up })
			}
		}
	}
}

// pod attaches a new namespace to a site under the i-th address of block.
func (l *kernelLab) pod(n, i int) *netlab.Host { return l.podAt(n, i, podAddr(n, i), podAddr6(n, i)) }

func (l *kernelLab) podAt(n, i int, v4, v6 netip.Addr) *netlab.Host {
	l.Helper()
	p := l.s[n].node.Pod(fmt.Sprint("p", i))
	_, err := l.s[n].r.Attach(l.Context(), router.AttachRequest{
		NetNS: p.Path(), Pod: router.Pod{Name: fmt.Sprint("pod", i), V4: v4, V6: v6},
	})
	if err != nil {
		l.Fatal(err)
	}
	l.s[n].update(func(in *router.Input) {
		in.Pods = append(slices.Clip(in.Pods), router.Pod{Name: fmt.Sprint("pod", i), V4: v4, V6: v6})
	})
	return p
}

// ping waits for an answer.
func (l *kernelLab) ping(from *netlab.Host, to netip.Addr) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), netlab.Patience(soon))
	defer cancel()
	if err := from.WaitPing(ctx, to); err != nil {
		l.Fatalf("%s does not reach %s: %v", from, to, err)
	}
}

// flood sends numbered datagrams, and counts which come back.
type flood struct {
	conn    net.Conn
	stop    chan struct{}
	wg      sync.WaitGroup
	sent    atomic.Uint64
	mu      sync.Mutex
	back    map[uint64]bool
	last    time.Time
	missing []uint64      // in the end
	gap     time.Duration // longest time between two answers
}

const echoPort = 7007

// answer echoes datagrams in a pod, and counts them.
func (l *kernelLab) answer(pod *netlab.Host) *atomic.Uint64 {
	l.Helper()
	c, err := pod.ListenPacket("udp", fmt.Sprintf(":%d", echoPort))
	if err != nil {
		l.Fatal(err)
	}
	l.whole.Cleanup(func() { c.Close() })
	got := new(atomic.Uint64)
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				if errors.Is(err, net.ErrClosed) {
					return
				}
				continue
			}
			got.Add(1)
			_, _ = c.WriteTo(b[:n], from)
		}
	}()
	return got
}

// flood starts sending, so many a second.
func (l *kernelLab) flood(from *netlab.Host, to netip.Addr, rate int) *flood {
	l.Helper()
	c, err := from.Dial(l.Context(), "udp", netip.AddrPortFrom(to, echoPort).String())
	if err != nil {
		l.Fatal(err)
	}
	// The first datagram alone: of several of a new flow, on several processors, the kernel's connection tracking loses one
	// now and then. It may be lost on the way, too, and then there is another.
	for b, limit := make([]byte, 64), time.Now().Add(netlab.Patience(soon)); ; {
		if time.Now().After(limit) {
			l.Fatalf("%s gets no answer of %s", from, to)
		}
		if err := c.SetReadDeadline(time.Now().Add(netlab.Patience(soon) / 20)); err != nil {
			l.Fatal(err)
		}
		if _, err := c.Write(b); err == nil {
			if _, err := c.Read(b); err == nil {
				break
			}
		}
	}
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		l.Fatal(err)
	}
	f := &flood{conn: c, stop: make(chan struct{}), back: map[uint64]bool{}, last: time.Now()}
	f.wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for {
			select {
			case <-f.stop:
				return
			case <-tick.C:
				b := binary.BigEndian.AppendUint64(make([]byte, 0, 64), f.sent.Load()+1)
				if _, err := c.Write(b[:64]); err != nil { // of an ICMP error: it was not sent
					l.whole.Logf("datagram %d not sent: %v", f.sent.Load()+1, err)
					continue
				}
				f.sent.Add(1)
			}
		}
	})
	go func() {
		b := make([]byte, 128)
		for {
			n, err := c.Read(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if n < 8 {
				continue
			}
			number := binary.BigEndian.Uint64(b)
			if number == 0 { // a first one that was late
				continue
			}
			f.mu.Lock()
			f.back[number] = true
			f.gap = max(f.gap, time.Since(f.last))
			f.last = time.Now()
			f.mu.Unlock()
		}
	}()
	l.Cleanup(func() { f.end() })
	return f
}

// answered is how many came back so far.
func (f *flood) answered() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return uint64(len(f.back))
}

// end stops sending, waits for what is on its way, and says how many were sent and lost.
func (f *flood) end() (sent, lost uint64) {
	select {
	case <-f.stop:
		return 0, 0
	default:
	}
	close(f.stop)
	f.wg.Wait()
	deadline := time.Now().Add(2 * time.Second)
	for f.answered() < f.sent.Load() && time.Now().Before(deadline) {
		<-time.After(10 * time.Millisecond)
	}
	f.conn.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := uint64(1); i <= f.sent.Load(); i++ {
		if !f.back[i] {
			f.missing = append(f.missing, i)
		}
	}
	return f.sent.Load(), uint64(len(f.missing))
}

// hostOf opens a lab's host as the router does.
func (l *kernelLab) hostOf(n *netlab.Host) *host.Host {
	l.Helper()
	h, err := host.Open(n.Path(), nil)
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = h.Close() })
	return h
}
