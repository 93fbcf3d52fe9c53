// Package sleeve carries inner packets, and the small datagrams of the daemons, between nodes in encrypted UDP, from a
// TUN device and without help of the kernel. The Engine does handshakes, rekeys, probes and forwarding by itself for as
// long as it is left alone; who the peers are, which secrets they share and what they own is told by setters. Making
// the TUN device and routes (router/host), finding endpoints and relays, and choosing among transports are left to others;
// choosing among the ways to a peer is mesh/path's.
//
// Two kinds of datagrams share the port. Handshakes are those of crypto/noise (first byte 0x10 to 0x12; 1 to 4 stay
// WireGuard's). Everything else is sealed:
//
//	 0      1       4                12     13      14     16                     n        n+16
//	+------+-------+----------------+------+-------+------+-------- ... ---------+----------+
//	| lane | index | counter        | kind | place | id   | inner packet or body | tag      |
//	+------+-------+----------------+------+-------+------+-------- ... ---------+----------+
//	 1      3       8                1      1       2                              16
//	|<------- header, clear ------->|<----------------- sealed ----------------->|
//
// All numbers are big endian. lane is 0x20 plus the lane's number, 0 to 15. index is what the receiver chose in the
// handshake. counter is the nonce and never repeats within a lane; each lane has a key of its own for each direction, so
// lanes need no lock between them and a flow that stays on its lane keeps its order. The header is authenticated with
// the rest. Lane 0 carries control, the others inner packets. Together with UDP and IP this adds 60 bytes to a packet on
// IPv4 and 80 on IPv6: as much as WireGuard.
//
// The low four bits of kind say what the body is: 0 an inner IP packet, 1 a datagram between the daemons, 2 a probe,
// 3 the answer to one, 4 a datagram that is relayed, 5 and 6 the first and the second half of a packet. For a packet, 0x10
// says that its transport checksum was left for the receiver to finish, 0x20 that it is part of a TCP super-packet, 0x40 of
// a UDP one; id then names the super-packet and place counts its segments. Each segment is a whole packet with headers of
// its own: losing one loses nothing else. The receiver joins segments that arrive side by side, and hands them to its
// kernel in one write; id and place spare it the flow table, the comparison of headers and the sorting. All that the kernel
// is told about a packet comes from the receiver's own reading of it, never from the sender: a peer can at most spoil the
// checksum of its own packets.
//
// Where the smallest packet that IPv6 allows does not fit with its overhead, packets of more than 640 bytes are cut in two:
// kind 5 and the next counter of the lane with kind 6, and else the same kind, place and id as the whole would have. With 0x80
// in kind it was not a packet that was cut, but what place says: a control datagram or a probe. The receiver takes either
// half first; of halves that wait for the other one it keeps four for each lane.
//
// A probe is a number (4 bytes), a size (2) and padding; its answer repeats number and size, and adds where the probe
// came from (16 bytes of address, 2 of port; zero when it was relayed) and how many datagrams with packets had been opened
// with its keys by then (4): a way that answers probes and loses packets is found by that. Bit 30 of the number says that the sender only
// tries the way: whoever hears such a probe answers where it came from, and does not send its packets there. A build that
// does not know of ways answers with six bytes, and is probed along one way only.
//
// # Relays
//
// A relayed datagram is a whole datagram, sealed or of a handshake, as the body of one that is sealed for the relay. The
// relay opens its own seal and no other; place is the leg, and the ids before the datagram say who is meant:
//
//	leg          from, to           ids before the datagram    adds to a packet
//	1 up         sender, relay      to whom                    48 bytes
//	2 up, far    sender, relay 1    to whom, relay 2           64
//	3 across     relay 1, relay 2   to whom, from whom         64
//	4 down       relay, receiver    from whom                  48
//	5 down, far  relay 2, receiver  from whom, relay 1         64
//	6 refused    relay, sender      to whom, why (1 byte; no datagram)
//
// A leg is followed only by one further down this list, a relay sends on only to peers that it reaches without another
// relay, and what came by a relay is never relayed again: so nothing runs in a circle, and two relays are the most there
// can be. One datagram in is one of the same size out. Sender and receiver must both be peers of the relay; it counts
// bytes by sender and drops what is beyond 32 MiB a second. Who a datagram is from is known by its own seal, not by the
// id, which only says where an answer would go.
//
// # Streams
//
// Where no datagram passes, they travel in a TCP connection (TLS with ALPN weft-data/1, which prog/wire wraps and unwraps):
// each behind its length, two bytes. All that is said of datagrams holds for those in a stream. A connection that brings
// nothing from a peer within 10 seconds is closed, and of 64 such the oldest makes room; of more than eight of one peer the
// one goes that has been idle for longest.
//
// Unknown kinds are dropped and counted, so new ones may be added; the layout itself is fixed by the version in the
// handshake.
package sleeve
