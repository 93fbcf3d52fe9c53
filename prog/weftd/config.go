package weftd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/crypto/identity"
	"weft/mesh"
	"weft/prog/control"
)

// The defaults of what an operator may move.
const (
	DefaultState  = "/var/lib/weft"
	DefaultSocket = "/run/weft/weft.sock"
	DefaultConfig = "/etc/weft/weft.yaml"
	DefaultPort   = 6783
	MetricsPort   = 6782
)

const (
	maxConfigSize = 1 << 20 // bytes of a configuration file
	maxTokenSize  = 4 << 10 // bytes read in search of a token
	maxName       = 63
	minPoolBits   = 8
	maxPoolBits   = 28 // 14 addresses for two machines
	minPool6Bits  = 16
	maxPool6Bits  = 120
)

// Config is what the daemon is told by its operator. The zero value of each field means the default that its comment
// names; Complete fills these in.
type Config struct { //nolint:recvcheck // Load and Parse fill it in, all others only read
	State         string         // directory for keys and stores: DefaultState
	Socket        string         // of the control API: DefaultSocket
	Listen        netip.AddrPort // the weft port, UDP and TCP; address :: means every address of both families: [::]:6783
	MetricsListen netip.AddrPort // of /metrics, /healthz and /readyz: 127.0.0.1:6782
	MetricsOff    bool           // serve no metrics and no health
	LogLevel      slog.Level     // info

	Init bool   // make a cluster when the state is empty
	Join string // enter one when the state is empty: a token, "-" for Stdin, "@FILE"; see Token
	Name string // of this node: the host name up to its first dot

	Pools         []netip.Prefix   // IPv4 for a new cluster: the first free one of the built-in list
	NoPool        bool             // a new cluster without IPv4: Pool6 is cut for the machines as Pools would be
	Pool6         netip.Prefix     // IPv6 for a new cluster: a linked /96 of a random unique local prefix, or with NoPool a /48
	NoPool6       bool             // a new cluster without IPv6
	AcceptOverlap bool             // make or join a cluster although this machine uses addresses of its pools
	ExpectNodes   int              // how many machines a new cluster will have, about: sizes what is granted to each
	Advertise     []netip.AddrPort // where others find this node, before what it finds out itself; port 0: that of Listen

	Transports    []string       // allowed, best first: all that work here, in the built-in order
	Trusted       []netip.Prefix // subnets on which packets may travel unencrypted: none
	NoMasquerade  []netip.Prefix // destinations outside that see pod addresses: none
	HostAccess    bool           // pods of other machines may open connections to this host, not just ping it
	RemoveAfter   time.Duration  // silence after which a member is removed; 0: DefaultRemoveAfter, negative: never
	StrictRestart bool           // after a start serve nothing until a quorum was heard
	NoRelay       bool           // carry nothing for other members
	RelayListen   netip.AddrPort // second port for members that get out by TCP alone: none
	SparseAbove   int            // members above which sessions are opened by traffic; 0: sparse.Everybody
	SparseIdle    time.Duration  // without a packet, until such a session is closed; 0: sparse.IdleData
	Docker        bool           // serve Docker's network plugin
	ReclaimAfter  time.Duration  // how long a pod's namespace is gone before its addresses are; 0: 10 min
	AddressRest   time.Duration  // how long a released address rests; 0: 1 min

	Build    string       // version for status and records, from the build information
	WireUnit string       // systemd unit that starts the wire; empty: the daemon does
	Log      *slog.Logger // nil: silent
	Stdin    io.Reader    // where a token of "-" comes from; nil: there is none

	Founded   func(control.InitReply)  // told once, when Init has made a cluster; nil: nobody wants to know
	Addressed func(control.TokenReply) // told the first token later, if the machine had no address when Founded was told
}

// Complete checks c and returns it with the defaults filled in. It touches nothing but the host name.
func (c Config) Complete() (Config, error) {
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return Config{}, fmt.Errorf("find host name: %w", err)
		}
		c.Name, _, _ = strings.Cut(host, ".")
	}
	c.State = cmp.Or(c.State, DefaultState)
	c.Socket = cmp.Or(c.Socket, DefaultSocket)
	c.Listen = cmp.Or(c.Listen, netip.AddrPortFrom(netip.IPv6Unspecified(), DefaultPort))
	c.MetricsListen = cmp.Or(c.MetricsListen, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), MetricsPort))
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c, c.Validate()
}

