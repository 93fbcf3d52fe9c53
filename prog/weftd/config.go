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

	"go.yaml.in/yaml/v3"

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
	maxPoolBits   = 26 // one atom of the default size
)

// Config is what the daemon is told by its operator. The zero value of each field means the default that its comment
// names; Complete fills these in.
type Config struct {
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
	Pool6         netip.Prefix     // IPv6 for a new cluster: a linked /96 of a random unique local prefix
	NoPool6       bool             // a new cluster without IPv6
	AcceptOverlap bool             // make or join a cluster although this machine uses addresses of its pools
	ExpectNodes   int              // how many machines a new cluster will have, about: sizes what is granted to each
	Advertise     []netip.AddrPort // where others find this node, before what it finds out itself; port 0: that of Listen

	Transports    []string       // allowed, best first: all that work here, in the built-in order
	Trusted       []netip.Prefix // subnets on which packets may travel unencrypted: none
	NoMasquerade  []netip.Prefix // destinations outside that see pod addresses: none
	HostAccess    bool           // pods of other machines may open connections to this host, not just ping it
	StrictRestart bool           // after a start serve nothing until a quorum was heard

	Build string       // version for status and records, from the build information
	Log   *slog.Logger // nil: silent
	Stdin io.Reader    // where a token of "-" comes from; nil: there is none

	Founded func(control.InitReply) // told once, when Init has made a cluster; nil: nobody wants to know
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
	case c.NoPool6 && c.Pool6.IsValid():
		return badValue("pool6", c.Pool6.String(), "it is none as well")
	case c.MetricsListen.Port() == c.Listen.Port() && !c.MetricsOff:
		return badValue("metrics-listen", c.MetricsListen.String(), "that port is the weft port")
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
		if err := checkPool6(c.Pool6); err != nil {
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
		defer f.Close()
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

// Setting is one value of Config as operators write it: the same word is the flag, the key in the file and the start
// of the error. This table is the only place that lists them.
type Setting struct {
	Key    string // in the file; --Key as a flag
	Env    string // environment variable; empty: none
	Arg    string // placeholder of the value; empty: a switch, whose value is "true" or "false"
	Help   string
	Global bool // means the same for every command; the others belong to `weft up`

	set func(c *Config, value string) error
	get func(c Config) string
}

// Set puts value into c. The error begins with the key.
func (s Setting) Set(c *Config, value string) error {
	if err := s.set(c, value); err != nil {
		return fmt.Errorf("%s: %w", s.Key, err)
	}
	return nil
}

// Get is the value as Set would take it. That of a token is blotted out.
func (s Setting) Get(c Config) string { return s.get(c) }

// Settings lists every setting, those that every command shares first.
func Settings() []Setting {
	return []Setting{
		{Key: "state", Env: "WEFT_STATE", Arg: "DIR", Global: true,
			Help: "directory for keys and stores (default " + DefaultState + ")",
			set:  setPath(func(c *Config) *string { return &c.State }),
			get:  func(c Config) string { return c.State }},
		{Key: "socket", Env: "WEFT_SOCKET", Arg: "PATH", Global: true,
			Help: "control socket of the daemon (default " + DefaultSocket + ")",
			set:  setPath(func(c *Config) *string { return &c.Socket }),
			get:  func(c Config) string { return c.Socket }},
		{Key: "listen", Env: "WEFT_LISTEN", Arg: "ADDR", Global: true,
			Help: "weft port, UDP and TCP (default :6783)",
			set: func(c *Config, v string) (err error) {
				c.Listen, err = parseListen(v)
				return err
			},
			get: func(c Config) string { return showAddr(c.Listen) }},
		{Key: "metrics-listen", Env: "WEFT_METRICS_LISTEN", Arg: "ADDR", Global: true,
			Help: "metrics and health over HTTP, or none (default 127.0.0.1:6782)",
			set: func(c *Config, v string) (err error) {
				if c.MetricsOff = v == "none"; c.MetricsOff {
					return nil
				}
				c.MetricsListen, err = parseListen(v)
				return err
			},
			get: func(c Config) string {
				if c.MetricsOff {
					return "none"
				}
				return showAddr(c.MetricsListen)
			}},
		{Key: "log-level", Env: "WEFT_LOG_LEVEL", Arg: "LEVEL", Global: true,
			Help: "debug, info, warn or error (default info)",
			set: func(c *Config, v string) error {
				levels := []string{"debug", "info", "warn", "error"}
				if !slices.Contains(levels, v) {
					return want(v, "one of "+strings.Join(levels, ", "))
				}
				return c.LogLevel.UnmarshalText([]byte(v))
			},
			get: func(c Config) string { return strings.ToLower(c.LogLevel.String()) }},

		{Key: "init", Help: "make a cluster with this node as founder, if the state is empty",
			set: setSwitch(func(c *Config) *bool { return &c.Init }),
			get: func(c Config) string { return showSwitch(c.Init) }},
		{Key: "join", Env: "WEFT_TOKEN", Arg: "TOKEN",
			Help: "enter a cluster, if the state is empty; - reads the token from stdin, @FILE from a file",
			set: func(c *Config, v string) error {
				if v == "" || v == "@" {
					return errors.New("the token is empty")
				}
				c.Join = v
				return nil
			},
			get: func(c Config) string {
				if c.Join == "" || c.Join == "-" || c.Join[0] == '@' {
					return c.Join
				}
				return "(a token)"
			}},
		{Key: "name", Arg: "NAME", Help: "name of this node (default: host name)",
			set: func(c *Config, v string) error {
				c.Name = v
				return checkName(v)
			},
			get: func(c Config) string { return c.Name }},
		{Key: "pool", Arg: "CIDR,…", Help: "IPv4 pools of a new cluster (default: a free private range)",
			set: func(c *Config, v string) (err error) {
				if c.Pools, err = parsePrefixes(v); err != nil {
					return err
				}
				for _, p := range c.Pools {
					if err := checkPool4(p); err != nil {
						return err
					}
				}
				return nil
			},
			get: func(c Config) string { return joinPrefixes(c.Pools) }},
		{Key: "pool6", Arg: "CIDR", Help: "IPv6 pool of a new cluster, or none (default: unique local addresses)",
			set: func(c *Config, v string) (err error) {
				c.NoPool6, c.Pool6 = v == "none", netip.Prefix{}
				if c.NoPool6 {
					return nil
				}
				if c.Pool6, err = parsePrefix(v); err != nil {
					return err
				}
				return checkPool6(c.Pool6)
			},
			get: func(c Config) string {
				switch {
				case c.NoPool6:
					return "none"
				case c.Pool6.IsValid():
					return c.Pool6.String()
				}
				return ""
			}},
		{Key: "accept-overlap", Help: "use a pool although this machine already has addresses or routes in it",
			set: setSwitch(func(c *Config) *bool { return &c.AcceptOverlap }),
			get: func(c Config) string { return showSwitch(c.AcceptOverlap) }},
		{Key: "expect-nodes", Arg: "N", Help: "how many machines a new cluster will have, about",
			set: func(c *Config, v string) error {
				n, err := strconv.Atoi(v)
				if err != nil || n < 1 {
					return want(v, "a positive number")
				}
				c.ExpectNodes = n
				return nil
			},
			get: func(c Config) string {
				if c.ExpectNodes == 0 {
					return ""
				}
				return strconv.Itoa(c.ExpectNodes)
			}},
		{Key: "advertise", Arg: "ADDR,…", Help: "addresses, with a port or without, at which others find this node",
			set: func(c *Config, v string) error {
				var all []netip.AddrPort
				for _, s := range fields(v) {
					a, err := ParseAdvertise(s)
					if err != nil {
						return err
					}
					all = append(all, a)
				}
				c.Advertise = all
				return nil
			},
			get: func(c Config) string {
				var all []string
				for _, a := range c.Advertise {
					if a.Port() == 0 {
						all = append(all, a.Addr().String())
					} else {
						all = append(all, a.String())
					}
				}
				return strings.Join(all, ",")
			}},
		{Key: "transport", Arg: "NAME,…",
			Help: "transports to use, best first: " + strings.Join(transportNames(), ", ") + " (default: all that work)",
			set: func(c *Config, v string) error {
				names := fields(v)
				for _, n := range names {
					if !slices.Contains(transportNames(), n) {
						return want(n, "one of "+strings.Join(transportNames(), ", "))
					}
				}
				c.Transports = names
				return nil
			},
			get: func(c Config) string { return strings.Join(c.Transports, ",") }},
		{Key: "trusted-subnets", Arg: "CIDR,…", Help: "underlay subnets where packets may travel unencrypted",
			set: setPrefixes(func(c *Config) *[]netip.Prefix { return &c.Trusted }),
			get: func(c Config) string { return joinPrefixes(c.Trusted) }},
		{Key: "no-masquerade", Arg: "CIDR,…", Help: "destinations outside that see pod addresses as they are",
			set: setPrefixes(func(c *Config) *[]netip.Prefix { return &c.NoMasquerade }),
			get: func(c Config) string { return joinPrefixes(c.NoMasquerade) }},
		{Key: "host-access", Arg: "all", Help: "let pods of other machines open connections to this host",
			set: func(c *Config, v string) error {
				if v != "all" && v != "" {
					return want(v, "all")
				}
				c.HostAccess = v == "all"
				return nil
			},
			get: func(c Config) string {
				if c.HostAccess {
					return "all"
				}
				return ""
			}},
		{Key: "strict-restart", Help: "after a start, serve nothing until a quorum of the cluster has answered",
			set: setSwitch(func(c *Config) *bool { return &c.StrictRestart }),
			get: func(c Config) string { return showSwitch(c.StrictRestart) }},
	}
}

// transportNames are the transports of this build, best first.
func transportNames() []string { return []string{"vxlan", "sleeve"} }

// Load reads a configuration file into c: a YAML map from Setting.Key to a value or a list of values. Errors name the
// line; a key that does not exist is an error, with the nearest one that does.
func (c *Config) Load(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConfigSize+1))
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := c.Parse(b); err != nil {
		return fmt.Errorf("%s:%w", name, err)
	}
	return nil
}

