package wire

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/path"
	"weft/mesh/peer"
	"weft/router"
	"weft/router/sleeve"
)

// Limits of what a wire may report.
const (
	maxReasons = 256 // for which packets are counted as dropped
	maxPaths   = 64  // of one peer
	maxHops    = 8   // of one path
)

func appendStats(dst []byte, s Stats) []byte {
	items := make([][]byte, len(s.Peers))
	for i, p := range s.Peers {
		b := appendLink(nil, p.Link())
		b = tlv.AppendString(b, 12, p.Cipher)
		b = tlv.AppendUint64(b, 13, p.RxPackets)
		b = tlv.AppendUint64(b, 14, p.TxPackets)
		b = tlv.AppendUint64(b, 15, p.Handshakes)
		b = tlv.AppendList(b, 16, tally(p.Drops))
		b = appendRoute(b, p.Via, p.TCP)
		b = tlv.AppendAddrPort(b, 19, p.Observed)
		b = tlv.AppendList(b, 20, paths(p.Paths))
		items[i] = tlv.AppendBool(b, 21, p.Asleep)
	}
	dst = tlv.AppendList(dst, 1, items)
	dst = tlv.AppendList(dst, 2, tally(s.Drops))
	c := s.Counters
	for i, v := range []uint64{
		c.Attached, c.Refused, c.DatagramsDropped, c.DatagramsFailed, c.AcceptedPassed, c.AcceptedClosed, c.Malformed,
	} {
		dst = tlv.AppendUint64(dst, 3+uint16(i), v)
	}
	dst = tlv.AppendUint64(dst, 10, s.Flood)
	return tlv.AppendList(dst, 11, tally(s.Gone))
}

func parseStats(b []byte) (Stats, error) {
	r, err := reader(b)
	if err != nil {
		return Stats{}, err
	}
	var s Stats
	s.Peers = parseList(r, 1, maxPeers, func(r *tlv.Reader) sleeve.PeerStats {
		l := parseLink(r)
		return sleeve.PeerStats{
			ID: l.Peer, Up: l.Up, Endpoint: l.Endpoint, MTU: l.MTU, RTT: l.RTT, Loss: l.Loss, LastSeen: l.LastSeen,
			KeyAge: l.KeyAge, RxBytes: l.RxBytes, TxBytes: l.TxBytes, Reason: l.Reason,
			Cipher: r.String(12, maxString), RxPackets: r.Uint64(13), TxPackets: r.Uint64(14), Handshakes: r.Uint64(15),
			Drops: parseTally(r, 16), Asleep: l.Asleep,
			Via: l.Via, TCP: l.TCP, Observed: r.AddrPort(19), Paths: parsePaths(r, 20),
		}
	})
	s.Drops = parseTally(r, 2)
	c := &s.Counters
	for i, v := range []*uint64{
		&c.Attached, &c.Refused, &c.DatagramsDropped, &c.DatagramsFailed, &c.AcceptedPassed, &c.AcceptedClosed,
		&c.Malformed,
	} {
		*v = r.Uint64(3 + uint16(i))
	}
	s.Flood = r.Uint64(10)
	s.Gone = parseTally(r, 11)
	return s, r.Err()
}

func paths(in []sleeve.PathStats) [][]byte {
	items := make([][]byte, 0, len(in))
	for _, p := range in[:min(len(in), maxPaths)] {
		b := tlv.AppendAddrPort(nil, 1, p.Endpoint)
		b = tlv.AppendList(b, 2, ids(p.Via))
		b = tlv.AppendBool(b, 3, p.TCP)
		b = tlv.AppendBool(b, 4, p.Active)
		b = tlv.AppendUint8(b, 5, uint8(p.State))
		b = tlv.AppendUint64(b, 6, uint64(p.RTT))
		b = tlv.AppendUint64(b, 7, math.Float64bits(p.Loss))
		b = tlv.AppendUint32(b, 8, uint32(p.MTU))
		items = append(items, tlv.AppendString(b, 9, p.Reason))
	}
	return items
}

