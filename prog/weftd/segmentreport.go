package weftd

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"weft/crypto/tlv"
	"weft/mesh/peer"
)

// segmentReport is what a machine says about its containers, and what it is asked with. A report replaces the one before
// of the same boot when its number is not lower, and any of another boot.
//
//	version(1)  boot(8)  seq(8)  networks: list of { name  addresses: list of 4 or 16 bytes }
type segmentReport struct {
	boot     uint64
	seq      uint64
	networks map[string][]netip.Addr
}

const (
	segmentVersion = tlv.Version(0x10)

	tagSegmentBoot     = 1
	tagSegmentSeq      = 2
	tagSegmentNetworks = 3

	tagSegmentName      = 1
	tagSegmentAddresses = 2

	maxSegments    = 256  // networks of one machine
	maxSegmented   = 8192 // addresses of one machine, in all of them
	maxSegmentName = 63

	// What others said, in the state directory: a list of { peer  report }.
	tagSegmentPeers  = 1
	tagSegmentPeer   = 1
	tagSegmentReport = 2
	maxSegmentPeers  = 4096
)

func (r segmentReport) append(b []byte) []byte {
	b = tlv.AppendVersion(b, segmentVersion)
	b = tlv.AppendUint64(b, tagSegmentBoot, r.boot)
	b = tlv.AppendUint64(b, tagSegmentSeq, r.seq)
	var all [][]byte
	for _, name := range slices.Sorted(maps.Keys(r.networks)) {
		var members [][]byte
		for _, a := range r.networks[name] {
			members = append(members, a.AsSlice())
		}
		all = append(all, tlv.AppendList(tlv.AppendString(nil, tagSegmentName, name), tagSegmentAddresses, members))
	}
	return tlv.AppendList(b, tagSegmentNetworks, all)
}

// parseSegments checks a report. Whether its addresses are the sender's to speak of is checked when the filter is made.
func parseSegments(b []byte) (segmentReport, error) {
	r := segmentReport{networks: map[string][]netip.Addr{}}
	_, fields, err := tlv.ParseVersioned("a report of containers", b, segmentVersion)
	if err != nil {
		return r, err
	}
	in := tlv.NewReader(fields)
	in.Require(tagSegmentBoot, tagSegmentSeq)
	r.boot, r.seq = in.Uint64(tagSegmentBoot), in.Uint64(tagSegmentSeq)
	total := 0
	for _, item := range in.List(tagSegmentNetworks, maxSegments) {
		f, err := tlv.Parse(item)
		if err != nil {
			return r, fmt.Errorf("read a report of containers: %w", err)
		}
		n := tlv.NewReader(f)
		n.Require(tagSegmentName)
		name := n.String(tagSegmentName, maxSegmentName)
		var members []netip.Addr
		for _, raw := range n.List(tagSegmentAddresses, maxSegmented) {
			a, ok := netip.AddrFromSlice(raw)
			if !ok || a != a.Unmap() {
				n.Fail(fmt.Errorf("an address of %d bytes", len(raw)))
			}
			members = append(members, a)
		}
		if total += len(members); total > maxSegmented {
			n.Fail(fmt.Errorf("more than %d addresses", maxSegmented))
		}
		if _, twice := r.networks[name]; twice || name == "" {
			n.Fail(errors.New("a network without a name, or there twice"))
		}
		if err := n.Err(); err != nil {
			return r, fmt.Errorf("read a report of containers: %w", err)
		}
		r.networks[name] = members
	}
	return r, in.Err()
}

// appendSegmentPeers and parseSegmentPeers are for the state directory.
func appendSegmentPeers(b []byte, others map[peer.ID]segmentReport) []byte {
	b = tlv.AppendVersion(b, segmentVersion)
	var all [][]byte
	for _, id := range slices.SortedFunc(maps.Keys(others), peer.ID.Compare) {
		item := tlv.Append(nil, tagSegmentPeer, id[:])
		all = append(all, tlv.Append(item, tagSegmentReport, others[id].append(nil)))
	}
	return tlv.AppendList(b, tagSegmentPeers, all)
}

func parseSegmentPeers(b []byte) (map[peer.ID]segmentReport, error) {
	_, fields, err := tlv.ParseVersioned("what others said of their containers", b, segmentVersion)
	if err != nil {
		return nil, err
	}
	others := map[peer.ID]segmentReport{}
	in := tlv.NewReader(fields)
	for _, item := range in.List(tagSegmentPeers, maxSegmentPeers) {
		f, err := tlv.Parse(item)
		if err != nil {
			return nil, err
		}
		p := tlv.NewReader(f)
		p.Require(tagSegmentPeer, tagSegmentReport)
		var id peer.ID
		p.Copy(tagSegmentPeer, id[:])
		r, err := parseSegments(p.Bytes(tagSegmentReport, len(item)))
		if err := errors.Join(err, p.Err()); err != nil {
			return nil, err
		}
		others[id] = r
	}
	return others, in.Err()
}
