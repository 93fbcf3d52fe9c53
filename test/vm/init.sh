#!/bin/sh
# First process of the virtual machine: mounts, finds the ports to the outside, runs /job/run, tells its status, ends.
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/net /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mkdir -p /run/netns
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ln -s /proc/self/fd /dev/fd
hostname vm
ip link set lo up
modprobe virtio_pci 2>/dev/null
modprobe virtio_console 2>/dev/null
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	[ "$(ls /sys/class/virtio-ports 2>/dev/null | wc -l)" -ge 2 ] && break
	sleep 0.1
done
for p in /sys/class/virtio-ports/*; do
	case $(cat $p/name) in
	out) out=/dev/${p##*/} ;;
	control) control=/dev/${p##*/} ;;
	esac
done
# What the kernel would load by itself when it is asked for: busybox does not wait for a module that another is loading, and
# several tests that ask at once would be told that there is none.
for m in af_packet veth tun wireguard vxlan nf_tables nft_chain_nat nft_ct nft_nat nft_masq nft_limit nft_numgen nft_hash \
	nft_reject_inet nft_fib_inet nf_conntrack_netlink sch_netem sch_tbf; do
	modprobe $m 2>/dev/null
done
sh /job/run </dev/null >$out 2>&1
echo "status $?" >$control
sync
poweroff -f
