#!/bin/sh
# The swap pause beside the least that the kernel allows. Runs as root where
# ublk is; `make bench-pause` brings it into the VM.
# Usage: bench/pause/run.sh RESULT.json [FLAG…]
# MODE=exact (default) makes the members of memory, for a machine whose clock
# counts instructions: no figure depends on a real disk. MODE=wall takes the
# disks that SWAPBACK_TEST_DISKS names; what they carry is lost.
set -eu
out=${1:?usage: bench/pause/run.sh RESULT.json [FLAG…]}
shift
mode=${MODE:-exact}
nullb=/sys/kernel/config/nullb
case $mode in
exact)
	modprobe null_blk nr_devices=0
	disks=
	remove() { for d in $disks; do echo 0 >"$nullb/${d#/dev/}/power"; rmdir "$nullb/${d#/dev/}"; done; }
	trap remove EXIT
	for name in swapback0 swapback1; do
		mkdir "$nullb/$name"
		echo 16384 >"$nullb/$name/size" # MiB; memory is taken by what is written
		echo 1 >"$nullb/$name/memory_backed"
		echo 0 >"$nullb/$name/irqmode"
		[ ! -e "$nullb/$name/fua" ] || echo 1 >"$nullb/$name/fua"
		echo 64 >"$nullb/$name/cache_size" # FUA is for disks that have a cache
		echo 1 >"$nullb/$name/power"
		disks="$disks /dev/$name"
	done
	;;
wall) disks=${SWAPBACK_TEST_DISKS:?names the disks to use, separated by blanks} ;;
*) echo "MODE=$mode: want exact or wall" >&2; exit 2 ;;
esac
for d in $disks; do
	echo "$d: write cache $(cat "/sys/block/${d#/dev/}/queue/write_cache"), FUA $(cat "/sys/block/${d#/dev/}/queue/fua")"
	set -- -disk "$d" "$@"
done
pause -mode "$mode" -out "$out" "$@"
