"""`tollhouse cache`: kept answers are given no more."""

import argparse
import asyncio
import sys

from tollhouse.cli.admin_api import post
from tollhouse.cli.command import Commands, config_option, config_path
from tollhouse.config.load import load_config
from tollhouse.config.spec import Config
from tollhouse.core.errors import Failure
from tollhouse.gateway.deeds import recorded
from tollhouse.gateway.state import opened_state
from tollhouse.policies.cache.purges import KINDS, purge, purge_line
from tollhouse.wire.mcp.letters import visible

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("cache", _cache, "Purge answers that are kept: of a model, server, user, org, key or tag.")
    sub.add_argument("action", choices=["purge"])
    sub.add_argument("by", choices=KINDS, help="what they belong to; a user's, org's or key's are those it asked for")
    sub.add_argument("name", nargs="?", default="", help="which one; not for `all`")
    config_option(sub)


def _cache(arguments: argparse.Namespace) -> int:
    try:
        line = purge_line(arguments.by, arguments.name)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    config = load_config(config_path(arguments.config)).config
    try:
        if config.state.is_memory:
            asked = {"by": arguments.by, "name": arguments.name}
            why = post(config, "/api/cache/purge", asked, "docs/guide/cache.md")
            if why:
                print(why, file=sys.stderr)
                return 1
        else:
            with recorded(config, "admin.cache.purge", line):
                asyncio.run(_purge(config, line))
    except Failure as failure:
        print(f"the state cannot be used: {failure.detail or failure.message}", file=sys.stderr)
        return 1
    print(f"purged {visible(line)}")
    return 0


async def _purge(config: Config, line: str) -> None:
    async with opened_state(config.state) as (state, _):
        await purge(state, line)
