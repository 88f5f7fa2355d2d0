#!/bin/sh
# The short benchmark: a volume beside the bare device-mapper device under one
# like it. Runs as root where ublk is; `make bench-short` brings it into the VM.
# Usage: bench/run.sh RESULT.json   (SWAPBACK_TEST_DISKS names the disks to use;
# what they carry is lost)
set -eu
out=${1:?usage: bench/run.sh RESULT.json}
: "${SWAPBACK_TEST_DISKS:?names the disks to use, separated by blanks}"

work=$(mktemp -d)
export SWAPBACK_SOCKET="$work/sock"
swapbackd --run-dir "$work/run" --link-dir "$work/links" --queues 1 \
	--on-exit stop --log-level warn &
daemon=$!
trap 'kill $daemon 2>/dev/null; wait $daemon || true; rm -rf "$work"' EXIT
tries=0
until swapback pool list >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 300 ] || { echo "swapbackd does not answer" >&2; exit 1; }
	kill -0 $daemon
	sleep 0.1
done

# shellcheck disable=SC2086 # a list of disks
swapback pool create bench $SWAPBACK_TEST_DISKS --force >/dev/null
swapback volume create raw --size 128M --zero --detached >/dev/null
swapback volume create volume --size 128M --zero >/dev/null
field() { swapback volume show "$1" --json | sed -n "s/^ *\"$2\": \"\(.*\)\",*\$/\1/p"; }

bench -jobs bench/short.fio -out "$out" -server-pid $daemon \
	"raw=$(field raw backend)" "volume=$(field volume device)"
swapback volume delete raw --yes >/dev/null
swapback volume delete volume --yes >/dev/null
swapback pool check bench
swapback pool delete bench --yes >/dev/null
echo "--- $out"
cat "$out"
