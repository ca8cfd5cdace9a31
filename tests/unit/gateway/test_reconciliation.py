"""Budgets against a real ledger: what was counted wrong is found, told and put right; what is not there yet is waited
for."""

from asyncio import sleep
from collections.abc import Iterator
from pathlib import Path
from re import search
from time import time
from typing import Any

import msgspec
import pytest
from tests.fixtures.gateway import until

from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.gateway.budget_accounts import accounted, budgets_of
from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.gateway.reconciliation import Reconciliation, lease_of, reconcile
from tollhouse.gateway.spending import Spending
from tollhouse.ledger.base import Entry
from tollhouse.ledger.records import USAGE, UsageRecord
from tollhouse.ledger.sqlite import SqliteLedger
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.runs import RunsSpec
from tollhouse.policies.windows import clock_of
from tollhouse.store.base import Draw, Window, life
from tollhouse.store.memory import MemoryCounter, MemoryState
from tollhouse.store.seeding import seed

pytestmark = pytest.mark.anyio

NOW = 1_790_000_000.0
JOURNAL = "a" * 32
MONEY = "{per: user, usd: 10, window: year, name: money}"
ROLLING = "{per: user, calls: 10, window: {rolling: 30d}, name: last}"


def config_of(*budgets: str) -> Config:
    text = "ledger: sqlite:tollhouse.db\nproviders: {one: {kind: openai, api_key: k}}\n"
    text += "models: [{name: m, targets: [{provider: one}]}]\n"
    return parse(f"{text}budgets: [{', '.join(budgets)}]", "t.yaml", {}).config


def draw_of(config: Config, name: str, now: float = NOW) -> Draw:
    budget = next(one for one in budgets_of(config) if one.spec.name == name)
    start, end, earlier = clock_of(budget.spec.window, budget.spec.zone).at(now)
    return Draw(budget.allowance, "ada", 1, None, Window(start, end), earlier)


class Books:
    """A ledger's file, and records put into it."""

    def __init__(self, where: Path) -> None:
        self.file = where / "tollhouse.db"
        self.ledger = SqliteLedger(self.file)
        self.ledger.open()

    def ship(self, at: float, *draws: Draw, cost: int = 7, run: str = "") -> int:
        seq = self.ledger.position(JOURNAL) + 1
        fields: dict[str, Any] = {"outcome": "ok", "user": "ada", "model_asked": "m", "operation": "chat"}
        drawn = tuple((draw.field, cost if draw.allowance.startswith("usd") else 1) for draw in draws)
        one = UsageRecord(admitted_at=int(at * 1e6), ended_at=int(at * 1e6), cost_nano=cost, draws=drawn,
                          run_id=run, **fields)  # fmt: skip
        self.ledger.ship(JOURNAL, [Entry(seq, USAGE, msgspec.json.encode(one))])
        return seq


@pytest.fixture
def books(tmp_path: Path) -> Iterator[Books]:
    one = Books(tmp_path)
    yield one
    one.ledger.close()


async def test_what_differs_is_found_and_put_right_while_calls_go_on(books: Books) -> None:
    config = config_of(MONEY, ROLLING)
    counter = MemoryCounter(Clock(), wall=lambda: NOW)
    history = LedgerHistory(SqliteLedger(books.file))
    history.serves(config)
    money, last = draw_of(config, "money"), draw_of(config, "last")
    books.ship(NOW, money, last)
    await seed(counter, history, [money, last])
    draws = counter.allowances()
    draws.admit("held", (), [money, last])
    counter.post(JOURNAL, books.ship(NOW, money, last), "", [(money.field, 40), (last.field, 1)])
    counter.post(JOURNAL, books.ship(NOW, last, cost=0), "", [])
    assert draws.admit("x", (), [money, last]).used == [7 + 40 + 2, 2 + 2]
    counter.void("x")
    found = await reconcile(counter, history, list(budgets_of(config)), NOW)
    assert {(one.budget.spec.name, one.key, one.start): one.by for one in found.drifts} == {
        ("money", "ada", money.window.start): 33, ("last", "ada", last.window.start): -1,
    }  # fmt: skip
    assert found.checked == 1 + len(last.slots)
    assert draws.admit("y", (), [money, last]).used == [7 + 7 + 2, 3 + 2]  # what is held is as it was
    assert (await reconcile(counter, history, list(budgets_of(config)), NOW)).drifts == []
    await history.close()
    await counter.close()


