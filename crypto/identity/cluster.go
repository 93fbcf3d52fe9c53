package identity

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Defaults and limits of pools.
const (
	DefaultAtomBits  = 26      // prefix length of an atom of the default pool
	DefaultAtomBits6 = 64      // of an IPv6 pool
	MaxAtoms         = 1 << 16 // of one pool
	MaxPools         = 16
	Linked6Bits      = 96 // prefix length of a linked IPv6 prefix: an IPv4 address fits behind it
)

// DefaultPool is cut into 16,384 atoms of 64 addresses.
var DefaultPool = netip.MustParsePrefix("10.32.0.0/12")

// Pool is a range of pod addresses. It is cut into atoms of fixed size, the units of ownership.
type Pool struct {
	Prefix   netip.Prefix
	AtomBits int // prefix length of an atom
}

// NewPool cuts a prefix: IPv4 into atoms of 64 addresses and IPv6 into networks of 64 bits where that makes 64 to 65,536 of
// them, into larger or smaller ones otherwise.
func NewPool(prefix netip.Prefix) (Pool, error) {
	bits, last := DefaultAtomBits, 30
	if prefix.Addr().Is6() {
		bits, last = DefaultAtomBits6, 126
	}
	bits = min(max(bits, prefix.Bits()+6), prefix.Bits()+16, last)
	p := Pool{Prefix: prefix, AtomBits: bits}
	return p, p.check()
}

// Atoms is the number of atoms.
func (p Pool) Atoms() int { return 1 << (p.AtomBits - p.Prefix.Bits()) }

func (p Pool) check() error {
	least, most := 8, 28
	if p.Prefix.Addr().Is6() {
		least, most = 16, 120
	}
	switch bits := p.Prefix.Bits(); {
	case !p.Prefix.IsValid() || p.Prefix.Addr().Is4In6():
		return fmt.Errorf("pool %v: neither an IPv4 nor an IPv6 prefix", p.Prefix)
	case p.Prefix != p.Prefix.Masked():
		return fmt.Errorf("pool %v: bits after the prefix length, want %v", p.Prefix, p.Prefix.Masked())
	case bits < least || bits > most:
		return fmt.Errorf("pool %v: want a prefix length of %d to %d", p.Prefix, least, most)
	case p.AtomBits < bits || p.AtomBits > p.Prefix.Addr().BitLen()-2 || p.AtomBits-bits > 16:
		return fmt.Errorf("pool %v: cannot be cut into /%d", p.Prefix, p.AtomBits)
	}
	return nil
}

// Cluster is what everybody in a cluster shares from its first day on, signed by the root.
type Cluster struct {
	envelope
	Root    ed25519.PublicKey
	Founder peer.ID
	Name    string       // may be empty
	Pools   []Pool       // all IPv4 or all IPv6
	Linked6 netip.Prefix // pods' IPv6 addresses are this /96 with the IPv4 address behind; invalid: one family only
	Created time.Time
}

// ClusterSpec is what may be chosen about a cluster.
type ClusterSpec struct {
	Founder peer.ID
	Name    string
	Pools   []Pool       // all IPv4 or all IPv6; none: DefaultPool
	Linked6 netip.Prefix // a /96; zero: one derived from the root where the pools are IPv4
	IPv4    bool         // no linked IPv6
	Created time.Time
}

const (
	clusterRoot    = 1
	clusterFounder = 2
	clusterName    = 3
	clusterPools   = 4
	clusterLinked6 = 5
	clusterCreated = 6
)

// NewCluster makes and signs a cluster.
func NewCluster(root Key, spec ClusterSpec) (*Cluster, error) {
	pools := spec.Pools
	if len(pools) == 0 {
		pools = []Pool{{Prefix: DefaultPool, AtomBits: DefaultAtomBits}}
	}
	linked := spec.Linked6
	switch {
	case spec.IPv4, !linked.IsValid() && pools[0].Prefix.Addr().Is6():
		linked = netip.Prefix{}
	case !linked.IsValid():
		linked = linked6(root.Public())
	}
	var list [][]byte
	for _, p := range pools {
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("make cluster: %w", err)
		}
		list = append(list, append(tlv.Prefix(p.Prefix), byte(p.AtomBits)))
	}
	body := tlv.Append(nil, clusterRoot, root.Public())
	body = tlv.Append(body, clusterFounder, spec.Founder[:])
	body = appendName(body, clusterName, spec.Name)
	body = tlv.AppendList(body, clusterPools, list)
	body = tlv.AppendPrefix(body, clusterLinked6, linked)
	body = appendTime(body, clusterCreated, spec.Created)
	c, err := ParseCluster(seal(KindCluster, body, root))
	if err != nil {
		return nil, fmt.Errorf("make cluster: %w", err)
	}
	return c, nil
}

