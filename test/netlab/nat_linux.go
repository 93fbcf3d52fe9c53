package netlab

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// NATKind is how a router maps the addresses behind it.
type NATKind uint8

const (
	// EndpointIndependent keeps one outside port for one inside socket, whoever it talks to, and lets in only those that it
	// talked to: most home routers. Hole punching works.
	EndpointIndependent NATKind = iota
	// Symmetric takes a new random outside port for every destination: hole punching does not work.
	Symmetric
)

// String is the name in words.
func (k NATKind) String() string {
	if k == Symmetric {
		return "symmetric"
	}
	return "endpoint-independent"
}

// NAT makes the router translate what leaves by the device out to its address there, IPv4 only, and drop what comes in by
// it unasked, in both families, silently as home routers do.
func (h *Host) NAT(out string, kind NATKind) {
	h.lab.must(h.nat(out, kind), "set up NAT on %s", h.name)
}

func (h *Host) nat(out string, kind NATKind) error {
	return h.changeTable(func(conn *nftables.Conn, f *filter) error {
		src := conn.AddChain(&nftables.Chain{
			Name: "srcnat-" + out, Table: f.table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		conn.AddRule(&nftables.Rule{Table: f.table, Chain: src, Exprs: append(append(device(expr.MetaKeyOIFNAME, out), isIPv4()...),
			&expr.Masq{FullyRandom: kind == Symmetric})})
		// An unasked packet must not even reach the router's own input: a conntrack entry of it would take the port that a
		// punched hole needs.
		for name, hook := range map[string]*nftables.ChainHook{"input-": nftables.ChainHookInput, "forward-": nftables.ChainHookForward} {
			c := conn.AddChain(&nftables.Chain{
				Name: name + out, Table: f.table, Type: nftables.ChainTypeFilter,
				Hooknum: hook, Priority: nftables.ChainPriorityFilter,
			})
			rule := append(device(expr.MetaKeyIIFNAME, out),
				&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, // neighbour discovery is untracked, so neither new nor invalid
				&expr.Bitwise{
					SourceRegister: 1, DestRegister: 1, Len: 4,
					Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW | expr.CtStateBitINVALID), Xor: make([]byte, 4),
				},
				&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
				&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, // what a port forward let in
				&expr.Bitwise{
					SourceRegister: 1, DestRegister: 1, Len: 4,
					Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4),
				},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
				&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
			conn.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: rule})
		}
		return nil
	})
}

// ipsDstNAT is IPS_DST_NAT of conntrack: the connection's destination was rewritten.
const ipsDstNAT = 1 << 5

// PortForward lets what comes in by the device in for the port reach an inside address, as a hand-made rule on a home
// router would. Proto is udp or tcp.
func (h *Host) PortForward(in, proto string, port uint16, to netip.AddrPort) {
	h.lab.must(h.portForward(in, proto, port, to), "forward port %d on %s", port, h.name)
}

func (h *Host) portForward(in, proto string, port uint16, to netip.AddrPort) error {
	if !to.Addr().Is4() {
		return fmt.Errorf("%v is not IPv4", to)
	}
	l4 := map[string]byte{"udp": unix.IPPROTO_UDP, "tcp": unix.IPPROTO_TCP}[proto]
	return h.changeTable(func(conn *nftables.Conn, f *filter) error {
		dst := conn.AddChain(&nftables.Chain{
			Name: "dstnat-" + in, Table: f.table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		rule := append(append(device(expr.MetaKeyIIFNAME, in), isIPv4()...),
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{l4}),
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, equal(binaryutil.BigEndian.PutUint16(port)),
			&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
			&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(to.Port())},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2})
		conn.AddRule(&nftables.Rule{Table: f.table, Chain: dst, Exprs: rule})
		return nil
	})
}

func isIPv4() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal([]byte{unix.NFPROTO_IPV4})}
}
