package host

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The messages about programs before a device (rtnetlink, traffic control), which the netlink library has for eBPF only.

// Numbers of the kernel's interface that package unix leaves out.
const (
	tcaKind, tcaOptions            = 1, 2
	bpfOpsLen, bpfOps, bpfFlags    = 4, 5, 8 // TCA_BPF_*
	tcaStats, statsQueue           = 7, 3    // TCA_STATS2, TCA_STATS_QUEUE
	bpfDirect                      = 1       // TCA_BPF_FLAG_ACT_DIRECT: what it returns is what is done
	clsact, clsactHandle, clsactIn = 0xfffffff1, 0xffff0000, 0xfffffff2
	gateHandle, gatePriority       = 0x77656674, 1 // a handle that others beside it would hardly choose
	sizeofTcMsg                    = 20
	gateKind, gateQdisc            = "bpf", "clsact"
)

// gateInfo is the place of a gate among the programs before its device, and the protocols that it sees: all (ETH_P_ALL, as the
// wire would have it).
func gateInfo() uint32 {
	return gatePriority<<16 | uint32(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}))
}

// tcHeader is a struct tcmsg.
func tcHeader(index int, handle, parent, info uint32) []byte {
	b := make([]byte, sizeofTcMsg)
	binary.NativeEndian.PutUint32(b[4:], uint32(index))
	binary.NativeEndian.PutUint32(b[8:], handle)
	binary.NativeEndian.PutUint32(b[12:], parent)
	binary.NativeEndian.PutUint32(b[16:], info)
	return b
}

// appendProgram writes instructions as struct sock_filter.
func appendProgram(b []byte, raw []bpf.RawInstruction) []byte {
	for _, i := range raw {
		b = binary.NativeEndian.AppendUint16(b, i.Op)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}

// putGate puts a program before a device, in the place of a former one in one step.
func (t *talk) putGate(index int, raw []bpf.RawInstruction) error {
	var b batch
	b.fine = func(err error) bool { return errors.Is(err, unix.EEXIST) } // somebody has programs there already
	b.request(unix.RTM_NEWQDISC, unix.NLM_F_CREATE|unix.NLM_F_EXCL, tcHeader(index, clsactHandle, clsact, 0))
	b.text(tcaKind, gateQdisc)
	b.request(unix.RTM_NEWTFILTER, unix.NLM_F_CREATE, tcHeader(index, gateHandle, clsactIn, gateInfo()))
	b.text(tcaKind, gateKind)
	options := b.open(tcaOptions)
	b.attr(bpfOpsLen, binary.NativeEndian.AppendUint16(nil, uint16(len(raw))))
	b.attr(bpfOps, appendProgram(nil, raw))
	b.number(bpfFlags, bpfDirect)
	b.close(options)
	return t.ask(&b, nil)
}

// dropGate removes it; there may be none.
func (t *talk) dropGate(index int) error {
	var b batch
	b.fine = func(err error) bool { return gone(err) || errors.Is(err, unix.EINVAL) }
	b.request(unix.RTM_DELTFILTER, 0, tcHeader(index, gateHandle, clsactIn, gateInfo()))
	b.text(tcaKind, gateKind)
	return t.ask(&b, nil)
}

// readGate returns a device's program, nil when it has none.
func (t *talk) readGate(index int) (ops []byte, err error) {
	var b batch
	b.fine = func(err error) bool {
		return gone(err) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
	}
	b.request(unix.RTM_GETTFILTER, unix.NLM_F_DUMP, tcHeader(index, 0, clsactIn, 0))
	err = t.ask(&b, func(_ int, _ uint16, data []byte) {
		if len(data) < sizeofTcMsg || binary.NativeEndian.Uint32(data[8:]) != gateHandle ||
			binary.NativeEndian.Uint32(data[16:]) != gateInfo() {
			return
		}
		attributes(data[sizeofTcMsg:], func(kind uint16, v []byte) {
			if kind != tcaOptions {
				return
			}
			attributes(v, func(kind uint16, v []byte) {
				if kind == bpfOps {
					ops = bytes.Clone(v)
				}
			})
		})
	})
	return ops, err
}

// qdiscDrops finds the third of a struct gnet_stats_queue's numbers.
func qdiscDrops(data []byte) (drops uint64) {
	if len(data) < sizeofTcMsg {
		return 0
	}
	attributes(data[sizeofTcMsg:], func(kind uint16, v []byte) {
		if kind != tcaStats {
			return
		}
		attributes(v, func(kind uint16, v []byte) {
			if kind == statsQueue && len(v) >= 12 {
				drops = uint64(binary.NativeEndian.Uint32(v[8:]))
			}
		})
	})
	return drops
}
