#!/bin/sh
# Measures the four rows of bench/goal.fio in the machine's exact mode, on a
# null_blk disk, dm-linear on it, the kernel's loop driver on that, and what the
# command given here serves on the dm device (its first line names the device):
#   ICOUNT=1 build/ci/vm -- 'bench/goal.sh serve file DM -depth 64'
# DM stands for the dm device. Runs in the machine only: it makes fixed names.
set -eu
modprobe null_blk nr_devices=0
disk=/sys/kernel/config/nullb/goal
mkdir $disk
echo 0 >$disk/irqmode # complete within the submission: no timer, no other processor
echo 256 >$disk/size  # MiB, contents are not kept
echo 1 >$disk/power
dmsetup create --noudevsync --noudevrules goal --table "0 $(blockdev --getsz /dev/goal) linear /dev/goal 0"
dm=/dev/$(basename "$(readlink -f "/sys/block/$(dmsetup info -c --noheadings -o blkdevname goal)")")
loop=$(losetup --direct-io=on --find --show "$dm")
# From the host's folder fio's first run would wait for the host.
cp "$(command -v fio)" /tmp/fio

measure() { # name device
	for row in randread-4k-qd1 randread-4k-qd32 randwrite-4k-qd32 read-128k-qd8; do
		DEVICE=$2 taskset -c 1 /tmp/fio --output-format=terse --terse-version=3 --section=$row bench/goal.fio |
			awk -F';' -v name="$1" -v row=$row '{ printf "%-12s %-18s %8d IOPS\n", name, row, $8 + $49 }'
	done
}
measure null_blk /dev/goal
measure dm-linear "$dm"
measure loop "$loop"
[ $# -gt 0 ] || exit 0
mkfifo /tmp/device
server=$(echo "$*" | sed "s|DM|$dm|")
$server >/tmp/device &
read -r device </tmp/device
measure "$1" "$device"
kill $!
wait $!
