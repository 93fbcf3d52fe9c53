package host

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// compiler turns one rule, written in nft's words, into the kernel's expressions. It knows what weft writes:
//
//	FIELD [. FIELD]... [!=] VALUE | @SET     iifname oifname, ip|ip6 saddr|daddr, ether saddr, tcp|udp dport,
//	                                         meta nfproto|l4proto; a VALUE of a name may end in *, that of an
//	                                         address may be a prefix
//	ct state established,related             any of them
//	tcp flags syn                            the flag is set
//	fib daddr type local                     an address of this machine
//	counter accept drop return jump CHAIN goto CHAIN masquerade fully-random
//	dnat ip|ip6 to ADDRESS:PORT              after the protocol was matched
//	tcp option maxseg size set rt mtu
//	comment "WORDS"                          last
//
// What nft inserts by itself is inserted here too: the family check before an address, the protocol check before a port,
// and the device type check before a MAC.
type compiler struct {
	words   []string
	sets    map[string]FilterSet
	out     []expr.Any
	comment string

	family, l4 byte // known to match, 0 when anything does
	ether      bool
}

func compileRule(rule string, sets map[string]FilterSet) (exprs []expr.Any, comment string, err error) {
	words, err := splitRule(rule)
	if err != nil {
		return nil, "", fmt.Errorf("rule %q: %w", rule, err)
	}
	c := &compiler{words: words, sets: sets}
	for len(c.words) > 0 {
		if err := c.statement(); err != nil {
			return nil, "", fmt.Errorf("rule %q: %w", rule, err)
		}
	}
	return c.out, c.comment, nil
}

// splitRule cuts at spaces; quotes hold a word together and are removed.
func splitRule(s string) (words []string, err error) {
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimLeft(s, " ") {
		if s[0] == '"' {
			end := strings.IndexByte(s[1:], '"')
			if end < 0 {
				return nil, fmt.Errorf("quote without end")
			}
			words, s = append(words, s[1:1+end]), s[end+2:]
			continue
		}
		word, rest, _ := strings.Cut(s, " ")
		words, s = append(words, word), rest
	}
	return words, nil
}

func (c *compiler) add(e ...expr.Any) { c.out = append(c.out, e...) }

func (c *compiler) peek(words ...string) bool {
	if len(c.words) < len(words) {
		return false
	}
	for i, w := range words {
		if c.words[i] != w {
			return false
		}
	}
	return true
}

// take consumes the words if they stand next.
func (c *compiler) take(words ...string) bool {
	if !c.peek(words...) {
		return false
	}
	c.words = c.words[len(words):]
	return true
}

func (c *compiler) next() (string, error) {
	if len(c.words) == 0 {
		return "", fmt.Errorf("ends too early")
	}
	w := c.words[0]
	c.words = c.words[1:]
	return w, nil
}

func (c *compiler) statement() error {
	switch {
	case c.take("counter"):
		c.add(&expr.Counter{})
	case c.take("accept"):
		c.add(&expr.Verdict{Kind: expr.VerdictAccept})
	case c.take("drop"):
		c.add(&expr.Verdict{Kind: expr.VerdictDrop})
	case c.take("return"):
		c.add(&expr.Verdict{Kind: expr.VerdictReturn})
	case c.peek("jump"), c.peek("goto"):
		kind := expr.VerdictJump
		if c.words[0] == "goto" {
			kind = expr.VerdictGoto
		}
		c.words = c.words[1:]
		chain, err := c.next()
		if err != nil {
			return err
		}
		c.add(&expr.Verdict{Kind: kind, Chain: chain})
	case c.take("masquerade", "fully-random"):
		c.add(&expr.Masq{FullyRandom: true})
	case c.take("dnat", "ip", "to"):
		return c.dnat(unix.NFPROTO_IPV4)
	case c.take("dnat", "ip6", "to"):
		return c.dnat(unix.NFPROTO_IPV6)
	case c.take("fib", "daddr", "type", "local"):
		c.add(&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)})
	case c.take("tcp", "option", "maxseg", "size", "set", "rt", "mtu"):
		c.needL4(unix.IPPROTO_TCP)
		c.add(&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
			&expr.Exthdr{SourceRegister: 1, Type: 2, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt})
	case c.take("tcp", "flags", "syn"):
		c.needL4(unix.IPPROTO_TCP)
		c.add(&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1})
		c.anyBit([]byte{0x02})
	case c.take("ct", "state"):
		return c.ctState()
	case c.take("comment"):
		w, err := c.next()
		if err != nil {
			return err
		}
		c.comment = w
	default:
		return c.match()
	}
	return nil
}

