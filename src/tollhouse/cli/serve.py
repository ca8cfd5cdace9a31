"""`tollhouse serve`."""

import argparse
import logging
import sys

from tollhouse import admin
from tollhouse.cli.command import Commands, config_path
from tollhouse.gateway.serve import serve

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add(
        "serve", _serve, "Serve. Without CONFIG: ./tollhouse.yaml, else a built-in demo that needs no key."
    )
    sub.add_argument("config", nargs="?", help="the configuration file")
    levels = ["debug", "info", "warning", "error"]
    sub.add_argument("--log-level", default="info", choices=levels, help="of the program's own log, on stderr")


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    return serve(config_path(arguments.config), admin.api)
