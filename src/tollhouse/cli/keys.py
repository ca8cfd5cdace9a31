"""`tollhouse keys`: API keys that live in the ledger."""

import argparse
import json
import sys
from datetime import UTC, datetime

from tollhouse.cli.command import Commands, config_option, config_path, until_of
from tollhouse.config.load import load_config
from tollhouse.config.spec import Config
from tollhouse.core.errors import Failure
from tollhouse.gateway import issued_keys
from tollhouse.gateway.deeds import recorded
from tollhouse.ledger.base import LedgerError
from tollhouse.ledger.keys import PREFIX, KeyTaken, NewKey

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("keys", _keys, "Make, list and end API keys that live in the ledger.")
    sub.add_argument("action", choices=["create", "list", "revoke"])
    sub.add_argument("name", nargs="?", help="create: the key's name; revoke: a name, or the id of one key")
    config_option(sub)
    for name in ("user", "org", "agent", "email"):
        sub.add_argument(f"--{name}", default="", help="create: whose it is")
    for name in ("group", "scope"):
        sub.add_argument(f"--{name}", action="append", default=[], help="create: whose it is; may be given again")
    for name in ("model", "server", "tool", "route"):
        what = "create: what it may be used for, a pattern with *; may be given again"
        sub.add_argument(f"--{name}", action="append", default=[], help=what)
    sub.add_argument("--metadata", action="append", default=[], metavar="NAME=VALUE", help="create: for rules")
    sub.add_argument("--expires", metavar="TIME", help="create: after 12h or 30d, or at a date like 2027-01-31")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")


def _keys(arguments: argparse.Namespace) -> int:
    config = load_config(config_path(arguments.config)).config
    if arguments.action != "list" and not arguments.name:
        print(f"say which key to {arguments.action}", file=sys.stderr)
        return 2
    try:
        if arguments.action == "create":
            return _create_key(config, arguments)
        if arguments.action == "revoke":
            with recorded(config, "admin.keys.revoke", arguments.name) as deed:
                ended = issued_keys.revoke(config, arguments.name)
                if ended:
                    deed.target = ", ".join(f"{PREFIX}{key.id} ({key.name})" for key in ended)
                else:
                    deed.found_nothing()
            print(f"ended {', '.join(PREFIX + key.id for key in ended)}" if ended else "there is no such key in use")
            return 0 if ended else 1
        keys = issued_keys.keys_in(config).all()
    except LedgerError as error:
        print(f"the ledger cannot be used: {error}", file=sys.stderr)
        return 1
    except Failure as failure:
        print(f"{failure.message}: {failure.detail}", file=sys.stderr)
        return 1
    if arguments.json:
        for key in keys:
            print(json.dumps(issued_keys.shown(key)))
        return 0
    print("\n".join(issued_keys.table(keys)))
    return 0


def _create_key(config: Config, arguments: argparse.Namespace) -> int:
    expires = until_of(arguments.expires, datetime.now(UTC)) if arguments.expires else None
    if arguments.expires and expires is None:
        print(f"not a time to come: {arguments.expires!r}; write 12h, 30d or a date like 2027-01-31", file=sys.stderr)
        return 2
    metadata = dict(pair.partition("=")[::2] for pair in arguments.metadata)
    new = NewKey(
        name=arguments.name,
        user=arguments.user,
        org=arguments.org,
        agent=arguments.agent,
        email=arguments.email,
        groups=tuple(arguments.group),
        scopes=tuple(arguments.scope),
        metadata=metadata,
        models=tuple(arguments.model) or None,
        servers=tuple(arguments.server) or None,
        tools=tuple(arguments.tool) or None,
        routes=tuple(arguments.route) or None,
        expires_at=int(expires.timestamp()) if expires is not None else None,
    )
    try:
        with recorded(config, "admin.keys.create", arguments.name) as deed:
            secret, key = issued_keys.create(config, new)
            deed.target = f"{PREFIX}{key.id} ({key.name}) for user {key.user!r}"
    except (KeyTaken, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.json:
        print(json.dumps({"key": secret, **issued_keys.shown(key)}))
    else:
        print(secret)
        print("this is the only time that it is shown", file=sys.stderr)
    return 0
