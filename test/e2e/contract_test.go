package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weft/prog/control"
	"weft/test/cluster"
)

// What scripts rely on: keys and kinds of values of what is printed with --json. A key may be added, here too; none may go.
const (
	contractStatus = `{"version":1,
		"node":{"id":"","name":"","state":"","reason":"","underlay":[""],"overlay":[""],"nat":"","relay":true,"voter":true,"issuer":false,"uptime_s":0,"build":""},
		"cluster":{"id":"","pools":[""],"encryption":"","members":3,"alive":3},
		"transports":[{"name":"","available":false,"reason":""}],
		"peers":[{"id":"","name":"","state":"","blocks":[""],"transport":"","encrypted":true,"path":"","via":[""],"endpoint":"","reason":"","mtu":0,"rtt_ms":0.4,"loss":0.0,"last_seen_s":0.2,"key_age_s":35,"rx_bytes":0,"tx_bytes":0}],
		"ipam":{"state":"","reason":"","blocks":[""],"used":0,"free":0,"unreachable":0,"reclaims":[]},
		"warnings":[""]}`
	contractClaims = `{"version":1,"claims":[{"address":"","container":"","ifname":"","netns":"","pod":"","created":""}],"reserved":[]}`
	contractRing   = `{"version":1,"blocks":[{"prefix":"","owner":"","owner_name":"","view":0,"seq":0}]}`
	contractTokens = `{"version":1,"tokens":[{"id":"","expires":"","uses":0,"used":0,"ephemeral":false,"revoked":false}]}`
)

