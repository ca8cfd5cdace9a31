"""The ledger in one SQLite file: what a single machine needs, with nothing beside it.

Rule: one transaction a batch (BEGIN IMMEDIATE): records, hourly sums and the journal's position. WAL, so that reading
never waits for writing, and synchronous=FULL, because a committed batch lets its journal segment be deleted. Several
workers may write to one file; each waits up to `busy` seconds for its turn, in its shipper's thread.

What many calls have in common, the labels (who, what, where, how it ended), is stored once and named by a number; a
call's row is that number and what is its own. So a row is small, a label is decoded once per process and not once per
call, and an hourly sum is found by (hour, labels). To be read as one: the views `usage` and `usage_hour`.

Tables (times in microseconds since 1970, UTC):
    usage_facts  one row a UsageRecord; its key (admitted_at, journal, seq) is what its id is computed from
    usage_labels the distinct labels, each of 256 characters at most; digest finds them. Never deleted from: writers
                 remember the numbers
    usage_sums   sums by hour (hours since 1970) and labels, kept in the same transaction as `usage_facts`
    journals     number -> journal, and the last seq stored (0: forgotten)
    rejected     entries that could not be stored, with their bytes and why
    api_keys     virtual API keys (`keys`), by digest; times in seconds
    audit, audit_chains  the audit records: see `audit_sqlite`
    migrations   version -> when it was applied
Views:
    usage        one row a UsageRecord, with the record's names and order
    usage_hour   usage_sums with its labels
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from time import monotonic, sleep, time
from typing import Annotated

import msgspec
from msgspec.structs import asdict, astuple

from tollhouse.ledger.audit_sqlite import TABLES, put_away
from tollhouse.ledger.base import BY, Entry, LedgerError, UsageRow
from tollhouse.ledger.records import AUDIT, USAGE, Outcome

__all__ = ["SqliteLedger"]

_USAGE_1 = """
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

_KINDS_2 = """
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

_KEYS_3 = """
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

_MIGRATIONS: tuple[str, ...] = (_USAGE_1, _KINDS_2, _KEYS_3, TABLES)
"""Applied in order, each once; what has been released is never changed."""

_Time = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
_Int = Annotated[int, msgspec.Meta(ge=-(1 << 53), le=1 << 53)]
_Tokens = Annotated[int, msgspec.Meta(ge=-(1 << 40), le=1 << 40)]
_Nano = Annotated[int, msgspec.Meta(ge=-(1 << 50), le=1 << 50)]
"""What a call may have used of what is summed up: more is no number to be believed, and sums stay within 64 bits."""


class _Facts(msgspec.Struct, kw_only=True, gc=False):
    """A row of `usage_facts`, in the order of its columns. journal, seq and labels are not from a record's body."""

    journal: int = 0
    seq: int = 0
    labels: int = 0
    admitted_at: _Time
    ended_at: _Time
    request_id: str = ""
    input: _Tokens = 0
    output: _Tokens = 0
    cache_read: _Tokens = 0
    cache_write: _Tokens = 0
    reasoning: _Tokens = 0
    cost_nano: _Nano | None = None
    ttft_us: _Int = 0
    total_us: _Int = 0
    upstream_us: _Int = 0
    bytes_in: _Int = 0
    bytes_out: _Int = 0
    cache_write_1h: _Tokens = 0
    audio_input: _Tokens = 0
    audio_output: _Tokens = 0
    image_input: _Tokens = 0
    image_output: _Tokens = 0


class _Labels(msgspec.Struct, kw_only=True, omit_defaults=True, gc=False):
    """A row of `usage_labels`, without its number and digest. The digest is that of the JSON without defaults, so that
    a label added at the end leaves the digests of the rows that do not have it."""

    outcome: str = Outcome.OK
    reason: str = ""
    status: _Int = 0
    attempt: _Int = 1
    org: str = ""
    team: str = ""
    user: str = ""
    key: str = ""
    agent: str = ""
    route: str = ""
    dialect: str = ""
    operation: str = ""
    model_asked: str = ""
    model_answered: str = ""
    provider: str = ""
    backend: str = ""
    server: str = ""
    tool: str = ""
    estimated: bool = False
    stream: bool = False