// dnat sends a connection of one family to an address and port.
func (c *compiler) dnat(family byte) error {
	w, err := c.next()
	if err != nil {
		return err
	}
	to, err := netip.ParseAddrPort(w)
	if err != nil || to.Addr().Is4() != (family == unix.NFPROTO_IPV4) || to.Port() == 0 {
		return fmt.Errorf("%q is not an address of that family with a port", w)
	}
	c.needFamily(family)
	c.add(&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: 1, RegProtoMin: 2, Specified: true})
	return nil
}

// anyBit goes on only when register 1 shares a bit with mask.
func (c *compiler) anyBit(mask []byte) {
	zero := make([]byte, len(mask))
	c.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: zero},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: zero})
}

func (c *compiler) ctState() error {
	w, err := c.next()
	if err != nil {
		return err
	}
	var bits uint32
	for state := range strings.SplitSeq(w, ",") {
		switch state {
		case "established":
			bits |= expr.CtStateBitESTABLISHED
		case "related":
			bits |= expr.CtStateBitRELATED
		default:
			return fmt.Errorf("unknown connection state %q", state)
		}
	}
	c.add(&expr.Ct{Register: 1, Key: expr.CtKeySTATE})
	c.anyBit(binaryutil.NativeEndian.PutUint32(bits))
	return nil
}

// field is one value of a packet that can be loaded into a register.
type field struct {
	kind string // type of the set that it can be looked up in
	load func(reg uint32) expr.Any
}

func (c *compiler) field() (field, error) {
	payload := func(base expr.PayloadBase, offset, size uint32) func(uint32) expr.Any {
		return func(reg uint32) expr.Any {
			return &expr.Payload{DestRegister: reg, Base: base, Offset: offset, Len: size}
		}
	}
	meta := func(key expr.MetaKey) func(uint32) expr.Any {
		return func(reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }
	}
	const net, link, transport = expr.PayloadBaseNetworkHeader, expr.PayloadBaseLLHeader, expr.PayloadBaseTransportHeader
	switch {
	case c.take("iifname"):
		return field{"ifname", meta(expr.MetaKeyIIFNAME)}, nil
	case c.take("oifname"):
		return field{"ifname", meta(expr.MetaKeyOIFNAME)}, nil
	case c.take("meta", "nfproto"):
		return field{"nf_proto", meta(expr.MetaKeyNFPROTO)}, nil
	case c.take("meta", "l4proto"):
		return field{"inet_proto", meta(expr.MetaKeyL4PROTO)}, nil
	case c.take("ip", "saddr"):
		c.needFamily(unix.NFPROTO_IPV4)
		return field{"ipv4_addr", payload(net, 12, 4)}, nil
	case c.take("ip", "daddr"):
		c.needFamily(unix.NFPROTO_IPV4)
		return field{"ipv4_addr", payload(net, 16, 4)}, nil
	case c.take("ip6", "saddr"):
		c.needFamily(unix.NFPROTO_IPV6)
		return field{"ipv6_addr", payload(net, 8, 16)}, nil
	case c.take("ip6", "daddr"):
		c.needFamily(unix.NFPROTO_IPV6)
		return field{"ipv6_addr", payload(net, 24, 16)}, nil
	case c.take("ether", "saddr"):
		if !c.ether {
			c.ether = true
			c.add(&expr.Meta{Key: expr.MetaKeyIIFTYPE, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint16(unix.ARPHRD_ETHER)})
		}
		return field{"ether_addr", payload(link, 6, 6)}, nil
	case c.take("tcp", "dport"):
		c.needL4(unix.IPPROTO_TCP)
		return field{"inet_service", payload(transport, 2, 2)}, nil
	case c.take("udp", "dport"):
		c.needL4(unix.IPPROTO_UDP)
		return field{"inet_service", payload(transport, 2, 2)}, nil
	}
	return field{}, fmt.Errorf("does not know %q", c.words[0])
}

