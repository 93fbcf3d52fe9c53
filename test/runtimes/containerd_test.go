package runtimes_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"weft/test/netlab"
	"weft/test/runtimes"
)

// containerdConfig is for images made here, and for machines whose root may not lower oom_score_adj.
const containerdConfig = `version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:1"
  restrict_oom_score_adj = true
`

// criPod is what test/runtimes/cri prints.
type criPod struct {
	Name, ID string
	IPs      []string
	Ready    bool
	Took     float64 `json:"took_ms"`
	Error    string
}

// kubelet asks the containerd of one node.
type kubelet struct {
	*story
	*runtimes.Weft
	containerd *runtimes.Cmd
}

// images are made once for all stories.
func images(t *testing.T) (pause, web []byte) {
	t.Helper()
	pause, err := runtimes.Image("docker.io/library/pause:1", []string{"/bin/sleep", "1000000"})
	if err != nil {
		t.Fatal(err)
	}
	web, err = runtimes.Image("docker.io/library/web:1", []string{"/bin/httpd", "-f", "-p", "8080", "-h", "/"},
		runtimes.File{Path: "index.html", Data: []byte("hello from a pod\n"), Mode: 0o644})
	if err != nil {
		t.Fatal(err)
	}
	return pause, web
}

// containerd starts the runtime on every node.
func (s *story) containerd(w *runtimes.Weft) *kubelet {
	s.Helper()
	k := &kubelet{story: s, Weft: w}
	s.must(w.WriteFile("/etc/containerd/config.toml", []byte(containerdConfig), 0o644))
	s.must(w.Install(criProgram(s.T), "/opt/weft/bin/cri"))
	pause, web := images(s.T)
	s.must(w.WriteFile("/var/lib/images/pause.tar", pause, 0o644))
	s.must(w.WriteFile("/var/lib/images/web.tar", web, 0o644))
	k.start()
	s.sh(w, "for i in /var/lib/images/*.tar; do ctr -n k8s.io image import $i || exit 1; done")
	return k
}

// start starts containerd and waits until it can make pods.
func (k *kubelet) start() {
	k.story.Helper()
	k.containerd = k.Command("containerd")
	k.must(k.containerd.Start())
	k.must(runtimes.Poll(within(k.T, patience), func() error {
		_, err := k.Exec(k.Context(), "cri", "status")
		return err
	}))
}

// criProgram builds the client, which is a module of its own.
func criProgram(t *testing.T) string {
	t.Helper()
	dir, err := bin.get()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "cri")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	c := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-o", path, ".")
	c.Dir, c.Env = "cri", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("build cri: %v\n%s", err, out)
	}
	return path
}

// ask runs cri, which must succeed.
func (k *kubelet) ask(args ...string) (pods []criPod) {
	k.story.Helper()
	out, err := k.Exec(within(k.T, startPatience), "cri", args...)
	if jerr := json.Unmarshal([]byte(out), &pods); err == nil {
		err = jerr
	}
	if err != nil {
		k.Logf("containerd on %s:\n%s", k.Weft.Name(), netlab.Tail(k.containerd.Stderr(), 10))
	}
	k.must(err)
	return pods
}

// namespaces finds those of pods, by address.
func (k *kubelet) namespaces() map[string]string {
	k.story.Helper()
	found := map[string]string{}
	for ns := range strings.FieldsSeq(k.sh(k.Weft, "ls /run/netns")) {
		v4, _ := k.addresses(k.Weft, ns)
		found[v4] = k.Path("/run/netns/" + ns)
	}
	return found
}

// meet lets all pods of all nodes call each other, over both families.
func meet(s *story, nodes []*kubelet, pods map[*kubelet][]criPod) {
	s.Helper()
	var m meeting
	count := 0
	for _, k := range nodes {
		where := k.namespaces()
		for _, p := range pods[k] {
			if len(p.IPs) != 2 || where[p.IPs[0]] == "" {
				s.Fatalf("pod %s has the addresses %v and the namespace %q", p.Name, p.IPs, where[p.IPs[0]])
			}
			s.must(m.join(p.Name, where[p.IPs[0]], p.IPs))
			count++
		}
	}
	answered, err := m.hold(within(s.T, patience))
	s.must(err)
	if want := 2 * count * (count - 1); answered != want {
		s.Errorf("%d calls answered, want %d", answered, want)
	}
}