// Parse is Load for bytes. Errors begin with the line: "7: pool[1]: ...".
func (c *Config) Parse(b []byte) error {
	if len(b) > maxConfigSize {
		return fmt.Errorf("1: more than %d bytes", maxConfigSize)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return yamlError(err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil // an empty file, or one of comments
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("%d: want lines of the form key: value", root.Line)
	}
	settings := Settings()
	line := make(map[string]int)
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		at := slices.IndexFunc(settings, func(s Setting) bool { return s.Key == key.Value })
		if at < 0 {
			return unknownKey(key, settings)
		}
		if first, twice := line[key.Value]; twice {
			return fmt.Errorf("%d: %s: it is set already in line %d", key.Line, key.Value, first)
		}
		line[key.Value] = key.Line
		text, err := scalars(value)
		if err != nil {
			return fmt.Errorf("%d: %s: %w", value.Line, key.Value, err)
		}
		if err := settings[at].Set(c, text); err != nil {
			return fmt.Errorf("%d: %w", key.Line, err)
		}
	}
	return nil
}

func unknownKey(key *yaml.Node, settings []Setting) error {
	var known []string
	for _, s := range settings {
		known = append(known, s.Key)
	}
	if near := Nearest(key.Value, known); near != "" {
		return fmt.Errorf("%d: %s: there is no such key, did you mean %s?", key.Line, key.Value, near)
	}
	return fmt.Errorf("%d: %s: there is no such key; the keys are %s", key.Line, key.Value, strings.Join(known, ", "))
}

