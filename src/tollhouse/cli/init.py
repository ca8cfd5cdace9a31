"""`tollhouse init` and `tollhouse schema`: what is needed to write a configuration."""

import argparse
import json
import sys
from pathlib import Path

from tollhouse.backends.local import install_local_model
from tollhouse.cli.command import DEFAULT, Commands
from tollhouse.config.load import demo_path
from tollhouse.config.schema import schema

__all__ = ["add"]


def add(commands: Commands) -> None:
    """Put it among the commands."""
    sub = commands.add("init", _init, "Write a first tollhouse.yaml, or install the local model.")
    sub.add_argument("path", nargs="?", default=DEFAULT, help="the file to write")
    what = "install the weights of the small local model (98 MB) instead"
    sub.add_argument("--local-model", action="store_true", help=what)

    commands.add("schema", _schema, "Print the JSON Schema of the configuration, for editors.")


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


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(schema(), indent=2))
    return 0