// owns holds that the claims of a node are those of the pods.
func (k *kubelet) owns(pods []criPod) error {
	claims, err := k.Claims(k.Context())
	var have, want []string
	for _, c := range claims {
		have = append(have, c.Container+" "+c.Address.String())
	}
	for _, p := range pods {
		for _, ip := range p.IPs {
			want = append(want, p.ID+" "+ip)
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if err == nil && !slices.Equal(have, want) {
		err = fmt.Errorf("claims of %s:\n%s\npods:\n%s", k.Weft.Name(), strings.Join(have, "\n"), strings.Join(want, "\n"))
	}
	return err
}

// fetch gets a page as somebody outside.
func fetch(ctx context.Context, from *netlab.Host, address string) (string, error) {
	const once = 10 * time.Second // who calls calls again
	ctx, cancel := context.WithTimeout(ctx, once)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", address)
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(once))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

// Ten pods on each of three nodes: made by a kubelet's requests, reached by each other and from outside, made again, lost
// with their node and made once more.
func TestContainerd(t *testing.T) {
	need(t, "containerd runc", "/usr/bin/containerd", "/usr/bin/ctr", "/usr/sbin/runc")
	s := tell(t, 3)
	var nodes []*kubelet
	pods := map[*kubelet][]criPod{}
	for _, w := range s.nodes {
		nodes = append(nodes, s.containerd(w))
	}
	empty := s.settled(s.nodes[1])
	const each = "10"
	for _, k := range nodes {
		pods[k] = k.ask("up", "-n", each, "-parallel", "5", "-prefix", k.Weft.Name()+"-", "-port", "8088:8080", "-image",
			"docker.io/library/web:1", "/bin/httpd", "-f", "-p", "8080", "-h", "/")
		s.must(k.owns(pods[k]))
	}
	meet(s, nodes, pods)

	// The host port of the first pod of each node, from outside and from the next node.
	for i, k := range nodes {
		at := net.JoinHostPort(k.Host().Addr4().String(), "8088")
		for _, from := range []*netlab.Host{nodes[(i+1)%3].Host(), hostOf(s, "internet")} {
			s.must(runtimes.Poll(within(t, patience), func() error {
				page, err := fetch(t.Context(), from, at)
				if err == nil && !strings.Contains(page, "hello from a pod") {
					err = errors.New("got " + page)
				}
				return err
			}))
		}
	}

	// One pod is made again, as after a crash; its address is another's business then.
	first := nodes[0]
	first.ask("down", pods[first][3].ID)
	again := first.ask("up", "-prefix", "again-")
	pods[first] = append(slices.Delete(pods[first], 3, 4), again...)
	s.must(first.owns(pods[first]))
	meet(s, nodes, pods)

	// The second node loses its power. Its pods are gone, its disk is not.
	lost := nodes[1]
	s.must(lost.Kill())
	s.must(lost.Boot())
	s.must(lost.Up())
	lost.start()
	if old := lost.ask("list"); len(old) != len(pods[lost]) || old[0].Ready {
		t.Errorf("after the power cut there are %+v", old)
	}
	lost.ask("down", "-parallel", "5")
	s.must(runtimes.Poll(within(t, patience), func() error { return lost.owns(nil) }))
	s.whole()
	pods[lost] = lost.ask("up", "-n", each, "-parallel", "5", "-prefix", "back-")
	s.must(lost.owns(pods[lost]))
	meet(s, nodes, pods)

	for _, k := range nodes {
		k.ask("down", "-parallel", "10")
		s.must(k.owns(nil))
	}
	s.must(runtimes.Poll(within(t, patience), func() error {
		after, err := lost.Picture(t.Context())
		if err == nil && portmapless(after) != portmapless(empty) {
			err = fmt.Errorf("something is left behind:\n%s\n---\n%s", empty, after)
		}
		return err
	}))
}

func hostOf(s *story, name string) *netlab.Host {
	for _, h := range s.lab.Hosts() {
		if h.Name() == name {
			return h
		}
	}
	s.Fatalf("there is no host %s", name)
	return nil
}

// portmapless leaves out what is not weft's: portmap keeps its empty chains, and addresses come in another order.
func portmapless(picture string) string {
	a, rest, _ := strings.Cut(picture, "# nft -s list ruleset\n")
	_, b, _ := strings.Cut(rest, "# ls /run/netns\n")
	return a + b
}

// Many at once.
func TestContainerdStorm(t *testing.T) {
	need(t, "containerd runc", "/usr/bin/containerd", "/usr/bin/ctr", "/usr/sbin/runc")
	n := "32"
	if os.Getenv("WEFT_TEST_LONG") != "" {
		n = "100"
	}
	s := tell(t, 1)
	k := s.containerd(s.nodes[0])
	start := time.Now()
	pods := k.ask("up", "-n", n, "-parallel", "16")
	t.Logf("%d pods at 16 in parallel: %v", len(pods), time.Since(start).Round(time.Millisecond))
	s.must(k.owns(pods))
	meet(s, []*kubelet{k}, map[*kubelet][]criPod{k: pods})
	start = time.Now()
	k.ask("down", "-parallel", "16")
	t.Logf("gone again: %v", time.Since(start).Round(time.Millisecond))
	s.must(k.owns(nil))
}
