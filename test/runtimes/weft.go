package runtimes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft/prog/control"
)

// Where things lie in a node.
const (
	weftDir   = "/opt/weft/bin"
	pluginDir = "/opt/cni/bin"
	listPath  = "/etc/cni/net.d/10-weft.conflist"

	// referencePlugins is where Debian's package containernetworking-plugins puts them.
	referencePlugins = "/usr/lib/cni"
)

const upPatience = 2 * time.Minute

// Weft is the daemon on a node, with its ordinary paths.
type Weft struct {
	*Node
	Daemon *Cmd // the last one started
}

// InstallWeft puts the programs of a folder (weft, weft-cni) where weft-join would, and the reference plugins beside.
func (n *Node) InstallWeft(programs string) (*Weft, error) {
	w := &Weft{Node: n}
	for from, to := range map[string]string{
		"weft": weftDir + "/weft", "weft-cni": pluginDir + "/weft-cni",
	} {
		if err := n.Install(filepath.Join(programs, from), to); err != nil {
			return nil, err
		}
	}
	if err := os.Symlink("weft-cni", n.Path(pluginDir+"/weft-ipam")); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	others, err := os.ReadDir(referencePlugins)
	if err != nil {
		return nil, fmt.Errorf("find reference plugins: %w (apt-get install --no-install-recommends containernetworking-plugins)", err)
	}
	for _, p := range others {
		err := os.Symlink(filepath.Join(referencePlugins, p.Name()), n.Path(filepath.Join(pluginDir, p.Name())))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return nil, err
		}
	}
	return w, nil
}

// Configure writes the network configuration list of the runtime.
func (w *Weft) Configure(list string) error { return w.WriteFile(listPath, []byte(list), 0o644) }

// Up starts the daemon with `weft up`.
func (w *Weft) Up(args ...string) error {
	w.Daemon = w.Command("weft", append([]string{"up", "--name", w.Name()}, args...)...)
	return w.Daemon.Start()
}

// Found starts the daemon as founder and returns the token of its join line.
func (w *Weft) Found(ctx context.Context, args ...string) (token string, err error) {
	if err := w.Up(append([]string{"--init"}, args...)...); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, upPatience)
	defer cancel()
	line, err := w.Daemon.WaitOutput(ctx, `weft up --join (weft1[a-z2-7]+)`)
	if err != nil {
		return "", err
	}
	return line[1], w.WaitReady(ctx, 1)
}

// Stop ends the daemon as systemd would; the wire goes on.
func (w *Weft) Stop() error { return w.Daemon.Stop(time.Minute) }

// Crash ends the daemon without a word.
func (w *Weft) Crash() { w.Daemon.Kill() }

// JSON runs a command of weft with --json and decodes what it prints.
func (w *Weft) JSON(ctx context.Context, into any, args ...string) error {
	out, err := w.Exec(ctx, "weft", append(args, "--json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		return fmt.Errorf("read what weft %s prints on %s: %w", strings.Join(args, " "), w.Name(), err)
	}
	return nil
}

// Claims lists the addresses in use.
func (w *Weft) Claims(ctx context.Context) ([]control.Claim, error) {
	var c control.Claims
	err := w.JSON(ctx, &c, "ip", "list")
	return c.Claims, err
}

// WaitReady waits until the daemon is a member among at least so many that are alive, with tunnels to them.
func (w *Weft) WaitReady(ctx context.Context, alive int) error {
	return Poll(ctx, func() error {
		var s control.Status
		if err := w.JSON(ctx, &s, "status"); err != nil {
			select {
			case <-w.Daemon.Done():
				return Stop{fmt.Errorf("the daemon on %s ended: %w", w.Name(), w.Daemon.Wait())}
			default:
				return err
			}
		}
		up := 1
		for _, p := range s.Peers {
			if p.Path != control.PathNone {
				up++
			}
		}
		if s.Node.State != control.NodeReady || s.Cluster.Alive < alive || up < alive {
			return fmt.Errorf("%s is %s (%s): %d of %d alive, %d reached", w.Name(), s.Node.State, s.Node.Reason, s.Cluster.Alive, alive, up)
		}
		return nil
	})
}

// Plugin runs a CNI plugin as a runtime would.
func (w *Weft) Plugin(name, command, conf string, env ...string) *Cmd {
	return w.Command(filepath.Join(pluginDir, name)).In(conf).
		Env("CNI_COMMAND="+command, "CNI_PATH="+pluginDir).Env(env...)
}

// Stop is an error that more waiting does not mend.
type Stop struct{ Err error }

func (s Stop) Error() string { return s.Err.Error() }
func (s Stop) Unwrap() error { return s.Err }

// Poll calls f until it returns nil or a Stop, or ctx ends; then the error is the last one of f.
func Poll(ctx context.Context, f func() error) error {
	for {
		err := f()
		var final Stop
		if err == nil || errors.As(err, &final) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(3 * pollEvery):
		}
	}
}

// Picture is all that a runtime's request may leave behind on a node: links, addresses, routes, rules, filters and claims.
// Two pictures of the same state are equal.
func (w *Weft) Picture(ctx context.Context) (string, error) {
	var b strings.Builder
	for _, line := range []string{
		"ip -o link show | sed 's/^[0-9]*: //; s/@[^ ]*//' | sort", "ip -o addr show | sed 's/^[0-9]*: //' | grep -v fe80 | sort",
		"ip route show table all | grep -v 'fe80\\|ff00' | sort", "ip -6 route show table all | grep -v 'fe80\\|ff00' | sort",
		"ip rule; ip -6 rule", "nft -s list ruleset", "ls /run/netns",
	} {
		out, err := w.Exec(ctx, "sh", "-c", line)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "# %s\n%s", line, out)
	}
	claims, err := w.Claims(ctx)
	for _, c := range claims {
		fmt.Fprintf(&b, "claim %s %s %s\n", c.Address, c.Container, c.Ifname)
	}
	return b.String(), err
}
