"""Coarse time: one timer for everything that has a deadline. Setting a deadline is one attribute store.

Rule: an object is looked at once a period, one slice of all objects a turn, so that no turn stalls the loop; a
deadline may therefore be noticed up to one period late. What needs better (timeouts under two seconds) also
calls `hurry` and is looked at every turn. The clock holds no timer itself: `net.timer` calls `turn`. What raises when
its time has come is logged and stops nothing else: all timeouts of the process stand on this.
"""

import logging
from collections.abc import Callable
from time import monotonic
from typing import Protocol

__all__ = ["FOREVER", "SLICES", "Clock", "Timed"]

log = logging.getLogger("tollhouse.core.clock")

FOREVER = 1e18
SLICES = 16


class Timed(Protocol):
    """Has a monotonic deadline in seconds. Once it has passed it becomes FOREVER, and `expire` is called."""

    deadline: float

    def expire(self) -> None: ...


class Clock:
    """`now` is monotonic seconds as of the last turn (at most `tick` old)."""

    __slots__ = ("_hooks", "_slices", "_soon", "_source", "_turns", "now", "tick")

    def __init__(self, period: float = 1.0, source: Callable[[], float] = monotonic) -> None:
        self.tick = period / SLICES
        self._source = source
        self.now = source()
        self._slices: list[set[Timed]] = [set() for _ in range(SLICES)]
        self._soon: set[Timed] = set()
        self._turns = 0
        self._hooks: list[Callable[[], None]] = []

    def watch(self, timed: Timed) -> None:
        self._slices[(id(timed) >> 6) % SLICES].add(timed)

    def drop(self, timed: Timed) -> None:
        self._slices[(id(timed) >> 6) % SLICES].discard(timed)
        self._soon.discard(timed)

    def hurry(self, timed: Timed) -> None:
        """Look at this one every turn until its deadline has passed or it is dropped."""
        self._soon.add(timed)

    def every_turn(self, hook: Callable[[], None]) -> None:
        """Call `hook` each turn (16 times a period): flushing, sampling. It must be quick."""
        self._hooks.append(hook)

    def remove(self, hook: Callable[[], None]) -> None:
        self._hooks.remove(hook)

    def turn(self) -> None:
        """One step: expire what is due in this slice, then run the hooks."""
        now = self.now = self._source()
        self._turns += 1
        due = self._slices[self._turns % SLICES]
        for timed in [t for t in due if t.deadline < now]:
            if timed in due and timed.deadline < now:  # still: one before it may have dropped or moved it
                self._expire(timed)
        if self._soon:
            for timed in list(self._soon):
                if timed not in self._soon:
                    continue
                if timed.deadline < now:
                    self._soon.discard(timed)
                    self._expire(timed)
                elif timed.deadline > now + 2.0:  # moved away: the slices are good enough again
                    self._soon.discard(timed)
        for hook in tuple(self._hooks):
            try:
                hook()
            except Exception:  # as a task's root: the hooks after it have their own work
                log.exception("a hook of the clock failed")

    def _expire(self, timed: Timed) -> None:
        timed.deadline = FOREVER  # first: what raises would else be due again each period
        try:
            timed.expire()
        except Exception:  # as a task's root: a bug in one must not take the others' time away
            log.exception("%s could not be ended at its deadline", type(timed).__name__)
