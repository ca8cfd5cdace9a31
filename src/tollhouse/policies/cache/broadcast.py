"""A stream that is kept, for everybody who waits for it; and one that was kept, as it comes again.

Rule: the upstream sees one Sink and each caller one Source. Nobody waits for another caller: who is slow has what he
has not taken kept for him, up to a bound, and only beyond that the upstream is paused. Nothing of it refers to anything
else after its end.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic

from tollhouse.core.errors import Failure
from tollhouse.core.http import Sink, Source
from tollhouse.core.reply import Tap

__all__ = ["Broadcast", "Leg", "Replay"]

_HELD = 256 << 10
"""Bytes that wait for one caller before the upstream has to."""


class Broadcast:
    """Sink of the upstream. first: what has come before. limit: bytes that are kept; `blocks` is None once there were
    more, and nobody else can come then. ended: told once, when the upstream is over, before any caller is."""

    __slots__ = (
        "_ended",
        "_legs",
        "_limit",
        "_paused",
        "_size",
        "_source",
        "_started",
        "began",
        "blocks",
        "first",
        "over",
        "times",
    )

    def __init__(self, source: Source, first: bytes, limit: int, ended: Callable[[Failure | None], None]) -> None:
        self._source: Source | None = source
        self._ended: Callable[[Failure | None], None] | None = ended
        self._legs: list[Leg] = []
        self._limit = limit
        self._size = len(first)
        self._paused = self._started = self.over = False
        self.began = monotonic()
        self.first = first
        self.blocks: list[bytes] | None = [first] if self._size <= limit else None
        self.times = [0]

    def leg(self) -> "Leg":
        """A Source of all that comes after the first block. It needs all `blocks`."""
        made = Leg(self, [] if self.blocks is None else self.blocks[1:])
        self._legs.append(made)
        return made

    def begin(self) -> None:
        if not self._started and self._source is not None:
            self._started = True
            self._source.start(self)

    # ---- Sink of the upstream
    def send(self, data: bytes) -> None:
        blocks = self.blocks
        if blocks is not None:
            self._size += len(data)
            if self._size > self._limit:
                self.blocks = None
            else:
                blocks.append(data)
                self.times.append(int((monotonic() - self.began) * 1000))
        for leg in tuple(self._legs):
            leg.take(data)

    def end(self, failure: Failure | None = None) -> None:
        self.over = True
        self._source = None
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(failure)
        legs, self._legs = self._legs, []
        for number, leg in enumerate(legs):
            leg.finish(failure if failure is None or not number else failure.copy())

    # ---- of its legs
    def slow(self) -> None:
        if not self._paused and self._source is not None:
            self._paused = True
            self._source.pause()

    def quick(self) -> None:
        if self._paused and all(leg.held <= _HELD for leg in self._legs) and self._source is not None:
            self._paused = False
            self._source.resume()

    def leave(self, leg: "Leg") -> None:
        if leg in self._legs:
            self._legs.remove(leg)
            if self._legs:
                self.quick()

    def close(self) -> None:
        """Nobody wants it any more."""
        source, self._source = self._source, None
        self._ended = None
        self._legs = []
        if source is not None:
            source.close()


class Leg:
    """One caller's Source. taps: applied to what comes by `start`; the Reply's own list, to append to."""

    __slots__ = ("_broadcast", "_failure", "_over", "_paused", "_pending", "_sink", "held", "taps")

    def __init__(self, broadcast: Broadcast, pending: Sequence[bytes]) -> None:
        self._broadcast: Broadcast | None = broadcast
        self._pending = deque(pending)
        self._sink: Sink | None = None
        self._paused = self._over = False
        self._failure: Failure | None = None
        self.held = sum(map(len, pending))
        self.taps: list[Tap] = []

    @property
    def delivered(self) -> bool:
        """Whether the caller has had all of it."""
        return self._over and not self._pending

    # ---- of the broadcast
    def take(self, data: bytes) -> None:
        if self._sink is not None and not self._paused and not self._pending:
            self._deliver(data)
            return
        self._pending.append(data)
        self.held += len(data)
        if self.held > _HELD and self._broadcast is not None:
            self._broadcast.slow()

    def finish(self, failure: Failure | None) -> None:
        self._over = True
        self._failure = failure
        self._broadcast = None
        self._drain()

    # ---- Source of the caller
    def start(self, sink: Sink) -> None:
        self._sink = sink
        self._drain()
        if self._broadcast is not None:
            self._broadcast.begin()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._drain()
        if self._broadcast is not None:
            self._broadcast.quick()

    def close(self) -> None:
        broadcast, self._broadcast = self._broadcast, None
        self._sink = None
        self._pending.clear()
        self.held = 0
        self.taps = []
        self._failure = None
        if broadcast is not None:
            broadcast.leave(self)

    def _deliver(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            return
        try:
            for tap in self.taps:
                data = tap(data)
        except Failure as failure:  # this caller's alone
            self.close()
            sink.end(failure)
            return
        if data:
            sink.send(data)

    def _drain(self) -> None:
        pending = self._pending
        while pending and not self._paused and self._sink is not None:
            data = pending.popleft()
            self.held -= len(data)
            self._deliver(data)
        if self._over and not pending and self._sink is not None:
            sink, self._sink = self._sink, None
            failure, self._failure = self._failure, None
            self.taps = []
            sink.end(failure)


class Replay:
    """A kept stream after its first block. times: milliseconds at which its blocks came; None: all at once."""

    __slots__ = ("_at", "_blocks", "_handle", "_paused", "_sink", "_start", "_times", "taps")

    def __init__(self, blocks: Sequence[bytes], times: Sequence[int] | None) -> None:
        self._blocks = blocks
        self._times = times
        self._at = 1
        self._start = 0.0
        self._paused = False
        self._sink: Sink | None = None
        self._handle: asyncio.TimerHandle | None = None
        self.taps: list[Tap] = []

    def start(self, sink: Sink) -> None:
        self._sink = sink
        if self._times is not None:
            self._start = asyncio.get_running_loop().time()
        self._go_on()

    def pause(self) -> None:
        self._paused = True
        self._cancel()

    def resume(self) -> None:
        self._paused = False
        self._go_on()

    def close(self) -> None:
        self._cancel()
        self._sink = None
        self.taps = []

    def _cancel(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            handle.cancel()

    def _go_on(self) -> None:
        self._handle = None
        blocks, times = self._blocks, self._times
        while self._at < len(blocks) and not self._paused:
            if times is not None:
                loop = asyncio.get_running_loop()
                due = self._start + times[self._at] / 1000
                if due > loop.time():
                    self._handle = loop.call_at(due, self._go_on)
                    return
            sink = self._sink
            if sink is None:
                return
            data = blocks[self._at]
            self._at += 1
            try:
                for tap in self.taps:
                    data = tap(data)
            except Failure as failure:
                self.close()
                sink.end(failure)
                return
            if data:
                sink.send(data)
        sink = self._sink
        if self._at >= len(blocks) and sink is not None:
            self._sink = None
            self.taps = []
            sink.end()
