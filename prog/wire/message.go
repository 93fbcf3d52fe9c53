package wire

import (
	"errors"
	"net/netip"
	"time"

	"weft/crypto/psk"
	"weft/crypto/tlv"
	"weft/mesh/peer"
	"weft/router"
	"weft/router/sleeve"
)

// Limits of what is read from the control socket.
const (
	maxPeers     = 20000
	maxTunnels   = maxPeers
	maxEndpoints = 64
	maxSecrets   = 8
	maxRelays    = 8
	maxStreams   = 16    // addresses for streams
	maxPrefixes  = 16384 // of one tunnel, and local ones
	maxDatagram  = 60 << 10
	maxString    = 1 << 10
	maxText      = 4 << 10 // of an error
)

// Tags of each message stand as literals where it is encoded and where it is decoded, a few lines apart.

func appendHelloRequest(dst []byte, build string) []byte { return tlv.AppendString(dst, 1, build) }

func parseHelloRequest(b []byte) (build string, err error) {
	r, err := reader(b)
	if err != nil {
		return "", err
	}
	build = r.String(1, maxString)
	return build, r.Err()
}

func appendHello(dst []byte, h Hello) []byte {
	dst = tlv.AppendString(dst, 1, h.Version)
	dst = tlv.AppendUint32(dst, 2, uint32(h.PID))
	dst = tlv.AppendUint64(dst, 3, uint64(h.Started.UnixNano()))
	dst = tlv.AppendUint64(dst, 4, h.Generation)
	dst = tlv.Append(dst, 5, h.Identity[:])
	dst = tlv.AppendList(dst, 6, endpoints(h.Held.UDP))
	dst = tlv.AppendList(dst, 7, endpoints(h.Held.TCP))
	if h.Held.TUN.Name != "" {
		dst = tlv.Append(dst, 8, appendTUN(nil, h.Held.TUN))
		dst = tlv.AppendUint16(dst, 9, uint16(h.Held.Queues))
	}
	return tlv.AppendList(dst, 10, links(h.Peers))
}

func parseHello(b []byte) (Hello, error) {
	r, err := reader(b)
	if err != nil {
		return Hello{}, err
	}
	h := Hello{
		Version:    r.String(1, maxString),
		PID:        int(int32(r.Uint32(2))),
		Started:    time.Unix(0, int64(r.Uint64(3))),
		Generation: r.Uint64(4),
	}
	r.Copy(5, h.Identity[:])
	h.Held.UDP = parseEndpoints(r, 6, maxFiles)
	h.Held.TCP = parseEndpoints(r, 7, maxFiles)
	if b := r.Bytes(8, maxString); b != nil {
		if h.Held.TUN, err = parseTUN(b); err != nil {
			r.Fail(err)
		}
		h.Held.Queues = int(r.Uint16(9))
	}
	h.Peers = parseLinks(r, 10)
	return h, r.Err()
}

func appendIdentity(dst []byte, id Identity) []byte {
	dst = tlv.Append(dst, 1, id.ID[:])
	dst = tlv.Append(dst, 2, id.Cluster[:])
	dst = tlv.Append(dst, 3, id.NoisePrivate[:])
	dst = tlv.AppendUint64(dst, 4, id.Epoch)
	return tlv.AppendUint64(dst, 5, id.Counter)
}

func parseIdentity(b []byte) (Identity, error) {
	r, err := reader(b)
	if err != nil {
		return Identity{}, err
	}
	r.Require(1, 2, 3)
	var id Identity
	r.Copy(1, id.ID[:])
	r.Copy(2, id.Cluster[:])
	r.Copy(3, id.NoisePrivate[:])
	id.Epoch, id.Counter = r.Uint64(4), r.Uint64(5)
	return id, r.Err()
}

func appendPeers(dst []byte, peers []Peer) []byte {
	items := make([][]byte, len(peers))
	for i, p := range peers {
		b := tlv.Append(nil, 1, p.ID[:])
		b = tlv.Append(b, 2, p.NoisePublic[:])
		b = tlv.AppendList(b, 3, endpoints(p.Endpoints[:min(len(p.Endpoints), maxEndpoints)]))
		var secrets [][]byte
		for _, s := range p.Secrets {
			if !s.IsZero() && len(secrets) < maxSecrets {
				secrets = append(secrets, s.Bytes())
			}
		}
		b = tlv.AppendList(b, 4, secrets)
		b = tlv.AppendList(b, 5, ids(p.Relays[:min(len(p.Relays), maxRelays)]))
		b = tlv.AppendList(b, 6, endpoints(p.TCP[:min(len(p.TCP), maxStreams)]))
		items[i] = tlv.AppendBool(b, 7, p.Pinned)
	}
	return tlv.AppendList(dst, 1, items)
}

func parsePeers(b []byte) ([]Peer, error) {
	return parseItems(b, maxPeers, func(r *tlv.Reader) Peer {
		r.Require(1, 2)
		var p Peer
		r.Copy(1, p.ID[:])
		r.Copy(2, p.NoisePublic[:])
		p.Endpoints = parseEndpoints(r, 3, maxEndpoints)
		for _, item := range r.List(4, maxSecrets) {
			s, err := psk.Parse(item)
			if err != nil {
				r.Fail(err)
				break
			}
			p.Secrets = append(p.Secrets, s)
		}
		p.Relays = parseIDs(r, 5, maxRelays)
		p.TCP = parseEndpoints(r, 6, maxStreams)
		p.Pinned = r.Bool(7)
		return p
	})
}

