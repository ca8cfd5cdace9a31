"""The tables of a ledger in SQLite, and how a file of an earlier version is brought up to them.

Rule: each version is a script, applied once, in order, in one transaction; what has been released is never changed.

Tables (times in microseconds since 1970, UTC):
    usage_facts  one row a UsageRecord; its key (admitted_at, journal, seq) is what its id is computed from
    usage_labels the distinct labels, each of 256 characters at most; digest finds them. Never deleted from: writers
                 remember the numbers
    usage_draws  one row for each allowance that a record was posted to: its field and the amount
    usage_sums   sums by hour (hours since 1970) and labels, kept in the same transaction as `usage_facts`
    journals     number -> journal, the last seq stored (0: forgotten), `last`, the last one of a usage record (0: they
                 are all deleted), and when that was
    rejected     entries that could not be stored, with their bytes and why
    api_keys     virtual API keys (`keys`), by digest; times in seconds
    audit, audit_chains  the audit records: see `audit_sqlite`
    migrations   version -> when it was applied
Views:
    usage        one row a UsageRecord, with the record's names and order; draws and tags are JSON
    usage_hour   usage_sums with its labels
    draws        usage_draws, with the journal's name, and the hold that the post releases
"""

import sqlite3
from pathlib import Path
from time import monotonic, sleep, time
from typing import Final

from tollhouse.ledger.audit_sqlite import TABLES
from tollhouse.ledger.base import LedgerError

__all__ = ["MIGRATIONS", "set_up"]

_USAGE_1: Final = """
CREATE TABLE usage_labels (
  labels INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE,
  outcome TEXT NOT NULL, reason TEXT NOT NULL, status INTEGER NOT NULL, attempt INTEGER NOT NULL,
  org TEXT NOT NULL, team TEXT NOT NULL, user TEXT NOT NULL, key TEXT NOT NULL, agent TEXT NOT NULL,
  route TEXT NOT NULL, dialect TEXT NOT NULL, operation TEXT NOT NULL,
  model_asked TEXT NOT NULL, model_answered TEXT NOT NULL, provider TEXT NOT NULL, backend TEXT NOT NULL,
  server TEXT NOT NULL, tool TEXT NOT NULL, estimated INTEGER NOT NULL, stream INTEGER NOT NULL
);
CREATE TABLE usage_facts (
  journal INTEGER NOT NULL, seq INTEGER NOT NULL, labels INTEGER NOT NULL,
  admitted_at INTEGER NOT NULL, ended_at INTEGER NOT NULL, request_id TEXT NOT NULL,
  input INTEGER NOT NULL, output INTEGER NOT NULL, cache_read INTEGER NOT NULL, cache_write INTEGER NOT NULL,
  reasoning INTEGER NOT NULL, cost_nano INTEGER,
  ttft_us INTEGER NOT NULL, total_us INTEGER NOT NULL, upstream_us INTEGER NOT NULL,
  bytes_in INTEGER NOT NULL, bytes_out INTEGER NOT NULL,
  PRIMARY KEY (admitted_at, journal, seq)
) WITHOUT ROWID;
CREATE TABLE usage_sums (
  hour INTEGER NOT NULL, labels INTEGER NOT NULL,
  requests INTEGER NOT NULL, input INTEGER NOT NULL, output INTEGER NOT NULL, cache_read INTEGER NOT NULL,
  cache_write INTEGER NOT NULL, reasoning INTEGER NOT NULL, cost_nano INTEGER NOT NULL, unpriced INTEGER NOT NULL,
  PRIMARY KEY (hour, labels)
) WITHOUT ROWID;
CREATE TABLE journals (number INTEGER PRIMARY KEY, journal TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL);
CREATE TABLE rejected (
  journal TEXT NOT NULL, seq INTEGER NOT NULL, kind INTEGER NOT NULL, body BLOB NOT NULL, why TEXT NOT NULL,
  at INTEGER NOT NULL, PRIMARY KEY (journal, seq)
) WITHOUT ROWID;
CREATE VIEW usage AS SELECT
  printf('%08x-%04x-7%03x-%04x-%02x%s',
    (f.admitted_at / 1000 >> 16) & 0xffffffff, f.admitted_at / 1000 & 0xffff, (f.seq >> 22) & 0xfff,
    0x8000 | ((f.seq >> 8) & 0x3fff), f.seq & 0xff, substr(j.journal, 1, 10)) AS id,
  j.journal AS journal, f.seq AS seq, f.admitted_at, f.ended_at, f.request_id,
  f.input, f.output, f.cache_read, f.cache_write, f.reasoning, f.cost_nano,
  f.ttft_us, f.total_us, f.upstream_us, f.bytes_in, f.bytes_out,
  l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l.user, l.key, l.agent, l.route, l.dialect, l.operation,
  l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream
  FROM usage_facts f CROSS JOIN usage_labels l ON l.labels = f.labels CROSS JOIN journals j ON j.number = f.journal;
CREATE VIEW usage_hour AS SELECT
  s.hour, l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l.user, l.key, l.agent, l.route, l.dialect,
  l.operation, l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream,
  s.requests, s.input, s.output, s.cache_read, s.cache_write, s.reasoning, s.cost_nano, s.unpriced
  FROM usage_sums s CROSS JOIN usage_labels l ON l.labels = s.labels;
"""

