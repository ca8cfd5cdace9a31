"""`tollhouse approvals`: calls that wait for an operator."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from tollhouse.cli.command import Commands, config_option, config_path, seconds_of
from tollhouse.config.load import load_config
from tollhouse.core.errors import Failure
from tollhouse.gateway import approvals
from tollhouse.gateway.deeds import recorded
from tollhouse.wire.mcp.letters import visible

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("approvals", _approvals, "Show the calls that wait for approval; approve or deny them.")
    sub.add_argument("action", choices=["list", "approve", "deny"])
    sub.add_argument("id", nargs="?", help="approve and deny: which call")
    config_option(sub)
    sub.add_argument("--for", dest="keep", metavar="TIME", help="approve: also further calls of it, like 30m or 8h")
    sub.add_argument("--by", default=os.environ.get("USER", ""), help="who says so, for the log; default: $USER")
    sub.add_argument("--json", action="store_true", help="list: one JSON object a line")


def _approvals(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config)).config
    try:
        if arguments.action == "list":
            _print_waiting(approvals.waiting(config), as_json=arguments.json)
            return 0
        if not arguments.id:
            print(f"say which call to {arguments.action}: `tollhouse approvals list` has their ids", file=sys.stderr)
            return 2
        keep = seconds_of(arguments.keep) if arguments.keep else None
        if arguments.keep and keep is None:
            print(f"not a time: {arguments.keep!r}; write 30m, 8h or 7d", file=sys.stderr)
            return 2
        said = approvals.Answer(arguments.action == "approve", arguments.by[:64], keep)
        with recorded(config, f"admin.approvals.{arguments.action}", f"{arguments.id} by {said.by!r}") as deed:
            is_answered = approvals.answer(config, arguments.id, said)
            if not is_answered:
                deed.found_nothing()
        if not is_answered:
            print(f"no call {arguments.id!r} waits any more", file=sys.stderr)
            return 1
    except Failure as failure:
        print(failure.detail or failure.message, file=sys.stderr)
        return 1
    print(f"{arguments.id}: {'approved' if said.approved else 'denied'}")
    return 0


def _print_waiting(entries: Sequence[approvals.Entry], *, as_json: bool) -> None:
    for entry in entries:
        if as_json:
            print(json.dumps({name: getattr(entry, name) for name in entry.__struct_fields__}))
            continue
        until = datetime.fromtimestamp(entry.until, UTC).isoformat(timespec="seconds")
        who = ", ".join(
            f"{what} {visible(name)}" for what, name in (("user", entry.user), ("agent", entry.agent)) if name
        )
        print(f"{entry.id}  {visible(entry.what)}  by {who or visible(entry.principal)}  until {until}")
        print(f"  {visible(entry.rule)}")
        if entry.arguments:
            print(f"  {visible(entry.arguments)}")
    if not entries and not as_json:
        print("no call waits for approval")
