"""What a ledger is asked, in SQL that every database understands.

Rule: one text of a query for all databases; where they differ is in their `Dialect`, and nowhere else. Queries stand on
three relations of the same columns everywhere: `usage` (one row a record, by the record's names; tags is JSON text,
booleans are 0 and 1), `usage_hour` (hourly sums with their labels) and `draws`. No `%`, no function of one database.
Rows are put in order here, not there: by code points, as no database's locale would have it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from heapq import nsmallest
from typing import Any, ClassVar, Final, NamedTuple

import msgspec

from tollhouse.ledger.base import BY, TIMES, UNITS, Post, Unit, UsageRow
from tollhouse.ledger.records import Outcome, UsageRecord
from tollhouse.ledger.rows import HOUR_US

__all__ = ["ORDERS", "Answers", "Dialect"]


class Dialect(NamedTuple):
    """mark: placeholder of a value. elements: a FROM item with the column `value`, of a JSON array of texts and an
    alias. members: one with the columns `key` and `value` (text, number), of a placeholder for a JSON object and an
    alias. kept: a text as it stands in the columns by which records are found."""

    mark: str
    elements: Callable[[str, str], str]
    members: Callable[[str, str], str]
    kept: Callable[[str], str] = str


_COLUMNS: Final = {"model": "model_asked", "answered": "model_answered", "run": "run_id"}
_HOURS: Final = {"hour": "hour", "day": "hour / 24", "week": "(hour / 24 + 3) / 7", "month": "hour / 24"}
"""Integers, of which `_moment` makes text. 1 January 1970 was a Thursday."""

_ERRORS: Final = ", ".join(
    f"'{o}'" for o in (Outcome.UPSTREAM_ERROR, Outcome.TIMEOUT, Outcome.CUT, Outcome.ERROR, Outcome.LOST)
)
_TOKENS: Final = "input + output + cache_read + cache_write"
_KINDS: Final = (
    "input", "output", "cache_read", "cache_write", "reasoning", "cost_nano", "unpriced", "cache_write_1h",
    "audio_input", "audio_output", "image_input", "image_output", "saved_nano", "withheld",
)  # fmt: skip
"""Sums, in the order of UsageRow's members from `input` on."""

_RAW: Final = (
    f"(SELECT admitted_at / {HOUR_US} AS hour, "  # noqa: S608
    "CASE WHEN adjust_of = '' THEN 1 ELSE 0 END AS requests, "
    "CASE WHEN adjust_of <> '' THEN -repriced "
    f"WHEN cost_nano IS NULL AND {_TOKENS} <> 0 THEN 1 ELSE 0 END AS unpriced, "
    "withheld_tokens AS withheld, usage.* FROM usage WHERE admitted_at >= {since} AND admitted_at < {until})"
)
_SPENT: Final[Mapping[Unit, str]] = {
    "usd": "coalesce(cost_nano, 0)",
    "tokens": _TOKENS,
    "input_tokens": "input + cache_read + cache_write",
    "output_tokens": "output",
    # As budgets count them: a model's call, or a tool's in its first round, that was let in: it has drawn on something,
    # or somebody was asked. One that is denied after that counts, too.
    "calls": "CASE WHEN adjust_of = '' AND attempt > 0 AND outcome <> 'invalid' AND reason <> 'Overloaded' "
    "AND (server = '' OR tool <> '') AND CASE outcome WHEN 'ok' THEN 1 WHEN 'tool_error' THEN 1 "
    "WHEN 'denied' THEN CASE WHEN hold <> '' AND upstream_us > 0 THEN 1 ELSE 0 END "
    "ELSE CASE WHEN hold <> '' OR upstream_us > 0 OR cached <> '' THEN 1 ELSE 0 END END = 1 THEN 1 ELSE 0 END",
}

_RECORD: Final = tuple(name for name in UsageRecord.__struct_fields__ if name != "draws")

ORDERS: Final = tuple(name for name in UsageRow.__struct_fields__ if name != "by")
"""What rows of usage can be ordered by."""


