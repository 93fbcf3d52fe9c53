package mesh

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Limits of records.
const (
	MaxRecord     = 512 // bytes that this build signs
	maxRecordRead = 768 // bytes that it reads: a newer build may say more

	MaxEndpoints  = 8
	MaxTrusted    = 16
	MaxTransports = 8
	MaxHosts      = 2
	MaxReflected  = 4
	MaxHomes      = 3
	maxTransport  = 24 // bytes of a transport's name
	maxBuild      = 48 // bytes

	maxEpoch = 1 << 62 // an epoch beyond is a mistake that could not be outbid
)

// Record is what a member says about itself, signed with its node key.
type Record struct {
	ID    peer.ID
	Epoch uint64 // rises with every change; the newest counts

	Name       string
	Endpoints  []netip.AddrPort // where its weft port may be reached, best first
	Noise      [32]byte         // X25519 public key of its sleeve
	NoiseEpoch uint64           // rises with every new Noise key
	WireGuard  [32]byte         // X25519 public key of its WireGuard device; zero: it has none
	Transports []string         // drivers that it can use, best first
	Trusted    []netip.Prefix   // its --trusted-subnets
	MTU        int              // of its underlay, bytes
	Build      string
	Abilities  uint64       // bits; append-only
	Hosts      []netip.Addr // the machine's own addresses out of its blocks, IPv4 first

	Reflected []netip.AddrPort // where others hear its weft port over UDP
	NAT       peer.NAT
	Homes     []peer.Home // relays that it keeps a session with, best first
	TCPPort   uint16      // a second TCP port; 0: it has none
}

// Abilities of a member.
const (
	AbilityRelay    uint64 = 1 << iota // carries packets and streams of others
	AbilityDialable                    // others have reached it unasked
)

// The layout of a record. A field that this build does not know stays where it is, under the signature.
//
//	version(1)  fields  signature(64)
const (
	recordVersion = tlv.Version(0x10)
	recordDomain  = "weft record"

	recordID         = 1
	recordEpoch      = 2
	recordName       = 3
	recordEndpoints  = 4 // list
	recordNoise      = 5
	recordNoiseEpoch = 6
	recordWireGuard  = 7
	recordTransports = 8 // list
	recordTrusted    = 9 // list
	recordMTU        = 10
	recordBuild      = 11
	recordAbilities  = 12
	recordHosts      = 13 // list
	recordReflected  = 14 // list
	recordNAT        = 15
	recordHomes      = 16 // list of NodeID(16) and milliseconds(2)
	recordTCPPort    = 17
)

// clone shares no slice with rec.
func (rec Record) clone() Record {
	rec.Endpoints = slices.Clone(rec.Endpoints)
	rec.Transports = slices.Clone(rec.Transports)
	rec.Trusted = slices.Clone(rec.Trusted)
	rec.Hosts = slices.Clone(rec.Hosts)
	rec.Reflected = slices.Clone(rec.Reflected)
	rec.Homes = slices.Clone(rec.Homes)
	return rec
}

// normal brings what the caller gave into the form that travels. What is too long loses its last endpoints, for the best
// are first, and then what others can do without, so that what could be said at the start can be said ever after.
func (rec Record) normal() Record {
	rec = rec.clone()
	rec.Endpoints = plain(rec.Endpoints, MaxEndpoints)
	rec.Reflected = plain(rec.Reflected, MaxReflected)
	rec.Homes = rec.Homes[:min(len(rec.Homes), MaxHomes)]
	for i, h := range rec.Homes {
		rec.Homes[i].RTT = min(max(h.RTT, 0), maxHomeRTT).Truncate(time.Millisecond)
	}
	for i, p := range rec.Trusted {
		rec.Trusted[i] = p.Masked()
	}
	rec.Build = clip(strings.Map(func(c rune) rune {
		if c == ' ' || !unicode.IsPrint(c) {
			return '-'
		}
		return c
	}, rec.Build), maxBuild)
	for len(rec.body())+ed25519.SignatureSize > MaxRecord && shorten(&rec) {
	}
	return rec
}

