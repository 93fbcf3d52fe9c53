// Package mesh keeps a cluster together: who its members are, which of them are alive, what each says about itself, and
// how one asks another something.
//
// Four things with different rules live here.
//
//	roster      signed facts that only grow (certificates, delegations, invitations, revocations, removals); verified
//	            against the root before they are kept, saved before they spread. Who was removed is spoken with no more
//	records     one signed statement per member about itself; the newest epoch wins
//	replicas    any other state that merges (the address ring); opaque here
//	rumours     membership by memberlist: who answers; never more than a peer.State, it adds and removes nobody
//
// Roster, records and replicas spread alike. A change makes a node tell a few others the digests of its states, in one
// small datagram, with the change itself where that is short (news.go); who takes it tells others in turn, and whoever
// has another digest even so pulls the difference over a stream. The same datagram goes to one random member every two
// seconds, and with each of memberlist's state exchanges, so whatever was missed is found. While a node hears no datagram
// at all, as before its first sessions, it exchanges digests over streams instead. Nothing depends on one message
// arriving.
//
// Messages, all addressed by NodeID and authenticated by those who carry them (package wire's sessions, package circuit):
//
//	datagram    kind(1)  body       kind 1: memberlist, with its cluster label; 2: digests, as fields;
//	                            16 and above: whoever listens, see Listen
//	stream      of kind 'g': memberlist; of kind 'r': one call, see rpc.go
//
// Kinds are append-only; unknown ones are counted and ignored.
//
// The package opens no socket, knows no endpoint and makes no key: Packets and Streams carry for it, Store keeps for it.
// Who may join is decided in package join, what a path is like in the wire, what addresses mean in package ipam.
package mesh
