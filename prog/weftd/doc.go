// Package weftd is the daemon as a library: it joins the parts of weft on one machine, serves the control socket, and
// keeps the state directory. What the parts do is theirs: mesh knows who is there, ipam who owns which addresses, router
// how packets get to them, the wire carries them. None of the four knows of another.
//
//	weft, weft-cni ──unix socket── daemon ── state directory
//	                                 │
//	                                node ────────────────────────────────┐
//	        ┌───────────┬────────────┼──────────────┬──────────┐         │
//	       mesh        ring        router        circuits    pairs    wirelink ──wire.sock── weft wire
//	        │           │            │              │          │         │
//	        └───────────┴── glue ────┴──────────────┴──────────┴─────────┘
//
// A daemon lives as long as its process and has a node as soon as there is a membership. The node's parts run side by side
// as tasks; one that fails ends the daemon, which whoever started it starts again, while the wire and the kernel carry on.
// Nothing is pushed between parts by events: on any change the glue computes all that follows from the present state,
// and hands on what differs.
//
//	doing                                        goroutine (task)      file
//	the life of the daemon                       Run                   daemon, task, notify
//	answering the command line                   control               serve, pods, token, status, doctor, ping, sentence
//	making, joining and leaving a cluster        enter, control        founding, joining, leaving, membership
//	keeping mesh, ring, router and wire in step  glue                  node, glue, claimants, underlay
//	the wire's life, and what it must know       wire                  wirelink, equip, port
//	secrets between members                      pairs                 pairs
//	streams from members and joiners             circuits              node
//	Docker's containers                          docker                docker, dockerforward
//	Docker's networks, kept apart                segments              segments, segmentreport, segmentfilter
//	metrics and health                           metrics               metrics
//	what is on disk                              whoever writes        state
//	what an operator may set                     none                  config, setting, configfile
//
// Settings, metrics and the wire formats are part of the documentation, in site/.
package weftd
