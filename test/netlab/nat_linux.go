package netlab

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NATKind is how a router maps the addresses behind it, and whom it lets back in (RFC 4787 has the long names).
type NATKind uint8

const (
	// EndpointIndependent keeps one outside port for one inside socket, whoever it talks to, and lets in only those addresses
	// and ports that it talked to: most home routers. Hole punching works where both sides send.
	EndpointIndependent NATKind = iota
	// Symmetric takes a new random outside port for every destination: hole punching does not work.
	Symmetric
	// FullCone keeps one outside port and lets in everybody who sends there.
	FullCone
	// AddressRestricted keeps one outside port and lets in every port of the addresses that it was used to talk to.
	AddressRestricted
)

// String is the name in words.
func (k NATKind) String() string {
	return [...]string{"endpoint-independent", "symmetric", "full cone", "address-restricted"}[k]
}

// The outside ports that a NAT with one mapping for a socket gives out, in turn: none is the inside port, so that nothing
// works because they happen to be the same.
const (
	firstMapped = 20000
	mappedPorts = 20000
)

// NAT makes the router translate what leaves by the device out to its address there, IPv4 only, and drop what comes in by
// it unasked, in both families, silently as home routers do. UDP is mapped by the kind, all else like a masquerade.
func (h *Host) NAT(out string, kind NATKind) {
	h.lab.must(h.nat(out, kind), "set up NAT on %s", h.name)
}

func (h *Host) nat(out string, kind NATKind) error {
	outside, err := h.firstIPv4(out)
	if err != nil {
		return err
	}
	return h.changeTable(func(conn *nftables.Conn, f *filter) error {
		src := conn.AddChain(&nftables.Chain{
			Name: "srcnat-" + out, Table: f.table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		if kind != Symmetric {
			if err := mapUDP(conn, f, src, out, outside, kind); err != nil {
				return err
			}
		}
		conn.AddRule(&nftables.Rule{Table: f.table, Chain: src, Exprs: append(append(device(expr.MetaKeyOIFNAME, out), isIPv4()...),
			&expr.Masq{FullyRandom: kind == Symmetric})})
		dropUnasked(conn, f, out)
		return nil
	})
}

// dropUnasked drops what comes in by a device and belongs to nothing that went out. It must not even reach the router's own
// input: a conntrack entry of it would take the port that a punched hole needs.
func dropUnasked(conn *nftables.Conn, f *filter, out string) {
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
			&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, // what a port forward or an open mapping let in
			&expr.Bitwise{
				SourceRegister: 1, DestRegister: 1, Len: 4,
				Mask: binaryutil.NativeEndian.PutUint32(ipsDstNAT), Xor: make([]byte, 4),
			},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
		conn.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: rule})
	}
}

// Names of the sets that hold the mappings; that of the device follows.
const (
	mapOut   = "mapped-"   // inside address . port: outside port
	mapIn    = "mapping-"  // outside port: inside address . port
	mapPeers = "talkedto-" // outside port . address that was talked to
)

