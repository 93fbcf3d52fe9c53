package cni_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"

	"weft/plugin/cni"
	"weft/prog/control"
	"weft/prog/control/controltest"
)

// said is what a runtime hears.
type said struct {
	code   int
	stdout string
	stderr string
}

// failed is the error on stdout.
func (s said) failed(t *testing.T) (code int, words string) {
	t.Helper()
	var e struct {
		CNIVersion   string
		Code         int
		Msg, Details string
	}
	d := json.NewDecoder(strings.NewReader(s.stdout))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil || s.code == 0 {
		t.Fatalf("exit %d, %v:\n%s", s.code, err, s.stdout)
	}
	if _, err := d.Token(); err != io.EOF {
		t.Errorf("more than one document on stdout:\n%s", s.stdout)
	}
	if e.CNIVersion == "" || e.Msg == "" {
		t.Errorf("the error lacks version or message:\n%s", s.stdout)
	}
	return e.Code, e.Msg + " / " + e.Details
}

// runtime is what calls the plugin.
type runtime struct {
	t       *testing.T
	program string
	daemon  cni.Daemon
	env     map[string]string
}

func member() *controltest.Backend {
	var s control.Status
	s.Cluster.ID, s.Node.State = "c", control.NodeReady
	return controltest.New(s)
}

func newRuntime(t *testing.T, daemon cni.Daemon) *runtime {
	return &runtime{t, "/opt/cni/bin/weft-cni", daemon, map[string]string{
		"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/c1", "CNI_PATH": "/opt/cni/bin",
	}}
}

func (r *runtime) call(command, conf string, env ...string) said {
	var out, errs bytes.Buffer
	p := cni.Plugin{
		Program: r.program, Build: "test", Stdin: strings.NewReader(conf), Stdout: &out, Stderr: &errs,
		Dial: func(string) cni.Daemon { return r.daemon },
		Getenv: func(key string) string {
			if key == "CNI_COMMAND" {
				return command
			}
			for i := 0; i < len(env); i += 2 {
				if env[i] == key {
					return env[i+1]
				}
			}
			return r.env[key]
		},
	}
	code := p.Run(r.t.Context())
	return said{code, out.String(), errs.String()}
}

