// Package join makes a machine with a token a member, and lets members agree to that.
//
//	joiner                     sponsor (any seed)          issuer                      voters
//	  | -- TLS weft-join/1 ------> |                          |                           |
//	  | -- request --------------> |                          |                           |
//	  |                            | -- join.forward -------> |                           |
//	  |                            |   (if no issuer itself)  | -- join.ack ------------> |  checks, promises on disk
//	  |                            |                          | <- sequence, roster ----- |
//	  |                            |                          |    quorum: countersign    |
//	  |                            |                          | -- join.commit ---------> |  adds to roster on disk
//	  |                            |                          | <- done ----------------- |
//	  |                            | <- certificate --------- |    quorum: answer         |
//	  | <- welcome, items, end --- |                          |                           |
//
// The joiner trusts a seed whose certificate ends in the root that the token names and whose NodeID begins as the token
// says. The seed trusts a request that node key and token key signed over this TLS session's exporter value, so a request
// cannot be replayed on another. What ends up in the certificate (identity.Application) is bound to no session: it is the
// node's to use and worthless to anyone without the node key.
//
// Each voter judges the token itself: expiry by its own clock, revocations and uses by its own roster. A voter that says
// yes has written down the promise before, and counts it as a use until the certificate arrives, the issuer releases it
// or PromiseLife has passed; so two issuers cannot give away the same use. A join needs a quorum (peer.Quorum) of the
// voters known to anybody who answered, counted both without the nodes that are joining and with them.
//
// A node that was removed for its silence comes back in the same way (Return), as another node: its former key is the
// token, and the removal came with an invitation for it.
//
// Everything may be asked again: a node key that has a certificate gets it again, without another use. A crash between
// any two steps leaves nothing, or a join that completes when it is tried again.
//
// # Messages
//
// On the joiner's TLS session messages are frames: size (uint32), type (uint8), body of size bytes. Bodies, and requests
// and answers between members, are a version byte and fields (package tlv).
//
// The package keeps neither roster nor records: it asks and tells the Roster, and passes on what others give it.
package join
