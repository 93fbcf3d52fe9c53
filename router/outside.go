package router

import (
	"context"
	"time"

	"weft/router/host"
)

const (
	settle     = 50 * time.Millisecond  // a burst of events is answered once
	impatience = 500 * time.Millisecond // and one without end so often
)

// outside is what others do to the machine, as far as the machine tells. Where it does not, or stops to, it is asked again
// no sooner than everything is read anyway: one that never tells must cost no more than that.
type outside struct {
	events <-chan host.Event // nil while nothing is told
	asked  time.Time
	mute   bool      // it was said in the log
	first  time.Time // when the oldest event came that was not answered; zero: all are
}

// listen asks the machine to tell, if it does not and the time has come.
func (o *outside) listen(ctx context.Context, r *Router) {
	now := time.Now()
	if o.events != nil || !o.asked.IsZero() && now.Sub(o.asked) < resync {
		return
	}
	o.asked = now
	events, err := r.cfg.Host.Watch(ctx)
	if err == nil {
		o.events, o.mute = events, false
		return
	}
	if ctx.Err() == nil && !o.mute {
		o.mute = true
		r.log.Warn("outside changes are noticed by looking every 30 s only", "err", err)
	}
}

// due is how long to wait for the rest of a burst, of which an event has come just now.
func (o *outside) due(now time.Time) time.Duration {
	if o.first.IsZero() {
		o.first = now
	}
	return max(0, min(settle, o.first.Add(impatience).Sub(now)))
}

// end returns when nothing is told any more, after ctx has ended.
func (o *outside) end() {
	if o.events == nil {
		return
	}
	for range o.events { // whoever tells has ended when the channel is closed
	}
}
