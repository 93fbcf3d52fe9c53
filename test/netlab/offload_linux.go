package netlab

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethtool's ioctl commands, as far as they are used here.
const (
	ethtoolGetStrings  = 0x1b
	ethtoolGetSetInfo  = 0x37
	ethtoolSetFeatures = 0x3b

	featureStrings = 4  // ETH_SS_FEATURES
	stringLength   = 32 // ETH_GSTRING_LEN
)

// SetSegmentation says whether super-packets may cross the link whole, as they do between two veths unless told otherwise,
// or are cut to the MTU first, as for a network card. Captures, loss and comparisons of speed want them cut.
func (k *Link) SetSegmentation(on bool) {
	for _, p := range k.ports() {
		k.lab.must(p.setFeatures(on, func(name string) bool {
			// Generic segmentation stays: it is the cutting itself, done late.
			return strings.HasPrefix(name, "tx-") && name != "tx-generic-segmentation" &&
				(strings.HasSuffix(name, "-segmentation") || name == "tx-gso-list" || name == "tx-gso-partial")
		}), "set segmentation of %v", k)
	}
}

// setFeatures switches the features of the device whose names are chosen.
func (p Port) setFeatures(on bool, chosen func(name string) bool) error {
	return p.Host.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open socket: %w", err)
		}
		defer unix.Close(fd)
		ne := binary.NativeEndian

		// struct ethtool_sset_info: command, reserved, mask (64 bit), then one length for each bit of the mask.
		info := make([]byte, 16+4)
		ne.PutUint32(info, ethtoolGetSetInfo)
		ne.PutUint64(info[8:], 1<<featureStrings)
		if err := ethtool(fd, p.Name, info); err != nil {
			return fmt.Errorf("count features: %w", err)
		}
		n := int(ne.Uint32(info[16:]))

		// struct ethtool_gstrings: command, set, length, strings.
		names := make([]byte, 12+n*stringLength)
		ne.PutUint32(names, ethtoolGetStrings)
		ne.PutUint32(names[4:], featureStrings)
		ne.PutUint32(names[8:], uint32(n))
		if err := ethtool(fd, p.Name, names); err != nil {
			return fmt.Errorf("name features: %w", err)
		}

		// struct ethtool_sfeatures: command, number of blocks, then for each 32 features a mask of those that are meant and
		// one of those that are wanted.
		blocks := (n + 31) / 32
		set := make([]byte, 8+8*blocks)
		ne.PutUint32(set, ethtoolSetFeatures)
		ne.PutUint32(set[4:], uint32(blocks))
		for i := range n {
			name := unix.ByteSliceToString(names[12+i*stringLength : 12+(i+1)*stringLength])
			if !chosen(name) {
				continue
			}
			at, bit := 8+8*(i/32), uint32(1)<<(i%32)
			ne.PutUint32(set[at:], ne.Uint32(set[at:])|bit)
			if on {
				ne.PutUint32(set[at+4:], ne.Uint32(set[at+4:])|bit)
			}
		}
		// Features that the device does not have are refused one by one and not an error here.
		if err := ethtool(fd, p.Name, set); err != nil {
			return fmt.Errorf("set features: %w", err)
		}
		return nil
	})
}

// ethtool makes one ioctl; the kernel reads and writes data.
func ethtool(fd int, device string, data []byte) error {
	// struct ifreq: the name and, of the union, a pointer.
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&data[0])
	request.data = unsafe.Pointer(&data[0])
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
