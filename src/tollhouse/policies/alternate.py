"""Alternate: another server's tool is asked when a tool has failed, with the same arguments.

Rule: only where that does no harm: the call was not carried out, or carrying it out twice is nothing. What a tool
itself answers, a tool error included, is its answer. The alternate's own rules and limits are asked, and when it fails
too, the caller hears of the first failure.
"""

from collections.abc import Awaitable, Callable

import msgspec

from tollhouse.core.call import Call, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc

__all__ = ["Alternate", "vouched"]

_FAILED = frozenset((Reason.UPSTREAM_FAILURE, Reason.NO_HEALTHY_BACKEND, Reason.TIMEOUT, Reason.MCP))


class Alternate:
    """server, tool: of the alternate, its server's own name. chain: its own, without what counts the call again. used:
    told of each call that it answers. fitted: makes the arguments those that its operator lets it have; raises
    Malformed."""

    def __init__(
        self,
        server: str,
        tool: str,
        chain: Handler[ToolCall, Reply],
        used: Callable[[], None] = lambda: None,
        *,
        fitted: Callable[[msgspec.Raw], msgspec.Raw] = lambda arguments: arguments,
    ) -> None:
        self._server = server
        self._tool = tool
        self._chain = chain
        self._used = used
        self._fitted = fitted
        self._name = msgspec.Raw(msgspec.json.encode(tool))

    async def handle(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        assert isinstance(call, ToolCall)
        try:
            reply = await next(call)
        except Failure as problem:
            if problem.reason not in _FAILED or (problem.sent and not call.idempotent) or _goes_on(call):
                raise
            failure = problem.with_traceback(None)  # it would lead back to this frame, which keeps it
        else:
            if reply.source is not None or b'"error"' not in reply.first or not _is_broken(reply.first):
                return reply
            if not call.idempotent or _goes_on(call):
                return reply
            reply.close(Ending(502, Reason.UPSTREAM_FAILURE))
            failure = Failure(502, Reason.UPSTREAM_FAILURE, f"{call.server}: the server could not answer", sent=True)
        try:
            return await self._instead(call, failure)
        finally:
            del failure

    async def _instead(self, call: ToolCall, failure: Failure) -> Reply:
        context = call.context
        try:
            arguments = self._fitted(msgspec.Raw(call.arguments))
        except jsonrpc.Malformed:  # it could not be asked
            raise failure from None
        before = context.server, context.backend, context.tool
        other = ToolCall(
            call.request,
            context,
            server=self._server,
            method=call.method,
            name=self._tool,
            params={**call.params, "name": self._name} | ({"arguments": arguments} if len(arguments) else {}),
            meta=call.meta,
            session=call.session,
            progress=call.progress,
            level=call.level,
            idempotent=call.idempotent,
            profile=call.profile,
            round=call.round,
        )
        context.server = context.backend = self._server
        context.tool = self._tool
        try:
            reply = await self._chain(other)
        except Failure as another:
            another.with_traceback(None)
            context.server, context.backend, context.tool = before
            raise failure from None
        finally:
            del failure
        call.answer = other.answer
        context.fallback = f"{self._server}__{self._tool}"
        self._used()
        return reply


def _goes_on(call: ToolCall) -> bool:
    """Whether it brings the first server's own state back, which is for that server alone."""
    return call.resume is not None or call.round > 0


def _is_broken(data: bytes) -> bool:
    """Whether an answer is the error of a server that could not do its work, not one about the request."""
    try:
        error = jsonrpc.decode(data).error
    except jsonrpc.Malformed:
        return False
    return len(error) > 0 and jsonrpc.error_fields(error).code == jsonrpc.INTERNAL_ERROR


def vouched(idempotent: bool) -> Callable[[Call, Handler[Call, Reply]], Awaitable[Reply]]:
    """Policy: the operator says whether a tool may be called twice, whatever its server says."""

    def handle(call: Call, next: Handler[Call, Reply]) -> Awaitable[Reply]:
        if isinstance(call, ToolCall):
            call.idempotent = idempotent
        return next(call)

    return handle