class Answers:
    """What a `base.Ledger` answers. Whoever inherits says what its database speaks, and runs the queries."""

    _dialect: ClassVar[Dialect]

    def _ask(self, query: str, values: Sequence[Any]) -> Iterable[Sequence[Any]]:
        """The rows that a query finds. Raises LedgerError."""
        raise NotImplementedError

    # ---- what was shipped
    def position(self, journal: str) -> int:
        """See `base.Ledger.position`."""
        query = f"SELECT seq FROM journals WHERE journal = {self._dialect.mark}"  # noqa: S608
        return next((int(row[0]) for row in self._ask(query, (journal,))), 0)

    def positions(self) -> dict[str, int]:
        """See `base.Ledger.positions`."""
        return {str(row[0]): int(row[1]) for row in self._ask("SELECT journal, last FROM journals WHERE last > 0", ())}

    def rejected(self) -> int:
        """See `base.Ledger.rejected`."""
        return _number(self._ask("SELECT count(*) FROM rejected", ()))

    # ---- what was used
    def usage(
        self,
        since: int,
        until: int,
        by: Sequence[str] = (),
        *,
        where: Sequence[tuple[str, str]] = (),
        order: str = "",
        top: int = 0,
    ) -> list[UsageRow]:
        """See `base.Ledger.usage`."""
        for name in by:
            if name not in BY:
                raise ValueError(f"usage cannot be grouped by {name!r}; by {', '.join(BY)} it can")
        if order and order not in ORDERS:
            raise ValueError(f"usage cannot be ordered by {order!r}; by {', '.join(ORDERS)} it can")
        first, last = since // 3600, -(-until // 3600)
        raw = "run" in by or any(name == "run" for name, _ in where)
        values: list[Any] = []
        groups = ", ".join(self._group(name) for name in by)
        sums = ", ".join(f"coalesce(sum({name}), 0)" for name in _KINDS)  # all of a group's costs may be unknown
        relation = "usage_hour AS r"
        if raw:
            relation = _RAW.format(since=first * HOUR_US, until=last * HOUR_US) + " AS r"
        query = (
            f"SELECT {groups}{', ' if groups else ''}sum(requests), "  # noqa: S608
            f"sum(CASE WHEN outcome IN ({_ERRORS}) THEN requests ELSE 0 END), {sums} FROM {relation}"
        )
        if "tag" in by:
            elements = self._dialect.elements("CASE WHEN tags = '[]' THEN '[\"\"]' ELSE tags END", "t")
            query += f" CROSS JOIN {elements}"
        mark = self._dialect.mark
        query += f" WHERE hour >= {mark} AND hour < {mark}"
        values += (first, last)
        query += self._conditions(where, values)
        if by:
            query += f" GROUP BY {', '.join(str(n + 1) for n in range(len(by)))}"
        rows = _rows(by, self._ask(query, values))
        if "month" in by:
            rows = _joined(rows)

        def place(row: UsageRow) -> tuple[Any, ...]:
            return (-getattr(row, order), row.by) if order else row.by

        return nsmallest(top, rows, key=place) if top else sorted(rows, key=place)

    def spent(
        self,
        unit: Unit,
        since_us: int,
        until_us: int,
        where: Mapping[str, str],
        upto: Mapping[str, int] | None = None,
    ) -> int:
        """See `base.Ledger.spent`."""
        if unit not in UNITS:
            raise ValueError(f"{unit!r} is nothing that is spent; {', '.join(UNITS)} are")
        mark = self._dialect.mark
        values: list[Any] = []
        query = f"SELECT sum({_SPENT[unit]}) FROM usage AS r{self._upto(upto, values)}"  # noqa: S608
        query += f" WHERE r.admitted_at >= {mark} AND r.admitted_at < {mark}"
        values += (since_us, until_us)
        query += self._conditions(tuple(where.items()), values)
        return _number(self._ask(query, values))

    def spent_each(
        self,
        unit: Unit,
        bounds: Sequence[int],
        by: Sequence[str],
        keys: Sequence[tuple[str, ...]],
        where: Mapping[str, str],
        upto: Mapping[str, int],
    ) -> dict[tuple[str, ...], list[int]]:
        """See `base.Ledger.spent_each`."""
        values: list[Any] = []
        columns = [_column(name) for name in by]
        spans = "".join(f"WHEN r.admitted_at < {int(end)} THEN {n} " for n, end in enumerate(bounds[1:]))
        groups = ", ".join((*columns, f"CASE {spans}END"))
        numbers = ", ".join(str(n + 1) for n in range(len(by) + 1))
        mark = self._dialect.mark
        query = f"SELECT {groups}, sum({_SPENT[unit]}) FROM usage AS r{self._upto(upto, values)}"  # noqa: S608
        query += f" WHERE r.admitted_at >= {mark} AND r.admitted_at < {mark}"
        values += (bounds[0], bounds[-1])
        among = [(name, value) for n, name in enumerate(by) for value in dict.fromkeys(key[n] for key in keys)]
        query += self._conditions([*where.items(), *among], values) + f" GROUP BY {numbers}"
        wanted = {tuple(map(self._dialect.kept, key)): key for key in keys}
        found: dict[tuple[str, ...], list[int]] = {}
        for *named, span, amount in self._ask(query, values):
            key = wanted.get(tuple(str(one) for one in named))
            if key is not None:
                found.setdefault(key, [0] * (len(bounds) - 1))[int(span)] = int(amount or 0)
        return found

    def drawn(self, field: str, upto: Mapping[str, int] | None = None) -> int:
        """See `base.Ledger.drawn`."""
        mark, field = self._dialect.mark, self._dialect.kept(field)
        values: list[Any] = []
        query = f"SELECT sum(r.amount) FROM draws AS r{self._upto(upto, values)}"  # noqa: S608
        query += f" WHERE r.field >= {mark} AND r.field < {mark}"
        return _number(self._ask(query, [*values, field, field + "\U0010ffff"]))

    def posts(self, journal: str, after: int, most: int) -> list[Post]:
        """See `base.Ledger.posts`."""
        mark = self._dialect.mark
        query = (
            f"SELECT seq, hold, field, amount FROM draws WHERE journal = {mark} AND seq IN "  # noqa: S608
            f"(SELECT DISTINCT seq FROM draws WHERE journal = {mark} AND seq > {mark} ORDER BY seq LIMIT {mark}) "
            "ORDER BY seq"
        )
        found: dict[int, tuple[str, list[tuple[str, int]]]] = {}
        for seq, hold, field, amount in self._ask(query, (journal, journal, after, most)):
            found.setdefault(int(seq), (hold, []))[1].append((field, int(amount)))
        return [Post(seq, hold, tuple(sorted(draws))) for seq, (hold, draws) in found.items()]

    def identity(self) -> str:
        """See `base.Ledger.identity`: the microsecond in which its first table was made."""
        return str(_number(self._ask("SELECT min(at) FROM migrations", ())))

    def closed(self, journals: Collection[str]) -> set[str]:
        """See `base.Ledger.closed`."""
        marks = ", ".join([self._dialect.mark] * len(journals))
        # One that is new has its number before its first records.
        query = f"SELECT journal FROM journals WHERE seq = 0 AND last_at > 0 AND journal IN ({marks})"  # noqa: S608
        return {str(row[0]) for row in self._ask(query, [*journals])} if journals else set()

    def next_field(self, first: str, before: str) -> str:
        """See `base.Ledger.next_field`."""
        mark, kept = self._dialect.mark, self._dialect.kept
        # Of the table: the view joins each row with its record.
        query = f"SELECT field FROM usage_draws WHERE field >= {mark} AND field < {mark} ORDER BY field LIMIT 1"  # noqa: S608
        return next((str(row[0]) for row in self._ask(query, (kept(first), kept(before)))), "")

    def run_began(self, run: str, since_us: int) -> tuple[int, str] | None:
        """See `base.Ledger.run_began`."""
        mark = self._dialect.mark
        query = (
            f"SELECT admitted_at, parent_id FROM usage AS r WHERE run_id = {mark} AND run_id <> '' "  # noqa: S608
            f"AND admitted_at >= {mark} AND adjust_of = '' AND outcome NOT IN ('denied', 'invalid') "
            "ORDER BY admitted_at LIMIT 1"
        )
        values = (self._dialect.kept(run), since_us)
        return next(((int(at), str(parent)) for at, parent in self._ask(query, values)), None)

    def records(
        self, since_us: int, until_us: int, where: Sequence[tuple[str, str]] = (), most: int = 100
    ) -> list[UsageRecord]:
        """See `base.Ledger.records`."""
        mark = self._dialect.mark
        values: list[Any] = [since_us, until_us]
        columns = ", ".join(f'"{name}"' for name in _RECORD)
        query = f"SELECT {columns} FROM usage AS r WHERE admitted_at >= {mark} AND admitted_at < {mark}"  # noqa: S608
        query += self._conditions(where, values)
        query += f" ORDER BY admitted_at DESC, seq DESC LIMIT {mark}"
        found = []
        for row in self._ask(query, [*values, most]):
            named = dict(zip(_RECORD, row, strict=True))
            named["tags"] = tuple(msgspec.json.decode(named["tags"], type=list[str]))
            for flag in ("estimated", "stream", "repriced"):
                named[flag] = bool(named[flag])
            found.append(UsageRecord(**named))
        return found

    # ---- parts of queries
    def _group(self, name: str) -> str:
        if name in TIMES:
            return _HOURS[name]
        return "t.value" if name == "tag" else _column(name)

    def _conditions(self, where: Sequence[tuple[str, str]], values: list[Any]) -> str:
        """Of one name any value, of several names all. Raises ValueError."""
        given: dict[str, list[str]] = {}
        for name, value in where:
            if name not in BY or name in TIMES:
                known = ", ".join(one for one in BY if one not in TIMES)
                raise ValueError(f"usage cannot be found by {name!r}; by {known} it can")
            given.setdefault(name, []).append(self._dialect.kept(value))
        text = ""
        if "run" in given and "" not in given["run"]:
            text += " AND run_id <> ''"  # as the index of runs has it
        for name, among in given.items():
            marks = ", ".join([self._dialect.mark] * len(among))
            if name == "tag":
                elements = self._dialect.elements("CASE WHEN tags = '[]' THEN '[\"\"]' ELSE tags END", "w")
                text += f" AND EXISTS (SELECT 1 FROM {elements} WHERE w.value IN ({marks}))"  # noqa: S608
            else:
                text += f" AND {_column(name)} IN ({marks})"
            values += among
        return text

    def _upto(self, upto: Mapping[str, int] | None, values: list[Any]) -> str:
        if upto is None:
            return ""
        values.append(msgspec.json.encode(dict(upto)).decode())
        return f" JOIN {self._dialect.members(self._dialect.mark, 'u')} ON u.key = r.journal AND r.seq <= u.value"