// shorten leaves out what matters least; false: there is nothing left of that.
func shorten(rec *Record) bool {
	switch {
	case len(rec.Endpoints) > 1:
		rec.Endpoints = rec.Endpoints[:len(rec.Endpoints)-1]
	case rec.Build != "":
		rec.Build = ""
	case len(rec.Reflected) > 1:
		rec.Reflected = rec.Reflected[:len(rec.Reflected)-1]
	case len(rec.Homes) > 0:
		rec.Homes = rec.Homes[:len(rec.Homes)-1]
	case len(rec.Reflected) > 0:
		rec.Reflected = nil
	default:
		return false
	}
	return true
}

// plain brings endpoints into the form that travels.
func plain(endpoints []netip.AddrPort, most int) []netip.AddrPort {
	for i, ep := range endpoints {
		endpoints[i] = netip.AddrPortFrom(ep.Addr().Unmap().WithZone(""), ep.Port())
	}
	endpoints = slices.DeleteFunc(endpoints, func(ep netip.AddrPort) bool { return !ep.IsValid() })
	return endpoints[:min(len(endpoints), most)]
}

// maxHomeRTT is the longest round trip that a record can tell.
const maxHomeRTT = (1<<16 - 1) * time.Millisecond

func appendHome(h peer.Home) []byte {
	return binary.BigEndian.AppendUint16(h.ID[:], uint16(h.RTT.Milliseconds()))
}

func parseHome(b []byte) (peer.Home, error) {
	if len(b) != peer.IDSize+2 {
		return peer.Home{}, errors.New("a home relay of another length")
	}
	ms := binary.BigEndian.Uint16(b[peer.IDSize:])
	return peer.Home{ID: peer.ID(b[:peer.IDSize]), RTT: time.Duration(ms) * time.Millisecond}, nil
}

// body is what the signature covers.
func (rec Record) body() []byte { return rec.append(tlv.AppendVersion(nil, recordVersion)) }

// sign makes the bytes that travel.
func (rec Record) sign(key identity.Key) ([]byte, error) {
	b := rec.body()
	b = append(b, key.Sign(recordDomain, b)...)
	if len(b) > MaxRecord {
		return nil, fmt.Errorf("make record: %d bytes, at most %d; fewer trusted subnets would help", len(b), MaxRecord)
	}
	if _, err := parseRecord(b); err != nil {
		return nil, fmt.Errorf("make record: %w", err)
	}
	return b, nil
}

func (rec Record) append(b []byte) []byte {
	b = tlv.Append(b, recordID, rec.ID[:])
	b = tlv.AppendUint64(b, recordEpoch, rec.Epoch)
	if rec.Name != "" {
		b = tlv.AppendString(b, recordName, rec.Name)
	}
	b = tlv.AppendList(b, recordEndpoints, each(rec.Endpoints, tlv.AddrPort))
	b = appendKey(b, recordNoise, rec.Noise)
	if rec.NoiseEpoch != 0 {
		b = tlv.AppendUint64(b, recordNoiseEpoch, rec.NoiseEpoch)
	}
	b = appendKey(b, recordWireGuard, rec.WireGuard)
	b = tlv.AppendList(b, recordTransports, each(rec.Transports, func(s string) []byte { return []byte(s) }))
	b = tlv.AppendList(b, recordTrusted, each(rec.Trusted, tlv.Prefix))
	if rec.MTU > 0 && rec.MTU < 1<<16 {
		b = tlv.AppendUint16(b, recordMTU, uint16(rec.MTU))
	}
	if rec.Build != "" {
		b = tlv.AppendString(b, recordBuild, rec.Build)
	}
	if rec.Abilities != 0 {
		b = tlv.AppendUint64(b, recordAbilities, rec.Abilities)
	}
	if len(rec.Hosts) > 0 {
		b = tlv.AppendList(b, recordHosts, each(rec.Hosts, netip.Addr.AsSlice))
	}
	if len(rec.Reflected) > 0 {
		b = tlv.AppendList(b, recordReflected, each(rec.Reflected, tlv.AddrPort))
	}
	if rec.NAT != peer.NATUnknown {
		b = tlv.AppendUint16(b, recordNAT, uint16(rec.NAT))
	}
	if len(rec.Homes) > 0 {
		b = tlv.AppendList(b, recordHomes, each(rec.Homes, appendHome))
	}
	if rec.TCPPort != 0 {
		b = tlv.AppendUint16(b, recordTCPPort, rec.TCPPort)
	}
	return b
}

