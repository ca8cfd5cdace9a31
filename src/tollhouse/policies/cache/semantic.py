"""Answers to requests that mean the same: whose last turn says in other words what was asked before.

Rule: all else of the two requests is the same, byte for byte, and so is the space they are asked in; the vectors are
alike enough, and what vectors are blind to agrees (`agree`). One in so many is asked all the same and the answers are
compared, so that an operator sees how often it is wrong. What cannot be compared now is asked as usual.
"""

from collections.abc import Callable, Iterator
from random import random
from typing import Any, Final

import msgspec

from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.http import Request
from tollhouse.observe.families import Families
from tollhouse.policies.cache.agree import Facts, agree, facts_of
from tollhouse.policies.cache.embedder import Embedder, Thread, load_numpy
from tollhouse.policies.cache.entry import Entry
from tollhouse.policies.cache.key import Path, key_of_question
from tollhouse.policies.cache.learned import Learned
from tollhouse.policies.cache.spec import SemanticSpec
from tollhouse.policies.cache.store import Store
from tollhouse.policies.cache.turn import question_of
from tollhouse.policies.cache.vectors import Item, Vectors

__all__ = ["Meanings", "Semantic", "said"]

_ASKED: Final = 1024  # questions whose answers have not come yet
_ALIKE: Final = 0.93  # answers of which one says what the other does
_COMPARED: Final = 500  # characters of them
_TOLD: Final = frozenset(("content", "text", "delta", "output_text"))

_decode = msgspec.json.Decoder().decode


class _Asked:
    """A question that is asked. before: the answer that would have been given, where this is a sample."""

    __slots__ = ("before", "facts", "request", "space", "vector")

    def __init__(self, space: bytes, vector: Any, facts: Facts) -> None:
        self.space = space
        self.vector = vector
        self.facts = facts
        self.before: Entry | None = None
        self.request: Request | None = None


class Meanings:
    """What a process knows of texts by one model, while configurations come and go. Raises ConfigError."""

    def __init__(self, entries: int) -> None:
        self.thread = Thread(load_numpy())
        self.vectors = Vectors(entries, self.thread.numpy)

    async def close(self) -> None:
        self.thread.close()
        self.vectors.clear()


class Semantic:
    """`policy.Kindred`. identity: of the model that makes the vectors. learned: what other nodes know; None where there
    are none."""

    def __init__(
        self,
        spec: SemanticSpec,
        store: Store,
        meanings: Meanings,
        embedder: Embedder,
        clock: Clock,
        families: Families,
        identity: bytes = b"",
        learned: Learned | None = None,
        draw: Callable[[], float] = random,
    ) -> None:
        self._identity = identity
        self._learned = learned
        self._spec = spec
        self._store = store
        self._thread = meanings.thread
        self._vectors = meanings.vectors
        self._embedder = embedder
        self._clock = clock
        self._compared = families.cache_compared
        self._draw = draw
        self._asked: dict[bytes, _Asked] = {}

    async def find(self, key: bytes, call: ModelCall, space: bytes, path: Path, ignore: frozenset[str]) -> Entry | None:
        question = question_of(call)
        if question is None or not 0 < len(question.text) <= self._spec.longest or not question.text.strip():
            return None
        vector = await self._embedder.vector(call.request, question.text)
        if vector is None:
            return None
        # What vectors were made by, and what was verified of texts: they cannot be compared with others.
        context = (*question.context, self._identity, self._spec.verify.encode())
        place = key_of_question(call, space, path, ignore, question.field, context)
        if self._learned is not None:
            await self._learned.read(place)
        facts = facts_of(question.text, self._spec.verify)
        asked = _Asked(place, vector, facts)
        entry = await self._found(place, vector, facts)
        if entry is not None and (not self._spec.sample or self._draw() >= self._spec.sample):
            return entry
        if entry is not None:
            asked.before, asked.request = entry, call.request
        while len(self._asked) >= _ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[key] = asked
        return None

    def learn(self, entry: Entry) -> None:
        asked = self._asked.pop(entry.key, None)
        if asked is None:
            return
        until = self._clock.now + min(self._spec.ttl, entry.ttl)
        item = Item(entry.key, asked.facts, until)
        self._vectors.add(asked.space, item, asked.vector)
        if self._learned is not None:
            self._learned.tell(asked.space, item, asked.vector, min(self._spec.ttl, entry.ttl))
        before, asked.before = asked.before, None
        request, asked.request = asked.request, None
        if before is not None and request is not None:
            _ = self._store.run(self._compare(request, before, entry))

    def place(self, key: bytes) -> bytes:
        asked = self._asked.get(key)
        return b"" if asked is None else asked.space

    def forget(self, key: bytes) -> None:
        """There was no answer to keep."""
        self._asked.pop(key, None)

    async def _found(self, place: bytes, vector: Any, facts: Facts) -> Entry | None:
        view = self._vectors.view(place)
        if view is None:
            return None
        items, rows = view
        for _, number in await self._thread.best(rows, vector, self._spec.threshold):
            item = items[number]
            if not agree(item.facts, facts):
                continue
            kept = None
            if item.until > self._clock.now:
                kept = self._store.find(item.key) or await self._store.fetch(item.key)
            if kept is not None and kept.entry.place == place:
                return kept.entry
            self._vectors.drop(place, item.key)
        return None

    async def _compare(self, request: Request, before: Entry, after: Entry) -> None:
        """Whether both answers say the same."""
        one, other = said(before)[:_COMPARED], said(after)[:_COMPARED]
        alike = one == other
        if not alike and one and other:
            vectors = [await self._embedder.vector(request, text) for text in (one, other)]
            if any(vector is None for vector in vectors):
                return
            alike = float(vectors[0] @ vectors[1]) >= _ALIKE
            alike = alike and facts_of(one, "numbers").numbers == facts_of(other, "numbers").numbers
        self._compared.child("agree" if alike else "disagree").inc()


def said(entry: Entry) -> str:
    """The text of an answer, of any API, as far as it is text."""
    data = b"".join(entry.blocks)
    if not entry.stream:
        return "".join(_texts(_read(data)))
    found: list[str] = []
    for line in data.split(b"\n"):
        if line.startswith(b"data:"):
            found += _texts(_read(line[5:]))
    return "".join(found)


def _read(data: bytes) -> Any:
    try:
        return _decode(data)
    except UNREADABLE:
        return None


def _texts(value: Any, named: bool = False) -> Iterator[str]:
    if isinstance(value, str):
        if named:
            yield value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, name in _TOLD)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, named)
