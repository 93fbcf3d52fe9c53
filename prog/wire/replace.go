package wire

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Replace exchanges the wire for one that is started from o.Exe and has the same descriptors and desired state, and
// returns the client of the new one; Done of the old one is closed. Sessions are made anew, so id must have a Counter
// of its own; so are those of WireGuard devices, which stay as they are for the kernel. The new process is ready before
// the old one stops: packets wait in the kernel meanwhile.
//
// Every setter must have been called on this client before. After an error the old wire may be gone; call Ensure.
func (c *Client) Replace(ctx context.Context, id Identity) (*Client, error) {
	c.mu.Lock()
	desired := map[kind][]byte{kindIdentity: appendIdentity(nil, id)}
	told := 0
	for _, k := range []kind{kindPeers, kindTunnels, kindLocal, kindRelay, kindSparse} {
		if b, ok := c.desired[k]; ok {
			desired[k] = b
			if k != kindRelay && k != kindSparse { // an older wire could not be told
				told++
			}
		}
	}
	c.mu.Unlock()
	if told < 3 {
		return nil, errors.New("replace the wire: it has not been told all desired state by this weftd")
	}
	unlock, err := lock(ctx, c.o.Socket+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()

	next, err := start(ctx, c.o, c.o.Socket+besideSuffix)
	if err != nil {
		return nil, err
	}
	err = next.succeed(ctx, c, desired)
	select {
	case <-c.ended:
		c.tasks.Wait() // for the old process to be gone
	default:
	}
	if err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), exitPatience)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("replace the wire: %w", err), next.Stop(stopCtx))
	}
	return next, nil
}

// succeed takes everything over from the wire of old and stops that.
func (c *Client) succeed(ctx context.Context, old *Client, desired map[kind][]byte) error {
	r, err := old.call(ctx, kindFiles, nil)
	if err != nil {
		return fmt.Errorf("fetch descriptors: %w", err)
	}
	defer closeFDs(r.fds)
	h, err := parseHello(r.body)
	if err != nil {
		return fmt.Errorf("fetch descriptors: %w", err)
	}
	udp, tcp := len(h.Held.UDP), len(h.Held.TCP)
	if len(r.fds) != udp+tcp+h.Held.Queues {
		return fmt.Errorf("fetch descriptors: %d arrived", len(r.fds))
	}
	set := func(k kind) error { return c.set(ctx, k, desired[k]) }
	if err := errors.Join(set(kindIdentity), set(kindLocal)); err != nil {
		return err
	}
	for _, k := range []kind{kindRelay, kindSparse} {
		if _, told := desired[k]; !told {
			continue
		}
		if err := set(k); err != nil {
			return err
		}
	}
	devices := old.lendDevices(ctx)
	defer closeLent(devices)
	began := time.Now()
	if err := old.quit(ctx); err != nil {
		return fmt.Errorf("stop the old one: %w", err)
	}
	// Peers come after the sockets, so that handshakes start at once.
	err = errors.Join(
		c.moveSocket(c.o.Socket),
		c.lend(ctx, kindUDP, nil, r.fds[:udp]...),
		set(kindPeers),
		set(kindTunnels),
		c.lend(ctx, kindTUN, appendTUN(nil, h.Held.TUN), r.fds[udp+tcp:]...),
		c.lend(ctx, kindTCP, nil, r.fds[udp:udp+tcp]...),
	)
	if err == nil {
		c.takeOverDevices(ctx, devices)
		c.log.Info("replaced the wire", "pid", c.hello.PID, "gap", time.Since(began))
	}
	return err
}