// scalars is the text of a value, or of a list of values joined by commas.
func scalars(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", errors.New("the value is missing")
		}
		return n.Value, nil
	case yaml.SequenceNode:
		var all []string
		for i, item := range n.Content {
			if item.Kind != yaml.ScalarNode || item.Tag == "!!null" || strings.Contains(item.Value, ",") {
				return "", fmt.Errorf("item %d: want one plain value", i)
			}
			all = append(all, item.Value)
		}
		return strings.Join(all, ","), nil
	}
	return "", errors.New("want a value or a list of values")
}

// yamlError turns "yaml: line 3: ..." into "3: ...".
func yamlError(err error) error {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		return errors.New(rest)
	}
	return errors.New("1: " + text)
}

// ParseAdvertise reads an address with a port or without; port 0 stands for that of Config.Listen.
func ParseAdvertise(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		a, err := netip.ParseAddr(strings.Trim(s, "[]"))
		if err != nil {
			return netip.AddrPort{}, want(s, "an address such as 192.0.2.7 or 192.0.2.7:6783")
		}
		ap = netip.AddrPortFrom(a, 0)
	}
	if a := ap.Addr(); a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Zone() != "" {
		return netip.AddrPort{}, want(s, "an address that other machines can reach")
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func parseListen(s string) (netip.AddrPort, error) {
	if port, ok := strings.CutPrefix(s, ":"); ok {
		s = "[::]:" + port
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return netip.AddrPort{}, want(s, "ADDRESS:PORT or :PORT")
	}
	return ap, nil
}

func showAddr(ap netip.AddrPort) string {
	switch {
	case !ap.IsValid():
		return ""
	case ap.Addr() == netip.IPv6Unspecified():
		return ":" + strconv.Itoa(int(ap.Port()))
	}
	return ap.String()
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, want(s, "a network such as 10.32.0.0/12")
	}
	if p != p.Masked() {
		return netip.Prefix{}, want(s, p.Masked().String()+", without host bits")
	}
	return p, nil
}

