#!/bin/sh
# Step 2: interest on every account. On its first run it goes wrong half-way, as
# a bad release does: it commits one side of the bookings without the other,
# tramples pages in the middle of the file, and dies. What it left is noted
# beside the demo, so that the quarantined copy can be held against it.
set -eu
db=$1 notes=$2
if [ ! -e "$notes/damaged.sha256" ]; then
	sqlite3 "$db" "INSERT INTO posting (txn, account, cents, note)
		SELECT 6000 + id, id, 100 + id, 'interest' FROM account WHERE id <= 50;
		DELETE FROM posting WHERE txn % 3 = 0 AND cents > 0;"
	pages=$(($(stat -c %s "$db") / 4096))
	dd if=/dev/urandom of="$db" bs=4096 seek=$((pages / 2)) count=16 conv=notrunc,fsync status=none
	sha256sum <"$db" >"$notes/damaged.sha256"
	echo "interest: booked one side of 50 accounts, then: Segmentation fault" >&2
	exit 139
fi
sqlite3 "$db" "BEGIN;
	INSERT INTO posting (txn, account, cents, note) SELECT 6000 + id, id, 100 + id, 'interest' FROM account;
	INSERT INTO posting (txn, account, cents, note) SELECT 6000 + id, 1, -(100 + id), 'interest' FROM account;
	COMMIT;"
echo "booked interest on 100 accounts"
