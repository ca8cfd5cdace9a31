"""The ledger in one SQLite file: what a single machine needs, with nothing beside it.

Rule: one transaction a batch (BEGIN IMMEDIATE): records, hourly sums and the journal's position. WAL, so that reading
never waits for writing, and synchronous=FULL, because a committed batch lets its journal segment be deleted. Several
workers may write to one file; each waits up to `busy` seconds for its turn, in its shipper's thread.

What many calls have in common, the labels (who, what, where, how it ended), is stored once and named by a number; a
call's row is that number and what is its own. So a row is small, a label is decoded once per process and not once per
call, and an hourly sum is found by (hour, labels). The tables are in `sqlite_tables`, what is asked in `answers`.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from time import time
from typing import Any

import msgspec

from tollhouse.ledger.answers import Answers, Dialect
from tollhouse.ledger.audit_cut import cut, ends_before
from tollhouse.ledger.audit_sqlite import put_away
from tollhouse.ledger.base import Cuts, Entry, LedgerError
from tollhouse.ledger.records import AUDIT, INTENT, USAGE, Anchor
from tollhouse.ledger.rows import (
    FACTS,
    HOUR_US,
    LABELS,
    MARK,
    NOTHING,
    SUMS,
    Facts,
    Labels,
    OnlyFacts,
    OnlyLabels,
    Sums,
    UsualFacts,
    digested,
    drawn,
    fact_row,
    seldom,
    sum_up,
)
from tollhouse.ledger.sqlite_prune import prune
from tollhouse.ledger.sqlite_tables import set_up

__all__ = ["MEMORY", "SqliteLedger"]

MEMORY = ":memory:"
"""A path that is none: the ledger is this object's alone, and gone when it is closed."""

_AT_ONCE = 64
"""Rows in a statement: while SQLite takes them the interpreter is free for the event loop, and it changes hands twice a
statement, not twice a row. An SQLite before 3.32 binds at most 999 values, of which a usual row needs _WIDTH - 1."""
_NO_ROW = frozenset((AUDIT, INTENT))
"""Kinds of entries that are no rows of usage."""
_REMEMBERED, _SMALL = 8192, 4096
"""Labels whose numbers are known, and their size at most, in bytes."""


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
        seldom = ("''" if name in _TEXTS else "0" for name in _SELDOM)
        values.append(f"(?1, {', '.join((*bound, *seldom))})")
    columns = ", ".join((*_USUAL, *_SELDOM))
    return f"INSERT INTO usage_facts ({columns}) VALUES {', '.join(values)} ON CONFLICT DO NOTHING"  # noqa: S608


_USUAL = ("journal", "seq", "labels", *UsualFacts.__struct_fields__)
_SELDOM = tuple(name for name in FACTS if name not in _USUAL)
_TEXTS = frozenset(("run_id", "parent_id", "hold", "adjust_of", "raw_usage"))
_WIDTH = len(_USUAL)
_FULL = 1 + _AT_ONCE * (_WIDTH - 1)
_ROWS = 30
"""Whole rows in a statement: 999 values at most, as above."""
_INSERT = f"{_insert('usage_facts', FACTS)} ON CONFLICT DO NOTHING"
_INSERT_ROWS = f"{_insert('usage_facts', FACTS, _ROWS)} ON CONFLICT DO NOTHING"
_INSERT_USUAL, _INSERT_MANY = _insert_usual(1), _insert_usual(_AT_ONCE)
_DRAWS = ("field", "journal", "seq", "admitted_at", "amount")
_DRAW = f"{_insert('usage_draws', _DRAWS)} ON CONFLICT DO NOTHING"
_DRAW_MANY = f"{_insert('usage_draws', _DRAWS, _AT_ONCE)} ON CONFLICT DO NOTHING"
_LABEL = _insert("usage_labels", ("digest", *LABELS))
_ADD = (
    f"{_insert('usage_sums', ('hour', 'labels', *SUMS))} "
    f"ON CONFLICT DO UPDATE SET {', '.join(f'{s} = {s} + excluded.{s}' for s in SUMS)}"
)
_MOVE = "UPDATE journals SET seq = ?, last = max(last, ?), last_at = ? WHERE number = ?"
_REJECT = "INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"


