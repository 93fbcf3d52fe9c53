package weftd

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"weft/mesh/peer"
	"weft/prog/control"
)

// maxEdges bounds a picture: at 300 members every pair still fits. Of larger clusters the direct pairs are left out first.
const maxEdges = 50_000

// Graph asks every member for its ways and makes one picture of them.
func (d *daemon) Graph(ctx context.Context) (control.Graph, error) {
	g := control.Graph{Version: control.Version, Created: time.Now().UTC().Format(time.RFC3339)}
	n, err := d.current()
	if err != nil {
		return g, err
	}
	self, _ := n.mesh.Peer(n.key.ID())
	members := n.remaining()
	slices.SortFunc(members, func(a, b peer.Info) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), a.ID.Compare(b.ID))
	})
	told, silent := n.askWays(ctx, members, peer.ID{})
	told[self.ID] = n.ways()

	g.Cluster = clusterName(n.member.cluster)
	for _, m := range append([]peer.Info{self}, members...) {
		g.Nodes = append(g.Nodes, n.graphNode(m, silent[m.ID]))
	}
	g.Edges = edges(append([]peer.Info{self}, members...), told, n.peerName)
	if len(silent) > 0 {
		g.Notes = append(g.Notes, fmt.Sprintf("%d of %d members did not tell of their ways: what is drawn at them is the others' word", len(silent), len(g.Nodes)))
	}
	if len(g.Edges) > maxEdges {
		slices.SortStableFunc(g.Edges, func(a, b control.GraphEdge) int { return cmp.Compare(severity[b.State], severity[a.State]) })
		g.Notes = append(g.Notes, fmt.Sprintf("%d of %d pairs are left out: the picture holds %d", len(g.Edges)-maxEdges, len(g.Edges), maxEdges))
		g.Edges = g.Edges[:maxEdges]
	}
	return g, nil
}

func (n *node) graphNode(m peer.Info, silent string) control.GraphNode {
	v := control.GraphNode{
		ID: m.ID.String(), Name: m.Name, State: m.State.String(), Self: m.ID == n.key.ID(), NAT: m.NAT.String(), Relay: m.Relays,
		Silent: silent,
	}
	if v.Name == "" {
		v.Name = m.ID.Short()
	}
	if len(m.Endpoints) > 0 {
		v.Underlay = m.Endpoints[0].Addr()
	}
	return v
}

// severity orders the states of an edge: where two ends differ, the worse one is shown.
var severity = map[string]int{
	control.EdgeUnknown: 0, control.EdgeDirect: 1, control.EdgeRelayed: 2, control.EdgeTCP: 3, control.EdgeOneWay: 4, control.EdgeDown: 5,
}

// edges makes one edge for each pair of members from what either told.
func edges(members []peer.Info, told map[peer.ID][]way, name func(peer.ID) string) []control.GraphEdge {
	type pair struct{ a, b peer.ID }
	ways := map[pair]way{}
	for from, list := range told {
		for _, w := range list {
			ways[pair{from, w.peer}] = w
		}
	}
	var all []control.GraphEdge
	for i, a := range members {
		for _, b := range members[i+1:] {
			there, ok1 := ways[pair{a.ID, b.ID}]
			back, ok2 := ways[pair{b.ID, a.ID}]
			slices.Reverse(back.via) // from a to b, like all of the edge
			e := control.GraphEdge{A: a.ID.String(), B: b.ID.String(), State: control.EdgeUnknown}
			if ok1 {
				e.Told = append(e.Told, e.A)
			}
			if ok2 {
				e.Told = append(e.Told, e.B)
			}
			w := there
			switch {
			case ok1 && ok2:
				w = worse(there, back)
			case ok2:
				w = back
			}
			if ok1 || ok2 {
				e.State, e.Transport, e.Reason, e.MTU = w.state, w.transport, w.reason, w.mtu
				if severity[e.State] == 0 {
					e.State = control.EdgeUnknown // a newer build's word
				}
			}
			if ok1 && ok2 && (there.state == control.EdgeDown) != (back.state == control.EdgeDown) {
				e.State = control.EdgeOneWay
				e.Reason = fmt.Sprintf("%s does not reach %s, which reaches it: %s", name(b.ID), name(a.ID), back.reason)
				if there.state == control.EdgeDown {
					e.Reason = fmt.Sprintf("%s does not reach %s, which reaches it: %s", name(a.ID), name(b.ID), there.reason)
				}
			}
			if e.State != control.EdgeDown && e.State != control.EdgeUnknown {
				for _, id := range w.via {
					e.Via = append(e.Via, name(id))
				}
				e.RTTms = milliseconds(least(there.rtt, back.rtt))
				e.Loss = max(there.loss, back.loss)
			}
			all = append(all, e)
		}
	}
	return all
}

func worse(a, b way) way {
	if severity[b.state] > severity[a.state] {
		return b
	}
	return a
}

// least is the smaller of those that were measured.
func least(a, b time.Duration) time.Duration {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
