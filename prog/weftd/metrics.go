package weftd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"time"

	"weft/prog/control"
)

const (
	metricsTime    = 5 * time.Second // for one answer
	metricsAtATime = 4
)

// serveMetrics answers /metrics, /healthz (the daemon lives) and /readyz (pods can be attached).
func (d *daemon) serveMetrics(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", d.answerMetrics(make(chan struct{}, metricsAtATime)))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		s, err := d.Status(r.Context())
		if err != nil || s.Node.State != control.NodeReady {
			http.Error(w, s.Node.State+": "+s.Node.Reason, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	server := &http.Server{
		Handler: mux, ReadHeaderTimeout: metricsTime, ReadTimeout: metricsTime, WriteTimeout: 2 * metricsTime,
		MaxHeaderBytes: 8 << 10,
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(d.metrics); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// answerMetrics refuses what finds no place in busy: each answer asks all parts of the daemon.
func (d *daemon) answerMetrics(busy chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case busy <- struct{}{}:
			defer func() { <-busy }()
		default:
			http.Error(w, "too many requests for metrics at once", http.StatusServiceUnavailable)
			return
		}
		ctx, cancel := context.WithTimeout(r.Context(), metricsTime)
		defer cancel()
		var e exposition
		d.collect(ctx, e.add)
		w.Header().Set("Content-Type", expositionType)
		_, _ = w.Write(e.text())
	}
}

// The names are a promise to dashboards: they change only with an entry in the changelog.
var (
	metricInfo       = metric{"weft_info", "Always 1: build, ID and name of the node, and the cluster, as labels.", gauge, []string{"build", "node", "name", "cluster"}}
	metricReady      = metric{"weft_ready", "1 when pods can be attached.", gauge, nil}
	metricUptime     = metric{"weft_uptime_seconds", "Time since the daemon started.", gauge, nil}
	metricMembers    = metric{"weft_members", "Members of the cluster by state, this node included.", gauge, []string{"state"}}
	metricPeerUp     = metric{"weft_peer_up", "1 when the peer answers through the transport in use; left out while it sleeps for want of traffic.", gauge, []string{"peer", "transport"}}
	metricPeerRTT    = metric{"weft_peer_rtt_seconds", "Round trip to the peer.", gauge, []string{"peer"}}
	metricPeerLoss   = metric{"weft_peer_loss_ratio", "Loss of recent probes to the peer, 0 to 1.", gauge, []string{"peer"}}
	metricPeerRx     = metric{"weft_peer_receive_bytes_total", "Bytes from the peer through the transport in use: what was inside of the tunnel, or, with WireGuard, what its device counts, with its own headers and handshakes. Nobody counts them for VXLAN: 0.", counter, []string{"peer", "transport"}}
	metricPeerTx     = metric{"weft_peer_transmit_bytes_total", "Bytes to the peer through the transport in use: what was inside of the tunnel, or, with WireGuard, what its device counts, with its own headers and handshakes. Nobody counts them for VXLAN: 0.", counter, []string{"peer", "transport"}}
	metricPeerKey    = metric{"weft_peer_key_age_seconds", "Age of the session key with the peer.", gauge, []string{"peer"}}
	metricAddresses  = metric{"weft_ipam_addresses", "IPv4 addresses by state: used and free are ours, unreachable are others'.", gauge, []string{"state"}}
	metricConfirmed  = metric{"weft_ipam_confirmed", "1 when a quorum was heard since the start.", gauge, nil}
	metricPods       = metric{"weft_pods", "Attached pods.", gauge, nil}
	metricCounter    = metric{"weft_events_total", "Events by part (mesh, pods, sleeve, wire, guard) and kind; packets that were dropped among them.", counter, []string{"part", "kind"}}
	metricWireStarts = metric{"weft_wire_attached_total", "Wires that this daemon attached to.", counter, nil}
)

// metricTable is every metric, in the order of site/metrics.md.
func metricTable() []metric {
	return []metric{
		metricInfo, metricReady, metricUptime, metricMembers,
		metricPeerUp, metricPeerRTT, metricPeerLoss, metricPeerRx, metricPeerTx, metricPeerKey,
		metricAddresses, metricConfirmed, metricPods,
		metricWireStarts, metricCounter,
	}
}

// collect makes metrics of the state, at the moment that they are asked for.
func (d *daemon) collect(ctx context.Context, emit func(m metric, value float64, labels ...string)) {
	s, err := d.Status(ctx)
	if err != nil {
		return
	}
	emit(metricInfo, 1, s.Node.Build, s.Node.ID, s.Node.Name, s.Cluster.ID)
	emit(metricReady, truth(s.Node.State == control.NodeReady))
	emit(metricUptime, float64(s.Node.UptimeS))
	n, err := d.current()
	if err != nil {
		return
	}
	states := map[string]int{control.PeerAlive: 1, control.PeerSuspect: 0, control.PeerDead: 0, control.PeerRemoved: 0}
	for _, p := range s.Peers {
		states[p.State]++
		if !p.Asleep {
			emit(metricPeerUp, truth(p.Path != control.PathNone), p.ID, p.Transport)
		}
		if p.RTTms > 0 {
			emit(metricPeerRTT, p.RTTms/1000, p.ID)
		}
		emit(metricPeerLoss, p.Loss, p.ID)
		if p.Transport != "" { // each counts by itself
			emit(metricPeerRx, float64(p.RxBytes), p.ID, p.Transport)
			emit(metricPeerTx, float64(p.TxBytes), p.ID, p.Transport)
		}
		if p.KeyAgeS >= 0 {
			emit(metricPeerKey, float64(p.KeyAgeS), p.ID)
		}
	}
	for state, count := range states {
		emit(metricMembers, float64(count), state)
	}
	emit(metricAddresses, float64(s.IPAM.Used), "used")
	emit(metricAddresses, float64(s.IPAM.Free), "free")
	emit(metricAddresses, float64(s.IPAM.Unreachable), "unreachable")
	emit(metricConfirmed, truth(s.IPAM.State == control.IPAMReady))
	emit(metricPods, float64(len(n.ring.Claims())))
	emit(metricWireStarts, float64(n.link.attached()))
	for _, e := range n.events(ctx) {
		emit(metricCounter, float64(e.count), e.part, e.kind)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// event is one counter of one part.
type event struct {
	part, kind string
	count      uint64
}

// events lists the counters of the parts.
func (n *node) events(ctx context.Context) []event {
	m := n.mesh.Stats()
	all := []event{
		{"mesh", "refused", m.Refused},
		{"mesh", "dropped", m.Dropped},
		{"mesh", "unknown", m.Unknown},
		{"mesh", "malformed", m.Malformed},
		{"mesh", "send_failed", m.SendFailed},
		{"mesh", "calls_refused", m.RefusedCalls},
		{"mesh", "panics", m.Panics},
		{"mesh", "pulls", m.Pulls},
		{"mesh", "pulls_failed", m.PullsFailed},
		{"pods", "reclaimed", n.reclaimed.released.Load()},
		{"pods", "renumbered", n.renumbered.Load()},
	}
	if drops, err := n.router.Drops(ctx); err == nil {
		for rule, count := range drops {
			all = append(all, event{"guard", "drop_" + rule, count})
		}
	}
	stats, err := n.link.stats(ctx)
	if err != nil {
		return all
	}
	for kind, count := range stats.Drops {
		all = append(all, event{"sleeve", "drop_" + kind, count})
	}
	byPeer := map[string]uint64{}
	maps.Copy(byPeer, stats.Gone) // a counter that went back when a peer is removed would look like a flood
	for _, p := range stats.Peers {
		for kind, count := range p.Drops {
			byPeer[kind] += count
		}
	}
	for kind, count := range byPeer {
		all = append(all, event{"sleeve", "peer_drop_" + kind, count})
	}
	w := stats.Counters
	return append(all, event{"wire", "attached", w.Attached}, event{"wire", "refused", w.Refused},
		event{"wire", "datagrams_dropped", w.DatagramsDropped}, event{"wire", "datagrams_failed", w.DatagramsFailed},
		event{"wire", "accepted", w.AcceptedPassed}, event{"wire", "accepted_closed", w.AcceptedClosed},
		event{"wire", "malformed", w.Malformed})
}

// counters is events by name, for a report.
func (n *node) counters(ctx context.Context) map[string]any {
	all := map[string]any{}
	for _, e := range n.events(ctx) {
		all[e.part+"_"+e.kind] = e.count
	}
	return all
}
