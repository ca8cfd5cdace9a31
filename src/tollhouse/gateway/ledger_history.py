"""The ledger, as counters of spending are filled from it: with what this machine's journals have beyond it.

Rule: one ledger of its own, asked in one thread; what it is asked never holds up the event loop. A sum is exact up to
the positions that it is asked for, wherever the records are by then: the ledger's part ends where the ledger is known
to be, and the rest is read from the journals (`unshipped`). So a ledger that can be read and takes nothing (a
replica, a full disk, a locked file) keeps nobody out, and a process that was killed has left nothing uncounted. What
the journals of other machines have is known to those alone; it is for the asker to wait (`store.seeding`).
"""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Final, TypeVar

from tollhouse.config.spec import Config
from tollhouse.gateway.budget_accounts import UNITS, Budget, budgets_of
from tollhouse.gateway.unshipped import Unshipped
from tollhouse.ledger.base import Ledger, LedgerError, Post
from tollhouse.ledger.ship import Shipper
from tollhouse.store.base import Draw, Posting, Window

__all__ = ["LedgerHistory"]

T = TypeVar("T")

_PATIENCE: Final = 5.0  # seconds
_PAUSE: Final = 0.02
_FOREVER: Final = 1 << 62

Sum = Callable[[Ledger, Mapping[str, int]], int]


