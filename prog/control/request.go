package control

import (
	"encoding/json"
	"net/netip"
	"time"
)

// InitRequest asks for a new cluster with this node as founder. Empty fields mean what the daemon was started with.
type InitRequest struct {
	Name          string             `json:"name,omitempty"`
	Pools         List[netip.Prefix] `json:"pools"`             // IPv4; none: the first free of the defaults
	NoPool        bool               `json:"no_pool,omitempty"` // no IPv4
	Pool6         string             `json:"pool6,omitempty"`   // a prefix, or "none"
	Advertise     List[string]       `json:"advertise"`         // address or address:port
	ExpectNodes   int                `json:"expect_nodes,omitempty"`
	AcceptOverlap bool               `json:"accept_overlap,omitempty"`
}

// InitReply names the cluster.
type InitReply struct {
	Version int                `json:"version"`
	Cluster string             `json:"cluster"`
	Node    string             `json:"node"`
	Name    string             `json:"name"`
	Pools   List[netip.Prefix] `json:"pools"`
	Token   string             `json:"token"`   // for the first machine to join; empty when Existed
	Existed bool               `json:"existed"` // this state already held a cluster; nothing was done
	Notes   List[string]       `json:"notes"`   // sentences worth telling: an overlapping route, ...
}

// JoinRequest asks to enter the cluster that the token names.
type JoinRequest struct {
	Token         string       `json:"token"`
	Name          string       `json:"name,omitempty"`
	Advertise     List[string] `json:"advertise"`
	AcceptOverlap bool         `json:"accept_overlap,omitempty"`
}

// JoinReply names the cluster that was entered.
type JoinReply struct {
	Version int    `json:"version"`
	Cluster string `json:"cluster"`
	Node    string `json:"node"`
	Name    string `json:"name"`
	Sponsor string `json:"sponsor"` // the member that admitted this node; empty when Existed
	Existed bool   `json:"existed"` // was a member of that cluster already
}

// LeaveRequest asks to hand back this node's space, leave the cluster and stop.
type LeaveRequest struct {
	Purge bool `json:"purge,omitempty"` // and leave the machine as if weft had never been there
}

// LeaveReply says what became of the space.
type LeaveReply struct {
	Version int          `json:"version"`
	Notes   List[string] `json:"notes"`
	State   string       `json:"state,omitempty"` // the daemon's state directory
}

// RemoveRequest ends the membership of peers.
type RemoveRequest struct {
	Peers  List[string] `json:"peers"`            // names, IDs, or the beginnings of IDs
	Stolen bool         `json:"stolen,omitempty"` // their keys are in the wrong hands: end the tokens that they joined with too
	Force  bool         `json:"force,omitempty"`  // also peers that are alive, and without waiting for survivors that are silent
}

// RemoveReply says what was done, and how far it is known.
type RemoveReply struct {
	Version int               `json:"version"`
	Removed List[RemovedPeer] `json:"removed"`
	Told    int               `json:"told"`    // members that have it on disk, this one included
	Members int               `json:"members"` // that are left; those away are told when they come
	Notes   List[string]      `json:"notes"`
}

// RemovedPeer is one of them.
type RemovedPeer struct {
	ID     string       `json:"id"`
	Name   string       `json:"name"`
	Reason string       `json:"reason"`
	Before bool         `json:"before"`          // was removed already, for this reason
	Token  string       `json:"token,omitempty"` // ID of the token that it joined with, if that was revoked now
	Others List[string] `json:"others"`          // names of members that joined with that token
}

// TokenRequest asks for an invitation.
type TokenRequest struct {
	TTL       Duration `json:"ttl,omitempty"`  // 0: 24 h
	Uses      int      `json:"uses,omitempty"` // 0: no limit
	Ephemeral bool     `json:"ephemeral,omitempty"`
}

// TokenReply holds the secret: the only time that it is shown.
type TokenReply struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Token   string `json:"token"`
	Expires string `json:"expires"` // RFC 3339, UTC
}

// AttachRequest asks for an interface and addresses in a network namespace.
type AttachRequest struct {
	Netns     string     `json:"netns"`               // absolute path
	Container string     `json:"container,omitempty"` // name or ID; empty: the last element of Netns
	Pod       string     `json:"pod,omitempty"`       // namespace/name, for Kubernetes
	Ifname    string     `json:"ifname,omitempty"`    // empty: eth0
	IP        netip.Addr `json:"ip,omitzero"`         // IPv4 of our pools; zero: any
	MTU       int        `json:"mtu,omitempty"`       // 0: the largest that fits every transport

	IPs     List[netip.Addr] `json:"ips,omitempty"`     // like IP, also the linked IPv6 address, or both
	MAC     string           `json:"mac,omitempty"`     // of the pod's end; empty: made of container and ifname
	Aliases List[string]     `json:"aliases,omitempty"` // other names of the pod
	Network string           `json:"network,omitempty"` // of the runtime's configuration that asks; see CollectRequest
	Timeout Duration         `json:"timeout,omitempty"` // how long the caller waits, so that he hears the reason; 0: the server's limit
}

