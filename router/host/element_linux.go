package host

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// element is an entry of a set as the kernel sees it: the keys from low to high, both included. Without intervals both
// are the same.
type element struct{ low, high string }

func fieldSize(kind string) uint32 {
	switch kind {
	case "ipv4_addr":
		return 4
	case "ipv6_addr":
		return 16
	case "ether_addr":
		return 6
	case "inet_service":
		return 2
	case "ifname":
		return unix.IFNAMSIZ
	}
	return 1
}

// encodeField gives the lowest and highest key that a value stands for.
func encodeField(kind, value string) (low, high []byte, err error) {
	switch kind {
	case "ipv4_addr", "ipv6_addr":
		p, err := netip.ParsePrefix(value)
		if err != nil {
			a, err := netip.ParseAddr(value)
			if err != nil {
				return nil, nil, fmt.Errorf("bad address %q", value)
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		if p.Addr().Is4() != (kind == "ipv4_addr") {
			return nil, nil, fmt.Errorf("%q is of the other family", value)
		}
		low = p.Masked().Addr().AsSlice()
		high = slices.Clone(low)
		for bit := p.Bits(); bit < p.Addr().BitLen(); bit++ {
			high[bit/8] |= 0x80 >> (bit % 8)
		}
		return low, high, nil
	case "ether_addr":
		mac, err := net.ParseMAC(value)
		if err != nil || len(mac) != 6 {
			return nil, nil, fmt.Errorf("bad MAC %q", value)
		}
		return mac, mac, nil
	case "inet_service":
		p, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return nil, nil, fmt.Errorf("bad port %q", value)
		}
		b := binary.BigEndian.AppendUint16(nil, uint16(p))
		return b, b, nil
	case "ifname":
		if value == "" || len(value) >= unix.IFNAMSIZ {
			return nil, nil, fmt.Errorf("bad device name %q", value)
		}
		b := make([]byte, unix.IFNAMSIZ)
		copy(b, value)
		return b, b, nil
	}
	return nil, nil, fmt.Errorf("unknown type %q", kind)
}

// encodeElement concatenates the fields of an element, each filled up to four bytes.
func encodeElement(set FilterSet, value string) (element, error) {
	kinds, values := strings.Split(set.Type, " . "), strings.Split(value, " . ")
	if len(kinds) != len(values) {
		return element{}, fmt.Errorf("element %q of set %s: want %d fields", value, set.Name, len(kinds))
	}
	var low, high []byte
	for i, kind := range kinds {
		l, h, err := encodeField(kind, values[i])
		if err != nil {
			return element{}, fmt.Errorf("element %q of set %s: %w", value, set.Name, err)
		}
		low, high = append(low, l...), append(high, h...)
		for len(kinds) > 1 && len(low)%4 != 0 {
			low, high = append(low, 0), append(high, 0)
		}
	}
	if !set.Interval && string(low) != string(high) {
		return element{}, fmt.Errorf("element %q of set %s: the set holds no prefixes", value, set.Name)
	}
	return element{string(low), string(high)}, nil
}

// encodeElements encodes a set's wanted elements: no duplicates, and in an interval set of one field none inside another,
// which the kernel would refuse. encoded has all of them as they were written; those in known were encoded before.
func encodeElements(set FilterSet, known map[string]element) (out map[element]bool, encoded map[string]element, err error) {
	all, encoded := make([]element, 0, len(set.Elements)), make(map[string]element, len(set.Elements))
	for _, value := range set.Elements {
		e, ok := known[value]
		if !ok {
			if e, err = encodeElement(set, value); err != nil {
				return nil, nil, err
			}
		}
		all, encoded[value] = append(all, e), e
	}
	out = make(map[element]bool, len(all))
	if !set.Interval || concatenated(set) {
		for _, e := range all {
			out[e] = true
		}
		return out, encoded, nil
	}
	slices.SortFunc(all, func(a, b element) int { // the wider of two with the same start first
		if c := strings.Compare(a.low, b.low); c != 0 {
			return c
		}
		return strings.Compare(b.high, a.high)
	})
	last := ""
	for i, e := range all {
		if i > 0 && e.high <= last {
			continue
		}
		out[e], last = true, e.high
	}
	return out, encoded, nil
}

func concatenated(set FilterSet) bool { return strings.Contains(set.Type, " . ") }

// toKernel writes elements as the library wants them. A single-field interval is two elements, the second being the first
// key after it, which does not exist for the last interval of all.
func toKernel(set FilterSet, elements []element) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range elements {
		switch {
		case !set.Interval:
			out = append(out, nftables.SetElement{Key: []byte(e.low)})
		case concatenated(set):
			out = append(out, nftables.SetElement{Key: []byte(e.low), KeyEnd: []byte(e.high)})
		default:
			out = append(out, nftables.SetElement{Key: []byte(e.low)})
			if end, ok := successor([]byte(e.high)); ok {
				out = append(out, nftables.SetElement{Key: end, IntervalEnd: true})
			}
		}
	}
	return out
}

// fromKernel is the inverse of toKernel.
func fromKernel(set FilterSet, list []nftables.SetElement) map[element]bool {
	out := make(map[element]bool, len(list))
	switch {
	case !set.Interval:
		for _, e := range list {
			out[element{string(e.Key), string(e.Key)}] = true
		}
	case concatenated(set):
		for _, e := range list {
			high := e.KeyEnd
			if len(high) == 0 {
				high = e.Key
			}
			out[element{string(e.Key), string(high)}] = true
		}
	default:
		slices.SortFunc(list, func(a, b nftables.SetElement) int {
			if c := bytes.Compare(a.Key, b.Key); c != 0 {
				return c
			}
			if a.IntervalEnd == b.IntervalEnd {
				return 0
			}
			if a.IntervalEnd { // one interval ends where the next begins
				return -1
			}
			return 1
		})
		for i, e := range list {
			if e.IntervalEnd {
				continue
			}
			high := bytes.Repeat([]byte{0xff}, len(e.Key))
			if i+1 < len(list) {
				high = predecessor(list[i+1].Key)
			}
			out[element{string(e.Key), string(high)}] = true
		}
	}
	return out
}

func successor(b []byte) ([]byte, bool) {
	b = slices.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]++
		if b[i] != 0 {
			return b, true
		}
	}
	return nil, false
}

func predecessor(b []byte) []byte {
	b = slices.Clone(b)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return b
}

func setType(kind string) (nftables.SetDatatype, error) {
	types := map[string]nftables.SetDatatype{
		"ipv4_addr": nftables.TypeIPAddr, "ipv6_addr": nftables.TypeIP6Addr,
		"ether_addr": nftables.TypeEtherAddr, "inet_service": nftables.TypeInetService, "ifname": nftables.TypeIFName,
	}
	var parts []nftables.SetDatatype
	for part := range strings.SplitSeq(kind, " . ") {
		t, ok := types[part]
		if !ok {
			return nftables.SetDatatype{}, fmt.Errorf("unknown type %q", part)
		}
		parts = append(parts, t)
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return nftables.ConcatSetType(parts...)
}
