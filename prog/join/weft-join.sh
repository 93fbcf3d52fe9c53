#!/bin/sh
# Installs weft on this machine and joins a cluster with it; again on the same machine: upgrades it.
#
#     curl -fsSL URL/weft-join.sh | sh -s -- TOKEN
#
# Every step can be repeated: after a failure, a power cut or a ^C the same line goes on where it stopped. What is put
# on the machine is written down first, in $record, so that --uninstall finds it. POSIX sh; needs tar, sha256sum, and
# curl or wget unless --archive is given.
set -eu

usage() {
	cat <<'TEXT'
Usage: weft-join.sh [OPTION]... [TOKEN]

  TOKEN            enter the cluster of this token; - reads it from standard input, @FILE from a file,
                   and without one $WEFT_TOKEN counts; with none of these weft is installed and waits
  --init           make a cluster instead
  --name NAME      name of this node (default: host name)
  --advertise A    address at which others find this node
  --url URL        where SHA256SUMS and the archives are (default: $WEFT_URL)
  --archive FILE   a release archive on this machine; with SHA256SUMS beside it, or --sha256
  --sha256 SUM     what the archive must be, by a word that you trust more than URL
  --service KIND   systemd, openrc or plain (default: what this machine has)
  --no-cni         leave container runtimes alone
  --dry-run        say what would be done, and change nothing
  --uninstall      leave the cluster and take everything away again
  --help           this text
TEXT
}

bin=/usr/local/bin
share=/usr/local/share/weft
record=$share/installed
state=/var/lib/weft
units=/etc/systemd/system
cni_bin=/opt/cni/bin
cni_conf=/etc/cni/net.d
plain_log=/var/log/weft.log
plain_pid=/run/weft/weft.pid
rc_pid=/run/weft.pid
oldest_kernel=5.2 # nftables translates addresses in inet tables

dry_run='' uninstall='' init='' no_cni='' service='' archive='' sum='' url=${WEFT_URL:-} token=${WEFT_TOKEN:-}
name='' advertise='' work='' renewed=''
unset WEFT_TOKEN # no program that is started here needs it

say() { printf '%s\n' "$*"; }

# fail SENTENCE [HINT]: the end, with what to do next.
fail() {
	printf 'weft-join: %s.\n' "$1" >&2
	[ -z "${2:-}" ] || printf '%s\n' "$2" >&2
	exit 1
}

wrong() {
	printf 'weft-join: %s\nTry: weft-join.sh --help\n' "$1" >&2
	exit 2
}

# step WORDS COMMAND...: one step that changes the machine.
step() {
	words=$1
	shift
	if [ -n "$dry_run" ]; then
		say "would $words"
		return 0
	fi
	say "$words"
	"$@"
}

have() { command -v "$1" >/dev/null 2>&1; }

clean() { [ -z "$work" ] || rm -rf "$work"; }
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

arguments() {
	while [ $# -gt 0 ]; do
		case $1 in
		--name | --advertise | --url | --archive | --sha256 | --service)
			[ $# -gt 1 ] || wrong "$1 needs a value"
			case $1 in
			--name) name=$2 ;;
			--advertise) advertise=$2 ;;
			--url) url=$2 ;;
			--archive) archive=$2 ;;
			--sha256) sum=$2 ;;
			--service) service=$2 ;;
			esac
			shift
			;;
		--init) init=yes ;;
		--no-cni) no_cni=yes ;;
		--dry-run) dry_run=yes ;;
		--uninstall) uninstall=yes ;;
		--help | -h)
			usage
			exit 0
			;;
		--*) wrong "there is no option $1" ;;
		*) token=$1 ;;
		esac
		shift
	done
	case $service in '' | systemd | openrc | plain) ;; *) wrong "--service is systemd, openrc or plain, not $service" ;; esac
	[ -z "$init" ] || [ -z "$token" ] || wrong "--init makes a cluster, and TOKEN enters one: not both"
	case $token in
	-) IFS= read -r token || wrong "there is no token on standard input" ;;
	@*)
		[ -r "${token#@}" ] || wrong "cannot read the token from ${token#@}"
		IFS= read -r token <"${token#@}" || [ -n "$token" ]
		;;
	esac
	case $token in '' | weft1*) ;; *) wrong "a token begins with weft1, got \"$token\"" ;; esac
}

