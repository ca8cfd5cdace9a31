"""Budgets against the ledger: what the counter says was spent is summed up anew, and put right where it differs.

Rule: nothing is ever expected to differ; what does is counted, logged and mended while calls go on. One node does it,
some minutes after the start and each hour, slowly. Accounts are those that the ledger lists (`budget_accounts`): about
1000 of each budget, in the window of now, and of runs those that go on. While records are still on their way to the
ledger nothing is put right.

After a change of the configuration a budget that is new, or is about somebody else now, is looked at twice. At once:
it may have an account from an earlier time, on which the calls of the meantime have not drawn; that is no fault. And
when the calls have ended that began before: what they came to is in the ledger, and was drawn on nothing. Where one
gateway after the other is started with the change, each looks a while after its start.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from random import uniform
from typing import Final, NamedTuple

from tollhouse.config.spec import Config
from tollhouse.core.errors import Failure
from tollhouse.gateway.budget_accounts import Budget, RunCap, accounted, accounts
from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.ledger.base import LedgerError
from tollhouse.observe.families import Families
from tollhouse.store.base import Counter, Draw, State
from tollhouse.store.seeding import Lost, check, nobody

__all__ = ["EVERY", "Drift", "Lease", "Reconciled", "Reconciliation", "lease_of", "reconcile"]

log = logging.getLogger("tollhouse.gateway")

EVERY: Final = 3600.0
"""Seconds between two reconciliations."""

_LOOK = 2.0  # seconds between two looks at what is due
_AT_ONCE = 25  # fields
_PAUSE = 0.1  # seconds between them, where nobody waits
_PATIENCE = 10.0  # seconds for records that are on their way
_LEASE = "budgets:reconciled"
_EACH_START = 60.0  # seconds in which of several gateways that have started one looks


_FIRST = 60.0, 300.0  # seconds after the start


class Drift(NamedTuple):
    """A key's account that was not what the ledger says. start: of its window, or of a slot of one that rolls, unix
    seconds. by: units (of money nano-dollars) that the counter had too much, below 0 too little."""

    budget: Budget | RunCap
    key: str
    start: int
    by: int


class Reconciled(NamedTuple):
    """checked: accounts, each slot of a rolling one by itself. drifts: those that were wrong, and are not any more."""

    checked: int
    drifts: list[Drift]


async def _at_once() -> None:
    await asyncio.sleep(0.0)


async def reconcile(
    counter: Counter,
    history: LedgerHistory,
    budgets: Sequence[Budget | RunCap],
    now: float,
    pause: Callable[[], Awaitable[None]] = _at_once,
    patience: float = _PATIENCE,
    lost: Lost = nobody,
) -> Reconciled:
    """Compare what was spent of these budgets with the ledger, and put it right. now: unix seconds. pause: awaited
    after some of it. patience: seconds for records that are on their way to the ledger. lost: as of
    `store.seeding.check`. Raises LedgerError and Failure 503."""
    checked, drifts = 0, []
    for budget in budgets:
        nothing: list[Draw] = []
        draws = await history.ask(partial(accounts, budget, now), nothing)
        most = max(1, _AT_ONCE // (1 + len(draws[0].earlier))) if draws else 1
        for at in range(0, len(draws), most):
            batch = draws[at : at + most]
            found = await check(counter, history, batch, patience, lost)
            checked += len(found)
            for draw in batch:
                for field, window in draw.slots:
                    if by := found.get(field, 0):
                        drifts.append(Drift(budget, draw.key, window.start, by))
            await pause()
    return Reconciled(checked, drifts)


Lease = Callable[[bool], Awaitable[bool]]
"""Whether it is this node's turn, at a comparison after its start, or one of those that come round."""


def lease_of(state: State, every: float = EVERY) -> Lease:
    """Of those that share a state one hears True in each `every`, and one of those that have started in a minute."""

    def mine(starting: bool) -> Awaitable[bool]:
        name, seconds = (f"{_LEASE}:start", _EACH_START) if starting else (_LEASE, every * 0.9)
        return state.values.add(name, state.node.encode(), seconds)

    return mine


