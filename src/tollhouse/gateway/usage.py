"""What was used, as commands and the admin API ask the ledger; and corrections of what it has.

Rule: both ask the same and get the same. A correction is a record of its own, in a journal of its own: it reaches sums
and budgets the way every record does, and what it corrects stays as it was.
"""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from tollhouse.config.spec import Config
from tollhouse.core.errors import ConfigError, Failure, Problem, Reason
from tollhouse.core.moments import since_of
from tollhouse.gateway.ledger import alone, caught_up, journal_of
from tollhouse.gateway.unshipped import Unshipped
from tollhouse.ledger.answers import ORDERS
from tollhouse.ledger.base import BY, TIMES, Ledger, LedgerError, UsageRow
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import UsageRecord
from tollhouse.ledger.seats import GROUPS, Seat, SeatRow, seats

__all__ = [
    "MONEY", "ORDER", "Adjusted", "NoSuchRecord", "Question", "adjust", "asked", "records_of", "seats_of", "shown",
    "usage_of", "usd",
]  # fmt: skip

MONEY: Final = {"cost_nano": "usd", "saved_nano": "saved_usd"}
"""Members of a row that are nano-dollars, and what they are called in dollars."""

ORDER: Final = {**{name: name for name in ORDERS}, **{shown: name for name, shown in MONEY.items()}}
"""What rows can be ordered by, by the words for it."""

_NANO: Final = Decimal(10**9)
_LARGEST: Final = 1_000_000  # dollars for one call
_MILLISECOND: Final = 1000
_OF_THEN: Final = 100_000  # records of one millisecond


class NoSuchRecord(LookupError):
    """The ledger has no record of this id."""


class Question(NamedTuple):
    """since, until: moments, to the hour. by: names of `ledger.base.BY`. where: (name, value). order: a value of ORDER.
    top: at most so many rows, 0 for all."""

    since: datetime
    until: datetime
    by: tuple[str, ...] = ()
    where: tuple[tuple[str, str], ...] = ()
    order: str = ""
    top: int = 0


def asked(
    *,
    by: str = "",
    since: str = "1d",
    until: str | None = None,
    where: Sequence[str] = (),
    order: str = "",
    top: int = 0,
    now: datetime | None = None,
) -> Question:
    """The question that is written so. by: names with commas; since, until: `6h`, `30d` or a date, until now if it is
    not said; where: `user=ada` each. Raises ValueError with what is wrong."""
    now = now or datetime.now(UTC)
    names = tuple(word.strip() for word in by.split(",") if word.strip())
    unknown = [word for word in names if word not in BY]
    if unknown:
        raise ValueError(f"cannot group by {', '.join(unknown)}; use some of: {', '.join(BY)}")
    begin, end = since_of(since, now), now if until is None else since_of(until, now)
    for text, moment in ((since, begin), (until, end)):
        if moment is None:
            raise ValueError(f"not a time: {text!r}; write 6h, 30d or a date like 2026-11-01")
    found = []
    for pair in where:
        name, equals, value = pair.partition("=")
        if not equals or name not in BY or name in TIMES:
            known = ", ".join(one for one in BY if one not in TIMES)
            raise ValueError(f"not a condition: {pair!r}; write it like user=ada, with one of: {known}")
        found.append((name, value))
    if order and order not in ORDER:
        raise ValueError(f"cannot order by {order}; use one of: {', '.join(ORDER)}")
    if top < 0:
        raise ValueError("the number of rows is not negative")
    assert begin is not None
    assert end is not None
    return Question(begin, end, names, tuple(found), ORDER.get(order, ""), top)


def usage_of(config: Config, question: Question) -> list[UsageRow]:
    """The rows that answer it. Raises ConfigError, LedgerError. Blocks."""
    with caught_up(config) as ledger:
        return ledger.usage(
            int(question.since.timestamp()),
            # The hour that is under way counts.
            int(question.until.timestamp()) + 1,
            question.by,
            where=question.where,
            order=question.order,
            top=question.top,
        )


def records_of(config: Config, question: Question) -> list[UsageRecord]:
    """The newest records that it is about, `top` at most. Raises ConfigError, LedgerError. Blocks."""
    with caught_up(config) as ledger:
        return ledger.records(_micros(question.since), _micros(question.until) + 1, question.where, question.top)


def seats_of(config: Config, since: datetime, until: datetime) -> list[SeatRow]:
    """For whom the configured subscriptions would pay. Raises ConfigError, also where there are none; LedgerError."""
    if not config.subscriptions:
        message = "no subscription is named; write one, like {name: team, usd: 100, models: ['claude-*']}"
        raise ConfigError([Problem(message, path="subscriptions")])
    choice = [
        Seat(
            one.name,
            _nano(one.usd / (12 if one.per == "year" else 1)),
            one.models,
            one.covers if one.covers is None or one.per == "month" else one.covers // 12,
        )
        for one in config.subscriptions
    ]
    rows = usage_of(config, Question(since, until, GROUPS))
    return seats(rows, choice, max(3600.0, (until - since).total_seconds()))


