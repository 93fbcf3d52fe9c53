package mesh_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"weft/crypto/tlv"
	"weft/mesh"
	"weft/mesh/meshtest"
	"weft/mesh/peer"
)

// newerRecord is the record of a build whose format has a field more.
func newerRecord(t *testing.T, n *node, epoch uint64) []byte {
	t.Helper()
	id := n.id()
	b := tlv.AppendVersion(nil, tlv.V(1, 1))
	b = tlv.Append(b, 1, id[:])
	b = tlv.AppendUint64(b, 2, epoch)
	b = tlv.AppendString(b, 3, "newer")
	b = tlv.AppendUint16(b, 10, 1401)
	b = tlv.AppendString(b, 999, "a field of tomorrow")
	return append(b, n.key.Sign("weft record", b)...)
}

func list(items ...[]byte) []byte {
	b := []byte{0x10}
	for _, item := range items {
		b = append(binary.BigEndian.AppendUint32(b, uint32(len(item))), item...)
	}
	return b
}

func TestFieldsAndItemsOfNewerBuildsSurvive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(3)
		w.settle(5 * time.Second)

		// A node of a newer build was here: its record, and an item of a kind that nobody here knows.
		tomorrow := newKey(t)
		newer := w.add(tomorrow, w.certify(tomorrow, 3))
		record := newerRecord(t, newer, 5)
		item := append([]byte{0x11, 77, 0, 0, 0, 3}, "new and signed in a way that is not known"...)
		first := w.nodes[0]
		if err := first.mesh.Roster().AddRaw(newer.cert.Raw(), item); err != nil {
			t.Fatal(err)
		}
		w.nodes = w.nodes[:3]
		w.within(2*time.Second, func() string {
			for _, n := range w.nodes {
				if !n.mesh.Roster().Has(newer.id()) {
					return n.name + " does not know the newer node"
				}
			}
			return ""
		})
		// It gives its record to one of them only, in a pull.
		port := w.net.Port(newer.id())
		port.Serve(servePull(t, list(record)))
		w.within(5*time.Second, func() string {
			send(t, port, w.nodes[1].id(), digestOf("records")) // members tell again and again
			for _, n := range w.nodes {
				if info, _ := n.mesh.Peer(newer.id()); info.Epoch != 5 || info.Name != "newer" || info.MTU != 1401 {
					return n.name + " has not read the newer record"
				}
			}
			return ""
		})
		port.Close()
		for _, n := range w.nodes {
			n.stop()
			n.start()
			if !slices.ContainsFunc(n.mesh.Roster().Items(), func(b []byte) bool { return string(b) == string(item) }) {
				t.Errorf("%s lost the item of unknown kind", n.name)
			}
			if n.mesh.Stats().UnknownItems != 1 {
				t.Errorf("%s counts %d unknown items", n.name, n.mesh.Stats().UnknownItems)
			}
			if !containsItem(n.mesh.Snapshot("records"), record) {
				t.Errorf("%s does not hand the newer record on byte for byte", n.name)
			}
		}
	})
}

func TestUnknownMessagesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, lan)
		defer w.end()
		w.form(2)
		w.settle(5 * time.Second)
		a, b := w.nodes[0], w.nodes[1]
		before := b.mesh.Stats()
		send(t, a.port, b.id(), []byte{99, 1, 2, 3})
		// Digests of a newer minor version with a field more, and of a state that is not kept here.
		digests := tlv.AppendVersion(nil, tlv.V(1, 3))
		digests = tlv.AppendList(digests, 2, [][]byte{append(make([]byte, 16), "policies"...)})
		digests = tlv.AppendString(digests, 50, "more")
		send(t, a.port, b.id(), append([]byte{2}, digests...))
		time.Sleep(time.Second)
		after := b.mesh.Stats()
		if after.Unknown != before.Unknown+1 || after.Malformed != before.Malformed || after.PullsFailed != before.PullsFailed {
			t.Errorf("before %+v\nafter %+v", before, after)
		}
		// A newer major version cannot be read; it is counted.
		send(t, a.port, b.id(), []byte{2, 0x20})
		time.Sleep(time.Second)
		if got := b.mesh.Stats().Malformed; got != before.Malformed+1 {
			t.Errorf("%d malformed", got)
		}
	})
}

func containsItem(snapshot, item []byte) bool {
	return slices.ContainsFunc(split(snapshot), func(b []byte) bool { return string(b) == string(item) })
}

func split(b []byte) (items [][]byte) {
	for rest := b[1:]; len(rest) >= 4; {
		n := int(binary.BigEndian.Uint32(rest))
		items = append(items, rest[4:4+n])
		rest = rest[4+n:]
	}
	return items
}

// digestOf is a datagram that tells of a state which nobody else has.
func digestOf(name string) []byte {
	b := tlv.AppendVersion([]byte{2}, tlv.V(1, 0))
	return tlv.AppendList(b, 2, [][]byte{append([]byte("another state!!!"), name...)})
}

// servePull answers every call with a state.
func servePull(t *testing.T, content []byte) meshtest.Serve {
	t.Helper()
	return func(_ context.Context, _ peer.ID, kind byte, conn net.Conn) {
		defer conn.Close()
		if kind != mesh.StreamCall {
			return
		}
		var head [2]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			t.Error(err)
		}
		answer := tlv.Append(tlv.AppendVersion(nil, tlv.V(1, 0)), 3, []byte("another state!!!"))
		answer = tlv.Append(answer, 4, content)
		b := binary.BigEndian.AppendUint32([]byte{0x10, 0}, uint32(len(answer)))
		if _, err := conn.Write(append(b, answer...)); err != nil {
			t.Error(err)
		}
	}
}