_KINDS_2: Final = """
ALTER TABLE usage_facts ADD COLUMN cache_write_1h INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_facts ADD COLUMN audio_input INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_facts ADD COLUMN audio_output INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_facts ADD COLUMN image_input INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_facts ADD COLUMN image_output INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_sums ADD COLUMN cache_write_1h INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_sums ADD COLUMN audio_input INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_sums ADD COLUMN audio_output INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_sums ADD COLUMN image_input INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_sums ADD COLUMN image_output INTEGER NOT NULL DEFAULT 0;
DROP VIEW usage;
CREATE VIEW usage AS SELECT
  printf('%08x-%04x-7%03x-%04x-%02x%s',
    (f.admitted_at / 1000 >> 16) & 0xffffffff, f.admitted_at / 1000 & 0xffff, (f.seq >> 22) & 0xfff,
    0x8000 | ((f.seq >> 8) & 0x3fff), f.seq & 0xff, substr(j.journal, 1, 10)) AS id,
  j.journal AS journal, f.seq AS seq, f.admitted_at, f.ended_at, f.request_id,
  f.input, f.output, f.cache_read, f.cache_write, f.reasoning, f.cost_nano,
  f.ttft_us, f.total_us, f.upstream_us, f.bytes_in, f.bytes_out,
  f.cache_write_1h, f.audio_input, f.audio_output, f.image_input, f.image_output,
  l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l.user, l.key, l.agent, l.route, l.dialect, l.operation,
  l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream
  FROM usage_facts f CROSS JOIN usage_labels l ON l.labels = f.labels CROSS JOIN journals j ON j.number = f.journal;
DROP VIEW usage_hour;
CREATE VIEW usage_hour AS SELECT
  s.hour, l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l.user, l.key, l.agent, l.route, l.dialect,
  l.operation, l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream,
  s.requests, s.input, s.output, s.cache_read, s.cache_write, s.reasoning, s.cost_nano, s.unpriced,
  s.cache_write_1h, s.audio_input, s.audio_output, s.image_input, s.image_output
  FROM usage_sums s CROSS JOIN usage_labels l ON l.labels = s.labels;
"""

_KEYS_3: Final = """
CREATE TABLE api_keys (
  id TEXT PRIMARY KEY, digest BLOB NOT NULL UNIQUE, name TEXT NOT NULL,
  user TEXT NOT NULL, org TEXT NOT NULL, agent TEXT NOT NULL, email TEXT NOT NULL,
  "groups" TEXT NOT NULL, scopes TEXT NOT NULL, metadata TEXT NOT NULL,
  models TEXT, servers TEXT, tools TEXT, routes TEXT,
  created_at INTEGER NOT NULL, expires_at INTEGER, revoked_at INTEGER, changed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX api_keys_changed ON api_keys (changed);
CREATE INDEX api_keys_name ON api_keys (name);
"""

