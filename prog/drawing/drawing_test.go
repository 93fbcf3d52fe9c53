package drawing

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/prog/control"
)

// mesh is a cluster of n members in a few places: round trips are small within a place, some members are behind NAT, and two
// pairs are broken. The same n makes the same mesh.
func mesh(n int) control.Graph {
	random := rand.New(rand.NewPCG(uint64(n), 1))
	places := []string{"fra", "nyc", "sin", "home"}
	g := control.Graph{Version: control.Version, Cluster: "c7q2k3mv", Created: "2026-01-02T03:04:05Z"}
	where := make([]int, n)
	for i := range n {
		where[i] = i % min(len(places), max(1, n/3))
		v := control.GraphNode{
			ID: fmt.Sprintf("%026d", i), Name: fmt.Sprintf("%s-%d", places[where[i]], i/min(len(places), max(1, n/3))+1), State: control.PeerAlive,
			Self: i == 0, NAT: "none", Relay: where[i] == 0 && i < 8, Underlay: netip.AddrFrom4([4]byte{198, 51, byte(where[i]), byte(10 + i)}),
		}
		if where[i] == 3 || n < 8 && i == n-1 {
			v.NAT, v.Relay = "hard", false
		}
		g.Nodes = append(g.Nodes, v)
	}
	if n > 8 {
		g.Nodes[n-1].State, g.Nodes[n-1].Silent = control.PeerDead, "it is dead"
		g.Notes = append(g.Notes, "1 of "+fmt.Sprint(n)+" members did not tell of their ways: what is drawn at them is the others' word")
	}
	for i := range n {
		for j := i + 1; j < n; j++ {
			e := control.GraphEdge{
				A: g.Nodes[i].ID, B: g.Nodes[j].ID, State: control.EdgeDirect, Transport: "sleeve", MTU: 1420,
				Told: []string{g.Nodes[i].ID, g.Nodes[j].ID},
			}
			e.RTTms = 0.2 + random.Float64()
			if where[i] != where[j] {
				e.RTTms += 20 * float64(max(where[i], where[j])+1)
			}
			switch {
			case n > 8 && j == n-1:
				e.State, e.RTTms, e.MTU, e.Reason, e.Told = control.EdgeDown, 0, 0, "it has not answered on any of its 2 addresses", e.Told[:1]
			case g.Nodes[i].NAT == "hard" && g.Nodes[j].NAT == "hard", n < 8 && i == 1 && j == 2:
				e.State, e.Via, e.Reason = control.EdgeRelayed, []string{g.Nodes[0].Name}, "hard NAT on both sides"
			case n > 8 && i == 4 && j == 9:
				e.State, e.Reason = control.EdgeOneWay, g.Nodes[9].Name+" does not reach "+g.Nodes[4].Name+", which reaches it: no answer"
			case n > 8 && i == 5 && j == 6:
				e.State, e.Reason = control.EdgeTCP, "UDP does not pass"
			}
			g.Edges = append(g.Edges, e)
		}
	}
	return g
}

func sizes() []int { return []int{0, 1, 2, 3, 7, 12, 24, 60, 130} }

// wellFormed reads XML to its end.
func wellFormed(b []byte) (paths, members int, err error) {
	d := xml.NewDecoder(bytes.NewReader(b))
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return paths, members, nil
		}
		if err != nil {
			return paths, members, err
		}
		if e, ok := t.(xml.StartElement); ok {
			for _, a := range e.Attr {
				switch a.Name.Local {
				case "data-pair":
					paths++
				case "data-member":
					members++
				}
			}
		}
	}
}

func TestPictureHoldsEveryMemberAndPair(t *testing.T) {
	for _, n := range sizes() {
		g := mesh(n)
		svg := SVG(g)
		paths, members, err := wellFormed(svg)
		if err != nil || paths != len(g.Edges) || members != n {
			t.Errorf("%d members: %d members and %d of %d pairs drawn, %v", n, members, paths, len(g.Edges), err)
		}
		for _, v := range g.Nodes {
			if n <= 100 && !bytes.Contains(svg, []byte(">"+v.Name+"<")) {
				t.Errorf("%d members: the picture does not name %s", n, v.Name)
			}
		}
		if !bytes.Equal(svg, SVG(mesh(n))) {
			t.Errorf("%d members: two pictures of the same differ", n)
		}
	}
}

func TestNothingIsDrawnOutsideThePaper(t *testing.T) {
	for _, n := range sizes() {
		for _, s := range arrange(mesh(n)).spots {
			if s.at.x < 100 || s.at.x > width-100 || s.at.y < 60 || s.at.y > height-60 {
				t.Errorf("%d members: %s stands at %+v", n, s.Name, s.at)
			}
		}
	}
}

func TestSitesStayTogether(t *testing.T) {
	l := arrange(mesh(12))
	changes := 0
	for i, s := range l.spots {
		next := l.spots[(i+1)%len(l.spots)]
		if s.Underlay.As4()[2] != next.Underlay.As4()[2] && s.State == control.PeerAlive && next.State == control.PeerAlive {
			changes++
		}
	}
	if changes > 4 {
		t.Errorf("the order goes from one place to another %d times", changes)
	}
}

