"""What joins budgets and the ledger: the counter is filled from it, catches up with it, and is compared with it.

Rule: the ledger is the truth. A counter that does not know what was spent (it is new, was emptied, or the budget is) is
filled from it before a call is admitted; records of workers that are gone, and corrections, are posted as they come to
it; and now and then all is summed up anew (`gateway.reconciliation`).
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence

from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.gateway.budget_accounts import budgets_of
from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.gateway.reconciliation import EVERY, Reconciled, Reconciliation
from tollhouse.ledger.base import Ledger, LedgerError
from tollhouse.observe.families import Families
from tollhouse.policies.budgets import window_seconds
from tollhouse.policies.holds import Holds
from tollhouse.policies.quotes import Asked
from tollhouse.policies.run_caps import allowances_of_runs
from tollhouse.store.base import Counter, Draw, unavailable
from tollhouse.store.seeding import catch_up, seed

__all__ = ["Spending", "asked", "draws"]

log = logging.getLogger("tollhouse.gateway")

_EVERY = 2.0  # seconds between two looks at what has come to the ledger
_PATIENCE = 5.0  # seconds that a first call waits for records that are on their way to the ledger
_SOON = 0.05  # seconds, where another worker fills what is asked for


def draws(config: Config) -> bool:
    """Whether records of this configuration's calls are counted."""
    return next(budgets_of(config), None) is not None or config.runs is not None


def asked(config: Config) -> Callable[[str], tuple[Sequence[Asked], int] | None]:
    """By a model's name what it may ask, and how many of that at once: what calls may cost follows from it. Of
    thousands of models few are called."""
    models = {model.name: model for model in config.models}

    def of(name: str) -> tuple[Sequence[Asked], int] | None:
        model = models.get(name)
        if model is None:
            return None
        targets = [Asked(one.provider, one.model or "") for one in model.targets]
        targets += [Asked(one.provider, one.model or "") for one in model.fallback]
        return targets, 2 if model.hedge is not None else 1

    return of


class Spending:
    """What a worker's calls hold, and a counter that is filled from the ledger and catches up with it. serves() comes
    first, then start(). ledger: of its own, None where nothing is recorded. whole: as of LedgerHistory. lease, every:
    as of Reconciliation."""

    def __init__(
        self,
        counter: Counter,
        ledger: Ledger | None,
        families: Families,
        clock: Clock,
        whole: threading.Event | None = None,
        lease: Callable[[], Awaitable[bool]] | None = None,
        every: float = EVERY,
    ) -> None:
        self._counter = counter
        self.holds = Holds(counter, clock, doubted=families.budget_doubts.child().inc)
        families.budget_holds.reads(lambda: float(len(self.holds)))
        self._history = LedgerHistory(ledger, whole)
        self._seeded = families.budget_seeds.child("seeded")
        self._failed = families.budget_seeds.child("failed")
        self._reconciliation = Reconciliation(counter, self._history, families, lease, every)
        self._lock = asyncio.Lock()
        self._wanted = False
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def serves(self, config: Config) -> None:
        """This configuration serves now."""
        self._history.serves(config)
        self._reconciliation.serves(config)
        self._wanted = draws(config)
        known = {one.allowance: window_seconds(one.spec) for one in budgets_of(config)}
        self._counter.know(known | (allowances_of_runs(config.runs) if config.runs is not None else {}))
        if self._wanted:
            self._woken.set()

    def start(self, drained: Callable[[], bool] = lambda: True) -> None:
        """drained: whether no call goes by an earlier configuration any more."""
        self._reconciliation.start(drained)
        self._counter.follow(self._history)
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        await self._reconciliation.close()
        await self._history.close()
        await self.holds.close()

    async def open(self, draws: Sequence[Draw]) -> None:
        """Have what the draws are spent from filled. Raises Failure 503."""
        try:
            async with self._lock:
                found = await seed(self._counter, self._history, draws, _PATIENCE)
        except LedgerError as error:
            self._failed.inc()
            raise unavailable(f"spending cannot be read from the ledger: {error}", reached=False) from None
        except Failure:
            self._failed.inc()
            raise
        self._seeded.inc(found)
        if not found:
            await asyncio.sleep(_SOON)

    async def check(self) -> Reconciled:
        """Compare what was spent of each budget with the ledger, now, and put it right. Raises Failure 503."""
        try:
            return await self._reconciliation.all()
        except LedgerError as error:
            raise unavailable(f"spending cannot be read from the ledger: {error}", reached=False) from None

    async def _follow(self) -> None:
        said = False
        while True:
            await self._woken.wait()
            if not self._wanted:
                self._woken.clear()
                continue
            try:
                await catch_up(self._counter, self._history)
                said = False
            except (LedgerError, Failure) as error:
                if not said:
                    detail = error.detail if isinstance(error, Failure) else error
                    log.warning("budgets cannot catch up with the ledger: %s; it is tried again", detail)
                said = True
            except Exception:  # the root of the following task: the next round must come
                log.exception("catching up with the ledger failed")
            await asyncio.sleep(_EVERY)
