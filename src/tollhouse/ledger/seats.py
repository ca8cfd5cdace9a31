"""For whom a seat of a subscription would be cheaper than what was paid for each call.

Rule: what is not known is said, not guessed: calls without a price count as nothing and are shown, so that the saving
of who has some is at least what stands there.
"""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

import msgspec

from tollhouse.ledger.base import UsageRow

__all__ = ["GROUPS", "Seat", "SeatRow", "seats"]

GROUPS: Final = ("user", "org", "answered", "model")
"""What the rows of usage that `seats` takes are grouped by."""

_MONTH: Final = 365.2425 / 12 * 86400


class Seat(NamedTuple):
    """A subscription. nano: nano-dollars for a month. models: patterns with `*` of what it is for. tokens: of these
    models, in and out, that a month of it has; None: any number."""

    name: str
    nano: int
    models: tuple[str, ...]
    tokens: int | None = None


class SeatRow(msgspec.Struct, frozen=True):
    """A user, and the seat that saves most, "" where none does. Nano-dollars of the time that was asked about.

    cost_nano: paid for calls. seat_nano: what the seat would have cost. left_nano: calls that would be paid besides.
    saving_nano: what would have been saved. unpriced: requests whose price is not known, which are in none of these.
    """

    user: str
    org: str
    requests: int
    cost_nano: int
    seat: str
    seat_nano: int
    left_nano: int
    saving_nano: int
    unpriced: int


def seats(rows: Iterable[UsageRow], choice: Sequence[Seat], seconds: float) -> list[SeatRow]:
    """One row for each user, the greatest saving first. rows: by GROUPS, of so many seconds. Calls of no user are in
    none: a seat is somebody's."""
    users: dict[tuple[str, str], list[UsageRow]] = {}
    for row in rows:
        if row.by[0]:
            users.setdefault((row.by[0], row.by[1]), []).append(row)
    found = [_row(user, org, theirs, choice, seconds / _MONTH) for (user, org), theirs in users.items()]
    return sorted(found, key=lambda row: (-row.saving_nano, -row.cost_nano, row.user, row.org))


def _row(user: str, org: str, rows: Sequence[UsageRow], choice: Sequence[Seat], months: float) -> SeatRow:
    cost = sum(row.cost_nano for row in rows)
    best, best_price, best_left, best_saving = "", 0, cost, 0
    for seat in choice:
        price = round(seat.nano * months)
        within = [row for row in rows if _is_for(seat, row)]
        covered = sum(row.cost_nano for row in within)
        tokens = sum(row.input + row.output + row.cache_read + row.cache_write for row in within)
        if seat.tokens is not None and tokens > seat.tokens * months:
            covered = int(covered * (seat.tokens * months / tokens))
        if covered - price > best_saving:
            best, best_price, best_left, best_saving = seat.name, price, cost - covered, covered - price
    requests, unpriced = sum(row.requests for row in rows), sum(row.unpriced for row in rows)
    return SeatRow(user, org, requests, cost, best, best_price, best_left, best_saving, unpriced)


def _is_for(seat: Seat, row: UsageRow) -> bool:
    """By the model that answered; by the one asked for where nobody has said which that was."""
    model = row.by[2] or row.by[3]
    return any(fnmatchcase(model, pattern.replace("[", "[[]").replace("?", "[?]")) for pattern in seat.models)
