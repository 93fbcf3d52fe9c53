package netlab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the one nftables table of the lab on a host; the program under test has tables of its own.
const tableName = "netlab"

// Drop says which packets are lost. Empty fields match everything.
//
// On routers and switches the sender learns nothing of it, as with real loss. A packet here is what the kernel hands on: a
// segmentation super-packet is lost as a whole, so switch offloads off (Link.SetSegmentation) where single packets count.
type Drop struct {
	In, Out  string         // device that it came by, or leaves by
	From, To []netip.Prefix // any of these
	Proto    string         // udp, tcp, icmp, icmpv6
	SrcPort  uint16
	Port     uint16  // destination
	Larger   int     // only packets of more bytes than that, IP header included: a path that swallows big packets
	Chance   float64 // between 0 and 1; 0 means always
	Begins   []byte  // what the packet's UDP payload begins with
}

// filter is the lab's nftables table on one host. Each cut has a chain of its own, so healing is deleting the chain.
type filter struct {
	family nftables.TableFamily
	table  *nftables.Table
	n      int
}

// Cut is a disturbance that can be ended.
type Cut struct {
	once  sync.Once
	parts []cutPart
}

type cutPart struct {
	host   *Host
	chains []*nftables.Chain
}

// Drop starts losing the packets that any of the rules matches, at the place where h receives or forwards them.
func (h *Host) Drop(rules ...Drop) *Cut {
	part, err := h.addDrops(rules)
	h.lab.must(err, "drop packets on %s", h.name)
	return &Cut{parts: []cutPart{part}}
}

// BlockUDP drops UDP to the given ports that passes h.
func (h *Host) BlockUDP(ports ...uint16) *Cut { return h.blockPorts("udp", ports) }

// BlockTCP drops TCP to the given ports that passes h.
func (h *Host) BlockTCP(ports ...uint16) *Cut { return h.blockPorts("tcp", ports) }

func (h *Host) blockPorts(proto string, ports []uint16) *Cut {
	var rules []Drop
	for _, p := range ports {
		rules = append(rules, Drop{Proto: proto, Port: p})
	}
	if len(ports) == 0 {
		rules = []Drop{{Proto: proto}}
	}
	return h.Drop(rules...)
}

// Partition cuts the sets from each other in both directions, for all addresses that Link gave them.
func (l *Lab) Partition(a, b []*Host) *Cut {
	cut := l.PartitionOneWay(a, b)
	cut.parts = append(cut.parts, l.PartitionOneWay(b, a).parts...)
	return cut
}

// PartitionOneWay loses what any of from sends to any of to, and nothing else. Routers and switches lose it; where a cable
// joins two of the hosts directly, the receiver does.
func (l *Lab) PartitionOneWay(from, to []*Host) *Cut {
	rule := Drop{From: prefixesOf(from), To: prefixesOf(to)}
	cut := &Cut{}
	if len(rule.From) == 0 || len(rule.To) == 0 {
		l.must(fmt.Errorf("%v and %v have no addresses", from, to), "partition")
	}
	for _, h := range l.Hosts() {
		if h.kind == router || h.kind == bridge || h.kind == plain && slices.Contains(to, h) && l.cabled(from, h) {
			part, err := h.addDrops([]Drop{rule})
			l.must(err, "partition at %s", h.name)
			cut.parts = append(cut.parts, part)
		}
	}
	return cut
}

func (l *Lab) cabled(from []*Host, to *Host) bool {
	return slices.ContainsFunc(l.Links(), func(k *Link) bool {
		return k.A.Host == to && slices.Contains(from, k.B.Host) || k.B.Host == to && slices.Contains(from, k.A.Host)
	})
}

func prefixesOf(hosts []*Host) []netip.Prefix {
	var out []netip.Prefix
	for _, h := range hosts {
		for _, a := range h.Addrs() {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	return out
}

// Loss loses a share of the link's packets at random, 0.05 being 5 %, in both directions.
func (k *Link) Loss(chance float64) *Cut {
	return k.Drop(Drop{Chance: chance})
}

// Drop loses what the rule matches on this link, in both directions; In and Out are set by it.
func (k *Link) Drop(rule Drop) *Cut {
	cut := &Cut{}
	add := func(h *Host, rules ...Drop) {
		part, err := h.addDrops(rules)
		k.lab.must(err, "drop packets on %v", k)
		cut.parts = append(cut.parts, part)
	}
	in, out := rule, rule
	for _, p := range k.ports() {
		if p.Host.kind == router || p.Host.kind == bridge {
			in.In, out.Out = p.Name, p.Name
			add(p.Host, in, out)
			return cut
		}
	}
	for _, p := range k.ports() {
		in.In = p.Name
		add(p.Host, in)
	}
	return cut
}

// Heal ends the cut; doing it again does nothing.
func (c *Cut) Heal() {
	c.once.Do(func() {
		for _, p := range c.parts {
			conn, err := p.host.nft()
			if err == nil {
				for _, ch := range p.chains {
					conn.DelChain(ch)
				}
				err = conn.Flush()
			}
			p.host.lab.must(err, "heal cut on %s", p.host.name)
		}
	})
}

// Dropped counts the packets that were lost so far.
func (c *Cut) Dropped() uint64 {
	var n uint64
	for _, p := range c.parts {
		conn, err := p.host.nft()
		p.host.lab.must(err, "count drops on %s", p.host.name)
		for _, ch := range p.chains {
			rules, err := conn.GetRules(ch.Table, ch)
			p.host.lab.must(err, "count drops on %s", p.host.name)
			for _, r := range rules {
				for _, e := range r.Exprs {
					if c, ok := e.(*expr.Counter); ok {
						n += c.Packets
					}
				}
			}
		}
	}
	return n
}

// nft opens a connection to the host's nftables; it keeps no socket.
func (h *Host) nft() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(int(h.ns.Fd())))
}

