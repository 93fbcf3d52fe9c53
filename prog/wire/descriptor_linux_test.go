package wire

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"weft/mesh/peer"
)

func TestTCPConnectionsAreHandedOver(t *testing.T) {
	o := testOptions(t)
	c := mustEnsure(t, o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	given := files(t, ln.(*net.TCPListener))
	if err := c.GiveTCP(t.Context(), given); err != nil {
		t.Fatal(err)
	}
	given[0].Close()
	ln.Close() // the wire goes on listening
	for i := range 20 {
		out, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		const first = "whoever dials speaks first\n"
		if _, err := out.Write([]byte(first)); err != nil {
			t.Fatal(err)
		}
		in, err := c.Accept(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(in).ReadString('\n'); err != nil || got != first {
			t.Fatalf("what was looked at is gone: %q, %v", got, err)
		}
		if in.RemoteAddr().String() != out.LocalAddr().String() {
			t.Fatalf("accepted %v, dialled from %v", in.RemoteAddr(), out.LocalAddr())
		}
		want := fmt.Sprintf("hello %d\n", i)
		if _, err := in.Write([]byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, err := bufio.NewReader(out).ReadString('\n'); err != nil || got != want {
			t.Fatalf("got %q, %v", got, err)
		}
		in.Close()
		out.Close()
	}
	detach(t, c)
	refused, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	if _, err := refused.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	_ = refused.SetReadDeadline(time.Now().Add(patience))
	if n, err := refused.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("without a controller a connection stays open: %d, %v", n, err)
	}
	again := mustEnsure(t, o)
	if got := again.Hello().Held.TCP; len(got) != 1 || got[0].String() != ln.Addr().String() {
		t.Errorf("held %v", got)
	}
	eventually(t, "twenty were passed on, and one was not", func() bool {
		s, err := again.Stats(t.Context())
		return err == nil && s.Counters.AcceptedPassed == 20 && s.Counters.AcceptedClosed == 1
	})
	// An empty list takes the port away.
	if err := again.GiveTCP(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody listens any more", func() bool {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
}

func TestAttachingLeaksNoDescriptor(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can look into a process that is not dumpable")
	}
	o := testOptions(t)
	c := mustEnsure(t, o)
	pid := c.Hello().PID
	listenTCP, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listenTCP.Close()
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	udpFiles, tcpFiles := files(t, udp), files(t, listenTCP.(*net.TCPListener))
	// A pair of datagram sockets stands for the queue of a TUN device.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	queue, other := os.NewFile(uintptr(pair[0]), "queue"), os.NewFile(uintptr(pair[1]), "other")
	defer queue.Close()
	defer other.Close()
	give := func(c *Client) {
		t.Helper()
		push(t, c)
		err := errors.Join(
			c.GiveUDP(t.Context(), udpFiles),
			c.GiveTCP(t.Context(), tcpFiles),
			c.GiveTUN(t.Context(), TUN{Name: "weft-sl"}, []*os.File{queue}),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	give(c)
	generation := c.Hello().Generation
	var atFirst []string
	const rounds = 100
	quiet := o
	quiet.Log = nil
	for i := range rounds {
		again, err := Ensure(t.Context(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		if i == 1 { // the one before gave everything
			atFirst, generation = descriptors(t, pid), again.Hello().Generation
		}
		give(again)
		if _, err := again.Stats(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i == rounds-1 && again.Hello().Generation != generation {
			t.Errorf("generation rose from %d to %d", generation, again.Hello().Generation)
		}
		again.Close()
	}
	last := mustEnsure(t, o)
	eventually(t, "the wire has no more descriptors open than at first", func() bool {
		return len(descriptors(t, pid)) <= len(atFirst)
	})
	if h := last.Hello().Held; len(h.UDP) != 1 || len(h.TCP) != 1 || h.Queues != 1 || h.TUN.Name != "weft-sl" {
		t.Errorf("held %+v", h)
	}
	// Nothing that was given stays open in the old wire when it is replaced, nor here.
	ours := descriptors(t, os.Getpid())
	if _, err := last.Replace(t.Context(), Identity{ID: peer.ID{1}}); err == nil {
		t.Error("replaced by a weftd that had told nothing")
	}
	give(last)
	next, err := last.Replace(t.Context(), Identity{ID: peer.ID{1}, NoisePrivate: [32]byte{1}, Counter: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	waitDone(t, last, ErrStopped)
	if next.Hello().PID == pid {
		t.Error("replaced by itself")
	}
	eventually(t, "the old wire is gone", func() bool { return !processExists(pid) })
	// The handle of the old process closes once it was waited for.
	eventually(t, fmt.Sprintf("no more descriptors are open here than before: %s", ours), func() bool {
		return len(descriptors(t, os.Getpid())) <= len(ours)
	})
	again, err := Ensure(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	waitDone(t, next, ErrDisplaced)
	next.Close()
	if h := again.Hello(); h.PID != next.Hello().PID || len(h.Held.UDP) != 1 || len(h.Held.TCP) != 1 || h.Held.Queues != 1 {
		t.Errorf("the new wire says %+v", h)
	}
	if err := again.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// files are duplicates of sockets, closed with the test.
func files[T interface{ File() (*os.File, error) }](t testing.TB, sockets ...T) []*os.File {
	t.Helper()
	var out []*os.File
	for _, s := range sockets {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		out = append(out, f)
	}
	return out
}

// descriptors lists what a process has open.
func descriptors(t testing.TB, pid int) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			out = append(out, e.Name()+" "+target)
		}
	}
	return out
}
