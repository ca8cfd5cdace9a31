"""Who waits while all the sessions that there may be with a server are in use.

Rule: first come, first served, and nobody for long; what becomes free meanwhile is whose turn it is, and nobody else's.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

from tollhouse.backends.mcp.heal import UNAVAILABLE
from tollhouse.core.errors import Failure, Reason

__all__ = ["Room"]

_WAITING = 256  # at once
_PATIENCE = 10.0  # seconds
_LOOK = 0.5  # seconds; what was opened for somebody who has left is free at some time, and nothing says so


class Room:
    """name: the server's, for messages. limit: sessions that there may be. make: whether there is room for one more,
    beside what is `promised`. patience: seconds that anybody waits."""

    __slots__ = ("_closed", "_letting_in", "_limit", "_make", "_name", "_waiting", "patience", "promised")

    def __init__(self, name: str, limit: int, make: Callable[[], bool]) -> None:
        self._name = name
        self._limit = limit
        self._make = make
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._letting_in = False
        self._closed = False
        self.patience = _PATIENCE
        self.promised = 0

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, deadline: float) -> None:
        """Wait for room. It is `promised` then, until `taken`. Raises Failure 503 (`server_unavailable`)."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if len(self._waiting) < _WAITING:
            self._waiting.append(waiter)
            try:
                end = min(monotonic() + self.patience, deadline)
                while not waiter.done() and (left := end - monotonic()) > 0:
                    await asyncio.wait([waiter], timeout=min(left, _LOOK))
                    self.let_in()
            except asyncio.CancelledError:
                if waiter.done():  # just now: it is another's
                    self.taken()
                raise
            finally:
                if not waiter.done():
                    self._waiting.remove(waiter)
        if not waiter.done():
            raise Failure(
                503,
                Reason.UPSTREAM_FAILURE,
                f"{self._name}: all {self._limit} sessions with the server are in use",
                code=UNAVAILABLE,
                retry=True,
                reached=False,
            )

    def taken(self) -> None:
        """What was promised is in use, or not needed after all."""
        self.promised -= 1
        self.let_in()

    def let_in(self) -> None:
        """There may be room: who has waited longest has it."""
        if self._letting_in:  # by the very session that has given way
            return
        self._letting_in = True
        try:
            while self._waiting and (self._closed or self._make()):
                self.promised += 1
                self._waiting.popleft().set_result(None)
        finally:
            self._letting_in = False

    def close(self) -> None:
        """Nobody needs to wait any more: who asks is told that the server has gone."""
        self._closed = True
        self.let_in()