func parsePaths(r *tlv.Reader, tag uint16) []sleeve.PathStats {
	return parseList(r, tag, maxPaths, func(r *tlv.Reader) sleeve.PathStats {
		return sleeve.PathStats{
			Endpoint: r.AddrPort(1), Via: parseIDs(r, 2, maxHops), TCP: r.Bool(3), Active: r.Bool(4),
			State: path.State(r.Uint8(5)), RTT: time.Duration(r.Uint64(6)), Loss: math.Float64frombits(r.Uint64(7)),
			MTU: int(int32(r.Uint32(8))), Reason: r.String(9, maxString),
		}
	})
}

// tally encodes counts by name.
func tally(counts map[string]uint64) [][]byte {
	items := make([][]byte, 0, len(counts))
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		items = append(items, append(binary.BigEndian.AppendUint64(nil, counts[name]), name...))
	}
	return items
}

func parseTally(r *tlv.Reader, tag uint16) map[string]uint64 {
	items := r.List(tag, maxReasons)
	if len(items) == 0 {
		return nil
	}
	counts := make(map[string]uint64, len(items))
	for _, item := range items {
		if len(item) < 8 {
			r.Fail(fmt.Errorf("%w: a count of %d bytes", tlv.ErrMalformed, len(item)))
			return nil
		}
		counts[string(item[8:])] = binary.BigEndian.Uint64(item)
	}
	return counts
}

func appendLink(dst []byte, l router.Link) []byte {
	dst = tlv.Append(dst, 1, l.Peer[:])
	dst = tlv.AppendBool(dst, 2, l.Up)
	dst = tlv.AppendAddrPort(dst, 3, l.Endpoint)
	dst = tlv.AppendUint32(dst, 4, uint32(l.MTU))
	dst = tlv.AppendUint64(dst, 5, uint64(l.RTT))
	dst = tlv.AppendUint64(dst, 6, math.Float64bits(l.Loss))
	if !l.LastSeen.IsZero() {
		dst = tlv.AppendUint64(dst, 7, uint64(l.LastSeen.UnixNano()))
	}
	dst = tlv.AppendUint64(dst, 8, uint64(l.KeyAge))
	dst = tlv.AppendUint64(dst, 9, l.RxBytes)
	dst = tlv.AppendUint64(dst, 10, l.TxBytes)
	return tlv.AppendString(dst, 11, l.Reason)
}

// appendRoute adds the rest of a link: tags rise, and those of appendStats stand between.
func appendRoute(dst []byte, via []peer.ID, tcp bool) []byte {
	dst = tlv.AppendList(dst, 17, ids(via))
	return tlv.AppendBool(dst, 18, tcp)
}

func parseLink(r *tlv.Reader) router.Link {
	r.Require(1)
	l := router.Link{
		Up:       r.Bool(2),
		Endpoint: r.AddrPort(3),
		MTU:      int(int32(r.Uint32(4))),
		RTT:      time.Duration(r.Uint64(5)),
		Loss:     math.Float64frombits(r.Uint64(6)),
		KeyAge:   time.Duration(r.Uint64(8)),
		RxBytes:  r.Uint64(9),
		TxBytes:  r.Uint64(10),
		Reason:   r.String(11, maxString),
		Via:      parseIDs(r, 17, maxHops),
		TCP:      r.Bool(18),
		Asleep:   r.Bool(21),
	}
	r.Copy(1, l.Peer[:])
	if r.Has(7) {
		l.LastSeen = time.Unix(0, int64(r.Uint64(7)))
	}
	return l
}

func links(in []router.Link) [][]byte {
	items := make([][]byte, len(in))
	for i, l := range in {
		items[i] = tlv.AppendBool(appendRoute(appendLink(nil, l), l.Via, l.TCP), 21, l.Asleep)
	}
	return items
}

func parseLinks(r *tlv.Reader, tag uint16) []router.Link {
	return parseList(r, tag, maxPeers, parseLink)
}
