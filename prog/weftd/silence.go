package weftd

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Members that nobody hears any more are removed by an issuer, each after --remove-after. What counts is how long this
// daemon was there to listen, added up over its runs and never taken from a wall clock: a clock that is set, a machine
// that sleeps and a daemon that is down make a removal late, never early. And what one issuer does not hear is not
// enough: a quorum of the voters must be there and not hear it either.
const (
	DefaultRemoveAfter = 30 * 24 * time.Hour
	ephemeralSilence   = 10 * time.Minute // of a member without a vote, where that is shorter

	silenceTickMax  = time.Minute
	silenceTickMin  = 250 * time.Millisecond
	silenceSaves    = 4               // ticks from one save to the next
	silenceFresh    = 5 * time.Minute // of this run, at most: after a start others get time to be heard
	silenceYieldMax = time.Minute     // for each more senior issuer that is alive
	heardTime       = 3 * time.Second // for a member to say whom it hears
)

// silent is how long a member was not heard.
type silent struct {
	total time.Duration // over all runs
	run   time.Duration // in this one
}

// silences counts for each member. It is a value without clock or lock.
type silences map[peer.ID]silent

// listen notes that members were listened to for a while. One that is heard begins anew; others than these are forgotten.
func (s silences) listen(d time.Duration, members []peer.Info, heard func(peer.Info) bool) {
	present := peer.Set{}
	for _, m := range members {
		present.Add(m.ID)
		if heard(m) {
			delete(s, m.ID)
			continue
		}
		was := s[m.ID]
		s[m.ID] = silent{was.total + d, was.run + d}
	}
	maps.DeleteFunc(s, func(id peer.ID, _ silent) bool { return !present.Has(id) })
}

// due lists those who were silent for longer than limit, the longest first.
func (s silences) due(members []peer.Info, limit func(peer.Info) time.Duration) []peer.Info {
	due := slices.DeleteFunc(slices.Clone(members), func(m peer.Info) bool {
		l := limit(m)
		return s[m.ID].total < l || s[m.ID].run < min(l/4, silenceFresh)
	})
	slices.SortFunc(due, func(a, b peer.Info) int { return cmp.Compare(s[b.ID].total, s[a.ID].total) })
	return due
}

// fileSilence keeps the counts over a restart.
//
//	version(1)  fields: list of node(16) seconds(4)
const (
	silenceVersion = tlv.Version(0x10)
	silenceList    = 1
	maxSilences    = 1 << 16
)

func (s silences) append(b []byte) []byte {
	var list [][]byte
	for _, id := range slices.SortedFunc(maps.Keys(s), peer.ID.Compare) {
		seconds := uint32(min(s[id].total/time.Second, 1<<31))
		list = append(list, binary.BigEndian.AppendUint32(id[:], seconds))
		if len(list) == maxSilences {
			break
		}
	}
	return tlv.AppendList(tlv.AppendVersion(b, silenceVersion), silenceList, list)
}

func parseSilences(b []byte) (silences, error) {
	_, fields, err := tlv.ParseVersioned("silences", b, silenceVersion)
	if err != nil {
		return nil, err
	}
	r := tlv.NewReader(fields)
	s := silences{}
	for _, e := range r.List(silenceList, maxSilences) {
		if len(e) < peer.IDSize+4 {
			r.Fail(errors.New("an entry that is cut off"))
			break
		}
		seconds := binary.BigEndian.Uint32(e[peer.IDSize:])
		s[peer.ID(e[:peer.IDSize])] = silent{total: time.Duration(seconds) * time.Second}
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("parse silences: %w", err)
	}
	return s, nil
}

// removeAfter is the setting with its default.
func (c Config) removeAfter() time.Duration { return cmp.Or(c.RemoveAfter, DefaultRemoveAfter) }

// silenceOf is how long this member may be silent.
func (n *node) silenceOf(m peer.Info) time.Duration {
	if m.Ephemeral {
		return min(n.cfg.removeAfter(), ephemeralSilence)
	}
	return n.cfg.removeAfter()
}

// watchSilence counts and removes until ctx ends.
func (n *node) watchSilence(ctx context.Context) error {
	if n.cfg.RemoveAfter < 0 {
		<-ctx.Done()
		return nil
	}
	s := silences{}
	if b, err := n.state.read(fileSilence); err == nil {
		if s, err = parseSilences(b); err != nil {
			n.log.Warn("the silence of members begins anew", "err", err)
			s = silences{}
		}
	}
	every := min(max(min(n.cfg.removeAfter(), ephemeralSilence)/20, silenceTickMin), silenceTickMax)
	tick := time.NewTicker(every)
	defer tick.Stop()
	last := time.Now() // differences of the monotonic clock: setting the wall clock does nothing
	for turn := 1; ; turn++ {
		select {
		case <-ctx.Done():
			return n.state.write(fileSilence, s.append(nil))
		case <-tick.C:
		}
		now := time.Now()
		listened := min(now.Sub(last), 2*every) // what is more was spent stopped, deaf
		last = now
		members := n.remaining()
		s.listen(listened, members, n.lives)
		if turn%silenceSaves == 0 {
			if err := n.state.write(fileSilence, s.append(nil)); err != nil {
				n.log.Warn("silence of members not saved", "err", err)
			}
		}
		if due := s.due(members, n.silenceOf); len(due) > 0 {
			n.removeSilent(ctx, s, due)
		}
	}
}

