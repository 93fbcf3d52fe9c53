// Package router makes the kernel carry packets to peers: it decides, for each peer, which transport does, and keeps
// routes, addresses, gates before devices, sysctls and the guard in nftables equal to what follows from that. Deciding is apart
// from doing: choose and plan are pure functions of the newest Input and of what transports report, apply compares the
// plan with a snapshot of the machine and changes the difference, and may be repeated at any time.
//
//	Input ─┐
//	links ─┼─> choose ──> plan ──> protect: refusing routes, gates, guard, own addresses, sysctls
//	probes ┘  a transport   │          │ only then
//	          per peer      └──────────┴─> transports' tunnels, then routes to peers and pods
//
// A packet of a pod goes: veth, route to the block of the peer that owns its destination, device of the transport that
// was chosen for that peer. Where no route is found, the refusing route of the pool ends it; what leaves by another
// device with an address of a pool, whatever the reason, ends in the guard. Both stand before the first pod and stay
// when the router ends. Pods' way to the world is masqueraded; what comes in is checked for its source and destination.
//
// System calls are made by package host, packets are carried by the transports (packages sleeve and vxlan). Who the peers
// are and who owns which block is told by others.
package router
