"""The calls of this worker that wait for an operator.

Rule: what waits is the call's own coroutine, on a future. One task looks for the answers of all of them, while there
are any; a caller that leaves takes its entry away.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable

import msgspec

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.authorize.desk import Answer, Desk, Entry

__all__ = ["Queue"]

log = logging.getLogger("tollhouse.policies.authorize")

_ALPHABET = "23456789abcdefghjkmnpqrstuvwxyz"  # what nobody takes for something else
_LENGTH = 8


class _Waiting:
    """Timed."""

    __slots__ = ("deadline", "future")

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.future: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class Queue:
    """desk: where they are seen. changed: told how many wait, whenever that changes. now: unix seconds."""

    def __init__(
        self,
        desk: Desk,
        clock: Clock,
        changed: Callable[[int], None] = lambda _: None,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._desk = desk
        self._clock = clock
        self._changed = changed
        self._now = now
        self._waiting: dict[str, _Waiting] = {}
        self._of: dict[str, int] = {}
        self._task: asyncio.Task[None] | None = None
        self._again: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, entry: Entry, timeout: float, *, most: int, most_each: int) -> Answer | None:
        """What an operator says of `entry`, whose id and times are set here; None when nobody says anything in time.
        most, most_each: calls that may wait, in all and for one principal. Raises Failure: 429 above them, 503 while
        nobody could see it."""
        own = self._of.get(entry.principal, 0)
        if len(self._waiting) >= most or own >= most_each:
            raise Failure(
                429, Reason.RATE_LIMIT, "too many calls wait for approval already", code="approvals_full",
                detail=f"{len(self._waiting)} in all, {own} of this caller", retry_after=30.0,
            )  # fmt: skip
        now = self._now()
        id = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
        entry = msgspec.structs.replace(entry, id=id, asked=now, until=now + timeout)
        waiting = self._waiting[id] = _Waiting(self._clock.now + timeout)
        self._of[entry.principal] = own + 1
        self._clock.watch(waiting)
        if timeout < 2.0:
            self._clock.hurry(waiting)
        self._changed(len(self._waiting))
        try:
            await self._desk.put(entry)
            log.info("approval %s: %s by %s waits for an operator (%s)", id, entry.what, entry.principal, entry.rule)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._look(), name="approvals")
            return await waiting.future
        finally:
            self._clock.drop(waiting)
            del self._waiting[id]
            left = self._of.pop(entry.principal) - 1
            if left:
                self._of[entry.principal] = left
            self._changed(len(self._waiting))
            await self._drop(id)

    async def _drop(self, id: str) -> None:
        try:
            await self._desk.drop(id)
        except Failure as failure:  # its time ends it as well
            why = failure.detail or failure.message
            log.warning("approval %s: its entry stays until its time is over: %s", id, why)

    async def _look(self) -> None:
        """Find answers, while anybody waits."""
        again = self._again = asyncio.Event()
        stop = self._desk.on_answer(again.set)
        try:
            while self._waiting:
                await self._answers()
                try:
                    async with asyncio.timeout(self._desk.period):
                        await again.wait()
                except TimeoutError:
                    pass
                again.clear()
        except Exception:  # a task's root: those who wait are refused in time
            log.exception("the answers of operators cannot be looked for")
        finally:
            stop()
            self._task = self._again = None

    async def _answers(self) -> None:
        for id, waiting in list(self._waiting.items()):
            if waiting.future.done():
                continue
            try:
                answer = await self._desk.answered(id)
            except Failure as failure:
                log.warning("approvals: the answers cannot be looked for: %s", failure.detail or failure.message)
                return
            if answer is not None and not waiting.future.done():
                waiting.future.set_result(answer)

    async def close(self) -> None:
        """Nobody asks any more."""
        for waiting in list(self._waiting.values()):
            waiting.expire()
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