func appendKey(b []byte, tag uint16, key [32]byte) []byte {
	if key == [32]byte{} {
		return b
	}
	return tlv.Append(b, tag, key[:])
}

func each[T any](in []T, f func(T) []byte) [][]byte {
	out := make([][]byte, len(in))
	for i, v := range in {
		out[i] = f(v)
	}
	return out
}

// clip shortens s to at most n bytes without cutting a character in two.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}

// parseRecord reads a record and does not check its signature.
func parseRecord(raw []byte) (Record, error) {
	if len(raw) > maxRecordRead || len(raw) < ed25519.SignatureSize {
		return Record{}, fmt.Errorf("parse record: %w: %d bytes", tlv.ErrMalformed, len(raw))
	}
	_, fields, err := tlv.ParseVersioned("record", raw[:len(raw)-ed25519.SignatureSize], recordVersion)
	if err != nil {
		return Record{}, err
	}
	var rec Record
	r := tlv.NewReader(fields)
	r.Require(recordID, recordEpoch)
	r.Copy(recordID, rec.ID[:])
	rec.Epoch = r.Uint64(recordEpoch)
	rec.Name = r.String(recordName, identity.MaxName)
	r.Fail(identity.CheckName(rec.Name))
	for _, b := range r.List(recordEndpoints, MaxEndpoints) {
		ep, err := tlv.ParseAddrPort(b)
		r.Fail(err)
		rec.Endpoints = append(rec.Endpoints, ep)
	}
	r.Copy(recordNoise, rec.Noise[:])
	rec.NoiseEpoch = r.Uint64(recordNoiseEpoch)
	r.Copy(recordWireGuard, rec.WireGuard[:])
	for _, b := range r.List(recordTransports, MaxTransports) {
		if len(b) > maxTransport || identity.CheckName(string(b)) != nil {
			r.Fail(errors.New("a transport's name that is too long or not printable"))
		}
		rec.Transports = append(rec.Transports, string(b))
	}
	for _, b := range r.List(recordTrusted, MaxTrusted) {
		p, err := tlv.ParsePrefix(b)
		r.Fail(err)
		rec.Trusted = append(rec.Trusted, p)
	}
	rec.MTU = int(r.Uint16(recordMTU))
	rec.Build = r.String(recordBuild, maxBuild)
	r.Fail(identity.CheckName(rec.Build))
	rec.Abilities = r.Uint64(recordAbilities)
	for _, b := range r.List(recordHosts, MaxHosts) {
		a, ok := netip.AddrFromSlice(b)
		if !ok || a.Is4In6() {
			r.Fail(errors.New("a host address of no family"))
		}
		rec.Hosts = append(rec.Hosts, a)
	}
	for _, b := range r.List(recordReflected, MaxReflected) {
		ep, err := tlv.ParseAddrPort(b)
		r.Fail(err)
		rec.Reflected = append(rec.Reflected, ep)
	}
	if nat := r.Uint16(recordNAT); nat <= uint16(peer.NATHard) { // a kind of a newer build is as good as unknown
		rec.NAT = peer.NAT(nat)
	}
	for _, b := range r.List(recordHomes, MaxHomes) {
		h, err := parseHome(b)
		r.Fail(err)
		rec.Homes = append(rec.Homes, h)
	}
	rec.TCPPort = r.Uint16(recordTCPPort)
	if rec.Epoch == 0 || rec.Epoch > maxEpoch {
		r.Fail(fmt.Errorf("epoch %d", rec.Epoch))
	}
	if err := r.Err(); err != nil {
		return Record{}, fmt.Errorf("parse record: %w: %w", tlv.ErrMalformed, err)
	}
	return rec, nil
}

func verifyRecord(pub ed25519.PublicKey, raw []byte) bool {
	body, sig := raw[:len(raw)-ed25519.SignatureSize], raw[len(raw)-ed25519.SignatureSize:]
	return identity.Verify(pub, recordDomain, body, sig)
}