// The names of members, and what they say, are other people's words.
func TestWordsOfOthersStayWords(t *testing.T) {
	g := mesh(3)
	evil := `</script><script>alert(1)</script>"'&\` + "\n"
	g.Cluster, g.Notes = evil, []string{evil}
	g.Nodes[1].Name, g.Nodes[1].State, g.Nodes[1].Silent, g.Nodes[1].NAT = evil, evil, evil, evil
	g.Edges[0].State, g.Edges[0].Reason, g.Edges[0].Transport, g.Edges[0].Via = evil, evil, evil, []string{evil}
	svg := SVG(g)
	if _, _, err := wellFormed(svg); err != nil || bytes.Contains(svg, []byte("<script")) {
		t.Errorf("SVG: %v", err)
	}
	page, err := HTML(g)
	if err != nil || bytes.Count(page, []byte("<script")) != 2 || bytes.Contains(page, []byte("alert(1)<")) {
		t.Errorf("HTML holds %d scripts, %v", bytes.Count(page, []byte("<script")), err)
	}
	dot := string(DOT(g))
	for line := range strings.Lines(dot) {
		quotes := strings.Count(strings.NewReplacer(`\\`, "", `\"`, "").Replace(line), `"`)
		if quotes%2 != 0 {
			t.Errorf("DOT: a string is not closed: %s", line)
		}
	}
}

func TestPageLoadsNothing(t *testing.T) {
	page, err := HTML(mesh(12))
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(page), "http://www.w3.org/2000/svg", "")
	for _, word := range []string{"http:", "https:", "src=", "@import", "url(", "<link", "fetch(", "XMLHttpRequest"} {
		if strings.Contains(text, word) {
			t.Errorf("the page holds %q", word)
		}
	}
	if !strings.Contains(text, "default-src 'none'") {
		t.Error("the page may load things")
	}
}

func TestDOTIsUnderstood(t *testing.T) {
	dot, err := exec.LookPath("dot")
	if err != nil {
		t.Skip("needs graphviz, which only draws what this writes (apt-get install graphviz)")
	}
	cmd := exec.CommandContext(t.Context(), dot, "-Tplain")
	cmd.Stdin = bytes.NewReader(DOT(mesh(12)))
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "\nnode ") != 12 || strings.Count(string(out), "\nedge ") != 66 {
		t.Errorf("%v\n%.400s", err, out)
	}
}

// browser finds a Chromium. Where the long tests run, one must be there.
func browser(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("WEFT_TEST_LONG") != "" {
		t.Fatal("needs Chromium: apt-get install chromium")
	}
	t.Skip("needs Chromium: apt-get install chromium")
	return ""
}

// picturesEnv names a folder to keep the screenshots in.
const picturesEnv = "WEFT_PICTURES"

// A real browser runs the page's script, and nothing in it fails: the page says when it is ready, and a link that names a
// member picks it.
func TestPageInABrowser(t *testing.T) {
	chromium := browser(t)
	dir, err := os.MkdirTemp("", "drawing") //nolint:usetesting // a browser's helpers write for a moment after its end, which t.TempDir takes for a fault
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	keep := os.Getenv(picturesEnv)
	// A browser that crashes or hangs is no fault of the page; that it complains of the page is.
	run := func(t *testing.T, args ...string) string {
		t.Helper()
		const tries, each = 3, 2 * time.Minute
		var failed error
		for try := range tries {
			ctx, cancel := context.WithTimeout(t.Context(), each)
			cmd := exec.CommandContext(ctx, chromium, append([]string{
				"--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
				"--user-data-dir=" + filepath.Join(dir, fmt.Sprint("profile", try)),
			}, args...)...)
			cmd.WaitDelay = 10 * time.Second
			var out, words bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &words
			err := cmd.Run()
			cancel()
			if strings.Contains(words.String(), "CONSOLE") {
				t.Errorf("the page complains: %s", words.String())
			}
			if err == nil || errors.Is(err, exec.ErrWaitDelay) { // it has ended, and a helper of its holds on to the pipes
				return out.String()
			}
			failed = fmt.Errorf("%w\n%s", err, words.String())
			t.Logf("the browser failed: %v", failed)
		}
		t.Fatal(failed)
		return ""
	}
	for _, n := range []int{3, 12, 60} {
		page, err := HTML(mesh(n))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, fmt.Sprintf("graph-%d.html", n))
		if err := os.WriteFile(path, page, 0o600); err != nil {
			t.Fatal(err)
		}
		picked := mesh(n).Nodes[1]
		dom := run(t, "--dump-dom", "file://"+path+"#"+picked.Name)
		if !strings.Contains(dom, `data-ready="yes"`) || !strings.Contains(dom, "<h2>"+picked.Name+"</h2>") {
			t.Errorf("%d members: the script did not run to its end", n)
		}
		if rows := strings.Count(dom, "<tr>"); rows != n-1 {
			t.Errorf("%d members: %d pairs of %s are listed", n, rows, picked.Name)
		}
		if on := strings.Count(dom, `class="on"`) + strings.Count(dom, `class="gone on"`); on < n-1 {
			t.Errorf("%d members: %d of %d pairs are lit", n, on, n-1)
		}
		if keep != "" {
			for name, args := range map[string][]string{"light": nil, "dark": {"--blink-settings=preferredColorScheme=0"}} {
				for what, anchor := range map[string]string{"": "", "-picked": "#" + picked.Name} {
					run(t, append(args, "--window-size=1500,1000", fmt.Sprintf("--screenshot=%s/graph-%d-%s%s.png", keep, n, name, what), "file://"+path+anchor)...)
				}
			}
			svg := filepath.Join(dir, "graph.svg")
			if err := os.WriteFile(svg, SVG(mesh(n)), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "--window-size=1200,1000", fmt.Sprintf("--screenshot=%s/svg-%d.png", keep, n), "file://"+svg)
		}
	}
}
