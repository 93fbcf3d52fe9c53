// Package noise makes the session keys of a pair of nodes: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s in three functions,
// Initiate, Respond and Finish, with the outer protections that let a node stay silent to strangers. It holds no
// session, no peer and no clock: who may speak, which counters were seen and when keys expire is left to the caller,
// as is sealing with the keys (crypto/seal).
//
// The initiation, at least MinInitiation bytes so that no answer is larger than its question:
//
//	 0      1       4              36                 84
//	+------+-------+--------------+------------------+--------------- ... -------+--------+--------+
//	| 0x10 | index | ephemeral    | sealed static    | sealed offer              | mac1   | mac2   |
//	+------+-------+--------------+------------------+--------------- ... -------+--------+--------+
//	 1      3       32             32+16              n+16                        16       16
//
// The response:
//
//	 0      1       4      5              37
//	+------+-------+------+--------------+--------------- ... -------+--------+--------+
//	| 0x11 | index | slot | ephemeral    | sealed answer             | mac1   | mac2   |
//	+------+-------+------+--------------+--------------- ... -------+--------+--------+
//	 1      3       1      32             n+16                        16       16
//
// The cookie reply, which a responder under load sends instead:
//
//	 0      1       4              28
//	+------+-------+--------------+----------------+
//	| 0x12 | index | nonce        | sealed cookie  |
//	+------+-------+--------------+----------------+
//	 1      3       24             16+16
//
// The index is the initiator's, by which it finds its half-done handshake; it and the cluster are in the prologue, so a
// changed index or another cluster fails. IKpsk2 mixes the pair secret into message 2 only: the initiation lists the
// ids of the secrets that the initiator has, sealed, and the response says by position (slot) which one was taken, in
// clear because the initiator needs it before it can open the rest. A changed slot selects another secret, under which
// the answer does not open; the answer repeats the id. Offer and answer are tlv fields behind a version byte; unknown
// fields are ignored. The ciphers offered and the one chosen are both sealed, so nobody can talk a pair down.
//
// mac1 is keyed by the receiver's static public key: who does not know it gets silence at the price of one hash. mac2 is
// keyed by a cookie that proves the sender's address, demanded only under load.
package noise
