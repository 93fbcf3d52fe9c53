package weftd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"weft/crypto/identity"
	"weft/prog/control"
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
	started time.Time

	door    *control.Server // taken before anything is touched, given up when all else has ended; nil: nobody is served
	metrics net.Listener    // nil: none
	state   *stateDir
	host    *host.Host

	purged func()             // after the socket was given up; nil: nothing
	stop   context.CancelFunc // ends the daemon; nil: it does not run, it only makes a cluster
	ready  chan *node         // capacity 1: a node to be run

	stillborn chan error // capacity 1: why a node that came back could not begin

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
	d := newDaemon(cfg)
	// The socket comes first: a second daemon finds out that it is one before it has touched anything.
	door, err := control.Listen(control.Config{Path: cfg.Socket, Backend: d, Log: d.log})
	if err != nil {
		return err
	}
	d.door = door
	defer d.close()
	if err := d.openPorts(ctx); err != nil {
		return explain(err)
	}
	if err := d.openState(); err != nil {
		return explain(err)
	}
	return explain(d.run(ctx))
}

func newDaemon(cfg Config) *daemon {
	lines := newLogLines(cfg.Log.Handler())
	cfg.Log = slog.New(lines)
	return &daemon{cfg: cfg, log: cfg.Log, lines: lines, started: time.Now(), ready: make(chan *node, 1), stillborn: make(chan error, 1)}
}

// openPorts opens the metrics port, and sees that the weft port can be had: by a wire that runs already, or by the next.
func (d *daemon) openPorts(ctx context.Context) error {
	if !d.cfg.MetricsOff {
		ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", d.cfg.MetricsListen.String())
		if err != nil {
			return portError("tcp", d.cfg.MetricsListen, "metrics-listen", err)
		}
		d.metrics = ln
	}
	socket := stateFile(d.cfg.State, fileWireSocket)
	if err := checkPort(ctx, d.cfg.Listen, socket); err != nil || !d.cfg.RelayListen.IsValid() {
		return err
	}
	return tryTCP(ctx, d.cfg.RelayListen, "relay-listen", socket)
}

func (d *daemon) openState() error {
	state, err := openState(d.cfg.State)
	if err != nil {
		return err
	}
	d.state = state
	if d.host, err = host.Open("", d.log); err != nil {
		return err
	}
	return nil
}

// close gives up what open took, the socket last: then another daemon may start.
func (d *daemon) close() {
	var errs []error
	if d.metrics != nil {
		if err := d.metrics.Close(); !errors.Is(err, net.ErrClosed) { // it was served
			errs = append(errs, err)
		}
	}
	if d.host != nil {
		errs = append(errs, d.host.Close())
	}
	if d.state != nil {
		errs = append(errs, d.state.close())
	}
	if d.door != nil {
		errs = append(errs, d.door.Close())
	}
	if d.purged != nil {
		d.purged()
	}
	if err := errors.Join(errs...); err != nil {
		d.log.Warn("daemon not closed cleanly", "err", err)
	}
}

func (d *daemon) run(outside context.Context) error {
	ctx, stop := context.WithCancel(context.WithoutCancel(outside))
	d.stop = stop
	defer stop()
	if err := finishRebirth(d.state); err != nil {
		return err
	}
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
		{"control", d.door.Serve},
		{"node", d.runNodes},
		{"ready", d.tellReady},
		{"return", d.returnSilent},
		{"signal", func(ctx context.Context) error { return d.awaitSignal(ctx, outside) }},
	}
	if m == nil && (d.cfg.Init || d.cfg.Join != "") {
		tasks = append(tasks, task{"enter", d.enter})
	}
	if d.metrics != nil {
		tasks = append(tasks, task{"metrics", d.serveMetrics})
	}
	tasks = append(tasks, task{"docker forwarding", d.keepForwarding})
	if d.cfg.Docker {
		tasks = append(tasks, task{"docker", d.serveDocker})
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

// resume begins the node of a membership that is on disk, where that has failed before.
func (d *daemon) resume(m *membership, key identity.Key) error {
	if n, _ := d.current(); n != nil || d.stop == nil {
		return nil
	}
	return d.begin(m, key)
}

// runNode waits for a node and runs it.
func (d *daemon) runNode(ctx context.Context) error {
	select {
	case <-ctx.Done():
		// A node that was built has a store to close, and its run does nothing else now.
		select {
		case n := <-d.ready:
			return n.run(ctx)
		default:
			return nil
		}
	case n := <-d.ready:
		d.log.Info("node starts", "peer", n.key.ID(), "name", n.name, "cluster", clusterName(n.member.cluster))
		return n.run(ctx)
	}
}

// runNodes runs the node, and after it was retired the one that comes in its place.
func (d *daemon) runNodes(ctx context.Context) error {
	for {
		if err := d.runNode(ctx); err != nil || ctx.Err() != nil {
			return err
		}
	}
}

// tellReady tells systemd that the socket answers, and that the end has begun.
func (d *daemon) tellReady(ctx context.Context) error {
	d.tell("READY=1")
	<-ctx.Done()
	d.tell("STOPPING=1")
	return nil
}

func (d *daemon) tell(state string) {
	if err := notify(state); err != nil {
		d.log.Warn("systemd not told", "err", err)
	}
}

// enter makes or joins the cluster that the operator asked for at the start.
func (d *daemon) enter(ctx context.Context) error {
	if d.cfg.Init {
		return d.foundNow(ctx)
	}
	return d.joinInTheEnd(ctx)
}

// current is the node, or a sentence that there is none.
func (d *daemon) current() (*node, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.node == nil {
		return nil, &control.Error{
			Code: control.NotReady, Message: "this node is in no cluster yet", Cause: d.joining,
			Hint: "Make one: weft init; or enter one: weft join TOKEN",
		}
	}
	return d.node, nil
}

// clusterName is how people see a cluster: the beginning of its ID.
func clusterName(c *identity.Cluster) string {
	id := c.ID()
	return fmt.Sprintf("%x", id[:16])
}
