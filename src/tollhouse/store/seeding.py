"""Fill a Counter from the ledger, and have it catch up: what joins the two numbers that are said of one spending.

Rule: a sum is taken over exactly the records that the counter does not get told of itself: those up to the positions
that it had when the field was opened. So it may be done by several at once, twice, or by somebody who dies of it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from time import monotonic

from tollhouse.store.allowances import Draw, Opening, sound
from tollhouse.store.base import Counter, History, unavailable

__all__ = ["catch_up", "check", "seed"]

log = logging.getLogger("tollhouse.store")

_PAUSE = 0.05  # seconds between two looks at where the ledger is
_AT_ONCE = 500  # records


async def seed(counter: Counter, history: History, draws: Sequence[Draw], patience: float = 60.0) -> int:
    """Fill what of these draws answers OPEN; how many fields that were. 0: all are filled, or somebody else does it.

    Waits until the ledger has all records that the counter has; patience: seconds after which it goes on without those
    that have not come, which were on a disk that is lost. Raises what the two raise; then it is to be done again.
    """
    positions = await history.positions()
    openings = [(draw, one) for draw in draws for one in await counter.opening(draw, positions)]
    return len(await _fill(counter, history, openings, patience))


async def check(
    counter: Counter, history: History, draws: Sequence[Draw], patience: float = 60.0, *, strict: bool = False
) -> dict[str, int]:
    """Sum up again what was spent of these draws and put it right, while they are drawn on: for each field by how much
    the counter had too much (above 0) or too little. 0 is what is expected. Raises as `seed`.

    strict: nothing is put right while records that the counter has are not in the ledger after `patience`; raises
    Failure 503 then.
    """
    if strict:
        counted = await counter.journals()
        if counted and await _behind(history, counted, patience):
            raise unavailable("the ledger has not got all records yet; ask again later", reached=True)
    positions = await history.positions()
    openings = [(draw, one) for draw in draws for one in await counter.opening(draw, positions, again=True)]
    return await _fill(counter, history, openings, patience)


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
    counter: Counter, history: History, openings: Sequence[tuple[Draw, Opening]], patience: float
) -> dict[str, int]:
    if not openings:
        return {}
    upto: dict[str, int] = {}
    for _, opening in openings:
        for journal, seq in opening.upto.items():
            upto[journal] = max(seq, upto.get(journal, 0))
    await _reached(history, upto, patience)
    wrong = {}
    for draw, opening in openings:
        spent = await history.spent(draw, opening.window, opening.upto)
        by = await counter.seed(opening, spent)
        if by is not None:
            wrong[opening.field] = by
    return wrong


async def _reached(history: History, upto: Mapping[str, int], patience: float) -> None:
    """Return when the ledger is where the counter was, or after `patience`."""
    missing = await _behind(history, upto, patience)
    if missing:
        log.error("%d records do not come to the ledger, and count nowhere", missing)


async def _behind(history: History, upto: Mapping[str, int], patience: float) -> int:
    """How many records the ledger has not got after `patience`; 0 as soon as it is there."""
    end = monotonic() + patience
    while True:
        positions = await history.positions()
        behind = sum(max(seq - positions.get(journal, 0), 0) for journal, seq in upto.items())
        if not behind or monotonic() >= end:
            return behind
        await asyncio.sleep(_PAUSE)
