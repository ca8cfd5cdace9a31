"""The ledger in PostgreSQL: what several gateways share.

Rule: one transaction a batch: records, hourly sums and the journal's position, whose row is locked. Records go in by
COPY. Whoever may be there already, or cannot be stored, is found in a second try, which looks at each. Labels and
journals get their numbers before, in transactions of their own: nobody waits for another's batch, and locks are taken
in one order. Tables and views are those of `sqlite`, in a schema; see the files in `postgres_migrations`.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from time import time
from typing import Any, Final

import psycopg
from psycopg import errors

from tollhouse.ledger.answers import Answers, Dialect
from tollhouse.ledger.audit_cut import cut, ends_before
from tollhouse.ledger.base import Cuts, Entry, LedgerError, Post
from tollhouse.ledger.postgres_audit import put_away
from tollhouse.ledger.postgres_connection import Connection, connect, in_one, plain, translating
from tollhouse.ledger.postgres_place import Place
from tollhouse.ledger.postgres_prune import prune
from tollhouse.ledger.postgres_rows import (
    DRAWS,
    USUAL,
    Batch,
    Doubtful,
    Halves,
    bounded,
    halves,
    label_row,
    stored_row,
)
from tollhouse.ledger.postgres_schema import Months, set_up
from tollhouse.ledger.records import AUDIT, INTENT, USAGE, Anchor
from tollhouse.ledger.rows import FACTS, LABELS, SUMS, Facts, Sums, drawn, sum_up

__all__ = ["PostgresLedger", "is_there"]

log = logging.getLogger("tollhouse.ledger")

_REMEMBERED, _SMALL = 8192, 4096
"""Labels whose numbers are known, and their size at most, in bytes."""

_TEXTS: Final = frozenset(("request_id", "run_id", "parent_id", "hold", "adjust_of", "raw_usage"))
_NUMBERS: Final = frozenset(("status", "attempt", "estimated", "stream"))


def _names(columns: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in columns)


def _arrays(types: Sequence[str]) -> str:
    return f"SELECT * FROM unnest({', '.join(f'%s::{kind}[]' for kind in types)})"  # noqa: S608


_COPY: Final = f"COPY usage_facts ({_names(USUAL)}) FROM STDIN".encode()
_COPY_REST: Final = f"COPY usage_facts ({_names(FACTS)}) FROM STDIN".encode()
_COPY_DRAWS: Final = f"COPY usage_draws ({_names(DRAWS)}) FROM STDIN".encode()
_INSERT: Final = (
    f"INSERT INTO usage_facts ({_names(FACTS)}) "
    f"{_arrays(['text' if name in _TEXTS else 'bigint' for name in FACTS])} ON CONFLICT DO NOTHING RETURNING seq"
).encode()
_INSERT_DRAWS: Final = (
    f"INSERT INTO usage_draws ({_names(DRAWS)}) "
    f"{_arrays(['text', *['bigint'] * (len(DRAWS) - 1)])} ON CONFLICT DO NOTHING"
).encode()
_INSERT_LABELS: Final = (
    f"INSERT INTO usage_labels (digest, {_names(LABELS)}) "
    f"{_arrays(['bytea', *('bigint' if name in _NUMBERS else 'text' for name in LABELS)])} "
    "ON CONFLICT (digest) DO NOTHING"
).encode()
_ADD: Final = (
    f"INSERT INTO usage_sums AS s (hour, labels, {_names(SUMS)}) "
    f"{_arrays(['bigint'] * (2 + len(SUMS)))} "
    f"ON CONFLICT (hour, labels) DO UPDATE SET {', '.join(f'{s} = s.{s} + excluded.{s}' for s in SUMS)}"
).encode()

_POSTS: Final = (
    "WITH taken AS (SELECT DISTINCT seq FROM usage_draws WHERE journal = %s AND seq > %s ORDER BY seq LIMIT %s) "
    "SELECT d.seq, CASE WHEN f.adjust_of = '' THEN coalesce(nullif(f.hold, ''), f.request_id) ELSE '' END, d.field, "
    "d.amount FROM usage_draws d LEFT JOIN usage_facts f "
    "ON f.admitted_at = d.admitted_at AND f.journal = d.journal AND f.seq = d.seq "
    "WHERE d.journal = %s AND d.seq > %s AND d.seq <= (SELECT max(seq) FROM taken) ORDER BY d.seq, d.field"
)
"""As the view `draws` has them."""

_POISON: Final = (ValueError, OverflowError, errors.DataError, errors.IntegrityError, errors.ProgramLimitExceeded)
"""What a record can be the reason of (msgspec's errors are ValueErrors)."""

_UNUSUAL: Final = (Doubtful, *_POISON)


class PostgresLedger(Answers):
    """A `base.Ledger` in the database at `place`. now: unix seconds, of which the months are made that are needed."""

    _dialect = Dialect(
        "%s",
        lambda array, alias: f"LATERAL jsonb_array_elements_text(({array})::jsonb) AS {alias}(value)",
        lambda mark, alias: f"(SELECT key, value::bigint AS value FROM jsonb_each_text({mark}::jsonb)) AS {alias}",  # noqa: S608
        bounded,
    )

    def __init__(self, place: Place, *, now: Callable[[], float] = time) -> None:
        self.place = place
        self._db: Connection | None = None
        self._halves = Halves()
        self._months = Months(now)
        self._numbers: dict[bytes, int] = {}
        """The second half of a body -> the number of its labels."""
        self._journals: dict[str, int] = {}

    @property
    def astray(self) -> int:
        return self._months.astray

    def open(self) -> None:
        if self._db is not None and not self._db.closed:
            return
        db = connect(self.place)
        try:
            with translating(self.place):
                set_up(db, self.place)
        except BaseException:
            db.close()
            raise
        self._db = db
        self._numbers.clear()  # it may be another database by now, or an older state of it
        self._journals.clear()
        self._months = Months(self._months.now, self._months.astray)

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def ship(self, journal: str, entries: Sequence[Entry]) -> int:
        with self._used() as db:
            if not entries:
                return 0
            self._months.ahead(db)
            number = self._journal(db, journal)
            try:
                return self._whole(db, number, journal, entries)
            except _UNUSUAL:
                return self._piecewise(db, number, journal, entries)

    def forget(self, journal: str) -> None:
        with self._used() as db:
            db.execute("UPDATE journals SET seq = 0 WHERE journal = %s", (journal,))

    def posts(self, journal: str, after: int, most: int) -> list[Post]:
        # By the journal's number: asked by its name, PostgreSQL would look at all draws that there are.
        found = self._ask("SELECT number FROM journals WHERE journal = %s AND last > %s", (journal, after))
        posts: dict[int, tuple[str, list[tuple[str, int]]]] = {}
        for (number,) in found:
            for seq, hold, field, amount in self._ask(_POSTS, (number, after, most, number, after)):
                posts.setdefault(seq, (hold, []))[1].append((field, amount))
        return [Post(seq, hold, tuple(draws)) for seq, (hold, draws) in posts.items()]

    def prune(self, cuts: Cuts, most: int = 1000) -> int:
        with self._used() as db:
            return prune(db, cuts, most)

    def audit_before(self, before_us: int) -> list[Anchor]:
        return ends_before(self._asked, before_us)

    def cut_audit(self, anchors: Sequence[Anchor], most: int = 1000) -> int:
        with self._used() as db, in_one(db):
            return cut(self._asked, lambda query, *values: db.execute(_marked(query), values).rowcount, anchors, most)

    # ---- asking
    def _asked(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._used() as db:
            return db.execute(_marked(query), values or None).fetchall()

    def _ask(self, query: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._used() as db:
            try:
                return db.execute(query.encode(), values or None).fetchall()
            except errors.DeadlockDetected:  # with who makes or drops a month, and has gone on by now
                return db.execute(query.encode(), values or None).fetchall()

    @contextmanager
    def _used(self) -> Iterator[Connection]:
        db = self._db
        if db is not None and db.closed:  # the line was lost, and said so to who asked last
            self.open()
            db = self._db
        if db is None:
            raise LedgerError(f"{self.place}: not open")
        with translating(self.place):
            yield db

    # ---- storing
    def _whole(self, db: Connection, number: int, journal: str, entries: Sequence[Entry]) -> int:
        """The usual case: all are new and good."""
        usage, audits = _parted(entries)
        batch = Batch()
        if usage:
            parts = halves(usage)
            batch.read(number, usage, parts, self._numbers_of(db, parts).__getitem__, self._halves.facts)
            self._months.cover(db, batch.times, batch.low, batch.high)
        with in_one(db):
            if self._locked(db, number) >= entries[0].seq:
                raise Doubtful
            stored = self._store_audits(db, number, journal, audits)
            for statement, lines in ((_COPY, batch.usual), (_COPY_REST, batch.rest), (_COPY_DRAWS, batch.draws)):
                _copy(db, statement, lines)
            self._move(db, number, batch.sums, entries[-1].seq, usage[-1].seq if usage else 0)
        return stored + batch.count

    def _piecewise(self, db: Connection, number: int, journal: str, entries: Sequence[Entry]) -> int:
        """With records that are there already, cannot be stored, or are written in another way."""
        good: list[Facts] = []
        wrong: list[tuple[Entry, str]] = []
        usage, audits = _parted(entries)
        by_seq = {entry.seq: entry for entry in usage}
        for entry in usage:
            try:
                if entry.kind != USAGE:
                    raise ValueError(f"unknown kind of record: {entry.kind}")
                facts = self._halves.any_facts(entry.body)
                digest, row = label_row(self._halves.any_labels(entry.body))
                facts.journal, facts.seq = number, entry.seq
                facts.labels = self._numbered(db, {digest: row})[digest]
            except _POISON as error:
                wrong.append((entry, _why(error)))
            else:
                good.append(facts)
        if good:
            times = {facts.admitted_at for facts in good}
            self._months.cover(db, times, min(times), max(times))
        with in_one(db):
            position = self._locked(db, number)
            last = entries[-1].seq
            if last <= position:
                return 0
            stored = self._store_audits(db, number, journal, [entry for entry in audits if entry.seq > position])
            new: list[Facts] = []
            for facts, why in _inserted(db, [facts for facts in good if facts.seq > position], new):
                wrong.append((by_seq[facts.seq], why))
            sums: Sums = {}
            for facts in new:
                sum_up(sums, facts)
            draws = [
                (bounded(field), number, facts.seq, facts.admitted_at, amount)
                for facts in new
                for field, amount in drawn(facts)
            ]
            if draws:
                db.execute(_INSERT_DRAWS, [list(column) for column in zip(*draws, strict=True)])
            for entry, why in wrong:
                if entry.seq > position:
                    _set_aside(db, journal, entry, why)
            self._move(db, number, sums, last, usage[-1].seq if usage else 0)
        return stored + len(new)

    @staticmethod
    def _store_audits(db: Connection, number: int, journal: str, audits: Sequence[Entry]) -> int:
        if not audits:
            return 0
        stored, wrong = put_away(db, number, audits)
        for entry, why in wrong:
            _set_aside(db, journal, entry, why)
        return stored

    @staticmethod
    def _locked(db: Connection, number: int) -> int:
        """The position of the journal, which nobody else moves until the end of the transaction."""
        row = db.execute("SELECT seq FROM journals WHERE number = %s FOR UPDATE", (number,)).fetchone()
        if row is None:
            raise LedgerError("the journal's row is gone")  # somebody has deleted it: opened anew it is made again
        return int(row[0])

    @staticmethod
    def _move(db: Connection, number: int, sums: Sums, last: int, used: int) -> None:
        """What is at the end of each transaction: the hourly sums, which others want as well, and the position."""
        if sums:
            rows = sorted((*group, *values) for group, values in sums.items())
            db.execute(_ADD, [list(column) for column in zip(*rows, strict=True)])
        moved = "UPDATE journals SET seq = %s, last = greatest(last, %s), last_at = %s WHERE number = %s"
        db.execute(moved, (last, used, int(time() * 1e6), number))

    # ---- numbers
    def _journal(self, db: Connection, journal: str) -> int:
        number = self._journals.get(journal)
        if number is None:
            db.execute("INSERT INTO journals (journal) VALUES (%s) ON CONFLICT DO NOTHING", (journal,))
            row = db.execute("SELECT number FROM journals WHERE journal = %s", (journal,)).fetchone()
            assert row is not None
            if len(self._journals) >= _REMEMBERED:
                self._journals.clear()
            number = self._journals[journal] = int(row[0])
        return number

    def _numbers_of(self, db: Connection, parts: Sequence[tuple[bytes, bytes]]) -> dict[bytes, int]:
        """The numbers of the labels in the second halves. Raises Doubtful; ValueError."""
        known = self._numbers
        new = {second for _, second in parts if second not in known}
        if not new:
            return known
        found = {second: known[second] for _, second in parts if second in known}
        rows: dict[bytes, tuple[int | str, ...]] = {}
        digests: dict[bytes, bytes] = {}
        for second in new:
            if not second:
                raise Doubtful
            digest, row = label_row(self._halves.labels(b'{"outcome":' + second))
            digests[second] = digest
            rows[digest] = row
        numbers = self._numbered(db, rows)
        if len(known) + len(new) > _REMEMBERED:
            known.clear()
        for second, digest in digests.items():
            found[second] = numbers[digest]
            if len(second) <= _SMALL and len(known) < _REMEMBERED:
                known[second] = numbers[digest]
        return found

    @staticmethod
    def _numbered(db: Connection, rows: Mapping[bytes, Sequence[int | str]]) -> dict[bytes, int]:
        """The number of each of these labels; they are stored when they are new."""
        query = "SELECT digest, labels FROM usage_labels WHERE digest = ANY(%s)"
        found: dict[bytes, int] = dict(db.execute(query, (list(rows),)).fetchall())
        missing = sorted(rows.keys() - found.keys())
        if missing:
            given = [(digest, *rows[digest]) for digest in missing]
            db.execute(_INSERT_LABELS, [list(column) for column in zip(*given, strict=True)])
            found.update(db.execute(query, (missing,)).fetchall())
        return found


def _marked(query: str) -> bytes:
    """With the driver's own marks for values."""
    return query.replace("?", "%s").encode()


def is_there(place: Place) -> bool:
    """Whether there are tables of a ledger. Raises LedgerError."""
    with closing(connect(place)) as db, translating(place):
        row = db.execute("SELECT to_regclass(%s) IS NOT NULL", (f'"{place.schema}".migrations',)).fetchone()
        return row is not None and bool(row[0])


def _parted(entries: Sequence[Entry]) -> tuple[Sequence[Entry], list[Entry]]:
    """Those of usage (and of unknown kinds), and those of the audit; what is begun and has not ended is neither."""
    if all(entry.kind == USAGE for entry in entries):
        return entries, []
    audits = [entry for entry in entries if entry.kind == AUDIT]
    return [entry for entry in entries if entry.kind not in (AUDIT, INTENT)], audits


def _copy(db: Connection, statement: bytes, lines: Sequence[str]) -> None:
    if lines:
        with db.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write("\n".join(lines) + "\n")


def _inserted(db: Connection, rows: Sequence[Facts], new: list[Facts]) -> list[tuple[Facts, str]]:
    """Insert what is not there yet, which is added to `new`; those that cannot be, and why."""
    if not rows:
        return []
    values = [list(column) for column in zip(*(stored_row(facts) for facts in rows), strict=True)]
    db.execute("SAVEPOINT rows")
    try:
        found = {row[0] for row in db.execute(_INSERT, values).fetchall()}
    except _POISON as error:
        db.execute("ROLLBACK TO rows")
        if len(rows) == 1:
            return [(rows[0], _why(error))]
        half = len(rows) // 2
        return _inserted(db, rows[:half], new) + _inserted(db, rows[half:], new)
    db.execute("RELEASE rows")
    new += [facts for facts in rows if facts.seq in found]
    return []


def _set_aside(db: Connection, journal: str, entry: Entry, why: str) -> None:
    values = (journal, entry.seq, entry.kind, entry.body, plain(why), int(time() * 1e6))
    db.execute("INSERT INTO rejected VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING", values)


def _why(error: Exception) -> str:
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else str(error)
    return f"{type(error).__name__}: {said}"[:500]
