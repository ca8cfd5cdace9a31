"""The commands. Each one parses its arguments, calls one thing below, and says in plain words what went wrong.

Exit status: 0 done, 1 failed, 2 a configuration or an argument that cannot be used.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Final

from tollhouse.cli import (
    accounts,
    approvals,
    audit,
    budgets,
    cache,
    check,
    credentials,
    init,
    keys,
    kill,
    serve,
    tools,
    usage,
)
from tollhouse.cli.command import Command, Commands
from tollhouse.config.load import DEMO
from tollhouse.core.errors import ConfigError

__all__ = ["main"]

_ADD: Final[tuple[Callable[[Commands], None], ...]] = (
    serve.add, check.add, init.add, keys.add, usage.add, budgets.add, audit.add, approvals.add, accounts.add, kill.add,
    cache.add, tools.add, credentials.add,
)  # fmt: skip
"""In the order in which help shows them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
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
    commands = Commands(parser)
    for add in _ADD:
        add(commands)
    commands.add("version", _version, "Print the version.")
    return parser


def _version(_: argparse.Namespace) -> int:
    print(version("tollhouse"))
    return 0
