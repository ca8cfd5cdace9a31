"""A message that is answered in a task of its own: one of a batch, or one whose answer goes on another connection.

Rule: no connection knows it as its request, so it is written down here for whom, and in which agent run, it is
answered; when that is stopped, so is this message, and its agent is told why.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tollhouse.core.errors import Failure
from tollhouse.core.holders import Holders
from tollhouse.core.http import Request, Response
from tollhouse.endpoints.mcp.request import failed, render
from tollhouse.wire import jsonrpc

__all__ = ["answered"]


async def answered(request: Request, put: Callable[[Request], Awaitable[Response]], holders: Holders) -> Response:
    """What `put` answers to `request`, which has its body; the task that this is awaited in has nothing else to do
    meanwhile."""
    task = asyncio.current_task()
    assert task is not None
    held = holders.hold(request.context.principal, _Work(task), expires=False, context=request.context)
    try:
        return await put(request)
    except Failure as failure:
        return render(failure, request)
    except asyncio.CancelledError:
        stopped = request.context.stopped
        if stopped is None or task.uncancel():
            raise
        return failed(_id(request), stopped, request.context)
    finally:
        held.release()


def _id(request: Request) -> bytes:
    try:
        return bytes(jsonrpc.decode(b"".join(request.parts)).id) or b"null"
    except jsonrpc.Malformed:
        return b"null"


class _Work:
    """The task that answers. `core.holders.Holder`."""

    __slots__ = ("_task",)

    def __init__(self, task: "asyncio.Task[Any]") -> None:
        self._task = task

    def lapse(self, failure: Failure) -> None:
        self._task.cancel()
