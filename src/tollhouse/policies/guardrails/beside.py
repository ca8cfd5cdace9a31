"""A guard that runs beside the call that it is about, and holds only its answer.

Rule: nothing of the answer is given out before the verdict. A verdict that refuses ends the call at once, and a call
that fails ends the guard.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply

__all__ = ["beside"]


async def beside(verdict: Coroutine[Any, Any, object], next: Handler[Any, Reply], call: Call) -> Reply:
    """The call's Reply, once `verdict` has not raised. Raises its Failure; the Reply is closed then."""
    me = asyncio.current_task()
    assert me is not None
    calling = True

    def over(task: "asyncio.Task[object]") -> None:
        if calling and not task.cancelled() and task.exception() is not None:
            me.cancel()

    task = asyncio.ensure_future(verdict)
    task.add_done_callback(over)
    try:
        try:
            reply = await next(call)
        except asyncio.CancelledError:
            refused = task.done() and not task.cancelled() and task.exception() is not None
            if not refused or me.uncancel():
                raise  # its caller has left
            calling = False
            await task
            raise
        calling = False
        try:
            await task
        except BaseException as error:
            failed = error if isinstance(error, Failure) else None
            if failed is None:
                reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
            else:
                reply.close(Ending(failed.status, failed.reason, 0, failed))
            raise
        return reply
    finally:
        calling = False
        task.cancel()
