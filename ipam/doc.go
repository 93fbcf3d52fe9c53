// Package ipam gives addresses to containers out of the blocks that this node owns, keeps them durably, and lends and
// borrows blocks, so that a pod's start does not wait for the network.
//
// Who owns what is the ring (package ring), a map that all members replicate; which addresses of a node's own blocks are
// free is a space (package space). The Allocator owns one of each and the claims. It decides nothing about membership,
// carries no messages and touches no interface: the mesh, the roster, the identity key and the disk are given to it
// (Config).
//
// # Rules
//
// No two members ever own the same block in their own eyes. That does not come from the ring, which merges anything that
// is proven, but from who writes and when:
//
//   - Only the owner of a block grants it on, and has the grant on disk before anybody hears of it. The claim of an
//     address is on disk before it is answered.
//   - A grant's receiver uses the block when it has the grant on disk. Requests have names, so that a repeated one is
//     not given a second block.
//   - After a restart a node lends nothing until a quorum of the voters has answered (peer.Quorum), over all voters that
//     the answers name, and without those whom their rosters, which come with them, say to be removed. It gives from its
//     own blocks after ten seconds without a quorum, and says so, unless it is told to be strict.
//   - What a removed member owned is given to others only when every survivor has promised to refuse what that member
//     wrote, and has told what it knows; see Reclaim. Until then a removed voter counts in every quorum as one that does
//     not answer, so that no two halves of a cluster can remove each other and both go on.
//   - Who has joined counts in no quorum of promises until it knows which starts of others were heard of before; see Novice.
//   - A member that was removed gets no grant, no promise and no answer to its start. When it learns of its removal it
//     stops for good.
//   - A node that hears of a start or of a grant of its own that it does not know has lost a part of its disk. What it
//     believes to own may be somebody else's, so it stops for good; only a new identity can go on.
//
// # Calls
//
// A call is a tlv message of version 1.x; a ring in it is at most ring.MaxWire bytes.
//
//	ipam.sync   {1 incarnation, 2 start, 3 digest,  ->  {1 incarnation, 2 start: heard before, 3 ring, 4 voters,
//	              4 roster, 5 starts}                    5 roster, 6 partial, 7 starts, 8 novice}
//	ipam.spare  {1 digest}                          ->  {1 addresses, 2 reason, 3 ring}
//	ipam.grant  {1 request}                         ->  {2 ring: the grant and its proof, 3 reason}
//	ipam.push   {1 ring, 2 roster, 3 starts,        ->  {1 summary of the roster} when all of it is on disk
//	              4 refused}
//	ipam.promise {1 proposal, 2 digest, 3 roster,   ->  {1 verdict, 2 ring, 3 roster, 4 partial, 5 joining, 6 higher,
//	              4 delta}                               7 newer, 8 idle, 9 summary, 10 novice}
//
// In ipam.sync and ipam.promise the roster is a summary there and what that one lacks on the way back, partial when it
// was too long. Who cannot prove the proposal answers with its own summary, and is asked again with the delta that it
// lacks. Verdicts are yes, unproven, number (higher is the proposal that was promised), newer (the removed have started
// since) and stopped (this is the removed one). Joining are 25 bytes each: node, join sequence, 1 for one without a
// vote; newer 24 bytes: node and start.
//
// A novice says by 5 starts, a hash, which it has heard of, and gets those of the other where they differ: 32 bytes each, node,
// incarnation and start.
//
// A voter is 16 bytes of ID and 8 of join sequence. Reasons are append-only.
//
// # Store
//
// One transaction per change covers all tables, so that the disk is always one moment of the node's life. Values are tlv
// under a version byte. A store, or a value, of another major version is refused; unknown tables and fields stay.
package ipam
