// Package ipamsim plays lives of whole clusters over the real allocator of package ipam, fast, and so that each life can
// be played again: it is the ground on which the rules of ipam are tried, and no part of weft.
//
// A World has machines. A machine is an identity, a disk and, while it is up, an ipam.Allocator with its goroutines. All
// else is made here: the fabric that carries calls and gossip and drops, delays, repeats, reorders and cuts; the roster
// of members and removals with the round by which a member is admitted; disks that die before or after a transaction,
// are lost, set back or copied; and a clock.
//
// # One thing at a time
//
// A World lives in a bubble of testing/synctest, whose clock moves only when every goroutine waits. All that crosses
// between machines goes through one queue: an event is taken, it wakes goroutines of at most one machine, and the next
// event is taken when all of them wait again. What they sent meanwhile is put in an order of its own (sender, kind,
// receiver, content) before chance decides on loss and delay, and chance is a function of the seed, the link and the
// number of the message on it. So the order in which Go runs the goroutines of one machine does not show, and a life
// is a function of its plan; World.Hash says what it was.
//
// # Plans
//
// A Plan is all that a life depends on: the size of the cluster, the weather of the fabric and a list of steps. Draw
// makes one from a seed; its text can be read back; Shrink takes steps away while the same rule stays broken.
//
// # What is checked
//
// After each event the rules of the address ring are checked on what changed; check.go lists them by their names I1 to
// I12. Recover lets the fabric be whole, and checks that all is well in the end (I13).
package ipamsim
