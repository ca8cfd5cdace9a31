"""The commands. Each one parses its arguments, calls one thing below, and says in plain words what went wrong.

Exit status: 0 done, 1 failed, 2 a configuration or an argument that cannot be used.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

from tollhouse.backends.local import install_local_model
from tollhouse.config.schema import schema
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.build import validate
from tollhouse.gateway.listeners import certificates
from tollhouse.gateway.serve import DEMO, demo_path, ledger_of, load_config, serve
from tollhouse.gateway.tools import Found, Tool, approve, look
from tollhouse.ledger.base import BY, LedgerError
from tollhouse.ledger.ship import catch_up
from tollhouse.wire.mcp.letters import visible
from tollhouse.wire.mcp.pins import BadPins

__all__ = ["main"]

_DEFAULT = "tollhouse.yaml"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except ConfigError as error:
        count = len(error.problems)
        print(error, file=sys.stderr)
        print(f"{count} problem{'' if count == 1 else 's'} in the configuration", file=sys.stderr)
        if any(problem.file == DEMO for problem in error.problems):
            print("`tollhouse init` writes the demo as a file to change", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    about = "A gateway between AI agents and everything they call."
    parser = argparse.ArgumentParser(prog="tollhouse", description=about)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub

    sub = add("serve", _serve, "Serve. Without CONFIG: ./tollhouse.yaml, else a built-in demo that needs no key.")
    sub.add_argument("config", nargs="?", help="the configuration file")
    levels = ["debug", "info", "warning", "error"]
    sub.add_argument("--log-level", default="info", choices=levels, help="of the program's own log, on stderr")

    sub = add("check", _check, "Read and build a configuration without serving it; print everything that is wrong.")
    sub.add_argument("config", help="the configuration file")

    add("schema", _schema, "Print the JSON Schema of the configuration, for editors.")

    sub = add("init", _init, "Write a first tollhouse.yaml, or install the local model.")
    sub.add_argument("path", nargs="?", default=_DEFAULT, help="the file to write")
    what = "install the weights of the small local model (98 MB) instead"
    sub.add_argument("--local-model", action="store_true", help=what)

    sub = add("usage", _usage, "Print what was used, from the ledger.")
    sub.add_argument("config", nargs="?", help="the configuration file that names the ledger")
    sub.add_argument("--by", default="model", help=f"comma-separated: {', '.join(BY)}")
    sub.add_argument("--since", default="1d", help="how far back, like 6h or 30d, or a date like 2026-11-01")
    sub.add_argument("--json", action="store_true", help="one JSON object a line")

    sub = add("tools", _tools, "Compare the tools of MCP servers with what was approved; approve them.")
    what = "list: the state of each tool; diff: what is different; approve: pin the tools as they are now"
    sub.add_argument("action", choices=["list", "diff", "approve"], help=what)
    sub.add_argument("config", nargs="?", help="the configuration file that names the servers")
    sub.add_argument("--server", action="append", default=[], help="only of this server; may be given again")
    sub.add_argument("--tool", action="append", default=[], help="only this tool; may be given again")
    sub.add_argument("--json", action="store_true", help="list: one JSON object a line")
    sub.add_argument("--yes", action="store_true", help="approve: do not ask")

    add("version", _version, "Print the version.")
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    return serve(_config_path(arguments.config))


def _config_path(given: str | None) -> Path | None:
    """The file, or None for the built-in demo."""
    if given is not None:
        return Path(given)
    return Path(_DEFAULT) if Path(_DEFAULT).exists() else None


def _check(arguments: argparse.Namespace) -> int:
    loaded = load_config(Path(arguments.config))
    problems = []
    for check in (validate, lambda config: certificates(config.server.listen)):
        try:
            check(loaded.config)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(loaded.complete(problems))
    print(f"{arguments.config}: fine")
    return 0


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(schema(), indent=2))
    return 0


def _init(arguments: argparse.Namespace) -> int:
    if arguments.local_model:
        return 1 if install_local_model() else 0
    path = Path(arguments.path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(demo_path().read_text(encoding="utf-8"))
    except FileExistsError:
        print(f"{path} is already there; name another file or remove it first", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cannot write {path}: {error.strerror}", file=sys.stderr)
        return 1
    print(f"wrote {path}; now: tollhouse serve {path}")
    return 0


def _usage(arguments: argparse.Namespace) -> int:
    by = tuple(word.strip() for word in arguments.by.split(",") if word.strip())
    unknown = [word for word in by if word not in BY]
    if unknown:
        print(f"cannot group by {', '.join(unknown)}; use some of: {', '.join(BY)}", file=sys.stderr)
        return 2
    now = datetime.now(UTC)
    since = _since(arguments.since, now)
    if since is None:
        print(f"not a time: {arguments.since!r}; write 6h, 30d or a date like 2026-11-01", file=sys.stderr)
        return 2
    config = load_config(_config_path(arguments.config)).config
    try:
        ledger = ledger_of(config)
        if ledger is None:
            print("this configuration keeps no ledger", file=sys.stderr)
            return 1
        journal = ledger.path.with_name(ledger.path.name + ".journal")
        if not ledger.path.exists() and not journal.exists():  # asking must not make one
            print(f"nothing is recorded yet: there is no {ledger.path}", file=sys.stderr)
            return 1
        ledger.open()
        try:
            catch_up(journal, ledger)  # what a dead process left
            rows = ledger.usage(int(since.timestamp()), int(now.timestamp()) + 1, by)
        finally:
            ledger.close()
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


def _since(text: str, now: datetime) -> datetime | None:
    """The moment that `text` says, in UTC where it does not say otherwise; None when it is none since 1970."""
    unit = {"h": "hours", "d": "days", "m": "minutes"}.get(text[-1:])
    try:
        if unit is not None and text[:-1].isdecimal():
            since = now - timedelta(**{unit: int(text[:-1])})
        else:
            since = datetime.fromisoformat(text)
            since = since.replace(tzinfo=UTC) if since.tzinfo is None else since.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return since if since.timestamp() >= 0 else None


def _tools(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.CRITICAL)  # what goes wrong with a server is said below
    found = look(load_config(_config_path(arguments.config)).config, arguments.server)
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
    return _approve(found, differ, failed, ask=not arguments.yes)


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


def _approve(found: Found, tools: Sequence[Tool], failed: int, *, ask: bool) -> int:
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
    try:
        written = approve(found, tools)
    except BadPins as error:
        print(f"the pins file cannot be used: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"the pins file cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    print(f"approved {len(tools)} in {', '.join(map(str, written))}")
    return failed


def _version(_: argparse.Namespace) -> int:
    print(version("tollhouse"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
