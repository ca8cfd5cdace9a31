"""What texts mean, as vectors: made in this process by the small model there, or by a provider's.

Rule: vectors are of length one, and freed of what all texts have in common: a model puts any two texts close to each
other, and only beside texts about nothing in particular does it show what they are about. What was asked is kept.
"""

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any, Protocol

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.policies.base import Service
from tollhouse.policies.guardrails.check import CannotCheck
from tollhouse.policies.local_vectors import LocalVectors, NoVectors

__all__ = ["Embedder", "Local", "Meanings", "Upstream"]

_KEPT = 4096  # vectors: 6 MB of those of the local model
_LARGEST = 32 << 20

_ABOUT_NOTHING = (
    "Hello, how are you?",
    "Thank you very much for your help.",
    "What is the capital of Spain?",
    "Tell me a joke.",
    "Write a poem about autumn.",
    "Please summarise the document in three sentences.",
    "The function returns the number of lines in the file.",
    "How many planets are there?",
    "The train leaves at half past nine.",
    "Add two eggs, a cup of flour and a pinch of salt.",
    "Translate this sentence into German.",
    "He was late because of the traffic.",
    "Who wrote this book, and when was it published?",
    "Turn left at the lights and go straight on.",
    "The company will publish its results on Monday.",
    "Can you explain that in other words?",
    "I do not know what to do next.",
    "Water boils at 100 degrees at sea level.",
    "Guten Tag, ich habe eine Frage.",
    "Der Zug hat zehn Minuten Verspätung.",
    "Bonjour, pouvez-vous m'aider ?",
    "La réunion commence à neuf heures.",
    "Hola, tengo una pregunta.",
    "El informe está listo para su revisión.",
)


class Embedder(Protocol):
    """Makes vectors. batch: texts that it takes at once. trouble: why it cannot, as of the last time."""

    batch: int

    @property
    def trouble(self) -> str: ...

    async def vectors(self, texts: Sequence[str], timeout: float) -> Any:
        """A row of numbers for each text, as numpy has them. Raises CannotCheck, TimeoutError."""
        ...


class Local:
    """The model in this process, which reads some 300 characters in 0.1 s."""

    def __init__(self, model: LocalVectors) -> None:
        self._model = model
        self.batch = 8

    @property
    def trouble(self) -> str:
        return self._model.trouble

    async def vectors(self, texts: Sequence[str], timeout: float) -> Any:
        read = [text.replace("\0", " ") for text in texts]
        try:
            async with asyncio.timeout(timeout):
                return await self._model.run(lambda model: model.query(read))
        except NoVectors as error:
            raise CannotCheck(str(error)) from None


class _Vector(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Answer(msgspec.Struct):
    data: list[_Vector]


_answer = msgspec.json.Decoder(_Answer)


class Upstream:
    """A provider's model, by OpenAI's API."""

    def __init__(self, service: Service, model: str) -> None:
        self._service = service
        self._model = model
        self.batch = 64
        self.trouble = ""

    async def vectors(self, texts: Sequence[str], timeout: float) -> Any:
        import numpy  # noqa: PLC0415 - the extra `semantic`

        try:
            rows = await self._asked(list(texts), monotonic() + timeout)
            if len({len(row) for row in rows}) != 1 or not rows[0]:
                raise CannotCheck("its vectors have different lengths, or none")
        except CannotCheck as error:
            self.trouble = str(error)
            raise error.with_traceback(None) from None
        self.trouble = ""
        return numpy.array(rows, dtype=numpy.float32)

    async def _asked(self, texts: list[str], deadline: float) -> list[list[float]]:
        body = msgspec.json.encode({"model": self._model, "input": texts, "encoding_format": "float"})
        try:
            status, _, said = await self._service.post(b"/embeddings", body, deadline=deadline, limit=_LARGEST)
        except Failure as failure:
            raise CannotCheck(f"{failure.message} ({failure.detail})" if failure.detail else failure.message) from None
        if status != 200:
            raise CannotCheck(f"the provider of embeddings answers with status {status}")
        try:
            found = sorted(_answer.decode(said).data, key=lambda one: one.index)
        except UNREADABLE:
            raise CannotCheck("the answer of the provider of embeddings has no vectors") from None
        if len(found) != len(texts):
            raise CannotCheck(f"the provider of embeddings gives {len(found)} vectors for {len(texts)} texts")
        return [one.embedding for one in found]


class Meanings:
    """What texts are about, by an embedder."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._usual: Any = None
        self._known: dict[str, Any] = {}

    @property
    def trouble(self) -> str:
        return self._embedder.trouble

    async def of(self, texts: Sequence[str], timeout: float) -> Any:
        """A row of length one for each text. Raises CannotCheck, TimeoutError. What was read until then is kept, so
        that the next who asks need not wait for it."""
        import numpy  # noqa: PLC0415 - the extra `semantic`

        if self._usual is None:
            self._usual = (await self._read(_ABOUT_NOTHING, timeout)).mean(axis=0)
        rows = await self._read(texts, timeout) - self._usual
        rows /= numpy.maximum(numpy.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
        if not numpy.isfinite(rows).all():
            raise CannotCheck("the model's vectors have numbers that are none")
        return rows

    async def _read(self, texts: Sequence[str], timeout: float) -> Any:
        """The vectors as they come."""
        import numpy  # noqa: PLC0415 - the extra `semantic`

        known = self._known
        rows = {text: known[text] for text in texts if text in known}
        missing = [text for text in dict.fromkeys(texts) if text not in rows]
        for at in range(0, len(missing), self._embedder.batch):
            some = missing[at : at + self._embedder.batch]
            fresh = await self._embedder.vectors(some, timeout)
            if fresh.shape != (len(some), *(fresh.shape[1:] if self._usual is None else self._usual.shape)):
                raise CannotCheck("the model's vectors have another length than before")
            rows.update(zip(some, fresh, strict=True))
            while known and len(known) + len(some) > _KEPT:
                del known[next(iter(known))]
            known.update(zip(some, fresh, strict=True))
        try:
            return numpy.stack([rows[text] for text in texts])
        except ValueError:
            known.clear()
            raise CannotCheck("the model's vectors have different lengths") from None
