package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"weft/plugin/docker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a Node in memory: it gives addresses in order and remembers what it was told.
type machine struct {
	mu       sync.Mutex
	fail     error         // what every call answers, nil: it works
	hang     chan struct{} // Claim waits for it; nil: it does not
	leases   map[string]netip.Addr
	pools    []netip.Prefix
	next     netip.Addr
	cables   map[string]string // lease -> MAC
	arranged docker.Arrangement
}

func newMachine() *machine {
	return &machine{
		leases: map[string]netip.Addr{}, next: netip.MustParseAddr("10.32.0.2"), cables: map[string]string{},
		pools: []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), prefix6},
	}
}

// lease is what goes with an address of a pool.
func lease(name string, a netip.Addr) docker.Lease {
	if a.Is6() {
		return docker.Lease{Name: name, V6: a}
	}
	return docker.Lease{Name: name, V4: a, V6: six(a)}
}

var prefix6 = netip.MustParsePrefix("fd00:77::/96")

func six(v4 netip.Addr) netip.Addr {
	b, four := prefix6.Addr().As16(), v4.As4()
	copy(b[12:], four[:])
	return netip.AddrFrom16(b)
}

func (m *machine) Pools(context.Context) ([]netip.Prefix, error) {
	return m.pools, m.failing()
}

func (m *machine) failing() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fail
}

func (m *machine) Claim(ctx context.Context, name string, addr netip.Addr) (docker.Lease, error) {
	if m.hang != nil {
		select {
		case <-m.hang:
		case <-ctx.Done():
			return docker.Lease{}, errors.New("no peer can lend")
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return docker.Lease{}, m.fail
	}
	has, ok := m.leases[name]
	if !ok {
		for other, a := range m.leases {
			if a == addr {
				return docker.Lease{}, fmt.Errorf("%s belongs to %s", addr, other)
			}
		}
		if has = addr; !addr.IsValid() {
			has, m.next = m.next, m.next.Next()
		}
		m.leases[name] = has
	} else if addr.IsValid() && addr != has {
		return docker.Lease{}, fmt.Errorf("%s has %s already", name, has)
	}
	return lease(name, has), nil
}

func (m *machine) Leases(context.Context) ([]docker.Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []docker.Lease
	for name, a := range m.leases {
		all = append(all, lease(name, a))
	}
	return all, m.fail
}

func (m *machine) Release(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.leases, name)
	return m.fail
}

func (m *machine) Connect(_ context.Context, name, mac string) (docker.Cable, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cables[name] = mac
	return docker.Cable{Link: "wf-" + name[len(name)-4:], V6: true}, m.fail
}

func (m *machine) Disconnect(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.cables, name)
	return m.fail
}

func (m *machine) Connected(_ context.Context, name string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, there := m.cables[name]
	return there, m.fail
}

func (m *machine) Arrange(_ context.Context, a docker.Arrangement) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.arranged = a
	return m.fail
}

// shelf is a Store in memory.
type shelf struct {
	mu   sync.Mutex
	text []byte
	fail error
}

func (s *shelf) Load() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text, nil
}

func (s *shelf) Save(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail == nil {
		s.text = bytes.Clone(b)
	}
	return s.fail
}

// daemon plays dockerd.
type daemon struct {
	testing.TB
	*machine
	shelf  *shelf
	plugin *docker.Plugin
}

func start(t testing.TB) *daemon {
	t.Helper()
	d := &daemon{TB: t, machine: newMachine(), shelf: &shelf{}}
	d.restart()
	return d
}

// restart is one of weft.
func (d *daemon) restart() {
	d.Helper()
	p, err := docker.New(docker.Config{Node: d.machine, Store: d.shelf, Socket: d.TempDir() + "/weft.sock"})
	if err != nil {
		d.Fatal(err)
	}
	d.plugin = p
}

// post is one call; refusal is what Docker shows.
func (d *daemon) post(call, body string) (answer map[string]any, refusal string) {
	d.Helper()
	w := httptest.NewRecorder()
	d.plugin.Handler().ServeHTTP(w, httptest.NewRequestWithContext(d.Context(), http.MethodPost, "/"+call, strings.NewReader(body)))
	text, err := io.ReadAll(w.Result().Body)
	if err == nil {
		err = json.Unmarshal(text, &answer)
	}
	if err != nil {
		d.Fatalf("%s answers %q: %v", call, text, err)
	}
	refusal, _ = answer["Err"].(string)
	if other, _ := answer["Error"].(string); other != refusal {
		d.Errorf("%s fails with %q and with %q", call, refusal, other)
	}
	return answer, refusal
}

// ask is a post that works.
func (d *daemon) ask(call, body string, args ...any) map[string]any {
	d.Helper()
	answer, refusal := d.post(call, fmt.Sprintf(body, args...))
	if refusal != "" {
		d.Fatalf("%s: %s", call, refusal)
	}
	return answer
}

// refused is a post that does not work, for a reason with these words.
func (d *daemon) refused(words, call, body string, args ...any) {
	d.Helper()
	_, refusal := d.post(call, fmt.Sprintf(body, args...))
	if refusal == "" || !strings.Contains(refusal, words) {
		d.Errorf("%s: refused with %q, want %q", call, refusal, words)
	}
}

// network is `docker network create`.
func (d *daemon) network(id, options string) {
	d.Helper()
	d.ask("NetworkDriver.CreateNetwork", "%s", networkBody(id, options))
}

func networkBody(id, options string) string {
	return fmt.Sprintf(`{"NetworkID":%q,"Options":{%s},"IPv4Data":[{"AddressSpace":"weft","Pool":"0.0.0.0/0","Gateway":"169.254.1.1/32"}]}`, id, options)
}

// named is the option of a network.
func named(name string) string {
	return fmt.Sprintf(`"com.docker.network.generic":{"network":%q}`, name)
}

// run is `docker run` up to the move of the interface; it returns the address and what Join says.
func (d *daemon) run(network, endpoint, mac, sandbox string) (address string, joined map[string]any) {
	d.Helper()
	address = d.create(network, endpoint, mac)
	return address, d.ask("NetworkDriver.Join", `{"NetworkID":%q,"EndpointID":%q,"SandboxKey":%q}`, network, endpoint, sandbox)
}

func (d *daemon) create(network, endpoint, mac string) string {
	d.Helper()
	got := d.ask("IpamDriver.RequestAddress", `{"PoolID":"weft4","Options":{"com.docker.network.endpoint.macaddress":%q}}`, mac)
	address, _ := got["Address"].(string)
	d.ask("NetworkDriver.CreateEndpoint", `{"NetworkID":%q,"EndpointID":%q,"Interface":{"Address":%q,"MacAddress":%q}}`,
		network, endpoint, address, mac)
	return strings.TrimSuffix(address, "/32")
}

// restartWith gives the plugin another node.
func (d *daemon) restartWith(n docker.Node) {
	d.Helper()
	p, err := docker.New(docker.Config{Node: n, Store: d.shelf})
	if err != nil {
		d.Fatal(err)
	}
	d.plugin = p
}

// deaf is a node that does not mind deadlines.
type deaf struct {
	*machine
	stuck chan struct{}
}

func (n deaf) Pools(ctx context.Context) ([]netip.Prefix, error) {
	<-n.stuck
	return n.machine.Pools(ctx)
}
