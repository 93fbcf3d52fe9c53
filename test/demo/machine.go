package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"weft/test/netlab"
)

const (
	pollStatus   = 50 * time.Millisecond
	startTimeout = 20 * time.Second // for a daemon to come up, and for a cluster to be complete
	stepTimeout  = 20 * time.Second
)

// machine is one host with its daemon.
type machine struct {
	*netlab.Host
	weft    string // path of the program
	daemon  *netlab.Cmd
	overlay []netip.Addr // its own addresses in the container network
	pods    []*container
}

// container is a pod and its addresses.
type container struct {
	*netlab.Host
	addrs []netip.Addr
	serve *netlab.Cmd
}

func (m *machine) socket() string { return filepath.Join(m.Dir(), "weft.sock") }

// up starts the daemon.
func (m *machine) up(keep bool, args ...string) error {
	all := append([]string{
		"up", "--name", m.Name(), "--state", filepath.Join(m.Dir(), "state"), "--socket", m.socket(),
		"--metrics-listen", "127.0.0.1:6782",
	}, args...)
	m.daemon = m.Command(m.weft, all...)
	if keep {
		m.daemon.Outlive()
	}
	return m.daemon.Start()
}

// cli runs a command as a person on that machine would.
func (m *machine) cli(args ...string) (string, error) {
	c := m.Command(m.weft, args...).Env("WEFT_SOCKET=" + m.socket()).Quiet()
	err := c.Run()
	return c.Stdout(), err
}

// status is what the demo reads of `weft status --json`.
type status struct {
	Node struct {
		Name    string       `json:"name"`
		State   string       `json:"state"`
		Reason  string       `json:"reason"`
		Overlay []netip.Addr `json:"overlay"`
	} `json:"node"`
	Cluster struct {
		Pools   []netip.Prefix `json:"pools"`
		Members int            `json:"members"`
		Alive   int            `json:"alive"`
	} `json:"cluster"`
	Peers []struct {
		Name      string `json:"name"`
		State     string `json:"state"`
		Transport string `json:"transport"`
		Encrypted bool   `json:"encrypted"`
		Path      string `json:"path"`
		Reason    string `json:"reason"`
	} `json:"peers"`
}

func (m *machine) status() (status, error) {
	var st status
	out, err := m.cli("status", "--json")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("read status of %s: %w", m.Name(), err)
	}
	return st, nil
}

// waitReady waits until the daemon is a member among so many that are alive.
func (m *machine) waitReady(ctx context.Context, members int) (status, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	var why error
	for {
		st, err := m.status()
		switch {
		case err != nil:
			why = err
		case st.Node.State == "ready" && st.Cluster.Alive >= members:
			m.overlay = st.Node.Overlay
			return st, nil
		default:
			why = fmt.Errorf("state %q (%s), %d of %d members alive", st.Node.State, st.Node.Reason, st.Cluster.Alive, members)
		}
		select {
		case <-m.daemon.Done():
			return st, fmt.Errorf("the daemon on %s ended: %w", m.Name(), m.daemon.Wait())
		case <-ctx.Done():
			return st, fmt.Errorf("%s is not ready: %w", m.Name(), why)
		case <-time.After(pollStatus):
		}
	}
}

// attach makes a pod and connects it.
func (m *machine) attach(name string) (*container, error) {
	c := &container{Host: m.Pod(name)}
	out, err := m.cli("attach", c.Path(), "--name", c.Name())
	if err != nil {
		return nil, err
	}
	for line := range strings.FieldsSeq(out) {
		a, err := netip.ParseAddr(line)
		if err != nil {
			return nil, fmt.Errorf("attach printed %q: %w", out, err)
		}
		c.addrs = append(c.addrs, a)
	}
	if len(c.addrs) == 0 {
		return nil, fmt.Errorf("attach of %s printed no address", c.Name())
	}
	m.pods = append(m.pods, c)
	return c, nil
}

// end is somebody who talks and is talked to.
type end struct {
	host  *netlab.Host
	name  string
	addrs []netip.Addr
	pod   bool
}
