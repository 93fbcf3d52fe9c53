package control

import "net/netip"

// Version is the version of every document of this package. It rises when a field changes its meaning or goes away;
// a new field alone does not raise it.
const Version = 1

// The states of this node.
const (
	NodeWaiting  = "waiting"  // no cluster yet: neither made nor joined one
	NodeJoining  = "joining"  // has a token or a certificate, and no ring yet
	NodeReady    = "ready"    // pods can be attached
	NodeStopping = "stopping" // on its way out
	NodeRemoved  = "removed"  // the cluster has cut this node off
)

// The states of a peer, as membership sees it.
const (
	PeerAlive   = "alive"
	PeerSuspect = "suspect"
	PeerDead    = "dead"
	PeerRemoved = "removed"
)

// How packets reach a peer.
const (
	PathDirect = "direct"
	PathRelay  = "relay" // other members carry the packets
	PathTCP    = "tcp"   // packets travel in a TCP stream, since no datagrams pass
	PathNone   = "none"
)

// The states of this node's share of the address space.
const (
	IPAMWaiting     = "waiting"     // no space yet
	IPAMUnconfirmed = "unconfirmed" // serves from its own blocks, but has not heard a quorum since its start
	IPAMReady       = "ready"
)

// What the cluster demands of the underlay.
const (
	EncryptionRequired       = "required"        // every packet between nodes is sealed
	EncryptionTrustedSubnets = "trusted-subnets" // plain where both ends trust the subnet between them
)

// Status is what `weft status --json` prints. Peers never holds this node.
type Status struct {
	Version    int             `json:"version"`
	Node       Node            `json:"node"`
	Cluster    Cluster         `json:"cluster"`
	Transports List[Transport] `json:"transports"`
	Peers      List[Peer]      `json:"peers"`
	IPAM       IPAM            `json:"ipam"`
	Warnings   List[string]    `json:"warnings"` // sentences about what works but should not stay so
}

// Node is this machine.
type Node struct {
	ID       string           `json:"id"`
	Name     string           `json:"name"`
	State    string           `json:"state"`    // NodeReady, ...
	Reason   string           `json:"reason"`   // why it is not ready; empty when it is
	Underlay List[netip.Addr] `json:"underlay"` // where others find it, best first
	Overlay  List[netip.Addr] `json:"overlay"`  // the host's own pod addresses, IPv4 first
	NAT      string           `json:"nat"`      // none, easy, hard or unknown
	Relay    bool             `json:"relay"`
	Voter    bool             `json:"voter"`
	Issuer   bool             `json:"issuer"`
	UptimeS  int64            `json:"uptime_s"`
	Build    string           `json:"build"`
}

// Cluster is what this node belongs to; its ID is empty while it belongs to none.
type Cluster struct {
	ID         string             `json:"id"`
	Pools      List[netip.Prefix] `json:"pools"`
	Encryption string             `json:"encryption"` // EncryptionRequired, ...
	Members    int                `json:"members"`    // with this node
	Alive      int                `json:"alive"`      // with this node
}

// Transport is one way to carry packets, available here or not and why.
type Transport struct {
	Name      string `json:"name"`
	Available bool   `json:"available"`
	Reason    string `json:"reason"`
}

// Peer is another member as this node sees it.
type Peer struct {
	ID        string             `json:"id"`
	Name      string             `json:"name"`
	State     string             `json:"state"` // PeerAlive, ...
	Blocks    List[netip.Prefix] `json:"blocks"`
	Transport string             `json:"transport"` // empty while there is none
	Encrypted bool               `json:"encrypted"`
	Path      string             `json:"path"` // PathDirect, ...
	Via       List[string]       `json:"via"`  // names of the relays between, nearest first
	Endpoint  netip.AddrPort     `json:"endpoint"`
	Reason    string             `json:"reason"` // why this transport and path, or why none
	MTU       int                `json:"mtu"`
	RTTms     float64            `json:"rtt_ms"`      // 0: not measured
	Loss      float64            `json:"loss"`        // 0 to 1
	LastSeenS float64            `json:"last_seen_s"` // seconds since; negative: never
	KeyAgeS   int64              `json:"key_age_s"`   // of the session key; negative: no session
	RxBytes   uint64             `json:"rx_bytes"`
	TxBytes   uint64             `json:"tx_bytes"`
	Asleep    bool               `json:"asleep,omitempty"` // no session for want of traffic: the next packet opens one
}

