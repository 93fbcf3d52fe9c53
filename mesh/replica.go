package mesh

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Replica is a state that merges: whatever the order in which nodes merge each other's snapshots, all end up alike. The
// methods may be called from any goroutine.
type Replica interface {
	// Digest is equal at two nodes when their states are.
	Digest() []byte
	// Snapshot is the whole state, at most MaxSnapshot bytes.
	Snapshot() []byte
	// Merge takes every good part of a snapshot; the error tells of the bad ones. The bytes are not changed later.
	Merge(b []byte) error
}

// Differ is a Replica that need not travel whole. Merge takes what Delta gives, too.
type Differ interface {
	Replica
	// Summary describes the state in a few kilobytes.
	Summary() []byte
	// Delta is at least a part of what a node with that summary lacks, and not empty when it lacks anything.
	Delta(summary []byte) []byte
}

var (
	_ Differ = (*Roster)(nil)
	_ Differ = recordsReplica{}
)

// Limits of replication.
const (
	pullTime = 20 * time.Second // of one pull

	maxReplicas    = 32
	maxReplicaName = 32
	maxSummary     = 64 << 10
)

// Methods of calls.
const (
	methodPull    = "mesh.pull"
	methodDigests = "mesh.digests"
)

// Digest message, in datagrams and in memberlist's state exchange, and the messages of a pull.
const (
	digestVersion = tlv.Version(0x10)
	digestFrom    = 1 // node; only where the carrier does not say it
	digestSums    = 2 // list of sum(16) name
	digestRecord  = 3 // the sender's own record; only where the carrier is a stream
	digestNews    = 4 // list of length(1) name content; only in datagrams

	pullVersion = tlv.Version(0x10)
	pullName    = 1
	pullSummary = 2 // absent: send a snapshot
	pullSum     = 3 // in the answer: the state that the content was taken from
	pullContent = 4 // in the answer
)

// Replicate registers a state to be kept alike on all members. Names are part of the protocol.
func (m *Mesh) Replicate(name string, r Replica) { m.sync.register(name, r) }

// Changed says that the state of that name has changed here and should spread.
func (m *Mesh) Changed(name string) { m.sync.changed(name) }

// Snapshot is the state of that name, for a node that joins; nil when there is none.
func (m *Mesh) Snapshot(name string) []byte {
	r := m.sync.replica(name)
	if r == nil {
		return nil
	}
	return r.Snapshot()
}

// Digest names the state of that name as it is here; nil when there is none.
func (m *Mesh) Digest(name string) []byte {
	r := m.sync.replica(name)
	if r == nil {
		return nil
	}
	return r.Digest()
}

// digests is the state of all replicas.
func (s *syncer) digests() map[string]sum {
	s.mu.Lock()
	replicas := maps.Clone(s.replicas)
	s.mu.Unlock()
	d := make(map[string]sum, len(replicas))
	for name, r := range replicas {
		d[name] = sumOf(r)
	}
	return d
}

func sumOf(r Replica) sum {
	h := sha256.Sum256(r.Digest())
	return sum(h[:len(sum{})])
}

// digestMessage encodes digests; from is zero where the carrier names the sender.
func digestMessage(from peer.ID, d map[string]sum) []byte {
	b := tlv.AppendVersion(nil, digestVersion)
	if !from.IsZero() {
		b = tlv.Append(b, digestFrom, from[:])
	}
	var list [][]byte
	for _, name := range slices.Sorted(maps.Keys(d)) {
		v := d[name]
		list = append(list, append(v[:], name...))
	}
	return tlv.AppendList(b, digestSums, list)
}

func parseDigests(b []byte) (from peer.ID, d map[string]sum, err error) {
	_, fields, err := tlv.ParseVersioned("digests", b, digestVersion)
	if err != nil {
		return from, nil, err
	}
	r := tlv.NewReader(fields)
	r.Copy(digestFrom, from[:])
	d = map[string]sum{}
	for _, item := range r.List(digestSums, maxReplicas) {
		if len(item) <= len(sum{}) || len(item) > len(sum{})+maxReplicaName {
			r.Fail(fmt.Errorf("%w: a digest of %d bytes", tlv.ErrMalformed, len(item)))
			break
		}
		d[string(item[len(sum{}):])] = sum(item)
	}
	return from, d, r.Err()
}

// pull asks a member for its state and merges the answer. It tells the state that the answer was taken from, and whether
// the answer was so long that there may be more.
func (s *syncer) pull(ctx context.Context, from peer.ID, name string, r Replica) (theirs sum, more bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, pullTime)
	defer cancel()
	req := tlv.AppendString(tlv.AppendVersion(nil, pullVersion), pullName, name)
	if d, ok := r.(Differ); ok {
		req = tlv.Append(req, pullSummary, d.Summary())
	}
	ans, err := s.mesh.call(ctx, from, methodPull, req, MaxSnapshot)
	if err != nil {
		return sum{}, false, err
	}
	_, fields, err := tlv.ParseVersioned("state", ans, pullVersion)
	if err != nil {
		return sum{}, false, err
	}
	reader := tlv.NewReader(fields)
	reader.Copy(pullSum, theirs[:])
	content := reader.Bytes(pullContent, MaxSnapshot)
	if err := reader.Err(); err != nil {
		return sum{}, false, fmt.Errorf("read state: %w", err)
	}
	return theirs, len(content) >= maxDelta, r.Merge(content)
}

// servePull is the handler of methodPull.
func (s *syncer) servePull(_ context.Context, _ peer.ID, req []byte) ([]byte, error) {
	_, fields, err := tlv.ParseVersioned("request", req, pullVersion)
	if err != nil {
		return nil, err
	}
	reader := tlv.NewReader(fields)
	name := reader.String(pullName, maxReplicaName)
	summary := reader.Bytes(pullSummary, maxSummary)
	if err := reader.Err(); err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	r := s.replica(name)
	if r == nil {
		return nil, &Fault{CodeUnknown, fmt.Sprintf("this node keeps no state %q; it may be older", name)}
	}
	theirs := sumOf(r)
	var content []byte
	if d, ok := r.(Differ); ok && reader.Has(pullSummary) {
		content = d.Delta(summary)
	} else {
		content = r.Snapshot()
	}
	b := tlv.Append(tlv.AppendVersion(nil, pullVersion), pullSum, theirs[:])
	return tlv.Append(b, pullContent, content), nil
}
