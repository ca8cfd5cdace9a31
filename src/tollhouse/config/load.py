"""The configuration that a command is given: a file, or the built-in demo.

Rule: everybody who reads it again reads it here, so that it is the same one for the gateway, its workers and commands.
"""

import os
import sys
from importlib.resources import files
from pathlib import Path

from tollhouse.config.parse import Loaded, load, parse

__all__ = ["DEMO", "demo_path", "load_config"]

DEMO = "built-in demo"
"""What the built-in configuration is called where a file would be named."""


def demo_path() -> Path:
    """The built-in configuration that needs no key, no network and no server."""
    return Path(str(files("tollhouse.config") / "demo.yaml"))


def load_config(path: Path | None, before: Loaded | None = None) -> Loaded:
    """Read the configuration in `path`, or the built-in demo, whose files are then in the working directory.

    `${TOLLHOUSE_PYTHON}` is this interpreter unless the environment says otherwise. Raises ConfigError.
    """
    env = {"TOLLHOUSE_PYTHON": sys.executable, **os.environ}
    if path is None:
        return parse(demo_path().read_text(encoding="utf-8"), DEMO, env, before)
    return load(str(path), env, before)