// IPAM is this node's share of the address space. The counts are of IPv4 addresses.
type IPAM struct {
	State       string             `json:"state"` // IPAMReady, ...
	Reason      string             `json:"reason"`
	Blocks      List[netip.Prefix] `json:"blocks"` // ours
	Used        uint64             `json:"used"`
	Free        uint64             `json:"free"`
	Unreachable uint64             `json:"unreachable"` // in blocks of members that are not alive
	Reclaims    List[Reclaim]      `json:"reclaims"`    // space of removed members that is not taken over yet
}

// Reclaim is the space of one removed member on its way to others.
type Reclaim struct {
	ID       string       `json:"id"`
	Name     string       `json:"name"`
	WaitsFor List[string] `json:"waits_for"` // names of survivors that have not agreed yet
	Reason   string       `json:"reason"`    // a sentence
	Forced   bool         `json:"forced"`    // does not wait for those that are silent
}

// Peers is what `weft peer list --json` prints.
type Peers struct {
	Version int        `json:"version"`
	Peers   List[Peer] `json:"peers"`
}

// PeerDetail is what `weft peer show --json` prints: the line of the status, and what the peer says of itself.
type PeerDetail struct {
	Version    int                  `json:"version"`
	Peer       Peer                 `json:"peer"`
	Build      string               `json:"build"`
	Voter      bool                 `json:"voter"`
	Issuer     bool                 `json:"issuer"`
	JoinSeq    uint64               `json:"join_seq"`   // seniority: the founder has 0
	Endpoints  List[netip.AddrPort] `json:"endpoints"`  // where it may be reached, best first
	Transports List[string]         `json:"transports"` // that it can use, best first
	Trusted    List[netip.Prefix]   `json:"trusted"`    // its own --trusted-subnets
	Links      List[Link]           `json:"links"`      // one per transport that is open to it
}

// Link is one open transport to one peer.
type Link struct {
	Transport string         `json:"transport"`
	Up        bool           `json:"up"`
	InUse     bool           `json:"in_use"`
	Endpoint  netip.AddrPort `json:"endpoint"`
	Reason    string         `json:"reason"`
	MTU       int            `json:"mtu"`
	RTTms     float64        `json:"rtt_ms"`
	Loss      float64        `json:"loss"`
}

// Claims is what `weft ip list --json` prints: attached pods, and beside them what is kept by hand.
type Claims struct {
	Version  int         `json:"version"`
	Claims   List[Claim] `json:"claims"`
	Reserved List[Claim] `json:"reserved"` // by `weft ip claim`; without interface and namespace
}

// Claim is one address of one pod of this node.
type Claim struct {
	Address   netip.Addr `json:"address"`
	Container string     `json:"container"`
	Ifname    string     `json:"ifname"`
	Netns     string     `json:"netns"`
	Pod       string     `json:"pod"`
	Created   string     `json:"created"` // RFC 3339, UTC

	Aliases List[string] `json:"aliases,omitempty"` // other names of the pod
}

// Ring is what `weft ip ring --json` prints: who owns which part of the pools.
type Ring struct {
	Version int         `json:"version"`
	Blocks  List[Block] `json:"blocks"`
}

// Block is a run of address space with one owner.
type Block struct {
	Prefix    netip.Prefix `json:"prefix"`
	Owner     string       `json:"owner"`
	OwnerName string       `json:"owner_name"`
	View      uint64       `json:"view"`
	Seq       uint64       `json:"seq"`
}

// Tokens is what `weft token list --json` prints.
type Tokens struct {
	Version int         `json:"version"`
	Tokens  List[Token] `json:"tokens"`
}

// Token is the public record of an invitation; the secret is not in it.
type Token struct {
	ID        string `json:"id"`
	Expires   string `json:"expires"` // RFC 3339, UTC
	Uses      int    `json:"uses"`    // how many joins it admits; 0: no limit
	Used      int    `json:"used"`
	Ephemeral bool   `json:"ephemeral"`
	Revoked   bool   `json:"revoked"`
}

// Issuers is what `weft issuer list --json` prints.
type Issuers struct {
	Version int          `json:"version"`
	Issuers List[Issuer] `json:"issuers"`
}

// Issuer is a member that may admit others.
type Issuer struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	State string `json:"state"` // of the peer; this node is always alive
	Self  bool   `json:"self"`
	Root  bool   `json:"root"` // holds the cluster's root key
}
