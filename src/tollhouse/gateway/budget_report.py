"""How budgets stand: what was spent of each in the window of now, by the ledger.

Rule: these are the ledger's sums, which is what budgets are counted by; what calls under way hold is not in them. Where
keys are in no column of the ledger (CEL, models with a `*`) it is the sum of what records say they drew.
"""

from collections.abc import Iterator

import msgspec

from tollhouse.config.spec import Config
from tollhouse.gateway.budget_accounts import COLUMNS, MOST, UNITS, Budget, accounts, budgets_of
from tollhouse.ledger.base import Ledger
from tollhouse.policies.budgets import usual_name
from tollhouse.policies.windows import clock_of

__all__ = ["BudgetLine", "report"]


class BudgetLine(msgspec.Struct, kw_only=True):
    """One key's account of one budget. scope: where it stands: top, model smart. per: as configured. whose: the key,
    its parts with a slash between them. unit, spent, amount: nano-dollars of usd. start, end: unix seconds of the
    window."""

    budget: str
    scope: str
    per: str
    whose: str
    unit: str
    spent: int
    amount: int
    start: int
    end: int


def report(config: Config, ledger: Ledger, now: float, budget: str = "") -> list[BudgetLine]:
    """The accounts on which something was spent, budget by budget, the fullest first. budget: of that name only, which
    is as callers are told it. now: unix seconds. Raises LedgerError."""
    lines = []
    taken: set[tuple[str, str]] = set()
    for one in budgets_of(config):
        name = one.spec.name or usual_name(one.spec)
        while (one.where, name) in taken or ("top", name) in taken:
            name += "-2"
        taken.add((one.where, name))
        if not budget or budget == name:
            lines += sorted(_lines(one, name, ledger, now), key=lambda line: -line.spent)
    return lines


def _lines(one: Budget, name: str, ledger: Ledger, now: float) -> Iterator[BudgetLine]:
    spec = one.spec
    window = clock_of(spec.window, spec.zone).at(now)
    start = window.earlier[0] if window.earlier else window.start
    columns = COLUMNS.get(spec.per)

    def line(whose: str, spent: int) -> BudgetLine:
        return BudgetLine(
            budget=name,
            scope=one.where,
            per=spec.per,
            whose=whose,
            unit=spec.unit,
            spent=spent,
            amount=spec.amount,
            start=start,
            end=window.end,
        )

    if columns is None or one.columns is None:
        for draw in accounts(one, now, ledger):
            if spent := sum(ledger.drawn(field) for field, _ in draw.slots):
                yield line(draw.key.replace("\x01", "/"), spent)
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