# ---- what this machine is ----

# newer_than A B: version A is B or later, by its first two numbers.
newer_than() {
	a1=${1%%.*} a2=${1#*.} b1=${2%%.*} b2=${2#*.}
	a2=${a2%%[!0-9]*} b2=${b2%%[!0-9]*}
	[ "$a1" -gt "$b1" ] || { [ "$a1" -eq "$b1" ] && [ "${a2:-0}" -ge "${b2:-0}" ]; }
}

check_machine() {
	[ "$(uname -s)" = Linux ] || fail "weft runs on Linux, and this is $(uname -s)"
	kernel=$(uname -r)
	newer_than "$kernel" "$oldest_kernel" ||
		fail "the kernel is $kernel, and weft needs $oldest_kernel or later" "Upgrade the system first."
	case $(uname -m) in
	x86_64 | amd64) arch=amd64 ;;
	aarch64 | arm64) arch=arm64 ;;
	*) fail "there is no weft for $(uname -m)" "Releases are built for x86_64 and aarch64." ;;
	esac
	[ -n "$dry_run" ] || [ "$(id -u)" -eq 0 ] || fail "this needs root" "Try: curl -fsSL URL/weft-join.sh | sudo sh -s -- TOKEN"
	if [ -x /usr/bin/weft ] && [ ! -e "$record" ]; then
		fail "weft is here already, as a package of this system" \
			"Upgrade it as one: apt install ./weft_VERSION_$arch.deb; then: weft join TOKEN"
	fi
	for tool in tar sha256sum; do
		have $tool || fail "there is no $tool on this machine" "Install it with the system's packages, then type the line again."
	done
	if [ -z "$service" ]; then
		if [ -d /run/systemd/system ] && have systemctl; then
			service=systemd
		elif have openrc-run && have rc-service; then
			service=openrc
		else
			service=plain
		fi
	fi
}

# port_taken PROTOCOL HEX: somebody listens on that port, as the kernel lists it.
port_taken() {
	listening=0A
	[ "$1" = tcp ] || listening=07
	cat "/proc/net/$1" "/proc/net/${1}6" 2>/dev/null |
		grep -Eq "^ *[0-9]+: [0-9A-F]+:$2 [0-9A-F]+:[0-9A-F]+ $listening "
}