// AttachReply is what the pod got.
type AttachReply struct {
	Version   int                `json:"version"`
	Addresses List[netip.Addr]   `json:"addresses"` // IPv4 first
	Gateways  List[netip.Addr]   `json:"gateways"`
	Pools     List[netip.Prefix] `json:"pools"`
	Ifname    string             `json:"ifname"`
	HostIf    string             `json:"host_ifname"`
	MAC       string             `json:"mac"`
	HostMAC   string             `json:"host_mac"`
	MTU       int                `json:"mtu"`
	Existed   bool               `json:"existed"` // was attached already
}

// DetachRequest takes back what AttachRequest gave. It succeeds when there is nothing to take back.
type DetachRequest struct {
	Netns     string `json:"netns"`
	Container string `json:"container,omitempty"`
	Ifname    string `json:"ifname,omitempty"` // empty: every interface that weft made there
}

// DetachReply names what was taken back.
type DetachReply struct {
	Version   int              `json:"version"`
	Addresses List[netip.Addr] `json:"addresses"`
}

// IPClaimRequest asks for an address without an interface.
type IPClaimRequest struct {
	Address netip.Addr `json:"address,omitzero"` // of our blocks, IPv4 or its linked IPv6; zero: any
	Name    string     `json:"name,omitempty"`   // of the container to come; empty: one is made
}

// IPClaimReply is what is kept. The same name gets the same again.
type IPClaimReply struct {
	Version   int              `json:"version"`
	Name      string           `json:"name"`
	Addresses List[netip.Addr] `json:"addresses"` // IPv4 first
}

// IPReleaseRequest names what is not needed any more.
type IPReleaseRequest struct {
	What string `json:"what"` // an address, or the name that it was kept under
}

// IPReleaseReply names what was given up.
type IPReleaseReply struct {
	Version   int              `json:"version"`
	Addresses List[netip.Addr] `json:"addresses"`
}

// PingRequest sends probes to a peer through the data path.
type PingRequest struct {
	Peer     string   `json:"peer"`               // name, ID, the start of an ID, or an address of the peer
	Count    int      `json:"count,omitempty"`    // 0: until the caller hangs up
	Interval Duration `json:"interval,omitempty"` // 0: 1 s
	Timeout  Duration `json:"timeout,omitempty"`  // of one probe; 0: 2 s
}

// PingReply is the fate of one probe.
type PingReply struct {
	Seq       int            `json:"seq"`
	Peer      string         `json:"peer"` // name
	Address   netip.Addr     `json:"address"`
	Transport string         `json:"transport"`
	Path      string         `json:"path"`
	Via       List[string]   `json:"via"`
	TCP       bool           `json:"tcp"` // UDP does not pass, so it went in a TCP connection
	Endpoint  netip.AddrPort `json:"endpoint"`
	RTTms     float64        `json:"rtt_ms"`
	Lost      string         `json:"lost,omitempty"` // why there was no answer; empty when there was
}

// The verdicts of a check.
const (
	CheckOK      = "ok"
	CheckWarn    = "warn"    // works, but should not stay so
	CheckFailed  = "failed"  // does not work
	CheckUnknown = "unknown" // cannot tell
)

// DoctorRequest asks for the probes of this machine, or with Peer for what was tried to reach that peer.
type DoctorRequest struct {
	Peer string `json:"peer,omitempty"`
}

// Doctor is what `weft doctor --json` prints.
type Doctor struct {
	Version int         `json:"version"`
	Checks  List[Check] `json:"checks"`

	// Of a peer only.
	Peer   string          `json:"peer,omitempty"` // name
	Tried  List[TriedPath] `json:"tried"`          // every way that either end has tried, ours first
	Advice string          `json:"advice,omitempty"`
}

// TriedPath is one way between this node and a peer, as one end has found it.
type TriedPath struct {
	By       string         `json:"by"`       // name of the end that tried
	Endpoint netip.AddrPort `json:"endpoint"` // of the other end; empty when relayed
	TCP      bool           `json:"tcp"`
	Via      List[string]   `json:"via"`    // names of the relays
	Active   bool           `json:"active"` // packets go this way
	State    string         `json:"state"`  // untried, probing, works, suspect or dead
	RTTms    float64        `json:"rtt_ms"` // 0: not measured
	Loss     float64        `json:"loss"`
	MTU      int            `json:"mtu"`
	Reason   string         `json:"reason"` // why it is not used
}

// Check is one question and its answer.
type Check struct {
	Name   string `json:"name"`
	State  string `json:"state"` // CheckOK, ...
	Reason string `json:"reason"`
	Hint   string `json:"hint"` // what would help
}

// Report is what `weft report` prints: everything that helps to understand a fault, and no secret. The server blots
// out whatever looks like a token before a report leaves it.
type Report struct {
	Version  int             `json:"version"`
	Created  string          `json:"created"` // RFC 3339, UTC
	Build    string          `json:"build"`
	OS       string          `json:"os"` // kernel release and architecture
	Config   json.RawMessage `json:"config,omitempty"`
	Status   Status          `json:"status"`
	Doctor   Doctor          `json:"doctor"`
	Claims   Claims          `json:"claims"`
	Ring     Ring            `json:"ring"`
	Tokens   Tokens          `json:"tokens"`
	Issuers  Issuers         `json:"issuers"`
	Counters map[string]any  `json:"counters,omitempty"` // metrics by name
	Log      List[string]    `json:"log"`                // the last lines
}

// Duration is a time.Duration that is written as people write it: "90s".
type Duration time.Duration

// MarshalText writes time.Duration's notation.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads time.Duration's notation.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	*d = Duration(v)
	return err
}
