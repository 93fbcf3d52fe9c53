package weftd

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"weft/prog/control"
)

// TestMetricsEndpoints: what is served is in the table, with its labels and type; health and readiness tell apart.
func TestMetricsEndpoints(t *testing.T) {
	ms := machines(t, 2)
	m := ms[0]
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		return m.Dial(ctx, network, addr)
	}}}
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := client.Get("http://127.0.0.1:6782" + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode, string(must(io.ReadAll(resp.Body))(t))
	}
	m.up()
	if code, body := get("/healthz"); code != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %q", code, body)
	}
	if code, body := get("/readyz"); code != http.StatusServiceUnavailable ||
		body != "waiting: no cluster yet: weft init makes one, weft join TOKEN enters one\n" {
		t.Errorf("readyz before there is a cluster: %d %q", code, body)
	}
	if code, body := get("/metrics"); code != http.StatusOK || !strings.Contains(body, "weft_ready 0\n") {
		t.Errorf("metrics before there is a cluster: %d %s", code, body)
	}
	made := must(m.Init(t.Context(), control.InitRequest{}))(t)
	ms[1].up("join=" + made.Token)
	ms[1].ready(2)
	m.ready(2)
	if code, body := get("/readyz"); code != http.StatusOK || body != "ready\n" {
		t.Errorf("readyz: %d %q", code, body)
	}
	if code, _ := get("/"); code != http.StatusNotFound {
		t.Errorf("anything else: %d", code)
	}
	// A round trip is known when the first probe has been answered, which being ready does not wait for.
	var body string
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m.until(ctx, "served a round trip", func() bool {
		_, body = get("/metrics")
		return strings.Contains(body, "\n"+metricPeerRTT.name+"{")
	})
	line := regexp.MustCompile(`^(\w+)(?:\{(.*)\})? \S+$`)
	label := regexp.MustCompile(`(\w+)="`)
	served := map[string]bool{}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		word := line.FindStringSubmatch(lines.Text())
		if word == nil {
			t.Errorf("no metric: %q", lines.Text())
			continue
		}
		i := slices.IndexFunc(metricTable(), func(m metric) bool { return m.name == word[1] })
		if i < 0 {
			t.Errorf("%s is in no table", word[1])
			continue
		}
		var labels []string
		for _, l := range label.FindAllStringSubmatch(word[2], -1) {
			labels = append(labels, l[1])
		}
		if want := slices.Sorted(slices.Values(metricTable()[i].labels)); !slices.Equal(labels, want) {
			t.Errorf("%s has labels %v, want %v", word[1], labels, want)
		}
		served[word[1]] = true
	}
	for _, m := range metricTable() {
		if !served[m.name] {
			t.Errorf("%s is not served", m.name)
		}
	}
	for _, want := range []string{"weft_ready 1\n", "weft_members{state=\"alive\"} 2\n", "weft_wire_attached_total 1\n", "weft_pods 0\n"} {
		if !strings.Contains(body, want) {
			t.Errorf("no %q in:\n%s", want, body)
		}
	}
}
