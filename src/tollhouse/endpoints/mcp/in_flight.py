"""A request of a session while it is answered, whatever answers it.

Rule: it is ended in one of two ways: its agent has cancelled it, and hears no more of it; or it may not go on, and its
agent is told why.
"""

import asyncio
from typing import Any, Protocol

from tollhouse.core.errors import Failure, Reason

__all__ = ["InFlight"]


class _Stoppable(Protocol):
    def cut(self, failure: Failure) -> None:
        """End without a word."""
        ...

    def lapse(self, failure: Failure) -> None:
        """End, and tell the failure."""
        ...


class InFlight:
    """A request of a session that is being answered: a task that waits, or a stream that flows. failure: why it was
    ended, where that was not its agent's wish. before: one that is answered still and has the same id, which no agent
    should do; both are ended then."""

    __slots__ = ("answer", "before", "cancelled", "failure", "task")

    def __init__(self, task: "asyncio.Task[Any] | None", before: "InFlight | None" = None) -> None:
        self.task = task
        self.before = before
        self.answer: _Stoppable | None = None
        self.cancelled = False
        self.failure: Failure | None = None

    def __len__(self) -> int:
        """How many have its id."""
        return 1 + len(self.before) if self.before is not None else 1

    def cancel(self) -> None:
        if self.before is not None:
            self.before.cancel()
        again, self.cancelled = self.cancelled, True
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.cut(Failure(499, Reason.CLIENT_GONE, "the request was cancelled"))
        elif self.task is not None and not again:
            self.task.cancel()

    def fail(self, failure: Failure) -> None:
        """End it, and tell the agent why where there is a way to."""
        before, self.before = self.before, None
        if before is not None:
            before.fail(failure)
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.lapse(failure)
        else:
            self.failure = failure
            self.cancel()

    def without(self, ended: "InFlight") -> "InFlight | None":
        """What is left of those with its id when `ended` is answered; None for nothing."""
        if ended is self:
            return self.before
        if self.before is not None:
            self.before = self.before.without(ended)
        return self
