package ipamsim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"weft/ipam"
	"weft/mesh/peer"
)

// Machine is one identity on one disk. Its allocator comes and goes.
type Machine struct {
	w      *World
	index  int
	name   string
	key    key
	disk   *disk
	member bool // it has its certificate

	roster  *roster
	pending map[peer.ID]promise // joins that it has agreed to
	joining []promise           // the same for the allocator
	leaving bool                // it hands back its space, or has
	now     *life               // nil while it is down
	lives   []*life
	saved   *disk // what SetBack goes back to
	rosterS *roster
	full    int  // so many rosters cannot be saved next
	retired bool // it will not be started again
	hurried bool // a comparison is due soon
	clock   clock
	Told    map[string]netip.Addr // what its users were told and have not given back

	view view // what the audit saw last
}

// life is one run of a machine's allocator.
type life struct {
	m      *Machine
	nth    int
	alloc  *ipam.Allocator
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	watch  <-chan struct{}
	drawn  atomic.Uint64

	mu      sync.Mutex // guards the rest
	version int        // of the answers below
	of      *roster
	peers   []peer.Info
	voters  []peer.Voter
}

var _ ipam.Network = (*life)(nil)

func (m *Machine) String() string { return m.name }

// ID is the machine's identity.
func (m *Machine) ID() peer.ID { return m.key.id }

// Up is the running allocator, nil while there is none.
func (m *Machine) Up() *ipam.Allocator {
	if m.now == nil {
		return nil
	}
	return m.now.alloc
}

func (w *World) newMachine(k key) *Machine {
	m := &Machine{
		w: w, index: len(w.machines), name: fmt.Sprintf("n%d", len(w.machines)), key: k, disk: newDisk(),
		pending: make(map[peer.ID]promise), Told: make(map[string]netip.Addr), clock: clock{began: w.began},
	}
	w.change(func() {
		w.machines = append(w.machines, m)
		w.byID[k.id] = append(w.byID[k.id], m)
	})
	return m
}

// Start starts a machine that is a member and down.
func (w *World) Start(m *Machine) {
	if m.now != nil || !m.member || m.retired {
		return
	}
	l := &life{m: m, nth: len(m.lives)}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	m.disk.plug(func() {
		l.cancel()
		l.post(" died", m.index, 0, func() {
			w.logf("%s dies at a transaction", m)
			m.kill()
		})
	})
	cfg := ipam.Config{
		Universe: w.universe, Signer: m.key, Network: l, Store: m.disk, Log: w.logger(m),
		Verify:  w.verifier(m),
		Roster:  l,
		Random:  l.random,
		Now:     m.clock.now,
		Strict:  w.setup.Strict,
		CoolFor: w.setup.CoolFor, CoolTaken: w.setup.CoolTaken, Silence: w.setup.Silence,
	}
	if w.setup.Configure != nil {
		w.setup.Configure(&cfg)
	}
	a, err := ipam.New(cfg)
	if err != nil {
		w.audit.fail("%s does not start: %v", m, err)
		return
	}
	l.alloc, l.watch = a, a.Watch()
	w.change(func() {
		m.now = l
		m.lives = append(m.lives, l)
	})
	w.audit.started(m)
	l.wg.Go(func() {
		if err := a.Run(l.ctx); err != nil && !errors.Is(err, errDied) && !errors.Is(err, errFull) {
			l.post(" failed", m.index, 0, func() { w.audit.fail("%s runs no more: %v", m, err) })
		} else if err != nil {
			l.post(" ended", m.index, 0, func() { m.kill() })
		}
	})
	w.hurry(m)
	w.tick(m, l)
}

// random names requests and starts.
func (l *life) random() uint64 {
	d := mix(l.m.w.setup.Seed, uint64(l.m.index), uint64(l.nth), l.drawn.Add(1), 'r')
	return d.next()
}

// tick compares the machine's state with another's from time to time while it lives.
func (w *World) tick(m *Machine, l *life) {
	d := mix(w.setup.Seed, uint64(m.index), w.made, 't')
	w.after(w.setup.Gossip/2+d.span(w.setup.Gossip), func() {
		if m.now == l {
			w.gossip(m, 1)
			w.tick(m, l)
		}
	})
}

