// Package wire is the data-plane process, "weft wire", and weftd's end of the socket that steers it.
//
// The process owns the sockets of the weft port and the queues of the sleeve's TUN device, and runs the sleeve engine on
// them: sessions, rekeys, probes and roaming go on for as long as it is left alone. It decides nothing. Who the peers
// are, which secrets they share with us and which blocks they own is told by weftd as desired state, and told again in
// full by every new weftd; only differences act. It starts as root at most for a moment: descriptors come from weftd,
// then the uid, all capabilities and the right to regain them are gone. It never holds the node's identity key, and it
// writes nothing to disk but its bounded log.
//
// What a TCP connection to the weft port is for is seen in its first message, which is looked at and left where it is. One
// that asks for weft-data/1 carries datagrams of the sleeve, for peers that no datagram gets to: the wire does its TLS with
// a throw-away key, which protects nothing and is trusted with nothing. All others are handed to weftd as descriptors, or
// closed while there is none.
//
// Left to others: the sleeve itself (router/sleeve), making sockets and devices (weftd), and TLS on the connections that
// are weftd's.
//
// # Life
//
//	weftd: Ensure ──no wire──> bind socket, start "weft wire" ──┐
//	          │                                                  v
//	          └──wire answers──────────────────> hello ──> setters, descriptors ──> datagrams, connections, links
//
// One weftd is attached at a time: a newer one displaces the older. When it goes away, by intent or not, nothing
// happens to the data plane. When the wire goes away Done fires, and Ensure starts another, which makes fresh sessions.
// A wire that was root cannot remove its socket, for want of rights in that folder: a stale one stays until a client
// stops the wire, or the next one starts. Beside it lies a lock, held by whoever starts a wire, as <socket>.lock.
//
// # Frames
//
// The socket is a unix stream. Both sides send frames; numbers are big endian:
//
//	0               4       5       6       8              12
//	+---------------+-------+-------+-------+---------------+--------------------+
//	| length of     |version| files | kind  | id            | body               |
//	| body (uint32) | uint8 | uint8 | uint16| uint32        | fields, crypto/tlv |
//	+---------------+-------+-------+-------+---------------+--------------------+
//
// Files is the number of descriptors that travel with the first byte of the frame (SCM_RIGHTS). Id is chosen by weftd
// for a request and repeated in the reply; 0 asks for none. Weftd sends, the wire answers reply or error:
//
//	hello     1  build                    -> hello fields; must be first; displaces the attached weftd
//	stop      2                           -> the connection ends when all descriptors are released
//	identity 16  id, cluster, key, …      -> reply
//	peers    17  list                     -> reply
//	tunnels  18  list                     -> reply
//	local    19  list                     -> reply
//	relay    22  on                       -> reply
//	sparse   23  on, idle                 -> reply
//	wg set   20  name, text               -> reply; text as in WireGuard's configuration protocol
//	wg shut  21  name                     -> reply
//	udp      32  + descriptors            -> reply
//	tcp      33  + descriptors            -> reply
//	tun      34  device + descriptors     -> reply
//	wg open  36  name, text + descriptor  -> reply; a WireGuard device on a TUN device, told what another held
//	wg lend  37  name                     -> reply: name, text + a copy of its descriptor
//	files    35                           -> hello fields + copies of all descriptors, in the order of Held
//	stats    64                           -> reply
//	wg get   65  name                     -> reply: name, text
//	punch    50  peer, addresses          -> reply
//	datagram 48  peer, data               no answer
//
// and the wire sends by itself:
//
//	datagram  48  peer, data
//	accepted  49  + one descriptor
//	displaced 80  a newer weftd attached; the connection ends
//
// # Versions
//
// Kinds and tags are only ever added. An unknown kind is answered "unsupported" by the wire and ignored by weftd, an
// unknown tag is ignored, so that either side may be the newer one within a major version. Hello and stop never change:
// across majors weftd can still ask a wire to make room.
//
// # Trust
//
// The socket is for root, and for the uid that started the wire, by SO_PEERCRED. Whoever steers it can send and receive
// as this node, so frames are checked to keep a confused weftd from doing harm, not an enemy. What the network can reach
// here is the engine's datagrams, the accept of TCP connections with the look at what they ask for, and TLS on those of
// the sleeve: at most 256 connections at a time may be without a word, 64 of them from one address, each for five seconds, and
// then the oldest makes room for the next.
package wire
