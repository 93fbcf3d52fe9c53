// Package space finds free addresses inside a node's own blocks, and blocks that the node can spare. It is a pure
// data structure: no clock, no lock, no disk; who owns which block, and that an address was given away durably, is for
// its user to know.
//
// Addresses are given lowest first, so that the upper half of a block stays free for lending. Every address of a block
// is usable, those that end in .0 or .255 too, for pods are routed one by one and there is no broadcast; only the first
// and the last address of a whole pool are never given, because other software takes them for a network's and its
// broadcast address. They may well be inside a block that is lent.
//
// A released address rests before it is given again, lest a peer's stale connection reach its next user. Asking for a
// certain address by name ends its rest. A block that was taken over from a removed node rests as a whole, and is used
// last (Late).
//
// The pools of a space are of one family. In IPv6 pools the first address of each /64 is not given either: there it means all
// routers of the network. A block of theirs has more addresses than can be counted; counts end at Many.
//
// With linked IPv6 an IPv4 address has a twin: a /96 followed by the four bytes of the IPv4 address (Linked, LinkedBlock).
package space
