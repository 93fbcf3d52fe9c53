package mesh

import (
	"errors"
	"net/netip"

	"github.com/hashicorp/memberlist"

	"weft/mesh/peer"
)

// Limits of what memberlist is let to believe.
const (
	maxMeta      = 64  // bytes; nothing is said there yet
	maxStrangers = 128 // names without certificate: certificate and rumour of a new member race
)

// delegate is what memberlist calls. All of it runs under memberlist's locks or in its packet path: it copies, hands
// over and returns, and never calls memberlist.
type delegate struct{ mesh *Mesh }

var (
	_ memberlist.Delegate      = (*delegate)(nil)
	_ memberlist.EventDelegate = (*delegate)(nil)
	_ memberlist.AliveDelegate = (*delegate)(nil)
)

func (d *delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg gets user messages, which do not name their sender: none are defined.
func (d *delegate) NotifyMsg([]byte) { d.mesh.count.unknown.Add(1) }

func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState adds our digests to a state exchange, and our record: whoever we reached must know where to reach us, and
// could not ask us for it otherwise.
func (d *delegate) LocalState(bool) []byte {
	return d.mesh.sync.introduction(d.mesh.self)
}

// MergeRemoteState hears the other's digests. The name in it is not authenticated: believing a false one costs a pull
// from the member that it names.
func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	from, digests, err := parseDigests(b)
	switch {
	case err != nil:
		d.mesh.count.malformed.Add(1)
	case from == d.mesh.self || !d.mesh.roster.Member(from):
		d.mesh.count.refused.Add(1)
	default:
		d.mesh.takeRecord(b)
		d.mesh.sync.hear(from, digests)
	}
}

// NotifyAlive refuses what would harm: names that are no ID or are not on the roster (but for a few, whose certificate
// may be on its way), addresses that are not the ID's own, and protocol versions that would make memberlist refuse every
// state exchange of the whole cluster from then on.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	id, err := peer.Parse(n.Name)
	if err != nil {
		return err
	}
	if addr, ok := netip.AddrFromSlice(n.Addr); !ok || addr != gossipAddr(id) || n.Port != gossipPort {
		return errors.New("not the address of this node")
	}
	const spoken = memberlist.ProtocolVersion2Compatible
	if n.PMin > spoken || n.PMax < spoken || n.PCur != spoken || n.DMin != 0 || n.DCur != 0 {
		return errors.New("versions that do not fit this cluster")
	}
	if len(n.Meta) > maxMeta {
		return errors.New("too much metadata")
	}
	if d.mesh.roster.Removed(id) || !d.mesh.roster.Has(id) && !d.mesh.admitStranger(id) {
		return ErrNotMember
	}
	return nil
}

func (d *delegate) NotifyJoin(n *memberlist.Node)  { d.mesh.hearRumour(n.Name, true) }
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.mesh.hearRumour(n.Name, false) }
func (d *delegate) NotifyUpdate(*memberlist.Node)  {}