func conf(version string, more ...string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"weft","type":"weft-cni"%s}`, version, strings.Join(append([]string{""}, more...), ","))
}

func TestEveryVersionGetsItsOwnWords(t *testing.T) {
	for _, version := range []string{"0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(version, func(t *testing.T) {
			r := newRuntime(t, member())
			first := r.call("ADD", conf(version))
			if first.code != 0 || first.stderr != "" {
				t.Fatalf("exit %d %s %s", first.code, first.stdout, first.stderr)
			}
			var result struct {
				CNIVersion string
				Interfaces []struct{ Name, Sandbox string }
				IPs        []struct {
					Version, Address, Gateway string
					Interface                 int
				}
				Routes []struct{ Dst, GW string }
			}
			if err := json.Unmarshal([]byte(first.stdout), &result); err != nil {
				t.Fatal(err)
			}
			if result.CNIVersion != version || len(result.IPs) != 2 || result.IPs[0].Address != "10.32.0.2/32" {
				t.Errorf("%s", first.stdout)
			}
			if old := version < "1"; old != (result.IPs[0].Version == "4") {
				t.Errorf("family in version %s: %s", version, first.stdout)
			}
			if dev := result.Interfaces[result.IPs[0].Interface]; dev.Name != "eth0" || dev.Sandbox != "/run/netns/c1" {
				t.Errorf("the address is that of %+v", dev)
			}
			if again := r.call("ADD", conf(version)); again != first {
				t.Errorf("ADD again says something else:\n%s\n%s", first.stdout, again.stdout)
			}
			for range 2 {
				if s := r.call("DEL", conf(version, `"prevResult":`+first.stdout)); s != (said{}) {
					t.Errorf("DEL: %+v", s)
				}
			}
			s := r.call("CHECK", conf(version, `"prevResult":`+first.stdout))
			if code, words := s.failed(t); version < "0.4" && code != 1 || version >= "0.4" && code != 3 {
				t.Errorf("CHECK after DEL: %d %s", code, words)
			}
			for _, late := range []string{"GC", "STATUS"} {
				if s := r.call(late, conf(version)); version == "1.1.0" != (s.code == 0) {
					t.Errorf("%s: %+v", late, s)
				}
			}
		})
	}
}

func TestVersionNeedsNothing(t *testing.T) {
	s := newRuntime(t, nil).call("VERSION", "")
	if s.code != 0 || !strings.Contains(s.stdout, `"1.1.0"`) || !strings.Contains(s.stdout, `"0.3.1"`) {
		t.Errorf("%+v", s)
	}
	s = newRuntime(t, nil).call("", "")
	if s.code != 0 || s.stdout != "" || !strings.Contains(s.stderr, "container runtimes") {
		t.Errorf("a person gets %+v", s)
	}
}

func TestWithoutADaemon(t *testing.T) {
	r := newRuntime(t, control.NewClient(t.TempDir()+"/weft.sock"))
	for command, want := range map[string]int{"ADD": 11, "GC": 11, "STATUS": 50} {
		code, words := r.call(command, conf("1.1.0")).failed(t)
		if code != want || !strings.Contains(words, "weft up") {
			t.Errorf("%s: %d %s", command, code, words)
		}
	}
	s := r.call("DEL", conf("1.1.0"))
	if s.code != 0 || s.stdout != "" || !strings.Contains(s.stderr, "not running") {
		t.Errorf("DEL: %+v", s)
	}
}

func TestChecksWhatWasAdded(t *testing.T) {
	r := newRuntime(t, member())
	result := r.call("ADD", conf("1.1.0")).stdout
	if s := r.call("CHECK", conf("1.1.0", `"prevResult":`+result)); s.code != 0 || s.stdout != "" {
		t.Errorf("%+v", s)
	}
	for name, c := range map[string]struct {
		prev string
		code int
	}{
		"no result":                 {``, 7},
		"an empty result":           {`"prevResult":{"cniVersion":"1.1.0"}`, 7},
		"a result without version":  {`"prevResult":{}`, 6},
		"an interface that is null": {`"prevResult":{"cniVersion":"1.1.0","interfaces":[null]}`, 6},
		"an address of another":     {`"prevResult":{"cniVersion":"1.1.0","interfaces":[{"name":"net1","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.32.0.2/32"}]}`, 7},
		"a result that is no JSON":  {`"prevResult":7`, 6},
	} {
		more := []string{}
		if c.prev != "" {
			more = append(more, c.prev)
		}
		if code, words := r.call("CHECK", conf("1.1.0", more...)).failed(t); code != c.code {
			t.Errorf("%s: %d %s", name, code, words)
		}
	}
}

func TestCollectsTheRest(t *testing.T) {
	r := newRuntime(t, member())
	for _, id := range []string{"a", "b", "c"} {
		if s := r.call("ADD", conf("1.1.0"), "CNI_CONTAINERID", id, "CNI_NETNS", "/run/netns/"+id); s.code != 0 {
			t.Fatal(s)
		}
	}
	s := r.call("GC", conf("1.1.0", `"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]`))
	if s.code != 0 || s.stdout != "" || strings.Count(s.stderr, "released") != 2 || strings.Contains(s.stderr, " b\n") {
		t.Errorf("%+v", s)
	}
}

// A machine may have thousands of containers: all that a runtime may say of them, the daemon hears.
func TestCollectsOnALargeMachine(t *testing.T) {
	r := newRuntime(t, member())
	if s := r.call("ADD", conf("1.1.0"), "CNI_CONTAINERID", "a", "CNI_NETNS", "/run/netns/a"); s.code != 0 {
		t.Fatal(s)
	}
	var valid []string
	for i := range 8000 {
		valid = append(valid, fmt.Sprintf(`{"containerID":"%064x","ifname":"eth0"}`, i))
	}
	s := r.call("GC", conf("1.1.0", `"cni.dev/valid-attachments":[`+strings.Join(valid, ",")+`]`))
	if s.code != 0 || strings.Count(s.stderr, "released") != 1 {
		t.Errorf("%+v", s)
	}
}

func TestKeepsWhatPluginsBeforeItMade(t *testing.T) {
	r := newRuntime(t, member())
	s := r.call("ADD", conf("1.0.0", `"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"net1","sandbox":"/run/netns/c1"}],
		"ips":[{"interface":0,"address":"192.0.2.9/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"192.0.2.1"}],"dns":{"nameservers":["192.0.2.53"]}}`))
	var result struct {
		Interfaces []struct{ Name string }
		IPs        []struct {
			Interface int
			Address   string
		}
		Routes []struct{ Dst, GW string }
		DNS    struct{ Nameservers []string }
	}
	if err := json.Unmarshal([]byte(s.stdout), &result); err != nil || s.code != 0 {
		t.Fatalf("%+v: %v", s, err)
	}
	if len(result.Interfaces) != 3 || len(result.IPs) != 3 || result.IPs[1].Interface != 2 || len(result.DNS.Nameservers) != 1 {
		t.Errorf("%s", s.stdout)
	}
}

