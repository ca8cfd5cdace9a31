"""`tollhouse budgets`: what was spent of each budget, and what is left."""

import argparse
import json
import sys
import time
from datetime import UTC, datetime

from tollhouse.cli.command import Commands, config_path
from tollhouse.config.load import load_config
from tollhouse.gateway.budget_report import BudgetLine, report
from tollhouse.gateway.ledger import NothingRecorded, caught_up
from tollhouse.ledger.base import LedgerError
from tollhouse.wire.mcp.letters import visible

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add(
        "budgets", _budgets, "Print what was spent of each budget in its window of now, and what is left."
    )
    sub.add_argument("config", nargs="?", help="the configuration file; default: ./tollhouse.yaml")
    sub.add_argument("--budget", default="", metavar="NAME", help="only of that one")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")


def _budgets(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config)).config
    if config.ledger is None:
        print("there are no budgets: they need a `ledger`", file=sys.stderr)
        return 1
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


def _table(lines: list[BudgetLine]) -> list[str]:
    rows = [("budget", "whose", "spent", "of", "left", "until")]
    for line in lines:
        until = datetime.fromtimestamp(line.end, UTC).isoformat(sep=" ", timespec="minutes")
        name = line.budget if line.scope == "top" or line.scope in line.budget else f"{line.scope}: {line.budget}"
        if not line.summed:
            rows.append((visible(name), "(by expression)", "-", _amount(line.unit, line.amount), "-", until))
            continue
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
