#!/bin/sh
# Step 1: the day's transactions. Each moves an amount from one account to
# another, so all postings add up to zero.
set -eu
db=$1
sqlite3 "$db" <<'SQL'
PRAGMA synchronous = FULL;
CREATE TABLE IF NOT EXISTS account (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS posting (
  id INTEGER PRIMARY KEY, txn INTEGER NOT NULL,
  account INTEGER NOT NULL REFERENCES account, cents INTEGER NOT NULL, note TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS posting_by_txn ON posting (txn);
BEGIN;
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 100)
INSERT OR IGNORE INTO account SELECT i, 'account ' || i FROM n;
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 6000),
  t AS (SELECT i, i * 7919 % 100 + 1 AS source, i * 104729 % 100 + 1 AS target, i * 31 % 99991 + 1 AS cents FROM n)
INSERT INTO posting (txn, account, cents, note)
  SELECT i, source, -cents, 'transfer ' || i FROM t UNION ALL
  SELECT i, target, cents, 'transfer ' || i FROM t;
COMMIT;
SQL
echo "posted 6000 transactions: $(sqlite3 "$db" 'SELECT count(*), sum(cents) FROM posting' | sed 's/|/ postings, sum /')"