// mapUDP gives each inside UDP socket one outside port for good. A masquerade is not enough: it keeps the inside port only
// until two machines have the same one, and then maps by destination.
func mapUDP(conn *nftables.Conn, f *filter, src *nftables.Chain, out string, outside netip.Addr, kind NATKind) error {
	socket, err := nftables.ConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
	if err != nil {
		return err
	}
	remote, err := nftables.ConcatSetType(nftables.TypeInetService, nftables.TypeIPAddr)
	if err != nil {
		return err
	}
	const room = 1 << 16
	forth := &nftables.Set{
		Table: f.table, Name: mapOut + out, IsMap: true, Dynamic: true, Concatenation: true, Size: room,
		KeyType: socket, DataType: nftables.TypeInetService,
	}
	back := &nftables.Set{
		Table: f.table, Name: mapIn + out, IsMap: true, Dynamic: true, Size: room, KeyType: nftables.TypeInetService, DataType: socket,
	}
	peers := &nftables.Set{
		Table: f.table, Name: mapPeers + out, Dynamic: true, Concatenation: true, Size: room, KeyType: remote,
	}
	for _, s := range []*nftables.Set{forth, back, peers} {
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.Name, err)
		}
	}
	// Registers of four bytes each; what stands together in a key stands together here.
	const (
		insideAddr = iota + unix.NFT_REG32_00
		insidePort
		mapped
		remoteAddr
		outsideAddr
	)
	udp := append(isIPv4(), &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_UDP}))
	leaves := append(device(expr.MetaKeyOIFNAME, out), udp...)
	inside := []expr.Any{
		&expr.Payload{DestRegister: insideAddr, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Payload{DestRegister: insidePort, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2},
	}
	// Adding what is there already changes nothing.
	conn.AddRule(&nftables.Rule{Table: f.table, Chain: src, Exprs: slices.Concat(leaves, inside, []expr.Any{
		&expr.Numgen{Register: mapped, Modulus: mappedPorts, Offset: firstMapped, Type: unix.NFT_NG_INCREMENTAL},
		&expr.Byteorder{SourceRegister: mapped, DestRegister: mapped, Op: expr.ByteorderHton, Len: 4, Size: 2},
		&expr.Dynset{SrcRegKey: insideAddr, SrcRegData: mapped, SetName: forth.Name, SetID: forth.ID, Operation: unix.NFT_DYNSET_OP_ADD},
	})})
	conn.AddRule(&nftables.Rule{Table: f.table, Chain: src, Exprs: slices.Concat(leaves, inside, []expr.Any{
		&expr.Lookup{SourceRegister: insideAddr, DestRegister: mapped, IsDestRegSet: true, SetName: forth.Name, SetID: forth.ID},
		&expr.Dynset{SrcRegKey: mapped, SrcRegData: insideAddr, SetName: back.Name, SetID: back.ID, Operation: unix.NFT_DYNSET_OP_ADD},
		&expr.Payload{DestRegister: remoteAddr, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Dynset{SrcRegKey: mapped, SetName: peers.Name, SetID: peers.ID, Operation: unix.NFT_DYNSET_OP_ADD},
		&expr.Immediate{Register: outsideAddr, Data: outside.AsSlice()},
		&expr.NAT{Type: expr.NATTypeSourceNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: outsideAddr, RegProtoMin: mapped},
	})})
	if kind == EndpointIndependent {
		return nil
	}
	dst := conn.AddChain(&nftables.Chain{
		Name: "mapped-" + out, Table: f.table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	comes := slices.Concat(device(expr.MetaKeyIIFNAME, out), udp, address(netip.PrefixFrom(outside, 32), false), []expr.Any{
		&expr.Payload{DestRegister: mapped, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
	})
	if kind == AddressRestricted {
		comes = append(comes,
			&expr.Payload{DestRegister: remoteAddr, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
			&expr.Lookup{SourceRegister: mapped, SetName: peers.Name, SetID: peers.ID})
	}
	conn.AddRule(&nftables.Rule{Table: f.table, Chain: dst, Exprs: append(comes,
		&expr.Lookup{SourceRegister: mapped, DestRegister: insideAddr, IsDestRegSet: true, SetName: back.Name, SetID: back.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: insideAddr, RegProtoMin: insidePort})})
	return nil
}

// Rebind makes the router forget every mapping, as one that was switched off and on again: what is sent next gets a new
// outside port, and nothing is let in until then.
func (h *Host) Rebind(out string) { h.lab.must(h.rebind(out), "rebind NAT on %s", h.name) }

func (h *Host) rebind(out string) error {
	conn, err := h.nft()
	if err != nil {
		return err
	}
	h.mu.Lock()
	f := h.filter
	h.mu.Unlock()
	if f == nil {
		return fmt.Errorf("%s has no NAT", h.name)
	}
	sets, err := conn.GetSets(f.table)
	if err != nil {
		return fmt.Errorf("list sets: %w", err)
	}
	for _, s := range sets {
		if slices.Contains([]string{mapOut + out, mapIn + out, mapPeers + out}, s.Name) {
			conn.FlushSet(s)
		}
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("forget mappings: %w", err)
	}
	return h.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// AllowOut lets the machines behind the router send only TCP, to these ports, by the device out; all else is lost without a
// word. Heal ends it.
func (h *Host) AllowOut(out string, ports ...uint16) *Cut {
	part := cutPart{host: h}
	err := h.changeTable(func(conn *nftables.Conn, f *filter) error {
		f.n++
		c := conn.AddChain(&nftables.Chain{
			Name: fmt.Sprintf("allow%d", f.n), Table: f.table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRaw,
		})
		part.chains = append(part.chains, c)
		leaves := device(expr.MetaKeyOIFNAME, out)
		for _, p := range ports {
			conn.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: slices.Concat(leaves, []expr.Any{
				&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal([]byte{unix.IPPROTO_TCP}),
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, equal(binaryutil.BigEndian.PutUint16(p)),
				&expr.Verdict{Kind: expr.VerdictAccept},
			})})
		}
		conn.AddRule(&nftables.Rule{Table: f.table, Chain: c, Exprs: slices.Concat(leaves, []expr.Any{
			&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop},
		})})
		return nil
	})
	h.lab.must(err, "allow TCP %v out of %s", ports, h.name)
	return &Cut{parts: []cutPart{part}}
}

// firstIPv4 is the address that a device was given first.
func (h *Host) firstIPv4(name string) (netip.Addr, error) {
	dev, err := h.nl.LinkByName(name)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find %s: %w", name, err)
	}
	addrs, err := h.nl.AddrList(dev, netlink.FAMILY_V4)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of %s: %w", name, err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			return ip, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no IPv4 address", name)
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