func appendTunnels(dst []byte, tunnels []router.Tunnel) []byte {
	items := make([][]byte, len(tunnels))
	for i, t := range tunnels {
		b := tlv.Append(nil, 1, t.Peer[:])
		b = tlv.AppendAddrPort(b, 2, t.Endpoint)
		b = tlv.AppendList(b, 3, prefixes(t.Blocks))
		items[i] = tlv.AppendUint32(b, 4, uint32(t.MTU))
	}
	return tlv.AppendList(dst, 1, items)
}

func parseTunnels(b []byte) ([]router.Tunnel, error) {
	return parseItems(b, maxTunnels, func(r *tlv.Reader) router.Tunnel {
		r.Require(1)
		var t router.Tunnel
		r.Copy(1, t.Peer[:])
		t.Endpoint = r.AddrPort(2)
		t.Blocks = parsePrefixes(r, 3)
		t.MTU = int(int32(r.Uint32(4)))
		return t
	})
}

func appendLocal(dst []byte, local []netip.Prefix) []byte {
	return tlv.AppendList(dst, 1, prefixes(local))
}

func parseLocal(b []byte) ([]netip.Prefix, error) {
	r, err := reader(b)
	if err != nil {
		return nil, err
	}
	local := parsePrefixes(r, 1)
	return local, r.Err()
}

func appendRelay(dst []byte, on bool) []byte { return tlv.AppendBool(dst, 1, on) }

func parseRelay(b []byte) (on bool, err error) {
	r, err := reader(b)
	if err != nil {
		return false, err
	}
	on = r.Bool(1)
	return on, r.Err()
}

func appendSparse(dst []byte, s Sparse) []byte {
	dst = tlv.AppendBool(dst, 1, s.On)
	return tlv.AppendUint64(dst, 2, uint64(max(0, s.Idle)))
}

func parseSparse(b []byte) (Sparse, error) {
	r, err := reader(b)
	if err != nil {
		return Sparse{}, err
	}
	s := Sparse{On: r.Bool(1), Idle: time.Duration(r.Uint64(2) & (1<<63 - 1))}
	return s, r.Err()
}

// punch asks for a burst to addresses of a peer.
type punch struct {
	to peer.ID
	at []netip.AddrPort
}

func appendPunch(dst []byte, p punch) []byte {
	dst = tlv.Append(dst, 1, p.to[:])
	return tlv.AppendList(dst, 2, endpoints(p.at[:min(len(p.at), maxEndpoints)]))
}

func parsePunch(b []byte) (punch, error) {
	r, err := reader(b)
	if err != nil {
		return punch{}, err
	}
	r.Require(1)
	var p punch
	r.Copy(1, p.to[:])
	p.at = parseEndpoints(r, 2, maxEndpoints)
	return p, r.Err()
}

func appendTUN(dst []byte, t TUN) []byte {
	dst = tlv.AppendString(dst, 1, t.Name)
	dst = tlv.AppendBool(dst, 2, t.Offload.Vnet)
	dst = tlv.AppendBool(dst, 3, t.Offload.TSO)
	return tlv.AppendBool(dst, 4, t.Offload.USO)
}

func parseTUN(b []byte) (TUN, error) {
	r, err := reader(b)
	if err != nil {
		return TUN{}, err
	}
	r.Require(1)
	t := TUN{Name: r.String(1, maxString)}
	t.Offload = sleeve.Offload{Vnet: r.Bool(2), TSO: r.Bool(3), USO: r.Bool(4)}
	return t, r.Err()
}

func appendDatagram(dst []byte, d Datagram) []byte {
	dst = tlv.Append(dst, 1, d.Peer[:])
	return tlv.Append(dst, 2, d.Data)
}

// parseDatagram returns a datagram whose data is a part of b.
func parseDatagram(b []byte) (Datagram, error) {
	r, err := reader(b)
	if err != nil {
		return Datagram{}, err
	}
	r.Require(1, 2)
	var d Datagram
	r.Copy(1, d.Peer[:])
	d.Data = r.Bytes(2, maxDatagram)
	return d, r.Err()
}

// failure is the answer to a request that was not done.
type failure struct {
	code uint16
	text string
}

// The codes of failure. Numbers are never reused.
const (
	codeUnsupported = 1 // kind not known
	codeMalformed   = 2
	codeFailed      = 3
)

// failureOf classifies what went wrong on the wire's side.
func failureOf(err error) failure {
	f := failure{codeFailed, err.Error()}
	switch {
	case errors.Is(err, ErrUnsupported):
		f.code = codeUnsupported
	case errors.Is(err, tlv.ErrMalformed):
		f.code = codeMalformed
	}
	if len(f.text) > maxText {
		f.text = f.text[:maxText]
	}
	return f
}

func appendFailure(dst []byte, f failure) []byte {
	dst = tlv.AppendUint16(dst, 1, f.code)
	return tlv.AppendString(dst, 2, f.text)
}

func parseFailure(b []byte) (failure, error) {
	r, err := reader(b)
	if err != nil {
		return failure{}, err
	}
	f := failure{code: r.Uint16(1), text: r.String(2, maxText)}
	return f, r.Err()
}
