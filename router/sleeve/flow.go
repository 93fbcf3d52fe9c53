package sleeve

// flow is a row of UDP packets that came one by one and could have come as one super-packet: they stand side by side in a
// pack, hence are of one size but for the last, and their headers are alike. Sent as if they had been one, they are
// written once at the other end and not one by one.
type flow struct {
	head  flowHead // of the first
	count int      // 0: there is no row
}

// flowHead is the headers of a packet without lengths, checksums and the IPv4 ID.
type flowHead [40 + 8]byte

// end ends the row.
func (f *flow) end() { f.count = 0 }

// add puts a packet into the row, or begins another one with it, and returns its place from 1 on. It returns 0 for a
// packet that can be in none. The receiver's kernel makes up checksums and IPv4 IDs of what it cuts; so the caller gives
// only packets whose checksum is open yet, and where fragmentation is forbidden the ID has no meaning.
func (f *flow) add(p packet) (place int) {
	if p.proto != protoUDP || len(p.b) == p.payload || !p.v6 && p.b[6]&ipDontFragment == 0 {
		f.end()
		return 0
	}
	var h flowHead
	copy(h[:], p.b[:p.payload])
	if p.v6 {
		clear(h[4:6])
	} else {
		clear(h[2:6])
		clear(h[10:12])
	}
	clear(h[p.l4+4 : p.l4+8])
	if h != f.head {
		f.head, f.count = h, 0
	}
	f.count++
	return f.count
}
