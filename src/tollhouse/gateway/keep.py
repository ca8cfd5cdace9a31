"""Keep: what outlives a configuration, because clients would notice its loss.

Rule: a part (connection pool, limiter state, key set, MCP session, child process) is known by a key that holds
everything it was made from. A Snapshot that asks for the same key gets the same part; a part that no living Snapshot
has asked for is closed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar

__all__ = ["Keep", "Tenure"]

log = logging.getLogger("tollhouse.gateway")

P = TypeVar("P")


class _Part:
    __slots__ = ("close", "users", "value")

    def __init__(self, value: Any, close: Callable[[], Awaitable[None]] | None) -> None:
        self.value = value
        self.close = close
        self.users = 0


class Keep:
    """All parts of a process. Each Snapshot has a Tenure on those it uses."""

    def __init__(self) -> None:
        self._parts: dict[Hashable, _Part] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def tenure(self) -> "Tenure":
        return Tenure(self)

    def __len__(self) -> int:
        return len(self._parts)

    async def close(self) -> None:
        """Close whatever is left, and wait for all that is being closed."""
        for key in list(self._parts):
            self._drop(key)
        while self._closing:
            await asyncio.wait(self._closing)

    def _drop(self, key: Hashable) -> None:
        part = self._parts.pop(key)
        if part.close is not None:
            task = asyncio.get_running_loop().create_task(self._close(key, part.close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, key: Hashable, close: Callable[[], Awaitable[None]]) -> None:
        try:
            await close()
        except Exception:  # the root of a closing task: the others must still close
            log.exception("could not close %r cleanly", key)


class Tenure:
    """The parts one Snapshot uses."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._keys: set[Hashable] = set()

    def get(self, key: Hashable, make: Callable[[], P], close: Callable[[P], Awaitable[None]] | None = None) -> P:
        """The part of that key, made now if there is none. close: how to end it when nobody uses it any more."""
        part = self._keep._parts.get(key)
        if part is None:
            value = make()
            part = _Part(value, None if close is None else lambda: close(value))
            self._keep._parts[key] = part
        if key not in self._keys:
            self._keys.add(key)
            part.users += 1
        value = part.value
        return value

    def end(self) -> None:
        """The Snapshot is closed."""
        keys, self._keys = self._keys, set()
        for key in keys:
            part = self._keep._parts.get(key)
            if part is None:
                continue
            part.users -= 1
            if not part.users:
                self._keep._drop(key)