class _OnlyFacts(_Facts, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The first half of a body, up to _MARK, if nothing of the other half is in it."""


class _OnlyLabels(_Labels, kw_only=True, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """The second half."""


_MARK = b',"outcome":'
"""Where the labels of a body begin. Inside of a JSON string it cannot stand: a quote there has a backslash."""
_AT_ONCE = 64
"""Rows in a statement: while SQLite takes them the interpreter is free for the event loop, and it changes hands twice a
statement, not twice a row. An SQLite before 3.32 binds at most 999 values, of which a usual row needs _WIDTH - 1."""
_REMEMBERED, _SMALL = 8192, 4096
"""Labels whose numbers are known, and their size at most, in bytes."""
_LONGEST = 256
"""Characters of a label. It is kept for ever, and some are a caller's own words: what is longer is cut, with a mark."""


def _insert(table: str, columns: tuple[str, ...], rows: int = 1) -> str:
    values = ", ".join([f"({', '.join('?' * len(columns))})"] * rows)
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {values}"  # noqa: S608


def _insert_usual(rows: int) -> str:
    """Of rows of one journal that have nothing in the columns of _SELDOM. To bind a value costs more than to store it:
    the journal is bound once, what most calls have none of not at all."""
    width = _WIDTH - 1
    values = []
    for row in range(rows):
        bound = (f"?{n}" for n in range(2 + row * width, 2 + (row + 1) * width))
        values.append(f"(?1, {', '.join((*bound, *('0' for _ in _SELDOM)))})")
    columns = ", ".join((*_USUAL, *_SELDOM))
    return f"INSERT INTO usage_facts ({columns}) VALUES {', '.join(values)} ON CONFLICT DO NOTHING"  # noqa: S608


_FACTS = _Facts.__struct_fields__
_SELDOM = (
    "cache_read", "cache_write", "reasoning", "cache_write_1h", "audio_input", "audio_output", "image_input",
    "image_output",
)  # fmt: skip
_USUAL = tuple(name for name in _FACTS if name not in _SELDOM)
_WIDTH = len(_USUAL)
_LABELS = ("digest", *_Labels.__struct_fields__)
_SUMS = (
    "requests", "input", "output", "cache_read", "cache_write", "reasoning", "cost_nano", "unpriced",
    "cache_write_1h", "audio_input", "audio_output", "image_input", "image_output",
)  # fmt: skip
_INSERT = f"{_insert('usage_facts', _FACTS)} ON CONFLICT DO NOTHING"
_INSERT_USUAL, _INSERT_MANY = _insert_usual(1), _insert_usual(_AT_ONCE)
_FULL = 1 + _AT_ONCE * (_WIDTH - 1)
_LABEL = _insert("usage_labels", _LABELS)
_ADD = (
    f"{_insert('usage_sums', ('hour', 'labels', *_SUMS))} "
    f"ON CONFLICT DO UPDATE SET {', '.join(f'{s} = {s} + excluded.{s}' for s in _SUMS)}"
)
_REJECT = "INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_ERRORS = ", ".join(
    f"'{o}'" for o in (Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.CUT, Outcome.ERROR, Outcome.LOST)
)
_HOUR_US = 3_600_000_000
_GROUPS = {
    "model": "model_asked",
    "hour": "strftime('%Y-%m-%dT%H:00:00Z', hour * 3600, 'unixepoch')",
    "day": "strftime('%Y-%m-%dT00:00:00Z', hour * 3600, 'unixepoch')",
}

Sums = dict[tuple[int, int], list[int]]
"""(hour, labels) -> what _SUMS names."""


