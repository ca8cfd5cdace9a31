"""`tollhouse usage`: what was used, from the ledger; for whom a subscription would be cheaper; corrections of costs."""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Final

from tollhouse.cli.command import Commands, config_path
from tollhouse.config.load import load_config
from tollhouse.config.spec import Config
from tollhouse.core.errors import Failure
from tollhouse.gateway.deeds import recorded
from tollhouse.gateway.ledger import NothingRecorded
from tollhouse.gateway.usage import (
    MONEY,
    ORDER,
    NoSuchRecord,
    Question,
    adjust,
    asked,
    records_of,
    seats_of,
    shown,
    usage_of,
    usd,
)
from tollhouse.ledger.answers import ORDERS
from tollhouse.ledger.base import BY, LedgerError, UsageRow
from tollhouse.wire.mcp.letters import visible

__all__ = ["add"]

_WORDS: Final = ("seats", "records", "adjust")
_NUMBERS: Final = ("requests", "errors", "input", "output", "cache_read", "cache_write", "reasoning", "unpriced")
"""Columns of the table; the other formats have all there are."""

_RECORD: Final = (
    "id", "admitted_at", "user", "model_asked", "provider", "server", "tool", "outcome", "input", "output", "cost_nano",
)  # fmt: skip


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("usage", _usage, "Print what was used, from the ledger.")
    what = "the configuration file that names the ledger; before it: `seats` (for whom a subscription would be "
    what += "cheaper), `records` (the newest ones), or `adjust ID` (say what the call of a record has cost)"
    sub.add_argument("words", nargs="*", metavar="CONFIG", help=what)
    sub.add_argument("--config", help="the same")
    sub.add_argument("--by", default="model", help=f"comma-separated: {', '.join(BY)}")
    sub.add_argument("--since", help="how far back, like 6h or 30d, or a date like 2026-11-01; default: 1d")
    sub.add_argument("--until", help="the same; default: now")
    what = "only of that: NAME=VALUE with a name of --by; of one name any, of several names all"
    sub.add_argument("--where", action="append", default=[], metavar="NAME=VALUE", help=what)
    sub.add_argument("--order", default="", help=f"the greatest first, by {', '.join(ORDER)}")
    sub.add_argument("--top", type=int, default=0, metavar="N", help="so many rows at most")
    sub.add_argument("--format", choices=["table", "csv", "json"], default="table", help="json: one object a line")
    sub.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    sub.add_argument("--usd", metavar="USD", help="adjust: what it has cost, altogether")
    sub.add_argument("--note", default="", help="adjust: why, for the audit")


def _usage(arguments: argparse.Namespace) -> int:
    words: list[str] = arguments.words
    action = words.pop(0) if words and words[0] in _WORDS else ""
    id = words.pop(0) if action == "adjust" and words else ""
    if arguments.config is not None:
        words.append(arguments.config)
    if len(words) > 1:
        print(f"one configuration at a time, not {' and '.join(words)}", file=sys.stderr)
        return 2
    try:
        question = asked(
            by=arguments.by,
            since=("30d" if action == "seats" else "1d") if arguments.since is None else arguments.since,
            until=arguments.until,
            where=arguments.where,
            order=arguments.order,
            top=arguments.top,
        )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    config = load_config(config_path(words[0] if words else None)).config
    if config.ledger is None:
        print("this configuration keeps no ledger", file=sys.stderr)
        return 1
    try:
        if action == "adjust":
            return _adjust(config, id, arguments)
        if action == "seats":
            _print_seats(config, question, arguments.format)
        elif action == "records":
            _print_records(config, question, arguments.format)
        else:
            _print_usage(question, usage_of(config, question), arguments.format)
    except NothingRecorded as error:
        print(error, file=sys.stderr)
        return 1
    except LedgerError as error:
        print(f"the ledger cannot be read: {error}", file=sys.stderr)
        return 1
    return 0


def _print_usage(question: Question, rows: Sequence[UsageRow], form: str) -> None:
    if form != "table":
        names = (*question.by, *ORDERS, *MONEY.values())
        _print(names, [tuple(shown(question, row).values()) for row in rows], form)
        return
    head = (*question.by, *_NUMBERS, "saved_usd", "usd")
    lines = [
        (*row.by, *(f"{getattr(row, n):,}" for n in _NUMBERS), _money(row.saved_nano), _money(row.cost_nano))
        for row in rows
    ]
    _print_table(head, lines, len(question.by))