// ParseCluster reads what Raw gave.
func ParseCluster(raw []byte) (*Cluster, error) {
	e, err := parseEnvelope(KindCluster, raw)
	if err != nil {
		return nil, err
	}
	c := &Cluster{envelope: e, Root: make(ed25519.PublicKey, ed25519.PublicKeySize)}
	r := tlv.NewReader(e.body)
	r.Require(clusterRoot, clusterFounder, clusterPools)
	r.Copy(clusterRoot, c.Root)
	r.Copy(clusterFounder, c.Founder[:])
	c.Name = readName(r, clusterName)
	for _, b := range r.List(clusterPools, MaxPools) {
		c.Pools = append(c.Pools, readPool(r, b))
	}
	c.Linked6 = r.Prefix(clusterLinked6)
	c.Created = readTime(r, clusterCreated)
	if c.Linked6.IsValid() && (!c.Linked6.Addr().Is6() || c.Linked6.Bits() != Linked6Bits) {
		r.Fail(fmt.Errorf("linked prefix %v: want an IPv6 /%d", c.Linked6, Linked6Bits))
	}
	for i, p := range c.Pools {
		for _, q := range c.Pools[:i] {
			switch {
			case p.Prefix.Overlaps(q.Prefix):
				r.Fail(fmt.Errorf("pools %v and %v overlap", q.Prefix, p.Prefix))
			case p.Prefix.Addr().Is6() != q.Prefix.Addr().Is6():
				r.Fail(fmt.Errorf("pools %v and %v are not of one family", q.Prefix, p.Prefix))
			}
		}
		if p.Prefix.Addr().Is6() && c.Linked6.IsValid() {
			r.Fail(fmt.Errorf("linked prefix %v beside the IPv6 pool %v", c.Linked6, p.Prefix))
		}
	}
	if err := r.Err(); err != nil {
		return nil, e.malformed(err)
	}
	return c, nil
}

// ID names the cluster: the hash of everything in it.
func (c *Cluster) ID() [32]byte { return digest("weft cluster id", c.signed) }

// Verify checks the root's signature.
func (c *Cluster) Verify(root ed25519.PublicKey) error {
	if !root.Equal(c.Root) {
		return fmt.Errorf("verify cluster: %w", ErrRoot)
	}
	return c.verify(0, root)
}

// linked6 is a unique local prefix (RFC 4193) whose 40 random bits come from the root key.
func linked6(root ed25519.PublicKey) netip.Prefix {
	h := digest("weft linked ipv6", root)
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], h[:])
	return netip.PrefixFrom(netip.AddrFrom16(a), Linked6Bits)
}

func readPool(r *tlv.Reader, b []byte) Pool {
	if len(b) < 2 {
		r.Fail(errors.New("a pool without prefix"))
		return Pool{}
	}
	prefix, err := tlv.ParsePrefix(b[:len(b)-1])
	p := Pool{Prefix: prefix, AtomBits: int(b[len(b)-1])}
	if err == nil {
		err = p.check()
	}
	if err != nil {
		r.Fail(err)
	}
	return p
}

// appendTime keeps whole seconds; the zero time adds nothing.
func appendTime(b []byte, tag uint16, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	return tlv.AppendUint64(b, tag, uint64(t.Unix()))
}

func readTime(r *tlv.Reader, tag uint16) time.Time {
	if !r.Has(tag) {
		return time.Time{}
	}
	v := r.Uint64(tag)
	if v > 1<<40 { // year 36812: later seconds overflow somewhere in time.Time's callers
		r.Fail(errors.New("a time out of range"))
		return time.Time{}
	}
	return time.Unix(int64(v), 0).UTC()
}