# Who has the ports is known best before anything is changed; where weft is here already they are its own, and where
# the configuration moves them it is the daemon that finds out.
check_ports() {
	if [ -e "$record" ] || [ -e /etc/weft/weft.yaml ]; then return 0; fi
	for port in udp:1A7F:6783 tcp:1A7F:6783 tcp:1A7E:6782; do
		proto=${port%%:*} number=${port##*:} hex=${port#*:}
		if port_taken "$proto" "${hex%:*}"; then
			fail "another program has port $number/$proto of this machine" \
				"See which: ss -lnp 'sport = $number'. To move weft instead, write \"listen: :PORT\" into /etc/weft/weft.yaml, and type the line again."
		fi
	done
}

# ---- the release ----

# fetch URL FILE
fetch() {
	if have curl; then
		curl -fsSL --retry 3 --connect-timeout 10 -o "$2" "$1"
	elif have wget; then
		wget -q -O "$2" "$1"
	else
		fail "there is neither curl nor wget on this machine" "Bring the archive here by hand, then: weft-join.sh --archive FILE TOKEN"
	fi
}

get_release() {
	work=$(mktemp -d "${TMPDIR:-/tmp}/weft-join.XXXXXX") || fail "cannot make a folder below ${TMPDIR:-/tmp}" "Make room there, or set TMPDIR."
	file=weft-linux-$arch.tar.gz
	if [ -n "$archive" ]; then
		[ -r "$archive" ] || fail "cannot read $archive"
		file=${archive##*/}
		if [ -z "$sum" ]; then
			sums=$(dirname "$archive")/SHA256SUMS
			[ -r "$sums" ] || fail "there is no SHA256SUMS beside $archive" "Put it there, or say what it must be: --sha256 SUM"
			cp "$sums" "$work/SHA256SUMS"
		fi
		got=$archive
	else
		[ -n "$url" ] || fail "it is not said where releases are" "Try: --url URL, or WEFT_URL=URL, or a file: --archive FILE"
		say "fetch $file from $url"
		got=$work/$file
		[ -n "$sum" ] || fetch "$url/SHA256SUMS" "$work/SHA256SUMS" ||
			fail "cannot fetch $url/SHA256SUMS" "Is the address right, and does this machine reach it? Nothing was changed."
		fetch "$url/$file" "$got" ||
			fail "cannot fetch $url/$file" "Nothing was changed. If the disk below ${TMPDIR:-/tmp} is full, set TMPDIR to another folder."
	fi
	if [ -z "$sum" ]; then
		sum=$(awk -v f="$file" '$2 == f || $2 == "*" f { print $1; exit }' "$work/SHA256SUMS")
		[ -n "$sum" ] || fail "SHA256SUMS does not list $file"
	fi
	is=$(sha256sum <"$got")
	is=${is%% *}
	if [ "$is" != "$sum" ]; then
		fail "$file is not what SHA256SUMS says: it has $is, and should have $sum" \
			"Nothing was changed. It may have been cut short, or changed on its way: fetch it again, from another place if it stays so."
	fi
	mkdir "$work/release"
	tar -xzf "$got" -C "$work/release" || fail "cannot unpack $file below $work" "Is that disk full? Nothing was changed. TMPDIR names another folder."
	release=$work/release
	[ -x "$release/weft" ] || fail "there is no weft in $file"
	version=$("$release/weft" version 2>&1 | head -n 1) || fail "the weft of $file does not run on this machine: $version"
}

# ---- files, each written down before it comes ----

# note KIND PATH: keeps in mind, once, what has to go again.
note() {
	grep -qxF "$1 $2" "$record" 2>/dev/null || printf '%s %s\n' "$1" "$2" >>"$record" || full "$record"
}

full() {
	fail "cannot write $1" "Is the disk full, or the file system read-only? Make room, then type the same line again: it goes on from here."
}

# folder PATH: makes it, with those above it.
folder() {
	if [ -z "$1" ] || [ -d "$1" ]; then return 0; fi
	[ "$1" = "$share" ] || folder "${1%/*}"
	[ "$1" = "$share" ] || note folder "$1"
	mkdir -p "$1" || full "$1"
}

# place FILE PATH MODE: puts it there in one step; whoever runs the old one keeps it.
place() {
	if cmp -s "$1" "$2"; then return 0; fi
	if [ -n "$dry_run" ]; then
		say "would put $2"
		return 0
	fi
	say "put $2"
	folder "${2%/*}"
	if [ -e "$2" ] && ! grep -qxF "file $2" "$record"; then
		# Not ours: kept, and put back by --uninstall.
		note saved "$2"
		[ -e "$2.before-weft" ] || cp -p "$2" "$2.before-weft" || full "$2.before-weft"
		say "  (what was there is now $2.before-weft)"
	fi
	note file "$2"
	if ! cp "$1" "$2.new" || ! chmod "$3" "$2.new" || ! mv -f "$2.new" "$2"; then
		rm -f "$2.new"
		full "$2"
	fi
}

install_files() {
	if [ -z "$dry_run" ]; then
		if [ ! -e "$record" ]; then
			above=/usr/local
			for dir in /usr/local/share "$share"; do [ -d "$dir" ] || break; above=$dir; done
			mkdir -p "$share" || full "$share"
			# What was made on the way goes again with the record itself.
			if ! printf 'above %s\n' "$above" >"$record.new" || ! mv "$record.new" "$record"; then full "$record"; fi
		fi
	fi
	place "$release/weft" "$bin/weft" 755
	place "$release/weft-join.sh" "$share/weft-join.sh" 755
	for page in "$release"/man/*.[0-9]; do
		[ ! -e "$page" ] || place "$page" "/usr/local/share/man/man${page##*.}/${page##*/}" 644
	done
	[ ! -e "$release/completion/weft.bash" ] || place "$release/completion/weft.bash" /usr/local/share/bash-completion/completions/weft 644
	[ ! -e "$release/completion/_weft" ] || place "$release/completion/_weft" /usr/local/share/zsh/site-functions/_weft 644
	[ ! -e "$release/completion/weft.fish" ] || place "$release/completion/weft.fish" /usr/local/share/fish/vendor_completions.d/weft.fish 644
	[ -n "$no_cni" ] || [ ! -e "$release/weft-cni" ] || install_cni
}

# symlink TARGET PATH: a symbolic link, which is written down like a file.
symlink() {
	if [ -L "$2" ] && [ "$(readlink "$2")" = "$1" ]; then return 0; fi
	if [ -n "$dry_run" ]; then
		say "would link $2 to $1"
		return 0
	fi
	say "link $2 to $1"
	folder "${2%/*}"
	note file "$2"
	ln -sf "$1" "$2" || full "$2"
}

install_cni() {
	place "$release/weft-cni" "$cni_bin/weft-cni" 755
	symlink weft-cni "$cni_bin/weft-ipam"
	# Where the runtimes of some distributions look instead.
	for dir in /usr/lib/cni /usr/libexec/cni; do
		[ ! -d "$dir" ] || for plugin in weft-cni weft-ipam; do symlink "$cni_bin/weft-cni" "$dir/$plugin"; done
	done
	conflist=$release/10-weft.conflist
	if ! [ -x "$cni_bin/portmap" ] && ! [ -x /usr/lib/cni/portmap ] && ! [ -x /usr/libexec/cni/portmap ]; then
		# A plugin that is named and missing fails every pod.
		say "there is no portmap plugin on this machine, so pods have no host ports"
		conflist=$work/10-weft.conflist
		sed -e '/"portmap"/d' -e 's/}},$/}}/' "$release/10-weft.conflist" >"$conflist" || full "$conflist"
	fi
	place "$conflist" "$cni_conf/10-weft.conflist" 644
	# A runtime takes the first file by name.
	for other in "$cni_conf"/*.conflist "$cni_conf"/*.conf; do
		if [ ! -e "$other" ] || [ "$other" = "$cni_conf/10-weft.conflist" ]; then continue; fi
		first=$(printf '%s\n' "${other##*/}" 10-weft.conflist | LC_ALL=C sort | head -n 1)
		if [ "$first" != 10-weft.conflist ]; then
			say "  (container runtimes take $other before weft's: remove it, or give it a later name)"
		fi
	done
}

