package weftd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft/mesh/sparse"
	"weft/plugin/docker"
)

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

// many reports whether the setting takes a list.
func (s Setting) many() bool { return strings.HasSuffix(s.Arg, "…") }

// Settings lists every setting, those that every command shares first.
func Settings() []Setting {
	return []Setting{
		{
			Key: "state", Env: "WEFT_STATE", Arg: "DIR", Global: true,
			Help: "directory for keys and stores (default " + DefaultState + ")",
			set:  setPath(func(c *Config) *string { return &c.State }),
			get:  func(c Config) string { return c.State },
		},
		{
			Key: "socket", Env: "WEFT_SOCKET", Arg: "PATH", Global: true,
			Help: "control socket of the daemon (default " + DefaultSocket + ")",
			set:  setPath(func(c *Config) *string { return &c.Socket }),
			get:  func(c Config) string { return c.Socket },
		},
		{
			Key: "listen", Env: "WEFT_LISTEN", Arg: "ADDR", Global: true,
			Help: "weft port, UDP and TCP (default :6783)",
			set: func(c *Config, v string) (err error) {
				c.Listen, err = parseListen(v)
				return err
			},
			get: func(c Config) string { return showAddr(c.Listen) },
		},
		{
			Key: "metrics-listen", Env: "WEFT_METRICS_LISTEN", Arg: "ADDR", Global: true,
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
			},
		},
		{
			Key: "log-level", Env: "WEFT_LOG_LEVEL", Arg: "LEVEL", Global: true,
			Help: "debug, info, warn or error (default info)",
			set: func(c *Config, v string) error {
				levels := []string{"debug", "info", "warn", "error"}
				if !slices.Contains(levels, v) {
					return want(v, "one of "+strings.Join(levels, ", "))
				}
				return c.LogLevel.UnmarshalText([]byte(v))
			},
			get: func(c Config) string { return strings.ToLower(c.LogLevel.String()) },
		},

		{
			Key: "init", Help: "make a cluster with this node as founder, if the state is empty",
			set: setSwitch(func(c *Config) *bool { return &c.Init }),
			get: func(c Config) string { return showSwitch(c.Init) },
		},
		{
			Key: "join", Env: "WEFT_TOKEN", Arg: "TOKEN",
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
			},
		},
		{
			Key: "name", Arg: "NAME", Help: "name of this node (default: host name)",
			set: func(c *Config, v string) error {
				c.Name = v
				return checkName(v)
			},
			get: func(c Config) string { return c.Name },
		},
		{
			Key: "pool", Arg: "CIDR,…", Help: "IPv4 pools of a new cluster, or none (default: a free private range)",
			set: func(c *Config, v string) (err error) {
				if c.NoPool, c.Pools = v == "none", nil; c.NoPool {
					return nil
				}
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
			get: func(c Config) string {
				if c.NoPool {
					return "none"
				}
				return joinPrefixes(c.Pools)
			},
		},
		{
			Key: "pool6", Arg: "CIDR", Help: "IPv6 pool of a new cluster, or none (default: unique local addresses)",
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
			},
		},
		{
			Key: "accept-overlap", Help: "use a pool although this machine already has addresses or routes in it",
			set: setSwitch(func(c *Config) *bool { return &c.AcceptOverlap }),
			get: func(c Config) string { return showSwitch(c.AcceptOverlap) },
		},
		{
			Key: "expect-nodes", Arg: "N", Help: "how many machines a new cluster will have, about",
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
			},
		},
		{
			Key: "advertise", Arg: "ADDR,…", Help: "addresses, with a port or without, at which others find this node",
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
			},
		},
		{
			Key: "transport", Arg: "NAME,…",
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
			get: func(c Config) string { return strings.Join(c.Transports, ",") },
		},
		{
			Key: "trusted-subnets", Arg: "CIDR,…", Help: "underlay subnets where packets may travel unencrypted",
			set: setPrefixes(func(c *Config) *[]netip.Prefix { return &c.Trusted }),
			get: func(c Config) string { return joinPrefixes(c.Trusted) },
		},
		{
			Key: "no-masquerade", Arg: "CIDR,…", Help: "destinations outside that see pod addresses as they are",
			set: setPrefixes(func(c *Config) *[]netip.Prefix { return &c.NoMasquerade }),
			get: func(c Config) string { return joinPrefixes(c.NoMasquerade) },
		},
		{
			Key: "host-access", Arg: "all", Help: "let pods of other machines open connections to this host",
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
			},
		},
		{
			Key: "remove-after", Arg: "D",
			Help: "silence after which an issuer removes a member, such as 30d or 12h, or never (default 30d; 10 min without a vote)",
			set: func(c *Config, v string) (err error) {
				c.RemoveAfter, err = parseSpan(v)
				return err
			},
			get: func(c Config) string {
				switch {
				case c.RemoveAfter < 0:
					return "never"
				case c.RemoveAfter == 0:
					return ""
				}
				return c.RemoveAfter.String()
			},
		},
		{
			Key: "strict-restart", Help: "after a start, serve nothing until a quorum of the cluster has answered",
			set: setSwitch(func(c *Config) *bool { return &c.StrictRestart }),
			get: func(c Config) string { return showSwitch(c.StrictRestart) },
		},
		{
			Key: "no-relay", Help: "carry no packets and no streams of other members",
			set: setSwitch(func(c *Config) *bool { return &c.NoRelay }),
			get: func(c Config) string { return showSwitch(c.NoRelay) },
		},
		{
			Key: "relay-listen", Arg: "ADDR", Help: "second TCP port, such as :443, for members whose networks let nothing else out",
			set: func(c *Config, v string) (err error) {
				if v == "" {
					c.RelayListen = netip.AddrPort{}
					return nil
				}
				c.RelayListen, err = parseListen(v)
				return err
			},
			get: func(c Config) string { return showAddr(c.RelayListen) },
		},
		{
			Key: "sparse-above", Arg: "N",
			Help: "members above which sessions are opened by traffic; give all the same (default " + strconv.Itoa(sparse.Everybody) + ")",
			set: func(c *Config, v string) error {
				n, err := strconv.Atoi(v)
				if err != nil || n < 1 {
					return want(v, "a positive number")
				}
				c.SparseAbove = n
				return nil
			},
			get: func(c Config) string {
				if c.SparseAbove == 0 {
					return ""
				}
				return strconv.Itoa(c.SparseAbove)
			},
		},
		{
			Key: "sparse-idle", Arg: "DURATION", Help: "time without a packet after which such a session is closed (default 10m)",
			set: func(c *Config, v string) error {
				d, err := time.ParseDuration(v)
				if err != nil || d < minSparseIdle {
					return want(v, "a duration of "+minSparseIdle.String()+" or more, such as 10m")
				}
				c.SparseIdle = d
				return nil
			},
			get: func(c Config) string {
				if c.SparseIdle == 0 {
					return ""
				}
				return c.SparseIdle.String()
			},
		},
		{
			Key: "docker", Help: "be a network plugin of the Docker on this machine, by " + docker.DefaultSocket,
			set: setSwitch(func(c *Config) *bool { return &c.Docker }),
			get: func(c Config) string { return showSwitch(c.Docker) },
		},
		{
			Key: "reclaim-after", Arg: "DURATION", Help: "release addresses of pods whose namespace is gone for so long (default 10m)",
			set: func(c *Config, v string) error {
				d, err := time.ParseDuration(v)
				if err != nil || d < time.Second {
					return want(v, "a duration of a second or more, such as 10m")
				}
				c.ReclaimAfter = d
				return nil
			},
			get: func(c Config) string {
				if c.ReclaimAfter == 0 {
					return ""
				}
				return c.ReclaimAfter.String()
			},
		},
		{
			Key: "address-rest", Arg: "DURATION", Help: "how long a released address rests before another pod gets it (default 1m)",
			set: func(c *Config, v string) error {
				d, err := time.ParseDuration(v)
				if err != nil || d < time.Second {
					return want(v, "a duration of a second or more, such as 1m")
				}
				c.AddressRest = d
				return nil
			},
			get: func(c Config) string {
				if c.AddressRest == 0 {
					return ""
				}
				return c.AddressRest.String()
			},
		},
	}
}

// minSparseIdle is for seeing sessions come and go in a small cluster, where gossip leaves nobody alone for long.
const minSparseIdle = 100 * time.Millisecond

// transportNames are the transports of this build, best first.
func transportNames() []string {
	return []string{"vxlan", "vxlan6", "wireguard", "wireguard-user", "sleeve"}
}
