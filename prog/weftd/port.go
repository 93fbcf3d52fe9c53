package weftd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft/router/sleeve"
)

// listenTCP listens on the weft port. Where the kernel has no IPv6 every address means every IPv4 address. A socket of
// Multipath TCP, as Go makes them, is two sockets for every connection of a stranger, and no member makes use of it.
func listenTCP(ctx context.Context, at netip.AddrPort) (*net.TCPListener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", at.String())
	if at.Addr() == netip.IPv6Unspecified() && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
		ln, err = lc.Listen(ctx, "tcp4", netip.AddrPortFrom(netip.IPv4Unspecified(), at.Port()).String())
	}
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

// A process that was just killed holds its ports for a moment longer, and nobody is found who has them.
const (
	portPatience = time.Second
	portAgain    = 20 * time.Millisecond
)

// checkPort sees whether the weft port can be opened, by opening it; a wire that listens at socket may have it.
func checkPort(ctx context.Context, at netip.AddrPort, socket string) error {
	for began := time.Now(); ; {
		err := tryPort(ctx, at, socket)
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(began) > portPatience {
			return err
		}
		_, udp := portHolder("udp", at.Port())
		_, tcp := portHolder("tcp", at.Port())
		if udp || tcp {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(portAgain):
		}
	}
}

func tryPort(ctx context.Context, at netip.AddrPort, socket string) error {
	conns, err := sleeve.ListenUDP(ctx, at)
	if err != nil {
		return portTaken("udp", at, "listen", socket, err)
	}
	for _, c := range conns {
		_ = c.Close() // nothing was sent
	}
	return tryTCP(ctx, at, "listen", socket)
}

func tryTCP(ctx context.Context, at netip.AddrPort, flag, socket string) error {
	ln, err := listenTCP(ctx, at)
	if err != nil {
		return portTaken("tcp", at, flag, socket, err)
	}
	return ln.Close()
}

// portTaken is nil when the wire that listens at socket has the port.
func portTaken(network string, at netip.AddrPort, flag, socket string, err error) error {
	if p, ok := portHolder(network, at.Port()); ok && p.wire && slices.Contains(p.args, socket) && errors.Is(err, syscall.EADDRINUSE) {
		return nil
	}
	return portError(network, at, flag, err)
}

// program is a process that has a port.
type program struct {
	pid  int
	args []string
	wire bool // it is a `weft wire`
}

func (p program) String() string { return fmt.Sprintf("%s (pid %d)", filepath.Base(p.args[0]), p.pid) }

// portHolder finds who has a port of this machine, by what the kernel shows in /proc; without rights, or after a moment,
// there may be nobody to be found.
func portHolder(network string, port uint16) (program, bool) {
	sockets := map[string]bool{}
	for _, table := range []string{network, network + "6"} {
		for _, inode := range socketsOn("/proc/thread-self/net/"+table, port) {
			sockets["socket:["+inode+"]"] = true
		}
	}
	if len(sockets) == 0 {
		return program{}, false
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*") // its only error is a bad pattern
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err != nil || !sockets[to] {
			continue
		}
		pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if err == nil && pid != os.Getpid() && args[0] != "" {
			return program{pid: pid, args: args, wire: len(args) > 1 && args[1] == "wire"}, true
		}
	}
	return program{}, false
}

// tcpListening is the state of a listener in /proc/net/tcp, udpOpen that of a socket that is connected to nobody.
const (
	tcpListening = "0A"
	udpOpen      = "07"
)

// socketsOn lists the inodes of sockets that are open on a local port, from a table of /proc/net.
func socketsOn(table string, port uint16) (inodes []string) {
	f, err := os.Open(table)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }() // it was only read
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode
		word := strings.Fields(lines.Text())
		if len(word) < 10 || word[3] != tcpListening && word[3] != udpOpen {
			continue
		}
		if _, at, ok := strings.Cut(word[1], ":"); ok && at == fmt.Sprintf("%04X", port) {
			inodes = append(inodes, word[9])
		}
	}
	return inodes
}
