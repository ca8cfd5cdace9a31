"""Drives a Clock from the event loop. The only timer that runs all the time."""

import asyncio

from tollhouse.core.clock import Clock

__all__ = ["Timer"]


class Timer:
    """Turns `clock` every tick, from `start` to `stop`. lag: seconds by which the last turn came late."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0
        self.lag = 0.0

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._due = loop.time()
        self._turn(loop)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        self.lag = max(0.0, now - self._due)
        self._due = now + self._clock.tick
        # Armed before the turn: whatever happens in it does not stop time.
        self._handle = loop.call_later(self._clock.tick, self._turn, loop)
        self._clock.turn()
