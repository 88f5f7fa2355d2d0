#!/bin/sh
# The main job, on real devices: a ledger on a volume, a job whose second step
# damages it half-way, the recovery, and the proofs. `make demo` runs this in the
# test machine. It needs root, a kernel with ublk, and two disks whose content
# is lost (SWAPBACK_TEST_DISKS). It fails when any proof fails.
set -eu
: "${SWAPBACK_TEST_DISKS:?names the disks to use, separated by blanks}"
demo=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d /tmp/swapback-demo.XXXXXX)
mnt=$work/mnt
export SWAPBACK_SOCKET="$work/swapbackd.sock" SWAPBACK_REPO="$work/repo"
mkdir "$mnt" "$mnt.failed"

# ink CODE TEXT: the text, coloured when COLOR is set (make demo sets it where
# a person looks on).
ink() { if [ -n "${COLOR:-}" ]; then printf '\033[%sm%s\033[0m' "$1" "$2"; else printf '%s' "$2"; fi; }
title() { printf '\n%s\n' "$(ink 1 "== $*")"; }
proven() { printf '  %s  %s\n' "$(ink 32 proven)" "$*"; }
fail() {
	printf '  %s  %s\n' "$(ink 31 FAILED)" "$*" >&2
	exit 1
}
agent() { swapback-agent --state-dir "$work/state" --log-dir "$work/log" --run-dir "$work/run" "$@"; }
# field FILE NAME: the first value of that name in a JSON file.
field() { sed -n "s/^ *\"$2\": \"*\\([^\",]*\\)\"*,*\$/\\1/p" "$1" | head -n 1; }
# picture NAME: which extents belong to which volume now.
picture() {
	swapback pool show tank --json >"$work/pool.json"
	swapback volume list --json >"$work/$1.json"
	extentmap "$work/pool.json" "$work/$1.json"
}

title "The storage daemon, on kernel $(uname -r)"
swapbackd --run-dir "$work/run" --link-dir "$work/dev" --on-exit stop --log-level warn &
daemon=$!
cleanup() {
	for m in "$mnt" "$mnt.failed"; do
		mountpoint -q "$m" && umount "$m"
	done
	kill $daemon 2>/dev/null || true
	wait $daemon 2>/dev/null || true
	rm -rf --one-file-system "$work"
}
trap cleanup EXIT
tries=0
until swapback pool list >/dev/null 2>&1; do
	tries=$((tries + 1))
	[ $tries -lt 300 ] || fail "swapbackd does not answer"
	kill -0 $daemon || fail "swapbackd ended"
	sleep 0.1
done
swapback doctor

title "A pool on two NVMe disks, a volume, ext4 on it, a place for backups"
# shellcheck disable=SC2086 # a list of disks
swapback pool create tank $SWAPBACK_TEST_DISKS
swapback volume create ledger --size 128M --stripes 2
swapback volume create archive --size 64M
device=$(swapback volume show ledger --json >"$work/v.json" && field "$work/v.json" device)
mkfs.ext4 -q "$device"
swapback repo init "$SWAPBACK_REPO"

title "A job of three steps; the second will damage the ledger and die"
cat >"$work/job.yaml" <<YAML
name: end-of-day
repository: $SWAPBACK_REPO
volumes:
  - name: ledger
    mount: $mnt
steps:
  - name: post
    run: $demo/steps/post.sh $mnt/ledger.db
  - name: interest
    run: $demo/steps/interest.sh $mnt/ledger.db $work
    save_point: true
    retries: 1
  - name: report
    run: $demo/steps/report.sh $mnt/ledger.db
YAML
cat "$work/job.yaml"
agent check "$work/job.yaml"
echo "Extents before:"
picture before

title "Running it"
agent run "$work/job.yaml"

title "Extents after: the name shows other extents, the failed ones are kept"
picture after
title "What each part took"
sed -n 's/^ *[0-9.]*s  //; /^  *\(save point\|recovery\|  [a-z]\).* s\( \|$\)/p' "$work"/log/end-of-day/*.log
title "Proofs"
swapback volume show ledger --json >"$work/ledger.json"
[ "$(field "$work/ledger.json" device)" = "$device" ] || fail "the ledger has another device name"
[ "$(field "$work/ledger.json" id)" != "$(field "$work/v.json" id)" ] || fail "the ledger still shows the old position"
proven "ledger is still $device, and shows another position"

mountpoint -q "$mnt" || mount "$device" "$mnt"
db=$mnt/ledger.db
[ "$(sqlite3 "$db" 'PRAGMA integrity_check')" = ok ] || fail "integrity_check of the recovered ledger"
proven "recovered ledger: integrity_check says ok"
[ "$(sqlite3 "$db" 'SELECT count(*), sum(cents), count(DISTINCT txn) FROM posting')" = "12200|0|6100" ] ||
	fail "the recovered ledger has $(sqlite3 "$db" 'SELECT count(*), sum(cents), count(DISTINCT txn) FROM posting')"
proven "recovered ledger: 12200 postings of 6100 transactions, sum 0"

failed=$(swapback volume list --json | awk -F'"' '/"name":/ { n = $4 } /"quarantine":/ { print n }')
[ -n "$failed" ] || fail "no volume is in quarantine"
swapback volume show "$failed" --json >"$work/failed.json"
bad=$(field "$work/failed.json" device)
grep -q '"step": "interest"' "$work/failed.json" || fail "the quarantine does not name the step"
grep -q '"exit_code": 139' "$work/failed.json" || fail "the quarantine does not name the exit code"
[ "$(field "$work/failed.json" id)" = "$(field "$work/v.json" id)" ] || fail "the quarantine holds another position"
proven "quarantine: $failed holds the old position, labelled with step and exit code"
mount -t ext4 -o ro,noload "$bad" "$mnt.failed"
[ "$(sha256sum <"$mnt.failed/ledger.db")" = "$(cat "$work/damaged.sha256")" ] || fail "the damaged ledger is not the one that the step left"
proven "quarantine: the damaged ledger is there, byte for byte as the step left it"
check=$(sqlite3 "file:$mnt.failed/ledger.db?immutable=1" 'PRAGMA integrity_check(3)' 2>&1 || true)
[ "$check" != ok ] || fail "the damaged ledger passes integrity_check"
proven "quarantine: integrity_check finds the damage: $(printf '%s' "$check" | sed -n 2p)"
umount "$mnt.failed"
if dd if=/dev/zero of="$bad" bs=4096 count=1 conv=notrunc oflag=direct status=none 2>/dev/null; then
	fail "the quarantined device took a write"
fi
proven "quarantine: $bad refuses writes"
umount "$mnt"
e2fsck -f -n "$device" >/dev/null 2>&1 || fail "e2fsck of the recovered volume"
proven "recovered volume: e2fsck finds nothing"
swapback pool check tank
proven "pool check: every extent has one owner, kernel tables equal the metadata"
