package weftd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"weft/crypto/tlv"
	"weft/mesh/peer"
	"weft/prog/control"
	"weft/router"
	"weft/router/sleeve"
)

// way is how one member reaches another, by its own word.
type way struct {
	peer      peer.ID
	state     string // control.EdgeDirect, EdgeRelayed, EdgeTCP or EdgeDown
	transport string
	via       []peer.ID
	rtt       time.Duration
	loss      float64
	mtu       int
	reason    string
	tries     []attempt // only where one peer was asked about
}

// attempt is one of the ways that a member has tried to another.
type attempt struct {
	endpoint netip.AddrPort // zero when relayed
	tcp      bool
	via      []peer.ID
	active   bool
	state    string
	rtt      time.Duration
	loss     float64
	mtu      int
	reason   string
}

// methodWays asks a member for its ways to all others, or for all that it tried to one.
//
//	request  version(1)  fields: peer(16), absent for all
//	answer   version(1)  fields: list of ways
//
// A way and an attempt are fields. Times are nanoseconds, losses hundredths of a percent.
const (
	methodWays  = "weftd.ways"
	waysVersion = tlv.Version(0x10)
	waysPeer    = 1
	waysList    = 1

	maxWays      = 1 << 12
	maxAttempts  = 64
	maxWaysBytes = 900 << 10 // of an answer; what would go beyond is left out
	maxWayVia    = 4
	maxWayWord   = 32  // bytes of a state or a transport's name
	maxWayReason = 240 // bytes
)

const (
	wayPeer = iota + 1 // in ascending order, as they are written
	wayTransport
	wayEndpoint
	wayTCP
	wayActive
	wayState
	wayVia
	wayRTT
	wayLoss
	wayMTU
	wayReason
	wayTries
)

func appendWays(ways []way) []byte {
	var items [][]byte
	size := 0
	for _, w := range ways[:min(len(ways), maxWays)] {
		b := tlv.Append(nil, wayPeer, w.peer[:])
		b = tlv.AppendString(b, wayTransport, cut(w.transport, maxWayWord))
		b = appendWay(b, w.state, w.via, w.rtt, w.loss, w.mtu, w.reason)
		var tries [][]byte
		for _, t := range w.tries[:min(len(w.tries), maxAttempts)] {
			a := tlv.AppendAddrPort(nil, wayEndpoint, t.endpoint)
			a = tlv.AppendBool(a, wayTCP, t.tcp)
			a = tlv.AppendBool(a, wayActive, t.active)
			tries = append(tries, appendWay(a, t.state, t.via, t.rtt, t.loss, t.mtu, t.reason))
		}
		b = tlv.AppendList(b, wayTries, tries)
		if size += len(b); size > maxWaysBytes {
			break
		}
		items = append(items, b)
	}
	return tlv.AppendList(tlv.AppendVersion(nil, waysVersion), waysList, items)
}

// appendWay adds what ways and attempts have in common.
func appendWay(b []byte, state string, via []peer.ID, rtt time.Duration, loss float64, mtu int, reason string) []byte {
	b = tlv.AppendString(b, wayState, cut(state, maxWayWord))
	var relays []byte
	for _, id := range via[:min(len(via), maxWayVia)] {
		relays = append(relays, id[:]...)
	}
	b = tlv.Append(b, wayVia, relays)
	b = tlv.AppendUint64(b, wayRTT, uint64(max(0, rtt)))
	b = tlv.AppendUint16(b, wayLoss, uint16(min(max(loss, 0), 1)*1e4))
	b = tlv.AppendUint16(b, wayMTU, uint16(min(max(mtu, 0), 1<<16-1)))
	return tlv.AppendString(b, wayReason, cut(reason, maxWayReason))
}

func parseWays(b []byte) ([]way, error) {
	_, fields, err := tlv.ParseVersioned("ways", b, waysVersion)
	if err != nil {
		return nil, err
	}
	r := tlv.NewReader(fields)
	var ways []way
	for _, item := range r.List(waysList, maxWays) {
		var w way
		i := readItem(r, item)
		i.Require(wayPeer)
		i.Copy(wayPeer, w.peer[:])
		w.transport = i.String(wayTransport, maxWayWord)
		w.state, w.via, w.rtt, w.loss, w.mtu, w.reason = readWay(i)
		for _, item := range i.List(wayTries, maxAttempts) {
			a := readItem(i, item)
			t := attempt{endpoint: a.AddrPort(wayEndpoint), tcp: a.Bool(wayTCP), active: a.Bool(wayActive)}
			t.state, t.via, t.rtt, t.loss, t.mtu, t.reason = readWay(a)
			i.Fail(a.Err())
			w.tries = append(w.tries, t)
		}
		r.Fail(i.Err())
		ways = append(ways, w)
	}
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("parse ways: %w", err)
	}
	return ways, nil
}

// readItem reads the fields of an item; its faults are its parent's.
func readItem(parent *tlv.Reader, item []byte) *tlv.Reader {
	fields, err := tlv.Parse(item)
	parent.Fail(err)
	return tlv.NewReader(fields)
}

func readWay(r *tlv.Reader) (state string, via []peer.ID, rtt time.Duration, loss float64, mtu int, reason string) {
	relays := r.Bytes(wayVia, maxWayVia*peer.IDSize)
	if len(relays)%peer.IDSize != 0 {
		r.Fail(errors.New("a relay that is cut off"))
		relays = nil
	}
	for id := range slices.Chunk(relays, peer.IDSize) {
		via = append(via, peer.ID(id))
	}
	// A member may lie; it must not make the picture absurd.
	rtt = min(time.Duration(r.Uint64(wayRTT)&(1<<62-1)), time.Hour)
	loss = min(float64(r.Uint16(wayLoss))/1e4, 1)
	return r.String(wayState, maxWayWord), via, rtt, loss, int(r.Uint16(wayMTU)), printable(r.String(wayReason, maxWayReason))
}