// changeTable makes one transaction of what change adds to the lab's table on the host, which is there by then.
func (h *Host) changeTable(change func(conn *nftables.Conn, f *filter) error) error {
	conn, err := h.nft()
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock() // not before the table is made
	if err := change(conn, h.ensureTable(conn)); err != nil {
		return err
	}
	return conn.Flush()
}

// ensureTable makes the lab's table on the host; h.mu is held.
func (h *Host) ensureTable(conn *nftables.Conn) *filter {
	if h.filter == nil {
		family := nftables.TableFamilyINet
		if h.kind == bridge {
			family = nftables.TableFamilyBridge
		}
		h.filter = &filter{family: family, table: conn.AddTable(&nftables.Table{Name: tableName, Family: family})}
	}
	return h.filter
}

func (h *Host) addDrops(rules []Drop) (cutPart, error) {
	part := cutPart{host: h}
	err := h.changeTable(func(conn *nftables.Conn, f *filter) error {
		f.n++
		chain := func(name string, hook *nftables.ChainHook) *nftables.Chain {
			c := conn.AddChain(&nftables.Chain{
				Name: name + strconv.Itoa(f.n), Table: f.table, Type: nftables.ChainTypeFilter,
				Hooknum: hook, Priority: nftables.ChainPriorityRaw,
			})
			part.chains = append(part.chains, c)
			return c
		}
		var in, out *nftables.Chain
		for _, r := range rules {
			var c *nftables.Chain
			if r.Out == "" {
				if in == nil {
					in = chain("in", nftables.ChainHookPrerouting)
				}
				c = in
			} else {
				if out == nil {
					out = chain("out", nftables.ChainHookPostrouting)
				}
				c = out
			}
			all, err := r.expressions()
			if err != nil {
				return err
			}
			for _, e := range all {
				conn.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: e})
			}
		}
		return nil
	})
	return part, err
}

// expressions are the nftables rules of one Drop: one for each pair of source and destination.
func (r Drop) expressions() ([][]expr.Any, error) {
	protos := map[string]byte{"udp": unix.IPPROTO_UDP, "tcp": unix.IPPROTO_TCP, "icmp": unix.IPPROTO_ICMP, "icmpv6": unix.IPPROTO_ICMPV6}
	var head []expr.Any
	if r.In != "" {
		head = append(head, device(expr.MetaKeyIIFNAME, r.In)...)
	}
	if r.Out != "" {
		head = append(head, device(expr.MetaKeyOIFNAME, r.Out)...)
	}
	var tail []expr.Any
	if r.Proto != "" {
		p, ok := protos[r.Proto]
		if !ok {
			return nil, fmt.Errorf("unknown protocol %q", r.Proto)
		}
		tail = append(tail, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{p}))
	}
	for _, p := range []struct {
		port   uint16
		offset uint32
	}{{r.SrcPort, 0}, {r.Port, 2}} {
		if p.port != 0 {
			tail = append(tail, &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: p.offset, Len: 2},
				equal(binaryutil.BigEndian.PutUint16(p.port)))
		}
	}
	if len(r.Begins) > 0 {
		const udpHeader = 8
		tail = append(tail, &expr.Payload{
			DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: udpHeader, Len: uint32(len(r.Begins)),
		}, equal(r.Begins))
	}
	if r.Larger > 0 {
		tail = append(tail, &expr.Meta{Key: expr.MetaKeyLEN, Register: 1},
			// lengths are kept in host order but compared as bytes
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(r.Larger))})
	}
	if r.Chance > 0 {
		const modulus = 1_000_000
		tail = append(tail, &expr.Numgen{Register: 1, Modulus: modulus, Type: unix.NFT_NG_RANDOM},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(r.Chance * modulus))})
	}
	tail = append(tail, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})

	everything := []netip.Prefix{{}}
	from, to := r.From, r.To
	if len(from) == 0 {
		from = everything
	}
	if len(to) == 0 {
		to = everything
	}
	var rules [][]expr.Any
	for _, a := range from {
		for _, b := range to {
			if a.IsValid() && b.IsValid() && a.Addr().Is4() != b.Addr().Is4() {
				continue
			}
			rule := slices.Clone(head)
			rule = append(rule, address(a, true)...)
			rule = append(rule, address(b, false)...)
			rules = append(rules, append(rule, tail...))
		}
	}
	return rules, nil
}

// device matches a device name.
func device(key expr.MetaKey, name string) []expr.Any {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, equal(b)}
}

// address matches a source or destination prefix; the zero prefix matches all.
func address(p netip.Prefix, source bool) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	size, offset, ethertype := uint32(4), uint32(16), uint16(unix.ETH_P_IP)
	if p.Addr().Is6() {
		size, offset, ethertype = 16, 24, unix.ETH_P_IPV6
	}
	if source {
		offset -= size
	}
	mask := make([]byte, size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1}, equal(binary.BigEndian.AppendUint16(nil, ethertype)),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		equal(p.Masked().Addr().AsSlice()),
	}
}

func equal(b []byte) *expr.Cmp { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: b} }
