// Package netlab makes machines out of network namespaces, so that tests and the demo can run the real program on real
// packets: hosts, pods, routers and switches, joined by veth links, with NAT, cuts, loss, port blocks, MTU and packet
// capture. It shares nothing with the machine it runs on but the kernel: every device is born inside a namespace of the
// lab, and the machine's own interfaces, routes, nftables and sysctls are never touched.
//
//	lab := netlab.New(t)
//	s := netlab.ThreeSites(lab)
//	s.A.Exec("weft", "version")
//	cut := lab.Partition([]*netlab.Host{s.A}, []*netlab.Host{s.B, s.C})
//	defer cut.Heal()
//
// Building a topology cannot go wrong in ways that a test would handle, so what builds (Host, Link, NAT, Partition …)
// ends the test by itself; what the story is about (Exec, Do, Ping, Command) returns errors.
//
// # Lifetime
//
// A lab ends with its test, on panic and on SIGINT or SIGTERM: its processes are killed, also those that made a session
// of their own, then its namespaces go and every link with them. What a SIGKILL leaves behind is removed by the next lab
// that opens on the machine. A lab is known to be alive by a lock on its directory below /run/netlab, which the kernel
// drops with the process, so process numbers that come round again do no harm.
//
// # Threads
//
// A namespace belongs to a thread. Do runs its function on a locked thread; a goroutine started in there runs outside.
// Sockets and files stay where they were opened, so open inside, use anywhere.
//
// It knows nothing of weft: how to start daemons and what they should say is left to its callers.
package netlab
