"""`tollhouse usage`: what was used, from the ledger."""

import argparse
import json
import sys
from datetime import UTC, datetime

from tollhouse.cli.command import Commands, config_path, since_of
from tollhouse.config.load import load_config
from tollhouse.gateway.ledger import NothingRecorded, caught_up
from tollhouse.ledger.base import BY, LedgerError

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("usage", _usage, "Print what was used, from the ledger.")
    sub.add_argument("config", nargs="?", help="the configuration file that names the ledger")
    sub.add_argument("--by", default="model", help=f"comma-separated: {', '.join(BY)}")
    sub.add_argument("--since", default="1d", help="how far back, like 6h or 30d, or a date like 2026-11-01")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")


def _usage(arguments: argparse.Namespace) -> int:
    by = tuple(word.strip() for word in arguments.by.split(",") if word.strip())
    unknown = [word for word in by if word not in BY]
    if unknown:
        print(f"cannot group by {', '.join(unknown)}; use some of: {', '.join(BY)}", file=sys.stderr)
        return 2
    now = datetime.now(UTC)
    since = since_of(arguments.since, now)
    if since is None:
        print(f"not a time: {arguments.since!r}; write 6h, 30d or a date like 2026-11-01", file=sys.stderr)
        return 2
    config = load_config(config_path(arguments.config)).config
    if config.ledger_file is None:
        print("this configuration keeps no ledger", file=sys.stderr)
        return 1
    try:
        with caught_up(config.ledger_file) as ledger:
            rows = ledger.usage(int(since.timestamp()), int(now.timestamp()) + 1, by)
    except NothingRecorded as error:
        print(error, file=sys.stderr)
        return 1
    except LedgerError as error:
        print(f"the ledger cannot be read: {error}", file=sys.stderr)
        return 1
    numbers = ("requests", "errors", "input", "output", "cache_read", "cache_write", "reasoning", "unpriced")
    if arguments.json:
        kinds = ("cache_write_1h", "audio_input", "audio_output", "image_input", "image_output", "cost_nano")
        for row in rows:
            shown = {n: getattr(row, n) for n in (*numbers, *kinds)}
            print(json.dumps({**dict(zip(by, row.by, strict=True)), **shown}))
        return 0
    table = [
        (*by, *numbers, "usd"),
        *((*row.by, *(f"{getattr(row, n):,}" for n in numbers), _usd(row.cost_nano)) for row in rows),
    ]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    for line in table:
        cells = [c.ljust(w) if i < len(by) else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(cells).rstrip())
    return 0


def _usd(nano: int) -> str:
    """Dollars with as many decimals as there are, six at least: no cost is shown as none."""
    text = f"{nano // 10**9:,}.{nano % 10**9:09d}"
    return text[:-3] + text[-3:].rstrip("0")
