"""The time of agent runs: what a run has under way when its time is over ends then, whatever it is waiting for.

Rule: one hook of the clock for all runs of a worker. Whoever is told of a run's end, which is only done where calls of
it are under way, ends all that it has here (requests, streams, sessions); a deadline, which is only kept by those who
ask an upstream, is the second line. A run's end is reckoned once in each worker, on the monotonic clock, so that a
clock that jumps afterwards neither cuts a run short nor gives it more.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from time import monotonic

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import End, Ending

__all__ = ["GRACE", "Walls"]

GRACE = 2.0
"""Seconds that a call's deadline is behind the end of its run: who keeps a deadline blames the upstream for it."""

_MOST = 100_000  # runs


class Walls:
    """Of all runs of a worker. end: ends what a run has under way. why: what its calls are told then, who had so many
    seconds. source: monotonic seconds, as those of `clock`."""

    def __init__(
        self,
        clock: Clock,
        end: Callable[[str, Failure], None],
        why: Callable[[str, float], Failure],
        source: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._end = end
        self._why = why
        self._source = source
        self._ends: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._due: list[tuple[float, str, float]] = []
        self._under_way: dict[str, int] = {}
        clock.every_turn(self._turn)

    def __len__(self) -> int:
        """Runs whose end is still to come."""
        return len(self._due)

    async def close(self) -> None:
        self._clock.remove(self._turn)
        self._due.clear()

    def left(self, run: str, ends: float, now: float, wall: float) -> float:
        """Seconds that the run has left, negative where it has none; it is ended when they are over. ends, now: unix
        seconds. wall: seconds that it had in all."""
        known = self._ends.get(run)
        at = self._source()
        if known is not None and known[0] == ends:
            return known[1] - at
        left = ends - now
        self._ends[run] = (ends, at + left)
        if len(self._ends) > _MOST:
            self._ends.popitem(last=False)
        if left > 0.0 and len(self._due) < _MOST:  # else its calls have their deadlines
            heappush(self._due, (at + left, run, wall))
        return left

    def begun(self, run: str, ends: list[End]) -> None:
        """A call of this run is under way, until these `ends` run."""
        under_way = self._under_way
        under_way[run] = under_way.get(run, 0) + 1
        ends.append(partial(self._over, run))

    def _over(self, run: str, _: Ending) -> None:
        left = self._under_way.pop(run) - 1
        if left:
            self._under_way[run] = left

    def _turn(self) -> None:
        due = self._due
        while due and due[0][0] <= self._clock.now:
            at, run, wall = heappop(due)
            known = self._ends.get(run)
            # Else another configuration gives it more.
            if (known is None or known[1] <= at) and run in self._under_way:
                self._end(run, self._why(run, wall))
