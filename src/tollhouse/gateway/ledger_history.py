"""The ledger, as counters of spending are filled from it.

Rule: one ledger of its own, asked in one thread; what it is asked never holds up the event loop.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from tollhouse.config.spec import Config
from tollhouse.gateway.budget_accounts import UNITS, Budget, budgets_of
from tollhouse.ledger.base import Ledger, LedgerError, Post
from tollhouse.store.base import Draw, Posting, Window

__all__ = ["LedgerHistory"]

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that a first call waits for records that are on their way to the ledger
_FOREVER: Final = 1 << 62


class LedgerHistory:
    """A `store.base.History` of a ledger; None knows nothing. Raises LedgerError. whole: set once the ledger has what
    processes had left that were gone at the start: before that it is not asked."""

    def __init__(self, ledger: Ledger | None, whole: threading.Event | None = None) -> None:
        self._ledger = ledger
        self._whole = whole
        self._thread = None if ledger is None else ThreadPoolExecutor(1, "tollhouse-spending")
        self._is_open = False
        self._budgets: dict[str, Budget] = {}

    def serves(self, config: Config) -> None:
        self._budgets = {budget.allowance: budget for budget in budgets_of(config)}

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None or self._ledger is None:
            return
        if self._is_open:
            await asyncio.get_running_loop().run_in_executor(thread, self._ledger.close)
        thread.shutdown(wait=False)

    async def positions(self) -> Mapping[str, int]:
        return await self.ask(lambda ledger: ledger.positions(), {})

    async def posts(self, journal: str, after: int, most: int) -> Sequence[Posting]:
        nothing: list[Post] = []
        found = await self.ask(lambda ledger: ledger.posts(journal, after, most), nothing)
        return [Posting(post.seq, post.hold, post.draws) for post in found]

    async def spent(self, draw: Draw, window: Window, upto: Mapping[str, int]) -> int:
        since, until = window.start * 1_000_000, window.end * 1_000_000 if window.end else _FOREVER
        budget = self._budgets.get(draw.allowance)
        unit = UNITS.get(draw.allowance.partition(":")[0])
        where = budget.whose(draw.key) if budget is not None else None
        if where is None or unit is None:
            field = f"{draw.allowance}|{draw.key}|{window.start}"
            return max(await self.ask(lambda ledger: ledger.drawn(field, upto), 0), 0)
        return max(await self.ask(lambda ledger: ledger.spent(unit, since, until, where, upto), 0), 0)

    async def ask(self, question: Callable[[Ledger], T], nothing: T) -> T:
        """What the ledger answers, in its thread; `nothing` where there is none. Raises LedgerError."""
        ledger, thread = self._ledger, self._thread
        if ledger is None:
            return nothing
        if thread is None:
            raise LedgerError("the ledger is closed")
        return await asyncio.get_running_loop().run_in_executor(thread, self._asked, ledger, question)

    def _asked(self, ledger: Ledger, question: Callable[[Ledger], T]) -> T:
        """In the ledger's thread."""
        if not self._is_open:
            ledger.open()
            self._is_open = True
        if self._whole is not None and not self._whole.wait(_PATIENCE):
            raise LedgerError("what a process that is gone has left is not in it yet")
        try:
            return question(ledger)
        except LedgerError:
            self._is_open = False  # the next question opens it anew
            ledger.close()
            raise
