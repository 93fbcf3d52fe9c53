package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"weft/crypto/tlv"
	"weft/ipam/ring"
	"weft/mesh/peer"
)

// The format of stored values. A store whose metaFormat has another major number is not touched.
const (
	storeVersion = tlv.Version(0x10)
	valueVersion = tlv.Version(0x10)

	metaFormat      = "format"
	metaIncarnation = "incarnation"
	metaStopped     = "stopped"
	metaRemoved     = "removed" // stopped, because this node is no member any more
	metaNovice      = "novice"  // since the first start, until a quorum has told of all starts before the join
	metaPromise     = "promise" // the proposal with the highest number that was promised

	tagNumber   = 1 // of a number
	tagText     = 1 // of a text
	tagProposal = 1 // of a promise

	tagClaimHost      = 1
	tagClaimContainer = 2
	tagClaimIfName    = 3
	tagClaimNetNS     = 4
	tagClaimPod       = 5
	tagClaimCreated   = 6 // nanoseconds since 1970, two's complement
	tagClaimNetwork   = 7
	tagClaimInode     = 8
	tagClaimAliases   = 9
	tagClaimMTU       = 10
	tagClaimMAC       = 11

	tagHeardIncarnation = 1
	tagHeardStart       = 2

	tagServedRequest = 1
	tagServedGrants  = 2
)

// Limits of stored values.
const (
	maxText   = 4096 // bytes of any string
	maxServed = 4096 // grants of one answer
)

// state is everything that is durable, as it was loaded.
type state struct {
	format      bool // the store has been written by this or an older weft
	incarnation uint64
	stopped     string // why this identity must not write any more; empty normally
	removed     bool   // stopped because it was removed
	novice      bool
	promised    *ring.Proposal
	refused     map[peer.ID]uint64
	taken       []ring.ID
	ring        *ring.Ring
	claims      []claim
	resting     []netip.Addr
	heard       map[peer.ID]start
	served      map[peer.ID]served
}

// claim is a Claim or the host's address.
type claim struct {
	Claim
	host bool
}

// start names one start of a member: the incarnation counts them, number is drawn anew for each. Two starts with the
// same incarnation are two lives of one disk.
type start struct{ incarnation, number uint64 }

// served is the answer to a member's last request for space.
type served struct {
	request requestID
	grants  []ring.ID
}

type requestID [16]byte