func TestLendsByEitherName(t *testing.T) {
	bridge := `{"cniVersion":"1.0.0","name":"other","type":"bridge","ipam":{"type":%q%s}}`
	for _, c := range []struct{ program, kind string }{{"/opt/cni/bin/weft-ipam", "weft-ipam"}, {"/opt/cni/bin/weft-cni", "weft-cni"}} {
		r := newRuntime(t, member())
		r.program = c.program
		s := r.call("ADD", fmt.Sprintf(bridge, c.kind, ""))
		if s.code != 0 || strings.Contains(s.stdout, "interfaces") || !strings.Contains(s.stdout, `"10.32.0.2/16"`) ||
			!strings.Contains(s.stdout, `"10.32.0.1"`) || !strings.Contains(s.stdout, `"0.0.0.0/0"`) {
			t.Errorf("%s: %+v", c.program, s)
		}
		if s := r.call("ADD", fmt.Sprintf(bridge, c.kind, `,"routes":[{"dst":"10.0.0.0/8"}]`)); strings.Contains(s.stdout, "0.0.0.0/0") {
			t.Errorf("routes of the configuration are overruled: %s", s.stdout)
		}
		if s := r.call("CHECK", strings.Replace(fmt.Sprintf(bridge, c.kind, ""), "{", `{"prevResult":`+s.stdout+`,`, 1)); s.code != 0 {
			t.Errorf("CHECK: %+v", s)
		}
		if s := r.call("DEL", fmt.Sprintf(bridge, c.kind, "")); s != (said{}) {
			t.Errorf("DEL: %+v", s)
		}
	}
}

func TestBadInput(t *testing.T) {
	long := strings.Repeat("x", 300<<10)
	for name, c := range map[string]struct {
		command, conf string
		env           []string
		code          int
	}{
		"nothing on stdin":                 {"ADD", "", nil, 6},
		"no JSON":                          {"ADD", "{", nil, 6},
		"300 KB that are no JSON":          {"ADD", long, nil, 6},
		"two documents":                    {"ADD", conf("1.0.0") + "{}", nil, 6},
		"a list":                           {"ADD", "[]", nil, 6},
		"more than fits":                   {"ADD", conf("1.0.0", `"x":"`+strings.Repeat("x", 1<<20)+`"`), nil, 6},
		"no version":                       {"ADD", `{"name":"weft","type":"weft-cni"}`, nil, 1},
		"a version to come":                {"ADD", conf("9.0.0"), nil, 1},
		"a version that is none":           {"ADD", conf("new"), nil, 1},
		"no name":                          {"ADD", `{"cniVersion":"1.0.0","type":"weft-cni"}`, nil, 7},
		"a strange name":                   {"ADD", `{"cniVersion":"1.0.0","name":"we/ft"}`, nil, 7},
		"mtu as text":                      {"ADD", conf("1.0.0", `"mtu":"big"`), nil, 6},
		"a negative mtu":                   {"ADD", conf("1.0.0", `"mtu":-1`), nil, 2},
		"a relative socket":                {"ADD", conf("1.0.0", `"socket":"weft.sock"`), nil, 2},
		"an unknown command":               {"MAKE", conf("1.0.0"), nil, 4},
		"no container":                     {"ADD", conf("1.0.0"), []string{"CNI_CONTAINERID", ""}, 4},
		"a strange container":              {"ADD", conf("1.0.0"), []string{"CNI_CONTAINERID", "../../etc"}, 4},
		"a container of control letters":   {"DEL", conf("1.0.0"), []string{"CNI_CONTAINERID", "a\x1b[2Jb"}, 4},
		"an endless container":             {"DEL", conf("1.0.0"), []string{"CNI_CONTAINERID", long}, 4},
		"a strange interface":              {"ADD", conf("1.0.0"), []string{"CNI_IFNAME", "eth 0"}, 4},
		"an interface in another alphabet": {"ADD", conf("1.0.0"), []string{"CNI_IFNAME", "eth\u2070"}, 4},
		"an interface of 16 letters":       {"ADD", conf("1.0.0"), []string{"CNI_IFNAME", "abcdefghijklmnop"}, 4},
		"no namespace":                     {"ADD", conf("1.0.0"), []string{"CNI_NETNS", ""}, 4},
		"a relative namespace":             {"ADD", conf("1.0.0"), []string{"CNI_NETNS", "c1"}, 4},
		"an address that is none":          {"ADD", conf("1.0.0", `"runtimeConfig":{"ips":["10.32.0.300"]}`), nil, 7},
		"an address with a zone":           {"ADD", conf("1.0.0", `"runtimeConfig":{"ips":["fe80::1%eth0"]}`), nil, 7},
		"aliases that are a number":        {"ADD", conf("1.0.0", `"runtimeConfig":{"aliases":7}`), nil, 7},
		"aliases without end":              {"ADD", conf("1.0.0", `"runtimeConfig":{"aliases":["`+strings.Repeat(`a","`, 100)+`"]}`), nil, 7},
		"a result before that is none":     {"ADD", conf("1.0.0", `"prevResult":"x"`), nil, 6},
	} {
		t.Run(name, func(t *testing.T) {
			b := member()
			code, words := newRuntime(t, b).call(c.command, c.conf, c.env...).failed(t)
			if code != c.code {
				t.Errorf("code %d, want %d: %s", code, c.code, words)
			}
			if len(words) > 1000 || strings.ContainsRune(words, '\x1b') {
				t.Errorf("the words quote too much: %.2000q", words)
			}
			if left, _ := b.IPList(t.Context()); len(left.Claims) > 0 {
				t.Errorf("claims are left: %v", left.Claims)
			}
		})
	}
}

