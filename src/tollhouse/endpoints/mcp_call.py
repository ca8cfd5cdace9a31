"""One request put to its server through the call chain, and its answer told.

Rule: the coroutine that carries the request is the only thing that waits. An agent that cancels interrupts it exactly
as an agent that leaves does, so that there is one way in which the work upstream ends.
"""

import asyncio

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp_lists import Server
from tollhouse.endpoints.mcp_request import JSON, Asking
from tollhouse.endpoints.mcp_session import InFlight
from tollhouse.endpoints.mcp_stream import Answer
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.catalogue import Kind
from tollhouse.wire.mcp.messages import Translation

__all__ = ["put"]


async def put(
    asking: Asking, server: Server, kind: Kind, original: str, *, wrap: bool, info: bytes, clock: Clock
) -> Response:
    """Ask `server` for `original` (its own name). Raises Failure.

    wrap: URIs carry their server. info: raw JSON of serverInfo.
    """
    request, session = asking.request, asking.session
    context = request.context
    context.server = context.backend = server.name
    known = server.upstream.known(kind, session)
    entry = known.index.get(original) if known is not None else None
    if asking.method == "tools/call":
        context.tool = original
    call = asking.call = ToolCall(
        request,
        context,
        server=server.name,
        method=asking.method,
        name=original,
        params=asking.fields,
        meta=asking.meta,
        session=session,
        progress=bool(asking.token),
        level=asking.level,
        idempotent=asking.method in _REPEATABLE or (entry is not None and entry.repeatable),
    )
    arguments = call.arguments
    if len(arguments):
        context.arguments = arguments
    asking.translation = Translation(
        asking.id,
        asking.method,
        server.name,
        new=asking.new,
        wrap=wrap,
        token=asking.token,
        level=asking.level if session is None else session.hears,
        asked=original if asking.method == "resources/read" else "",
        server_info=info if asking.new else b"",
    )
    chain = (server.tools.get(original) if server.tools and asking.method == "tools/call" else None) or server.chain
    in_flight = None
    if session is not None:
        in_flight = session.calls[asking.id] = InFlight(asyncio.current_task())
    streams = False
    try:
        reply = await chain(call)
        try:
            if reply.source is not None:
                response = _stream(asking, reply, in_flight, clock)
                streams = True
                return response
            data = reply.first
            for tap in reply.taps or ():
                data = tap(data)
            body, code = asking.first(data)
        except jsonrpc.Malformed as problem:
            context.mcp_outcome = "protocol_error"
            failure = Failure(502, Reason.UPSTREAM_FAILURE, f"{server.name}: {problem.message}", sent=True)
            reply.close(Ending(502, failure.reason, 0, failure))
            raise failure from None
        status = revisions.status_of(code, new=asking.new) if code else 200
        return Response(status, [JSON], body, reason=Reason.UPSTREAM, ends=reply.ends)
    except asyncio.CancelledError:
        task = in_flight.task if in_flight is not None else None
        if in_flight is None or not in_flight.cancelled or task is None or task.uncancel():
            context.mcp_outcome = "cancelled"
            raise
        raise Failure(499, Reason.CLIENT_GONE, "the request was cancelled") from None
    finally:
        if not streams:
            _over(asking, in_flight)


_REPEATABLE = frozenset(("prompts/get", "resources/read", "completion/complete"))


def _stream(asking: Asking, reply: Reply, in_flight: InFlight | None, clock: Clock) -> Response:
    data = reply.first
    for tap in reply.taps or ():
        data = tap(data)

    def ended(failure: Failure | None) -> None:
        context = asking.request.context
        if not context.mcp_outcome:
            context.mcp_outcome = "cancelled"
        _over(asking, in_flight)

    answer = Answer(clock, reply, asking.tell(data), tell=asking.tell, failed=asking.failed, ended=ended)
    if in_flight is not None:
        in_flight.task = None
        in_flight.answer = answer
    return answer.response()


def _over(asking: Asking, in_flight: InFlight | None) -> None:
    over, asking.over = asking.over, None
    if over is not None:
        over(asking.request.context.mcp_outcome == "ok")
    session = asking.session
    if in_flight is not None and session is not None and session.calls.get(asking.id) is in_flight:
        del session.calls[asking.id]
        session.touch()
