// Package identity says who may be in a cluster, in signed items that anyone verifies offline with the root's public key.
//
//	root key ── signs ──> Cluster      what everybody shares: founder, pools
//	    │
//	    ├── signs ──> Certificate      the founder's own
//	    │
//	    └── signs ──> Delegation ──> issuer's node key
//	                                     │
//	                                     ├── signs ──> Invitation    the public record of a token
//	                                     ├── signs ──> Revocation    of an invitation
//	                                     ├── signs ──> Removal       of a node; a node that leaves signs its own
//	                                     └── signs ──> Certificate   a joiner's; inside it the Application, which the
//	                                                                 joiner signed with its node key and the token key
//
// All items share one layout. Signatures stand outside the body and cover everything before them, so a field that this
// build does not know stays under its signature, and any changed bit is noticed:
//
//	 0         1      2             6        6+n
//	+---------+------+-------------+--------+---------------------------+
//	| version | kind | body size n | body   | one or two signatures     |
//	+---------+------+-------------+--------+---------------------------+
//	 tlv.Version uint8 uint32        fields   64 bytes each (Ed25519)
//
// Parse functions check shape and limits and keep a copy of the bytes that they were given (Raw); the Verify methods check
// signatures. Neither asks a clock or the network: whether a token has expired, was used up or revoked, and whether a
// node was removed, is for those who keep the roster (packages join and mesh).
package identity
