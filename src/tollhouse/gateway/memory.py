"""Memory: keeps the garbage collector and the reading of large configurations from stalling the loop, and gives memory
back after a peak.

Theory of operation. A request leaves no cycles, so the collector finds nothing. At its usual threshold of 700 new
objects it would look every few requests all the same, and find those that are under way: here it waits for 10,000.
In a configuration it finds nothing either, but each full collection walks all of it: 40 to 80 ms with 5,000 models. So
what lives once everything is built is put out of its sight (`gc.freeze`), and so is a configuration that comes later,
when it is large; a cycle in that would stay for ever, but models have none. A configuration is read in a thread, and
makes many objects at once: meanwhile nothing is collected. Threads change places after one millisecond and not after
five, because an answer needs several turns of the loop, and each of them waits for the thread that reads.
glibc keeps what a peak of connections has taken: `malloc_trim` gives back what it can, in 0.2 ms for each 1,000
connections (after 9,000 streams 18 MB of 80; the rest is in pages of Python's own allocator that are partly in use).

Rule: nothing here changes what anything else does; without it the gateway works, with longer pauses.
"""

import ctypes
import gc
import logging
import sys
from collections.abc import Callable
from typing import Final

from tollhouse.core.clock import Clock

__all__ = ["Memory", "system_trim"]

log = logging.getLogger("tollhouse.gateway")

_SWITCH: Final = 0.001  # seconds after which a thread that computes lets another one go on
_LARGE: Final = 20_000  # objects that are new after a configuration was read: some hundred models
_YOUNG: Final = 10_000  # objects that are new before the collector looks at them
_LOOK: Final = 1.0  # seconds between two looks at the connections
_PEAK: Final = 500  # connections that must have gone
_CALM: Final = 3  # looks for which they must have stayed away


class Memory:
    """Of one process. connections: how many clients are connected now. trim: gives memory back to the system; None
    where that cannot be asked for."""

    def __init__(self, clock: Clock, connections: Callable[[], int], trim: Callable[[], object] | None = None) -> None:
        self._clock = clock
        self._connections = connections
        self._trim = trim
        self._switch = 0.0
        self._young = (700, 10, 10)
        self._peak = 0
        self._calm = 0
        self._next_look = 0.0
        self._was_read = False

    def start(self) -> None:
        """Everything is built. Until `stop`."""
        self._switch = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        self._young = gc.get_threshold()
        gc.set_threshold(_YOUNG, *self._young[1:])
        gc.collect()
        gc.freeze()
        self._clock.every_turn(self._turn)

    def stop(self) -> None:
        self._clock.remove(self._turn)
        gc.enable()
        gc.unfreeze()
        gc.set_threshold(*self._young)
        sys.setswitchinterval(self._switch)

    def reading(self) -> None:
        """A configuration is about to be read. In any thread."""
        self._was_read = False
        gc.disable()

    def read(self) -> None:
        """It was read, whatever came of it, and is built before the loop turns again. In the loop's thread."""
        self._was_read = True

    def _turn(self) -> None:
        if self._was_read:
            self._was_read = False
            if gc.get_count()[0] > _LARGE:
                gc.freeze()
            gc.enable()
        if self._trim is not None and self._clock.now >= self._next_look:
            self._next_look = self._clock.now + _LOOK
            self._look(self._trim)

    def _look(self, trim: Callable[[], object]) -> None:
        now = self._connections()
        if now > self._peak:
            self._peak = now
        if self._peak - now < _PEAK or now * 4 > self._peak:
            self._calm = 0
            return
        self._calm += 1
        if self._calm >= _CALM:
            self._calm, self._peak = 0, now
            trim()
            log.debug("memory that a peak had taken was given back")


def system_trim() -> Callable[[], object] | None:
    """malloc_trim(3) of glibc; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None
    trim.argtypes, trim.restype = (ctypes.c_size_t,), ctypes.c_int
    return lambda: trim(0)
