package docker

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

// DefaultSocket is where dockerd looks for a plugin called weft.
const DefaultSocket = "/run/docker/plugins/weft.sock"

// Config is what a Plugin is made of. Node and Store must be set.
type Config struct {
	Node   Node
	Store  Store
	Socket string       // DefaultSocket
	Log    *slog.Logger // nil: silent
}

// Plugin answers dockerd.
type Plugin struct {
	node   Node
	book   *book
	socket string
	log    *slog.Logger

	arranging sync.Mutex // held while an arrangement is handed over, so that an older one never comes after a newer
}

// New reads the book. Nothing is served before Run.
func New(c Config) (*Plugin, error) {
	if c.Node == nil || c.Store == nil {
		return nil, errors.New("make docker plugin: no node or no store")
	}
	b, err := openBook(c.Store)
	if err != nil {
		return nil, err
	}
	p := &Plugin{node: c.Node, book: b, socket: c.Socket, log: c.Log}
	if p.socket == "" {
		p.socket = DefaultSocket
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	return p, nil
}

const (
	headerTime  = 5 * time.Second // for a call to arrive
	socketEvery = 5 * time.Second // how often it is looked whether the socket is still ours
	retrySocket = 2 * time.Second
	closingTime = 3 * time.Second // for calls under way when the daemon ends
	maxHeader   = 16 << 10
	idleTime    = 2 * time.Minute
)

// Run serves dockerd until ctx ends; then the socket is gone. Cables and addresses stay as they are.
func (p *Plugin) Run(ctx context.Context) error {
	var side sync.WaitGroup
	defer side.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	side.Go(func() { p.begin(ctx) })
	side.Go(func() { p.reclaim(ctx) })
	for ctx.Err() == nil {
		if err := p.serve(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("docker plugin not served, will try again", "socket", p.socket, "err", err)
			pause(ctx, retrySocket)
		}
	}
	return nil
}

// serve answers on one socket until ctx ends or the socket is not ours any more.
func (p *Plugin) serve(ctx context.Context) error {
	s, err := listen(ctx, p.socket)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler: p.Handler(), ReadHeaderTimeout: headerTime, ReadTimeout: callTime, WriteTimeout: 2 * answerTime,
		IdleTimeout: idleTime, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug),
	}
	var watch sync.WaitGroup
	done := make(chan struct{})
	watch.Go(func() {
		tick := time.NewTicker(socketEvery)
		defer tick.Stop()
		for there := true; there; {
			select {
			case <-done:
				return
			case <-ctx.Done():
				there = false
			case <-tick.C:
				there = s.ours()
			}
		}
		s.remove() // before the last answers: who comes now should not be kept
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closingTime)
		defer cancel()
		if server.Shutdown(last) != nil {
			_ = server.Close()
		}
	})
	p.log.Info("docker plugin serves", "socket", p.socket)
	err = server.Serve(s.listener)
	close(done)
	watch.Wait()
	s.remove()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// begin brings the machine to what the book says, as soon as there is a node.
func (p *Plugin) begin(ctx context.Context) {
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(ctx, callTime)
		err := p.arrange(one)
		cancel()
		if err == nil {
			return
		}
		p.log.Debug("docker networks not arranged yet", "err", err)
		pause(ctx, time.Second)
	}
}

// arrange hands over the newest arrangement.
func (p *Plugin) arrange(ctx context.Context) error {
	p.arranging.Lock()
	defer p.arranging.Unlock()
	return p.node.Arrange(ctx, p.book.read().arrangement())
}

// pause waits, shorter when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
