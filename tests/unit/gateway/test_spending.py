"""Spending: which records a budget's key stands for, asked of a real ledger; and how budgets stand by it."""

from asyncio import create_task, gather, sleep
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.cli.budgets import _table
from tollhouse.config.parse import parse
from tollhouse.config.spec import Config
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.gateway.budget_accounts import accounts, budgets_of
from tollhouse.gateway.budget_report import report
from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.gateway.spending import Spending, asked, draws
from tollhouse.ledger.base import Entry, LedgerError
from tollhouse.ledger.records import USAGE, UsageRecord
from tollhouse.ledger.sqlite import SqliteLedger
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import Metrics
from tollhouse.policies.budgets import BudgetSpec, window_seconds
from tollhouse.policies.quotes import Changes
from tollhouse.policies.transform import TransformSpec
from tollhouse.policies.windows import clock_of
from tollhouse.store.allowances import GRACE, kept_until
from tollhouse.store.base import ADMITTED, OPEN, Draw, Window
from tollhouse.store.memory import MemoryCounter

pytestmark = pytest.mark.anyio

NOW = 1_790_000_000.0
JOURNAL, OTHER = "a" * 32, "b" * 32

TEXT = """
ledger: sqlite:tollhouse.db
providers: {one: {kind: openai, base_url: "http://127.0.0.1:9/v1", api_key: k}}
models:
  - name: m
    targets: [{provider: one, model: x}, {provider: one}]
    fallback: [{provider: one, model: y}]
    budgets: [{per: user, tokens: 50, window: 1d}]
  - name: "w/*"
    hedge: {after: 1s}
    targets: [{provider: one, model: "*"}, {provider: one}]
    budgets: [{per: user, calls: 5, window: 1d}]
mcp:
  servers:
    shop: {url: "http://127.0.0.1:9/mcp", tools: {order: {budgets: [{per: tool, calls: 5, window: 1d}]}}}
budgets:
  - {per: all, usd: 10, window: 1d}
  - {per: org, usd: 10, window: 1d}
  - {per: team, calls: 10, window: {rolling: 30d}}
  - {per: user, input_tokens: 10, window: 1d}
  - {per: tag, usd: 10, window: 1d}
  - {per: tool, calls: 10, window: 1d}
  - {per: model, output_tokens: 10, window: 1d}
  - {per: 'request.headers["x-p"]', usd: 10, window: 1d}
"""


@pytest.fixture(scope="module")
def config() -> Config:
    return parse(TEXT, "t.yaml", {}).config


def record(**more: Any) -> UsageRecord:
    values: dict[str, Any] = {
        "outcome": "ok", "org": "o", "team": "t", "user": "ada", "model_asked": "m", "input": 3, "output": 2,
        "cost_nano": 7, "operation": "chat",
    }  # fmt: skip
    return UsageRecord(admitted_at=int(NOW * 1e6), ended_at=int(NOW * 1e6) + 5, **(values | more))


def ship(ledger: SqliteLedger, *records: UsageRecord, journal: str = JOURNAL) -> None:
    at = ledger.position(journal)
    ledger.ship(journal, [Entry(at + n, USAGE, msgspec.json.encode(one)) for n, one in enumerate(records, 1)])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    one = SqliteLedger(tmp_path / "tollhouse.db")
    one.open()
    yield one
    one.close()


def draw_of(config: Config, unit: str, per: str, key: str, where: str = "top") -> Draw:
    budget = next(b for b in budgets_of(config) if (b.spec.unit, b.spec.per, b.where) == (unit, per, where))
    now = clock_of(budget.spec.window, budget.spec.zone).at(NOW)
    return Draw(budget.allowance, key, 1, budget.spec.amount, Window(now.start, now.end), now.earlier)


def test_what_a_configuration_says(config: Config) -> None:
    assert draws(config)
    assert not draws(Config())
    assert len({budget.allowance for budget in budgets_of(config)}) == 11
    found = asked(config)
    assert found("m") == ([("one", "x"), ("one", ""), ("one", "y")], 1, Changes())
    assert found("w/*") == ([("one", "*"), ("one", "")], 2, Changes())


