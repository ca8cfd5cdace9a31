"""One request put to its server through the call chain, and its answer told.

Rule: the coroutine that carries the request is the only thing that waits. An agent that cancels interrupts it exactly
as an agent that leaves does, so that there is one way in which the work upstream ends.
"""

import asyncio
from functools import partial

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.bridge import Bridge
from tollhouse.endpoints.mcp.lists import Server
from tollhouse.endpoints.mcp.replay import ResumableAnswer
from tollhouse.endpoints.mcp.request import JSON, Asking
from tollhouse.endpoints.mcp.session import InFlight
from tollhouse.endpoints.mcp.stream import Answer
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions, tasks
from tollhouse.wire.mcp.capabilities import TASKS
from tollhouse.wire.mcp.catalogue import Kind
from tollhouse.wire.mcp.messages import Translation
from tollhouse.wire.mcp.mrtr import METHODS

__all__ = ["begin", "interrupted", "over", "put"]


async def put(
    asking: Asking, server: Server, kind: Kind, original: str, *, wrap: bool, info: bytes, clock: Clock, bridge: Bridge
) -> Response:
    """Ask `server` for `original` (its own name). Raises Failure.

    wrap: URIs carry their server. info: raw JSON of serverInfo.
    """
    request, session = asking.request, asking.session
    context = request.context
    context.server = context.backend = server.name
    upstream = server.upstream
    known = upstream.known(kind, session, asking.lists, context.principal) or upstream.known(kind, None)
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
        profile=asking.profile if upstream.new else asking.profile & ~TASKS,
        extensions=asking.extensions,
    )
    retry = asking.retry
    if retry is not None:
        call.round, call.resume = retry.round, retry.resume
    elif asking.resume is not None:
        call.resume, asking.resume = asking.resume, None
    if asking.method == "tools/call":
        if asking.profile & TASKS or (session is not None and "task" in asking.fields):
            bridge.tasks.begin(asking, call, server, entry, wrap=wrap)
        elif call.resume is not None:
            pass
        elif upstream.new:
            if (
                session is not None
                and (features := upstream.features) is not None
                and tasks.offers(features.capabilities)
            ):
                call.resume = partial(bridge.tasks.new.driven, upstream.handle, session.revision)
        elif entry is not None and entry.as_task and (session is None or not revisions.has_tasks(session.revision)):
            call.resume = bridge.as_task(upstream.handle)
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
        revision=session.revision if session is not None else revisions.NEWEST_OLD,
        public=server.permitted is None,
    )
    if asking.task and asking.method == "tasks/result":
        asking.translation.method, asking.translation.related = "tools/call", asking.task
    chain = (server.tools.get(original) if server.tools and asking.method == "tools/call" else None) or server.chain
    in_flight = begin(asking)
    streams = False
    try:
        reply = await chain(call)
        if asking.method in METHODS:
            if asking.new:
                asking.bridge, asking.inner = bridge, bool(upstream.new)
            if asking.inner:
                pass  # the server's state travels in ours
            elif reply.source is not None or (upstream.new and b"input_required" in reply.first):
                reply = bridge.carried(call, reply, server, asking.endpoint, retry)
        try:
            if reply.source is not None:
                response = _stream(asking, reply, in_flight, clock)
                streams = True
            else:
                data = reply.first
                for tap in reply.taps or ():
                    data = tap(data)
                body, code = asking.first(data)
                status = revisions.status_of(code, new=asking.new) if code else 200
                response = Response(status, [JSON], body, reason=Reason.UPSTREAM, ends=reply.ends)
        except jsonrpc.Malformed as problem:
            context.mcp_outcome = "protocol_error"
            failure = Failure(502, Reason.UPSTREAM_FAILURE, f"{server.name}: {problem.message}", sent=True)
            reply.close(Ending(502, failure.reason, 0, failure))
            raise failure from None
        if context.integrity:  # the tool is not as it was approved, but is used all the same
            response.headers.append((b"x-tollhouse-integrity", context.integrity.encode()))
        return response
    except asyncio.CancelledError:
        if not interrupted(asking, in_flight):
            raise
        raise Failure(499, Reason.CLIENT_GONE, "the request was cancelled") from None
    finally:
        if not streams:
            over(asking, in_flight)


_REPEATABLE = frozenset(("prompts/get", "resources/read", "completion/complete", *tasks.METHODS, *tasks.OLD_METHODS))


def _stream(asking: Asking, reply: Reply, in_flight: InFlight | None, clock: Clock) -> Response:
    data = reply.first  # empty where the first event is still to come
    for tap in reply.taps or () if data else ():
        data = tap(data)

    def ended(failure: Failure | None) -> None:
        context = asking.request.context
        if not context.mcp_outcome:
            context.mcp_outcome = "cancelled"
        over(asking, in_flight)

    first = asking.tell(data) if data else None
    session = asking.session
    answer: Answer | ResumableAnswer
    if session is None:
        answer = Answer(clock, reply, first, tell=asking.tell, failed=asking.failed, ended=ended)
    else:
        tell, failed = asking.tell, asking.failed
        answer = session.answer(
            reply, first, id=asking.id, tell=tell, failed=failed, ended=ended, call=asking.call, token=asking.token
        )
    if in_flight is not None:
        in_flight.task = None
        in_flight.answer = answer
    return answer.response()


def begin(asking: Asking) -> InFlight | None:
    """This task answers a request of a session from now on: its agent may cancel it."""
    session = asking.session
    if session is None:
        return None
    in_flight = session.calls[asking.id] = InFlight(asyncio.current_task())
    return in_flight


def interrupted(asking: Asking, in_flight: InFlight | None) -> bool:
    """Whether this task was interrupted because the agent has cancelled the request; else the task itself ends, and
    that is noted."""
    task = in_flight.task if in_flight is not None else None
    if in_flight is None or not in_flight.cancelled or task is None or task.uncancel():
        asking.request.context.mcp_outcome = "cancelled"
        return False
    return True


def over(asking: Asking, in_flight: InFlight | None) -> None:
    """The request is answered, or will not be."""
    told, asking.over = asking.over, None
    if told is not None:
        told(asking.request.context.mcp_outcome == "ok")
    session = asking.session
    if in_flight is not None and session is not None and session.calls.get(asking.id) is in_flight:
        del session.calls[asking.id]
        session.touch()
