"""`tollhouse audit`: its records, and whether all are there."""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path

from tollhouse.cli.command import Commands, config_option, config_path, since_of
from tollhouse.config.load import load_config
from tollhouse.config.spec import Config
from tollhouse.gateway import audit
from tollhouse.ledger.base import LedgerError

__all__ = ["add"]

_AUDITED = (
    "user", "agent", "org", "operation", "server", "target", "decision", "outcome", "jti", "minted", "request-id",
)  # fmt: skip


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("audit", _audit, "Show the audit's records; verify that all are there, as they were written.")
    sub.add_argument("action", choices=["verify", "list"])
    config_option(sub)
    what = "verify: a file, kept elsewhere, with the last records known; read, and written anew if all is right"
    sub.add_argument("--heads", metavar="FILE", type=Path, help=what)
    sub.add_argument("--since", default="1d", help="list: how far back, like 6h or 30d, or a date like 2026-11-01")
    sub.add_argument("--limit", type=int, default=100, help="list: at most so many, the newest")
    for name in _AUDITED:
        sub.add_argument(f"--{name}", help="list: only of that")
    sub.add_argument("--json", action="store_true", help="list: one JSON object a line")


def _audit(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config)).config
    try:
        return _verify(config, arguments.heads) if arguments.action == "verify" else _list_audit(config, arguments)
    except LedgerError as error:
        print(f"the ledger cannot be read: {error}", file=sys.stderr)
        return 1


def _verify(config: Config, heads: Path | None) -> int:
    try:
        verdict = audit.verified(config, heads)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for chain, n, why in verdict.breaks:
        print(f"chain {chain or '-'}, record {n}: {why}", file=sys.stderr)
    what = f"{verdict.records} records in {len(verdict.chains)} chains"
    if verdict.breaks:
        print(f"{what}: {len(verdict.breaks)} breaks")
        return 1
    print(f"{what}: all there, as they were written")
    return 0


def _list_audit(config: Config, arguments: argparse.Namespace) -> int:
    since = since_of(arguments.since, datetime.now(UTC))
    if since is None or arguments.limit < 1:
        print("not a time since then, or no number of records", file=sys.stderr)
        return 2
    asked = [(name.replace("-", "_"), getattr(arguments, name.replace("-", "_"))) for name in _AUDITED]
    where = [(name, value) for name, value in asked if value is not None]
    for record in audit.records(config, int(since.timestamp()), arguments.limit, where):
        print(audit.as_json(record) if arguments.json else audit.said(record))
    return 0
