"""What the commands share: how they are added, and how they read their arguments.

Rule: a command is one file with `add`, and one line in the list in `tollhouse.cli`.
"""

import argparse
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from tollhouse.core.errors import ConfigError, Problem
from tollhouse.core.moments import since_of

__all__ = [
    "DEFAULT",
    "Command",
    "Commands",
    "config_option",
    "config_path",
    "seconds_of",
    "since_of",
    "text_of",
    "until_of",
]

DEFAULT = "tollhouse.yaml"

Command = Callable[[argparse.Namespace], int]
"""Runs with its arguments; the exit status."""


class Commands:
    """The commands of one parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(self, name: str, command: Command, help: str) -> argparse.ArgumentParser:
        """A command of that name: its own parser, for its arguments."""
        sub = self._commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        return sub


def config_option(sub: argparse.ArgumentParser) -> None:
    """`--config`, for commands whose arguments are something else."""
    sub.add_argument("--config", help="the configuration file; default: ./tollhouse.yaml")


def config_path(given: str | None) -> Path | None:
    """The file, or None for the built-in demo."""
    if given is not None:
        return Path(given)
    return Path(DEFAULT) if Path(DEFAULT).exists() else None


def text_of(file: str) -> str:
    """Raises ConfigError."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError([Problem(f"cannot be read: {error.strerror}", file=file)]) from None
    except UnicodeDecodeError:
        raise ConfigError([Problem("not UTF-8 text", file=file)]) from None


def until_of(text: str, now: datetime) -> datetime | None:
    """The moment that `text` says, in UTC where it does not say otherwise; None when it is none to come."""
    before = since_of(text, now)
    if before is None:
        return None
    moment = now + (now - before) if text[-1:] in "hdm" else before
    return moment if moment > now else None


def seconds_of(text: str) -> float | None:
    """Of a time like 30m, up to 30 days; None when it is none."""
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}.get(text[-1:])
    seconds = unit * int(text[:-1]) if unit is not None and text[:-1].isdecimal() else 0.0
    return seconds if 0 < seconds <= 30 * 86400.0 else None
