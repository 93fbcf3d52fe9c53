package weftd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"weft/crypto/identity"
	"weft/crypto/token"
	"weft/ipam"
	"weft/mesh/join"
	"weft/prog/control"
)

// A machine whose node was removed joins again under a new key: by itself after a removal for silence, with a token
// otherwise. Its pods run on meanwhile, so their claims are handed to the new life; everything else of the old life goes.
//
//	removed -> (new key on disk) -> admitted -> old node ended -> reborn written -> files changed over -> new node
//
// The file "reborn" is the point of no return: before it the old life stands and the same new key asks again, after it
// finishRebirth brings the change over to its end, whenever that is.

const (
	returnLook    = time.Second // how often it is looked whether this node was removed for silence
	returnSeeds   = 6           // members asked in one turn
	rebirthTime   = 30 * time.Second
	returnWaitMin = 500 * time.Millisecond
	returnWaitMax = 30 * time.Second
)

// returnSilent brings this machine back after its node was removed for silence, until ctx ends.
func (d *daemon) returnSilent(ctx context.Context) error {
	wait := returnLook
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-d.stillborn:
			return err
		case <-time.After(wait):
		}
		n, _ := d.current()
		if n == nil || n.staysOut.Load() != nil {
			wait = returnLook
			continue
		}
		if r, ok := n.removed(); !ok || r.Reason != identity.Silence {
			wait = returnLook
			continue
		}
		_, err := d.rebirth(ctx, n, func(ctx context.Context, key identity.Key) (*join.Result, error) {
			return n.comeBack(ctx, key)
		})
		switch {
		case err == nil:
			wait = returnLook
		case ctx.Err() != nil:
			return nil //nolint:nilerr // told to stop while it tried
		case forGood(err):
			why := explain(err).Error()
			n.staysOut.Store(&why)
			d.log.Warn("not let back in", "err", err)
		default:
			d.log.Info("not back yet, will try again", "err", err)
			wait = min(2*max(wait, returnWaitMin), returnWaitMax)
			wait = wait/2 + rand.N(wait/2)
		}
	}
}

// comeBack asks the members that this node remembers to be let in, with its former key as proof.
func (n *node) comeBack(ctx context.Context, key identity.Key) (*join.Result, error) {
	var seeds []token.Seed
	members := n.remaining()
	rand.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	for _, m := range members {
		for _, ep := range n.toldEndpoints(m.ID) {
			if seeds = append(seeds, token.SeedOf(ep, m.ID)); len(seeds) >= returnSeeds {
				break
			}
		}
		if len(seeds) >= returnSeeds {
			break
		}
	}
	if len(seeds) == 0 {
		return nil, errors.New("come back: nowhere to ask")
	}
	cfg := join.Config{Key: key, Name: n.name, Build: n.cfg.Build}
	return join.Return(ctx, cfg, n.key, identity.FingerprintOf(n.member.cluster.Root), seeds)
}

// rebirth lets enter join with a new key, ends the node n, which was removed, and begins the new one.
func (d *daemon) rebirth(ctx context.Context, n *node, enter func(context.Context, identity.Key) (*join.Result, error)) (*membership, error) {
	d.entering.Lock()
	defer d.entering.Unlock()
	if now, _ := d.current(); now != n {
		return now.member, nil // somebody else was faster
	}
	key, err := d.state.keyOrNew(fileNextIdentity)
	if err != nil {
		return nil, err
	}
	result, err := enter(ctx, key)
	if err != nil {
		return nil, err
	}
	m := joined(result)
	m.advertise = n.member.advertise
	// From here on it is finished whoever asked for it: the old life has no use any more.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rebirthTime)
	defer cancel()
	d.stopAttached(ctx, n)
	n.retire()
	select {
	case <-n.ended:
	case <-ctx.Done():
		return nil, fmt.Errorf("end the former node: %w", ctx.Err())
	}
	if _, err := stopWire(ctx, d.cfg, d.state); err != nil {
		d.log.Warn("wire of the former node not stopped", "err", err)
	}
	if err := m.beReborn(d.state); err != nil {
		return nil, err
	}
	d.log.Warn("came back as a new node", "was", n.key.ID(), "peer", key.ID(), "cluster", clusterName(m.cluster))
	if err := d.begin(m, key); err != nil {
		// The state is the new life's, and the old node has ended: only a new daemon can go on.
		select {
		case d.stillborn <- err:
		default:
		}
		return nil, err
	}
	return m, nil
}

// beReborn changes the state over to a new life.
func (m *membership) beReborn(s *stateDir) error {
	if err := s.remove(fileNextDB); err != nil {
		return err
	}
	if err := inheritClaims(s.file(fileDB), s.file(fileNextDB)); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return err
	}
	if err := s.write(fileReborn, m.append(nil)); err != nil {
		return err
	}
	return finishRebirth(s)
}

func inheritClaims(from, to string) error {
	old, err := ipam.OpenBolt(from)
	if err != nil {
		return err
	}
	book, err := ipam.OpenBolt(to)
	if err != nil {
		return errors.Join(err, old.Close())
	}
	return errors.Join(ipam.Inherit(old, book), book.Close(), old.Close())
}

// finishRebirth completes a change of life that was begun; it may be done again at any time.
func finishRebirth(s *stateDir) error {
	b, err := s.read(fileReborn)
	if errors.Is(err, errNoState) {
		return nil
	}
	if err != nil {
		return err
	}
	for next, now := range map[string]string{fileNextIdentity: fileIdentity, fileNextDB: fileDB} {
		if err := os.Rename(s.file(next), s.file(now)); err != nil && !errors.Is(err, errNoState) {
			return stateError(s.path, "change over to the new life in", err)
		}
	}
	if err := s.remove(fileNoise, fileWireGuard, filePromises, fileRoster, fileRecords, fileSelf, fileSilence); err != nil {
		return err
	}
	if err := s.write(fileMembership, b); err != nil {
		return err
	}
	return s.remove(fileReborn)
}

// joinAgain is `weft join` on a machine whose node was removed.
func (d *daemon) joinAgain(ctx context.Context, n *node, r control.JoinRequest) (control.JoinReply, error) {
	if t, err := token.Parse(r.Token); err == nil && t.Root != identity.FingerprintOf(n.member.cluster.Root) {
		return control.JoinReply{}, &control.Error{
			Code: control.Conflict, Message: "the token is for another cluster than the one that this node was removed from",
			Hint: "Leave the old one first: weft leave --purge; then join again",
		}
	}
	var sponsor string
	name := r.Name
	if name == "" {
		name = n.name
	}
	m, err := d.rebirth(ctx, n, func(ctx context.Context, key identity.Key) (*join.Result, error) {
		result, err := join.Join(ctx, join.Config{Token: r.Token, Key: key, Name: name, Build: d.cfg.Build})
		if err == nil {
			sponsor = result.Sponsor.Short()
		}
		return result, err
	})
	if err != nil {
		return control.JoinReply{}, err
	}
	return joinReply(m, sponsor, false), nil
}
