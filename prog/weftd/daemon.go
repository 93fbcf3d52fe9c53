package weftd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/mesh/join"
	"weft/prog/control"
	"weft/router"
	"weft/router/host"
)

// daemon is one run of weft on this machine. It serves the control socket from its first to its last moment, and has a
// node as soon as there is a membership:
//
//	waiting -> (init | join) -> node at work -> stopping
//
// The state directory decides where it begins; --init and --join act only on an empty one.
type daemon struct {
	cfg     Config
	log     *slog.Logger
	lines   *logLines
	state   *stateDir
	host    *host.Host
	started time.Time
	stop    context.CancelFunc // ends the daemon
	ready   chan *node         // capacity 1: a node to be run

	entering sync.Mutex // held by whoever makes or joins a cluster

	mu       sync.Mutex // guards all below
	node     *node
	joining  string                      // why there is no node yet although one is wanted
	ending   string                      // stopping, and why
	farewell func(context.Context) error // what is left to do after everything has stopped
}

// Run is the daemon. It returns when ctx ends, when it was told to stop, or when it cannot go on; the wire and what is in
// the kernel carry on unless it was told to stop with `weft down` or `weft leave`.
func Run(ctx context.Context, cfg Config) error {
	d, err := newDaemon(cfg)
	if err != nil {
		return explain(err)
	}
	defer d.close()
	return explain(d.run(ctx))
}

func newDaemon(cfg Config) (*daemon, error) {
	lines := newLogLines(cfg.Log.Handler())
	cfg.Log = slog.New(lines)
	state, err := openState(cfg.State)
	if err != nil {
		return nil, err
	}
	h, err := host.Open("", cfg.Log)
	if err != nil {
		return nil, errors.Join(err, state.close())
	}
	d := &daemon{cfg: cfg, log: cfg.Log, lines: lines, state: state, host: h, started: time.Now(), ready: make(chan *node, 1)}
	return d, nil
}

func (d *daemon) close() {
	if err := errors.Join(d.host.Close(), d.state.close()); err != nil {
		d.log.Warn("close", "err", err)
	}
}

func (d *daemon) run(ctx context.Context) error {
	ctx, d.stop = context.WithCancel(ctx)
	defer d.stop()
	m, key, err := loadMembership(d.state)
	if err != nil {
		return err
	}
	if m != nil {
		if err := d.begin(m, key); err != nil {
			return err
		}
	}
	tasks := []task{
		{"control", d.serve},
		{"node", d.runNode},
		{"ready", d.tellReady},
	}
	if m == nil && (d.cfg.Init || d.cfg.Join != "") {
		tasks = append(tasks, task{"enter", d.enter})
	}
	if !d.cfg.MetricsOff {
		tasks = append(tasks, task{"metrics", d.serveMetrics})
	}
	err = supervise(ctx, d.log, tasks...)
	d.mu.Lock()
	farewell := d.farewell
	d.mu.Unlock()
	if farewell != nil {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellTime)
		defer cancel()
		err = errors.Join(err, farewell(last))
	}
	return err
}

// farewellTime is for what is done after all has stopped.
const farewellTime = 20 * time.Second

// begin builds the node and hands it to runNode.
func (d *daemon) begin(m *membership, key identity.Key) error {
	n, err := newNode(d.cfg, d.state, d.host, m, key)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.node, d.joining = n, ""
	d.mu.Unlock()
	d.ready <- n
	return nil
}

// runNode waits for a node and runs it.
func (d *daemon) runNode(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case n := <-d.ready:
		d.log.Info("node starts", "peer", n.key.ID(), "name", n.name, "cluster", clusterName(n.member.cluster))
		return n.run(ctx)
	}
}

// tellReady tells systemd that the socket answers, and that the end has begun.
func (d *daemon) tellReady(ctx context.Context) error {
	if err := notify("READY=1"); err != nil {
		d.log.Warn("systemd not told", "err", err)
	}
	<-ctx.Done()
	if err := notify("STOPPING=1"); err != nil {
		d.log.Warn("systemd not told", "err", err)
	}
	return nil
}

