"""Fill a Counter from the ledger, and have it catch up: what joins the two numbers that are said of one spending.

Rule: a sum is taken over exactly the records that the counter does not get told of itself: those up to the positions
that it had when the field was opened. So it may be done by several at once, twice, or by somebody who dies of it. While
one of these records cannot be asked for nothing is filled: who would begin too low is refused.

What is not filled and needs none goes on meanwhile: a field that was filled, and one whose window begins after its
allowance was known to all, on which no record can have drawn that was not posted.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Final

from tollhouse.core.errors import Failure, Reason
from tollhouse.store.allowances import Draw, Opening, sound
from tollhouse.store.base import Counter, History

__all__ = ["BEHIND", "Lost", "Pause", "catch_up", "check", "nobody", "seed"]

log = logging.getLogger("tollhouse.store")

_PAUSE = 0.05  # seconds between two looks at where the ledger is
_SHALLOW = 0.75  # seconds after which what the ledger has not got is looked for elsewhere
_AT_ONCE = 500  # records
_SUMS = 2000  # asked for at once
_OTHERS = 2.5  # seconds in which each worker tells a store that began anew what it has lost

BEHIND: Final = "ledger_behind"
"""The code of the Failure of records that do not come."""

Lost = Callable[[Mapping[str, int]], Awaitable[Collection[str]]]
"""Told which journals' records have not come, and how far each is: those that nobody waits for."""

Pause = Callable[[float], Awaitable[object]]
"""Awaited for so many seconds."""


async def nobody(_: Mapping[str, int]) -> Collection[str]:
    """A Lost: all are waited for."""
    return ()


async def seed(
    counter: Counter,
    history: History,
    draws: Sequence[Draw],
    patience: float = 60.0,
    lost: Lost = nobody,
    *,
    pause: Pause = asyncio.sleep,
) -> int:
    """Fill what of these draws answers OPEN; how many fields that were. 0: all are filled, or somebody else does it.

    Waits until the history has all records that the counter has; patience: seconds after which it gives up; lost:
    says which are not waited for; pause: lets the others tell a store that began anew what it has lost. Raises Failure
    503 then, and what the two raise; it is to be done again.
    """
    counted = await counter.journals()
    if counted is not None:  # before anything is opened, or the next one who asks would wait for this one
        await _reached(history, counted, patience, lost)
    positions = await history.positions(deep=counted is None)
    openings = [(draw, one) for draw in draws for one in await counter.opening(draw, positions)]
    age = min((one.age for _, one in openings), default=_OTHERS)
    if age < _OTHERS and counter.nodes > 1:
        # What others have counted, and the store has lost with the ledger behind, is with them alone.
        await pause(_OTHERS - age)
    return len(await _fill(counter, history, openings, patience, lost))


async def check(
    counter: Counter, history: History, draws: Sequence[Draw], patience: float = 60.0, lost: Lost = nobody
) -> dict[str, int]:
    """Sum up again what was spent of these draws and put it right, while they are drawn on: for each field by how much
    the counter had too much (above 0) or too little. 0 is what is expected. Waits and raises as `seed`."""
    counted = await counter.journals()
    if counted:
        await _reached(history, counted, patience, lost)
    positions = await history.positions()
    openings = [(draw, one) for draw in draws for one in await counter.opening(draw, positions, again=True)]
    return await _fill(counter, history, openings, patience, lost)


async def catch_up(counter: Counter, history: History, batch: int = _AT_ONCE) -> int:
    """Post what the ledger has and the counter does not: of workers that are gone, or were apart from it. How many
    records that were. Raises as `seed`."""
    counted = await counter.journals()
    if counted is None:
        return 0
    found = 0
    for journal, last in (await history.positions()).items():
        position = counted.get(journal, 0)
        while position < last:
            postings = await history.posts(journal, position, batch)
            reached = postings[-1].seq if len(postings) >= batch else last
            postings = [sound(posting) for posting in postings if posting.seq <= reached]
            now = await counter.posted(journal, position, reached, postings)
            if now < position:
                break  # it has just lost more: the next time
            found += len(postings)
            position = now
    return found


async def _fill(
    counter: Counter, history: History, openings: Sequence[tuple[Draw, Opening]], patience: float, lost: Lost
) -> dict[str, int]:
    if not openings:
        return {}
    upto: dict[str, int] = {}
    for _, opening in openings:
        for journal, seq in opening.upto.items():
            upto[journal] = max(seq, upto.get(journal, 0))
    await _reached(history, upto, patience, lost)
    wrong = {}
    for at in range(0, len(openings), _SUMS):
        part = openings[at : at + _SUMS]
        sums = await history.spent([(draw, opening.window, opening.upto) for draw, opening in part])
        for (_, opening), spent in zip(part, sums, strict=True):
            by = await counter.seed(opening, spent)
            if by is not None:
                wrong[opening.field] = by
    return wrong


async def _reached(history: History, upto: Mapping[str, int], patience: float, lost: Lost) -> None:
    """Return when the history is where the counter was. Raises Failure 503 after `patience`."""
    end = monotonic() + patience
    shallow = monotonic() + min(_SHALLOW, patience)
    while True:
        now = monotonic()
        positions = await history.positions(deep=history.is_stuck or now >= shallow)
        there = {journal: positions.get(journal, 0) for journal in upto}
        behind = {journal: position for journal, position in there.items() if position < upto[journal]}
        if not behind or not (behind.keys() - set(await lost(behind))):
            return
        if now >= end:
            raise _late(sum(upto[journal] - position for journal, position in behind.items()))
        await asyncio.sleep(_PAUSE)


def _late(missing: int) -> Failure:
    return Failure(
        503,
        Reason.OVERLOADED,
        "what was spent before is not known yet, since records have not come to the ledger; try again later",
        code=BEHIND,
        detail=f"{missing} records that are counted are not in the ledger yet",
        retry_after=5.0,
    )
