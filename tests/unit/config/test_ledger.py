"""`journal`, `retention` and `subscriptions` in a configuration: what they may say, and what has no effect."""

import pytest
from tests.unit.config.told import problems_built as problems
from tests.unit.config.told import read

LEDGER = "ledger: sqlite:x.db\n"


def test_defaults() -> None:
    config = read(LEDGER)
    assert (config.journal.max, config.journal.full, config.journal.sync_every) == (8 << 30, "block", None)
    assert (config.retention.usage, config.retention.rollup, config.retention.audit) == (None, None, None)
    assert config.subscriptions == ()


@pytest.mark.parametrize(("said", "every"), [("off", None), ("group", 0.05), ("group(2ms)", 0.002)])
def test_how_often_it_is_synced(said: str, every: float | None) -> None:
    assert read(LEDGER + f"journal: {{fsync: {said}}}\n").journal.sync_every == every


def test_spans() -> None:
    kept = read(LEDGER + "retention: {usage: 36h, rollup: 2y, audit: 1y}\n").retention
    assert (kept.usage, kept.rollup, kept.audit) == (36 * 3600, 730 * 86400, 365 * 86400)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LEDGER + "journal: {fsync: group(0ms)}\n", "journal.fsync: write off, group, or group(2ms)"),
        (LEDGER + "journal: {fsync: always}\n", "journal.fsync: write off, group, or group(2ms)"),
        (LEDGER + "journal: {max: 1MiB}\n", "journal.max: "),
        (LEDGER + "journal: {full: stop}\n", "journal.full: "),
        (LEDGER + "retention: {usage: 1h}\n", "retention.usage: "),
        (LEDGER + "retention: {usage: 90}\n", "retention.usage: not a duration"),
        (LEDGER + "retention: {usage: 90d, rollup: 30d}\n", "retention.rollup: must be as long as `usage`"),
        (LEDGER + "subscriptions: [{name: x, usd: 0, models: ['*']}]\n", "subscriptions[0].usd: "),
        (LEDGER + "subscriptions: [{name: x, usd: 5, models: []}]\n", "subscriptions[0].models: "),
        (
            LEDGER + "subscriptions: [{name: x, usd: 5, models: ['*']}, {name: x, usd: 6, models: ['*']}]\n",
            "subscriptions[1].name: there is one before it that is called `x`",
        ),
        ("journal: {full: drop}\n", "journal: has no effect without a `ledger`"),
        ("retention: {usage: 90d}\n", "retention: has no effect without a `ledger`"),
        ("subscriptions: [{name: x, usd: 5, models: ['*']}]\n", "subscriptions: has no effect without a `ledger`"),
        (
            LEDGER + "server: {admin: 127.0.0.1:15000}\njournal: {full: drop}\n",
            "journal.full: the audit's records would be lost as well",
        ),
        (
            LEDGER + "authorize: {rules: [{deny: 'true'}]}\njournal: {full: drop}\n",
            "journal.full: the audit's records would be lost as well",
        ),
        (LEDGER + "audit: on\njournal: {full: drop}\n", "journal.full: the audit's records would be lost as well"),
    ],
)
def test_what_cannot_be(text: str, problem: str) -> None:
    (found,) = problems(text)
    assert found.startswith(problem)


MODEL = "models: [{name: m, targets: [{provider: local}], %s}]\nproviders: {local: {kind: local}}\n"


@pytest.mark.parametrize(
    ("window", "days"),
    [("1h", 1), ("day", 2), ("week", 8), ("month", 32), ("quarter", 93), ("year", 366), ("{rolling: 48d}", 50)],
)
def test_records_are_kept_as_long_as_a_budget_needs_them(window: str, days: int) -> None:
    budget = f"budgets: [{{per: user, calls: 5, window: {window}}}]"
    for text in (MODEL % budget, MODEL % "timeout: {total: 9s}" + budget + "\n"):
        kept = LEDGER + text + "retention: {usage: %dd}\n"
        assert problems(kept % days) == []
        if days > 1:
            (problem,) = problems(kept % (days - 1))
            assert problem.startswith(f"retention.usage: must be {days}d at least: a budget's window is as long")


def test_records_that_budgets_stand_on_are_not_dropped() -> None:
    text = LEDGER + MODEL % "budgets: [{per: user, calls: 5, window: 1h}]" + "journal: {full: drop}\n"
    (problem,) = problems(text)
    assert problem.startswith("journal.full: budgets would forget what was spent")


@pytest.mark.parametrize("audit", ["", "audit: off\n", "audit: {on_failure: allow}\n"])
def test_records_may_be_dropped_where_nothing_stands_on_them(audit: str) -> None:
    assert problems(LEDGER + audit + "journal: {full: drop}\n") == []
