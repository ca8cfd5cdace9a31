"""Vectors of texts: from the small model in this process, or from a model that is configured.

Rule: nothing waits for long. Where too many texts wait for the model in the process there is no vector, and the request
is asked as usual; many vectors are compared in a thread. A text that the model would not read to its end has no vector:
what it did not read might be what matters.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Protocol

from tollhouse.core.errors import ConfigError, Failure, Problem
from tollhouse.core.http import Request
from tollhouse.policies.local_vectors import LocalVectors, NoVectors

__all__ = ["Embed", "Embedder", "Local", "Remote", "Thread", "load_numpy"]

Embed = Callable[[Request, Sequence[str]], Awaitable[list[list[float]]]]
"""One vector for each text, asked for in the name of a request's caller. Raises Failure."""

_WAITING: Final = 16
_FEW: Final = 64  # rows, which are compared before a thread is woken
_TOKENS: Final = 500  # which the model reads at most 512 of


def load_numpy() -> Any:
    """Raises ConfigError."""
    try:
        import numpy  # noqa: PLC0415 - the extra `semantic`
    except ImportError:
        message = "needs the extra `semantic`: pip install 'tollhouse[semantic]'"
        raise ConfigError([Problem(message, path="cache.semantic")]) from None
    return numpy


class Thread:
    """Where vectors are compared. numpy: the module."""

    def __init__(self, numpy: Any) -> None:
        self.numpy = numpy
        self._threads = ThreadPoolExecutor(1, "tollhouse-compares")
        self._waiting = 0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, work: Callable[[], Any]) -> Any:
        """What it gives; None where too much waits already."""
        if self._waiting >= _WAITING:
            return None
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._waiting -= 1

    async def best(self, rows: Any, vector: Any, threshold: float) -> list[tuple[float, int]]:
        """(similarity, number) of the rows that are similar enough, the most similar first."""
        if len(rows) <= _FEW:
            return _best(self.numpy, rows, vector, threshold)
        found: list[tuple[float, int]] | None = await self.run(partial(_best, self.numpy, rows, vector, threshold))
        return found or []


class Embedder(Protocol):
    async def vector(self, request: Request, text: str) -> Any:
        """Of length 1; None where there is none to be had now."""
        ...


class Local:
    """The model in the process; where it cannot be run, there are no vectors."""

    def __init__(self, model: LocalVectors) -> None:
        self._model = model

    async def vector(self, request: Request, text: str) -> Any:
        if "\0" in text or not _is_text(text):  # the model's text ends there
            return None
        try:
            return await self._model.run(partial(_made, text), _WAITING)
        except NoVectors:
            return None


class Remote:
    """A model that is configured."""

    def __init__(self, numpy: Any, embed: Embed) -> None:
        self._numpy = numpy
        self._embed = embed

    async def vector(self, request: Request, text: str) -> Any:
        try:
            (found,) = await self._embed(request, [text])
        except Failure:
            return None
        made = self._numpy.asarray(found, dtype=self._numpy.float32)
        length = float(self._numpy.linalg.norm(made))
        return made / length if 0.0 < length < float("inf") else None


def _best(numpy: Any, rows: Any, vector: Any, threshold: float) -> list[tuple[float, int]]:
    if not len(rows) or rows.shape[1] != len(vector):
        return []
    alike = rows @ vector
    found = numpy.flatnonzero(alike >= threshold)
    return sorted(((float(alike[n]), int(n)) for n in found), reverse=True)[:8]


def _made(text: str, model: Any) -> Any:
    return None if model.token_count(text, True) > _TOKENS else model.query(text)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