async def test_what_no_column_says_and_runs_are_compared_by_what_records_drew(books: Books) -> None:
    now = time()
    config = config_of("{per: 'request.headers[\"x-p\"]', usd: 10, window: year, name: cel}")
    config = config.model_copy(update={"runs": RunsSpec(calls=5, usd=2.0, parallel=3)})
    found = list(accounted(config))
    assert [one.allowance for one in found] == ["usd:top/cel:year", "calls:run:86400s", "usd:run:86400s"]
    counter = MemoryCounter(Clock(), wall=lambda: now)
    history = LedgerHistory(SqliteLedger(books.file))
    history.serves(config)
    start, end, _ = clock_of("year", "UTC").at(now)
    cel = Draw(found[0].allowance, "p", 1, None, Window(start, end))
    calls, usd = (Draw(one.allowance, "key:ci/r|1", 1, None, *life(now, 86400)) for one in found[1:])
    books.ship(now, cel, calls, usd, run="key:ci/r|1")
    draws = [cel, calls, usd]
    await seed(counter, history, draws)  # after a restart, or when the state was emptied
    assert counter.allowances().admit("x", (), draws).used == [8, 2, 8]
    counter.void("x")
    wrong = [(cel.field, 1), (calls.field, 1), (usd.field, 1)]
    counter.post(JOURNAL, books.ship(now), "", wrong)
    drifts = (await reconcile(counter, history, found, now)).drifts
    assert [(one.budget.allowance, one.budget.unit, one.key, one.by) for one in drifts] == [
        (found[0].allowance, "usd", "p", 1),
        (calls.allowance, "calls", calls.key, 1),
        (usd.allowance, "usd", usd.key, 1),
    ]  # fmt: skip
    assert counter.allowances().admit("y", (), draws).used == [8, 2, 8]
    await history.close()
    await counter.close()


async def test_nothing_is_put_right_by_a_ledger_that_is_behind(books: Books) -> None:
    config = config_of(MONEY)
    counter = MemoryCounter(Clock(), wall=lambda: NOW)
    history = LedgerHistory(SqliteLedger(books.file))
    history.serves(config)
    money = draw_of(config, "money")
    books.ship(NOW, money)
    await seed(counter, history, [money])
    counter.post(JOURNAL, 2, "", [(money.field, 5)])
    with pytest.raises(Failure) as caught:
        await reconcile(counter, history, list(budgets_of(config)), NOW, patience=0.0)
    assert "are not in the ledger yet" in caught.value.detail
    assert caught.value.code == "ledger_behind"
    assert counter.allowances().admit("x", (), [money]).used == [7 + 5 + 1]
    books.ship(NOW, money, cost=5)
    assert (await reconcile(counter, history, list(budgets_of(config)), NOW, patience=0.0)).drifts == []
    await history.close()
    await counter.close()


async def test_a_budget_that_came_by_a_change_is_compared_when_earlier_calls_have_ended(books: Books) -> None:
    """A call that began before is in the ledger when it ends, and drew on nothing."""
    clock, metrics, now = Clock(), Metrics(), time()
    counter = MemoryCounter(clock)
    drained: list[int] = []
    turns: list[int] = []

    async def lease(_: bool) -> bool:
        turns.append(1)
        return False  # another node does the rest

    spending = Spending(counter, SqliteLedger(books.file), Families(metrics), clock, lease=lease, every=0.01)
    spending.serves(config_of(ROLLING))
    spending.start(lambda: bool(drained))
    config = config_of(ROLLING, MONEY)
    spending.serves(config)
    await compared(metrics, "ok", 1)  # at once
    money = draw_of(config, "money", now)
    books.ship(now)
    await spending.open([money])
    counter.post(JOURNAL, books.ship(now), "", [])  # it ends
    while len(turns) < 3:
        await sleep(0.01)
    assert (await counter.admit("x", [], [money])).used == [7 + 1]
    drained.append(1)
    while b'budget_drift_total{allowance="usd:top/money:year"} 7' not in metrics.render()[1]:
        await sleep(0.01)
    assert (await counter.admit("y", [], [money])).used == [14 + 2]
    assert (await spending.check()).drifts == []
    await spending.close()
    await counter.close()