def _column(name: str) -> str:
    # What arrays and objects are taken apart by has columns of its own, `key` among them.
    return f'r."{_COLUMNS.get(name, name)}"'


def _number(rows: Iterable[Sequence[Any]]) -> int:
    (row,) = rows
    return 0 if row[0] is None else int(row[0])


def _rows(by: Sequence[str], found: Iterable[Sequence[Any]]) -> Iterable[UsageRow]:
    n = len(by)
    for row in found:
        if row[n] is None:
            continue  # sums over nothing
        group = tuple(
            _moment(name, value) if name in TIMES else str(value) for name, value in zip(by, row[:n], strict=True)
        )
        yield UsageRow(group, *(int(value) for value in row[n:]))


def _joined(rows: Iterable[UsageRow]) -> list[UsageRow]:
    """Days that are in the same month."""
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        by, *numbers = msgspec.structs.astuple(row)
        have = sums.setdefault(by, [0] * len(numbers))
        sums[by] = [a + b for a, b in zip(have, numbers, strict=True)]
    return [UsageRow(by, *numbers) for by, numbers in sums.items()]


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(name: str, value: int) -> str:
    """When the hour, day, week or month begins of which the query gave the number (of a month: one of its days)."""
    hours = {"hour": 1, "day": 24, "month": 24, "week": 168}[name] * int(value) - (72 if name == "week" else 0)
    begin = _EPOCH + timedelta(hours=hours)
    if name == "month":
        begin = begin.replace(day=1)
    return begin.strftime("%Y-%m-%dT%H:%M:%SZ")
