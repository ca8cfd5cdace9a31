"""`tollhouse tools`: the tools of MCP servers beside what was approved of them."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence

from tollhouse.cli.command import Commands, config_path
from tollhouse.config.load import load_config
from tollhouse.config.spec import Config
from tollhouse.core.errors import Failure
from tollhouse.gateway.deeds import recorded
from tollhouse.gateway.tools import Found, Tool, approve, look
from tollhouse.wire.mcp.letters import visible
from tollhouse.wire.mcp.pins import BadPins

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("tools", _tools, "Compare the tools of MCP servers with what was approved; approve them.")
    what = "list: the state of each tool; diff: what is different; approve: pin the tools as they are now"
    sub.add_argument("action", choices=["list", "diff", "approve"], help=what)
    sub.add_argument("config", nargs="?", help="the configuration file that names the servers")
    sub.add_argument("--server", action="append", default=[], help="only of this server; may be given again")
    sub.add_argument("--tool", action="append", default=[], help="only this tool; may be given again")
    sub.add_argument("--json", action="store_true", help="list: one JSON object a line")
    sub.add_argument("--yes", action="store_true", help="approve: do not ask")


def _tools(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.CRITICAL)  # what goes wrong with a server is said below
    config = load_config(config_path(arguments.config)).config
    found = look(config, arguments.server)
    for server, why in found.failed.items():
        print(f"{server}: its tools cannot be listed: {why}", file=sys.stderr)
    tools = [tool for tool in found.tools if not arguments.tool or tool.name in arguments.tool]
    missing = [name for name in arguments.tool if all(tool.name != name for tool in tools)]
    for name in missing:
        print(f"there is no tool {name!r}", file=sys.stderr)
    failed = 1 if found.failed or missing else 0
    if arguments.action == "list":
        _print_tools(tools, as_json=arguments.json)
        return failed
    differ = [tool for tool in tools if tool.state not in ("approved", "not pinned") or tool.alarming]
    for tool in differ:
        print(f"{tool.server}/{visible(tool.name)}: {tool.said}")
        for line in tool.diff():
            print(f"  {line}")
        for finding in tool.findings:
            accepted = ", approved" if finding.rule in tool.accepted else ""
            where = visible(finding.place) or "/"
            print(f"  ! {finding.rule} (score {finding.score}{accepted}) at {where}: {finding.what}")
    if arguments.action == "diff":
        return 1 if differ else failed
    return _approve(config, found, differ, failed, ask=not arguments.yes)


def _print_tools(tools: Sequence[Tool], *, as_json: bool) -> None:
    if as_json:
        for tool in tools:
            findings = [{"rule": f.rule, "place": f.place, "score": f.score, "what": f.what} for f in tool.findings]
            said = {"server": tool.server, "tool": tool.name, "state": tool.state, "sha256": tool.sha256}
            print(json.dumps({**said, "risk": tool.risk, "alarming": tool.alarming, "findings": findings}))
        return
    rows = [("server", "tool", "state", "sha256", "findings")]
    for tool in tools:
        rules = ", ".join(f"{finding.rule} {finding.score}" for finding in tool.findings)
        rules += " !" if tool.alarming else ""
        rows.append((tool.server, visible(tool.name), tool.said, tool.sha256[:12], rules))
    widths = [max(len(row[n]) for row in rows) for n in range(4)]
    for row in rows:
        print("  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4])).rstrip())


def _approve(config: Config, found: Found, tools: Sequence[Tool], failed: int, *, ask: bool) -> int:
    for tool in tools:
        if tool.state in ("unreadable", "not pinned"):
            print(f"{tool.server}/{visible(tool.name)} cannot be approved: it is {tool.state}", file=sys.stderr)
            failed = 1
    tools = [tool for tool in tools if tool.state not in ("unreadable", "not pinned")]
    if not tools:
        print("nothing to approve")
        return failed
    if ask:
        if not sys.stdin.isatty():
            print("say --yes to approve this without being asked", file=sys.stderr)
            return 1
        answer = input(f"approve {len(tools)} tool{'' if len(tools) == 1 else 's'} as shown? [y/N] ")
        if answer.strip().lower() not in ("y", "yes"):
            return 1
    # Name and digest: what was approved can be told from what is pinned later.
    names = ", ".join(f"{tool.server}/{visible(tool.name)} {tool.sha256[:12] or 'gone'}" for tool in tools)
    try:
        with recorded(config, "admin.tools.approve", names):
            written = approve(found, tools)
    except Failure as failure:
        print(f"{failure.message}: {failure.detail}", file=sys.stderr)
        return 1
    except BadPins as error:
        print(f"the pins file cannot be used: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the pins file cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"approved {len(tools)} in {', '.join(map(str, written))}")
    return failed