class LedgerHistory:
    """A `store.base.History` of a ledger; None knows nothing. Raises LedgerError. shipper: of this process's journal;
    until it has adopted what was left before, the journals are read, too. journals: the directory of this machine's,
    the shipper's unless given; None: there is none."""

    def __init__(self, ledger: Ledger | None, shipper: Shipper | None = None, journals: Path | None = None) -> None:
        self._ledger = ledger
        self._shipper = shipper
        if journals is None and shipper is not None:
            journals = shipper.directory
        self._thread = None if ledger is None else ThreadPoolExecutor(1, "tollhouse-spending")
        self._is_open = False
        self._serving: dict[str, Budget] = {}
        self._budgets: dict[str, Budget] = {}
        self._unshipped = None if journals is None else Unshipped(journals)
        self._has_waited = False
        self._known: Mapping[str, int] = {}  # where the ledger was, the last time it was asked

    @property
    def is_stuck(self) -> bool:
        """Whether the ledger takes no records of ours now."""
        return self._shipper is not None and self._shipper.error != ""

    def serves(self, config: Config) -> None:
        serving = {budget.allowance: budget for budget in budgets_of(config)}
        # Calls and comparisons of the configuration before go on, and ask what it says.
        self._serving, self._budgets = serving, {**self._serving, **serving}

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None or self._ledger is None:
            return
        await asyncio.get_running_loop().run_in_executor(thread, self._end)
        thread.shutdown(wait=False)

    async def positions(self, deep: bool = False) -> Mapping[str, int]:
        nothing: Mapping[str, int] = {}
        return await self.ask(lambda ledger: self._positions(ledger, deep), nothing)

    async def posts(self, journal: str, after: int, most: int) -> Sequence[Posting]:
        nothing: list[Post] = []
        found = await self.ask(lambda ledger: self._posts(ledger, journal, after, most), nothing)
        return [Posting(post.seq, post.hold, post.draws) for post in found]

    async def spent(self, asked: Sequence[tuple[Draw, Window, Mapping[str, int]]]) -> Sequence[int]:
        return await self.ask(lambda ledger: self._spent(ledger, asked), [0] * len(asked))

    def _question(self, draw: Draw, window: Window) -> Sum:
        """What records come to, up to positions."""
        since, until = window.start * 1_000_000, window.end * 1_000_000 if window.end else _FOREVER
        budget = self._budgets.get(draw.allowance)
        unit = UNITS.get(draw.allowance.partition(":")[0])
        where = budget.whose(draw.key) if budget is not None else None
        if where is None or unit is None:
            field = f"{draw.allowance}|{draw.key}|{window.start}"
            return lambda ledger, upto: ledger.drawn(field, upto)
        return lambda ledger, upto: ledger.spent(unit, since, until, where, upto)

    async def ask(self, question: Callable[[Ledger], T], nothing: T) -> T:
        """What the ledger answers, in its thread; `nothing` where there is none. Raises LedgerError."""
        ledger, thread = self._ledger, self._thread
        if ledger is None:
            return nothing
        if thread is None:
            raise LedgerError("the ledger is closed")
        return await asyncio.get_running_loop().run_in_executor(thread, self._asked, ledger, question)

    async def identity(self) -> str:
        """Which ledger it is; "" where there is none. Raises LedgerError."""
        return await self.ask(lambda ledger: ledger.identity(), "")

    async def closed(self, journals: Collection[str]) -> set[str]:
        """Those of them that will have no more records. Raises LedgerError."""
        nothing: set[str] = set()
        return await self.ask(lambda ledger: ledger.closed(journals), nothing)

    async def run_began(self, run: str, since: float) -> tuple[float, str] | None:
        """When the first call of a run was admitted, of those since then, unix seconds, and which run began it. Raises
        LedgerError."""
        found = await self.ask(lambda ledger: self._run_began(ledger, run, int(since * 1e6)), None)
        return None if found is None else (found[0] / 1e6, found[1])

    async def tidy(self) -> None:
        """Forget what was read of journals, once the ledger has it. Raises LedgerError."""
        unshipped = self._unshipped
        if unshipped is not None and unshipped.is_open:
            await self.ask(lambda ledger: unshipped.tidy(ledger.positions()), None)

    # ---- in the ledger's thread
    def _asked(self, ledger: Ledger, question: Callable[[Ledger], T]) -> T:
        again = self._is_open  # a line that was good is made anew, once
        while True:
            if not self._is_open:
                ledger.open()
                self._is_open = True
            try:
                return question(ledger)
            except LedgerError:
                self._is_open = False
                ledger.close()
                if not again:
                    raise
                again = False

    def _end(self) -> None:
        if self._unshipped is not None:
            self._unshipped.close()
        if self._is_open and self._ledger is not None:
            self._ledger.close()

    def _positions(self, ledger: Ledger, deep: bool) -> Mapping[str, int]:
        is_whole = self._shipper is None or self._waited_for(self._shipper)
        self._known = known = ledger.positions()
        if (is_whole and not deep) or self._unshipped is None:
            if not is_whole:
                raise LedgerError("what a process that is gone has left is not in it yet")
            return known
        if not self._unshipped.read(known) and not is_whole:
            raise LedgerError("what a process that is gone has left is not in it yet, and is too much to be read")
        ends = self._unshipped.ends()
        return known | {journal: end for journal, end in ends.items() if end > known.get(journal, 0)}

    def _run_began(self, ledger: Ledger, run: str, since_us: int) -> tuple[int, str] | None:
        self._positions(ledger, self.is_stuck)
        known = ledger.run_began(run, since_us)
        beyond = None if self._unshipped is None else self._unshipped.run_began(run, since_us)
        return min((one for one in (known, beyond) if one is not None), default=None)

    def _waited_for(self, shipper: Shipper) -> bool:
        """Whether the ledger has what processes had left that were gone at the start. It is waited for once: what is
        adopted has more in it than the files, the calls that were under way."""
        end = monotonic() + (0.0 if self._has_waited else _PATIENCE)
        while not shipper.caught_up.wait(_PAUSE if monotonic() < end else 0.0):
            if shipper.error or monotonic() >= end:
                self._has_waited = True
                return False
        return True

    def _posts(self, ledger: Ledger, journal: str, after: int, most: int) -> list[Post]:
        unshipped = self._unshipped
        if unshipped is None or not len(unshipped):
            return ledger.posts(journal, after, most)
        known = ledger.positions().get(journal, 0)
        found = [post for post in ledger.posts(journal, after, most) if post.seq <= known] if known > after else []
        if len(found) < most:
            found += unshipped.posts(journal, max(after, known), most - len(found))
        return found

    def _spent(self, ledger: Ledger, asked: Sequence[tuple[Draw, Window, Mapping[str, int]]]) -> Sequence[int]:
        sums: dict[int, int] = {}
        groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}  # of one budget: places in `asked`
        for n, (draw, _, _) in enumerate(asked):
            budget = self._budgets.get(draw.allowance)
            where = None if budget is None else budget.whose(draw.key)
            if where and "tag" not in where:
                groups.setdefault((draw.allowance, tuple(where)), []).append(n)
        for (allowance, by), places in groups.items():
            if len(places) > 1:
                sums |= self._together(ledger, self._budgets[allowance], by, places, asked)
        for n, (draw, window, upto) in enumerate(asked):
            if n not in sums:
                sums[n] = self._sum(ledger, self._question(draw, window), upto)
        return [max(sums[n], 0) for n in range(len(asked))]

    def _together(
        self,
        ledger: Ledger,
        budget: Budget,
        by: tuple[str, ...],
        places: Sequence[int],
        asked: Sequence[tuple[Draw, Window, Mapping[str, int]]],
    ) -> dict[int, int]:
        """Sums of many accounts of one budget in one look at the records, by their places; none where they cannot be
        had so."""
        upto = asked[places[0]][2]
        windows = sorted({asked[n][1] for n in places})
        joined = all(one.end == after.start for one, after in pairwise(windows))
        unit = UNITS.get(budget.unit)
        if not joined or unit is None or not windows[-1].end or any(asked[n][2] != upto for n in places):
            return {}
        if _beyond(upto, self._known) and _beyond(upto, ledger.positions()):
            return {}  # some are in journals
        bounds = [one.start * 1_000_000 for one in windows] + [windows[-1].end * 1_000_000]
        keys = {n: tuple((budget.whose(asked[n][0].key) or {})[name] for name in by) for n in places}
        found = ledger.spent_each(unit, bounds, by, list(dict.fromkeys(keys.values())), {}, upto)
        return {n: found[keys[n]][windows.index(asked[n][1])] if keys[n] in found else 0 for n in places}

    def _sum(self, ledger: Ledger, question: Sum, upto: Mapping[str, int]) -> int:
        unshipped = self._unshipped
        if unshipped is None or not _beyond(upto, self._known):
            return question(ledger, upto)
        known = self._known = ledger.positions()
        if not _beyond(upto, known):
            return question(ledger, upto)
        unshipped.read(known)
        # After the files were read: what has been deleted from them by now is in the ledger up to there.
        known = self._known = ledger.positions()
        there = {journal: min(seq, known.get(journal, 0)) for journal, seq in upto.items()}
        return question(ledger, there) + unshipped.sum(question, known, _beyond(upto, known))


def _beyond(upto: Mapping[str, int], positions: Mapping[str, int]) -> dict[str, int]:
    return {journal: seq for journal, seq in upto.items() if seq > positions.get(journal, 0)}