// remaining lists the other members that were not removed.
func (n *node) remaining() []peer.Info {
	return slices.DeleteFunc(n.mesh.Peers(), func(p peer.Info) bool { return p.State == peer.Removed })
}

// removeSilent removes those of due that nobody hears, if this node is an issuer and it is its turn: the most senior
// issuer that is alive goes first, each other one waits a while longer.
func (n *node) removeSilent(ctx context.Context, s silences, due []peer.Info) {
	roster := n.mesh.Roster()
	d, ok := roster.Delegation(n.key.ID())
	if !ok {
		return
	}
	wait := time.Duration(n.moreSenior()) * min(n.cfg.removeAfter()/10, silenceYieldMax)
	due = slices.DeleteFunc(due, func(m peer.Info) bool { return s[m.ID].total < n.silenceOf(m)+wait })
	if len(due) == 0 {
		return
	}
	heard, quorum := n.askWhoHears(ctx, due)
	if !quorum {
		n.log.Info("silent members not removed: too few voters are here to say that they do not hear them either", "count", len(due))
		return
	}
	by := identity.Issuer{Key: n.key, Delegation: d}
	var items []identity.Item
	count := 0
	for _, m := range due {
		if heard.Has(m.ID) || count == maxRemoved {
			continue
		}
		signed, err := n.silenced(by, m.ID, time.Now())
		if err != nil {
			n.log.Error("removal not signed", "peer", m.ID, "err", err)
			return
		}
		items = append(items, signed...)
		count++
		n.log.Warn("remove silent member", "peer", m.ID, "name", m.Name, "after", s[m.ID].total)
	}
	if len(items) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, tellRemovalTime)
	defer cancel()
	if _, err := n.mesh.Tell(ctx, items...); err != nil {
		n.log.Error("silent members not removed", "err", err)
	}
}

// moreSenior counts the issuers that are alive and go before this one.
func (n *node) moreSenior() int {
	own, _ := n.mesh.Peer(n.key.ID())
	count := 0
	for _, id := range n.mesh.Roster().Issuers() {
		other, ok := n.mesh.Peer(id)
		if ok && id != n.key.ID() && n.lives(other) && (other.JoinSeq < own.JoinSeq || other.JoinSeq == own.JoinSeq && id.Compare(own.ID) < 0) {
			count++
		}
	}
	return count
}

// methodHeard asks a member whom of a list it hears.
//
//	request, answer  version(1)  fields: nodes(16 each)
const (
	methodHeard  = "weftd.heard"
	heardVersion = tlv.Version(0x10)
	heardNodes   = 1
	maxHeard     = 1 << 14
)

// askWhoHears asks everybody who is alive whom of these they hear, and says whether those who answered, with this node, are
// a quorum.
func (n *node) askWhoHears(ctx context.Context, of []peer.Info) (heard peer.Set, quorum bool) {
	var ids []peer.ID
	for _, m := range of[:min(len(of), maxHeard)] {
		ids = append(ids, m.ID)
	}
	req := appendNodes(ids)
	heard = peer.Set{}
	answered := peer.SetOf(n.key.ID())
	var mu sync.Mutex // guards heard, answered
	var calls sync.WaitGroup
	for _, m := range n.remaining() {
		if m.State != peer.Alive || m.Ephemeral {
			continue
		}
		calls.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, heardTime)
			defer cancel()
			b, err := n.mesh.Call(ctx, m.ID, methodHeard, req)
			var told []peer.ID
			if err == nil {
				told, err = parseNodes(b)
			}
			if err != nil {
				n.log.Debug("member did not say whom it hears", "peer", m.ID, "err", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			answered.Add(m.ID)
			for _, id := range told {
				heard.Add(id)
			}
		})
	}
	calls.Wait()
	return heard, peer.Quorum(n.electorate(), answered)
}

// serveHeard is the handler of methodHeard.
func (n *node) serveHeard(_ context.Context, _ peer.ID, req []byte) ([]byte, error) {
	ids, err := parseNodes(req)
	if err != nil {
		return nil, err
	}
	return appendNodes(slices.DeleteFunc(ids, func(id peer.ID) bool {
		info, ok := n.mesh.Peer(id)
		return !ok || !n.lives(info)
	})), nil
}

func appendNodes(ids []peer.ID) []byte {
	b := make([]byte, 0, len(ids)*peer.IDSize)
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return tlv.Append(tlv.AppendVersion(nil, heardVersion), heardNodes, b)
}

func parseNodes(b []byte) ([]peer.ID, error) {
	_, fields, err := tlv.ParseVersioned("list of nodes", b, heardVersion)
	if err != nil {
		return nil, err
	}
	r := tlv.NewReader(fields)
	raw := r.Bytes(heardNodes, maxHeard*peer.IDSize)
	if len(raw)%peer.IDSize != 0 {
		r.Fail(errors.New("a list of nodes that ends within one"))
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	var ids []peer.ID
	for chunk := range slices.Chunk(raw, peer.IDSize) {
		ids = append(ids, peer.ID(chunk))
	}
	return ids, nil
}
