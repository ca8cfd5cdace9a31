"""`tollhouse kill`: ends what an agent run, an agent or a key has under way, and lets it do nothing more for a time."""

import argparse
import sys
from datetime import UTC, datetime, timedelta

from tollhouse.cli.admin_api import post
from tollhouse.cli.command import Commands, config_option, config_path, seconds_of
from tollhouse.config.load import load_config
from tollhouse.core.errors import Failure
from tollhouse.gateway.kill import KILLED, kill
from tollhouse.wire.mcp.letters import visible

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add(
        "kill", _kill, "End what a run, an agent or a key has under way, and let it do nothing more for a time."
    )
    sub.add_argument("kind", choices=KILLED)
    sub.add_argument("id", help="the run as usage and logs have it (key:ci/task-1), the agent's or the key's name")
    sub.add_argument("--for", dest="seconds", default="1d", metavar="TIME", help="30m, 12h, 7d; default: 1d")
    config_option(sub)


def _kill(arguments: argparse.Namespace) -> int:
    seconds = seconds_of(arguments.seconds)
    if seconds is None:
        print("`--for` is a time like 30m, 12h or 7d, up to 30d", file=sys.stderr)
        return 2
    if not 0 < len(arguments.id) <= 1024:
        print("a name has 1 to 1024 characters", file=sys.stderr)
        return 2
    config = load_config(config_path(arguments.config)).config
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    try:
        if config.state.is_memory:
            asked = {"kind": arguments.kind, "id": arguments.id, "until": until.isoformat()}
            why = post(config, "/api/revocations", asked, "docs/guide/runs.md")
            if why:
                print(why, file=sys.stderr)
                return 1
        else:
            kill(config, arguments.kind, arguments.id, seconds)
    except Failure as failure:
        print(f"the state cannot be used: {failure.detail or failure.message}", file=sys.stderr)
        return 1
    print(f"stopped the {arguments.kind} {visible(arguments.id)} until {until.isoformat(timespec='seconds')}")
    return 0
