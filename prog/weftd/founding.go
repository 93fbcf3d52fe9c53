package weftd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/crypto/identity"
	"weft/prog/control"
	"weft/router"
)

// defaultPools are tried in turn by a cluster that nobody chose a pool for.
var defaultPools = [...]string{"10.32.0.0/12", "10.192.0.0/12", "172.24.0.0/14", "100.96.0.0/12"}

// Init makes a cluster in the state directory while no daemon runs.
func Init(ctx context.Context, cfg Config, r control.InitRequest) (control.InitReply, error) {
	d := newDaemon(cfg)
	defer d.close()
	if err := d.openState(); err != nil {
		return control.InitReply{}, explain(err)
	}
	reply, err := d.makeCluster(ctx, r)
	return reply, explain(err)
}

// foundNow makes the cluster of `weft up --init`. Where the machine has no address yet, the join line comes as soon as it
// has one.
func (d *daemon) foundNow(ctx context.Context) error {
	reply, err := d.makeCluster(ctx, control.InitRequest{})
	if err != nil {
		return err
	}
	if d.cfg.Founded != nil {
		d.cfg.Founded(reply)
	}
	if reply.Token != "" || reply.Existed || d.cfg.Addressed == nil {
		return nil
	}
	n, err := d.current()
	if err != nil {
		return err
	}
	changed := n.mesh.Watch()
	for {
		if own, _ := n.mesh.Peer(n.key.ID()); len(own.Endpoints) > 0 {
			t, err := d.TokenCreate(ctx, control.TokenRequest{})
			if err == nil {
				d.cfg.Addressed(t)
				return nil
			}
			d.log.Warn("no join line yet, will try again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// makeCluster founds a cluster, or says that there is one already.
func (d *daemon) makeCluster(ctx context.Context, r control.InitRequest) (control.InitReply, error) {
	d.entering.Lock()
	defer d.entering.Unlock()
	m, former, err := loadMembership(d.state)
	if err != nil {
		return control.InitReply{}, err
	}
	if m != nil {
		return initReply(m, "", nil, true), d.resume(m, former)
	}
	spec, notes, err := d.plan(ctx, r)
	if err != nil {
		return control.InitReply{}, err
	}
	advertise, err := parseAdvertised(r.Advertise)
	if err != nil {
		return control.InitReply{}, err
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
	if m, err = found(key, root, name, spec, time.Now()); err != nil {
		return control.InitReply{}, err
	}
	m.advertise = advertise
	// The first token is part of the first roster, so that the line that is printed works whenever the daemon runs.
	text, inv, err := d.firstToken(m, root)
	switch {
	case errors.Is(err, errNoAddress):
		notes = append(notes, noAddressNote)
	case err != nil:
		return control.InitReply{}, err
	default:
		m.items = append(m.items, inv.Raw())
	}
	if err := m.admit(d.state); err != nil {
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

const noAddressNote = "No join line yet: this machine has no address that others could join at. " +
	"When it has one, type here: weft token create"

// firstToken is the invitation that the founder prints; errNoAddress where nobody could use it.
func (d *daemon) firstToken(m *membership, root identity.Key) (string, *identity.Invitation, error) {
	u, err := readUnderlay(context.Background(), d.host, m.pools())
	if err != nil {
		return "", nil, err
	}
	at := u.endpoints(m.advertised(d.cfg), d.cfg.Listen.Port())
	seeds := append(inviteSeeds(at, m.certificate.ID()), secondDoor(at, d.cfg.RelayListen.Port(), m.certificate.ID())...)
	return invite(identity.Issuer{Key: root}, m.cluster, seeds, control.TokenRequest{}, time.Now())
}

func initReply(m *membership, token string, notes []string, existed bool) control.InitReply {
	return control.InitReply{
		Version: control.Version, Cluster: clusterName(m.cluster), Node: m.certificate.ID().String(),
		Name: m.certificate.Name(), Pools: m.pools(), Token: token, Existed: existed, Notes: notes,
	}
}

// plan decides what the new cluster is like. A pool that collides with what this machine uses is refused, or with
// --accept-overlap noted.
func (d *daemon) plan(ctx context.Context, r control.InitRequest) (identity.ClusterSpec, []string, error) {
	spec, native, err := d.plan6(r)
	if err != nil {
		return spec, nil, err
	}
	pools := []netip.Prefix(r.Pools)
	switch {
	case native.IsValid():
		pools = []netip.Prefix{native}
	case len(pools) == 0:
		pools = d.cfg.Pools
	}
	notes, pools, err := d.choosePools(ctx, pools, spec.Linked6, r.AcceptOverlap || d.cfg.AcceptOverlap)
	if err != nil {
		return spec, nil, err
	}
	expect := r.ExpectNodes
	if expect == 0 {
		expect = d.cfg.ExpectNodes
	}
	for _, p := range pools {
		if err := checkPool(p); err != nil {
			return spec, nil, &control.Error{Code: control.Usage, Message: "pool: " + err.Error()}
		}
		pool, err := identity.NewPool(p)
		if err != nil {
			return spec, nil, &control.Error{Code: control.Usage, Message: "pool: " + err.Error()}
		}
		spec.Pools = append(spec.Pools, pool)
	}
	atoms := 0
	for _, p := range spec.Pools {
		atoms += p.Atoms()
	}
	if atoms < 2*expect {
		e := &control.Error{
			Code:    control.Usage,
			Message: fmt.Sprintf("pool %s is too small for %d nodes", commaed(pools), expect),
			Cause:   fmt.Sprintf("it has %d blocks to hand out, and needs twice as many as nodes", atoms),
			Hint:    "Choose a wider --pool",
		}
		if native.IsValid() {
			e.Hint += "6"
		}
		if wider, ok := widerPool(pools[0], expect); ok {
			e.Hint += ", such as " + wider.String()
		}
		return spec, nil, e
	}
	return spec, notes, nil
}

func commaed(pools []netip.Prefix) string {
	words := make([]string, len(pools))
	for i, p := range pools {
		words[i] = p.String()
	}
	return strings.Join(words, ", ")
}

// widerPool is the smallest pool around p that has two blocks for each node.
func widerPool(p netip.Prefix, nodes int) (netip.Prefix, bool) {
	for bits := p.Bits(); bits > 0; bits-- {
		wider := netip.PrefixFrom(p.Addr(), bits).Masked()
		if checkPool(wider) != nil {
			continue
		}
		if pool, err := identity.NewPool(wider); err == nil && pool.Atoms() >= 2*nodes {
			return wider, true
		}
	}
	return netip.Prefix{}, false
}

// checkPool is for one that is cut for the machines.
func checkPool(p netip.Prefix) error {
	if p.Addr().Is6() {
		return checkPool6(p)
	}
	return checkPool4(p)
}

// plan6 decides what IPv6 addresses there are: none, such as are linked with IPv4 addresses, or a native pool of them that
// stands alone.
func (d *daemon) plan6(r control.InitRequest) (spec identity.ClusterSpec, native netip.Prefix, err error) {
	pool6 := r.Pool6
	if pool6 == "" && d.cfg.NoPool6 {
		pool6 = "none"
	}
	if pool6 == "" && d.cfg.Pool6.IsValid() {
		pool6 = d.cfg.Pool6.String()
	}
	alone := r.NoPool || len(r.Pools) == 0 && d.cfg.NoPool
	p, err := netip.ParsePrefix(pool6)
	switch {
	case alone && pool6 == "none":
		return spec, native, &control.Error{
			Code: control.Usage, Message: "a cluster without pools has no addresses for pods",
			Cause: "--pool and --pool6 are none", Hint: "Leave one of them out",
		}
	case alone && pool6 == "":
		return spec, uniqueLocal(), d.speaksIPv6()
	case alone:
		if err != nil || checkPool6(p) != nil || p != p.Masked() {
			return spec, native, &control.Error{
				Code: control.Usage, Message: "pool6: want an IPv6 network of /16 to /120, such as fd12:3456:789a::/48", Cause: "got " + pool6,
			}
		}
		return spec, p, d.speaksIPv6()
	case pool6 == "":
	case pool6 == "none":
		spec.IPv4 = true
	case err != nil || checkLinked6(p) != nil:
		return spec, native, &control.Error{
			Code: control.Usage, Message: "pool6: want an IPv6 network of /96 or wider, or none", Cause: "got " + pool6,
		}
	default:
		spec.Linked6 = netip.PrefixFrom(p.Addr(), identity.Linked6Bits)
	}
	return spec, native, nil
}

// uniqueLocal is a random prefix of RFC 4193.
func uniqueLocal() netip.Prefix {
	a := [16]byte{0xfd}
	rand.Read(a[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// speaksIPv6 is an error where pods of a cluster with nothing but IPv6 could not be reached.
func (d *daemon) speaksIPv6() error {
	if err := d.host.IPv6(); err != nil {
		return &control.Error{
			Code: control.Unsupported, Message: "the cluster has IPv6 addresses alone, and this machine speaks no IPv6",
			Cause: err.Error(), Hint: "Try: sysctl net.ipv6.conf.all.disable_ipv6=0",
		}
	}
	return nil
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
			return append(notes, acceptedNote(err)), pools, nil
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

// overlapError is for people; what is no overlap passes as it is.
func overlapError(err error) error {
	var used *router.PoolError
	if !errors.As(err, &used) {
		return err
	}
	return &control.Error{
		Code:    control.Conflict,
		Message: fmt.Sprintf("this machine already uses addresses of pool %s", used.Pool), Cause: used.Reason,
		Hint: "Choose another one: --pool CIDR; or --accept-overlap if you know that it does no harm",
	}
}

func acceptedNote(err error) string {
	if used, ok := errors.AsType[*router.PoolError](err); ok {
		return fmt.Sprintf("Pool %s is used on this machine already, and that was accepted: %s.", used.Pool, used.Reason)
	}
	return "Overlap accepted: " + err.Error() + "."
}