def shown(question: Question, row: UsageRow) -> dict[str, Any]:
    """A row as JSON has it: its groups, and all its numbers; money also in dollars, as text."""
    numbers = {name: getattr(row, name) for name in ORDERS}
    money = {word: usd(numbers[name]) for name, word in MONEY.items()}
    return {**dict(zip(question.by, row.by, strict=True)), **numbers, **money}


def usd(nano: int) -> str:
    """Dollars with as many decimals as there are, six at least: no cost is shown as none."""
    sign, nano = "-" if nano < 0 else "", abs(nano)
    text = f"{nano // 10**9}.{nano % 10**9:09d}"
    return sign + text[:-3] + text[-3:].rstrip("0")


class Adjusted(NamedTuple):
    """A correction. record: what it is of. before, after: nano-dollars, None where there was no price."""

    record: UsageRecord
    before: int | None
    after: int


def adjust(config: Config, id: str, dollars: Decimal) -> Adjusted:
    """Have the call of that record cost so much. Sums have it at once; budgets, when a gateway has seen it.

    Raises NoSuchRecord, ValueError for what is no cost, ConfigError, LedgerError, Failure 503. Blocks.
    """
    if not dollars.is_finite() or not 0 <= dollars <= _LARGEST:
        raise ValueError(f"a call costs from 0 to {_LARGEST:,} dollars")
    with alone(config):  # what is written follows from what is read
        done = _adjust(config, id, _nano(dollars))
        with suppress(LedgerError), caught_up(config):
            pass  # it is there now; else whoever uses the ledger next takes it over
    return done


def _adjust(config: Config, id: str, after: int) -> Adjusted:
    file = config.ledger_file
    assert file is not None
    with caught_up(config) as ledger:
        record, before = _found(ledger, id, journal_of(file))
        delta = after - (before or 0)
        if before is not None and not delta:
            return Adjusted(record, before, after)
        posts = [post for post in ledger.posts(record.journal, record.seq - 1, 1) if post.seq == record.seq]
    correction = msgspec.structs.replace(
        record,
        **dict.fromkeys(_COUNTED, 0),
        id="",
        journal="",
        seq=0,
        ended_at=int(datetime.now(UTC).timestamp() * 1e6),
        cost_nano=delta,
        hold="",
        raw_usage="",
        draws=tuple((field, delta) for post in posts for field, _ in post.draws if field.startswith("usd:")),
        adjust_of=record.id,
        repriced=before is None and _is_used(record),
    )
    journal = Journal(journal_of(file), spare=0)
    try:
        journal.open()
    except OSError as error:
        raise Failure(
            503,
            Reason.INTERNAL,
            "the correction cannot be recorded",
            code="ledger_unavailable",
            detail=f"the ledger's journal cannot be written in {journal.directory}: {error.strerror}",
        ) from None
    try:
        journal.append(correction)
    finally:
        journal.close()
    return Adjusted(record, before, after)


_COUNTED: Final = (
    "input", "output", "cache_read", "cache_write", "reasoning", "ttft_us", "total_us", "upstream_us", "bytes_in",
    "bytes_out", "cache_write_1h", "audio_input", "audio_output", "image_input", "image_output", "held_nano",
    "saved_nano", "withheld_tokens",
)  # fmt: skip
"""Numbers of a record that a correction of its cost has nothing of."""


def _found(ledger: Ledger, id: str, journals: Path) -> tuple[UsageRecord, int | None]:
    """A record, and what it costs with its corrections, also those that are on their way. Raises NoSuchRecord."""
    try:
        at = int(id.replace("-", "")[:12], 16) * _MILLISECOND  # see `records.identify`
    except ValueError:
        raise NoSuchRecord(id) from None
    coming = Unshipped(journals)
    try:
        coming.read(ledger.positions())
        late = coming.records(at, at + _MILLISECOND, _OF_THEN)
    finally:
        coming.close()
    of_then = ledger.records(at, at + _MILLISECOND, (), _OF_THEN)
    record = next((one for one in of_then if one.id == id.lower() and not one.adjust_of), None)
    if record is None:
        raise NoSuchRecord(id)
    corrections = {one.id: one.cost_nano for one in (*of_then, *late) if one.adjust_of == record.id}
    known = [cost for cost in (record.cost_nano, *corrections.values()) if cost is not None]
    return record, sum(known) if known else None


def _is_used(record: UsageRecord) -> bool:
    """Whether it is counted as one without a price."""
    return bool(record.input or record.output or record.cache_read or record.cache_write)


def _nano(dollars: Decimal) -> int:
    return int((dollars * _NANO).to_integral_value(ROUND_HALF_EVEN))


def _micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