class SqliteLedger:
    """A `base.Ledger` in the file `path`. busy: seconds to wait for another writer."""

    def __init__(self, path: Path | str, *, busy: float = 5.0) -> None:
        self.path = Path(path)
        self._busy = busy
        self._db: sqlite3.Connection | None = None
        self._facts: Callable[[bytes], _Facts] = msgspec.json.Decoder(_OnlyFacts).decode
        self._any_facts: Callable[[bytes], _Facts] = msgspec.json.Decoder(_Facts).decode
        self._labels: Callable[[bytes], _Labels] = msgspec.json.Decoder(_OnlyLabels).decode
        self._any_labels: Callable[[bytes], _Labels] = msgspec.json.Decoder(_Labels).decode
        self._numbers: dict[bytes, int] = {}
        """The second half of a body -> the number of its labels; only of what is committed, or is being written."""

    def open(self) -> None:
        if self._db is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.path.exists():
                self.path.touch(mode=0o600)
            # One thread at a time is the contract of Ledger, not one thread for ever.
            db = sqlite3.connect(self.path, timeout=self._busy, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: {error}") from error
        try:
            self._set_up(db)
        except sqlite3.Error as error:
            db.close()
            raise _translated(self.path, error) from error
        except LedgerError:
            db.close()
            raise
        self._db = db
        self._numbers.clear()  # it may be another file by now

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def position(self, journal: str) -> int:
        try:
            row = self._open().execute("SELECT seq FROM journals WHERE journal = ?", (journal,)).fetchone()
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        return 0 if row is None else int(row[0])

    def ship(self, journal: str, entries: Sequence[Entry]) -> int:
        db = self._open()
        if not entries:
            return 0
        try:
            try:
                return self._in_one(db, self._whole, journal, entries)
            except _UNUSUAL:
                return self._in_one(db, self._one_by_one, journal, entries)
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def forget(self, journal: str) -> None:
        try:
            self._open().execute("UPDATE journals SET seq = 0 WHERE journal = ?", (journal,))
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def rejected(self) -> int:
        try:
            return int(self._open().execute("SELECT count(*) FROM rejected").fetchone()[0])
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error

    def usage(self, since: int, until: int, by: Sequence[str] = ()) -> list[UsageRow]:
        for name in by:
            if name not in BY:
                raise ValueError(f"usage cannot be grouped by {name!r}; by {', '.join(BY)} it can")
        group = [_GROUPS.get(name, name) for name in by]
        sums = ", ".join(f"sum({s})" for s in _SUMS)
        query = (
            f"SELECT {''.join(g + ', ' for g in group)}{sums}, sum(requests * (outcome IN ({_ERRORS}))) "  # noqa: S608
            "FROM usage_sums JOIN usage_labels USING (labels) WHERE hour >= ? AND hour < ?"
        )
        if group:
            numbers = ", ".join(str(n + 1) for n in range(len(group)))
            query += f" GROUP BY {numbers} ORDER BY {numbers}"
        try:
            rows = self._open().execute(query, (since // 3600, -(-until // 3600))).fetchall()
        except sqlite3.Error as error:
            raise _translated(self.path, error) from error
        n = len(group)
        return [
            UsageRow(tuple(r[:n]), r[n], r[-1], *r[n + 1 : -1])
            for r in rows
            if r[n] is not None  # sums over nothing
        ]

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise LedgerError(f"{self.path}: not open")
        return self._db

    def _set_up(self, db: sqlite3.Connection) -> None:
        give_up = monotonic() + self._busy
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
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("CREATE TABLE IF NOT EXISTS migrations (version INTEGER PRIMARY KEY, at INTEGER NOT NULL)")
            version = db.execute("SELECT coalesce(max(version), 0) FROM migrations").fetchone()[0]
            if version > len(_MIGRATIONS):
                raise LedgerError(
                    f"{self.path} was written by a newer version of tollhouse (tables of version {version}, this one "
                    f"knows {len(_MIGRATIONS)}); upgrade, or use another file",
                    lasting=True,
                )
            for number, script in enumerate(_MIGRATIONS[version:], version + 1):
                for statement in script.split(";"):
                    db.execute(statement)
                db.execute("INSERT INTO migrations VALUES (?, ?)", (number, int(time() * 1e6)))
            db.execute("COMMIT")
        except BaseException:
            _roll_back(db)
            raise

    def _in_one(
        self,
        db: sqlite3.Connection,
        store: Callable[[sqlite3.Connection, int, Sequence[Entry], Sums], int],
        journal: str,
        entries: Sequence[Entry],
    ) -> int:
        """One transaction: `store` puts away what is new of `entries` and says what is to be summed up."""
        last = entries[-1].seq
        db.execute("BEGIN IMMEDIATE")
        try:
            row = db.execute("SELECT number, seq FROM journals WHERE journal = ?", (journal,)).fetchone()
            if row is None:
                row = (db.execute("INSERT INTO journals (journal, seq) VALUES (?, 0)", (journal,)).lastrowid, 0)
            number, position = row
            stored = 0
            if last > position:
                if entries[0].seq <= position:
                    entries = [entry for entry in entries if entry.seq > position]
                audits = [entry for entry in entries if entry.kind == AUDIT]
                if audits:
                    entries = [entry for entry in entries if entry.kind != AUDIT]
                    stored, wrong = put_away(db, number, audits)
                    for entry, why in wrong:
                        _set_aside(db, journal, entry, why)
                sums: Sums = {}
                if entries:
                    stored += store(db, number, entries, sums)
                db.executemany(_ADD, [(*group, *values) for group, values in sums.items()])
                db.execute("UPDATE journals SET seq = ? WHERE number = ?", (last, number))
            db.execute("COMMIT")
        except BaseException:
            self._numbers.clear()  # some may name rows that are not there now
            _roll_back(db)
            raise
        return stored

    def _whole(self, db: sqlite3.Connection, journal: int, entries: Sequence[Entry], sums: Sums) -> int:
        """The usual case: all are new and good."""
        decode, known = self._facts, self._numbers
        stored = 0
        usual: list[int | str | None] = [journal]  # values of rows that have nothing seldom
        rest: list[tuple[int | str | None, ...]] = []  # rows
        begin = end = labels = 0  # the hour and labels that `have` sums up, and the bytes these labels came as
        last = b""
        have: list[int] = []
        for entry in entries:
            first, _, second = entry.body.partition(_MARK)
            facts = decode(first + b"}")
            admitted = facts.admitted_at
            if second != last or not begin <= admitted < end:
                found = known.get(second)
                labels = self._learn(db, second) if found is None else found
                last = second
                hour = admitted // _HOUR_US
                begin, end = hour * _HOUR_US, (hour + 1) * _HOUR_US
                have = sums.setdefault((hour, labels), [0] * len(_SUMS))
            if entry.kind != USAGE:
                raise _Doubtful
            if (
                facts.cache_read
                or facts.cache_write
                or facts.reasoning
                or facts.cache_write_1h
                or facts.audio_input
                or facts.audio_output
                or facts.image_input
                or facts.image_output
            ):
                facts.journal = journal
                facts.seq = entry.seq
                facts.labels = labels
                rest.append(astuple(facts))
                _sum_up(sums, facts)
                continue
            # What `_sum_up` does, of a row that has nothing seldom.
            given, made, cost = facts.input, facts.output, facts.cost_nano
            have[0] += 1
            have[1] += given
            have[2] += made
            if cost is not None:
                have[6] += cost
            elif given or made:
                have[7] += 1
            usual += (
                entry.seq, labels, admitted, facts.ended_at, facts.request_id, given, made, cost, facts.ttft_us,
                facts.total_us, facts.upstream_us, facts.bytes_in, facts.bytes_out,
            )  # fmt: skip
            if len(usual) == _FULL:
                stored += db.execute(_INSERT_MANY, usual).rowcount
                usual = [journal]
        rows = [[journal, *usual[n : n + _WIDTH - 1]] for n in range(1, len(usual), _WIDTH - 1)]
        if rows:
            stored += db.executemany(_INSERT_USUAL, rows).rowcount
        if rest:
            stored += db.executemany(_INSERT, rest).rowcount
        if stored != len(entries):
            raise _Doubtful  # some were there already; which ones is not known
        return stored

    def _one_by_one(self, db: sqlite3.Connection, journal: int, entries: Sequence[Entry], sums: Sums) -> int:
        """With rows that are there already, cannot be stored, or are written in another way."""
        stored = 0
        for entry in entries:
            try:
                if entry.kind != USAGE:
                    raise ValueError(f"unknown kind of record: {entry.kind}")
                facts = self._any_facts(entry.body)
                facts.journal = journal
                facts.seq = entry.seq
                facts.labels = self._number(db, self._any_labels(entry.body))
                new = db.execute(_INSERT, astuple(facts)).rowcount == 1
            except _POISON as error:
                why = f"{type(error).__name__}: {error}"[:500]
                name = db.execute("SELECT journal FROM journals WHERE number = ?", (journal,)).fetchone()[0]
                _set_aside(db, name, entry, why)
                continue
            if new:
                stored += 1
                _sum_up(sums, facts)
        return stored

    def _learn(self, db: sqlite3.Connection, second: bytes) -> int:
        """The number of the labels in the second half of a body, remembered. Raises _Doubtful when it is no such."""
        if not second:
            raise _Doubtful
        number = self._number(db, self._labels(b'{"outcome":' + second))
        if len(second) <= _SMALL:
            if len(self._numbers) >= _REMEMBERED:
                self._numbers.clear()
            self._numbers[second] = number
        return number

    @staticmethod
    def _number(db: sqlite3.Connection, labels: _Labels) -> int:
        """The number of these labels; they are stored when they are new."""
        encoded = msgspec.json.encode(labels)
        if len(encoded) > _LONGEST:  # or none of them can be
            for name, value in asdict(labels).items():
                if isinstance(value, str) and len(value) > _LONGEST:
                    setattr(labels, name, f"{value[: _LONGEST - 1]}…")
            encoded = msgspec.json.encode(labels)
        digest = blake2b(encoded, digest_size=16).digest()
        row = db.execute("SELECT labels FROM usage_labels WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            return int(row[0])
        number = db.execute(_LABEL, (digest, *astuple(labels))).lastrowid
        assert number is not None
        return number


class _Doubtful(Exception):
    """The batch must be looked at row by row."""


_POISON: tuple[type[Exception], ...] = (
    ValueError,  # not JSON, wrong types, an unknown kind (msgspec's errors are ValueErrors)
    OverflowError,  # an integer above 64 bits
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
)


_UNUSUAL: tuple[type[Exception], ...] = (_Doubtful, *_POISON)


def _set_aside(db: sqlite3.Connection, journal: str, entry: Entry, why: str) -> None:
    db.execute(_REJECT, (journal, entry.seq, entry.kind, entry.body, why, int(time() * 1e6)))


def _sum_up(sums: Sums, facts: _Facts) -> None:
    """Add one row to the sums of its hour and labels."""
    group = (facts.admitted_at // _HOUR_US, facts.labels)
    have = sums.get(group)
    if have is None:
        have = sums[group] = [0] * len(_SUMS)
    have[0] += 1
    have[1] += facts.input
    have[2] += facts.output
    if facts.cache_read:
        have[3] += facts.cache_read
    if facts.cache_write:
        have[4] += facts.cache_write
    if facts.reasoning:
        have[5] += facts.reasoning
    if facts.cost_nano is not None:
        have[6] += facts.cost_nano
    elif facts.input or facts.output or facts.cache_read or facts.cache_write:
        have[7] += 1  # a call that used nothing has nothing to be paid
    if facts.cache_write_1h:
        have[8] += facts.cache_write_1h
    if facts.audio_input or facts.audio_output or facts.image_input or facts.image_output:
        have[9] += facts.audio_input
        have[10] += facts.audio_output
        have[11] += facts.image_input
        have[12] += facts.image_output


def _roll_back(db: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if db.in_transaction:
            db.execute("ROLLBACK")


def _translated(path: Path, error: sqlite3.Error) -> LedgerError:
    lasting = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
    return LedgerError(f"{path}: {error}", lasting=lasting)
