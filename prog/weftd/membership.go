package weftd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/ipam"
	"weft/mesh/join"
	"weft/mesh/peer"
)

// membership is what makes this state a member: written once, in one piece, when a cluster was made or joined. It is the
// point of no return of both; a crash before it leaves a node that knows nobody, and tries again with the same key.
//
//	version(1)  fields: cluster, certificate, items (list), records, ring, sponsor, its endpoint, advertised (list)
type membership struct {
	cluster     *identity.Cluster
	certificate *identity.Certificate
	items       [][]byte // of the roster at that time, our certificate among them
	records     []byte   // snapshot; the mesh has newer ones after a while
	ring        []byte   // snapshot; the allocator has a newer one after a while
	sponsor     peer.ID  // zero at the founder
	endpoint    netip.AddrPort
	advertise   []netip.AddrPort // what init or join was told; the configuration wins
}

const (
	membershipVersion = tlv.Version(0x10)

	membershipCluster     = 1
	membershipCertificate = 2
	membershipItems       = 3
	membershipRecords     = 4
	membershipRing        = 5
	membershipSponsor     = 6
	membershipEndpoint    = 7
	membershipAdvertise   = 8

	maxMembershipItems = 1 << 20
	maxAdvertise       = 64
)

func (m *membership) append(b []byte) []byte {
	b = tlv.AppendVersion(b, membershipVersion)
	b = tlv.Append(b, membershipCluster, m.cluster.Raw())
	b = tlv.Append(b, membershipCertificate, m.certificate.Raw())
	b = tlv.AppendList(b, membershipItems, m.items)
	b = tlv.Append(b, membershipRecords, m.records)
	b = tlv.Append(b, membershipRing, m.ring)
	if !m.sponsor.IsZero() {
		b = tlv.Append(b, membershipSponsor, m.sponsor[:])
		b = tlv.Append(b, membershipEndpoint, tlv.AddrPort(m.endpoint))
	}
	if len(m.advertise) > 0 {
		var list [][]byte
		for _, ap := range m.advertise {
			list = append(list, tlv.AddrPort(ap))
		}
		b = tlv.AppendList(b, membershipAdvertise, list)
	}
	return b
}

// pools lists all pools of the cluster, the linked one last.
func (m *membership) pools() []netip.Prefix {
	var all []netip.Prefix
	for _, p := range m.cluster.Pools {
		all = append(all, p.Prefix)
	}
	if m.cluster.Linked6.IsValid() {
		all = append(all, m.cluster.Linked6)
	}
	return all
}

// native reports whether the cluster has IPv6 pools, and so nothing else.
func (m *membership) native() bool { return m.cluster.Pools[0].Prefix.Addr().Is6() }

// advertised is where others are told to find this node, before what it finds out itself.
func (m *membership) advertised(cfg Config) []netip.AddrPort {
	if len(cfg.Advertise) > 0 {
		return cfg.Advertise
	}
	return m.advertise
}

func parseMembership(b []byte) (*membership, error) {
	_, fields, err := tlv.ParseVersioned("membership", b, membershipVersion)
	if err != nil {
		return nil, err
	}
	r := tlv.NewReader(fields)
	r.Require(membershipCluster, membershipCertificate)
	m := &membership{}
	raw, _ := fields.Get(membershipCluster)
	if m.cluster, err = identity.ParseCluster(raw); err != nil {
		return nil, err
	}
	raw, _ = fields.Get(membershipCertificate)
	if m.certificate, err = identity.ParseCertificate(raw); err != nil {
		return nil, err
	}
	m.items = r.List(membershipItems, maxMembershipItems)
	m.records, _ = fields.Get(membershipRecords)
	m.ring, _ = fields.Get(membershipRing)
	if r.Has(membershipSponsor) {
		r.Copy(membershipSponsor, m.sponsor[:])
		raw, _ := fields.Get(membershipEndpoint)
		m.endpoint, err = tlv.ParseAddrPort(raw)
		r.Fail(err)
	}
	for _, raw := range r.List(membershipAdvertise, maxAdvertise) {
		ap, err := tlv.ParseAddrPort(raw)
		r.Fail(err)
		m.advertise = append(m.advertise, ap)
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("parse membership: %w", err)
	}
	return m, nil
}

// found makes a cluster with this node as founder.
func found(node, root identity.Key, name string, spec identity.ClusterSpec, now time.Time) (*membership, error) {
	spec.Founder, spec.Created = node.ID(), now
	cluster, err := identity.NewCluster(root, spec)
	if err != nil {
		return nil, err
	}
	certificate, err := identity.Found(root, node, name, now)
	if err != nil {
		return nil, err
	}
	delegation, err := identity.Delegate(root, node.Public(), now)
	if err != nil {
		return nil, err
	}
	return &membership{
		cluster:     cluster,
		certificate: certificate,
		items:       [][]byte{certificate.Raw(), delegation.Raw()},
	}, nil
}

// joined keeps the result of a join.
func joined(r *join.Result) *membership {
	return &membership{
		cluster:     r.Cluster,
		certificate: r.Certificate,
		items:       append([][]byte{r.Certificate.Raw()}, r.Items...),
		records:     r.Records,
		ring:        r.Ring,
		sponsor:     r.Sponsor,
		endpoint:    r.Endpoint,
	}
}

// loadMembership reads the state's membership and checks that it belongs to the state's key; nil when there is none.
func loadMembership(s *stateDir) (*membership, identity.Key, error) {
	b, err := s.read(fileMembership)
	if errors.Is(err, errNoState) {
		return nil, identity.Key{}, nil
	}
	if err != nil {
		return nil, identity.Key{}, err
	}
	m, err := parseMembership(b)
	if err != nil {
		return nil, identity.Key{}, fmt.Errorf("read %s: %w", s.file(fileMembership), err)
	}
	key, err := s.key(fileIdentity)
	if err != nil {
		return nil, identity.Key{}, err
	}
	if m.certificate.ID() != key.ID() {
		return nil, identity.Key{}, fmt.Errorf("%s is the certificate of %s, and %s the key of %s: the folder was mixed "+
			"from two nodes", s.file(fileMembership), m.certificate.ID(), s.file(fileIdentity), key.ID())
	}
	if err := m.cluster.Verify(m.cluster.Root); err != nil {
		return nil, identity.Key{}, err
	}
	if err := m.certificate.Verify(m.cluster.Root); err != nil {
		return nil, identity.Key{}, err
	}
	if st, err := os.Stat(s.file(fileDB)); err != nil || st.Size() == 0 {
		// A node that forgot what it gave and lent would do so again: without its book it is another node. An empty file is
		// what a file system may make of it after a crash, and would be taken for a new book.
		return nil, identity.Key{}, fmt.Errorf("%s is gone, the book of this node's addresses: move %s away and join as a "+
			"new node", s.file(fileDB), s.path)
	}
	return m, key, nil
}

// admit makes this state a member's: the book of addresses first, because a membership without one is a lost book.
func (m *membership) admit(s *stateDir) error {
	book, err := ipam.OpenBolt(s.file(fileDB))
	if err != nil {
		return err
	}
	if err := book.Close(); err != nil {
		return fmt.Errorf("make the book of addresses: %w", err)
	}
	return s.write(fileMembership, m.append(nil))
}
