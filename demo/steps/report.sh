#!/bin/sh
# Step 3: reads only; refuses to report on books that do not balance.
set -eu
db=$1
sum=$(sqlite3 "$db" 'SELECT sum(cents) FROM posting')
[ "$sum" = 0 ] || { echo "the books do not balance: $sum" >&2; exit 1; }
echo "the books balance: $(sqlite3 "$db" 'SELECT count(*) FROM posting') postings, sum 0"
