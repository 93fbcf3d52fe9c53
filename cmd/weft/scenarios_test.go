package main

import (
	"net/netip"

	"weft/prog/control"
	"weft/prog/control/controltest"
)

// scenarios are the daemons that scripts and golden tests meet.
func scenarios() map[string]*controltest.Backend {
	return map[string]*controltest.Backend{
		"waiting":     controltest.New(waiting()),
		"alone":       controltest.New(alone()),
		"three":       three(),
		"unconfirmed": controltest.New(unconfirmed()),
	}
}

func addrs(all ...string) (out []netip.Addr) {
	for _, s := range all {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(all ...string) (out []netip.Prefix) {
	for _, s := range all {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func transports() []control.Transport {
	return []control.Transport{
		{Name: "vxlan", Reason: "no subnet is trusted; see --trusted-subnets"},
		{Name: "sleeve", Available: true},
	}
}

func waiting() control.Status {
	return control.Status{
		Version: control.Version,
		Node: control.Node{
			ID: "mzxw6ytbaaaabbbbccccddddee", Name: "alpha", State: control.NodeWaiting,
			Reason: "no cluster yet: weft init makes one, weft join TOKEN enters one", NAT: "unknown", UptimeS: 7, Build: "v0.1.0",
		},
		Transports: transports(),
		IPAM:       control.IPAM{State: control.IPAMWaiting},
	}
}

func alone() control.Status {
	st := waiting()
	st.Node.State, st.Node.Reason, st.Node.UptimeS = control.NodeReady, "", 3725
	st.Node.Voter, st.Node.Issuer, st.Node.Relay = true, true, true
	st.Node.Underlay, st.Node.Overlay = addrs("192.0.2.7"), addrs("10.32.0.1", "fd01::a20:1")
	st.Cluster = control.Cluster{
		ID: "c7q2k3mvaaaabbbbccccddddee", Pools: prefixes("10.32.0.0/12", "fd01::/96"),
		Encryption: control.EncryptionRequired, Members: 1, Alive: 1,
	}
	st.IPAM = control.IPAM{State: control.IPAMReady, Blocks: prefixes("10.32.0.0/12"), Used: 1, Free: 1048573}
	st.Warnings = []string{"only one live member may admit others; when it is lost nobody can join any more"}
	return st
}

func threeStatus() control.Status {
	st := alone()
	st.Warnings = nil
	st.Cluster.Members, st.Cluster.Alive = 4, 3
	st.Cluster.Encryption = control.EncryptionTrustedSubnets
	st.Transports[0] = control.Transport{Name: "vxlan", Available: true}
	st.IPAM = control.IPAM{State: control.IPAMReady, Blocks: prefixes("10.32.0.0/14"), Used: 3, Free: 262139, Unreachable: 131072}
	st.Peers = []control.Peer{
		{
			ID: "onswg4tfaaaabbbbccccddddee", Name: "beta", State: control.PeerAlive, Blocks: prefixes("10.36.0.0/14"),
			Transport: "sleeve", Encrypted: true, Path: control.PathDirect, Endpoint: netip.MustParseAddrPort("192.0.2.8:6783"),
			Reason: "vxlan: its address is in no subnet that both trust", MTU: 1420, RTTms: 0.42, LastSeenS: 0.2,
			KeyAgeS: 35, RxBytes: 1258291, TxBytes: 921600,
		},
		{
			ID: "pf2gkylsaaaabbbbccccddddee", Name: "gamma-in-the-other-room", State: control.PeerAlive,
			Blocks: prefixes("10.40.0.0/14"), Transport: "vxlan", Path: control.PathDirect,
			Endpoint: netip.MustParseAddrPort("198.51.100.9:6783"), Reason: "both trust 198.51.100.0/24", MTU: 1420,
			RTTms: 12.5, Loss: 0.031, LastSeenS: 0.1, KeyAgeS: -1, RxBytes: 5 << 40, TxBytes: 12,
		},
		{
			ID: "ovxgwzlyaaaabbbbccccddddee", Name: "delta", State: control.PeerDead, Blocks: prefixes("10.44.0.0/15"),
			Path: control.PathNone, Reason: "it has not answered on any of its 2 addresses", LastSeenS: 187, KeyAgeS: -1,
		},
	}
	return st
}

func three() *controltest.Backend {
	st := threeStatus()
	b := controltest.New(st)
	b.Details = map[string]control.PeerDetail{"beta": {
		Version: control.Version, Peer: st.Peers[0], Build: "v0.1.0",
		Voter: true, JoinSeq: 1, Transports: []string{"vxlan", "sleeve"}, Trusted: prefixes("198.51.100.0/24"),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.8:6783"), netip.MustParseAddrPort("[2001:db8::8]:6783")},
		Links: []control.Link{
			{Transport: "vxlan", Reason: "not trusted"},
			{Transport: "sleeve", Up: true, InUse: true, Endpoint: netip.MustParseAddrPort("192.0.2.8:6783"), MTU: 1420, RTTms: 0.42},
		},
	}}
	b.Blocks = []control.Block{
		{Prefix: netip.MustParsePrefix("10.32.0.0/14"), Owner: st.Node.ID, OwnerName: "alpha", View: 1, Seq: 4},
		{Prefix: netip.MustParsePrefix("10.36.0.0/14"), Owner: st.Peers[0].ID, OwnerName: "beta", View: 1, Seq: 2},
		{Prefix: netip.MustParsePrefix("10.40.0.0/14"), Owner: st.Peers[1].ID, OwnerName: st.Peers[1].Name, View: 1, Seq: 3},
		{Prefix: netip.MustParsePrefix("10.44.0.0/15"), Owner: st.Peers[2].ID, View: 1, Seq: 3},
	}
	reply := control.PingReply{
		Address: netip.MustParseAddr("10.36.0.1"), Transport: "sleeve", Path: control.PathDirect,
		Endpoint: netip.MustParseAddrPort("192.0.2.8:6783"), RTTms: 0.5,
	}
	b.Replies = []control.PingReply{reply, reply, {Lost: "no answer within 2s"}}
	b.Replies[1].RTTms, b.Replies[1].Path, b.Replies[1].Via = 1.5, control.PathRelay, []string{"delta"}
	b.Checks = []control.Check{
		{Name: "root", State: control.CheckOK, Reason: "CAP_NET_ADMIN is there"},
		{Name: "tun", State: control.CheckOK, Reason: "/dev/net/tun opens"},
		{Name: "ipv6", State: control.CheckWarn, Reason: "the kernel has no IPv6", Hint: "Pods get IPv4 only; boot without ipv6.disable=1"},
	}
	b.Tried = []control.TriedPath{
		{By: "alpha", Via: []string{"delta"}, Active: true, State: "works", RTTms: 12.5, Loss: 0.01, MTU: 1420},
		{By: "alpha", Endpoint: netip.MustParseAddrPort("203.0.113.8:20001"), State: "dead", Reason: "no answer for 5 s"},
		{By: "alpha", Endpoint: netip.MustParseAddrPort("203.0.113.8:443"), TCP: true, State: "untried"},
		{By: "beta", Via: []string{"delta"}, Active: true, State: "works", RTTms: 12.7, MTU: 1420},
	}
	b.Advice = "beta is behind a hard NAT, which gives each destination another port: forward UDP 6783 to beta on its router and start it with --advertise ADDRESS"
	b.Picture = control.Graph{
		Version: control.Version, Cluster: st.Cluster.ID, Created: controltest.Created,
		Nodes: []control.GraphNode{
			{ID: st.Node.ID, Name: "alpha", State: control.PeerAlive, Self: true, NAT: "none", Relay: true, Underlay: st.Node.Underlay[0]},
			{ID: st.Peers[0].ID, Name: "beta", State: control.PeerAlive, NAT: "easy"},
			{ID: st.Peers[2].ID, Name: "delta", State: control.PeerDead, NAT: "unknown", Silent: "it is dead"},
		},
		Edges: []control.GraphEdge{
			{A: st.Node.ID, B: st.Peers[0].ID, State: control.EdgeDirect, Transport: "sleeve", RTTms: 0.42, MTU: 1420, Told: []string{st.Node.ID, st.Peers[0].ID}},
			{A: st.Node.ID, B: st.Peers[2].ID, State: control.EdgeDown, Reason: "it has not answered", Told: []string{st.Node.ID}},
			{A: st.Peers[0].ID, B: st.Peers[2].ID, State: control.EdgeUnknown},
		},
		Notes: []string{"1 of 3 members did not tell of their ways: what is drawn at them is the others' word"},
	}
	return b
}

func unconfirmed() control.Status {
	st := threeStatus()
	st.Cluster.Alive = 1
	st.Cluster.Encryption = control.EncryptionRequired
	st.Node.State = control.NodeReady
	st.IPAM.State = control.IPAMUnconfirmed
	st.IPAM.Reason = "no quorum has answered since the start: waits for beta, gamma-in-the-other-room or delta; serves from its own blocks and lends nothing"
	for i := range st.Peers {
		st.Peers[i].State, st.Peers[i].Transport, st.Peers[i].Path = control.PeerDead, "", control.PathNone
		st.Peers[i].RTTms, st.Peers[i].Loss, st.Peers[i].LastSeenS = 0, 0, -1
		st.Peers[i].Reason = "not heard since the start"
	}
	return st
}
