#!/bin/sh
# Makes a machine with a file system and processes of its own out of the one that it runs on, inside the network
# namespace of a host of the lab: room.sh KIND FOLDER NAME. What is written there is in memory, and gone with its process 1.
# In the machine /.upper shows what differs from the one below.
#   systemd    the machine's own files, or those under $LAB_BELOW, under systemd as process 1
#   plain      the same without an init system
#   busybox    nothing but busybox, as on a router
set -eu
kind=$1 folder=$2 name=$3

if [ "${4:-}" != inside ]; then
	# A cgroup of its own first, in every hierarchy: systemd manages all below those that it finds itself in.
	while IFS=: read -r _ controllers path; do
		case $controllers in
		'') top=/sys/fs/cgroup && [ -e "$top/cgroup.procs" ] || top=$top/unified ;;
		*) top=/sys/fs/cgroup/${controllers#name=} ;;
		esac
		cgroup=$top${path%/}/$name
		mkdir "$cgroup"
		echo "$cgroup" >>"$folder.cgroups"
		for setting in cpuset.cpus cpuset.mems; do
			[ "$controllers" != cpuset ] || cat "${cgroup%/*}/$setting" >"$cgroup/$setting"
		done
		echo $$ >"$cgroup/cgroup.procs"
	done </proc/self/cgroup
	exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child "$0" "$kind" "$folder" "$name" inside
fi

mount --make-rprivate /
hostname "${name##*-}"
mount -t tmpfs -o mode=755 room "$folder"
root=$folder/root
mkdir "$folder/upper" "$folder/work" "$root"
if [ "$kind" = busybox ]; then
	mount --bind "$folder/upper" "$root"
	(
		cd "$root"
		mkdir -p bin sbin etc dev proc sys run tmp root usr/bin usr/sbin var/log var/lib usr/local/bin
		chmod 1777 tmp
		cp "$(command -v busybox)" bin/busybox
		for applet in $(bin/busybox --list); do
			case $applet in busybox) ;; *) ln -s /bin/busybox "bin/$applet" ;; esac
		done
		echo root:x:0:0::/root:/bin/sh >etc/passwd
		echo root:x:0: >etc/group
	)
else
	mount -t overlay -o "lowerdir=${LAB_BELOW:-/},upperdir=$folder/upper,workdir=$folder/work" room "$root"
	(
		cd "$root"
		# What the machine below may have of weft, of container runtimes, and of services.
		rm -rf usr/local/bin/weft* var/lib/weft etc/weft etc/cni opt/cni etc/systemd/system/* etc/rc?.d etc/init.d
		for unit in sysctl udevd udev-trigger modules-load remount-fs logind networkd resolved timesyncd random-seed update-utmp; do
			ln -s /dev/null "etc/systemd/system/systemd-$unit.service"
		done
		for unit in getty.target dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
			sys-kernel-config.mount sys-fs-fuse-connections.mount proc-sys-fs-binfmt_misc.automount; do
			ln -s /dev/null "etc/systemd/system/$unit"
		done
		echo "${name##*-}" >etc/hostname
		ln -s /lib/systemd/system/multi-user.target etc/systemd/system/default.target
	)
	mkdir "$root/.upper"
	mount --bind "$folder/upper" "$root/.upper"
fi
mkdir -p "$root/lab"
mount --rbind "$LAB_FILES" "$root/lab"

mount -t proc proc "$root/proc"
# Of the kernel's settings only those of the network belong to the namespace.
mkdir "$root/.net"
mount --bind "$root/proc/sys/net" "$root/.net"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount --move "$root/.net" "$root/proc/sys/net"
rmdir "$root/.net"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 run "$root/run"
[ "$kind" = busybox ] || mount -t tmpfs tmp "$root/tmp"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/net" "$root/dev/shm" "$root/dev/pts" "$root/dev/mqueue" "$root/dev/hugepages"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
for node in null zero full random urandom tty net/tun; do
	: >"$root/dev/$node"
	mount --bind "/dev/$node" "$root/dev/$node"
done
if [ "$kind" = systemd ]; then
	if [ -e /sys/fs/cgroup/cgroup.procs ]; then
		mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
	else
		mount -t tmpfs -o mode=755 cgroup "$root/sys/fs/cgroup"
		mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
		mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
		mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
	fi
fi

# Boot waits for a word, so that a story can prepare the machine.
touch "$root/run/room"
mkdir "$root/.below"
cd "$root"
pivot_root . .below
umount -l /.below
rmdir /.below
mount --make-rshared /
while [ ! -e /run/boot ]; do sleep 0.05; done
rm -f /run/room /run/boot
if [ "$kind" = systemd ]; then
	exec env -i container=room PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=console --show-status=0
fi
echo up >/run/up
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin sh -c 'while :; do sleep 3600 & wait; done'
