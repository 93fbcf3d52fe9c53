package weftd

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"weft/prog/control"
)

// A node that could not begin although its membership is on disk begins when it is asked again, and until then nobody is told
// that all is well.
func TestANodeThatCouldNotBeginIsNoSuccess(t *testing.T) {
	m := machines(t, 1)[0]
	m.up()
	broken := filepath.Join(m.state(), filePromises)
	if err := os.WriteFile(broken, []byte{0x20}, 0o600); err != nil { // what a newer weft wrote
		t.Fatal(err)
	}
	for range 2 {
		if reply, err := m.Init(t.Context(), control.InitRequest{}); err == nil || !strings.Contains(err.Error(), "newer") {
			t.Fatalf("a cluster without a node: %+v, %v", reply, err)
		}
	}
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if reply := must(m.Init(t.Context(), control.InitRequest{}))(t); !reply.Existed {
		t.Errorf("another cluster: %+v", reply)
	}
	m.ready(1)
}

// A check is open to the group, so it opens nothing that the caller names: a pipe, for one, would never open.
func TestChecksOpenNoPathOfTheCaller(t *testing.T) {
	m := machines(t, 1)[0]
	m.found()
	p, other := m.Pod("web"), m.Pod("other")
	made := must(m.Attach(t.Context(), control.AttachRequest{Netns: p.Path(), Container: "web", Ifname: "eth0"}))(t)
	pipe := filepath.Join(m.Dir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	check := func(path string) error {
		_, err := m.Client.Check(ctx, control.CheckRequest{Container: "web", Ifname: "eth0", Netns: path, Addresses: made.Addresses})
		return err
	}
	if err := check(p.Path()); err != nil {
		t.Errorf("its own: %v", err)
	}
	link := filepath.Join(m.Dir(), "link")
	if err := os.Symlink(p.Path(), link); err != nil {
		t.Fatal(err)
	}
	if err := check(link); err != nil {
		t.Errorf("its own by another name: %v", err)
	}
	for _, path := range []string{pipe, other.Path(), m.Dir(), filepath.Join(m.Dir(), "none-such"), ""} {
		if err := check(path); control.Explain(err).Code != control.Conflict {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// Whoever types weft leave and then ^C has left: half of it would be the worst, a machine that has forgotten what it owns
// while the others wait for it.
func TestLeavingIsNotLeftHalfDone(t *testing.T) {
	ms := machines(t, 2)
	a, b := ms[0], ms[1]
	token := a.found()
	b.up("join=" + token)
	a.ready(2)
	b.ready(2)
	b.wait("has something to hand back", func(s control.Status) bool { return s.IPAM.State == control.IPAMReady })
	conn, err := net.Dial("unix", b.socket())
	if err != nil {
		t.Fatal(err)
	}
	var request bytes.Buffer
	fmt.Fprintf(&request, "POST /v1/leave HTTP/1.1\r\nHost: weft\r\nContent-Length: 2\r\n\r\n{}")
	if _, err := io.Copy(conn, &request); err != nil {
		t.Fatal(err)
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	b.gone()
	s := a.wait("knows that the other has left, with nothing of it", func(s control.Status) bool {
		return len(s.Peers) == 1 && s.Peers[0].State == control.PeerRemoved && len(s.Peers[0].Blocks) == 0
	})
	if why := s.Peers[0].Reason; !strings.Contains(why, "left") {
		t.Error(why)
	}
}
