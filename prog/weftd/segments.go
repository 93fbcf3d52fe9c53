package weftd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft/mesh"
	"weft/mesh/peer"
	"weft/plugin/docker"
)

// segments keeps Docker's networks apart: who is in which, here and on other machines, becomes a filter. Each machine
// tells the others about its own containers, directly and over an authenticated stream, and is believed for addresses in
// its own blocks only. Machines that have a network in common hear of a new container before it starts; all others, and
// whoever was not there, within half a minute. What is not known is not let through.
//
//	arrange (this machine)   ─┐
//	call segments/1 (others) ─┼─> compute ──> filter of the kernel
//	blocks, hosts (ring, mesh)┘
type segments struct {
	node *node

	applying sync.Mutex // held while a filter is put in place, so that an older one never comes last
	saving   sync.Mutex // the same for the file

	mu     sync.Mutex // guards what follows
	own    docker.Arrangement
	known  bool // own was told since the start
	boot   uint64
	seq    uint64
	others map[peer.ID]segmentReport
	deaf   map[peer.ID]time.Time // asked in vain: an older weft
	kick   chan struct{}         // capacity 1
}

const (
	tellSegments = time.Second      // for others to hear of a container before it starts
	segmentEvery = 30 * time.Second // how often all members are told and asked

	methodSegments = "segments"
	segmentCalls   = 16 // at a time
	deafFor        = 10 * time.Minute
)

func newSegments(n *node) (*segments, error) {
	s := &segments{
		node: n, others: map[peer.ID]segmentReport{}, deaf: map[peer.ID]time.Time{}, kick: make(chan struct{}, 1),
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // it never fails
	s.boot = binary.BigEndian.Uint64(b[:])
	text, err := n.state.Load(fileSegments)
	if err != nil {
		return nil, err
	}
	if text != nil {
		// What others said last holds until they say something else: a restart must not cut anybody off.
		if s.others, err = parseSegmentPeers(text); err != nil {
			n.log.Warn("what others said of their containers is not readable", "err", err)
			s.others = map[peer.ID]segmentReport{}
		}
	}
	n.mesh.Handle(methodSegments, s.serve)
	return s, nil
}

// run tells and asks until ctx ends.
func (s *segments) run(ctx context.Context) error {
	tick := time.NewTicker(segmentEvery)
	defer tick.Stop()
	blocks, members := s.node.ring.Watch(), s.node.mesh.Watch()
	for {
		tell := false
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			tell = true
		case <-s.kick:
			tell = true
		case <-members:
			s.prune()
		case <-blocks:
		}
		if !s.inUse() {
			continue
		}
		if tell {
			s.exchange(ctx, s.everybody())
		}
		if err := s.apply(ctx); err != nil && ctx.Err() == nil {
			s.node.log.Warn("docker networks not kept apart anew, will try again", "err", err)
		}
	}
}

func (s *segments) inUse() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known && len(s.own.Networks) > 0
}

// arrange takes what Docker has here. When it returns the machine keeps to it, and who shares a network was told.
func (s *segments) arrange(ctx context.Context, a docker.Arrangement) error {
	s.mu.Lock()
	same := s.known && reflect.DeepEqual(s.own.Networks, a.Networks)
	s.own, s.known = a, true
	if !same {
		s.seq++
	}
	s.mu.Unlock()
	if err := s.node.router.SetSiblings(ctx, a.Siblings); err != nil {
		return err
	}
	if err := s.apply(ctx); err != nil {
		return err
	}
	if same {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, tellSegments)
	defer cancel()
	s.exchange(short, s.concerned())
	select {
	case s.kick <- struct{}{}:
	default:
	}
	return nil
}

// siblings is for the router's input.
func (s *segments) siblings() map[netip.Addr][]netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.own.Siblings
}

// report is what this machine says.
func (s *segments) report() segmentReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := segmentReport{boot: s.boot, seq: s.seq, networks: map[string][]netip.Addr{}}
	for _, n := range s.own.Networks {
		r.networks[n.Name] = n.Members
	}
	return r
}

// everybody lists the members that are there and can answer.
func (s *segments) everybody() []peer.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []peer.ID
	for _, p := range s.node.mesh.Peers() {
		if p.State == peer.Alive && time.Since(s.deaf[p.ID]) > deafFor {
			all = append(all, p.ID)
		}
	}
	return all
}