// Every command does what it says, exits as it should, prints results on stdout and words on stderr.
func TestCommandLineContract(t *testing.T) {
	t.Parallel() // it mostly waits
	s := tell(t)
	away := s.site("away") // where no daemon runs
	token := s.founded()
	s.must(s.b.Up("--join", token))
	s.must(s.c.Up())
	s.serving(s.c)
	s.machines = s.machines[:2]
	s.whole()
	pods := s.pods()
	s.connected(pods)

	type line struct {
		on     *cluster.Machine
		args   string
		code   int
		stdout string // an expression; empty: nothing on stdout
		stderr string // an expression; empty: anything
	}
	words := func(l line) cluster.Result {
		t.Helper()
		r := l.on.Type(strings.Fields(l.args)...)
		ok := r.Code == l.code && regexp.MustCompile(`(?s)^`+l.stdout+`\n?$`).MatchString(r.Stdout) && regexp.MustCompile(`(?s)`+l.stderr).MatchString(r.Stderr)
		if l.code != 0 && !strings.HasPrefix(r.Stderr, "weft: ") {
			ok = false
		}
		if !ok {
			t.Errorf("weft %s on %s: exit %d, want %d\n--- stdout, want %s\n%s--- stderr, want %s\n%s", l.args, l.on, r.Code, l.code,
				l.stdout, r.Stdout, l.stderr, r.Stderr)
		}
		return r
	}
	for _, l := range []line{
		{s.a, "version", 0, `weft .+`, ``},
		{s.a, "status", 0, `.+`, ``},
		{s.a, "init", 0, ``, `already`},
		{s.b, "join " + token, 0, ``, `already`},
		{s.a, "peer list", 0, `.*b.*`, ``},
		{s.a, "peer show b", 0, `.+`, ``},
		{s.a, "peer show nobody", 1, ``, `nobody`},
		{s.a, "issuer list", 0, `.+`, ``},
		{s.a, "ip list", 0, `.*10\..*`, ``},
		{s.a, "ip ring", 0, `.*10\..*`, ``},
		{s.a, "ping b -c 2", 0, `.*sleeve.*`, ``},
		{s.a, "ping nobody -c 1", 1, ``, `nobody`},
		{s.a, "doctor", 0, `.+`, ``},
		{s.a, "doctor b", 0, `.+`, ``},
		{s.a, "config check", 0, `.*`, ``},
		{s.a, "token list", 0, `.+`, ``},
		{s.a, "token revoke zzzzzz", 1, ``, `token`},
		{s.a, "attach /run/netns/nothing-there", 1, ``, `nothing-there`},
		{s.a, "--help", 0, `.*status.*`, ``},
		{s.a, "status --help", 0, `.*--json.*`, ``},
		{s.c, "status", 0, `.*waiting.*`, ``},
		{s.c, "attach " + pods[0].Path(), 1, ``, `no cluster`},

		{s.a, "nonsense", 2, ``, ``},
		{s.a, "status --nonsense", 2, ``, ``},
		{s.a, "status extra", 2, ``, ``},
		{s.a, "attach", 2, ``, ``},
		{s.a, "peer", 2, ``, ``},
		{s.c, "join", 2, ``, `TOKEN`},
		{s.a, "token create --uses -1", 2, ``, `uses`},
		{s.a, "up --pool 10.0.0.0/33", 2, ``, `pool`},
		{s.a, "up --listen nonsense", 2, ``, `listen`},

		{away, "status", 3, ``, `running`},
		{away, "token list", 3, ``, ``},
		{away, "attach " + pods[0].Path(), 3, ``, ``},
		{away, "leave", 3, ``, ``},
	} {
		words(l)
	}

	for args, contract := range map[string]string{
		"status --json": contractStatus, "ip list --json": contractClaims, "ip ring --json": contractRing, "token list --json": contractTokens,
	} {
		r := words(line{s.a, args, 0, `.*`, ``})
		s.shaped(args, contract, r.Stdout)
	}
	for _, args := range []string{"peer list", "peer show b", "issuer list", "doctor", "version"} {
		r := words(line{s.a, args + " --json", 0, `.*`, ``})
		var doc map[string]any
		if err := json.Unmarshal([]byte(r.Stdout), &doc); err != nil || doc["version"] == nil {
			t.Errorf("weft %s --json: no document with a version: %v\n%s", args, err, r.Stdout)
		}
	}
	// A machine without a cluster has the same shape, with empty lists.
	s.shaped("status --json on c", contractStatus, words(line{s.c, "status --json", 0, `.*`, ``}).Stdout)

	// A token alone on stdout; the line to type on stderr.
	r := words(line{s.a, "token create --uses 2 --ttl 1h", 0, `weft1[a-z2-7]+`, `weft up --join weft1`})
	// Attach prints bare addresses, IPv4 first, again the same.
	extra := s.a.Pod("extra")
	first := words(line{s.a, "attach " + extra.Path(), 0, `10\.[0-9.]+\nfd[0-9a-f:]+`, ``})
	again := words(line{s.a, "attach " + extra.NSName() + " --name " + extra.NSName(), 0, `10\.[0-9.]+\nfd[0-9a-f:]+`, ``})
	if first.Stdout != again.Stdout {
		t.Errorf("attach printed %q and then %q", first.Stdout, again.Stdout)
	}
	words(line{s.a, "detach " + extra.Path(), 0, `.*`, ``})
	words(line{s.a, "detach " + extra.Path(), 0, ``, ``})
	words(line{s.a, "attach " + extra.Path() + " --ip 10.200.0.1", 1, ``, `10\.200\.0\.1`})

	// A report holds no secret.
	report := words(line{s.a, "report", 0, `\{.*\}`, ``}).Stdout
	for _, secret := range []string{token, strings.TrimSpace(r.Stdout), "PRIVATE KEY"} {
		if strings.Contains(report, secret) {
			t.Errorf("the report holds %.12s…", secret)
		}
	}

	// Health.
	pages := func(m *cluster.Machine, want map[string]int) {
		t.Helper()
		for path, code := range want {
			got, body, err := m.Get(t.Context(), path)
			if err != nil || got != code {
				t.Errorf("%s on %s: status %d, %v, want %d: %s", path, m, got, err, code, body)
			}
		}
	}
	pages(s.a, map[string]int{"/healthz": http.StatusOK, "/readyz": http.StatusOK, "/metrics": http.StatusOK, "/": http.StatusNotFound})
	pages(s.c, map[string]int{"/healthz": http.StatusOK, "/readyz": http.StatusServiceUnavailable, "/metrics": http.StatusOK})
	all := s.metrics(s.a)
	for name := range all {
		if !strings.HasPrefix(name, "weft_") {
			t.Errorf("metric %s does not start with weft_", name)
		}
	}
	if all["weft_ready"] != 1 || all["weft_pods"] != 1 {
		t.Errorf("metrics say ready %v, pods %v", all["weft_ready"], all["weft_pods"])
	}
	if wire := s.a.Wire(); wire == 0 {
		t.Error("no data plane shows as weft wire")
	}

	// The end: leave refuses while pods are attached; down keeps, leave does not, purge leaves the machine as it was.
	words(line{s.b, "leave", 1, ``, `pods are still attached`})
	words(line{s.b, "down", 0, ``, ``})
	words(line{s.b, "status", 3, ``, ``})
	words(line{s.b, "down", 3, ``, ``})
	if pid := s.b.Wire(); pid != 0 {
		t.Errorf("after weft down a wire runs, process %d", pid)
	}
	s.must(s.b.Up())
	s.whole()
	s.must(pods[1].Detach())
	words(line{s.b, "leave --purge", 0, ``, ``})
	s.must(cluster.Poll(s.within(patience), func() error { // the kernel takes devices back on its own
		left := slices.DeleteFunc(s.b.Devices(), func(d string) bool { return d == "lo" || d == "eth0" || isFallback(d) })
		if left = append(left, s.b.Tables()...); len(left) > 0 {
			return fmt.Errorf("after leave --purge there are devices and tables %v", left)
		}
		return nil
	}))
	if n := s.b.DeleteRoutes(); n > 0 {
		t.Errorf("after leave --purge there are %d unreachable routes", n)
	}
	_, err := s.a.WaitFor(s.within(patience), func(st control.Status) error {
		if st.Cluster.Alive != 1 || st.IPAM.Free < 1<<19 {
			return fmt.Errorf("%d alive, %d addresses free", st.Cluster.Alive, st.IPAM.Free)
		}
		return nil
	})
	s.must(err)
}

