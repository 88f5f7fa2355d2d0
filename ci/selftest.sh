#!/bin/bash
# What "make vm-selftest" does: the promises of the test machine itself, on one
# kernel. It calls the harness as make does and directly.
set -u
vm=build/ci/vm
kernel=${1:?usage: ci/selftest.sh KERNEL}
export KERNEL=$kernel QUIET=1
failed=0

expect() { # NAME WANTED GOT
	if [ "$2" = "$3" ]; then
		echo "ok    $1"
	else
		echo "FAIL  $1"
		echo "      wanted: $2" | head -c 2000
		echo "      got:    $3" | head -c 2000
		failed=1
	fi
}

echo "== the test machine, KERNEL=$kernel"
# shellcheck disable=SC2016 # these are for the guest's shell
machine='
set -u
for f in /dev/ublk-control /dev/mapper/control /dev/loop-control; do test -c $f || echo "no $f"; done
for i in 0 1 2; do
	test -b /dev/nvme${i}n1 || echo "no disk $i"
	test "$(cat /sys/block/nvme${i}n1/size)" = $((1 << 21)) || echo "disk $i has a wrong size"
done
test "$(cat /sys/class/nvme/*/serial | tr -d " \n")" = swapback0swapback1swapback2 || echo "the disks are not in order"
test "$SWAPBACK_TEST_DISKS" = "/dev/nvme0n1 /dev/nvme1n1 /dev/nvme2n1" || echo "disks: $SWAPBACK_TEST_DISKS"
for d in /tmp /run /mnt; do touch $d/x || echo "$d is not writable"; done
for m in dm-flakey dm-delay nbd null_blk; do modprobe $m || echo "no $m"; done
test -f Makefile -a -f go.mod || echo "not in the checkout: $PWD"
ping -c 1 -W 5 127.0.0.1 >/dev/null 2>&1 || (exec 3<>/dev/udp/127.0.0.1/9) || echo "no loopback"
test "$(id -u)" = 0 || echo "not root"
head -c 8192 /dev/zero | tr "\0" x | dd of=/dev/nvme0n1 oflag=direct status=none || echo "cannot write to the disk"
echo to-the-host > /out/written || echo "/out is not writable"
sleep 1000 &
echo complaint >&2
echo complaint >/dev/stderr
exit 7'
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
got=$(DISKS=3 DISK_SIZE=1G OUT=$out $vm -- "$machine" 2>"$out/stderr")
expect "exit status" 7 $?
expect "everything is there" "" "$got"
expect "standard error is apart" "complaint complaint" "$(tr '\n' ' ' <"$out/stderr" | sed 's/ $//')"
expect "results come back" to-the-host "$(cat "$out/written" 2>&1)"

# 64 KiB of what shells and make like to eat, through make.
# shellcheck disable=SC2016 # nothing here is to be expanded
line='$ $$ \ " '"'"' # $(x) ${y} `z` % * ~ ! &amp; | < > ( ) { } [ ]	tab'
text=$(for _ in $(seq 2000); do printf '%s\n' "$line"; done | head -c 65400)
command="sha256sum <<'END'
$text
END"
want=$(printf '%s\n' "$text" | sha256sum)
expect "64 KiB of command line, through make (${#command} bytes)" "$want" "$(make -s vm NOBUILD=1 CMD="$command" 2>&1)"
expect "the same from the environment" "$want" "$(CMD="$command" make -s vm NOBUILD=1 2>&1)"

$vm -timeout 2s -- 'sleep 60' >/dev/null 2>&1
expect "a limit" 124 $?
$vm -- 'echo c > /proc/sysrq-trigger; sleep 60' >"$out/panic" 2>&1
expect "a panic" 125 $?
grep -q 'Kernel panic - not syncing: sysrq' "$out/panic"
expect "the panic is shown" 0 $?
$vm -- 'kill -9 $$' >/dev/null 2>&1
expect "a signal" 137 $?

# shellcheck disable=SC2016 # these are for the guests' shells
two=$($vm -disks 0 -peer 'echo complaint >&2; until (echo hello >/dev/tcp/$SWAPBACK_TEST_PEER/7) 2>/dev/null; do sleep 0.1; done; sleep 60' -- \
	'python3 -c "import os, socket; s = socket.create_server((os.environ[\"SWAPBACK_TEST_ADDRESS\"], 7)); print(s.accept()[0].makefile().read(), end=\"\")"; exit 7' 2>"$out/stderr")
expect "two machines: the status" 7 $?
expect "two machines meet" hello "$two"
expect "the second one complains" complaint "$(cat "$out/stderr")"
$vm -disks 0 -peer 'exit 3' -- 'sleep 60' >/dev/null 2>&1
expect "a second machine that ends first" 125 $?
$vm -disks 0 -peer 'echo c > /proc/sysrq-trigger; sleep 60' -- 'sleep 60' >"$out/panic" 2>&1
expect "a panic of the second one" 125 $?
grep -q 'Kernel panic - not syncing: sysrq' "$out/panic"
expect "that panic is shown" 0 $?

DISKS=1 DISK_SIZE=64M DISK_DIR=$out/disks $vm -- 'echo kept | dd of=/dev/nvme0n1 conv=sync oflag=direct status=none' 2>&1
expect "disks that stay" kept "$(DISKS=1 DISK_SIZE=64M DISK_DIR=$out/disks $vm -- 'head -c 4 /dev/nvme0n1' 2>&1)"
exit $failed
