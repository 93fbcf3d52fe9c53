package router

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft/router/host"
)

// A link that is deleted makes the kernel hold a lock that every other change of the network waits for. So the links of
// detached pods are deleted when nobody has detached anything for quietTime, many at once; but none waits for longer than
// patience.
const (
	quietTime = 100 * time.Millisecond
	patience  = time.Second
	buryRetry = 2 * time.Second
)

// grave is the link of a pod that was detached, or is being detached.
type grave struct {
	pod   Pod           // without addresses where they are not known
	since time.Time     // when the pod was cut off; zero: not yet
	soon  bool          // somebody waits
	done  chan struct{} // closed when the link is gone
}

// dedicate makes a grave for a pod that is about to be cut off; mu is held. Where there is one already, because this is asked
// for the second time, those who wait at it go on waiting.
func (r *Router) dedicate(link string, pod Pod) {
	g := r.graves[link]
	if g == nil {
		g = &grave{done: make(chan struct{})}
		r.graves[link] = g
	}
	g.pod, g.since = pod, time.Time{}
}

// bury has the link of a pod that was cut off deleted in the background.
func (r *Router) bury(link string) {
	r.mu.Lock()
	if g := r.graves[link]; g != nil {
		g.since = time.Now()
	}
	r.mu.Unlock()
	select {
	case r.dig <- struct{}{}:
	default:
	}
}

// lingers reports whether a link waits to be deleted.
func (r *Router) lingers(link string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.graves[link] != nil
}

// Lingers reports whether a pod that was detached may still have an address on its interface: nobody else may get it
// until that is gone. Until the links that a former run left have been looked at, any address may be one of those.
func (r *Router) Lingers(addr netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.swept {
		return true
	}
	for _, g := range r.graves {
		if g.pod.V4 == addr || g.pod.V6 == addr || !g.pod.V4.IsValid() && !g.pod.V6.IsValid() {
			return true
		}
	}
	return false
}

// buried waits until these links are gone, or all that are to be deleted now when none is named.
func (r *Router) buried(ctx context.Context, links ...string) error {
	r.mu.Lock()
	if len(links) == 0 {
		links = slices.Collect(maps.Keys(r.graves))
	}
	var waits []<-chan struct{}
	for _, link := range links {
		if g := r.graves[link]; g != nil {
			waits = append(waits, g.done)
			g.soon = true
		}
	}
	r.mu.Unlock()
	if len(waits) == 0 {
		return nil
	}
	select {
	case r.dig <- struct{}{}:
	default:
	}
	for _, w := range waits {
		select {
		case <-w:
		case <-ctx.Done():
			return fmt.Errorf("wait until the former interface is gone: %w", context.Cause(ctx))
		}
	}
	return nil
}

// runGraves deletes links until ctx ends. What it leaves is found by the next run's sweep.
func (r *Router) runGraves(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.dig:
		case <-timer.C:
		}
		due, wait := r.due(time.Now())
		if len(due) > 0 {
			wait = 0
			left, err := r.unplug(ctx, due)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				r.log.Warn("links of detached pods not deleted yet", "count", left, "err", err)
				wait = buryRetry
			}
		}
		if wait >= 0 {
			timer.Reset(wait)
		}
	}
}

// unplug deletes links, and tells how many are left: where one cannot be, the others go one by one, for their addresses are
// wanted again.
func (r *Router) unplug(ctx context.Context, links []string) (left int, err error) {
	if err = r.cfg.Host.Unplug(ctx, links...); err == nil {
		r.close(links...)
		return 0, nil
	}
	if len(links) == 1 {
		return 1, err
	}
	for _, link := range links {
		if n, one := r.unplug(ctx, []string{link}); n > 0 {
			left, err = left+n, one
		}
	}
	if left == 0 {
		return 0, nil
	}
	return left, err
}

// due lists the links to delete now; when there is none yet, wait is how long to look again, less than 0 for never.
func (r *Router) due(now time.Time) (due []string, wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var oldest, newest time.Time
	soon := false
	for link, g := range r.graves {
		if g.since.IsZero() {
			continue
		}
		due = append(due, link)
		soon = soon || g.soon
		if oldest.IsZero() || g.since.Before(oldest) {
			oldest = g.since
		}
		if g.since.After(newest) {
			newest = g.since
		}
	}
	if len(due) == 0 {
		return nil, -1
	}
	if wait = min(newest.Add(quietTime).Sub(now), oldest.Add(patience).Sub(now)); wait > 0 && !soon {
		return nil, wait
	}
	slices.Sort(due)
	return due, 0
}

// close ends the wait for links that are gone.
func (r *Router) close(links ...string) {
	r.mu.Lock()
	for _, link := range links {
		if g := r.graves[link]; g != nil {
			close(g.done)
			delete(r.graves, link)
		}
	}
	r.mu.Unlock()
	if r.cfg.Buried != nil {
		r.cfg.Buried()
	}
}

// sweep finds the links that a former run left without a pod: it was ended between a detach and the deletion of the link,
// or in the middle of an attach. They go as those of detached pods do.
func (r *Router) sweep(ctx context.Context) error {
	have, err := r.cfg.Host.Snapshot(ctx, nil)
	if err != nil {
		return fmt.Errorf("look for links of former pods: %w", err)
	}
	r.mu.Lock()
	ours := make(map[string]bool)
	for _, p := range r.podsLocked() {
		ours[host.VethName(p.id())] = true
		ours[host.LooseName(p.id())] = true
	}
	// What is being attached just now is registered, and so are those. Those that were detached meanwhile have their graves.
	var left []string
	for _, l := range have.Links {
		if l.Kind == "veth" && strings.HasPrefix(l.Name, host.VethPrefix) && !ours[l.Name] && r.graves[l.Name] == nil {
			left = append(left, l.Name)
		}
	}
	r.mu.Unlock()
	if len(left) > 0 {
		r.log.Info("deleting links that a former run left", "count", len(left))
		if err := r.cfg.Host.Unplug(ctx, left...); err != nil {
			return fmt.Errorf("delete links of former pods: %w", err)
		}
	}
	r.mu.Lock()
	r.swept = true
	r.mu.Unlock()
	if r.cfg.Buried != nil {
		r.cfg.Buried()
	}
	return nil
}