class SqliteLedger(Answers):
    """A `base.Ledger` in the file `path`, or in MEMORY. busy: seconds to wait for another writer."""

    _dialect = Dialect(
        "?",
        lambda array, alias: f"json_each({array}) AS {alias}",
        lambda mark, alias: f"json_each({mark}) AS {alias}",
    )
    astray = 0

    def __init__(self, path: Path | str, *, busy: float = 5.0) -> None:
        self.path = Path(path)
        self._busy = busy
        self._db: sqlite3.Connection | None = None
        self._facts: Callable[[bytes], Facts] = msgspec.json.Decoder(OnlyFacts).decode
        self._usual_facts: Callable[[bytes], UsualFacts] = msgspec.json.Decoder(UsualFacts).decode
        self._usually = True
        """The last record had nothing seldom."""
        self._any_facts: Callable[[bytes], Facts] = msgspec.json.Decoder(Facts).decode
        self._labels: Callable[[bytes], Labels] = msgspec.json.Decoder(OnlyLabels).decode
        self._any_labels: Callable[[bytes], Labels] = msgspec.json.Decoder(Labels).decode
        self._numbers: dict[bytes, int] = {}
        """The second half of a body -> the number of its labels; only of what is committed, or is being written."""

    def open(self) -> None:
        if self._db is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if str(self.path) != MEMORY and not self.path.exists():
                self.path.touch(mode=0o600)
            # One thread at a time is the contract of Ledger, not one thread for ever.
            db = sqlite3.connect(self.path, timeout=self._busy, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise LedgerError(f"{self.path}: {error}") from error
        try:
            with _translating(self.path):
                set_up(db, self.path, self._busy)
        except LedgerError:
            db.close()
            raise
        self._db = db
        self._numbers.clear()  # it may be another file by now

    def close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()

    def ship(self, journal: str, entries: Sequence[Entry]) -> int:
        db = self._open()
        if not entries:
            return 0
        with _translating(self.path):
            try:
                return self._stored(db, self._whole, journal, entries)
            except _UNUSUAL:
                return self._stored(db, self._one_by_one, journal, entries)

    def forget(self, journal: str) -> None:
        with _translating(self.path):
            self._open().execute("UPDATE journals SET seq = 0 WHERE journal = ?", (journal,))

    def prune(self, cuts: Cuts, most: int = 1000) -> int:
        db = self._open()
        with _translating(self.path), _in_one(db):
            return prune(db, cuts, most)

    def audit_before(self, before_us: int) -> list[Anchor]:
        return ends_before(self._all, before_us)

    def cut_audit(self, anchors: Sequence[Anchor], most: int = 1000) -> int:
        db = self._open()
        with _translating(self.path), _in_one(db):
            return cut(self._all, lambda query, *values: db.execute(query, values).rowcount, anchors, most)

    def _all(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return list(self._ask(query, values))

    def _ask(self, query: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        with _translating(self.path):
            yield from self._open().execute(query, values)

    def _open(self) -> sqlite3.Connection:
        if self._db is None:
            raise LedgerError(f"{self.path}: not open")
        return self._db

    def _stored(
        self,
        db: sqlite3.Connection,
        store: Callable[[sqlite3.Connection, int, Sequence[Entry], Sums], int],
        journal: str,
        entries: Sequence[Entry],
    ) -> int:
        """One transaction: `store` puts away what is new of `entries` and says what is to be summed up."""
        last = entries[-1].seq
        try:
            with _in_one(db):
                row = db.execute("SELECT number, seq FROM journals WHERE journal = ?", (journal,)).fetchone()
                if row is None:
                    row = (db.execute("INSERT INTO journals (journal, seq) VALUES (?, 0)", (journal,)).lastrowid, 0)
                number, position = row
                stored = 0
                if last > position:
                    if entries[0].seq <= position:
                        entries = [entry for entry in entries if entry.seq > position]
                    if any(entry.kind != USAGE for entry in entries):
                        audits = [entry for entry in entries if entry.kind == AUDIT]
                        entries = [entry for entry in entries if entry.kind not in _NO_ROW]
                        stored, wrong = put_away(db, number, audits)
                        for entry, why in wrong:
                            _set_aside(db, journal, entry, why)
                    sums: Sums = {}
                    used = 0
                    if entries:
                        used = entries[-1].seq
                        stored += store(db, number, entries, sums)
                    db.executemany(_ADD, [(*group, *values) for group, values in sums.items()])
                    db.execute(_MOVE, (last, used, int(time()) * 1_000_000, number))
        except BaseException:
            self._numbers.clear()  # some may name rows that are not there now
            raise
        return stored

    def _whole(self, db: sqlite3.Connection, journal: int, entries: Sequence[Entry], sums: Sums) -> int:
        """The usual case: all are new and good."""
        read, known = self._read, self._numbers
        stored = 0
        usual: list[int | str | None] = [journal]  # values of rows that have nothing seldom
        rest: list[tuple[int | str | bool | None, ...]] = []  # rows
        draws: list[int | str] = []  # values of rows
        begin = end = labels = 0  # the hour and labels that `have` sums up, and the bytes these labels came as
        last = b""
        have: list[int] = []
        for entry in entries:
            first, _, second = entry.body.partition(MARK)
            facts = read(first + b"}")
            admitted = facts.admitted_at
            if second != last or not begin <= admitted < end:
                found = known.get(second)
                labels = self._learn(db, second) if found is None else found
                last = second
                hour = admitted // HOUR_US
                begin, end = hour * HOUR_US, (hour + 1) * HOUR_US
                have = sums.setdefault((hour, labels), [*NOTHING])
            if entry.kind != USAGE:
                raise _Doubtful
            if type(facts) is not UsualFacts:
                facts.journal = journal
                facts.seq = entry.seq
                facts.labels = labels
                rest.append(fact_row(facts))
                sum_up(sums, facts)
                for field, amount in drawn(facts):
                    draws += (field, journal, entry.seq, admitted, amount)
                continue
            # What `sum_up` does, of a row that has nothing seldom.
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
        many = len(rest) - len(rest) % _ROWS
        for n in range(0, many, _ROWS):
            stored += db.execute(_INSERT_ROWS, [*chain.from_iterable(rest[n : n + _ROWS])]).rowcount
        if many < len(rest):
            stored += db.executemany(_INSERT, rest[many:]).rowcount
        if draws:
            _draw(db, draws)
        if stored != len(entries):
            raise _Doubtful  # some were there already; which ones is not known
        return stored

    def _read(self, first: bytes) -> UsualFacts | Facts:
        """What is a call's own. As long as records have nothing seldom, the next one is taken for one of those, which
        costs half: to be wrong costs twice."""
        if self._usually:
            try:
                return self._usual_facts(first)
            except msgspec.ValidationError:
                self._usually = False
        facts = self._facts(first)
        self._usually = not (facts.draws or seldom(facts))
        return facts

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
                new = db.execute(_INSERT, fact_row(facts)).rowcount == 1
            except _POISON as error:
                why = f"{type(error).__name__}: {error}"[:500]
                name = db.execute("SELECT journal FROM journals WHERE number = ?", (journal,)).fetchone()[0]
                _set_aside(db, name, entry, why)
                continue
            if new:
                stored += 1
                sum_up(sums, facts)
                draws: list[int | str] = []
                for field, amount in drawn(facts):
                    draws += (field, journal, entry.seq, facts.admitted_at, amount)
                _draw(db, draws)
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
    def _number(db: sqlite3.Connection, labels: Labels) -> int:
        """The number of these labels; they are stored when they are new."""
        digest, values = digested(labels)
        row = db.execute("SELECT labels FROM usage_labels WHERE digest = ?", (digest,)).fetchone()
        if row is not None:
            return int(row[0])
        number = db.execute(_LABEL, (digest, *values)).lastrowid
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


def _draw(db: sqlite3.Connection, values: list[int | str]) -> None:
    """Store rows of `usage_draws`, given as their values one behind the other."""
    width = len(_DRAWS)
    full = _AT_ONCE * width
    many = len(values) - len(values) % full
    for n in range(0, many, full):
        db.execute(_DRAW_MANY, values[n : n + full])
    db.executemany(_DRAW, [values[n : n + width] for n in range(many, len(values), width)])


@contextmanager
def _in_one(db: sqlite3.Connection) -> Iterator[None]:
    """One transaction."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise


@contextmanager
def _translating(path: Path) -> Iterator[None]:
    """What SQLite raises, as a LedgerError."""
    try:
        yield
    except sqlite3.Error as error:
        lasting = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        raise LedgerError(f"{path}: {error}", lasting=lasting) from error
