"""What joins budgets and the ledger: the counter is filled from it, catches up with it, and is compared with it.

Rule: the ledger is the truth. A counter that does not know what was spent (it is new, was emptied, or the budget is) is
filled from it before a call is admitted; records of workers that are gone, and corrections, are posted as they come to
it; and now and then all is summed up anew (`gateway.reconciliation`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.gateway.budget_accounts import budgets_of
from tollhouse.gateway.late_journals import LateJournals
from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.gateway.reconciliation import EVERY, Lease, Reconciled, Reconciliation
from tollhouse.ledger.base import Ledger, LedgerError
from tollhouse.ledger.ship import Shipper
from tollhouse.observe.families import Families
from tollhouse.policies.budgets import window_seconds
from tollhouse.policies.holds import Holds
from tollhouse.policies.quotes import Asked, Changes
from tollhouse.policies.run_caps import allowances_of_runs
from tollhouse.policies.transform import changes_of
from tollhouse.store.base import Counter, Draw, KeyValue, unavailable
from tollhouse.store.seeding import BEHIND, catch_up, seed

__all__ = ["Spending", "asked", "draws"]

log = logging.getLogger("tollhouse.gateway")

_EVERY = 2.0  # seconds between two looks at what has come to the ledger
_PATIENCE = 5.0
_AGAIN = 2.0  # seconds in which those that come after one that has waited in vain do not wait
_TOGETHER = 256  # draws that are filled at once
_MOST = 64  # fillings that wait for their turn
_SOON = 0.05  # seconds, where another worker fills what is asked for


def draws(config: Config) -> bool:
    """Whether records of this configuration's calls are counted."""
    return next(budgets_of(config), None) is not None or config.runs is not None


def asked(config: Config) -> Callable[[str], tuple[Sequence[Asked], int, Changes] | None]:
    """By a model's name what it may ask, how many of that at once, and what transforms make of a request: what calls
    may cost follows from it. Of thousands of models few are called."""
    models = {model.name: model for model in config.models}

    def of(name: str) -> tuple[Sequence[Asked], int, Changes] | None:
        model = models.get(name)
        if model is None:
            return None
        targets = [Asked(one.provider, one.model or "") for one in model.targets]
        targets += [Asked(one.provider, one.model or "") for one in model.fallback]
        changes = changes_of((*(config.transform or ()), *(model.transform or ())))
        return targets, 2 if model.hedge is not None else 1, changes

    return of


class _Batch:
    """Draws that are filled together. found: how many fields that were, once it is done."""

    __slots__ = ("done", "draws", "failure", "found")

    def __init__(self) -> None:
        self.draws: dict[str, Draw] = {}
        self.failure: Failure | None = None
        self.found = 0
        self.done = asyncio.Event()


class Spending:
    """What a worker's calls hold, and a counter that is filled from the ledger and catches up with it. serves() comes
    first, then start(). ledger: of its own, None where nothing is recorded. shipper: of the worker's journal. lease,
    every: as of Reconciliation. values: as of LateJournals. patience: seconds that a
    first call waits for records that are on their way to the ledger."""

    def __init__(
        self,
        counter: Counter,
        ledger: Ledger | None,
        families: Families,
        clock: Clock,
        shipper: Shipper | None = None,
        lease: Lease | None = None,
        every: float = EVERY,
        values: KeyValue | None = None,
        patience: float = _PATIENCE,
    ) -> None:
        self._counter = counter
        self.holds = Holds(counter, clock, doubted=families.budget_doubts.child().inc)
        families.budget_holds.reads(lambda: float(len(self.holds)))
        here = counter.allowances()
        if here is not None:
            families.budget_accounts.reads(lambda: float(here.accounts))
            families.budget_account_bytes.reads(lambda: float(here.size))
            families.budget_accounts_full.reads(lambda: float(here.refused))
        self._history = LedgerHistory(ledger, shipper)
        self._late = LateJournals(self._history, shipper, values)
        self._in_vain = -_AGAIN
        self._patience = patience
        self._seeded = families.budget_seeds.child("seeded")
        self._failed = families.budget_seeds.child("failed")
        comparing = self._late.left_out_of_comparing
        self._reconciliation = Reconciliation(counter, self._history, families, lease, every, comparing)
        self._batches: deque[_Batch] = deque()
        self._filler: asyncio.Task[None] | None = None
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
        tasks = [task for task in (self._task, self._filler) if task is not None]
        self._task = self._filler = None
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for batch in self._batches:  # who waits is not let in any more
            batch.failure = unavailable("the gateway is stopping", reached=False)
            batch.done.set()
        await self._reconciliation.close()
        await self._history.close()
        await self.holds.close()

    async def open(self, draws: Sequence[Draw]) -> None:
        """Have what the draws are spent from filled. Who asks while that is done for others is served with all who ask
        meanwhile: a filling takes about as long for many as for one, and does not end with one of them. Raises Failure
        503."""
        batches = self._batches
        if not batches or len(batches[-1].draws) >= _TOGETHER:
            if len(batches) >= _MOST:
                raise unavailable("too many are waiting for what was spent to be read", reached=False)
            batches.append(_Batch())
        batch = batches[-1]
        for draw in draws:
            batch.draws[draw.field] = draw
        if self._filler is None or self._filler.done():
            self._filler = asyncio.get_running_loop().create_task(self._fill_all())
        await batch.done.wait()
        if batch.failure is not None:
            raise batch.failure.copy()
        if not batch.found:
            await asyncio.sleep(_SOON)

    async def _fill_all(self) -> None:
        while self._batches:
            batch = self._batches.popleft()
            try:
                await self._fill(batch)
            except asyncio.CancelledError:
                batch.failure = unavailable("the gateway is stopping", reached=False)
                raise
            except Exception:  # a task's root: who waits must be told
                log.exception("spending could not be filled")
                batch.failure = unavailable("spending could not be filled", reached=False)
            finally:
                if batch.failure is not None:
                    self._failed.inc()
                batch.done.set()

    async def _fill(self, batch: _Batch) -> None:
        patience = self._patience if monotonic() - self._in_vain >= _AGAIN else 0.0
        draws = list(batch.draws.values())
        try:
            batch.found = await seed(self._counter, self._history, draws, patience, self._late.left_out)
        except LedgerError as error:
            batch.failure = unavailable(f"spending cannot be read from the ledger: {error}", reached=False)
        except Failure as failure:
            if failure.code == BEHIND:
                self._in_vain = monotonic()
            batch.failure = failure.copy()
        else:
            self._seeded.inc(batch.found)

    async def run_began(self, run: str, since: float) -> tuple[float, str] | None:
        """A `policies.base.RunBegan`."""
        try:
            return await self._history.run_began(run, since)
        except LedgerError as error:
            raise unavailable(f"when a run began cannot be read from the ledger: {error}", reached=False) from None

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
                await self._late.tell()
                await catch_up(self._counter, self._history)
                await self._history.tidy()
                said = False
            except (LedgerError, Failure) as error:
                if not said:
                    detail = error.detail if isinstance(error, Failure) else error
                    log.warning("budgets cannot catch up with the ledger: %s; it is tried again", detail)
                said = True
            except Exception:  # the root of the following task: the next round must come
                log.exception("catching up with the ledger failed")
            await asyncio.sleep(_EVERY)
