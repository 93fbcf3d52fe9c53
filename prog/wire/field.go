package wire

import (
	"fmt"
	"net/netip"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

func endpoints(in []netip.AddrPort) [][]byte {
	items := make([][]byte, 0, len(in))
	for _, ap := range in {
		if ap.IsValid() {
			items = append(items, tlv.AddrPort(netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())))
		}
	}
	return items
}

func parseEndpoints(r *tlv.Reader, tag uint16, limit int) []netip.AddrPort {
	var out []netip.AddrPort
	for _, item := range r.List(tag, limit) {
		ap, err := tlv.ParseAddrPort(item)
		if err != nil {
			r.Fail(err)
			return nil
		}
		out = append(out, ap)
	}
	return out
}

func ids(in []peer.ID) [][]byte {
	items := make([][]byte, len(in))
	for i := range in {
		items[i] = in[i][:]
	}
	return items
}

func parseIDs(r *tlv.Reader, tag uint16, limit int) []peer.ID {
	var out []peer.ID
	for _, item := range r.List(tag, limit) {
		if len(item) != peer.IDSize {
			r.Fail(fmt.Errorf("%w: an id of %d bytes", tlv.ErrMalformed, len(item)))
			return nil
		}
		out = append(out, peer.ID(item))
	}
	return out
}

func prefixes(in []netip.Prefix) [][]byte {
	items := make([][]byte, 0, len(in))
	for _, p := range in {
		if p.IsValid() {
			items = append(items, tlv.Prefix(p.Masked()))
		}
	}
	return items
}

func parsePrefixes(r *tlv.Reader, tag uint16) []netip.Prefix {
	var out []netip.Prefix
	for _, item := range r.List(tag, maxPrefixes) {
		p, err := tlv.ParsePrefix(item)
		if err != nil {
			r.Fail(err)
			return nil
		}
		out = append(out, p)
	}
	return out
}

func reader(b []byte) (*tlv.Reader, error) {
	f, err := tlv.Parse(b)
	if err != nil {
		return nil, err
	}
	return tlv.NewReader(f), nil
}

// parseItems reads a message that is one list in field 1.
func parseItems[T any](b []byte, limit int, parse func(*tlv.Reader) T) ([]T, error) {
	r, err := reader(b)
	if err != nil {
		return nil, err
	}
	items := parseList(r, 1, limit, parse)
	return items, r.Err()
}

// parseList reads a list whose items are fields themselves.
func parseList[T any](r *tlv.Reader, tag uint16, limit int, parse func(*tlv.Reader) T) []T {
	var out []T
	for _, item := range r.List(tag, limit) {
		ir, err := reader(item)
		if err != nil {
			r.Fail(err)
			return nil
		}
		v := parse(ir)
		if err := ir.Err(); err != nil {
			r.Fail(err)
			return nil
		}
		out = append(out, v)
	}
	return out
}