class Reconciliation:
    """Does it `first` seconds after the start (None: one to five minutes) and each `every` seconds, where `lease` says
    so (None: always), and after changes. lost: as of `store.seeding.check`. serves() comes first."""

    def __init__(
        self,
        counter: Counter,
        history: LedgerHistory,
        families: Families,
        lease: Lease | None = None,
        every: float = EVERY,
        lost: Lost = nobody,
        first: float | None = None,
    ) -> None:
        self._counter = counter
        self._history = history
        self._lost = lost
        self._lease = lease
        # A while after the start: not at once, when there is enough to do, nor all gateways together.
        self._first = min(every, uniform(*_FIRST)) if first is None else first  # noqa: S311 - spreads load
        self._every = every
        self._drifted = families.budget_drift
        self._done = families.budget_reconciliations.child("ok")
        self._failed = families.budget_reconciliations.child("failed")
        self._budgets: dict[str, Budget | RunCap] | None = None
        self._added: dict[str, Budget | RunCap] = {}
        self._fresh: dict[str, Budget | RunCap] = {}  # those of them that were not looked at yet
        self._woken = asyncio.Event()
        self._drained: Callable[[], bool] = lambda: True
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def serves(self, config: Config) -> None:
        """This configuration serves now; calls may still go by the one before."""
        before, self._budgets = self._budgets, {budget.allowance: budget for budget in accounted(config)}
        if before is not None:
            known = {name: _whose(one) for name, one in before.items()}
            added = {name: one for name, one in self._budgets.items() if known.get(name) != _whose(one)}
            self._added |= added
            self._fresh |= added
            self._woken.set()
        for those in (self._added, self._fresh):
            for name in list(those):
                if name in self._budgets:
                    those[name] = self._budgets[name]
                else:
                    del those[name]
        for name in self._budgets:
            self._drifted.child(name)  # 0 is said, too

    def start(self, drained: Callable[[], bool]) -> None:
        self._drained = drained
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    async def all(self, pause: float = 0.0) -> Reconciled:
        """All budgets that serve. Raises LedgerError and Failure 503."""
        return await self._reconcile(list((self._budgets or {}).values()), pause)

    async def _reconcile(self, budgets: Sequence[Budget | RunCap], pause: float) -> Reconciled:
        async with self._lock:
            found = await self._compare(budgets, partial(self._pause, pause))
        for drift in found.drifts:
            allowance = drift.budget.allowance
            self._drifted.child(allowance).inc(abs(drift.by))
            much = "much" if drift.by > 0 else "little"
            log.error(
                "budget %s: of key %r %d too %s was counted as spent; put right", allowance, drift.key, abs(drift.by),
                much,
            )  # fmt: skip
        return found

    async def _compare(
        self, budgets: Sequence[Budget | RunCap], pause: Callable[[], Awaitable[None]] = _at_once
    ) -> Reconciled:
        serving = self._budgets or {}
        those = [one for one in budgets if one.allowance in serving]
        try:
            found = await reconcile(self._counter, self._history, those, time.time(), pause, lost=self._lost)
        except (LedgerError, Failure):
            self._failed.inc()
            raise
        self._done.inc()
        return found

    async def _pause(self, seconds: float) -> None:
        """What is fresh waits for no other: calls draw on it."""
        await self._freshen()
        await asyncio.sleep(seconds)

    async def _freshen(self) -> None:
        while self._fresh:
            fresh = dict(self._fresh)
            for drift in (await self._compare(list(fresh.values()))).drifts:
                log.info("budget %s: of key %r %d was spent without it", drift.budget.allowance, drift.key, -drift.by)
            _forget(self._fresh, fresh)

    async def _follow(self) -> None:
        last = time.monotonic() - self._every + self._first
        starting = True
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), min(_LOOK, self._every))
            self._woken.clear()
            try:
                await self._freshen()
                if self._added and self._drained():
                    added = {name: one for name, one in self._added.items() if name not in self._fresh}
                    await self._reconcile(list(added.values()), _PAUSE)
                    _forget(self._added, added)
                if self._budgets and time.monotonic() - last >= self._every:
                    last = time.monotonic()
                    if self._lease is None or await self._lease(starting):
                        await self.all(_PAUSE)
                    starting = False
            except (LedgerError, Failure) as error:
                detail = error.detail if isinstance(error, Failure) else error
                log.warning("budgets cannot be compared with the ledger: %s", detail)
            except Exception:  # the task's root: the next hour must come
                log.exception("comparing budgets with the ledger failed")


def _forget(those: dict[str, Budget | RunCap], done: Mapping[str, Budget | RunCap]) -> None:
    """Of those what was done, but for what has come anew meanwhile."""
    for name, one in done.items():
        if those.get(name) is one:
            del those[name]


def _whose(one: Budget | RunCap) -> object:
    return (one.spec.per, one.where) if isinstance(one, Budget) else one