// printable keeps a member's words from moving the cursor of a terminal.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return ' '
		}
		return c
	}, s)
}

// cut shortens s to at most n bytes without cutting a character in two.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// serveWays is the handler of methodWays.
func (n *node) serveWays(ctx context.Context, _ peer.ID, req []byte) ([]byte, error) {
	_, fields, err := tlv.ParseVersioned("question for ways", req, waysVersion)
	if err != nil {
		return nil, err
	}
	r := tlv.NewReader(fields)
	var about peer.ID
	r.Copy(waysPeer, about[:])
	if err := r.Err(); err != nil {
		return nil, err
	}
	if about.IsZero() {
		return appendWays(n.ways()), nil
	}
	w, err := n.wayTo(ctx, about)
	if err != nil {
		return nil, err
	}
	return appendWays([]way{w}), nil
}

// ways are this node's own, to every member that was not removed.
func (n *node) ways() []way {
	status := map[peer.ID]router.PeerStatus{}
	for _, p := range n.router.Status().Peers {
		status[p.Peer] = p
	}
	owns := n.ring.Blocks()
	var all []way
	for _, info := range n.remaining() {
		all = append(all, ownWay(info, status[info.ID], len(owns[info.ID]) > 0))
	}
	return all
}

// ownWay is what this node knows of its way to a member.
func ownWay(info peer.Info, p router.PeerStatus, owns bool) way {
	w := way{
		peer: info.ID, state: control.EdgeDown, transport: p.Transport, via: p.Link.Via, rtt: p.Link.RTT, loss: p.Link.Loss,
		mtu: cmp.Or(p.Link.MTU, p.MTU), reason: peerReason(info, p, owns),
	}
	switch {
	case p.Link.Asleep:
		w.state = control.EdgeUnknown
	case !p.Link.Up:
	case len(p.Link.Via) > 0:
		w.state = control.EdgeRelayed
	case p.Link.TCP:
		w.state = control.EdgeTCP
	default:
		w.state = control.EdgeDirect
	}
	return w
}

var errNotKnown = errors.New("that member is not known here")

// wayTo is the way to one member with all that was tried. An error other than errNotKnown is the data plane's.
func (n *node) wayTo(ctx context.Context, id peer.ID) (way, error) {
	stats, err := n.link.stats(ctx)
	if err != nil {
		return way{}, err
	}
	i := slices.IndexFunc(stats.Peers, func(p sleeve.PeerStats) bool { return p.ID == id })
	ways := n.ways()
	j := slices.IndexFunc(ways, func(w way) bool { return w.peer == id })
	if j < 0 {
		return way{}, errNotKnown
	}
	w := ways[j]
	if i < 0 {
		return w, nil
	}
	for _, p := range stats.Peers[i].Paths {
		w.tries = append(w.tries, attempt{
			endpoint: p.Endpoint, tcp: p.TCP, via: p.Via, active: p.Active, state: p.State.String(), rtt: p.RTT, loss: p.Loss,
			mtu: p.MTU, reason: p.Reason,
		})
	}
	return w, nil
}

// Bounds of asking others for their ways.
const (
	wayTime     = 3 * time.Second // for one member to answer
	allWaysTime = 6 * time.Second // for all
	waysAtOnce  = 24              // asked at the same time
	maxAsked    = 512             // members
)

// askWays asks members for their ways: to everybody, or to one of them. Who did not answer is in silent, with the reason.
func (n *node) askWays(ctx context.Context, members []peer.Info, about peer.ID) (told map[peer.ID][]way, silent map[peer.ID]string) {
	ctx, cancel := context.WithTimeout(ctx, allWaysTime)
	defer cancel()
	told, silent = map[peer.ID][]way{}, map[peer.ID]string{}
	req := tlv.AppendVersion(nil, waysVersion)
	if !about.IsZero() {
		req = tlv.Append(req, waysPeer, about[:])
	}
	var (
		mu    sync.Mutex // guards told, silent
		calls sync.WaitGroup
		slots = make(chan struct{}, waysAtOnce)
	)
	for i, m := range members {
		switch {
		case m.State != peer.Alive && m.State != peer.Suspect:
			silent[m.ID] = "it is " + m.State.String()
			continue
		case i >= maxAsked:
			silent[m.ID] = fmt.Sprintf("it was not asked: more than %d members", maxAsked)
			continue
		}
		calls.Go(func() {
			ways, err := func() ([]way, error) {
				select {
				case slots <- struct{}{}:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				defer func() { <-slots }()
				ctx, cancel := context.WithTimeout(ctx, wayTime)
				defer cancel()
				b, err := n.mesh.Call(ctx, m.ID, methodWays, req)
				if err != nil {
					return nil, err
				}
				return parseWays(b)
			}()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				silent[m.ID] = "it did not answer: " + unwrapped(err)
				return
			}
			told[m.ID] = ways
		})
	}
	calls.Wait()
	return told, silent
}

// unwrapped is the innermost cause, which is what a person wants to hear of a failed call.
func unwrapped(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "no answer in time"
	}
	for next := errors.Unwrap(err); next != nil; next = errors.Unwrap(err) {
		err = next
	}
	return printable(err.Error())
}