// concerned lists those that have one of our networks, as far as is known.
func (s *segments) concerned() []peer.ID {
	all := s.everybody()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(all, func(id peer.ID) bool {
		return !slices.ContainsFunc(s.own.Networks, func(n docker.Network) bool {
			_, has := s.others[id].networks[n.Name]
			return has
		})
	})
}

// exchange tells members what is here, and learns from the answers what is there.
func (s *segments) exchange(ctx context.Context, members []peer.ID) {
	request := s.report().append(nil)
	var calls errgroup.Group
	calls.SetLimit(segmentCalls)
	for _, id := range members {
		calls.Go(func() error {
			answer, err := s.node.mesh.Call(ctx, id, methodSegments, request)
			switch {
			case mesh.HasCode(err, mesh.CodeUnknown):
				s.mu.Lock()
				s.deaf[id] = time.Now()
				s.mu.Unlock()
			case err != nil:
				s.node.log.Debug("peer not told of containers", "peer", id, "err", err)
			default:
				_, err = s.learn(id, answer)
			}
			if err != nil {
				s.node.log.Debug("report of containers not taken", "peer", id, "err", err)
			}
			return nil
		})
	}
	_ = calls.Wait() // the calls return nothing
	if err := s.apply(ctx); err != nil && ctx.Err() == nil {
		s.node.log.Warn("docker networks not kept apart anew, will try again", "err", err)
	}
}

// serve answers a member with our own report. When it returns the filter knows the member's containers.
func (s *segments) serve(ctx context.Context, from peer.ID, request []byte) ([]byte, error) {
	news, err := s.learn(from, request)
	if err != nil {
		return nil, err
	}
	if news && s.inUse() {
		if err := s.apply(ctx); err != nil {
			return nil, err
		}
	}
	return s.report().append(nil), nil
}

// learn keeps what a member says; news is whether it differs from before.
func (s *segments) learn(from peer.ID, text []byte) (news bool, err error) {
	r, err := parseSegments(text)
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	before, had := s.others[from]
	if had && before.boot == r.boot && r.seq < before.seq {
		s.mu.Unlock()
		return false, nil // overtaken
	}
	if !had && len(s.others) >= maxSegmentPeers {
		s.mu.Unlock()
		return false, errors.New("too many machines have containers")
	}
	s.others[from] = r
	news = !reflect.DeepEqual(before.networks, r.networks)
	delete(s.deaf, from)
	s.mu.Unlock()
	if news {
		err = s.save()
	}
	return news, err
}

// save keeps what others said for the next start.
func (s *segments) save() error {
	s.saving.Lock()
	defer s.saving.Unlock()
	s.mu.Lock()
	all := appendSegmentPeers(nil, s.others)
	s.mu.Unlock()
	return s.node.state.Save(fileSegments, all)
}

// apply makes the filter follow from what is known.
func (s *segments) apply(ctx context.Context) error {
	s.applying.Lock()
	defer s.applying.Unlock()
	n := s.node
	blocks := n.ring.Blocks()
	s.mu.Lock()
	own := s.own
	members := map[string][]netip.Addr{}
	for _, w := range own.Networks {
		members[w.Name] = slices.Clone(w.Members)
	}
	for id, r := range s.others {
		for name := range members {
			for _, a := range r.networks[name] {
				if slices.ContainsFunc(blocks[id], func(b netip.Prefix) bool { return b.Contains(a) }) {
					members[name] = append(members[name], a)
				}
			}
		}
	}
	s.mu.Unlock()
	var hosts []netip.Addr
	for _, p := range n.mesh.Peers() {
		if rec, ok := n.mesh.Record(p.ID); ok && p.State != peer.Removed {
			hosts = append(hosts, rec.Hosts...)
		}
	}
	_, err := n.host.Filter(ctx, segmentFilter(own, members, hosts, n.pools))
	if err != nil {
		return fmt.Errorf("keep networks apart: %w", err)
	}
	return nil
}

// prune forgets what members said that are no more.
func (s *segments) prune() {
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.others, func(id peer.ID, _ segmentReport) bool {
		p, ok := s.node.mesh.Peer(id)
		return !ok || p.State == peer.Removed
	})
}

func (n *node) buildSegments() (err error) {
	if n.cfg.Docker {
		n.segments, err = newSegments(n)
	}
	return err
}

func (n *node) runSegments(ctx context.Context) error {
	if n.segments == nil {
		return nil
	}
	return n.segments.run(ctx)
}