func parsePrefixes(s string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, f := range fields(s) {
		p, err := parsePrefix(f)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
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

func checkPool6(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !a.Is6() || a.Is4In6():
		return want(p.String(), "an IPv6 network")
	case p.Bits() < 8 || p.Bits() > 112:
		return want(p.String(), "a size between /8 and /112")
	case a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified():
		return want(p.String(), "addresses that hosts may have")
	}
	return nil
}

func setPath(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if !filepath.IsAbs(v) {
			return want(v, "an absolute path")
		}
		*field(c) = filepath.Clean(v)
		return nil
	}
}

func setSwitch(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		if v != "true" && v != "false" {
			return want(v, "true or false")
		}
		*field(c) = v == "true"
		return nil
	}
}

// showSwitch leaves out what is off.
func showSwitch(on bool) string {
	if on {
		return "true"
	}
	return ""
}

func setPrefixes(field func(*Config) *[]netip.Prefix) func(*Config, string) error {
	return func(c *Config, v string) (err error) {
		*field(c), err = parsePrefixes(v)
		return err
	}
}

func joinPrefixes(prefixes []netip.Prefix) string {
	var all []string
	for _, p := range prefixes {
		all = append(all, p.String())
	}
	return strings.Join(all, ",")
}

// fields splits at commas; an empty list has no fields.
func fields(s string) []string {
	var all []string
	for f := range strings.SplitSeq(s, ",") {
		if f = strings.TrimSpace(f); f != "" {
			all = append(all, f)
		}
	}
	return all
}

func want(got, what string) error { return fmt.Errorf("want %s, got %q", what, got) }

func badValue(key, got, why string) error { return fmt.Errorf("%s: %s, got %q", key, why, got) }

// Nearest is the word that s was probably meant to be, or "".
func Nearest(s string, words []string) string {
	best, found := 1+len(s)/3, ""
	for _, w := range words {
		if d := distance(s, w); d <= best && (found == "" || d < best) {
			best, found = d, w
		}
	}
	return found
}

// distance counts the insertions, deletions and replacements between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
