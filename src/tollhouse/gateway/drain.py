"""The end of a worker, step by step.

Rule (config `server.shutdown`): for `min` the worker still accepts, while every answer asks its client to move
(`Connection: close`) and `/status` says draining, so that load balancers take it out; then it listens no more and
idle connections close; at `max` after the signal whatever is left is cut.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic

from tollhouse.net.listen import Listener

__all__ = ["Drain"]

_FAREWELL = 0.1  # seconds in which what was said at the end goes out


class Drain:
    """Ends the given listeners. `begin` may be called again: each further signal skips the step that is being waited
    for."""

    def __init__(
        self,
        listeners: Iterable[Listener],
        minimum: float,
        maximum: float,
        finish_streams: Callable[[], None] = lambda: None,
        close_sessions: Callable[[], None] = lambda: None,
        settled: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """finish_streams: ends what would stay open for ever, once no new requests are taken. settled: returns when
        nothing is held here that others may still ask for. close_sessions: says its end to what would else be cut."""
        self._listeners = list(listeners)
        self._finish_streams = finish_streams
        self._close_sessions = close_sessions
        self._settled = settled
        self._minimum = minimum
        self._maximum = max(minimum, maximum)
        self._impatience = asyncio.Event()
        self._begun = asyncio.Event()

    def times(self, minimum: float, maximum: float) -> None:
        """Other times, for an end that has not begun."""
        if not self._begun.is_set():
            self._minimum = minimum
            self._maximum = max(minimum, maximum)

    @property
    def begun(self) -> bool:
        return self._begun.is_set()

    def begin(self, *, now: bool = False) -> None:
        """Start draining, or hurry. now: do not keep accepting (an operator at a terminal is waiting)."""
        if now:
            self._minimum = 0.0
        if self._begun.is_set():
            self._impatience.set()
        self._begun.set()

    async def run(self) -> None:
        """Wait for `begin`, then drain. Returns when nothing is served any more."""
        await self._begun.wait()
        began = monotonic()
        for listener in self._listeners:
            listener.server.draining = True
        await self._pause(self._minimum)
        for listener in self._listeners:
            listener.stop()
        self._finish_streams()
        for listener in self._listeners:
            listener.server.close_idle()
        closed = asyncio.ensure_future(asyncio.gather(*(each.server.wait_closed() for each in self._listeners)))
        hurry = asyncio.ensure_future(self._impatience.wait())
        left = max(0.0, began + self._maximum - monotonic())
        settled = asyncio.ensure_future(self._all_settled(closed))
        await asyncio.wait((settled, hurry), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        settled.cancel()
        self._close_sessions()
        await asyncio.wait((closed,), timeout=_FAREWELL)
        for listener in self._listeners:
            listener.server.abort()
        await closed

    async def _all_settled(self, closed: "asyncio.Future[list[None]]") -> None:
        await asyncio.wait((closed,))
        if self._settled is not None:
            await self._settled()

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._impatience.wait(), seconds)
            self._impatience.clear()
        except TimeoutError:
            pass