async def compared(metrics: Metrics, result: str, times: int) -> None:
    """Wait for so many comparisons."""
    pattern = rb'budget_reconciliations_total\{result="%b"\} (\d+)' % result.encode()
    await until(lambda: (found := search(pattern, metrics.render()[1])) and int(found[1]) >= times)


@pytest.mark.parametrize("between", [[ROLLING], [ROLLING, "{per: org, usd: 10, window: year, name: money}"]])
async def test_a_budget_that_comes_back_has_what_was_spent_meanwhile(books: Books, between: list[str]) -> None:
    """Or that was about somebody else. Calls of the earlier configuration may go on for hours."""
    clock, metrics, now = Clock(), Metrics(), time()
    counter = MemoryCounter(clock)
    spending = Spending(counter, SqliteLedger(books.file), Families(metrics), clock)
    config, other = config_of(ROLLING, MONEY), config_of(*between)
    spending.serves(config)
    spending.start(lambda: False)
    money = draw_of(config, "money", now)
    await spending.open([money])
    assert (await counter.admit("a", [], [money])).used == [1]
    counter.post(JOURNAL, books.ship(now, money), "a", [(money.field, 7)])
    spending.serves(other)
    counter.post(JOURNAL, books.ship(now), "", [])  # draws on nothing
    spending.serves(config)
    await compared(metrics, "ok", 1)
    assert (await counter.admit("b", [], [money])).used == [14 + 1]
    assert b'budget_drift_total{allowance="usd:top/money:year"} 0' in metrics.render()[1]  # which was no fault
    await spending.close()
    await counter.close()


async def test_what_could_not_be_compared_after_a_change_is_tried_again(books: Books) -> None:
    clock, metrics = Clock(), Metrics()
    counter = MemoryCounter(clock)
    missing = books.file.parent / "away" / "tollhouse.db"
    missing.parent.touch()
    spending = Spending(counter, SqliteLedger(missing), Families(metrics), clock, every=0.02, lease=another)
    spending.serves(config_of(ROLLING))
    spending.start(lambda: True)
    spending.serves(config_of(ROLLING, MONEY))
    await compared(metrics, "failed", 2)
    missing.parent.unlink()
    await compared(metrics, "ok", 2)  # at once, and when the calls before had ended
    await spending.close()
    await counter.close()


async def another(_: bool) -> bool:
    return False


async def test_it_is_done_a_while_after_the_start(books: Books) -> None:
    """And not an hour later."""
    config, metrics, now = config_of(MONEY), Metrics(), time()
    counter = MemoryCounter(Clock())
    history = LedgerHistory(SqliteLedger(books.file))
    families = Families(metrics)
    one = Reconciliation(counter, history, families, every=1e6, first=0.05)
    usual = Reconciliation(counter, history, families)
    assert 60.0 <= usual._first <= 300.0
    history.serves(config)
    one.serves(config)
    money = draw_of(config, "money", now)
    books.ship(now, money)
    await seed(counter, history, [money])
    counter.post(JOURNAL, books.ship(now), "", [(money.field, 5)])
    one.start(lambda: True)
    while b'budget_drift_total{allowance="usd:top/money:year"} 2' not in metrics.render()[1]:
        await sleep(0.01)
    await one.close()
    await history.close()
    await counter.close()


async def test_one_node_does_it_each_hour() -> None:
    clock = Clock()
    state = MemoryState(clock)
    lease, other = lease_of(state, 100.0), lease_of(state, 100.0)
    assert [await lease(False), await other(False), await lease(False)] == [True, False, False]
    assert [await other(True), await lease(True)] == [True, False]  # of those that have started in a minute
    clock.now += 61.0
    assert [await lease(True), await lease(False)] == [True, False]
    clock.now += 30.0
    assert [await other(False), await lease(False)] == [True, False]
    await state.close()