# ---- services ----

service_files() {
	case $service in
	systemd)
		for unit in weft-guard weft-wire weft; do place "$release/systemd/$unit.service" "$units/$unit.service" 644; done
		if [ "$(systemctl show -p NeedDaemonReload --value weft.service weft-wire.service weft-guard.service | grep -c yes)" != 0 ]; then
			step "reload systemd's units" systemctl daemon-reload
			renewed=yes
		fi
		for unit in weft-guard weft-wire weft; do
			if [ "$(systemctl is-enabled $unit.service 2>/dev/null)" = enabled ]; then continue; fi
			[ -n "$dry_run" ] || note unit $unit.service
			step "enable $unit.service" systemctl enable --quiet $unit.service
		done
		;;
	openrc)
		for script in weft-guard weft; do
			place "$release/openrc/$script" "/etc/init.d/$script" 755
			if [ -e "/etc/runlevels/boot/$script" ] || [ -e "/etc/runlevels/default/$script" ]; then continue; fi
			level=default
			[ $script = weft ] || level=boot
			[ -n "$dry_run" ] || note rc "$level $script"
			step "add $script to runlevel $level" rc-update -q add $script $level
		done
		;;
	esac
}

answers() { "$bin/weft" status >/dev/null 2>&1; }

plain_daemon() { [ -r "$plain_pid" ] && read -r pid <"$plain_pid" && kill -0 "$pid" 2>/dev/null; }

