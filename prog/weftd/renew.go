package weftd

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"weft/mesh/peer"
	"weft/prog/wire"
)

const (
	renewEvery    = time.Second      // how often it is looked whether the wire may be renewed
	renewPatience = 2 * time.Minute  // for the peers of the running wire to agree on secrets with this daemon
	renewTime     = 15 * time.Second // for the exchange of the wires; its gap is a small part of that
	renewAgain    = time.Minute      // after one that failed
)

// attend watches over c until it ends, or ctx does. After an upgrade the wire is still the old program: it is exchanged
// for a new one as soon as this daemon knows all that the new one must be told, so that packets wait for a handshake and
// no longer. A wire of the same build is never exchanged.
func (l *wirelink) attend(ctx context.Context, c *wire.Client) error {
	attached := time.Now()
	look := time.NewTicker(renewEvery)
	defer look.Stop()
	var notBefore time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-c.Done():
			return c.Err()
		case now := <-look.C:
			if c.Hello().Version == l.options.Version {
				look.Stop()
				continue
			}
			if now.Before(notBefore) || !l.renewable(ctx, c, now.Sub(attached) > renewPatience) {
				continue
			}
			next, err := l.renew(ctx, c)
			if err != nil {
				l.log.Warn("wire not renewed, will try again", "err", err)
				notBefore = now.Add(renewAgain)
				continue
			}
			defer next.Close() // it detaches; the wire lives on
			c = next
		}
	}
}

// renewable reports whether a new wire could be told what this one knows: all wanted state, and a secret with every peer
// that it has a session with, without which there would be none.
func (l *wirelink) renewable(ctx context.Context, c *wire.Client, hurry bool) bool {
	ctx, cancel := context.WithTimeout(ctx, wireLinksTime)
	defer cancel()
	links, err := c.Links(ctx)
	if err != nil {
		return false
	}
	l.telling.Lock()
	defer l.telling.Unlock()
	if l.peers == nil || l.tunnels == nil || l.local == nil {
		return false
	}
	secret := peer.Set{}
	for _, p := range l.peers {
		if len(p.Secrets) > 0 && p.NoisePublic != [32]byte{} {
			secret.Add(p.ID)
		}
	}
	for _, link := range links {
		if link.Up && !secret.Has(link.Peer) && !hurry {
			return false
		}
	}
	return true
}

// renew exchanges the wire behind c for one of this build. What is wanted meanwhile waits, and then goes to the new one.
func (l *wirelink) renew(ctx context.Context, c *wire.Client) (*wire.Client, error) {
	l.telling.Lock()
	defer l.telling.Unlock()
	if l.ended() {
		return nil, wire.ErrStopped
	}
	ctx, cancel := context.WithTimeout(ctx, renewTime)
	defer cancel()
	id, err := l.identity(true)
	if err != nil {
		return nil, err
	}
	next, err := c.Replace(ctx, id)
	if err != nil {
		return nil, err
	}
	l.turn(next)
	l.log.Info("wire renewed", "build", next.Hello().Version, "pid", next.Hello().PID)
	return next, nil
}

// launchUnit has systemd start the wire, as a unit of its own: there it has its sandbox, and nobody takes it for a
// process that the daemon left behind. systemctl returns when the wire can be called.
func launchUnit(unit string) func(context.Context, bool) error {
	if unit == "" {
		return nil
	}
	return func(ctx context.Context, beside bool) error {
		verb := "start"
		if beside {
			verb = "reload"
		}
		out, err := exec.CommandContext(ctx, "systemctl", verb, unit).CombinedOutput()
		if err != nil {
			return errors.Join(fmt.Errorf("systemctl %s %s: %w", verb, unit, err), said(out))
		}
		return nil
	}
}

// said makes an error of a program's last words.
func said(out []byte) error {
	if words := strings.TrimSpace(string(out)); words != "" {
		return errors.New(words)
	}
	return nil
}
