package cluster

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"weft/test/netlab"
)

// metricsAddress is where a daemon serves metrics and health unless it was told otherwise.
const metricsAddress = "127.0.0.1:6782"

// Get asks the daemon's metrics listener for a page.
func (m *Machine) Get(ctx context.Context, path string) (status int, body string, err error) {
	ctx, cancel := context.WithTimeout(ctx, netlab.Patience(time.Minute))
	defer cancel()
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return m.Dial(ctx, "tcp", metricsAddress) },
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metricsAddress+path, nil)
	if err != nil {
		return 0, "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return 0, "", fmt.Errorf("get %s on %s: %w", path, m, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// Metrics are the samples of /metrics; a key is the name with its labels, as printed.
type Metrics map[string]float64

// Metrics reads them now.
func (m *Machine) Metrics(ctx context.Context) (Metrics, error) {
	code, body, err := m.Get(ctx, "/metrics")
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("metrics of %s: status %d", m, code)
	}
	all := Metrics{}
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := strconv.ParseFloat(line[at+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("metrics of %s: %q: %w", m, line, err)
		}
		all[line[:at]] = v
	}
	return all, nil
}

// Event is the counter of a kind of event of a part; those that never happened are 0.
func (ms Metrics) Event(part, kind string) float64 {
	return ms[fmt.Sprintf("weft_events_total{kind=%q,part=%q}", kind, part)]
}

// Events adds up several kinds.
func (ms Metrics) Events(part string, kinds ...string) (sum float64) {
	for _, k := range kinds {
		sum += ms.Event(part, k)
	}
	return sum
}
