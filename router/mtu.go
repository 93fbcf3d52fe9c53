package router

const (
	// MinMTU is the smallest MTU inside the overlay, because IPv6 needs it. An underlay that cannot carry it in one piece
	// fragments the outer packet.
	MinMTU = 1280
	// Reserve is what the largest of the ordinary transports adds on an IPv6 underlay. It is set aside always, so that a
	// change of transport or of underlay family never changes the MTU that a pod sees.
	Reserve = 80
	// defaultUnderlay is taken where the underlay's MTU is not known.
	defaultUnderlay = 1500
)

// PodMTU is the MTU of pods on a machine whose underlay devices carry packets of the given size.
func PodMTU(underlay int) int {
	if underlay <= 0 {
		underlay = defaultUnderlay
	}
	return max(underlay-Reserve, MinMTU)
}

// routeMTU is the MTU of routes to a peer over one transport: what both underlays carry, or less where a probe of the
// path says so, and never more than the pods have.
func routeMTU(own, peer, probed int, d Driver) int {
	if own <= 0 {
		own = defaultUnderlay
	}
	if peer <= 0 {
		peer = own
	}
	mtu := min(own, peer) - max(Reserve, d.Overhead4, d.Overhead6)
	if probed > 0 {
		mtu = min(mtu, probed)
	}
	return max(mtu, MinMTU)
}