_CONTROL_5: Final = """
ALTER TABLE usage_labels ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
ALTER TABLE usage_labels ADD COLUMN guard TEXT NOT NULL DEFAULT '';
ALTER TABLE usage_labels ADD COLUMN cached TEXT NOT NULL DEFAULT '';
ALTER TABLE usage_facts ADD COLUMN run_id TEXT NOT NULL DEFAULT '';
ALTER TABLE usage_facts ADD COLUMN parent_id TEXT NOT NULL DEFAULT '';
ALTER TABLE usage_facts ADD COLUMN hold TEXT NOT NULL DEFAULT '';
ALTER TABLE usage_facts ADD COLUMN held_nano INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_facts ADD COLUMN saved_nano INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_facts ADD COLUMN withheld_tokens INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_facts ADD COLUMN adjust_of TEXT NOT NULL DEFAULT '';
ALTER TABLE usage_facts ADD COLUMN repriced INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_sums ADD COLUMN saved_nano INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage_sums ADD COLUMN withheld INTEGER NOT NULL DEFAULT 0;
ALTER TABLE journals ADD COLUMN last INTEGER NOT NULL DEFAULT 0;
ALTER TABLE journals ADD COLUMN last_at INTEGER NOT NULL DEFAULT 0;
UPDATE journals SET last_at = CAST(strftime('%s', 'now') AS INTEGER) * 1000000, last =
  coalesce((SELECT m FROM (SELECT journal, max(seq) AS m FROM usage_facts GROUP BY journal) f
            WHERE f.journal = journals.number), 0);
CREATE INDEX usage_runs ON usage_facts (run_id) WHERE run_id <> '';
CREATE INDEX usage_adjusts ON usage_facts (adjust_of) WHERE adjust_of <> '';
CREATE TABLE usage_draws (
  field TEXT NOT NULL, journal INTEGER NOT NULL, seq INTEGER NOT NULL, admitted_at INTEGER NOT NULL,
  amount INTEGER NOT NULL, PRIMARY KEY (field, journal, seq)
) WITHOUT ROWID;
CREATE INDEX usage_draws_in_order ON usage_draws (journal, seq);
CREATE VIEW draws AS SELECT d.field, j.journal, d.seq, d.amount,
  CASE WHEN f.adjust_of = '' THEN coalesce(nullif(f.hold, ''), f.request_id) ELSE '' END AS hold
  FROM usage_draws d CROSS JOIN journals j ON j.number = d.journal
  LEFT JOIN usage_facts f ON f.admitted_at = d.admitted_at AND f.journal = d.journal AND f.seq = d.seq;
DROP VIEW usage;
CREATE VIEW usage AS SELECT
  printf('%08x-%04x-7%03x-%04x-%02x%s',
    (f.admitted_at / 1000 >> 16) & 0xffffffff, f.admitted_at / 1000 & 0xffff, (f.seq >> 22) & 0xfff,
    0x8000 | ((f.seq >> 8) & 0x3fff), f.seq & 0xff, substr(j.journal, 1, 10)) AS id,
  j.journal AS journal, f.seq AS seq, f.admitted_at, f.ended_at, f.request_id,
  f.input, f.output, f.cache_read, f.cache_write, f.reasoning, f.cost_nano,
  f.ttft_us, f.total_us, f.upstream_us, f.bytes_in, f.bytes_out,
  f.cache_write_1h, f.audio_input, f.audio_output, f.image_input, f.image_output,
  f.run_id, f.parent_id, f.hold, f.held_nano, f.saved_nano, f.withheld_tokens,
  (SELECT json_group_array(json_array(d.field, d.amount)) FROM usage_draws d
    WHERE d.journal = f.journal AND d.seq = f.seq) AS draws,
  f.adjust_of, f.repriced,
  l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l.user, l.key, l.agent, l.route, l.dialect, l.operation,
  l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream,
  l.tags, l.guard, l.cached
  FROM usage_facts f CROSS JOIN usage_labels l ON l.labels = f.labels CROSS JOIN journals j ON j.number = f.journal;
DROP VIEW usage_hour;
CREATE VIEW usage_hour AS SELECT
  s.hour, l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l.user, l.key, l.agent, l.route, l.dialect,
  l.operation, l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream,
  l.tags, l.guard, l.cached,
  s.requests, s.input, s.output, s.cache_read, s.cache_write, s.reasoning, s.cost_nano, s.unpriced,
  s.cache_write_1h, s.audio_input, s.audio_output, s.image_input, s.image_output, s.saved_nano, s.withheld
  FROM usage_sums s CROSS JOIN usage_labels l ON l.labels = s.labels;
"""