def test_what_transforms_add_is_of_what_calls_may_cost(config: Config) -> None:
    steps = TransformSpec.model_validate({"set": {"max_tokens": 500}}), TransformSpec.model_validate({"set": {"n": 2}})
    models = tuple(model.model_copy(update={"transform": steps[1:]}) for model in config.models)
    found = asked(config.model_copy(update={"transform": steps[:1], "models": models}))("m")
    assert found is not None
    assert found[2] == Changes(15, -1)


@pytest.mark.parametrize("window", ["hour", "day", "week", "month", "quarter", "year", 60, 61, 100, 86400, 8_000_000])
@given(now=st.integers(1_600_000_000, 2_000_000_000))
def test_what_is_kept_of_a_field_is_all_that_counts(window: Any, now: int) -> None:
    fields: dict[str, Any] = {"per": "user", "calls": 1}
    if isinstance(window, str):
        fields |= {"window": window, "zone": "Europe/Berlin"}
    else:
        fields["window"] = {"rolling": f"{window}s"}
    spec = BudgetSpec.model_validate(fields)
    start, end, earlier = clock_of(spec.window, spec.zone).at(now)
    draw = Draw("calls:x", "", 1, None, Window(start, end), earlier)
    assert window_seconds(spec) >= kept_until(draw) - GRACE - start


