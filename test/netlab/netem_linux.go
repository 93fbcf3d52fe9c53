package netlab

import (
	"time"

	"github.com/vishvananda/netlink"
)

// Impairment is what a bad line does to what is sent into it.
type Impairment struct {
	Delay  time.Duration
	Jitter time.Duration
	Loss   float64 // 0 to 1
}

// Impair makes both directions of a link worse, with the kernel's netem, which not every kernel has. The zero value makes
// the link good again.
func (k *Link) Impair(i Impairment) {
	for _, p := range k.ports() {
		k.lab.must(p.set(func(h *netlink.Handle, dev netlink.Link) error {
			attrs := netlink.QdiscAttrs{LinkIndex: dev.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
			if i == (Impairment{}) {
				return h.QdiscDel(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{}))
			}
			return h.QdiscReplace(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{
				Latency: uint32(i.Delay.Microseconds()), Jitter: uint32(i.Jitter.Microseconds()), Loss: float32(i.Loss * 100),
				Limit: 10000,
			}))
		}), "impair %v", k)
	}
}
