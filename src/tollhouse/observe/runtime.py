"""The state of the runtime: how late the loop is, how many tasks and connections there are.

Rule: nothing is sampled more often than the clock turns, and what can be read at scrape time is read then.
"""

import asyncio
from collections.abc import Callable

from tollhouse.core.clock import Clock
from tollhouse.observe.families import Families

__all__ = ["Runtime"]


class Runtime:
    """Watches one event loop. `start` and `stop` in that loop's thread.

    worker: this process's number; `runtime_num_workers` is 1 for each, so that their sum is the number of workers.
    """

    def __init__(self, clock: Clock, families: Families, *, worker: str = "0") -> None:
        self._clock = clock
        self._families = families
        self._worker = worker
        self._lag = families.loop_lag.child(worker)
        self._last = 0.0
        families.workers.child(worker).set(1)

    def start(self) -> None:
        """Raises RuntimeError outside a running loop."""
        loop = asyncio.get_running_loop()
        self._last = 0.0
        self._clock.every_turn(self._turn)
        self._families.alive_tasks.reads(lambda: float(len(asyncio.all_tasks(loop))), self._worker)

    def stop(self) -> None:
        self._clock.remove(self._turn)
        self._families.alive_tasks.reads(lambda: 0.0, self._worker)

    def connections(self, read: Callable[[], float], bind: str, gateway: str, listener: str, protocol: str) -> None:
        """Show what `read` says as this listener's open connections."""
        self._families.connections_open.reads(read, bind, gateway, listener, protocol)

    def _turn(self) -> None:
        now = self._clock.now
        last, self._last = self._last, now
        if last:
            late = now - last - self._clock.tick
            self._lag.observe(late if late > 0.0 else 0.0)