def test_the_accounts_of_a_ledger_are_those_that_calls_draw_on(config: Config, ledger: SqliteLedger) -> None:
    """What is listed of a record is what its call drew on; a caller without a name is nobody's in columns."""
    tool = {"model_asked": "", "server": "shop", "tool": "order", "input": 0, "output": 0, "operation": "tools/call"}
    start = int(NOW // 86400) * 86400
    tool["draws"] = tuple((f"calls:{where}/tool:day|shop/order|{start}", 1) for where in ("top", "tool shop/order"))
    ship(ledger, record(tags=("red",)), record(user="", team="", org=""), record(**tool))
    found = {budget.allowance: {draw.key for draw in accounts(budget, NOW, ledger)} for budget in budgets_of(config)}
    assert found["usd:top/all:day"] == {""}
    assert found["usd:top/org:day"] == {"o", ""}
    assert found["calls:top/team:rolling 2592000s"] == {"o\x01t", ""}
    assert found["input_tokens:top/user:day"] == {"ada"}
    assert found["usd:top/tag:day"] == {"red"}
    assert found["calls:top/tool:day"] == {"shop/order"}
    assert found["output_tokens:top/model:day"] == {"m"}
    assert found["calls:tool shop/order/tool:day"] == {"shop/order"}
    assert found["calls:model w/*/user:day"] == found['usd:top/request.headers["x-p"]:day'] == set()
    # What is no column is listed by what records drew on, in the window of now.
    day = int(NOW // 86400) * 86400
    named = {
        'usd:top/request.headers["x-p"]:day': ("a", "a|b", "2", "Zoë", "\x01x"),
        "calls:model w/*/user:day": ("ada", "\x01anonymous"),
        "usd:top/org:day": ("o", "\x01key:ci"),
    }
    drawn = [(f"{name}|{key}|{at}", 1) for name, keys in named.items() for key in keys for at in (day - 86400, day)]
    drawn += [(f'usd:top/request.headers["x-p"]:day|yesterday|{day - 86400}', 1)]
    ship(ledger, record(draws=tuple(drawn)))
    found = {budget.allowance: {draw.key for draw in accounts(budget, NOW, ledger)} for budget in budgets_of(config)}
    assert found['usd:top/request.headers["x-p"]:day'] == {"a", "a|b", "2", "Zoë", "\x01x"}
    assert found["calls:model w/*/user:day"] == {"ada", "\x01anonymous"}
    assert found["usd:top/org:day"] == {"", "o", "\x01key:ci"}
    for budget in budgets_of(config):
        for draw in accounts(budget, NOW, ledger):
            assert draw.window.start <= NOW < draw.window.end
            assert draw.earlier == clock_of(budget.spec.window, budget.spec.zone).at(NOW).earlier


async def test_whose_records_are_whose(config: Config, ledger: SqliteLedger, tmp_path: Path) -> None:
    tool = {"model_asked": "", "server": "shop", "tool": "order", "input": 0, "output": 0, "cost_nano": None}
    tool["draws"] = ((f"calls:top/tool:day|shop/order|{int(NOW // 86400) * 86400}", 1),)
    ship(
        ledger,
        record(),
        record(user="bob", tags=("red", "blue")),
        record(org="p", team="", model_asked="w/x", cost_nano=None),
        record(operation="tools/call", **tool),
        record(outcome="denied", input=0, output=0, cost_nano=None),
        record(draws=(('usd:top/request.headers["x-p"]:day|secret|' + str(int(NOW // 86400) * 86400), 7),)),
    )
    history = LedgerHistory(SqliteLedger(tmp_path / "tollhouse.db"))
    history.serves(config)
    upto = await history.positions()
    assert upto == {JOURNAL: 6}

    async def spent(unit: str, per: str, key: str, where: str = "top") -> int:
        draw = draw_of(config, unit, per, key, where)
        return sum(await history.spent([(draw, window, upto) for _, window in draw.slots]))

    # Many at once are the same as one by one.
    asked = [
        (draw_of(config, budget.spec.unit, budget.spec.per, key, budget.where), window, upto)
        for budget in budgets_of(config)
        for key in ("", "ada", "bob", "o", "p", "o\x01t", "p\x01", "red", "shop/order", "m", "secret", "\x01key:ci")
        for _, window in draw_of(config, budget.spec.unit, budget.spec.per, key, budget.where).slots
    ]
    together = await history.spent(asked)
    assert together == [(await history.spent([one]))[0] for one in asked]
    assert sum(together) > 100
    assert await spent("usd", "all", "") == 21
    assert [await spent("usd", "org", key) for key in ("o", "p", "q")] == [21, 0, 0]
    assert [await spent("calls", "team", key) for key in ("o\x01t", "p\x01t", "")] == [4, 0, 1]
    assert [await spent("input_tokens", "user", key) for key in ("ada", "bob", "\x01key:ci")] == [9, 3, 0]
    assert [await spent("usd", "tag", key) for key in ("red", "blue", "green")] == [7, 7, 0]
    assert [await spent("calls", "tool", key) for key in ("shop/order", "shop/other")] == [1, 0]
    assert await spent("output_tokens", "model", "m") == 6
    assert await spent("tokens", "user", "ada", "model m") == 10
    assert await spent("calls", "user", "ada", "model w/*") == 0  # what it drew itself, and that is nothing yet
    assert await spent("usd", 'request.headers["x-p"]', "secret") == 7
    assert await spent("usd", 'request.headers["x-p"]', "secre") == 0
    upto = {JOURNAL: 1}
    assert await spent("usd", "all", "") == 7
    postings = await history.posts(JOURNAL, 0, 10)
    assert [posting.seq for posting in postings][-1] == 6
    assert postings[-1].amounts[0][1] == 7
    await history.close()
    with pytest.raises(LedgerError):
        await history.positions()


async def test_a_counter_is_filled_and_catches_up(config: Config, ledger: SqliteLedger, tmp_path: Path) -> None:
    ship(ledger, *[record() for _ in range(3)])
    clock = Clock()
    counter = MemoryCounter(clock, wall=lambda: NOW)
    spending = Spending(counter, SqliteLedger(tmp_path / "tollhouse.db"), Families(Metrics()), clock)
    spending.serves(config)
    draw = draw_of(config, "usd", "org", "o")
    assert counter.allowances().admit("x", (), [draw]).happened == OPEN
    await spending.open([draw])
    verdict = counter.allowances().admit("x", (), [draw])
    assert (verdict.happened, verdict.used) == (ADMITTED, [3 * 7 + 1])
    # A correction from elsewhere is posted when it has come to the ledger.
    ship(ledger, record(cost_nano=5, adjust_of="z", draws=((draw.field, 5),)), journal=OTHER)
    spending.start()
    for n in range(200):
        used = counter.allowances().admit(f"y{n}", (), [draw]).used[0] - 2 - n
        if used == 3 * 7 + 5:
            break
        await sleep(0.02)
    assert used == 3 * 7 + 5
    await spending.close()
    await counter.close()


class Watched(SqliteLedger):
    """looks: how often it was asked where it is, once for each filling and more."""

    looks = 0

    def positions(self) -> dict[str, int]:
        self.looks += 1
        return super().positions()


async def test_those_who_come_together_are_filled_together(
    config: Config, ledger: SqliteLedger, tmp_path: Path
) -> None:
    ship(ledger, *[record(user=f"u{n}") for n in range(40)])
    clock = Clock()
    counter = MemoryCounter(clock, wall=lambda: NOW)
    watched = Watched(tmp_path / "tollhouse.db")
    spending = Spending(counter, watched, Families(Metrics()), clock)
    spending.serves(config)
    wanted = [draw_of(config, "input_tokens", "user", f"u{n}") for n in range(40)]
    left = create_task(spending.open(wanted[:1]))
    for _ in range(5):
        await sleep(0)
    left.cancel()  # a caller that leaves while it is done for him: the others are none the worse
    await gather(left, *(spending.open([draw]) for draw in wanted), return_exceptions=True)
    for n, draw in enumerate(wanted):
        verdict = counter.allowances().admit(f"x{n}", (), [draw])
        assert (verdict.happened, verdict.used) == (ADMITTED, [3 + 1])
    assert watched.looks <= 12
    await spending.close()
    await counter.close()


async def test_no_ledger_and_one_that_cannot_be_read(config: Config, tmp_path: Path) -> None:
    clock = Clock()
    counter = MemoryCounter(clock, wall=lambda: NOW)
    draw = draw_of(config, "usd", "org", "o")
    nothing = Spending(counter, None, Families(Metrics()), clock)
    nothing.serves(config)
    await nothing.open([draw])
    assert counter.allowances().admit("x", (), [draw]).happened == ADMITTED
    await nothing.close()
    await counter.close()
    bad = tmp_path / "bad.db"
    bad.write_bytes(b"this is no database" * 100)
    counter = MemoryCounter(clock, wall=lambda: NOW)
    broken = Spending(counter, SqliteLedger(bad), Families(Metrics()), clock)
    with pytest.raises(Failure) as caught:
        await broken.open([draw])
    assert caught.value.status == 503
    assert "no database" not in caught.value.message
    await broken.close()
    await counter.close()


def test_how_budgets_stand(config: Config, ledger: SqliteLedger) -> None:
    day = int(NOW // 86400) * 86400
    drawn = ((f'usd:top/request.headers["x-p"]:day|secret|{day}', 7), (f"calls:model w/*/user:day|ada|{day}", 1))
    old = ((f'usd:top/request.headers["x-p"]:day|old|{day - 86400}', 7),)
    first = record(cost_nano=2_500_000_000, draws=drawn)
    ship(ledger, first, record(user="bob", tags=("red",), cost_nano=1, draws=old))
    lines = report(config, ledger, NOW)
    found = {(line.budget, line.whose): line.spent for line in lines}
    assert found["all-usd-day", ""] == 2_500_000_001
    assert found["org-usd-day", "o"] == 2_500_000_001
    assert found["team-calls-rolling", "o/t"] == 2
    assert found["user-input-tokens-day", "bob"] == 3
    assert found["tag-usd-day", "red"] == 1
    assert found["user-tokens-day", "ada"] == 5
    assert found["expression-usd-day", "secret"] == 7
    assert ("expression-usd-day", "old") not in found
    assert found["user-calls-day", "ada"] == 1
    table = _table(lines)
    assert table[0].split() == ["budget", "whose", "spent", "of", "left", "until"]
    assert any("2.5000 USD" in row and "7.5000 USD" in row for row in table)
    assert report(config, ledger, NOW, "all-usd-day")[0].whose == ""
    assert report(config, ledger, NOW + 86400 * 40, "all-usd-day") == []