// Validate checks what one value alone cannot show. The error begins with the key of the bad value.
func (c Config) Validate() error {
	switch {
	case !filepath.IsAbs(c.State):
		return badValue("state", c.State, "want an absolute path")
	case !filepath.IsAbs(c.Socket):
		return badValue("socket", c.Socket, "want an absolute path")
	case c.Init && c.Join != "":
		return errors.New("init: a node either makes a cluster or joins one, and join is set too")
	case c.NoPool && len(c.Pools) > 0:
		return badValue("pool", joinPrefixes(c.Pools), "it is none as well")
	case c.NoPool && c.NoPool6:
		return errors.New("pool: it is none and pool6 is none too, so there would be no addresses")
	case c.NoPool6 && c.Pool6.IsValid():
		return badValue("pool6", c.Pool6.String(), "it is none as well")
	case c.MetricsListen.Port() == c.Listen.Port() && !c.MetricsOff:
		return badValue("metrics-listen", c.MetricsListen.String(), "that port is the weft port")
	case c.RelayListen.IsValid() && (c.RelayListen.Port() == c.Listen.Port() || c.RelayListen.Port() == c.MetricsListen.Port() && !c.MetricsOff):
		return badValue("relay-listen", c.RelayListen.String(), "that port is taken by weft itself")
	case len(c.Trusted) > mesh.MaxTrusted:
		return badValue("trusted-subnets", strconv.Itoa(len(c.Trusted)), fmt.Sprintf("at most %d, for every member is told of them", mesh.MaxTrusted))
	case c.ExpectNodes < 0:
		return badValue("expect-nodes", strconv.Itoa(c.ExpectNodes), "want a positive number")
	}
	if err := checkName(c.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	for i, p := range c.Pools {
		if err := checkPool4(p); err != nil {
			return fmt.Errorf("pool[%d]: %w", i, err)
		}
		for j, q := range c.Pools[:i] {
			if p.Overlaps(q) {
				return fmt.Errorf("pool[%d]: %s overlaps pool[%d], %s", i, p, j, q)
			}
		}
	}
	if c.Pool6.IsValid() {
		check := checkLinked6
		if c.NoPool {
			check = checkPool6
		}
		if err := check(c.Pool6); err != nil {
			return fmt.Errorf("pool6: %w", err)
		}
	}
	for i, t := range c.Transports {
		if slices.Contains(c.Transports[:i], t) {
			return fmt.Errorf("transport[%d]: %s is listed twice", i, t)
		}
	}
	return nil
}

// Token resolves Join. It is called only once the state is known to be empty, because a machine that has joined may
// well be started again with a token file that is gone.
func (c Config) Token() (string, error) {
	var src io.Reader
	switch {
	case c.Join == "-":
		if c.Stdin == nil {
			return "", errors.New("read token: there is no standard input")
		}
		src = c.Stdin
	case strings.HasPrefix(c.Join, "@"):
		f, err := os.Open(c.Join[1:])
		if err != nil {
			return "", fmt.Errorf("read token: %w", err)
		}
		defer func() { _ = f.Close() }() // it was only read
		src = f
	default:
		return c.Join, nil
	}
	b, err := io.ReadAll(io.LimitReader(src, maxTokenSize))
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	token := strings.TrimSpace(string(b))
	if token == "" {
		return "", fmt.Errorf("read token: %s is empty", cmp.Or(strings.TrimPrefix(c.Join, "@"), "-"))
	}
	return token, nil
}

func checkName(s string) error {
	ok := s != "" && len(s) <= maxName
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && i < len(s)-1 && (r == '-' || r == '.' || r == '_'))
	}
	if !ok {
		return want(s, fmt.Sprintf("1 to %d letters, digits, dots and hyphens, a letter or digit at both ends", maxName))
	}
	return nil
}

func checkPool4(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !a.Is4():
		return want(p.String(), "an IPv4 network; IPv6 goes into pool6")
	case p.Bits() < minPoolBits || p.Bits() > maxPoolBits:
		return want(p.String(), fmt.Sprintf("a size between /%d and /%d", minPoolBits, maxPoolBits))
	case a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.As4()[0] == 0 || a.As4()[0] >= 240:
		return want(p.String(), "addresses that hosts may have")
	}
	return nil
}

// checkLinked6 is for the IPv6 pool beside IPv4 pools, of which the first /96 is used.
func checkLinked6(p netip.Prefix) error {
	if p.Bits() > identity.Linked6Bits {
		return want(p.String(), fmt.Sprintf("/%d or wider, for an IPv4 address fits behind it; or pool: none", identity.Linked6Bits))
	}
	return checkPool6(p)
}

func checkPool6(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !a.Is6() || a.Is4In6():
		return want(p.String(), "an IPv6 network")
	case p.Bits() < minPool6Bits || p.Bits() > maxPool6Bits:
		return want(p.String(), fmt.Sprintf("a size between /%d and /%d", minPool6Bits, maxPool6Bits))
	case a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified():
		return want(p.String(), "addresses that hosts may have")
	}
	return nil
}
