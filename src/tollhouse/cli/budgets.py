"""`tollhouse budgets`: what was spent of each budget, and what is left; and whether what is counted says the same."""

import argparse
import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from tollhouse.cli.admin_api import answered
from tollhouse.cli.command import Commands, config_path
from tollhouse.config.load import load_config
from tollhouse.config.spec import Config
from tollhouse.core.errors import Failure
from tollhouse.gateway.budget_accounts import accounted
from tollhouse.gateway.budget_report import BudgetLine, report
from tollhouse.gateway.deeds import recorded
from tollhouse.gateway.ledger import NothingRecorded, caught_up, ledger_of
from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.gateway.reconciliation import Drift, Reconciled, reconcile
from tollhouse.gateway.state import opened_state
from tollhouse.ledger.base import LedgerError
from tollhouse.wire.mcp.letters import visible

__all__ = ["add"]

_PATIENCE = 300.0  # seconds


class _Drift(msgspec.Struct):
    """As the admin API says it."""

    budget: str
    whose: str
    unit: str
    by: str


class _Checked(msgspec.Struct):
    checked: int
    drifts: list[_Drift]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add(
        "budgets", _budgets, "Print what was spent of each budget in its window of now, and what is left."
    )
    sub.add_argument(
        "words", nargs="*", metavar="[check] [config]", help="check: compare what is counted with the ledger, and put "
        "it right; and the configuration file, default: ./tollhouse.yaml",
    )  # fmt: skip
    sub.add_argument("--budget", default="", metavar="NAME", help="only of that one")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")


def _budgets(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.words
    checks = words[:1] == ["check"]
    files = words[1:] if checks else words
    if len(files) > 1:
        print(f"one configuration file is read, and not {len(files)}", file=sys.stderr)
        return 2
    config = load_config(config_path(files[0] if files else None)).config
    if config.ledger is None:
        print("there are no budgets: they need a `ledger`", file=sys.stderr)
        return 1
    if checks:
        return _check(config, as_json=arguments.json)
    try:
        with caught_up(config) as ledger:
            lines = report(config, ledger, time.time(), arguments.budget)
    except NothingRecorded:
        lines = []
    except LedgerError as error:
        print(f"the ledger cannot be used: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        for line in lines:
            print(json.dumps({name: getattr(line, name) for name in line.__struct_fields__}))
    elif not lines:
        print("nothing was spent of any budget in its window of now")
    else:
        print("\n".join(_table(lines)))
    return 0


def _check(config: Config, *, as_json: bool) -> int:
    """0: all agreed; 1: something was put right, or it could not be done."""
    if config.state.is_memory:
        why, said = answered(config, "/api/budgets/check", None, "docs/guide/budgets.md", _PATIENCE)
        if why:
            print(why, file=sys.stderr)
            return 1
        found = msgspec.json.decode(said, type=_Checked)
    else:
        try:
            with recorded(config, "admin.budgets.check") as deed:
                checked = asyncio.run(_compared(config))
                deed.target = f"{checked.checked} accounts, {len(checked.drifts)} put right"
        except LedgerError as error:
            print(f"the ledger cannot be used: {error}", file=sys.stderr)
            return 1
        except Failure as failure:
            print(f"it cannot be checked: {failure.detail or failure.message}", file=sys.stderr)
            return 1
        found = _Checked(checked.checked, [_drift(one) for one in checked.drifts])
    if as_json:
        print(msgspec.json.encode(found).decode())
    else:
        for one in found.drifts:
            print(f"{visible(one.budget)}: of {visible(one.whose) or '(all)'} {_off(one)}; put right")
        print(f"{found.checked} accounts: {len(found.drifts) or 'none'} differed from the ledger")
    return 1 if found.drifts else 0


async def _compared(config: Config) -> Reconciled:
    try:
        with caught_up(config):  # what processes that are gone have left is in it then
            pass
    except NothingRecorded:
        return Reconciled(0, [])
    history = LedgerHistory(ledger_of(config))
    history.serves(config)
    try:
        async with opened_state(config.state) as (state, _):
            return await reconcile(state.counter, history, list(accounted(config)), time.time())
    finally:
        await history.close()


def _drift(drift: Drift) -> _Drift:
    unit = drift.budget.unit
    by = f"{Decimal(drift.by).scaleb(-9):f}" if unit == "usd" else str(drift.by)
    return _Drift(drift.budget.allowance, drift.key.replace("\x01", "/"), unit, by)


def _off(drift: _Drift) -> str:
    much = "little" if drift.by.startswith("-") else "much"
    return f"{drift.by.removeprefix('-')} {drift.unit.replace('_', ' ')} too {much} was counted"


def _table(lines: list[BudgetLine]) -> list[str]:
    rows = [("budget", "whose", "spent", "of", "left", "until")]
    for line in lines:
        until = datetime.fromtimestamp(line.end, UTC).isoformat(sep=" ", timespec="minutes")
        name = line.budget if line.scope == "top" or line.scope in line.budget else f"{line.scope}: {line.budget}"
        left = max(line.amount - line.spent, 0)
        amounts = (_amount(line.unit, line.spent), _amount(line.unit, line.amount), _amount(line.unit, left))
        rows.append((visible(name), visible(line.whose) or "(all)", *amounts, until))
    widths = [max(len(row[n]) for row in rows) for n in range(6)]
    made = []
    for row in rows:
        cells = (row[n].ljust(widths[n]) if n in (0, 1, 5) else row[n].rjust(widths[n]) for n in range(6))
        made.append("  ".join(cells).rstrip())
    return made


def _amount(unit: str, amount: int) -> str:
    return f"{amount / 1e9:.4f} USD" if unit == "usd" else f"{amount} {unit.replace('_', ' ')}"
