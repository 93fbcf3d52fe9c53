package sleeve

import "sync/atomic"

// reason says why something was dropped.
type reason uint8

// The reasons. Their names are seen in status and metrics.
const (
	dropMalformed    reason = iota // no datagram or packet of ours
	dropUnknownIndex               // sealed for keys that we do not have, or no longer
	dropUnauthentic                // the tag is wrong
	dropReplay                     // seen before, or too old
	dropExpired                    // the keys are too old
	dropKind                       // a kind that this build does not know
	dropSource                     // inner source outside the sender's blocks
	dropDestination                // inner destination is not here
	dropECN                        // congestion mark on a packet that cannot carry it
	dropNoRoute                    // no peer owns the destination
	dropNoSession                  // nothing to seal with
	dropQueueFull                  // waited for a session and was the oldest
	dropTooBig                     // larger than the path takes
	dropSend                       // the socket refused it
	dropTUN                        // the TUN device refused it
	dropControl                    // control datagram that nobody fetched in time
	dropMAC                        // handshake from someone who does not know us
	dropStranger                   // handshake from someone whom we do not know
	dropOldCounter                 // handshake that was seen before
	dropHandshake                  // handshake that does not authenticate or does not fit
	dropNoSecret                   // handshake without a secret in common
	dropRate                       // handshake beyond the rate limit
	dropCookie                     // handshake answered with a cookie, under load
	dropRelayOff                   // to be carried for a peer, and this node carries nothing
	dropRelayLimit                 // more than is carried for one peer
	dropRelayUnknown               // to be carried to someone whom we do not know
	dropRelayAway                  // to be carried to a peer to whom there is no way but by others
	dropRelayLeg                   // carried as it cannot have been
	dropStream                     // the stream takes no more
	dropHalf                       // one half of a packet, of which the other did not come
	dropFlood                      // by the kernel, while strangers flood: see sieve
	dropBuffer                     // by the kernel, as the receive buffer was full
	reasons
)

var reasonNames = [reasons]string{
	"malformed", "unknown_index", "unauthentic", "replay", "expired", "unknown_kind", "source", "destination", "ecn",
	"no_route", "no_session", "queue_full", "too_big", "send", "tun", "control_overflow", "mac", "stranger",
	"old_counter", "handshake", "no_secret", "rate", "cookie", "relay_off", "relay_limit", "relay_unknown", "relay_away",
	"relay_leg", "stream_full", "half", "flood", "buffer",
}

// String is the name in status and metrics.
func (r reason) String() string { return reasonNames[r] }

// drops counts by reason.
type drops [reasons]atomic.Uint64

func (d *drops) add(r reason, n int) { d[r].Add(uint64(n)) }

// take adds what another has counted.
func (d *drops) take(other *drops) {
	for r := range d {
		d[r].Add(other[r].Load())
	}
}

func (d *drops) snapshot() map[string]uint64 {
	m := make(map[string]uint64)
	for r := range d {
		if n := d[r].Load(); n != 0 {
			m[reason(r).String()] = n
		}
	}
	return m
}
