"""How budgets stand: what was spent of each in the window of now, by the ledger.

Rule: these are the ledger's sums, which is what budgets are counted by; what calls under way hold is not in them. A
budget whose keys are in no column of the ledger (CEL, models with a `*`) is said to be so, and not summed up.
"""

from collections.abc import Iterator

import msgspec

from tollhouse.config.spec import Config
from tollhouse.gateway.budget_accounts import COLUMNS, MOST, UNITS, Budget, budgets_of
from tollhouse.ledger.base import Ledger
from tollhouse.policies.windows import clock_of

__all__ = ["BudgetLine", "report"]


class BudgetLine(msgspec.Struct, kw_only=True):
    """One key's account of one budget. scope: where it stands: top, model smart. per: as configured. whose: the key,
    its parts with a slash between them. unit, spent, amount: nano-dollars of usd. start, end: unix seconds of the
    window. summed: False where the ledger has no column for its keys."""

    budget: str
    scope: str
    per: str
    whose: str
    unit: str
    spent: int
    amount: int
    start: int
    end: int
    summed: bool = True


def report(config: Config, ledger: Ledger, now: float, budget: str = "") -> list[BudgetLine]:
    """The accounts on which something was spent, budget by budget, the fullest first. budget: of that name only. now:
    unix seconds. Raises LedgerError."""
    lines = []
    for one in budgets_of(config):
        if not budget or budget == _name(one):
            lines += sorted(_lines(one, ledger, now), key=lambda line: -line.spent)
    return lines


def _name(one: Budget) -> str:
    return one.spec.name or one.allowance


def _lines(one: Budget, ledger: Ledger, now: float) -> Iterator[BudgetLine]:
    spec = one.spec
    window = clock_of(spec.window, spec.zone).at(now)
    start = window.earlier[0] if window.earlier else window.start
    columns = COLUMNS.get(spec.per)

    def line(whose: str, spent: int, *, summed: bool = True) -> BudgetLine:
        return BudgetLine(
            budget=_name(one),
            scope=one.where,
            per=spec.per,
            whose=whose,
            unit=spec.unit,
            spent=spent,
            amount=spec.amount,
            start=start,
            end=window.end,
            summed=summed,
        )

    if columns is None or one.columns is None:
        yield line("", 0, summed=False)
        return
    where = dict(one.columns)
    rows = ledger.usage(start, window.end, columns, where=tuple(where.items()), order="requests", top=MOST)
    unit = spec.unit
    for row in rows:
        named = dict(zip(columns, row.by, strict=True))
        if spec.per == "tag" and not row.by[0]:
            continue  # a call without a tag draws on none
        spent = ledger.spent(UNITS[unit], start * 1_000_000, window.end * 1_000_000, {**where, **named})
        if spent:
            yield line("/".join(row.by), spent)
