package weftd

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func compareConfig() cmp.Options {
	return cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}), cmpopts.IgnoreFields(Config{}, "Log")}
}

func TestParse(t *testing.T) {
	var got Config
	err := got.Parse([]byte(`# everything that there is
state: /srv/weft
socket: /srv/weft.sock
listen: 192.0.2.7:7000
metrics-listen: none
log-level: debug
init: true
name: alpha
pool:
  - 10.64.0.0/12
  - 10.128.0.0/12
pool6: fd01::/96
accept-overlap: true
expect-nodes: 40
advertise: [192.0.2.7, "[2001:db8::7]:7000"]
transport: sleeve
trusted-subnets: 192.0.2.0/24, 2001:db8::/64
no-masquerade: []
host-access: all
strict-restart: true
docker: true
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		State: "/srv/weft", Socket: "/srv/weft.sock", Listen: netip.MustParseAddrPort("192.0.2.7:7000"),
		MetricsOff: true, LogLevel: slog.LevelDebug, Init: true, Name: "alpha",
		Pools: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/12"), netip.MustParsePrefix("10.128.0.0/12")},
		Pool6: netip.MustParsePrefix("fd01::/96"), AcceptOverlap: true, ExpectNodes: 40,
		Advertise:  []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:0"), netip.MustParseAddrPort("[2001:db8::7]:7000")},
		Transports: []string{"sleeve"}, HostAccess: true, StrictRestart: true, Docker: true,
		Trusted: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")},
	}
	if diff := cmp.Diff(want, got, compareConfig()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := got.Complete(); err != nil {
		t.Error(err)
	}
}

func TestParseErrorsNameLineAndKey(t *testing.T) {
	for text, want := range map[string]string{
		"name: a\nlissten: :1":                     "2: lissten: there is no such key, did you mean listen?",
		"weather: fine":                            "1: weather: there is no such key; the keys are state, socket",
		"dockr: true":                              "1: dockr: there is no such key, did you mean docker?",
		"trusted: 10.0.0.0/8":                      "1: trusted: there is no such key, did you mean trusted-subnets?",
		"name: a\n---\nname: b":                    "2: a second document begins here",
		"listen: [\":1\"]":                         "1: listen: want one value, not a list",
		"reclaim-after: 10":                        "1: reclaim-after: want a duration of a second or more, such as 10m",
		"name: a\n\nname: b":                       "3: name: it is set already in line 1",
		"pool: [10.64.0.0/12, 10.64.1.0/12]":       `1: pool: want 10.64.0.0/12, without host bits, got "10.64.1.0/12"`,
		"pool: fd00::/64":                          `1: pool: want an IPv4 network; IPv6 goes into pool6, got "fd00::/64"`,
		"pool: 127.0.0.0/8":                        "1: pool: want addresses that hosts may have",
		"pool: 10.0.0.0/30":                        "1: pool: want a size between /8 and /28",
		"pool6: fd00::/121":                        "1: pool6: want a size between /16 and /120",
		"pool: [none, 10.0.0.0/8]":                 `1: pool: want a network such as 10.32.0.0/12, got "none"`,
		"pool6: ff00::/16":                         "1: pool6: want addresses that hosts may have",
		"listen: 6783":                             "1: listen: want ADDRESS:PORT or :PORT",
		"listen: \":0\"":                           "1: listen: want ADDRESS:PORT or :PORT",
		"state: var":                               "1: state: want an absolute path",
		"log-level: loud":                          "1: log-level: want one of debug, info, warn, error",
		"strict-restart: maybe":                    "1: strict-restart: want true or false",
		"host-access: some":                        "1: host-access: want all",
		"remove-after: 3s":                         "1: remove-after: want a time of at least 10s, such as 30d or 12h, or never, got \"3s\"",
		"remove-after: 0d":                         "1: remove-after: want a time of at least 10s",
		"expect-nodes: -3":                         "1: expect-nodes: want a positive number",
		"name: -a":                                 "1: name: want 1 to 63 letters",
		"name:":                                    "1: name: the value is missing",
		"name: {first: a}":                         "1: name: want a plain value",
		"pool: [[10.64.0.0/12]]":                   "1: pool: item 0: want one plain value",
		"advertise: 0.0.0.0":                       "1: advertise: want an address that other machines can reach",
		"advertise: fe80::1%eth0":                  "1: advertise: want an address that other machines can reach",
		"advertise: alpha.example":                 "1: advertise: want an address such as 192.0.2.7",
		"transport: [sleeve, pigeon]":              `1: transport: want one of vxlan, vxlan6, wireguard, wireguard-user, sleeve, got "pigeon"`,
		"join: \"@\"":                              "1: join: the token is empty",
		"- name":                                   "1: want lines of the form key: value",
		"name: a\n pool: [":                        "2: ",
		"name: &x a\nstate: *x":                    "2: state: want a plain value",
		"name: a\nname: b\npool: 1":                "2: name: it is set already",
		"pool: " + strings.Repeat("x", 2<<20) + "": "1: more than 1048576 bytes",
	} {
		var c Config
		err := c.Parse([]byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%.60q: got %v, want %s", text, err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	ok := Config{
		State: "/s", Socket: "/s/s", Name: "a", Listen: netip.MustParseAddrPort("[::]:6783"),
		MetricsListen: netip.MustParseAddrPort("127.0.0.1:6782"),
	}
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, spoil := range map[string]func(*Config){
		"state: want an absolute path":                 func(c *Config) { c.State = "s" },
		"socket: want an absolute path":                func(c *Config) { c.Socket = "" },
		"init: a node either makes a cluster or joins": func(c *Config) { c.Init, c.Join = true, "-" },
		"pool6: want /96 or wider":                     func(c *Config) { c.Pool6 = netip.MustParsePrefix("fd00::/112") },
		"pool: it is none as well":                     func(c *Config) { c.NoPool, c.Pools = true, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")} },
		"pool: it is none and pool6 is none too":       func(c *Config) { c.NoPool, c.NoPool6 = true, true },
		"pool6: it is none as well":                    func(c *Config) { c.NoPool6, c.Pool6 = true, netip.MustParsePrefix("fd00::/96") },
		"pool6: want a size":                           func(c *Config) { c.NoPool, c.Pool6 = true, netip.MustParsePrefix("fd00::/128") },
		"metrics-listen: that port is the weft port":   func(c *Config) { c.MetricsListen = netip.MustParseAddrPort("127.0.0.1:6783") },
		"expect-nodes: want a positive number":         func(c *Config) { c.ExpectNodes = -1 },
		"name: want 1 to 63":                           func(c *Config) { c.Name = "a b" },
		"pool[0]: want a size":                         func(c *Config) { c.Pools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/30")} },
		"trusted-subnets: at most 16, for every member is told of them, got \"17\"": func(c *Config) { c.Trusted = make([]netip.Prefix, 17) },
		"transport[1]: sleeve is listed twice":                                      func(c *Config) { c.Transports = []string{"sleeve", "sleeve"} },
		"pool[1]: 10.1.0.0/16 overlaps pool[0], 10.0.0.0": func(c *Config) {
			c.Pools = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}
		},
	} {
		c := ok
		spoil(&c)
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestCompleteFillsDefaultsIn(t *testing.T) {
	c, err := Config{}.Complete()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{
		"state": DefaultState, "socket": DefaultSocket, "listen": ":6783",
		"metrics-listen": "127.0.0.1:6782", "log-level": "info",
	} {
		for _, s := range Settings() {
			if s.Key == key && s.Get(c) != want {
				t.Errorf("%s is %q, want %q", key, s.Get(c), want)
			}
		}
	}
	if c.Name == "" || strings.Contains(c.Name, ".") || c.Log == nil {
		t.Errorf("name %q, log %v", c.Name, c.Log)
	}
}

func TestToken(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(" weft1abc\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg         Config
		want, wrong string
	}{
		"literally":         {cfg: Config{Join: "weft1abc"}, want: "weft1abc"},
		"in a file":         {cfg: Config{Join: "@" + file}, want: "weft1abc"},
		"on stdin":          {cfg: Config{Join: "-", Stdin: strings.NewReader("weft1abc\n")}, want: "weft1abc"},
		"none":              {},
		"no stdin":          {cfg: Config{Join: "-"}, wrong: "read token: there is no standard input"},
		"an empty stdin":    {cfg: Config{Join: "-", Stdin: strings.NewReader("\n")}, wrong: "read token: - is empty"},
		"a broken stdin":    {cfg: Config{Join: "-", Stdin: iotest.ErrReader(os.ErrClosed)}, wrong: "read token: file already closed"},
		"a file that isn't": {cfg: Config{Join: "@/nowhere"}, wrong: "read token: open /nowhere"},
	} {
		got, err := c.cfg.Token()
		if got != c.want || (err == nil) != (c.wrong == "") || err != nil && !strings.HasPrefix(err.Error(), c.wrong) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestNoSettingShowsAToken(t *testing.T) {
	c := Config{Join: "weft1secret"}
	for _, s := range Settings() {
		if strings.Contains(s.Get(c), "secret") {
			t.Errorf("%s shows it", s.Key)
		}
	}
}

func TestNearest(t *testing.T) {
	words := []string{"listen", "metrics-listen", "pool", "pool6", "name"}
	for word, want := range map[string]string{"lisen": "listen", "pol": "pool", "Pool": "pool", "xyz": "", "metric-listen": "metrics-listen", "": ""} {
		if got := Nearest(word, words); got != want {
			t.Errorf("%q: got %q, want %q", word, got, want)
		}
	}
}

// FuzzConfig feeds the file parser anything: it refuses with a line number, or what it understood can be written with
// Setting.Get and read again with Setting.Set.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		"", "# only words", "name: a", "pool: [10.64.0.0/12, 10.128.0.0/12]\npool6: none", "listen: \":7000\"",
		"advertise: [192.0.2.7, \"[2001:db8::7]:1\"]", "a: &a [*a]", "name: !!binary aGk=", "transport: vxlan,sleeve", "metrics-listen: none",
		"? [a]\n: b", "<<: {name: a}", "init: yes", "trusted-subnets: ['::/0', 0.0.0.0/0]",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Config
		if err := c.Parse(b); err != nil {
			if line := err.Error(); line[0] < '0' || line[0] > '9' {
				t.Fatalf("no line: %v", err)
			}
			return
		}
		var again Config
		for _, s := range Settings() {
			v := s.Get(c)
			if v == "" || s.Key == "join" {
				continue
			}
			if err := s.Set(&again, v); err != nil {
				t.Fatalf("wrote what it does not read: %v", err)
			}
		}
		again.Join = c.Join
		if diff := cmp.Diff(c, again, compareConfig(), cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("changed on the way:\n%s", diff)
		}
	})
}
