package control

import "net/netip"

// The states of an edge, from the best to the worst.
const (
	EdgeDirect  = "direct"
	EdgeRelayed = "relayed" // by way of other members
	EdgeTCP     = "tcp"     // UDP does not pass, so packets travel in a TCP connection
	EdgeOneWay  = "one-way" // one end reaches the other, and is not reached
	EdgeDown    = "down"
	EdgeUnknown = "unknown" // neither end has said
)

// Graph is what `weft graph --json` prints: the members and the way between each two of them. A node knows first-hand only
// its own ways, so the node that is asked asks the others, for a few seconds at most.
type Graph struct {
	Version int             `json:"version"`
	Cluster string          `json:"cluster"`
	Created string          `json:"created"` // RFC 3339, UTC
	Nodes   List[GraphNode] `json:"nodes"`   // this node first, then by name
	Edges   List[GraphEdge] `json:"edges"`   // one for each pair
	Notes   List[string]    `json:"notes"`   // sentences about what is not in the picture
}

// GraphNode is a member.
type GraphNode struct {
	ID       string     `json:"id"`
	Name     string     `json:"name"`
	State    string     `json:"state"` // PeerAlive, ...
	Self     bool       `json:"self"`  // the node that was asked
	NAT      string     `json:"nat"`   // as Node.NAT; unknown where it has not said
	Relay    bool       `json:"relay"` // carries packets of others
	Underlay netip.Addr `json:"underlay,omitzero"`
	Silent   string     `json:"silent"` // why it did not tell of its ways; empty when it did
}

// GraphEdge is the way between two members. Where they do not see the same, State is the worse of both.
type GraphEdge struct {
	A         string       `json:"a"` // IDs; A stands before B among the nodes
	B         string       `json:"b"`
	State     string       `json:"state"` // EdgeDirect, ...
	Transport string       `json:"transport"`
	Via       List[string] `json:"via"`    // names of the relays, from A to B
	RTTms     float64      `json:"rtt_ms"` // 0: not measured
	Loss      float64      `json:"loss"`   // 0 to 1, of the worse direction
	MTU       int          `json:"mtu"`    // 0: not known
	Reason    string       `json:"reason"` // why it is that way
	Told      List[string] `json:"told"`   // IDs of the ends that told of it
}