// enter makes or joins the cluster that the operator asked for at the start. A join is tried until it succeeds or is
// refused for good: seeds may come up later than this machine.
func (d *daemon) enter(ctx context.Context) error {
	if d.cfg.Init {
		reply, err := d.makeCluster(ctx, control.InitRequest{})
		if err != nil {
			return err
		}
		if d.cfg.Founded != nil {
			d.cfg.Founded(reply)
		}
		return nil
	}
	token, err := d.cfg.Token()
	if err != nil {
		return err
	}
	wait := joinRetryMin
	for {
		_, err := d.joinCluster(ctx, control.JoinRequest{Token: token})
		var refused *join.Error
		switch {
		case err == nil || ctx.Err() != nil:
			return nil
		case errors.As(err, &refused) && !refused.Temporary():
			return err
		}
		d.mu.Lock()
		d.joining = err.Error()
		d.mu.Unlock()
		d.log.Warn("not joined yet, will try again", "err", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + rand.N(wait)):
		}
		wait = min(2*wait, joinRetryMax)
	}
}

const (
	joinRetryMin = 500 * time.Millisecond
	joinRetryMax = 10 * time.Second
)

// Init makes a cluster in the state directory while no daemon runs.
func Init(ctx context.Context, cfg Config, r control.InitRequest) (control.InitReply, error) {
	d, err := newDaemon(cfg)
	if err != nil {
		return control.InitReply{}, explain(err)
	}
	defer d.close()
	reply, err := d.makeCluster(ctx, r)
	return reply, explain(err)
}

// Down stops the wire that a daemon left behind; false: there was none.
func Down(ctx context.Context, cfg Config) (bool, error) {
	state, err := openState(cfg.State)
	if err != nil {
		return false, explain(err)
	}
	defer state.close()
	return stopWire(ctx, cfg, state)
}

// makeCluster founds a cluster, or says that there is one already.
func (d *daemon) makeCluster(ctx context.Context, r control.InitRequest) (control.InitReply, error) {
	d.entering.Lock()
	defer d.entering.Unlock()
	m, _, err := loadMembership(d.state)
	if err != nil {
		return control.InitReply{}, err
	}
	if m != nil {
		return initReply(m, "", nil, true), nil
	}
	spec, notes, err := d.plan(ctx, r)
	if err != nil {
		return control.InitReply{}, err
	}
	advertise, err := parseAdvertised(r.Advertise)
	if err != nil {
		return control.InitReply{}, err
	}
	if len(advertise) > 0 {
		d.cfg.Advertise = advertise
	}
	key, err := d.state.keyOrNew(fileIdentity)
	if err != nil {
		return control.InitReply{}, err
	}
	root, err := d.state.keyOrNew(fileRoot)
	if err != nil {
		return control.InitReply{}, err
	}
	name := r.Name
	if name == "" {
		name = d.cfg.Name
	}
	m, err = found(key, root, name, spec, time.Now())
	if err != nil {
		return control.InitReply{}, err
	}
	// The first token is part of the first roster, so that the line that is printed works whenever the daemon runs.
	u, err := readUnderlay(nil)
	if err != nil {
		return control.InitReply{}, err
	}
	text, inv, err := invite(identity.Issuer{Key: root}, m.cluster, inviteSeeds(u.endpoints(d.cfg.Advertise, d.cfg.Listen.Port()), key.ID()),
		control.TokenRequest{}, time.Now())
	switch {
	case err != nil:
		notes = append(notes, "No join line yet: "+err.Error()+".")
	default:
		m.items = append(m.items, inv.Raw())
	}
	if err := d.state.write(fileMembership, m.append(nil)); err != nil {
		return control.InitReply{}, err
	}
	d.log.Info("cluster made", "cluster", clusterName(m.cluster), "name", name)
	if d.stop != nil {
		if err := d.begin(m, key); err != nil {
			return control.InitReply{}, err
		}
	}
	return initReply(m, text, notes, false), nil
}

func initReply(m *membership, token string, notes []string, existed bool) control.InitReply {
	r := control.InitReply{Version: control.Version, Cluster: clusterName(m.cluster), Node: m.certificate.ID().String(),
		Name: m.certificate.Name(), Token: token, Existed: existed, Notes: notes}
	for _, p := range m.cluster.Pools {
		r.Pools = append(r.Pools, p.Prefix)
	}
	if m.cluster.Linked6.IsValid() {
		r.Pools = append(r.Pools, m.cluster.Linked6)
	}
	return r
}

