package main

import (
	"encoding/binary"
	"net"

	"golang.org/x/net/ipv4"
)

// sink counts the packets of one run at a time, and answers. It ends with the socket.
func sink(c *net.UDPConn) error {
	in := make([]ipv4.Message, batch)
	for i := range in {
		in[i].Buffers = [][]byte{make([]byte, 2048)}
	}
	pc := ipv4.NewPacketConn(c)
	var run, top, count, answered uint64
	var answer [ackSize]byte
	for {
		n, err := pc.ReadBatch(in, 0)
		if err != nil {
			return err
		}
		for _, m := range in[:n] {
			b := m.Buffers[0][:m.N]
			if len(b) < headSize {
				continue
			}
			switch r := binary.BigEndian.Uint64(b); {
			case r < run: // what is left of an earlier one
				continue
			case r > run:
				run, top, count, answered = r, 0, 0, 0
			}
			top = max(top, binary.BigEndian.Uint64(b[8:]))
			count++
			if count-answered < ackEvery && b[16]&flagAnswer == 0 {
				continue
			}
			answered = count
			binary.BigEndian.PutUint64(answer[:], run)
			binary.BigEndian.PutUint64(answer[8:], top)
			binary.BigEndian.PutUint64(answer[16:], count)
			_, _ = c.WriteTo(answer[:], m.Addr)
		}
	}
}
