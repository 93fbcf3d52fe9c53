package sleeve

import (
	"bytes"
	"fmt"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var offloads = map[string]Offload{
	"plain queue":   {},
	"vnet header":   {Vnet: true},
	"TCP offload":   {Vnet: true, TSO: true},
	"every offload": {Vnet: true, TSO: true, USO: true},
}

func TestPacketsCross(t *testing.T) {
	for name, offload := range offloads {
		t.Run(name, func(t *testing.T) {
			a, b := newHost(t, 1, offload), newHost(t, 2, Offload{})
			mesh(t, a, b)
			up(t, a, b)
			for i, size := range []int{0, 1, 63, 500, 1392} {
				payload := bytes.Repeat([]byte{byte(i)}, size)
				for _, p := range [][]byte{
					udpPacket(a.pod(), b.pod(), payload),
					tcpPacket(a.pod(), b.pod(), 1, flagPSH, payload),
				} {
					a.write(vnet{}, p)
					if _, got := b.read(); !bytes.Equal(got, p) {
						t.Fatalf("%d bytes arrived as %x, sent %x", size, got, p)
					}
				}
				p := udpPacket(b.pod6(), a.pod6(), payload)
				b.write(vnet{}, p)
				if _, got := a.read(); !bytes.Equal(got, p) {
					t.Fatalf("%d bytes arrived as %x, sent %x", size, got, p)
				}
			}
			// A packet is counted after it was sent, when the other end may have it already.
			eventually(t, "all is counted", func() bool { s := a.stats(b); return s.TxPackets >= 10 && s.RxPackets >= 5 })
			if s := a.stats(b); s.TxPackets != 10 || s.RxPackets != 5 || len(s.Drops) != 0 {
				t.Errorf("stats %+v", s)
			}
		})
	}
}

func TestControlCrosses(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	mesh(t, a, b)
	up(t, a, b)
	for i := range 20 {
		want := fmt.Sprint("gossip ", i)
		if err := a.e.Send(b.id, []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got := <-b.control; got.from != a.id || string(got.b) != want {
			t.Fatalf("got %q from %v", got.b, got.from)
		}
	}
}

func TestPacketsWaitForTheSession(t *testing.T) {
	a, b := newHost(t, 1, Offload{}), newHost(t, 2, Offload{})
	a.meet(a, b) // b does not know a yet
	p := udpPacket(a.pod(), b.pod(), []byte("early"))
	a.write(vnet{}, p)
	eventually(t, "the packet is held", func() bool {
		r := a.e.byKey(b.public)
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.queue) == 1
	})
	b.meet(a, b)
	if _, got := b.read(); !bytes.Equal(got, p) {
		t.Fatalf("got %x", got)
	}
}

// TestOrderIsKept sends bursts of every size, which leave together or apart.
func TestOrderIsKept(t *testing.T) {
	for name, offload := range offloads {
		t.Run(name, func(t *testing.T) {
			a, b := newHost(t, 1, offload), newHost(t, 2, offload)
			mesh(t, a, b)
			up(t, a, b)
			for i := range 20 {
				var sent [][]byte
				for j := range 20 {
					sent = append(sent, udpPacket(a.pod(), b.pod(), bytes.Repeat([]byte{byte(j)}, 10+(i*j)%7*100)))
					a.write(vnet{}, sent[j])
				}
				for j, want := range sent {
					if _, got := b.read(); !bytes.Equal(got, want) {
						t.Fatalf("burst %d: packet %d is %x, want %x", i, j, got[:40], want[:40])
					}
				}
			}
		})
	}
}
