package runtimes_test

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"weft/test/runtimes"
)

// What the plugin may cost: the bars of the project, against ptp with host-local, which do on one machine what weft does in
// a cluster. Pairs are interleaved, so that both sides see the same load of the machine.
const (
	mostADD   = 30 * time.Millisecond // median
	mostRatio = 1.5                   // median of the pairs
)

// reference does less: with IPv6 it would wait nearly two seconds for duplicate address detection.
const reference = `{"cniVersion":"1.0.0","name":"ref","type":"ptp","ipam":{"type":"host-local",
	"ranges":[[{"subnet":"10.250.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`

// It prints figures and holds no bar: a machine is too noisy for that. That both sides work is what can fail.
func TestPluginIsFast(t *testing.T) {
	pairs := 30
	if os.Getenv("WEFT_TEST_LONG") != "" {
		pairs = 200
	}
	s := tell(t, 1)
	ratio, p50 := s.race(s.nodes[0], pairs)
	s.Logf("bars: ADD p50 %v %s, ratio %.1f %s", mostADD, met(p50 <= mostADD), mostRatio, met(ratio <= mostRatio))
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "MISSED"
}

// race measures both sides and returns the median ratio of the pairs, and our median. Each pod has a namespace of its own, as from
// a runtime: in one that had a pod before, an ADD would also be charged for the interface that weft's DEL left to be deleted
// later, and that the kernel takes tens of milliseconds to delete.
func (s *story) race(w *runtimes.Weft, pairs int) (ratio float64, ours time.Duration) {
	s.Helper()
	type side struct {
		plugin, conf string
		add, del     []time.Duration
	}
	sides := []*side{{plugin: "weft-cni", conf: fmt.Sprintf(single, "")}, {plugin: "ptp", conf: reference}}
	took := func(c *runtimes.Cmd) time.Duration {
		s.Helper()
		start := time.Now()
		if err := c.Run(); err != nil {
			s.Fatalf("%v\n%s", err, c.Stdout())
		}
		return time.Since(start)
	}
	for n := range pairs + 2 {
		for i := range sides {
			i := (i + n) % 2 // who is first changes, too
			x := sides[i]
			name := fmt.Sprintf("speed%d-%d", i, n)
			s.sh(w, "ip netns add "+name)
			env := []string{"CNI_CONTAINERID=" + name, "CNI_NETNS=/run/netns/" + name, "CNI_IFNAME=eth0"}
			add := took(w.Plugin(x.plugin, "ADD", x.conf, env...))
			del := took(w.Plugin(x.plugin, "DEL", x.conf, env...))
			s.sh(w, "ip netns del "+name)
			if n >= 2 { // the first ones read programs from the disk
				x.add, x.del = append(x.add, add), append(x.del, del)
			}
		}
	}
	var ratios []float64
	for n := range pairs {
		ratios = append(ratios, float64(sides[0].add[n])/float64(sides[1].add[n]))
	}
	slices.Sort(ratios)
	for _, x := range sides {
		slices.Sort(x.add)
		slices.Sort(x.del)
		s.Logf("%-8s ADD p50 %5.1f ms, p90 %5.1f ms; DEL p50 %5.1f ms, p90 %5.1f ms", x.plugin, ms(x.add, 50), ms(x.add, 90), ms(x.del, 50), ms(x.del, 90))
	}
	ratio = ratios[len(ratios)/2]
	s.Logf("weft-cni / ptp: median %.2f × of %d pairs (quartiles %.2f to %.2f)", ratio, pairs, ratios[len(ratios)/4], ratios[len(ratios)*3/4])
	return ratio, sides[0].add[pairs/2]
}

func ms(sorted []time.Duration, percentile int) float64 {
	return float64(sorted[(len(sorted)-1)*percentile/100].Microseconds()) / 1000
}
