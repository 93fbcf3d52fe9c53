package weftd

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"time"

	"weft/mesh/join"
	"weft/prog/control"
	"weft/router"
)

const (
	joinRetryMin = 500 * time.Millisecond
	joinRetryMax = 10 * time.Second
)

// joinInTheEnd joins the cluster of `weft up --join`. It tries until it succeeds or is refused for good: seeds may come up
// later than this machine.
func (d *daemon) joinInTheEnd(ctx context.Context) error {
	token, err := d.cfg.Token()
	if err != nil {
		return err
	}
	wait := joinRetryMin
	for {
		_, err := d.joinCluster(ctx, control.JoinRequest{Token: token})
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop while it tried: that is no failure
		}
		if forGood(err) {
			return err
		}
		d.mu.Lock()
		d.joining = explain(err).Error()
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

// forGood reports whether trying again is no use: the cluster said no, or this machine did.
func forGood(err error) bool {
	var refused *join.Error
	var ours *control.Error
	return errors.As(err, &refused) && !refused.Temporary() || errors.As(err, &ours)
}

// joinCluster enters the cluster of a token, or says that this node is in it already.
func (d *daemon) joinCluster(ctx context.Context, r control.JoinRequest) (control.JoinReply, error) {
	if n, _ := d.current(); n != nil {
		if n.over() {
			return d.joinAgain(ctx, n, r)
		}
	}
	d.entering.Lock()
	defer d.entering.Unlock()
	m, former, err := loadMembership(d.state)
	if err != nil {
		return control.JoinReply{}, err
	}
	if m != nil {
		return joinReply(m, "", true), d.resume(m, former)
	}
	advertise, err := parseAdvertised(r.Advertise)
	if err != nil {
		return control.JoinReply{}, err
	}
	key, err := d.state.keyOrNew(fileIdentity)
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
	m.advertise = advertise
	if err := d.checkJoined(ctx, m, r.AcceptOverlap || d.cfg.AcceptOverlap); err != nil {
		return control.JoinReply{}, err
	}
	if err := m.admit(d.state); err != nil {
		return control.JoinReply{}, err
	}
	d.log.Info("cluster joined", "cluster", clusterName(m.cluster), "name", name, "endpoint", result.Endpoint)
	if err := d.begin(m, key); err != nil {
		return control.JoinReply{}, err
	}
	return joinReply(m, result.Sponsor.Short(), false), nil
}

// checkJoined refuses a cluster whose pools this machine already uses. The admission is not lost: joining again with
// --accept-overlap gets the same certificate.
func (d *daemon) checkJoined(ctx context.Context, m *membership, accept bool) error {
	if m.native() {
		if err := d.speaksIPv6(); err != nil {
			return err
		}
	}
	notes, err := router.CheckPools(ctx, d.host, m.pools())
	for _, note := range notes {
		d.log.Warn("pool overlaps", "note", note)
	}
	if err != nil && accept {
		d.log.Warn("overlap accepted", "err", err)
		return nil
	}
	return overlapError(err)
}

func joinReply(m *membership, sponsor string, existed bool) control.JoinReply {
	return control.JoinReply{
		Version: control.Version, Cluster: clusterName(m.cluster), Node: m.certificate.ID().String(),
		Name: m.certificate.Name(), Sponsor: sponsor, Existed: existed,
	}
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