func TestTakesWhatIsNotItsBusiness(t *testing.T) {
	r := newRuntime(t, member())
	s := r.call("ADD", conf("1.0.0", `"bandwidth":{"x":[1,2]}`, `"capabilities":{"ips":true}`, `"note":"`+strings.Repeat("x", 300<<10)+`"`,
		`"runtimeConfig":{"portMappings":[],"aliases":{"weft":["db"],"other":7}}`), "CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;FOO;=;K8S_POD_NAMESPACE=default")
	if s.code == 0 {
		t.Fatal("lists by network with a number among them were taken")
	}
	s = r.call("ADD", conf("1.0.0", `"runtimeConfig":{"portMappings":[],"aliases":{"weft":["db"]}}`),
		"CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=web;FOO;=;K8S_POD_NAMESPACE=default;IP=10.32.7.7")
	if s.code != 0 || !strings.Contains(s.stdout, "10.32.7.7/32") {
		t.Errorf("%+v", s)
	}
}

// A runtime that forgets to hang up is told so, and the program ends.
func TestStdinWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, runtime := io.Pipe()
		defer runtime.Close()
		var out bytes.Buffer
		p := cni.Plugin{Stdin: in, Stdout: &out, Stderr: io.Discard, Getenv: func(string) string { return "ADD" }}
		if p.Run(t.Context()) == 0 || !strings.Contains(out.String(), `"code":5`) {
			t.Errorf("%s", out.String())
		}
	})
}

// Whatever a runtime says, it hears one document and the program lives.
func FuzzRun(f *testing.F) {
	f.Add("ADD", conf("1.1.0"), "c1", "eth0", "IP=10.32.0.9;MAC=02:00:00:00:00:01")
	f.Add("CHECK", conf("0.4.0", `"prevResult":{"cniVersion":"0.4.0","interfaces":[null],"ips":[{"version":"4","interface":0,"address":"10.32.0.2/32"}]}`), "c1", "eth0", "")
	f.Add("GC", conf("1.1.0", `"cni.dev/valid-attachments":[{"containerID":"b","ifname":"eth0"}]`), "", "", "")
	f.Add("DEL", `{"cniVersion":"0.3.1","name":"x","type":"bridge","ipam":{"type":"weft-cni","routes":[null]}}`, "c1", "eth0", "")
	f.Add("ADD", `{"cniVersion":"1.0.0","name":"x","type":"bridge","ipam":{"type":"weft-cni","routes":[{"dst":"10.0.0.0/8"}]}}`, "c1", "eth0", "")
	f.Fuzz(func(t *testing.T, command, conf, container, ifname, args string) {
		b := member()
		var out bytes.Buffer
		code := cni.Plugin{
			Program: "weft-cni", Stdin: strings.NewReader(conf), Stdout: &out, Stderr: io.Discard, Dial: func(string) cni.Daemon { return b },
			Getenv: func(key string) string {
				return map[string]string{
					"CNI_COMMAND": command, "CNI_CONTAINERID": container, "CNI_IFNAME": ifname, "CNI_NETNS": "/run/netns/c1", "CNI_ARGS": args,
				}[key]
			},
		}.Run(t.Context())
		if command != "" && command != "VERSION" && (code != 0 || out.Len() > 0) && !json.Valid(out.Bytes()) {
			t.Errorf("exit %d and no document: %q", code, out.String())
		}
	})
}
