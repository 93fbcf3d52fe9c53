package mesh

import (
	"context"
	"slices"
	"time"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// Timing and limits of telling digests over streams.
const (
	deafAfter   = 5 * time.Second // without a datagram from anybody: digests go over streams
	swapTime    = 5 * time.Second // of such an exchange
	swapsAtOnce = 4
)

// begin marks those of ids with whom no swap is under way.
func (s *syncer) begin(ids []peer.ID) []peer.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(ids, func(id peer.ID) bool {
		if s.swapping.Has(id) || len(s.swapping) == swapsAtOnce {
			return true
		}
		s.swapping.Add(id)
		return false
	})
}

// swap tells and hears digests over a stream: what is done while datagrams do not come through, as in the first moments
// of a node. Both ends know afterwards what to pull, and each other's record: without it the other could neither pull nor
// accept our datagrams, and we would wait for each other for ever.
func (s *syncer) swap(ctx context.Context, with peer.ID) {
	ctx, cancel := context.WithTimeout(ctx, swapTime)
	defer cancel()
	ans, err := s.mesh.call(ctx, with, methodDigests, s.introduction(peer.ID{}), MaxMessage)
	if err == nil {
		err = s.meet(with, ans)
	}
	if err != nil {
		s.mesh.log.Debug("digests not exchanged", "peer", with, "err", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.swapping, with)
}

// serveDigests is the handler of methodDigests.
func (s *syncer) serveDigests(_ context.Context, from peer.ID, req []byte) ([]byte, error) {
	if err := s.meet(from, req); err != nil {
		return nil, err
	}
	return s.introduction(peer.ID{}), nil
}

// introduction is our digests with our record; from is zero where the carrier names the sender.
func (s *syncer) introduction(from peer.ID) []byte {
	return tlv.Append(digestMessage(from, s.digests()), digestRecord, s.mesh.ownRaw())
}

// meet takes an introduction.
func (s *syncer) meet(from peer.ID, b []byte) error {
	_, told, err := parseDigests(b)
	if err != nil {
		return err
	}
	s.mesh.takeRecord(b)
	s.hear(from, told)
	return nil
}