// defaultPools are tried in turn by a cluster that nobody chose a pool for.
var defaultPools = [...]string{"10.32.0.0/12", "10.192.0.0/12", "172.24.0.0/14", "100.96.0.0/12"}

// plan decides what the new cluster is like. A pool that collides with what this machine uses is refused, or with
// --accept-overlap noted.
func (d *daemon) plan(ctx context.Context, r control.InitRequest) (identity.ClusterSpec, []string, error) {
	spec := identity.ClusterSpec{}
	pools := []netip.Prefix(r.Pools)
	if len(pools) == 0 {
		pools = d.cfg.Pools
	}
	pool6 := r.Pool6
	if pool6 == "" && d.cfg.NoPool6 {
		pool6 = "none"
	}
	if pool6 == "" && d.cfg.Pool6.IsValid() {
		pool6 = d.cfg.Pool6.String()
	}
	switch pool6 {
	case "":
	case "none":
		spec.IPv4 = true
	default:
		p, err := netip.ParsePrefix(pool6)
		if err != nil || checkPool6(p) != nil || p.Bits() > identity.Linked6Bits {
			return spec, nil, &control.Error{Code: control.Usage, Message: "pool6: want an IPv6 network of /96 or wider, or none",
				Cause: "got " + pool6}
		}
		spec.Linked6 = netip.PrefixFrom(p.Addr(), identity.Linked6Bits)
	}
	accept := r.AcceptOverlap || d.cfg.AcceptOverlap
	notes, pools, err := d.choosePools(ctx, pools, spec.Linked6, accept)
	if err != nil {
		return spec, nil, err
	}
	expect := r.ExpectNodes
	if expect == 0 {
		expect = d.cfg.ExpectNodes
	}
	for _, p := range pools {
		if err := checkPool4(p); err != nil {
			return spec, nil, &control.Error{Code: control.Usage, Message: "pool: " + err.Error()}
		}
		pool, err := identity.NewPool(p)
		if err != nil {
			return spec, nil, &control.Error{Code: control.Usage, Message: "pool: " + err.Error()}
		}
		spec.Pools = append(spec.Pools, pool)
	}
	if atoms := spec.Pools[0].Atoms(); atoms < 2*expect {
		return spec, nil, &control.Error{Code: control.Usage,
			Message: fmt.Sprintf("pool %s is too small for %d nodes", pools[0], expect),
			Cause:   fmt.Sprintf("it has %d blocks to hand out, and needs twice as many as nodes", atoms),
			Hint:    "Choose a wider --pool"}
	}
	return spec, notes, nil
}

// choosePools checks the chosen pools, or finds the first default that is free.
func (d *daemon) choosePools(ctx context.Context, pools []netip.Prefix, linked netip.Prefix, accept bool) ([]string, []netip.Prefix, error) {
	check := func(pools []netip.Prefix) ([]string, error) {
		if linked.IsValid() {
			pools = append(slices.Clone(pools), linked)
		}
		return router.CheckPools(ctx, d.host, pools)
	}
	if len(pools) > 0 {
		notes, err := check(pools)
		if err != nil && accept {
			return append(notes, "Overlap accepted: "+err.Error()+"."), pools, nil
		}
		return notes, pools, overlapError(err)
	}
	var first error
	for _, s := range defaultPools {
		pools := []netip.Prefix{netip.MustParsePrefix(s)}
		notes, err := check(pools)
		if err == nil {
			return notes, pools, nil
		}
		if first == nil {
			first = err
		}
	}
	return nil, nil, overlapError(first)
}

func overlapError(err error) error {
	if err == nil {
		return nil
	}
	return &control.Error{Code: control.Conflict, Message: "this machine already uses addresses of the pool", Cause: err.Error(),
		Hint: "Choose another one: --pool CIDR; or --accept-overlap if you know that it does no harm"}
}

