"""What all nodes have learned of texts: beside the answers in the state, a list for each space of questions.

Rule: a node reads a list on when it looks in its space, and from where it was, so that nothing is read that nobody asks
about. A list is a help: what cannot be read is passed over, and what cannot be told is known here alone. It says where
an answer may be, never that there is one: that is looked for under its key, with all that holds for answers.
"""

from time import time
from typing import Any, Final

import msgspec

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.policies.cache.agree import Facts
from tollhouse.policies.cache.store import Store
from tollhouse.policies.cache.vectors import Item, Vectors
from tollhouse.store.base import Logs

__all__ = ["Learned"]

_FORMAT: Final = b"\1"
_MOST: Final = 2000  # texts of a space
_PAGE: Final = 128
_PAGES: Final = 16  # read in one go, at most
_TELLING: Final = 64  # at once


class _Lesson(msgspec.Struct, array_like=True, gc=False):
    """until: unix seconds. vector: of float16, which moves a similarity by less than 0.0001."""

    key: bytes
    until: float
    facts: Facts
    vector: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Lesson).decode


class Learned:
    """The lists, as far as `vectors` has them."""

    def __init__(self, logs: Logs, store: Store, vectors: Vectors, clock: Clock, numpy: Any) -> None:
        self._logs = logs
        self._store = store
        self._vectors = vectors
        self._clock = clock
        self._numpy = numpy
        self._telling = 0

    async def read(self, space: bytes) -> None:
        """Take what others have said of a space since the last time."""
        if not self._store.reaches:
            return
        try:
            for _ in range(_PAGES):
                before = self._vectors.position(space)
                position, values = await self._logs.since(_name(space), before, _PAGE)
                for value in values:
                    self._take(space, value)
                if position != before:
                    self._vectors.move(space, position)
                if len(values) < _PAGE:
                    return
        except Failure:
            self._store.rest("get")

    def tell(self, space: bytes, item: Item, vector: Any, ttl: float) -> None:
        """Let the others have it. ttl: seconds."""
        if self._telling < _TELLING and self._store.reaches:
            halves = self._numpy.asarray(vector, dtype="<f2").tobytes()
            until = time() + item.until - self._clock.now
            self._telling += 1
            _ = self._store.run(self._told(space, _encode(_Lesson(item.key, until, item.facts, halves)), ttl))

    async def _told(self, space: bytes, lesson: bytes, ttl: float) -> None:
        try:
            await self._logs.append(_name(space), _FORMAT + lesson, ttl, _MOST)
        except Failure:
            self._store.rest("put")
        finally:
            self._telling -= 1

    def _take(self, space: bytes, value: bytes) -> None:
        try:
            lesson = _decode(value[1:]) if value[:1] == _FORMAT else None
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            lesson = None
        if lesson is None or not lesson.vector or len(lesson.vector) % 2:
            self._store.damaged()
            return
        left = lesson.until - time()
        vector = self._numpy.frombuffer(lesson.vector, dtype="<f2").astype(self._numpy.float32)
        length = float(self._numpy.linalg.norm(vector))
        if left > 0.0 and 0.99 < length < 1.01:  # neither NaN nor what is like everything
            self._vectors.take(space, Item(lesson.key, lesson.facts, self._clock.now + left), vector)


def _name(space: bytes) -> str:
    return f"cache:meant:{space.hex()}"
