package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// keepPackets is how many packets a capture remembers unless told otherwise.
	keepPackets = 4096
	// snapLength is how much of a packet is kept; super-packets are up to 64 KiB and a bit.
	snapLength = 68 << 10
	// receiveBuffer is asked of the kernel so that a burst is not lost between two reads, however long this program has to wait
	// for its turn. It is a bound: memory is taken by packets that wait.
	receiveBuffer = 128 << 20
	// vnetHeaderSize is sizeof(struct virtio_net_hdr), which the kernel puts before each packet on request.
	vnetHeaderSize = 10
)

// CaptureOptions say what a capture remembers. The zero value remembers the last 4096 packets of either direction.
type CaptureOptions struct {
	// Match chooses; nil chooses all. It runs on the capture's goroutine and sees a packet only until it returns.
	Match Matcher
	// Keep is how many of the chosen are remembered, the newest winning; 0 means 4096.
	Keep int
	// First keeps the first Keep packets rather than the newest.
	First bool
}

// Matcher chooses packets.
type Matcher func(*Packet) bool

// Capture sees every packet on one end of a link, both directions, each once.
type Capture struct {
	name string
	lab  *Lab
	file *os.File
	opts CaptureOptions
	done chan struct{}
	once sync.Once

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when a chosen packet arrives
	seen    uint64        // all
	chosen  uint64        // those that matched
	lost    uint64        // that the kernel could not deliver to us
	ring    []Packet
	err     error
}

// Capture starts capturing at end B of the link, which for the presets is the router's.
func (k *Link) Capture(opts CaptureOptions) *Capture { return k.B.Host.Capture(k.B.Name, opts) }

// Capture starts capturing on a device of the host. It has begun when this returns.
func (h *Host) Capture(device string, opts CaptureOptions) *Capture {
	c := &Capture{name: h.name + "." + device, lab: h.lab, opts: opts, done: make(chan struct{}), changed: make(chan struct{})}
	if c.opts.Keep <= 0 {
		c.opts.Keep = keepPackets
	}
	h.lab.must(c.open(h, device), "capture on %s", c.name)
	h.lab.mu.Lock()
	h.lab.captures = append(h.lab.captures, c)
	h.lab.mu.Unlock()
	go c.run() // ends in Stop, which Lab.Close calls
	return c
}

// CaptureAll captures on every link that stands now, remembering only what matches.
func (l *Lab) CaptureAll(opts CaptureOptions) Captures {
	var all Captures
	for _, k := range l.Links() {
		all = append(all, k.Capture(opts))
	}
	return all
}

func (c *Capture) open(h *Host, device string) error {
	var fd int
	err := h.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	})
	if err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	dev, err := h.nl.LinkByName(device)
	if err == nil {
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: dev.Attrs().Index}),
		)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("bind packet socket to %s: %w", device, err)
	}
	c.file = os.NewFile(uintptr(fd), "capture "+c.name)
	return nil
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// run reads until Stop, then drains what the kernel already has.
func (c *Capture) run() {
	defer close(c.done)
	raw, err := c.file.SyscallConn()
	if err != nil {
		c.fail(err)
		return
	}
	buf := make([]byte, vnetHeaderSize+snapLength)
	drain := func(fd uintptr) bool {
		for {
			n, from, err := receivePacket(int(fd), buf)
			switch {
			case errors.Is(err, unix.EAGAIN):
				return false
			case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
				continue
			case err != nil:
				c.fail(err)
				return true
			}
			ll, _ := from.(*unix.SockaddrLinklayer)
			c.take(buf[:min(n, len(buf))], n, ll)
		}
	}
	err = raw.Read(drain)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, os.ErrClosed) {
		c.fail(err)
	}
	_ = raw.Control(func(fd uintptr) {
		drain(fd)
		c.countLost(int(fd))
	})
}

// receivePacket reads the next packet behind its header. Kernels before 6.2 have no word for super-packets of UDP, which
// sending sockets make: such a packet is known when it is looked at, and read without the header, as if it were one.
func receivePacket(fd int, buf []byte) (n int, from unix.Sockaddr, err error) {
	switch _, _, err := unix.Recvfrom(fd, buf[:vnetHeaderSize], unix.MSG_PEEK); {
	case err == nil:
		return unix.Recvfrom(fd, buf, unix.MSG_TRUNC)
	case !errors.Is(err, unix.EINVAL):
		return 0, nil, err // not to be asked again: a packet that came meanwhile would not have been looked at
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 0); err != nil {
		return 0, nil, err
	}
	clear(buf[:vnetHeaderSize])
	n, from, err = unix.Recvfrom(fd, buf[vnetHeaderSize:], unix.MSG_TRUNC)
	return n + vnetHeaderSize, from, errors.Join(err, unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1))
}

func (c *Capture) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = errors.Join(c.err, err)
}

func (c *Capture) countLost(fd int) {
	st, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS) // reading resets it
	if err == nil {
		c.mu.Lock()
		c.lost += uint64(st.Drops)
		c.mu.Unlock()
	}
}

