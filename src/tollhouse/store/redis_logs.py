"""Lists that workers append to and read on, on Valkey or Redis: streams.

Rule: an append is one step, and its bound is the newest ones. Positions are the server's ids, which only rise as long
as the list is there; where it begins anew after a clock was set back, what is below a position is missed.
"""

from collections.abc import Sequence
from typing import Any

from tollhouse.store.base import LARGEST, must_fit
from tollhouse.store.redis_counter import script
from tollhouse.store.redis_server import Server

__all__ = ["RedisLogs"]


class RedisLogs:
    """A `store.base.Logs`. largest: bytes of a value."""

    __slots__ = ("_append", "_largest", "_prefix", "_server")

    def __init__(self, server: Server, prefix: str, largest: int = LARGEST) -> None:
        self._server = server
        self._prefix = f"{prefix}:l:".encode()
        self._largest = largest
        self._append = script("append.lua")

    async def append(self, key: str, value: bytes, ttl: float, most: int) -> None:
        must_fit(key, value, ttl, self._largest)
        name = self._name(key)
        command = (b"1", name, value, b"%d" % max(int(ttl * 1000.0), 1), b"%d" % most)
        await self._server.ask("append", command, key=name, script=self._append)

    async def since(self, key: str, after: bytes, most: int) -> tuple[bytes, list[bytes]]:
        must_fit(key)
        name = self._name(key)
        first = b"(" + after if after else b"-"
        command = (b"XRANGE", name, first, b"+", b"COUNT", b"%d" % most)
        found: Sequence[Any] = await self._server.ask("since", command, key=name, again=True)
        return (found[-1][0] if found else after), [fields[1] for _, fields in found if fields and len(fields) > 1]

    def _name(self, key: str) -> bytes:
        return self._prefix + key.encode("utf-8", "surrogatepass")
