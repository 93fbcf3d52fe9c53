// Package ipam gives addresses to containers out of the blocks that this node owns, keeps them durably, and lends and
// borrows blocks, so that a pod's start does not wait for the network.
//
// Who owns what is the ring (package ring), a map that all members replicate; which addresses of a node's own blocks are
// free is a space (package space). The Allocator owns one of each and the claims. It decides nothing about membership,
// carries no messages and touches no interface: the mesh, the identity key and the disk are given to it (Config).
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
//     the answers name. It gives from its own blocks after ten seconds without a quorum, and says so, unless it is told
//     to be strict.
//   - A node that hears of a start or of a grant of its own that it does not know has lost a part of its disk. What it
//     believes to own may be somebody else's, so it stops for good; only a new identity can go on.
//
// # Calls
//
// A call is a tlv message of version 1.x; a ring in it is at most ring.MaxWire bytes.
//
//	ipam.sync   {1 incarnation, 2 start, 3 digest}  ->  {1 incarnation, 2 start: heard before, 3 ring, 4 voters}
//	ipam.spare  {1 digest}                          ->  {1 addresses, 2 reason, 3 ring}
//	ipam.grant  {1 request}                         ->  {2 ring: the grant and its proof, 3 reason}
//	ipam.push   {1 ring}                            ->  {} when it is on disk
//
// A voter is 16 bytes of ID and 8 of join sequence. Reasons are append-only.
//
// # Store
//
// One transaction per change covers all tables, so that the disk is always one moment of the node's life. Values are tlv
// under a version byte. A store, or a value, of another major version is refused; unknown tables and fields stay.
package ipam
