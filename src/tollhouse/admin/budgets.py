"""How budgets stand, by the ledger.

Rule: the same as `tollhouse budgets` says. The ledger is asked in a thread.
"""

import asyncio
import time

import msgspec

from tollhouse.admin.operation import Answer, Asked, Moment, Operation, moment, unconfigured
from tollhouse.core.errors import ConfigError, Failure, Reason
from tollhouse.gateway.budget_report import BudgetLine, report
from tollhouse.gateway.ledger import NothingRecorded, caught_up
from tollhouse.gateway.premises import Premises
from tollhouse.ledger.base import LedgerError

__all__ = ["BudgetsResource"]


class BudgetAccount(msgspec.Struct, kw_only=True):
    """One key's account of one budget, in the window of now. scope: where the budget stands. whose: the key, its parts
    with a slash between them. Amounts of `usd` are dollars, exact, as text, the others whole numbers as text. summed:
    false where the ledger has no column for the budget's keys, and nothing is said of them."""

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
    summed: bool


class BudgetsAnswer(msgspec.Struct):
    """The accounts on which something was spent, budget by budget, the fullest first."""

    accounts: list[BudgetAccount]


class BudgetsResource:
    def __init__(self, premises: Premises) -> None:
        self._config = premises.config

    def operations(self) -> list[Operation]:
        query = (("budget", "only the one of that name"),)
        return [
            Operation(
                "budgets.list", "GET", "/api/budgets", "What was spent of each budget, and what is left", self.show,
                BudgetsAnswer, query=query,
            )
        ]  # fmt: skip

    async def show(self, asked: Asked) -> Answer:
        name = dict(asked.query).get("budget", "")
        lines = await asyncio.to_thread(self._report, name)
        return Answer(BudgetsAnswer([_account(line) for line in lines]))

    def _report(self, name: str) -> list[BudgetLine]:
        config = self._config()
        try:
            with caught_up(config) as ledger:
                return report(config, ledger, time.time(), name)
        except NothingRecorded:
            return []
        except ConfigError as error:
            raise unconfigured(error) from None
        except LedgerError as error:
            message = "the ledger cannot be used at the moment"
            raise Failure(503, Reason.INTERNAL, message, detail=str(error), retry_after=1.0) from None


def _account(line: BudgetLine) -> BudgetAccount:
    def said(amount: int) -> str:
        return f"{amount // 10**9}.{amount % 10**9:09d}" if line.unit == "usd" else str(amount)

    return BudgetAccount(
        budget=line.budget,
        scope=line.scope,
        per=line.per,
        whose=line.whose,
        unit=line.unit,
        spent=said(line.spent),
        amount=said(line.amount),
        left=said(max(line.amount - line.spent, 0)),
        start=moment(line.start),
        end=moment(line.end),
        summed=line.summed,
    )
