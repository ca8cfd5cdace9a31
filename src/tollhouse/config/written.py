"""What was written in a configuration document, for those who check what is right of it.

Rule: what was found to be wrong is left out, and nobody speaks of it twice.
"""

from collections.abc import Collection, Iterator
from typing import Any

from tollhouse.config.places import Path
from tollhouse.config.spec import Config

__all__ = ["Written", "scopes"]


class Written:
    """What stands in the document, and which of it is not in the Config, because it was wrong."""

    def __init__(self, raw: dict[str, Any], left_out: Collection[Path]) -> None:
        self.raw = raw
        self._left_out = left_out

    def gone(self, path: Path) -> bool:
        """Whether the value at `path`, or one that it stands in, was left out."""
        return any(path[: len(out)] == out for out in self._left_out)

    def touched(self, path: Path) -> bool:
        """Whether that is so, or something in the value was left out."""
        return self.gone(path) or any(out[: len(path)] == path for out in self._left_out)

    def numbered(self, path: Path, entries: Any) -> Iterator[tuple[Path, Any]]:
        """The entries of the list at `path`, each with its path in the document."""
        written = self._at(path)
        if isinstance(written, list):
            numbers = range(len(written))
            kept = [n for n in numbers if not self.gone((*path, n))] if self._left_out else numbers
            for n, entry in zip(kept, entries, strict=False):
                yield (*path, n), entry

    def has(self, *path: str) -> bool:
        """Whether the setting was written."""
        inner = self._at(path[:-1])
        return isinstance(inner, dict) and path[-1] in inner

    def _at(self, path: Path) -> Any:
        """The value there, None where there is none."""
        value: Any = self.raw
        for step in path:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value


def scopes(config: Config, place: Written) -> Iterator[tuple[Path, Any]]:
    """Every place where policies may stand; none has all of them."""
    yield (), config
    yield from place.numbered(("models",), config.models)
    if config.mcp is not None:
        for name, server in config.mcp.servers.items():
            yield ("mcp", "servers", name), server
            for tool, own in server.tools.items():
                yield ("mcp", "servers", name, "tools", tool), own
        yield from place.numbered(("mcp", "endpoints"), config.mcp.endpoints)
    yield from place.numbered(("routes",), config.routes)
