"""Alternate: another server's tool is asked when a tool has failed, with the same arguments.

Rule: only where that does no harm: the call was not carried out, or carrying it out twice is nothing. What a tool
itself answers, a tool error included, is its answer. The alternate's own rules and limits are asked, and when it fails
too, the caller hears of the first failure. An alternate that asks for input gets it: the answers go to who has asked,
and not to the server that had failed.
"""

from collections.abc import Awaitable, Callable

import msgspec

from tollhouse.core.call import Call, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp.capabilities import TASKS

__all__ = ["Alternate", "vouched"]

_FAILED = frozenset((Reason.UPSTREAM_FAILURE, Reason.NO_HEALTHY_BACKEND, Reason.TIMEOUT, Reason.MCP))


class Alternate:
    """server, tool: of the alternate, its server's own name. chain: its own, without what counts the call again. used:
    told of each call that it answers. fitted: makes the arguments those that its operator lets it have; raises
    Malformed. last: asks its server, without rules and limits. new: the era of that server, None while it is not
    known. hidden: whether guards keep it from everybody for what its server says of it; may raise Failure."""

    def __init__(
        self,
        server: str,
        tool: str,
        chain: Handler[ToolCall, Reply],
        used: Callable[[], None] = lambda: None,
        *,
        fitted: Callable[[msgspec.Raw], msgspec.Raw] = lambda arguments: arguments,
        last: Handler[ToolCall, Reply] | None = None,
        new: Callable[[], bool | None] = lambda: None,
        hidden: Callable[[ToolCall], Awaitable[bool]] | None = None,
    ) -> None:
        self.name = f"{server}__{tool}"
        self._last = last if last is not None else chain
        self._new = new
        self._hidden = hidden
        self._server = server
        self._tool = tool
        self._chain = chain
        self._used = used
        self._fitted = fitted
        self._name = msgspec.Raw(msgspec.json.encode(tool))

    @property
    def new(self) -> bool | None:
        return self._new()

    async def handle(self, call: Call, next: Handler[Call, Reply]) -> Reply:
        assert isinstance(call, ToolCall)
        if call.onward == self.name:
            call.resume = None  # which would have kept it from the first server
            return await self._put(call, self._chain)
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
        before = context.server, context.backend, context.tool
        try:
            return await self._put(call, self._chain)
        except Failure as another:
            another.with_traceback(None)
            context.server, context.backend, context.tool = before
            raise failure from None
        finally:
            del failure

    async def again(self, call: ToolCall) -> Reply:
        """`core.call.Instead`."""
        return await self._put(call, self._last)

    async def _put(self, call: ToolCall, chain: Handler[ToolCall, Reply]) -> Reply:
        """What `chain` makes of the call. Raises Failure, also for arguments that the alternate cannot have."""
        context = call.context
        try:
            arguments = self._fitted(msgspec.Raw(call.arguments))
        except jsonrpc.Malformed as problem:
            raise Failure(400, Reason.INVALID_REQUEST, problem.message) from None
        params = {**call.params, "name": self._name} | ({"arguments": arguments} if len(arguments) else {})
        params.pop("task", None)  # tasks are found again by the server that was called
        other = ToolCall(
            call.request,
            context,
            server=self._server,
            method=call.method,
            name=self._tool,
            params=params,
            meta=call.meta,
            session=call.session,
            progress=call.progress,
            level=call.level,
            idempotent=call.idempotent,
            profile=call.profile & ~TASKS,
            round=call.round,
            outgoing=call.outgoing,
        )
        context.server = context.backend = self._server
        context.tool = self._tool
        if self._hidden is not None and await self._hidden(other):
            raise Failure(403, Reason.GUARDRAIL, f"there is no tool {self.name}", code="guardrail")
        reply = await chain(other)
        call.answer, call.moves, call.instead, call.outgoing = other.answer, other.moves, self, other.outgoing
        context.fallback = self.name
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