stop_plain() {
	plain_daemon || return 0
	kill "$pid"
	i=0
	while kill -0 "$pid" 2>/dev/null && [ $i -lt 300 ]; do
		sleep 0.1
		i=$((i + 1))
	done
}

start_plain() {
	mkdir -p "${plain_pid%/*}"
	note log "$plain_log"
	# A session of its own: it outlives this shell and the terminal. Nothing is inherited but a log.
	# shellcheck disable=SC2016 # the inner shell expands it
	inner='umask 077; echo $$ >"$1"; exec "$2" up'
	if have setsid; then
		setsid sh -c "$inner" weft "$plain_pid" "$bin/weft" </dev/null >>"$plain_log" 2>&1 &
	else
		nohup sh -c "$inner" weft "$plain_pid" "$bin/weft" </dev/null >>"$plain_log" 2>&1 &
	fi
}

# outdated PID: that process runs a program that is installed no longer. Told by the process, not by what this run has
# changed, because an earlier one may have been interrupted.
outdated() {
	case $(readlink "/proc/$1/exe") in
	*' (deleted)') return 0 ;;
	*) [ -n "$renewed" ] ;;
	esac
}

# start makes the installed weft run. The data plane of a running one goes on meanwhile, and so do the pods' packets.
start() {
	case $service in
	systemd)
		if systemctl is-active --quiet weft.service; then
			outdated "$(systemctl show -p MainPID --value weft.service)" || return 0
			step "restart weft.service; packets flow meanwhile" systemctl restart weft.service || log_and_fail "weft does not start"
		else
			step "start weft.service" systemctl start weft-guard.service weft.service || log_and_fail "weft does not start"
		fi
		;;
	openrc)
		if rc-service -q weft status >/dev/null 2>&1; then
			[ ! -r "$rc_pid" ] || ! read -r pid <"$rc_pid" || outdated "$pid" || return 0
			step "restart weft; packets flow meanwhile" rc-service -q weft restart || log_and_fail "weft does not start"
		else
			step "start weft" rc-service -q weft start || log_and_fail "weft does not start"
		fi
		;;
	plain)
		if plain_daemon; then
			outdated "$pid" || return 0
			step "stop the old weft; packets flow meanwhile" stop_plain
		elif [ -z "$dry_run" ] && answers; then
			say "weft runs already, started by somebody else: restart it there to get $version"
			return 0
		fi
		step "start weft up in a session of its own, logging to $plain_log" start_plain
		;;
	esac
	[ -n "$dry_run" ] || wait_for 300 answers || log_and_fail "weft does not answer"
}

# wait_for TENTHS COMMAND: until it succeeds, or that long.
wait_for() {
	i=$1
	shift
	until "$@"; do
		i=$((i - 1))
		[ $i -gt 0 ] || return 1
		sleep 0.1
	done
}

log_and_fail() {
	case $service in
	systemd) journalctl --no-pager -q -n 15 -u weft.service -u weft-wire.service >&2 2>/dev/null || : ;;
	openrc) tail -n 15 /var/log/weft.log >&2 2>/dev/null || : ;;
	plain) tail -n 15 "$plain_log" >&2 2>/dev/null || : ;;
	esac
	"$bin/weft" doctor >&2 2>/dev/null || :
	fail "$1" "Above are its last words, and what this machine lacks, if anything. When that is mended type the same line again."
}

# ---- the cluster ----

# told PATTERN: the status says so; spaces do not count.
told() { "$bin/weft" status --json 2>/dev/null | tr -d ' \t\n' | grep -Eq "$1"; }

is_member() { told '"cluster":\{[^}]*"id":"[^"]'; }

is_ready() { told '"node":\{[^}]*"state":"ready"'; }

enter() {
	set -- ${name:+--name "$name"} ${advertise:+--advertise "$advertise"}
	if [ -n "$init" ]; then
		step "make a cluster" "$bin/weft" init "$@" || fail "weft made no cluster" "It says why above. weft itself is installed and runs: mend that, then type the same line again."
	elif [ -n "$token" ]; then
		step "join the cluster" join "$@" || fail "weft did not join" \
			"It says why above. weft itself is installed and runs. When that is mended: weft join TOKEN, or the same line again."
	fi
}

