"""How budgets stand, by the ledger; and whether what is counted says the same.

Rule: the same as `tollhouse budgets` says. The ledger is asked in a thread.
"""

import time

import msgspec

from tollhouse.admin.ledger import in_thread
from tollhouse.admin.operation import Answer, Asked, Moment, Operation, moment, refused, together
from tollhouse.gateway.budget_report import BudgetLine, report
from tollhouse.gateway.ledger import caught_up
from tollhouse.gateway.premises import Premises
from tollhouse.gateway.reconciliation import Drift

__all__ = ["BudgetsResource"]


class BudgetAccount(msgspec.Struct, kw_only=True):
    """One key's account of one budget, in the window of now. scope: where the budget stands. whose: the key, its parts
    with a slash between them. Amounts of `usd` are dollars, exact, as text, the others whole numbers as text."""

    budget: str
    scope: str
    per: str
    whose: str
    unit: str
    spent: str
    amount: str
    left: str
    start: Moment
    end: Moment


class BudgetsAnswer(msgspec.Struct):
    """The accounts on which something was spent, budget by budget, the fullest first."""

    accounts: list[BudgetAccount]


class BudgetDrift(msgspec.Struct, kw_only=True):
    """An account that was not what the ledger says. budget: its allowance, in metrics too. start: of its window. by:
    what was counted too much, below 0 too little; of `usd` dollars."""

    budget: str
    whose: str
    unit: str
    start: Moment
    by: str


class BudgetsChecked(msgspec.Struct):
    """checked: how many accounts were compared with the ledger. drifts: those that differed, and do not any more."""

    checked: int
    drifts: list[BudgetDrift]


class BudgetsResource:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config
        self._check = premises.check_budgets

    def operations(self) -> list[Operation]:
        query = (("budget", "only the one of that name"),)
        return [
            Operation(
                "budgets.list", "GET", "/api/budgets", "What was spent of each budget, and what is left", self.show,
                BudgetsAnswer, query=query,
            ),
            Operation(
                "budgets.check", "POST", "/api/budgets/check", "Compare what is counted of each budget with the "
                "ledger, and put it right", self.check, BudgetsChecked,
            ),
        ]  # fmt: skip

    async def show(self, asked: Asked) -> Answer:
        name = dict(asked.query).get("budget", "")
        lines: list[BudgetLine] = await in_thread(lambda: self._report(name), [])
        return Answer(BudgetsAnswer([_account(line) for line in lines]))

    async def check(self, asked: Asked) -> Answer:
        config = self._config()
        if config.ledger is None or self._check is None:
            raise refused("there are no budgets: they need a `ledger`")
        together(config)
        found = await self._check()
        drifts = [_drift(one) for one in found.drifts]
        return Answer(BudgetsChecked(found.checked, drifts), f"{found.checked} accounts, {len(drifts)} put right")

    def _report(self, name: str) -> list[BudgetLine]:
        config = self._config()
        with caught_up(config) as ledger:
            return report(config, ledger, time.time(), name)


def _said(unit: str, amount: int) -> str:
    sign, amount = "-" if amount < 0 else "", abs(amount)
    return f"{sign}{amount // 10**9}.{amount % 10**9:09d}" if unit == "usd" else f"{sign}{amount}"


def _drift(drift: Drift) -> BudgetDrift:
    budget, unit = drift.budget, drift.budget.unit
    return BudgetDrift(
        budget=budget.allowance,
        whose=drift.key.replace("\x01", "/"),
        unit=unit,
        start=moment(drift.start),
        by=_said(unit, drift.by),
    )


def _account(line: BudgetLine) -> BudgetAccount:
    return BudgetAccount(
        budget=line.budget,
        scope=line.scope,
        per=line.per,
        whose=line.whose,
        unit=line.unit,
        spent=_said(line.unit, line.spent),
        amount=_said(line.unit, line.amount),
        left=_said(line.unit, max(line.amount - line.spent, 0)),
        start=moment(line.start),
        end=moment(line.end),
    )
