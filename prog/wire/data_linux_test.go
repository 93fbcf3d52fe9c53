package wire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/crypto/psk"
	"weft/mesh/peer"
	"weft/router"
	"weft/router/sleeve"
	"weft/test/netlab"
)

// station is one node: a wire, and what its weftd would know.
type station struct {
	t       testing.TB
	o       Options
	c       *Client
	id      Identity
	public  [32]byte
	block   netip.Prefix
	udp     []*os.File
	at      netip.AddrPort
	tun     TUN
	queues  []*os.File
	others  []*station
	ties    map[*station]Peer // where, by whom and by what another is reached, if not simply at its address
	secrets []psk.Secret
}

func newStation(t testing.TB, n byte) *station {
	t.Helper()
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &station{
		t: t, o: testOptions(t), public: [32]byte(key.PublicKey().Bytes()),
		id: Identity{
			ID: peer.ID{n}, NoisePrivate: [32]byte(key.Bytes()), Epoch: 1, Cluster: [32]byte{7},
			Counter: sleeve.CounterSpan,
		},
		block:   netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, n, 0}), 24),
		secrets: []psk.Secret{testSecret(t, 42)},
	}
}

// listen opens the UDP port; it runs inside the namespace of the station.
func (s *station) listen(addr netip.Addr) error {
	conns, err := sleeve.ListenUDP(context.Background(), netip.AddrPortFrom(addr, 0))
	if err != nil {
		return err
	}
	for _, c := range conns {
		s.udp = append(s.udp, files(s.t, c)...)
		s.at = c.LocalAddr().(*net.UDPAddr).AddrPort()
		c.Close()
	}
	return nil
}

// tell pushes all that a weftd pushes after it attached.
func (s *station) tell(c *Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var peers []Peer
	var tunnels []router.Tunnel
	for _, o := range s.others {
		p, special := s.ties[o]
		if !special {
			p.Endpoints = []netip.AddrPort{o.at}
		}
		p.ID, p.NoisePublic, p.Secrets = o.id.ID, o.public, s.secrets
		peers = append(peers, p)
		tunnels = append(tunnels, router.Tunnel{Peer: o.id.ID, Blocks: []netip.Prefix{o.block}, MTU: 1400})
	}
	err := errors.Join(c.SetIdentity(ctx, s.id), c.SetLocal(ctx, []netip.Prefix{s.block}), c.GiveUDP(ctx, s.udp))
	if s.queues != nil {
		err = errors.Join(err, c.GiveTUN(ctx, s.tun, s.queues))
	}
	return errors.Join(err, c.SetPeers(ctx, peers), c.SetTunnels(ctx, tunnels))
}

// attach makes s.c a client of the running wire, or of a new one, that was told everything.
func (s *station) attach() {
	s.t.Helper()
	s.c = mustEnsure(s.t, s.o)
	if s.c.Started() {
		s.id.Counter += sleeve.CounterSpan
	}
	if err := s.tell(s.c); err != nil {
		s.t.Fatal(err)
	}
}

