"""A stream that another worker has, read here: its events come over the bus.

Rule: the worker that has the stream keeps it, and numbers what it sends; the one that reads ends the stream at the
first number that is missing, and the agent comes back with the id of the last event that it got.
"""

from collections.abc import Callable

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Response, Sink, Source
from tollhouse.endpoints.mcp.shared import Word, Workers
from tollhouse.endpoints.mcp.stream import HEADERS, KEEP_ALIVE
from tollhouse.store.base import LARGEST

__all__ = ["Lent", "Relayed"]

_HELD = 1 << 20
_SILENCE = 3 * KEEP_ALIVE  # seconds without even a comment: the other worker is gone


class Lent:
    """Sink of a stream of ours that is read at another worker. ended: told once."""

    __slots__ = ("_ended", "_number", "_source", "_to", "_token", "_workers")

    def __init__(self, workers: Workers, to: str, token: int, source: Source, ended: Callable[[], None]) -> None:
        self._workers = workers
        self._to = to
        self._token = token
        self._number = 0
        self._source: Source | None = source
        self._ended = ended

    def begin(self) -> None:
        if self._source is not None:
            self._source.start(self)

    def send(self, data: bytes) -> None:
        if self._source is None:
            return
        self._number += 1
        word = Word("frame", token=self._token, number=self._number, body=data)
        if len(data) > LARGEST - 1024 or not self._workers.tell(self._to, word):
            self.leave()

    def end(self, failure: Failure | None = None) -> None:
        self._over()
        self._workers.tell(self._to, Word("end", token=self._token, number=self._number + 1))

    def leave(self) -> None:
        """Nobody reads it there any more."""
        source = self._source
        if source is not None:
            self._over()
            source.close()

    def _over(self) -> None:
        if self._source is not None:
            self._source = None
            self._ended()


class Relayed:
    """Source of a Response: a stream that worker `at` has. Timed. ended: told once."""

    __slots__ = (
        "_at", "_clock", "_ended", "_held", "_last", "_over", "_paused", "_sink", "_size", "_token", "_workers",
        "deadline",
    )  # fmt: skip

    def __init__(self, clock: Clock, workers: Workers, at: str, token: int, ended: Callable[[], None]) -> None:
        self._clock = clock
        self._workers = workers
        self._at = at
        self._token = token
        self._ended: Callable[[], None] | None = ended
        self._sink: Sink | None = None
        self._paused = False
        self._held: list[bytes] = []
        self._size = 0
        self._last = 0
        self._over = False
        self.deadline = clock.now + _SILENCE
        clock.watch(self)

    def response(self) -> Response:
        return Response(200, list(HEADERS), source=self)

    def take(self, word: Word) -> None:
        """What the other worker says of it."""
        self._last += 1
        if word.number != self._last or word.op == "end":
            self._stop(tell=word.op != "end")
            return
        self.deadline = self._clock.now + _SILENCE
        if self._sink is not None and not self._paused:
            self._sink.send(word.body)
            return
        self._held.append(word.body)
        self._size += len(word.body)
        if self._size > _HELD + LARGEST:
            self._stop(tell=True)

    def expire(self) -> None:
        self._stop(tell=False)

    def finish(self) -> None:
        """End it in good order: this worker leaves."""
        self._stop(tell=True)

    def lapse(self, failure: Failure) -> None:
        """Who reads here is no longer good."""
        self._stop(tell=True)

    def _stop(self, *, tell: bool) -> None:
        self._finish(tell=tell)
        if not self._held:
            self._end()

    def _finish(self, *, tell: bool) -> None:
        self._over = True
        self.deadline = FOREVER
        self._clock.drop(self)
        ended, self._ended = self._ended, None
        if ended is not None:
            if tell:
                self._workers.tell(self._at, Word("leave", token=self._token))
            ended()

    def _end(self) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end()

    # Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        self.resume()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        while self._held and self._sink is not None and not self._paused:
            data = self._held.pop(0)
            self._size -= len(data)
            self._sink.send(data)
        if self._over and not self._held:
            self._end()

    def close(self) -> None:
        self._sink = None
        self._held.clear()
        self._finish(tell=True)