func (c *Capture) take(b []byte, n int, from *unix.SockaddrLinklayer) {
	if len(b) < vnetHeaderSize {
		return
	}
	p := Packet{
		Time: time.Now(), Link: c.name, Len: n - vnetHeaderSize, Data: b[vnetHeaderSize:],
		Segment: int(binary.NativeEndian.Uint16(b[4:])), // gso_size
		Out:     from != nil && from.Pkttype == unix.PACKET_OUTGOING,
	}
	if b[1] == 0 { // gso_type
		p.Segment = 0
	}
	chosen := c.opts.Match == nil || c.opts.Match(&p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	if !chosen {
		return
	}
	p.Data = append([]byte(nil), p.Data...)
	switch {
	case len(c.ring) < c.opts.Keep:
		c.ring = append(c.ring, p)
	case !c.opts.First:
		c.ring[int(c.chosen)%c.opts.Keep] = p
	}
	c.chosen++
	close(c.changed)
	c.changed = make(chan struct{})
}

// Stop ends the capture after reading what has already passed. What it holds can still be read.
func (c *Capture) Stop() {
	c.once.Do(func() {
		_ = c.file.SetReadDeadline(time.Unix(1, 0))
		<-c.done
		_ = c.file.Close()
	})
	<-c.done
}

// Seen counts all packets that passed, chosen or not.
func (c *Capture) Seen() uint64 { c.mu.Lock(); defer c.mu.Unlock(); return c.seen }

// Count counts the chosen.
func (c *Capture) Count() uint64 { c.mu.Lock(); defer c.mu.Unlock(); return c.chosen }

// Err says what a proof by capture must not pass over: a read error, or packets that the kernel could not deliver to us.
// It is complete after Stop.
func (c *Capture) Err() error {
	select {
	case <-c.done:
	default:
		if raw, err := c.file.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { c.countLost(int(fd)) })
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("capture %s: %w", c.name, c.err)
	}
	if c.lost > 0 {
		return fmt.Errorf("capture %s missed %d packets", c.name, c.lost)
	}
	return nil
}

// Packets are the remembered ones, oldest first.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Packet, 0, len(c.ring))
	if c.opts.First || len(c.ring) < c.opts.Keep {
		return append(out, c.ring...)
	}
	at := int(c.chosen) % c.opts.Keep
	return append(append(out, c.ring[at:]...), c.ring[:at]...)
}

// WaitFor waits until at least n packets were chosen.
func (c *Capture) WaitFor(ctx context.Context, n uint64) error {
	for {
		c.mu.Lock()
		got, changed := c.chosen, c.changed
		c.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-changed:
		case <-c.done:
			if got = c.Count(); got >= n { // the last that it read before its end
				return nil
			}
			return fmt.Errorf("capture %s ended with %d of %d packets", c.name, got, n)
		case <-ctx.Done():
			return fmt.Errorf("capture %s has %d of %d packets: %w", c.name, got, n, ctx.Err())
		}
	}
}

// WriteFile writes the remembered packets for tcpdump and wireshark.
func (c *Capture) WriteFile(path string) error {
	var b []byte
	b = appendPcapHeader(b)
	for _, p := range c.Packets() {
		b = appendPcap(b, &p)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return fmt.Errorf("write capture: %w", err)
	}
	return nil
}

// WriteTemp writes the remembered packets to a new file in $NETLAB_PCAP, or the directory for temporary files, and returns
// its path; empty when there are none.
func (c *Capture) WriteTemp() (string, error) {
	if c.Count() == 0 {
		return "", nil
	}
	dir := os.Getenv("NETLAB_PCAP")
	if dir == "" {
		dir = os.TempDir()
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%s.pcap", c.lab.name, c.name))
	return path, c.WriteFile(path)
}

// Captures are several at once.
type Captures []*Capture

// Stop stops all.
func (cs Captures) Stop() {
	for _, c := range cs {
		c.Stop()
	}
}

// Count adds up the chosen.
func (cs Captures) Count() (n uint64) {
	for _, c := range cs {
		n += c.Count()
	}
	return n
}

// Seen adds up all that passed.
func (cs Captures) Seen() (n uint64) {
	for _, c := range cs {
		n += c.Seen()
	}
	return n
}

// Packets are the remembered ones of all.
func (cs Captures) Packets() (out []Packet) {
	for _, c := range cs {
		out = append(out, c.Packets()...)
	}
	return out
}

// Err is the first failure of any.
func (cs Captures) Err() error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Err())
	}
	return errors.Join(errs...)
}

// Describe shows the first n remembered packets, one per line, for the message of a failed test.
func (cs Captures) Describe(n int) string {
	var b strings.Builder
	for i, p := range cs.Packets() {
		if i == n {
			fmt.Fprintf(&b, "… and %d more\n", int(cs.Count())-n)
			break
		}
		fmt.Fprintln(&b, p.String())
	}
	return b.String()
}
