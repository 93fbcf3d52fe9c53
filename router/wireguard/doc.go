// Package wireguard is the transport over WireGuard: in the kernel (driver "wireguard", device weft-wg), or by wireguard-go
// in the wire process (driver "wireguard-user", device weft-wu). Both are steered by the same code; what differs stands
// behind Device.
//
// It keeps a device's peers equal to the tunnels that the router wants: the public key from the peer's signed record, a
// preshared key from the pair's secret, the endpoint, and the blocks that the peer owns as allowed IPs. Only differences
// are written, so a session survives everything that does not concern it, the daemon's death included: the next daemon
// finds the device and goes on. WireGuard routes by longest prefix among all peers of a device, and drops what a peer
// sends from elsewhere, so the allowed IPs are also the check of sources; destinations are checked by the router's rules.
//
// # Moving a block
//
// A prefix belongs to one peer at a time, and giving it to another takes it from the first in one step. So a block that
// changes hands is given to its new owner, never first taken away. What nobody is to have any more, neither the kernel's
// netlink before 6.16 nor wgctrl can take away without replacing the whole list, in which moment packets are lost: such a
// prefix is given to a stranger, a peer with a random key and without endpoint, which is then removed.
//
// # Up and down
//
// WireGuard reports nothing by itself. Health is measured as packets of pods experience it: echo requests through the
// device to the peer's own address, at the tunnel's full MTU until one was answered, small ones afterwards. A tunnel
// that does not come up although the peer is reached otherwise is mended: first once with the pair's former secret, for
// the two ends never change it in the same instant, and may have taken two in different order (so they try it one after the
// other, the end with the lower public key first), then by removing and adding the peer, which makes both forget the
// newest handshake that they saw (a clock that was set back shuts WireGuard out otherwise).
//
//	down ── a full-size echo answered ──> up ── unanswered while packets flow (package pulse) ──> down
//	down, peer reached otherwise, 15 s without handshake ──> former secret, once ──> newest secret, peer added anew ──> ...
//
// Left to others: who the peers are and which blocks they own, which transport carries a peer, routes and firewall
// (router), secrets (prog/weftd), and the network device of the second driver (prog/wire).
package wireguard
