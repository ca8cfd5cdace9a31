"""What was used and what it has cost, by whatever a record has; seats that would be cheaper; corrections.

Rule: the same as `tollhouse usage` does. The ledger is asked in threads.
"""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import msgspec

from tollhouse.admin.ledger import in_thread
from tollhouse.admin.operation import Answer, Asked, Long, Moment, Operation, invalid, missing
from tollhouse.gateway.premises import Premises
from tollhouse.gateway.usage import (
    ORDER,
    NoSuchRecord,
    Question,
    adjust,
    asked,
    records_of,
    seats_of,
    shown,
    usage_of,
    usd,
)
from tollhouse.ledger.base import BY, UsageRow
from tollhouse.ledger.records import UsageRecord
from tollhouse.ledger.seats import SeatRow

__all__ = ["Usage"]

_SPAN = (
    ("since", "how far back, like 6h or 30d, or a date like 2026-11-01; absent: 1d"),
    ("until", "the same; absent: now"),
)
_WHERE = ("where[]", "only of that: NAME=VALUE; of one name any of its values, of several names all")


class UsageSums(msgspec.Struct, kw_only=True):
    """Sums of one group, whose values are `by`. Money is in dollars, exact, as text."""

    by: dict[str, str]
    requests: int
    errors: int
    input: int
    output: int
    cache_read: int
    cache_write: int
    cache_write_1h: int
    reasoning: int
    audio_input: int
    audio_output: int
    image_input: int
    image_output: int
    withheld: int
    unpriced: int
    usd: str
    saved_usd: str


class UsageAnswer(msgspec.Struct):
    """since, until: what was asked about, which is answered in whole hours."""

    since: Moment
    until: Moment
    usage: list[UsageSums]


class UserSeat(msgspec.Struct):
    """A user, with the seat that saves most, null where none does. unpriced: requests that have no known price."""

    user: str
    org: str
    requests: int
    usd: str
    seat: str | None
    seat_usd: str
    left_usd: str
    saving_usd: str
    unpriced: int


class SeatsAnswer(msgspec.Struct):
    since: Moment
    until: Moment
    users: list[UserSeat]


class Record(msgspec.Struct, kw_only=True):
    """One call, or a correction of one (`adjust_of`). usd: null where no price is known. estimated: the provider did
    not say what was used, or what cannot be: that is in raw_usage."""

    id: str
    admitted_at: Moment
    request_id: str
    org: str
    team: str
    user: str
    key: str
    agent: str
    model: str
    answered: str
    provider: str
    server: str
    tool: str
    run: str
    outcome: str
    reason: str
    input: int
    output: int
    cache_read: int
    cache_write: int
    reasoning: int
    usd: str | None
    estimated: bool
    raw_usage: str
    tags: tuple[str, ...]
    cached: str
    guard: str
    adjust_of: str


class RecordsAnswer(msgspec.Struct):
    """records: the newest first."""

    records: list[Record]


class Adjustment(msgspec.Struct, forbid_unknown_fields=True):
    """usd: what the call has cost, altogether; a number, or text to be exact. note: why, for the audit."""

    usd: Annotated[Decimal, msgspec.Meta(description="dollars, from 0 to 1,000,000")]
    note: Long = ""


class AdjustmentMade(msgspec.Struct):
    """before: null where it had no price."""

    id: str
    before: str | None
    after: str


class Usage:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config

    def operations(self) -> list[Operation]:
        path = "/api/usage"
        names = ", ".join(BY)
        query = (
            ("by", f"names with commas: {names}"), *_SPAN, _WHERE,
            ("order", f"the greatest first, by one of {', '.join(ORDER)}"), ("top", "so many rows at most"),
        )  # fmt: skip
        records = (*_SPAN, _WHERE, ("top", "so many at most, up to 1000; absent: 20"))
        return [
            Operation("usage.show", "GET", path, "What was used", self.show, UsageAnswer, query=query),
            Operation(
                "usage.seats", "GET", f"{path}/seats", "For whom a subscription would be cheaper", self.seats,
                SeatsAnswer, query=_SPAN,
            ),
            Operation(
                "usage.records", "GET", f"{path}/records", "The newest records", self.records, RecordsAnswer,
                query=records,
            ),
            Operation(
                "usage.adjust", "POST", f"{path}/{{id}}/adjust", "Say what the call of a record has cost", self.adjust,
                AdjustmentMade, Adjustment,
            ),
        ]  # fmt: skip

    async def show(self, asked: Asked) -> Answer:
        question = _question(asked)
        rows: list[UsageRow] = await in_thread(lambda: usage_of(self._config(), question), [])
        sums = [
            msgspec.convert({**shown(question, row), "by": dict(zip(question.by, row.by, strict=True))}, UsageSums)
            for row in rows
        ]
        return Answer(UsageAnswer(question.since, question.until, sums))

    async def seats(self, asked: Asked) -> Answer:
        question = _question(asked, since="30d")
        rows: list[SeatRow] = await in_thread(lambda: seats_of(self._config(), question.since, question.until), [])
        return Answer(SeatsAnswer(question.since, question.until, [_seat(row) for row in rows]))

    async def records(self, asked: Asked) -> Answer:
        question = _question(asked)
        if question.top > 1000:
            raise invalid("`top` is a number from 1 to 1000")
        question = question._replace(top=question.top or 20)
        found: list[UsageRecord] = await in_thread(lambda: records_of(self._config(), question), [])
        return Answer(RecordsAnswer([_record(one) for one in found]))

    async def adjust(self, asked: Asked) -> Answer:
        body: Adjustment = asked.body
        try:
            done = await in_thread(lambda: adjust(self._config(), asked.id, body.usd))
        except NoSuchRecord:
            raise missing("there is no record of this id; GET /api/usage/records shows them") from None
        except ValueError as error:
            raise invalid(str(error)) from None
        before = None if done.before is None else usd(done.before)
        made = AdjustmentMade(asked.id, before, usd(done.after))
        said = f"{asked.id}: {before or 'no price'} -> {made.after} usd"
        return Answer(made, f"{said}: {body.note}" if body.note else said)


def _question(got: Asked, since: str = "1d") -> Question:
    given: dict[str, Any] = {name: value for name, value in got.query if name != "where"}
    where = [value for name, value in got.query if name == "where"]
    top = given.pop("top", "0")
    if not (top.isascii() and top.isdecimal() and len(top) <= 6):
        raise invalid("`top` is a number of rows")
    try:
        return asked(**{"since": since, **given}, where=where, top=int(top), now=datetime.now(UTC))
    except ValueError as error:
        raise invalid(str(error)) from None


def _seat(row: SeatRow) -> UserSeat:
    return UserSeat(
        row.user,
        row.org,
        row.requests,
        usd(row.cost_nano),
        row.seat or None,
        usd(row.seat_nano),
        usd(row.left_nano),
        usd(row.saving_nano),
        row.unpriced,
    )


def _record(record: UsageRecord) -> Record:
    named = {name: getattr(record, name) for name in Record.__struct_fields__ if hasattr(record, name)}
    return Record(
        **{
            **named,
            "admitted_at": datetime.fromtimestamp(record.admitted_at / 1e6, UTC),
            "model": record.model_asked,
            "answered": record.model_answered,
            "run": record.run_id,
            "usd": None if record.cost_nano is None else usd(record.cost_nano),
        }
    )
