// Package peer holds the words that mesh, ipam, router and crypto share about the machines of a cluster: who a
// machine is (ID), what is known of it (Info), and when enough of them have answered (Quorum). It decides nothing,
// imports nothing of weft, and touches no network.
package peer

import (
	"bytes"
	"encoding/base32"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// IDSize is the length of an ID in bytes.
const IDSize = 16

// ID names one life of a machine: the first 128 bits of the hash of its Ed25519 public key. A machine that lost its
// state comes back under a new ID.
type ID [IDSize]byte

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// String is the ID as 26 lower-case base32 characters (RFC 4648 alphabet, no padding).
func (id ID) String() string { return encoding.EncodeToString(id[:]) }

// Short is the part of String that people compare by eye.
func (id ID) Short() string { return id.String()[:8] }

// IsZero reports whether id names nobody.
func (id ID) IsZero() bool { return id == ID{} }

// Compare orders IDs by their bytes.
func (id ID) Compare(other ID) int { return bytes.Compare(id[:], other[:]) }

// Parse reads what String wrote.
func Parse(s string) (ID, error) {
	var id ID
	b, err := encoding.DecodeString(s)
	if err != nil || len(b) != IDSize || encoding.EncodeToString(b) != s {
		return ID{}, fmt.Errorf("parse node id %q: want 26 characters of a-z and 2-7", s)
	}
	copy(id[:], b)
	return id, nil
}

// MarshalText writes String, the empty text for the zero ID.
func (id ID) MarshalText() ([]byte, error) {
	if id.IsZero() {
		return []byte{}, nil
	}
	return []byte(id.String()), nil
}

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*id = ID{}
		return nil
	}
	v, err := Parse(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// State is what is known about a member's life.
//
//	Alive <-> Suspect <-> Dead        membership's opinion, may change at any time
//	any -> Removed                    final: the ID never comes back
type State uint8

// The states, worst last.
const (
	Dead State = iota
	Suspect
	Alive
	Removed
)

// String is the word that status prints.
func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Suspect:
		return "suspect"
	case Removed:
		return "removed"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// NAT is what stands between a machine and the internet, as its peers' answers show it.
type NAT uint8

// The kinds of NAT; append-only, they travel in records.
const (
	NATUnknown NAT = iota // not enough peers have answered yet
	NATNone               // it is heard at an address of its own
	NATEasy               // one outside address for all it talks to: holes can be punched
	NATHard               // another outside address for each it talks to
)

// String is the word that status prints.
func (n NAT) String() string {
	switch n {
	case NATNone:
		return "none"
	case NATEasy:
		return "easy"
	case NATHard:
		return "hard"
	case NATUnknown:
	}
	return "unknown"
}

// Home is a relay that a member keeps a session with.
type Home struct {
	ID  ID
	RTT time.Duration // from the member, whole milliseconds
}

// Info is what this node knows about another: its certificate, its newest signed record, and membership's opinion.
// A value of Info is a snapshot; its slices are not shared with the sender.
type Info struct {
	ID    ID
	Name  string // chosen by the operator, not unique by force
	State State

	// From the signed record. Known is false while no record of the peer was seen.
	Known      bool
	Epoch      uint64           // of the record
	Endpoints  []netip.AddrPort // where its weft port may be reached, best first
	Noise      [32]byte         // X25519 public key of its sleeve
	WireGuard  [32]byte         // X25519 public key of its WireGuard device; zero when it has none
	Transports []string         // drivers that it can use, best first
	Trusted    []netip.Prefix   // its --trusted-subnets
	MTU        int              // of its underlay, bytes
	Build      string
	Reflected  []netip.AddrPort // where others hear its weft port over UDP: outside addresses of its NAT
	NAT        NAT
	Relays     bool   // it carries packets and streams of others
	Dialable   bool   // others have reached it unasked
	Homes      []Home // relays that it keeps a session with, best first
	TCPPort    uint16 // of its second TCP port; 0: it has none

	// From the certificate.
	Ephemeral bool   // a member without a vote
	JoinSeq   uint64 // seniority: the founder has 0
	Issuer    bool   // holds a delegation of the root key

	LastSeen time.Time // last authenticated sign of life; zero when there was none
}

// Voter is a member that counts for a quorum.
type Voter struct {
	ID      ID
	JoinSeq uint64
}

// Quorum reports whether those who said yes are a strict majority of the voters, or exactly half of them with the most
// senior one (lowest JoinSeq, then lowest ID). No voters, no quorum.
func Quorum(voters []Voter, yes Set) bool {
	if len(voters) == 0 {
		return false
	}
	senior := slices.MinFunc(voters, func(a, b Voter) int {
		if a.JoinSeq != b.JoinSeq {
			if a.JoinSeq < b.JoinSeq {
				return -1
			}
			return 1
		}
		return a.ID.Compare(b.ID)
	})
	n := 0
	for _, v := range voters {
		if yes.Has(v.ID) {
			n++
		}
	}
	return 2*n > len(voters) || 2*n == len(voters) && yes.Has(senior.ID)
}

// Set is a set of IDs. The zero value is an empty set that can be read.
type Set map[ID]struct{}

// SetOf makes a set.
func SetOf(ids ...ID) Set {
	s := make(Set, len(ids))
	for _, id := range ids {
		s[id] = struct{}{}
	}
	return s
}

// Has reports membership.
func (s Set) Has(id ID) bool { _, ok := s[id]; return ok }

// Add inserts id.
func (s Set) Add(id ID) { s[id] = struct{}{} }

// Sorted lists the set in ascending order.
func (s Set) Sorted() []ID {
	ids := make([]ID, 0, len(s))
	for id := range s {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, ID.Compare)
	return ids
}
