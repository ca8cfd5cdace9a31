"""`tollhouse accounts`: accounts that users have connected at servers."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from tollhouse.cli.command import Commands, config_option, config_path
from tollhouse.config.load import load_config
from tollhouse.core.errors import Failure
from tollhouse.gateway import accounts
from tollhouse.gateway.account_list import Listed
from tollhouse.gateway.deeds import recorded
from tollhouse.wire.mcp.letters import visible

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("accounts", _accounts, "Show the accounts that users have connected at servers; end one.")
    sub.add_argument("action", choices=["list", "disconnect"])
    sub.add_argument("id", nargs="?", help="disconnect: which account")
    config_option(sub)
    sub.add_argument("--user", default="", help="list: only this user's")
    sub.add_argument("--server", default="", help="list: only those at this server")
    sub.add_argument("--json", action="store_true", help="list: one JSON object a line")


def _accounts(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config)).config
    if arguments.action == "disconnect" and not arguments.id:
        print("say which account to disconnect: `tollhouse accounts list` has their ids", file=sys.stderr)
        return 2
    try:
        if arguments.action == "list":
            _print(accounts.listed(config, arguments.server, arguments.user), as_json=arguments.json)
            return 0
        with recorded(config, "admin.accounts.disconnect", arguments.id) as deed:
            ended = accounts.disconnect(config, arguments.id)
            if ended is None:
                deed.found_nothing()
            else:
                deed.target = f"{ended.id}, of user {ended.user!r} at {ended.server!r}"
    except Failure as failure:
        print(failure.detail or failure.message, file=sys.stderr)
        return 1
    if ended is None:
        print(f"there is no account {arguments.id!r}", file=sys.stderr)
        return 1
    print(f"disconnected {visible(ended.user)} from {visible(ended.server)}")
    return 0


def _print(found: Sequence[Listed], *, as_json: bool) -> None:
    for one in found:
        if as_json:
            print(json.dumps(one._asdict()))
            continue
        since = datetime.fromtimestamp(one.since, UTC).isoformat(timespec="seconds")
        scopes = f"  {' '.join(one.scopes)}" if one.scopes else ""
        print(visible(f"{one.id}  {one.server}  {one.user}  at {one.host}  since {since}{scopes}"))
    if not found and not as_json:
        print("no account is connected")
