#!/bin/sh
# Puts the archive that was unpacked at $1 to use: the files of volumes, and when
# $2 is boot their mounts, the disks, and the command. It says what failed.
from=$1 when=$2
base=/run/nomad-kubelet
status=0

fail() {
	status=1
	[ "$when" != boot ] || echo "nomad-kubelet: $*" >/dev/console
	echo "$*" >&2
}

# files NAME brings a volume of files up to date, all of them at once, as the
# kubelet does: ..data leads to the current version, and names lead through it.
files() {
	new=$from/volumes/$1 vol=$base/volumes/$1
	mkdir -p "$new" "$vol" || { fail "volume $1: cannot be made"; return; }
	chmod 755 "$new" "$vol"
	old=$(readlink "$vol/..data")
	if [ -n "$old" ] && diff -r "$new" "$vol/$old" >/dev/null 2>&1; then
		return
	fi
	version=..$(date +%s).$$
	rm -f "$vol/..next" # of one that was cut off
	mv "$new" "$vol/$version" && ln -s "$version" "$vol/..next" && mv -f -T "$vol/..next" "$vol/..data" ||
		{ fail "volume $1: its files cannot be put in place"; return; }
	for file in "$vol/$version"/* "$vol/$version"/.[!.]*; do
		name=${file##*/}
		[ ! -e "$file" ] || [ -L "$vol/$name" ] || ln -s "..data/$name" "$vol/$name"
	done
	for link in "$vol"/* "$vol"/.[!.]*; do
		[ -e "$link" ] || rm -f "$link"
	done
	[ -z "$old" ] || rm -rf "${vol:?}/$old"
}

# disk NAME SERIAL mounts a disk of a volume, which gets its file system when it
# is empty.
disk() {
	[ "$when" = boot ] || return
	at=$base/disks/$1 dev=
	for d in /sys/block/vd*; do
		[ "$(cat "$d/serial" 2>/dev/null)" != "$2" ] || dev=/dev/${d##*/}
	done
	[ -n "$dev" ] || { fail "volume $1: its disk is not there"; return; }
	mkdir -p "$at"
	mounted "$at" && return
	if [ "$(head -c 65536 "$dev" | wc -c)" -ne 65536 ]; then
		fail "volume $1: its disk cannot be read"
		return
	elif [ "$(head -c 65536 "$dev" | tr -d '\0' | wc -c)" -eq 0 ]; then
		{ mkfs.ext4 -q -F "$dev" || mke2fs -F "$dev"; } >/dev/null 2>&1 || { fail "volume $1: no file system can be made on its disk"; return; }
		mount_disk "$dev" "$at" && chmod 777 "$at" && rmdir "$at/lost+found" && return
	else
		mount_disk "$dev" "$at" && return
	fi
	fail "volume $1: its disk cannot be mounted"
}

mount_disk() { mount -t ext4 "$1" "$2" 2>/dev/null || mount "$1" "$2"; }

# memory NAME OPTIONS makes a volume in the guest's memory.
memory() {
	[ "$when" = boot ] || return
	mkdir -p "$base/disks/$1"
	mounted "$base/disks/$1" || mount -t tmpfs -o "$2" tmpfs "$base/disks/$1" || fail "volume $1: cannot be made in memory"
}

# show SOURCE TARGET MODE mounts a volume, or what lies in it, where the container
# wants it.
show() {
	[ "$when" = boot ] || return
	source=$base/$1
	mounted "$2" && return
	case $1 in disks/*) [ -e "$source" ] || { mkdir -p "$source" && chmod 777 "$source"; } ;; esac
	if [ -d "$source" ]; then
		mkdir -p "$2"
	else
		mkdir -p "${2%/*}/" && true >>"$2"
	fi && mount -o bind "$source" "$2" || { fail "nothing can be mounted at $2"; return; }
	[ "$3" != ro ] || mount -o remount,ro,bind "$2" || fail "the mount at $2 cannot be made read-only"
}

mounted() { grep -q -F " $1 " /proc/mounts; }

# start runs the container's command, when the guest is up.
start() {
	if [ -d /run/systemd/system ]; then
		systemd-run --quiet --no-block --unit=nomad-kubelet-command --property=After=cloud-final.service \
			--property=After=network-online.target sh "$base/run" || fail 'the command cannot be started'
	else
		setsid sh "$base/run" </dev/null >/dev/null 2>&1 &
	fi
}

umask 022
mkdir -p "$base/volumes" "$base/disks"
. "$from/mounts"
for name in environ env command run; do
	if [ -e "$from/$name" ]; then mv -f "$from/$name" "$base/$name"; else rm -f "$base/$name"; fi
done
rm -rf "$from"
[ "$when" != boot ] || [ ! -e "$base/command" ] || start
exit $status