_RAW_6: Final = """
ALTER TABLE usage_facts ADD COLUMN raw_usage TEXT NOT NULL DEFAULT '';
DROP VIEW usage;
CREATE VIEW usage AS SELECT
  printf('%08x-%04x-7%03x-%04x-%02x%s',
    (f.admitted_at / 1000 >> 16) & 0xffffffff, f.admitted_at / 1000 & 0xffff, (f.seq >> 22) & 0xfff,
    0x8000 | ((f.seq >> 8) & 0x3fff), f.seq & 0xff, substr(j.journal, 1, 10)) AS id,
  j.journal AS journal, f.seq AS seq, f.admitted_at, f.ended_at, f.request_id,
  f.input, f.output, f.cache_read, f.cache_write, f.reasoning, f.cost_nano,
  f.ttft_us, f.total_us, f.upstream_us, f.bytes_in, f.bytes_out,
  f.cache_write_1h, f.audio_input, f.audio_output, f.image_input, f.image_output,
  f.run_id, f.parent_id, f.hold, f.held_nano, f.saved_nano, f.withheld_tokens,
  (SELECT json_group_array(json_array(d.field, d.amount)) FROM usage_draws d
    WHERE d.journal = f.journal AND d.seq = f.seq) AS draws,
  f.adjust_of, f.repriced, f.raw_usage,
  l.outcome, l.reason, l.status, l.attempt, l.org, l.team, l.user, l.key, l.agent, l.route, l.dialect, l.operation,
  l.model_asked, l.model_answered, l.provider, l.backend, l.server, l.tool, l.estimated, l.stream,
  l.tags, l.guard, l.cached
  FROM usage_facts f CROSS JOIN usage_labels l ON l.labels = f.labels CROSS JOIN journals j ON j.number = f.journal;
"""

MIGRATIONS: Final[tuple[str, ...]] = (_USAGE_1, _KINDS_2, _KEYS_3, TABLES, _CONTROL_5, _RAW_6)


def set_up(db: sqlite3.Connection, path: Path, busy: float) -> None:
    """Make the tables, or bring them up. Other processes may do the same at the same time; each waits up to `busy`
    seconds for another. A file that is as it should be is only read: who holds its lock keeps nobody from asking it.
    Raises LedgerError for a file of a newer version; sqlite3.Error."""
    give_up = monotonic() + busy
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            # Turning WAL on needs the file alone, and SQLite does not wait for that.
            if monotonic() >= give_up:
                raise
            sleep(0.02)
    db.execute("PRAGMA synchronous = FULL")
    there = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'migrations'").fetchone()
    if there is not None and _version(db, path) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        db.execute("CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, at INTEGER NOT NULL)")
        version = _version(db, path)
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            for statement in script.split(";"):
                db.execute(statement)
            db.execute("INSERT INTO migrations VALUES (?, ?)", (number, int(time() * 1e6)))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _version(db: sqlite3.Connection, path: Path) -> int:
    """Raises LedgerError for one that is not known here."""
    version: int = db.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()[0]
    if version > len(MIGRATIONS):
        raise LedgerError(
            f"{path} was written by a newer version of tollhouse (tables of version {version}, this one "
            f"knows {len(MIGRATIONS)}); upgrade, or use another file",
            lasting=True,
        )
    return version