// isFallback tells the devices that the kernel makes in every new namespace, where it is set to.
func isFallback(d string) bool {
	return slices.Contains([]string{"tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0", "dummy0"}, d)
}

// shaped compares a document with its contract: the same keys, values of the same kind, no null anywhere.
func (s *story) shaped(what, contract, got string) {
	s.Helper()
	var want, have any
	s.must(json.Unmarshal([]byte(contract), &want))
	if err := json.Unmarshal([]byte(got), &have); err != nil {
		s.Errorf("%s: %v\n%s", what, err, got)
		return
	}
	var compare func(path string, want, have any)
	compare = func(path string, want, have any) {
		if fmt.Sprintf("%T", want) != fmt.Sprintf("%T", have) {
			s.Errorf("%s: %s is %v (%T), want a %T", what, path, have, have, want)
			return
		}
		switch want := want.(type) {
		case map[string]any:
			w, h := slices.Sorted(maps.Keys(want)), slices.Sorted(maps.Keys(have.(map[string]any)))
			if !slices.Equal(w, h) {
				s.Errorf("%s: %s has the keys\n%v, want\n%v", what, path, h, w)
			}
			for k, v := range want {
				if now, ok := have.(map[string]any)[k]; ok {
					compare(path+"."+k, v, now)
				}
			}
		case []any:
			for i, v := range have.([]any) {
				if len(want) == 0 {
					s.Errorf("%s: %s is not empty", what, path)
					return
				}
				compare(fmt.Sprintf("%s[%d]", path, i), want[0], v)
			}
		}
	}
	compare("", want, have)
}
