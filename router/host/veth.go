package host

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
)

// The gateway that every pod sees. No device holds these addresses: a permanent neighbour entry in the pod is all it
// takes.
var (
	Gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	Gateway6 = netip.MustParseAddr("fe80::1")
)

// Veth is the wanted connection of one pod.
type Veth struct {
	ID      string // names the attachment for as long as it lives: container and interface
	NetNS   string // path of the pod's network namespace; empty: another program moves LooseName into it, later
	IfName  string // in the pod
	V4, V6  netip.Addr
	MTU     int
	MAC     string         // of the pod's end; empty: made of ID
	Routes  []netip.Prefix // reached through the gateway even when the pod has a default route of another's
	Source4 netip.Addr     // host address, source of packets from the host to the pod
	Source6 netip.Addr
	// Siblings says that the pod has more interfaces and answers by any: the reverse path filter is off then, and which
	// sources there may be is for nftables alone to say. It matters only without NetNS.
	Siblings bool
}

// VethName is the name of the host's end of the pair of an attachment.
func VethName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return VethPrefix + hex.EncodeToString(sum[:6])
}

// LooseName is the name of the pod's end of a pair whose namespace is to come.
func LooseName(id string) string {
	sum := sha256.Sum256([]byte(id))
	return VethPrefix + "-" + hex.EncodeToString(sum[:6])
}

// vethMAC is fixed by name and end, so that attaching again finds what it made, and no udev rule replaces it.
func vethMAC(id, end string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(end + "\x00" + id))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^0x01 | 0x02
	return mac
}

// MACs are those of both ends.
func (v Veth) MACs() (onHost, inPod string) {
	inPod = vethMAC(v.ID, "pod").String()
	if v.MAC != "" {
		inPod = v.MAC
	}
	return vethMAC(v.ID, "host").String(), inPod
}

// NetNSError says what is wrong with the namespace of a pod, in words for a person.
type NetNSError struct {
	Path   string
	Reason string
	Err    error
}

func (e *NetNSError) Error() string {
	return fmt.Sprintf("network namespace %s: %s", e.Path, e.Reason)
}

func (e *NetNSError) Unwrap() error { return e.Err }

// IfNameError says that a pod has another interface under the wanted name.
type IfNameError struct {
	NetNS, IfName string
}

func (e *IfNameError) Error() string {
	return fmt.Sprintf("the name %s is taken in network namespace %s by an interface that is not weft's; choose another "+
		"with --ifname", e.IfName, e.NetNS)
}