func (c *compiler) needFamily(family byte) {
	if c.family != family {
		c.family = family
		c.add(&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}})
	}
}

func (c *compiler) needL4(proto byte) {
	if c.l4 != proto {
		c.l4 = proto
		c.add(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}})
	}
}

func (c *compiler) match() error {
	// Fields first: what they need to be checked comes before any register of the match is loaded.
	var fields []field
	for {
		f, err := c.field()
		if err != nil {
			return err
		}
		fields = append(fields, f)
		if !c.take(".") {
			break
		}
	}
	kinds := make([]string, len(fields))
	reg := uint32(unix.NFT_REG32_00)
	for i, f := range fields {
		if len(fields) == 1 {
			reg = unix.NFT_REG_1
		}
		kinds[i] = f.kind
		c.add(f.load(reg))
		reg += (fieldSize(f.kind) + 3) / 4
	}
	kind := strings.Join(kinds, " . ")
	first := uint32(unix.NFT_REG32_00)
	if len(fields) == 1 {
		first = unix.NFT_REG_1
	}
	not := c.take("!=")
	value, err := c.next()
	if err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(value, "@"); ok {
		set, ok := c.sets[name]
		if !ok {
			return fmt.Errorf("no set %q", name)
		}
		if set.Type != kind {
			return fmt.Errorf("set %q holds %s, not %s", name, set.Type, kind)
		}
		c.add(&expr.Lookup{SourceRegister: first, SetName: name, Invert: not})
		return nil
	}
	if len(fields) != 1 {
		return fmt.Errorf("several fields need a set")
	}
	data, mask, err := literal(kind, value)
	if err != nil {
		return err
	}
	if mask != nil {
		c.add(&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(len(mask)), Mask: mask, Xor: make([]byte, len(mask))})
	}
	op := expr.CmpOpEq
	if not {
		op = expr.CmpOpNeq
	}
	if !not && len(data) == 1 {
		switch kind {
		case "nf_proto":
			c.family = data[0]
		case "inet_proto":
			c.l4 = data[0]
		}
	}
	c.add(&expr.Cmp{Op: op, Register: 1, Data: data})
	return nil
}

// literal encodes a single value. A name that ends in * is compared as far as it goes; a prefix comes with the mask that
// the field is to be cut by.
func literal(kind, value string) (data, mask []byte, err error) {
	switch kind {
	case "ifname":
		if prefix, ok := strings.CutSuffix(value, "*"); ok {
			return []byte(prefix), nil, nil
		}
	case "nf_proto":
		switch value {
		case "ipv4":
			return []byte{unix.NFPROTO_IPV4}, nil, nil
		case "ipv6":
			return []byte{unix.NFPROTO_IPV6}, nil, nil
		}
		return nil, nil, fmt.Errorf("unknown family %q", value)
	case "inet_proto":
		protos := map[string]byte{
			"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP, "icmp": unix.IPPROTO_ICMP,
			"ipv6-icmp": unix.IPPROTO_ICMPV6,
		}
		if p, ok := protos[value]; ok {
			return []byte{p}, nil, nil
		}
		return nil, nil, fmt.Errorf("unknown protocol %q", value)
	case "inet_service":
		p, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return nil, nil, fmt.Errorf("bad port %q", value)
		}
		return binary.BigEndian.AppendUint16(nil, uint16(p)), nil, nil
	}
	low, high, err := encodeField(kind, value)
	if err != nil {
		return nil, nil, err
	}
	if string(low) != string(high) {
		mask = make([]byte, len(low))
		for i := range mask {
			mask[i] = ^(low[i] ^ high[i])
		}
	}
	return low, mask, nil
}
