package weftd

import (
	"math"
	"testing"
)

func TestExposition(t *testing.T) {
	up := metric{"weft_peer_up", "1 when the peer\nanswers.", gauge, []string{"peer", "transport"}}
	starts := metric{"weft_starts_total", `Starts, also of C:\weft.`, counter, nil}
	var e exposition
	e.add(up, 1, "n2", "sleeve")
	e.add(starts, 3)
	e.add(up, 0, "n1", "")
	e.add(up, 1, "a \"b\" \\ c\nd", "\xff")
	e.add(metric{"weft_rtt_seconds", "Round trip.", gauge, nil}, math.Inf(1))
	e.add(metric{"weft_rx_bytes_total", "Bytes.", counter, nil}, 1<<40)
	const want = `# HELP weft_peer_up 1 when the peer\nanswers.
# TYPE weft_peer_up gauge
weft_peer_up{peer="a \"b\" \\ c\nd",transport="` + "\uFFFD" + `"} 1
weft_peer_up{peer="n1",transport=""} 0
weft_peer_up{peer="n2",transport="sleeve"} 1
# HELP weft_starts_total Starts, also of C:\\weft.
# TYPE weft_starts_total counter
weft_starts_total 3
# HELP weft_rtt_seconds Round trip.
# TYPE weft_rtt_seconds gauge
weft_rtt_seconds +Inf
# HELP weft_rx_bytes_total Bytes.
# TYPE weft_rx_bytes_total counter
weft_rx_bytes_total 1.099511627776e+12
`
	if got := string(e.text()); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
