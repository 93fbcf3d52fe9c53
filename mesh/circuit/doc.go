// Package circuit gives byte streams between members, named by NodeID: TLS 1.3 over TCP, both ends proving the node key
// of a certificate under the cluster's root.
//
//	dialler                                   server
//	   | ---- TCP, TLS 1.3 (ALPN weft/1) ------> |   both verify key, certificate chain and NodeID
//	   | ---- kind: 1 byte --------------------> |   what the stream is for
//	   | <--- verdict: 1 byte ------------------ |   0: welcome; else why not, and the stream ends; who was removed is
//	   |                                         |   shown the removal: size (uint16), identity.Removal
//	   | <===== bytes of the user =============> |
//
// Each side shows a self-signed X.509 certificate of its node key; a private extension carries the weft certificate and
// the root's public key. No system trust store, no dates (clocks may be wrong by any amount), no session tickets. The
// key exchange is X25519MLKEM768 only, so that secrets exported from a circuit withstand a later quantum computer.
//
// The second protocol on the same port, ALPN weft-join/1, serves machines that are no members yet: there only the server
// shows a certificate, which the joiner holds against the root fingerprint of its token. What is said on it is in
// package join.
//
// Where a peer can be reached, who may come in now (the roster knows who was removed) and what is spoken on a stream are
// the user's.
package circuit