// waitUp returns when the session with the other station is up.
func (s *station) waitUp() time.Duration {
	s.t.Helper()
	began := time.Now()
	for {
		links, err := s.c.Links(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		if len(links) == len(s.others) && !hasDown(links) {
			return time.Since(began)
		}
		if time.Since(began) > patience {
			s.t.Fatalf("no session after %v: %+v", patience, links)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-s.t.Context().Done():
		}
	}
}

func hasDown(links []router.Link) bool {
	for _, l := range links {
		if !l.Up {
			return true
		}
	}
	return false
}

// loopbackPair is two stations on 127.0.0.1 with a session.
func loopbackPair(t *testing.T) (a, b *station) {
	t.Helper()
	a, b = newStation(t, 1), newStation(t, 2)
	a.others, b.others = []*station{b}, []*station{a}
	for _, s := range []*station{a, b} {
		if err := s.listen(netip.MustParseAddr("127.0.0.1")); err != nil {
			t.Fatal(err)
		}
	}
	a.attach()
	b.attach()
	a.waitUp()
	b.waitUp()
	return a, b
}

func TestDatagramsTravelBetweenControllers(t *testing.T) {
	a, b := loopbackPair(t)
	for i := range 200 {
		want := fmt.Appendf(nil, "gossip %d", i)
		if err := a.c.Send(b.id.ID, want); err != nil {
			t.Fatal(err)
		}
		from, got, err := b.c.Receive(t.Context())
		if err != nil || from != a.id.ID || !bytes.Equal(got, want) {
			t.Fatalf("received %q from %v, %v", got, from.Short(), err)
		}
	}
	if err := a.c.Send(b.id.ID, make([]byte, sleeve.MaxControl+1)); !errors.Is(err, sleeve.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
}

// While no weftd is attached datagrams wait in the wire, within bounds; the next one gets them.
func TestDatagramsWaitForTheNextController(t *testing.T) {
	a, b := loopbackPair(t)
	detach(t, b.c)
	const n = 500
	for i := range n {
		if err := a.c.Send(b.id.ID, binary.BigEndian.AppendUint32(nil, uint32(i))); err != nil {
			t.Fatal(err)
		}
		wait(t, time.Millisecond)
	}
	b.attach()
	for i := range n {
		_, got, err := b.c.Receive(t.Context())
		if err != nil || binary.BigEndian.Uint32(got) != uint32(i) {
			t.Fatalf("datagram %d: %x, %v", i, got, err)
		}
	}
}

func TestSessionsAreBackAfterTheWireWasKilled(t *testing.T) {
	a, b := loopbackPair(t)
	began := time.Now()
	if err := unix.Kill(a.c.Hello().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, a.c, ErrLost)
	a.attach()
	a.waitUp()
	want := []byte("again")
	if err := a.c.Send(b.id.ID, want); err != nil {
		t.Fatal(err)
	}
	if _, got, err := b.c.Receive(t.Context()); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("received %q, %v", got, err)
	}
	t.Logf("back after %v (bar: 2 s)", time.Since(began))
}

// openTUN makes a device with one queue inside the namespace that it runs in.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// namespacePair is two stations in namespaces joined by a cable, each with a TUN device and the first address of its
// block on it.
func namespacePair(t *testing.T) (a, b *station, ha, hb *netlab.Host) {
	t.Helper()
	if err := netlab.Supported(); err != nil {
		t.Skipf("no namespaces: %v", err)
	}
	lab := netlab.New(t)
	sites := netlab.ThreeSites(lab)
	ha, hb = sites.A, sites.B
	a, b = newStation(t, 1), newStation(t, 2)
	a.others, b.others = []*station{b}, []*station{a}
	for _, x := range []struct {
		s *station
		h *netlab.Host
	}{{a, ha}, {b, hb}} {
		if err := x.h.Do(func() error { return x.s.listen(x.h.Addr4()) }); err != nil {
			t.Fatal(err)
		}
		x.s.device(x.h)
	}
	a.attach()
	b.attach()
	a.waitUp()
	b.waitUp()
	return a, b, ha, hb
}

// device makes the TUN device of the station.
func (s *station) device(h *netlab.Host) {
	s.t.Helper()
	var q *os.File
	err := h.Do(func() (err error) {
		q, err = openTUN("weft-sl")
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { q.Close() })
	s.queues = []*os.File{q}
	s.tun = TUN{Name: "weft-sl", Offload: sleeve.Offload{Vnet: true, TSO: true}}
	for _, args := range [][]string{
		{"address", "add", s.inner().String() + "/32", "dev", "weft-sl"},
		{"link", "set", "weft-sl", "mtu", "1400", "txqueuelen", "10000", "up"},
		{"route", "add", "10.32.0.0/16", "dev", "weft-sl", "src", s.inner().String()},
	} {
		if _, err := h.Exec("ip", args...); err != nil {
			s.t.Fatal(err)
		}
	}
}

// inner is the first address of the station's block.
func (s *station) inner() netip.Addr { return s.block.Addr().Next() }

func TestTwoNamespacesPingThroughTheirWires(t *testing.T) {
	a, b, ha, hb := namespacePair(t)
	pings(t, ha, b.inner())
	pings(t, hb, a.inner())
	// The process runs outside both namespaces; only its descriptors are inside.
	if own, wire := nsOf(t, os.Getpid()), nsOf(t, a.c.Hello().PID); own != wire {
		t.Errorf("the wire runs in %s, we in %s", wire, own)
	}
}

func TestADeletedDeviceIsNotHeldAndANewOneIsTaken(t *testing.T) {
	a, b, ha, _ := namespacePair(t)
	if held := a.c.Hello().Held; held.Queues != 0 {
		t.Fatalf("a wire that was just started holds %+v", held)
	}
	a.attach()
	if held := a.c.Hello().Held; held.TUN != a.tun || held.Queues != 1 || len(held.UDP) != 1 || held.UDP[0] != a.at {
		t.Fatalf("held %+v", held)
	}
	if _, err := ha.Exec("ip", "link", "delete", "weft-sl"); err != nil {
		t.Fatal(err)
	}
	again := mustEnsure(t, a.o)
	if held := again.Hello().Held; held.Queues != 0 || held.TUN.Name != "" {
		t.Errorf("holds a deleted device: %+v", held)
	}
	a.c, a.queues = again, nil
	a.device(ha)
	a.attach()
	a.waitUp()
	pings(t, ha, b.inner())
}

func TestPingsAreBackAfterAWireWasKilled(t *testing.T) {
	a, b, ha, _ := namespacePair(t)
	began := time.Now()
	if err := unix.Kill(a.c.Hello().PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitDone(t, a.c, ErrLost)
	a.attach()
	pings(t, ha, b.inner())
	t.Logf("back after %v (bar: 2 s)", time.Since(began))
}

// pings waits until an address answers.
func pings(t *testing.T, from *netlab.Host, to netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := from.WaitPing(ctx, to); err != nil {
		t.Errorf("%s does not reach %s: %v", from, to, err)
	}
}

func nsOf(t *testing.T, pid int) string {
	t.Helper()
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	if pid == os.Getpid() {
		path = "/proc/thread-self/ns/net" // the process's is that of its first thread, which may be inside a host just now
	}
	s, err := os.Readlink(path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// flood sends numbered inner UDP packets from one namespace to the other, a thousand a second, until stop is called,
// which returns how many were sent and how many of them did not arrive.
func flood(t *testing.T, from, to *netlab.Host, dst netip.Addr) (stop func() (sent, lost int)) {
	t.Helper()
	return floodLate(t, from, to, dst, patience)
}

// floodLate is flood that waits for no longer for the last packets.
func floodLate(t *testing.T, from, to *netlab.Host, dst netip.Addr, late time.Duration) (stop func() (sent, lost int)) {
	t.Helper()
	in, err := to.ListenPacket("udp4", netip.AddrPortFrom(dst, 9000).String())
	if err != nil {
		t.Fatal(err)
	}
	// Queues deep enough that a loaded test machine alone loses nothing.
	raw, err := in.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		optErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
	})
	if err := errors.Join(err, optErr); err != nil {
		t.Fatal(err)
	}
	var out net.Conn
	if out, err = from.Dial(t.Context(), "udp4", netip.AddrPortFrom(dst, 9000).String()); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	done, all := make(chan struct{}), make(chan struct{}) // to send no more; that none will be sent
	sent := 0
	got := map[uint32]bool{}
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		began := time.Now()
		for {
			for sent < int(time.Since(began)/time.Millisecond) { // as many as are due, if the ticker was late
				if _, err := out.Write(binary.BigEndian.AppendUint32(nil, uint32(sent))); err != nil {
					t.Errorf("send %d: %v", sent, err)
					return
				}
				sent++
			}
			select {
			case <-tick.C:
			case <-done:
				close(all)
				return
			}
		}
	})
	wg.Go(func() {
		b := make([]byte, 100)
		var end time.Time // for those that are late
		for {
			_ = in.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, _, err := in.ReadFrom(b)
			switch {
			case err == nil && n == 4:
				got[binary.BigEndian.Uint32(b)] = true
			case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
				return
			}
			select {
			case <-all:
				if now := time.Now(); end.IsZero() {
					end = now.Add(late)
				} else if len(got) >= sent || now.After(end) {
					return
				}
			default:
			}
		}
	})
	return func() (int, int) {
		close(done)
		wg.Wait()
		in.Close()
		out.Close()
		return sent, sent - len(got)
	}
}

// wait lets the flood run for a while.
func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-time.After(d):
	case <-t.Context().Done():
	}
}

