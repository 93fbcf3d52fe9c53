package runtimes_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// within a network namespace that a runtime made: sockets opened by f stay there.
func inNamespace(path string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with its goroutine, in whatever namespace it is
		ns, err := os.Open(path)
		if err != nil {
			done <- err
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("enter %s: %w", path, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// meeting is what every pod takes part in to find out whether each reaches each.
type meeting struct {
	ports []port
	wg    sync.WaitGroup
}

// port is a socket of a pod, under one of its addresses.
type port struct {
	name string
	conn *net.UDPConn
	addr netip.AddrPort
}

const meetingPort = 7007

// join opens a socket for each address in the namespace, which echoes.
func (m *meeting) join(name, netns string, addrs []string) error {
	for _, s := range addrs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return err
		}
		p := port{name: name, addr: netip.AddrPortFrom(a, meetingPort)}
		if err := inNamespace(netns, func() (err error) {
			p.conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(p.addr))
			return err
		}); err != nil {
			return fmt.Errorf("listen in pod %s: %w", name, err)
		}
		m.ports = append(m.ports, p)
	}
	return nil
}

// hold lets each port call each other one of its family, and returns how many calls were answered. A call is repeated until
// it is answered or ctx ends.
func (m *meeting) hold(ctx context.Context) (answered int, err error) {
	defer func() {
		for _, p := range m.ports {
			p.conn.Close()
		}
		m.wg.Wait()
	}()
	type call struct{ from, to int }
	var mu sync.Mutex
	open := make(map[call]bool)
	for i, a := range m.ports {
		for j, b := range m.ports {
			if i != j && a.addr.Addr().Is4() == b.addr.Addr().Is4() {
				open[call{i, j}] = true
			}
		}
	}
	index := make(map[netip.AddrPort]int)
	for i, p := range m.ports {
		index[p.addr] = i
	}
	for i, p := range m.ports {
		m.wg.Go(func() {
			b := make([]byte, 16)
			for {
				n, from, err := p.conn.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
				switch string(b[:n]) {
				case "call":
					_, _ = p.conn.WriteToUDPAddrPort([]byte("answer"), from) // who calls calls again
				case "answer":
					mu.Lock()
					delete(open, call{i, index[from]})
					mu.Unlock()
				}
			}
		})
	}
	all := len(open)
	for {
		mu.Lock()
		left := make([]call, 0, len(open))
		for c := range open {
			left = append(left, c)
		}
		mu.Unlock()
		if len(left) == 0 {
			return all, nil
		}
		if ctx.Err() != nil {
			var errs []error
			for _, c := range left[:min(len(left), 5)] {
				errs = append(errs, fmt.Errorf("%s %s does not reach %s %s", m.ports[c.from].name, m.ports[c.from].addr, m.ports[c.to].name, m.ports[c.to].addr))
			}
			return all - len(left), fmt.Errorf("%d of %d calls unanswered: %w", len(left), all, errors.Join(errs...))
		}
		for _, c := range left {
			_, _ = m.ports[c.from].conn.WriteToUDPAddrPort([]byte("call"), m.ports[c.to].addr)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