# The token goes through a pipe: a list of processes shows the command line of each.
join() { printf '%s\n' "$token" | "$bin/weft" join - "$@"; }

finish() {
	[ -z "$dry_run" ] || return 0
	if [ -z "$init$token" ] && ! is_member; then
		say "Installed: $version. It waits for a cluster: weft join TOKEN, or weft init"
		return 0
	fi
	wait_for 600 is_ready || {
		"$bin/weft" status >&2 || :
		log_and_fail "this machine is in the cluster, and not ready yet"
	}
	[ "$service" != plain ] ||
		say "Nothing starts weft at boot here. Have it start $bin/weft guard before the network, and $bin/weft up after it."
	say "Ready: $version."
	"$bin/weft" status
}

# ---- and back ----

remove_all() {
	if [ ! -e "$record" ]; then
		say "weft-join has installed nothing here."
		return 0
	fi
	[ -n "$service" ] || service=plain
	if [ -x "$bin/weft" ] && [ -d "$state" ]; then
		if [ -z "$dry_run" ] && ! answers; then
			# Only a running weft can hand back its addresses, and knows what it put into the kernel.
			if (start) >/dev/null 2>&1; then :; fi
		fi
		if [ -n "$dry_run" ] || answers; then
			step "leave the cluster, and remove what weft has in the kernel and on disk" "$bin/weft" leave --purge ||
				fail "weft did not leave" "It says why above. Nothing else was removed yet: mend that, then type the same line again."
		else
			say "weft does not start, so its cluster is not told, and routes and rules stay until the next boot."
			step "stop the data plane" "$bin/weft" down || :
			step "remove $state" rm -rf "$state"
		fi
	fi
	case $service in
	systemd) step "stop weft's units" systemctl stop --quiet weft.service weft-wire.service weft-guard.service || : ;;
	openrc) rc-service -q weft stop >/dev/null 2>&1 || : ;;
	plain) stop_plain ;;
	esac
	# The last comes first: a file before its folder. The record goes last, so that this, too, can be repeated.
	reversed=$(awk '{ line[NR] = $0 } END { for (i = NR; i; i--) print line[i] }' "$record")
	printf '%s\n' "$reversed" | while read -r kind path; do
		case $kind in
		unit) step "disable $path" systemctl disable --quiet "$path" || : ;;
		rc) step "remove ${path#* } from runlevel ${path% *}" rc-update -q del "${path#* }" "${path% *}" || : ;;
		file) step "remove $path" rm -f "$path" "$path.new" ;;
		saved) [ ! -e "$path.before-weft" ] || step "put back $path" mv -f "$path.before-weft" "$path" ;;
		log) step "remove $path" rm -f "$path" ;;
		folder) [ -n "$dry_run" ] || rmdir "$path" 2>/dev/null || : ;;
		esac
	done
	if [ "$service" = systemd ]; then
		step "reload systemd's units" systemctl daemon-reload
		[ -n "$dry_run" ] || systemctl reset-failed --quiet weft.service weft-wire.service weft-guard.service 2>/dev/null || :
	fi
	[ -z "$dry_run" ] || return 0
	rm -f "$plain_pid"
	rmdir /run/weft "$state" 2>/dev/null || :
	above=$(awk '$1 == "above" { print $2; exit }' "$record")
	rm -f "$record" "$record.new"
	rmdir "$share" 2>/dev/null || :
	[ "$above" != /usr/local ] || rmdir /usr/local/share 2>/dev/null || :
	say "weft is gone. What it had in /etc/weft, if anything, is yours."
}

main() {
	arguments "$@"
	check_machine
	if [ -n "$uninstall" ]; then
		remove_all
		return 0
	fi
	check_ports
	get_release
	install_files
	service_files
	start
	enter
	finish
}

# All of it is read before any of it is done: a script that was cut short on its way does nothing.
main "$@"
