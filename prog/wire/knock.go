package wire

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// accept takes the connections of one TCP port until it is closed.
func (s *server) accept(ctx context.Context, d *door) {
	for {
		tc, err := d.accept(s.mayCall)
		if err != nil {
			wait := refusedPause
			switch {
			case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
				return
			case !errors.Is(err, errRefused):
				s.log.Warn("accept on weft port", "err", err)
				wait = acceptPause
			}
			if !pause(ctx, wait) {
				return
			}
			continue
		}
		knock := s.knocking.Enter(household(remoteAddr(tc)), time.Now(), func() {
			s.closed.Add(1)
			tc.Close()
		})
		if knock == nil {
			s.closed.Add(1)
			tc.Close()
			continue
		}
		s.tasks.Go(func() {
			defer s.knocking.Leave(knock)
			_ = tc.SetReadDeadline(time.Now().Add(knockTimeout))
			stop := context.AfterFunc(ctx, func() { _ = tc.SetReadDeadline(time.Unix(0, 1)) })
			data := asksForData(tc)
			stop()
			_ = tc.SetReadDeadline(time.Time{})
			s.sort(ctx, tc, data)
		})
	}
}

// remoteAddr is where a connection comes from.
func remoteAddr(tc *net.TCPConn) netip.Addr {
	if a, ok := tc.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr()
	}
	return netip.Addr{}
}

// mayCall reports whether an address may open one more connection.
func (s *server) mayCall(from netip.Addr) bool {
	may := s.callers.allow(from, time.Now())
	if !may {
		s.closed.Add(1)
	}
	return may
}

// pass hands a connection to weftd, unless there is none or it does not keep up.
func (s *server) pass(tc *net.TCPConn) bool {
	c := s.controller()
	if c == nil || c.waiting() >= maxPassing {
		return false
	}
	fd, err := duplicate(tc)
	return err == nil && c.post(kindAccepted, 0, nil, fd) == nil
}

// errRefused says that connections were closed and that nobody else waits to come in.
var errRefused = errors.New("only those who may not come in")

// Pauses between two accepts.
const (
	acceptPause  = 100 * time.Millisecond // after one that failed, for lack of descriptors mostly
	refusedPause = 5 * time.Millisecond   // while somebody opens more than it may: then they are closed together
)

// pause waits, and reports false when ctx ends.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