// load reads a store.
func load(s Store, u *ring.Universe, linked netip.Prefix) (*state, error) {
	st := &state{heard: make(map[peer.ID]start), served: make(map[peer.ID]served), refused: make(map[peer.ID]uint64)}
	var grants, views [][]byte
	err := s.Load(func(table Table, key, value []byte) (err error) {
		switch table {
		case tableMeta:
			err = st.loadMeta(string(key), value)
		case tableGrant:
			grants = append(grants, append([]byte(nil), value...))
		case tableView:
			views = append(views, append([]byte(nil), value...))
		case tableClaim:
			var c claim
			if c, err = parseClaim(key, value, linked); err == nil {
				st.claims = append(st.claims, c)
			}
		case tableRest:
			var a netip.Addr
			if a, err = parseAddr(key); err == nil {
				st.resting = append(st.resting, a)
			}
		case tableHeard:
			var id peer.ID
			if id, err = parsePeer(key); err == nil {
				st.heard[id], err = parseStart(value)
			}
		case tableServed:
			var id peer.ID
			if id, err = parsePeer(key); err == nil {
				st.served[id], err = parseServed(value)
			}
		case tableRefuse:
			var id peer.ID
			if id, err = parsePeer(key); err == nil {
				st.refused[id], err = parseNumber("a refusal", value)
			}
		case tableTaken:
			if len(key) != len(ring.ID{}) {
				err = fmt.Errorf("a grant's name of %d bytes", len(key))
				break
			}
			st.taken = append(st.taken, ring.ID(key))
		}
		if _, newer := errors.AsType[*tlv.VersionError](err); newer {
			return err
		}
		if err != nil {
			return fmt.Errorf("%w: table %s, key %x: %w", ErrDamaged, table, key, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var rejected []ring.Rejection
	st.ring, rejected = ring.Restore(u, grants, views)
	for _, r := range rejected {
		// Without one of its own grants this node would give away the same block twice.
		return nil, fmt.Errorf("%w: %w", ErrDamaged, r.Err)
	}
	return st, nil
}

func (st *state) loadMeta(key string, value []byte) error {
	switch key {
	case metaFormat:
		st.format = true
		_, _, err := tlv.ParseVersioned("the address store", value, storeVersion)
		return err
	case metaIncarnation:
		n, err := parseNumber("an incarnation", value)
		st.incarnation = n
		return err
	case metaRemoved:
		st.removed = true
	case metaNovice:
		st.novice = true
	case metaPromise:
		r, err := parseValue("a promise", value)
		if err != nil {
			return err
		}
		r.Require(tagProposal)
		raw := r.Bytes(tagProposal, len(value))
		if err := r.Err(); err != nil {
			return err
		}
		st.promised, err = ring.ParseProposal(raw)
		return err
	case metaStopped:
		r, err := parseValue("a reason", value)
		if err != nil {
			return err
		}
		st.stopped = r.String(tagText, maxText)
		if st.stopped == "" {
			r.Fail(errors.New("empty"))
		}
		return r.Err()
	}
	return nil
}

func parseValue(what string, value []byte) (*tlv.Reader, error) {
	_, f, err := tlv.ParseVersioned(what, value, valueVersion)
	if err != nil {
		return nil, err
	}
	return tlv.NewReader(f), nil
}

func newValue() []byte { return tlv.AppendVersion(nil, valueVersion) }

// parseNumber reads a value that is one number.
func parseNumber(what string, value []byte) (uint64, error) {
	r, err := parseValue(what, value)
	if err != nil {
		return 0, err
	}
	r.Require(tagNumber)
	n := r.Uint64(tagNumber)
	return n, r.Err()
}

func putPromise(p *ring.Proposal) Op {
	return Op{tableMeta, []byte(metaPromise), tlv.Append(newValue(), tagProposal, p.Raw())}
}

func putRefused(id peer.ID, view uint64) Op {
	return Op{tableRefuse, id[:], tlv.AppendUint64(newValue(), tagNumber, view)}
}

func deleteRefused(id peer.ID) Op { return Op{Table: tableRefuse, Key: id[:]} }

func putRemoved() Op { return Op{tableMeta, []byte(metaRemoved), newValue()} }

func putNovice() Op    { return Op{tableMeta, []byte(metaNovice), newValue()} }
func deleteNovice() Op { return Op{Table: tableMeta, Key: []byte(metaNovice)} }

func putTaken(id ring.ID) Op    { return Op{tableTaken, id[:], newValue()} }
func deleteTaken(id ring.ID) Op { return Op{Table: tableTaken, Key: id[:]} }

func putFormat() Op {
	return Op{tableMeta, []byte(metaFormat), tlv.AppendVersion(nil, storeVersion)}
}

func putIncarnation(n uint64) Op {
	return Op{tableMeta, []byte(metaIncarnation), tlv.AppendUint64(newValue(), tagNumber, n)}
}

func putStopped(reason string) Op {
	return Op{tableMeta, []byte(metaStopped), tlv.AppendString(newValue(), tagText, reason)}
}

func putGrant(g *ring.Grant) Op {
	id := g.ID()
	return Op{tableGrant, id[:], g.Raw()}
}

func deleteGrant(g *ring.Grant) Op {
	id := g.ID()
	return Op{Table: tableGrant, Key: id[:]}
}

func putClaim(c claim) Op {
	v := newValue()
	v = tlv.AppendBool(v, tagClaimHost, c.host)
	v = tlv.AppendString(v, tagClaimContainer, c.Container)
	v = tlv.AppendString(v, tagClaimIfName, c.IfName)
	v = tlv.AppendString(v, tagClaimNetNS, c.NetNS)
	v = tlv.AppendString(v, tagClaimPod, c.Pod)
	v = tlv.AppendUint64(v, tagClaimCreated, uint64(c.Created.UnixNano()))
	v = tlv.AppendString(v, tagClaimNetwork, c.Network)
	v = tlv.AppendUint64(v, tagClaimInode, c.Inode)
	v = tlv.AppendString(v, tagClaimAliases, c.Aliases)
	if c.MTU != 0 {
		v = tlv.AppendUint64(v, tagClaimMTU, uint64(c.MTU))
	}
	if c.MAC != "" {
		v = tlv.AppendString(v, tagClaimMAC, c.MAC)
	}
	return Op{tableClaim, c.Addr().AsSlice(), v}
}

func deleteClaim(c claim) Op { return Op{Table: tableClaim, Key: c.Addr().AsSlice()} }

func parseClaim(key, value []byte, linked netip.Prefix) (claim, error) {
	var c claim
	r, err := parseValue("a claim", value)
	if err != nil {
		return c, err
	}
	addr, err := parseAddr(key)
	if err != nil {
		return c, err
	}
	c.Claim = c.at(addr, linked)
	c.host = r.Bool(tagClaimHost)
	c.Container = r.String(tagClaimContainer, maxText)
	c.IfName = r.String(tagClaimIfName, maxText)
	c.NetNS = r.String(tagClaimNetNS, maxText)
	c.Pod = r.String(tagClaimPod, maxText)
	c.Created = time.Unix(0, int64(r.Uint64(tagClaimCreated))).UTC()
	c.Network = r.String(tagClaimNetwork, maxText)
	c.Aliases = r.String(tagClaimAliases, maxText)
	c.Inode = r.Uint64(tagClaimInode)
	c.MTU = int(min(r.Uint64(tagClaimMTU), 1<<16))
	c.MAC = r.String(tagClaimMAC, maxText)
	if !c.host && c.Container == "" {
		r.Fail(errors.New("a claim of nobody"))
	}
	return c, r.Err()
}

func putRest(a netip.Addr) Op    { return Op{tableRest, a.AsSlice(), newValue()} }
func deleteRest(a netip.Addr) Op { return Op{Table: tableRest, Key: a.AsSlice()} }

func putHeard(id peer.ID, s start) Op {
	v := tlv.AppendUint64(newValue(), tagHeardIncarnation, s.incarnation)
	return Op{tableHeard, id[:], tlv.AppendUint64(v, tagHeardStart, s.number)}
}

func parseStart(value []byte) (start, error) {
	r, err := parseValue("a start", value)
	if err != nil {
		return start{}, err
	}
	s := start{r.Uint64(tagHeardIncarnation), r.Uint64(tagHeardStart)}
	return s, r.Err()
}

func putServed(id peer.ID, s served) Op {
	v := tlv.Append(newValue(), tagServedRequest, s.request[:])
	var ids [][]byte
	for _, g := range s.grants {
		ids = append(ids, g[:])
	}
	return Op{tableServed, id[:], tlv.AppendList(v, tagServedGrants, ids)}
}

func parseServed(value []byte) (served, error) {
	var s served
	r, err := parseValue("a request", value)
	if err != nil {
		return s, err
	}
	r.Require(tagServedRequest)
	r.Copy(tagServedRequest, s.request[:])
	for _, b := range r.List(tagServedGrants, maxServed) {
		if len(b) != len(ring.ID{}) {
			r.Fail(fmt.Errorf("a grant's name of %d bytes", len(b)))
			continue
		}
		s.grants = append(s.grants, ring.ID(b))
	}
	return s, r.Err()
}

func parseAddr(key []byte) (netip.Addr, error) {
	addr, ok := netip.AddrFromSlice(key)
	if !ok || addr.Is4In6() {
		return netip.Addr{}, fmt.Errorf("an address of %d bytes", len(key))
	}
	return addr, nil
}

func parsePeer(key []byte) (peer.ID, error) {
	if len(key) != peer.IDSize {
		return peer.ID{}, fmt.Errorf("a node ID of %d bytes", len(key))
	}
	return peer.ID(key), nil
}

func putView(v *ring.View) Op {
	id := v.ID()
	return Op{tableView, id[:], v.Raw()}
}

func deleteView(v *ring.View) Op {
	id := v.ID()
	return Op{Table: tableView, Key: id[:]}
}
