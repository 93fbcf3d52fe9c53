// Package ring is the replicated map that says which member owns which part of the cluster's address space. It is pure:
// no clock, no lock, no network, no disk. When a member may write is for package ipam to know; this package holds what
// was written, merges it with what others hold, and refuses what nobody had the right to write.
//
// # State
//
// The pools are cut into atoms of fixed size. Each atom has one register (view, seq, owner, grantor, signature), ordered
// by view, then seq, then the hash of the writing. At first all registers are (0, 0, founder), by the definition of the
// cluster, so there is nothing to vote on. Merge takes the greater register per atom: it is commutative, associative and
// idempotent for whatever comes in, and equal states have equal bytes and digests.
//
// An owner writes by a grant, a signed hand-over of an aligned block to another owner. The state is therefore kept, sent
// and stored as the set of grants that are some atom's register, which is also the run-length form: one grant for a run
// of equal registers.
//
// # Proof
//
// A grant names its parent: the grant by which its writer owns the block, or none when the writer is the founder. A
// state carries the parents of its grants, so that it proves itself to a newcomer who knows only the cluster's
// definition and the members' keys. Every grant is judged on its own:
//
//   - its signature, by the grantor, over the cluster's ID and the grant's bytes;
//   - its parent is in the same message, is proven, covers the block, made the grantor its owner, and has a lower seq in
//     the same view.
//
// What is not proven, because it is wrong or because a key has not arrived yet, is left out and reported, together with
// what rests on it, and nothing else. It is not kept for later: the digests still differ, so it comes again. So every
// register is proven and may be used for routing.
//
// A chain of grants would grow for ever where blocks go to and fro. Hence a grant's parent is the oldest grant by which
// its writer became owner, not the latest: what comes back to a former owner forgets the detour. This gives no power
// that was not there. Whoever once owned a block can always write a rival continuation; no chain of signatures alone
// prevents that, and it is noticed, by the owner who loses a block that it did not grant. Chains are as long as the
// number of different owners in a row, seldom more than the 14 halvings from a /12 to a /26, and at most MaxDepth.
//
// # Views
//
// A grant belongs to the view of its parent; the first view is 0. When members are removed, an issuer that has the promise
// of all survivors (package ipam) writes a view record: the view's number, who is removed by it, and the names of what
// they wrote that stays. It takes each block that one of them owned over for an heir by a takeover: the first writing
// (seq 0) in the new view, newer than everything in earlier ones. A takeover has no parent. Its right comes from the
// record: that is in the same message and proven, has the takeover's view and writer, and removes the member from whom
// the block is taken. So chains end at takeovers, and do not grow with the number of removals. A record is proven when
//
//   - its writer is known to hold, or to have held, the right to remove others;
//   - the removal of everybody whom it names is known, for nobody is removed by a record alone;
//   - it is signed by its writer.
//
// What the removed wrote (Judge.Refuse) is taken only where it is known already or where a proven record confirms it by
// name, records by a removed coordinator among it. That is not for proof but for I11: a stolen key can write rivals of
// all that its node ever owned.
//
// Of the records a state keeps those that takeovers rest on, and the newest ones until they fill a window of bytes, so
// that who comes late finds what confirms. The voters that earlier views removed stand in a second record of the view,
// its roll, on which no takeover rests: the newest one says all.
//
// # Wire
//
//	state  = version ‖ {1 list of grants, 2 list of view records}        lists sorted, absent when empty
//	entry  = {1 payload, 2 signature}                                    nothing else: the hash covers these bytes
//	grant  = version ‖ {1 block, 2 view, 3 seq, 4 owner, 5 grantor, 6 parent, 7 from, 8 record}
//	record = version ‖ {1 number, 2 writer, 3 removed, 4 confirmed, 5 forced, 6 before}
//
//	field      bytes
//	block      5 or 17   address and prefix length
//	view, seq  8         view absent when zero; number too
//	owner      16        peer.ID; grantor, from, writer too
//	parent     16        first half of the parent's SHA-256; record too; absent: none
//	removed    28 each   list of node(16) and its newest start(8), ascending
//	confirmed  16 each   names of grants and records, ascending
//	before     16 each   nodes, ascending
//	signature  64        Ed25519 in the domain "weft grant" or "weft view", over the cluster's ID and the payload
//
// A grant of an IPv4 block is 168 bytes, 146 when it is the founder's, a takeover 204; a record that removes one member
// is 147. Braces are the fields of package tlv. Fields that a payload has beside these are kept under its signature. A
// version with another major number is refused.
//
// A summary is 0x01 and, for each first byte that names of entries can have, the first 8 bytes of the SHA-256 of all names
// with that byte, ascending; zero when there is none. A delta is a state of the entries in buckets that differ, with what they
// rest on.
//
// A proposal looks like a record without confirmed and before, is signed in the domain "weft view proposal", and is never
// part of a state.
package ring