// joinCluster enters the cluster of a token, or says that this node is in it already.
func (d *daemon) joinCluster(ctx context.Context, r control.JoinRequest) (control.JoinReply, error) {
	d.entering.Lock()
	defer d.entering.Unlock()
	m, _, err := loadMembership(d.state)
	if err != nil {
		return control.JoinReply{}, err
	}
	if m != nil {
		return joinReply(m, "", true), nil
	}
	key, err := d.state.keyOrNew(fileIdentity)
	if err != nil {
		return control.JoinReply{}, err
	}
	advertise, err := parseAdvertised(r.Advertise)
	if err != nil {
		return control.JoinReply{}, err
	}
	name := r.Name
	if name == "" {
		name = d.cfg.Name
	}
	result, err := join.Join(ctx, join.Config{Token: r.Token, Key: key, Name: name, Build: d.cfg.Build})
	if err != nil {
		return control.JoinReply{}, err
	}
	m = joined(result)
	if err := d.checkJoined(ctx, m); err != nil {
		return control.JoinReply{}, err
	}
	if err := d.state.write(fileMembership, m.append(nil)); err != nil {
		return control.JoinReply{}, err
	}
	if len(advertise) > 0 {
		d.cfg.Advertise = advertise
	}
	d.log.Info("cluster joined", "cluster", clusterName(m.cluster), "name", name, "endpoint", result.Endpoint)
	if err := d.begin(m, key); err != nil {
		return control.JoinReply{}, err
	}
	return joinReply(m, result.Sponsor.Short(), false), nil
}

// checkJoined refuses a cluster whose pools this machine already uses. The admission is not lost: joining again with
// --accept-overlap gets the same certificate.
func (d *daemon) checkJoined(ctx context.Context, m *membership) error {
	var pools []netip.Prefix
	for _, p := range m.cluster.Pools {
		pools = append(pools, p.Prefix)
	}
	if m.cluster.Linked6.IsValid() {
		pools = append(pools, m.cluster.Linked6)
	}
	notes, err := router.CheckPools(ctx, d.host, pools)
	for _, note := range notes {
		d.log.Warn("pool overlaps", "note", note)
	}
	if err != nil && d.cfg.AcceptOverlap {
		d.log.Warn("overlap accepted", "err", err)
		return nil
	}
	return overlapError(err)
}

func joinReply(m *membership, sponsor string, existed bool) control.JoinReply {
	return control.JoinReply{Version: control.Version, Cluster: clusterName(m.cluster), Node: m.certificate.ID().String(),
		Name: m.certificate.Name(), Sponsor: sponsor, Existed: existed}
}

func parseAdvertised(list []string) ([]netip.AddrPort, error) {
	var all []netip.AddrPort
	for _, s := range list {
		ap, err := ParseAdvertise(s)
		if err != nil {
			return nil, &control.Error{Code: control.Usage, Message: "advertise: " + err.Error()}
		}
		all = append(all, ap)
	}
	return all, nil
}

// clusterName is how people see a cluster: the beginning of its ID.
func clusterName(c *identity.Cluster) string {
	id := c.ID()
	return fmt.Sprintf("%x", id[:16])
}

// finish ends the daemon for good: after everything has stopped, last is done.
func (d *daemon) finish(why string, last func(context.Context) error) {
	d.mu.Lock()
	d.ending, d.farewell = why, last
	d.mu.Unlock()
	d.stop()
}

// current is the node, or a sentence that there is none.
func (d *daemon) current() (*node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.node == nil {
		return nil, &control.Error{Code: control.NotReady, Message: "this node is in no cluster yet", Cause: d.joining,
			Hint: "Make one: weft init; or enter one: weft join TOKEN"}
	}
	return d.node, nil
}

// purge leaves the machine as if weft had never been there. The daemon's own folder goes last.
func (d *daemon) purge(ctx context.Context, n *node) error {
	var errs []error
	if n != nil {
		errs = append(errs, router.Remove(ctx, d.host, d.state.file(fileUndo)))
	}
	errs = append(errs, d.state.forget(), d.state.remove(fileUndo, fileWireLog, fileWireSocket, fileLock), os.Remove(d.cfg.State))
	return errors.Join(errs...)
}