// hurry compares soon: something has changed.
func (w *World) hurry(m *Machine) {
	if m.hurried {
		return
	}
	m.hurried = true
	d := mix(w.setup.Seed, uint64(m.index), w.made, 'h')
	w.after(10*time.Millisecond+d.span(w.setup.Gossip/8), func() {
		m.hurried = false
		w.gossip(m, 2)
	})
}

// kill ends a machine between two instructions: nothing more of it reaches the disk or the fabric.
func (m *Machine) kill() {
	l := m.now
	if l == nil {
		return
	}
	m.disk.unplug()
	l.cancel()
	m.w.change(func() { m.now = nil })
	m.w.audit.stopped(m)
}

// Kill is the end of the process, or of the machine's current.
func (w *World) Kill(m *Machine) {
	if m.now != nil {
		w.logf("%s is killed", m)
		m.kill()
	}
}

// Stop ends a machine in good order.
func (w *World) Stop(m *Machine) {
	l := m.now
	if l == nil {
		return
	}
	w.logf("%s stops", m)
	l.cancel()
	l.wg.Wait()
	w.change(func() { m.now = nil })
	w.audit.stopped(m)
}

// Trap lets one of the machine's next commits be its death, or an error: in counts from 1; durable says whether that
// commit is on the disk.
func (w *World) Trap(m *Machine, in int, durable, fatal bool) { m.disk.trap(in, durable, fatal) }

// Fill lets the next merges of a roster fail, as on a full disk.
func (w *World) Fill(m *Machine, merges int) { w.locked(func() { m.full = merges }) }

// Save remembers the disk as it is, for SetBack and Copy.
func (w *World) Save(m *Machine) { m.saved, m.rosterS = m.disk.copy(), m.roster }

// SetBack kills a machine and gives it the disk of the last Save.
func (w *World) SetBack(m *Machine) {
	if m.saved == nil {
		return
	}
	w.Kill(m)
	w.logf("%s is set back", m)
	m.disk = m.saved.copy()
	m.roster = m.rosterS
	w.audit.copied(m)
}

// Copy makes a second machine with the identity and the saved disk of one.
func (w *World) Copy(m *Machine) *Machine {
	if m.saved == nil {
		return nil
	}
	c := w.newMachine(m.key)
	c.disk, c.roster, c.member = m.saved.copy(), m.rosterS, true
	w.logf("%s is a copy of %s", c, m)
	w.audit.copied(m)
	w.audit.copied(c)
	return c
}

// Retire ends a machine for good: its disk is lost, or it left.
func (w *World) Retire(m *Machine) {
	w.Kill(m)
	m.retired = true
}

// post hands something to the World, unless this life has ended by then. What it still sends then is chance: which of its
// goroutines see their end first.
func (l *life) post(kind string, to int, content uint64, run func()) {
	w := l.m.w
	w.send(post{from: l.m.index, to: to, kind: kind, content: content, run: func() {
		if l.m.now == l {
			w.note(l.m.index, to, kind)
			run()
		}
	}})
}

// Changed lets others learn soon of the new state.
func (l *life) Changed([]byte) {
	l.post("changed", l.m.index, 0, func() { l.m.w.hurry(l.m) })
}

// Peers lists the others, with who can be reached now.
func (l *life) Peers() []peer.Info {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refresh()
	return l.peers
}

// Voters lists who counts.
func (l *life) Voters() []peer.Voter {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refresh()
	return l.voters
}

func (l *life) refresh() {
	m, w := l.m, l.m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.of == m.roster && l.version == w.version {
		return
	}
	l.of, l.version = m.roster, w.version
	l.voters = m.roster.allVoters()
	l.peers = make([]peer.Info, 0, len(m.roster.members))
	for _, x := range m.roster.members {
		if x.id == m.key.id {
			continue
		}
		info := peer.Info{ID: x.id, State: peer.Dead, JoinSeq: x.seq, Ephemeral: !x.voter, Issuer: x.issuer}
		if all := w.byID[x.id]; len(all) > 0 {
			info.Name = all[0].String()
		}
		switch {
		case m.roster.removed(x.id):
			info.State = peer.Removed
		case slices.ContainsFunc(w.byID[x.id], func(o *Machine) bool { return o.now != nil && w.reaches(m, o) }):
			info.State = peer.Alive
		}
		l.peers = append(l.peers, info)
	}
}

// Signer is the machine's key, for tests in which it lies.
func (m *Machine) Signer() ipam.Signer { return m.key }
