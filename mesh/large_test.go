package mesh_test

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// parts is a large state that travels in parts: each Delta holds one thing that the other lacks, and is long.
type parts struct {
	mu   sync.Mutex
	have uint8 // bits
}

func (p *parts) Summary() []byte { p.mu.Lock(); defer p.mu.Unlock(); return []byte{p.have} }
func (p *parts) Digest() []byte  { return p.Summary() }
func (p *parts) Snapshot() []byte {
	return p.Delta([]byte{0})
}

func (p *parts) Delta(summary []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := make([]byte, 8<<20)
	lacks := p.have &^ summary[0]
	b[0] = lacks & -lacks // the lowest bit
	return b
}

func (p *parts) Merge(b []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.have |= b[0]
	return nil
}

func TestLargeStateTravelsInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(2)
		w.settle(5 * time.Second)
		a, b := &parts{have: 0b1111_0000}, &parts{have: 0b0001_0001}
		w.nodes[0].mesh.Replicate("parts", a)
		w.nodes[1].mesh.Replicate("parts", b)
		w.nodes[0].mesh.Changed("parts")
		w.within(2*time.Second, func() string {
			if a.Summary()[0] != 0b1111_0001 || b.Summary()[0] != 0b1111_0001 {
				return "not all has travelled"
			}
			return ""
		})
	})
}