def _print_seats(config: Config, question: Question, form: str) -> None:
    rows = seats_of(config, question.since, question.until)
    if form != "table":
        names = ("user", "org", "requests", "usd", "seat", "seat_usd", "left_usd", "saving_usd", "unpriced")
        values = [
            (r.user, r.org, r.requests, usd(r.cost_nano), r.seat, *map(usd, (r.seat_nano, r.left_nano, r.saving_nano)),
             r.unpriced)
            for r in rows
        ]  # fmt: skip
        _print(names, values, form)
        return
    head = ("user", "org", "cheaper seat", "requests", "usd", "seat usd", "left usd", "saving usd", "unpriced")
    lines = [
        (r.user, r.org, r.seat or "-", f"{r.requests:,}",
         *map(_money, (r.cost_nano, r.seat_nano, r.left_nano, r.saving_nano)), f"{r.unpriced:,}")
        for r in rows
    ]  # fmt: skip
    _print_table(head, lines, 3)
    better, saved = sum(bool(r.seat) for r in rows), sum(r.saving_nano for r in rows)
    print(f"{better} of {len(rows)} users would be cheaper with a seat: {_money(saved)} usd in this time")
    unpriced = sum(r.unpriced for r in rows)
    if unpriced:
        print(f"{unpriced:,} requests have no known price and count as nothing: name it in `prices`, or adjust them")


def _print_records(config: Config, question: Question, form: str) -> None:
    records = records_of(config, question._replace(top=question.top or 20))
    if form != "table":
        names = tuple(name for name in records[0].__struct_fields__ if name != "draws") if records else _RECORD
        _print(names, [tuple(getattr(record, name) for name in names) for record in records], form)
        return
    lines = []
    for r in records:
        at = datetime.fromtimestamp(r.admitted_at / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        cost = "unpriced" if r.cost_nano is None else _money(r.cost_nano)
        what = r.model_asked or "/".join(filter(None, (r.server, r.tool)))
        how = f"adjusts {r.adjust_of}" if r.adjust_of else r.outcome
        lines.append((r.id, at, r.user, what, how, f"{r.input:,}", f"{r.output:,}", cost))
    _print_table(("id", "admitted", "user", "model or tool", "outcome", "input", "output", "usd"), lines, 5)


def _adjust(config: Config, id: str, arguments: argparse.Namespace) -> int:
    if not id or arguments.usd is None:
        print("say which record, and what it has cost: tollhouse usage adjust ID --usd 1.25", file=sys.stderr)
        return 2
    try:
        dollars = Decimal(arguments.usd)
        with recorded(config, "admin.usage.adjust", id) as deed:
            try:
                done = adjust(config, id, dollars)
            except NoSuchRecord:
                deed.found_nothing()
                print(f"there is no record {id!r}; `tollhouse usage records` shows them", file=sys.stderr)
                return 1
            before = "no price" if done.before is None else f"{usd(done.before)} usd"
            deed.target = f"{id}: {before} -> {usd(done.after)} usd" + (f": {arguments.note}" if arguments.note else "")
    except InvalidOperation:
        print(f"not a cost: {arguments.usd!r}; write dollars, like 1.25", file=sys.stderr)
        return 2
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except Failure as failure:
        print(f"{failure.message}: {failure.detail}", file=sys.stderr)
        return 1
    print(f"{id}: {before} -> {usd(done.after)} usd")
    return 0


def _print(names: Sequence[str], rows: Sequence[Sequence[object]], form: str) -> None:
    if form == "json":
        for row in rows:
            print(json.dumps(dict(zip(names, row, strict=True))))
        return
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(value) for value in row] for row in rows)


def _cell(value: object) -> object:
    """Text that a spreadsheet will not take for a formula: callers choose some of the names."""
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False


def _print_table(head: Sequence[str], lines: Sequence[Sequence[str]], texts: int) -> None:
    """texts: so many columns stand at the left."""
    table = [tuple(head), *(tuple(visible(cell) for cell in line) for line in lines)]
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    for line in table:
        cells = [c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(cells).rstrip())


def _money(nano: int) -> str:
    """Dollars, with commas between thousands."""
    whole, _, part = usd(nano).partition(".")
    return f"{int(whole):,}.{part}" if whole != "-0" else f"-0.{part}"
