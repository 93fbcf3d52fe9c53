package ipamsim

import (
	"context"
	"net/netip"
	"time"

	"weft/ipam"
)

// claimWait is how long a container waits for its address.
const claimWait = 5 * time.Second

// Claim asks a machine for an address for a container, a certain one where at is valid; then, which may be nil, is
// called with the answer unless the machine dies.
func (w *World) Claim(m *Machine, container string, at netip.Addr, then func(netip.Addr, error)) {
	l := m.now
	if l == nil {
		return
	}
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, claimWait)
		defer cancel()
		c, err := l.alloc.Claim(ctx, ipam.Request{Container: container, IfName: "eth0", Address: at})
		l.post("claimed", m.index, hashOf([]byte(container)), func() {
			if err != nil {
				w.counts.Refused++
				w.logf("%s: nothing for %s: %v", m, container, err)
			} else {
				w.counts.Claims++
				w.note(m.index, int(hashOf(c.Addr().AsSlice())&0xffff), "address")
				w.audit.gave(m, c.Addr())
				if old, ok := m.Told[container]; ok && old != c.Addr() && !m.view.forever && !w.audit.robbed(m, old) {
					w.audit.fail("I5: %s told %s %s, and now %s", m, container, old, c.Addr())
				}
				m.Told[container] = c.Addr()
			}
			if then != nil {
				then(c.Addr(), err)
			}
		})
	})
}

// Release gives a container's address back.
func (w *World) Release(m *Machine, container string) {
	l := m.now
	if l == nil {
		return
	}
	delete(m.Told, container)
	l.wg.Go(func() {
		_, err := l.alloc.Release(l.ctx, container, "")
		l.post("released", m.index, hashOf([]byte(container)), func() {
			if err != nil {
				w.logf("%s: %s is not released: %v", m, container, err)
			}
		})
	})
}

// Leave hands back a machine's space, writes its own removal and ends it.
func (w *World) Leave(m *Machine) {
	l := m.now
	if l == nil || len(m.Told) > 0 || w.mending {
		return
	}
	w.logf("%s leaves", m)
	m.leaving = true
	l.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.ctx, 20*time.Second)
		defer cancel()
		err := l.alloc.HandBack(ctx)
		l.post("left", m.index, 0, func() {
			if err != nil {
				w.logf("%s does not leave: %v", m, err)
				return
			}
			w.Remove(m, Left, m)
			w.after(2*time.Second, func() {
				if m.now == l {
					w.Stop(m)
					m.retired = true
				}
			})
		})
	})
}