func TestNoPacketIsLostWhenControllersAreKilledAndTakeOver(t *testing.T) {
	a, b, ha, hb := namespacePair(t)
	before := a.handshakes()
	stop := flood(t, ha, hb, b.inner())
	wait(t, 300*time.Millisecond)
	for range 3 {
		for _, s := range []*station{a, b} {
			cmd := exec.Command(s.o.Exe, "controller", s.o.Socket)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(out).ReadString('\n')
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if err != nil || line != "attached\n" {
				t.Errorf("controller says %q, %v", line, err)
			}
			wait(t, 100*time.Millisecond)
			s.attach()
		}
	}
	wait(t, 300*time.Millisecond)
	sent, lost := stop()
	t.Logf("%d sent, %d lost", sent, lost)
	if lost != 0 || sent < 1000 {
		t.Errorf("%d of %d packets were lost", lost, sent)
		for _, s := range []*station{a, b} {
			stats, err := s.c.Stats(t.Context())
			t.Logf("%+v, %v", stats, err)
		}
	}
	// Both may have begun at once, and the second handshake ended only now; six controllers were killed.
	if after := a.handshakes(); after > before+1 {
		t.Errorf("sessions were made anew: %d handshakes, %d before", after, before)
	}
}

// handshakes is how many the wire has completed with its only peer.
func (s *station) handshakes() uint64 {
	s.t.Helper()
	stats, err := s.c.Stats(s.t.Context())
	if err != nil || len(stats.Peers) != 1 {
		s.t.Fatalf("%+v, %v", stats, err)
	}
	return stats.Peers[0].Handshakes
}

func TestAReplacedWireCostsLittle(t *testing.T) {
	a, b, ha, hb := namespacePair(t)
	stop := floodLate(t, ha, hb, b.inner(), time.Second) // some are lost, so the last is not worth a wait
	wait(t, 300*time.Millisecond)
	id := a.id
	id.Counter += sleeve.CounterSpan
	next, err := a.c.Replace(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	a.replaced(next)
	took := a.waitUp()
	wait(t, 500*time.Millisecond)
	sent, lost := stop()
	t.Logf("session up again %v after Replace returned; %d of %d packets lost, one for each millisecond (bar: 200)", took, lost, sent)
	if lost == sent {
		t.Error("nothing arrived")
	}
}
