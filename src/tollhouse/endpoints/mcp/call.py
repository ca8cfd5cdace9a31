"""One request put to its server through the call chain, and its answer told.

Rule: the coroutine that carries the request is the only thing that waits. An agent that cancels interrupts it exactly
as an agent that leaves does, so that there is one way in which the work upstream ends.
"""

import asyncio
from functools import partial

from tollhouse.core.call import ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Holders
from tollhouse.core.http import Ending, Response
from tollhouse.core.identity import ACCOUNT_NEEDED
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.bridge import Bridge, Retry
from tollhouse.endpoints.mcp.carried import Carried, over
from tollhouse.endpoints.mcp.in_flight import InFlight
from tollhouse.endpoints.mcp.replay import ResumableAnswer
from tollhouse.endpoints.mcp.request import JSON, Asking, Refused
from tollhouse.endpoints.mcp.server import Server
from tollhouse.endpoints.mcp.stream import Answer
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions, tasks
from tollhouse.wire.mcp.capabilities import TASKS
from tollhouse.wire.mcp.catalogue import Entry, Kind
from tollhouse.wire.mcp.messages import Translation
from tollhouse.wire.mcp.mrtr import METHODS

__all__ = ["begin", "interrupted", "put"]


async def put(
    asking: Asking,
    server: Server,
    kind: Kind,
    original: str,
    *,
    wrap: bool,
    info: bytes,
    clock: Clock,
    bridge: Bridge,
    holders: Holders,
) -> Response:
    """Ask `server` for `original` (its own name). Raises Failure.

    wrap: URIs carry their server. info: raw JSON of serverInfo. holders: where it is written down whose an answer is
    that streams.
    """
    request, session = asking.request, asking.session
    context = request.context
    context.server = context.backend = server.name
    upstream = server.upstream
    known = upstream.known(kind, session, asking.lists, context.principal) or upstream.known(kind, None)
    entry = known.index.get(original) if known is not None else None
    if asking.method == "tools/call":
        context.tool = original
        if asking.connects:
            entry = server.connect.entry if server.connect is not None else None
        elif entry is None and server.described:
            entry = await _described(asking, server, kind, original)
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
        definition=entry.raw if entry is not None else b"",
        connects=asking.connects,
    )
    retry = asking.retry
    if retry is not None:
        call.resume, call.consent, call.round = retry.resume, retry.consent, retry.round
        if retry.first is not None and not await retry.first():
            call.consent, call.round = None, 0
        call.onward = retry.onward
    elif asking.resume is not None:
        call.resume, asking.resume = asking.resume, None
    if asking.method == "tools/call" and not asking.connects:
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
                call.resume = partial(bridge.tasks.new.driven, server, session.revision)
        elif entry is not None and entry.as_task and (session is None or not revisions.has_tasks(session.revision)):
            call.resume = bridge.as_task(server)
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
    chain = server.chain
    if asking.method == "tools/call":
        chain = server.tools.get(original, chain)
    elif asking.task and server.of_tasks:
        chain = server.of_tasks.get(context.tool, chain)
    told = partial(_told, asking, server, bridge, retry)
    in_flight = begin(asking)
    streams = False
    try:
        if session is not None and session.primes and in_flight is not None:
            hold = partial(_hold, asking, holders)
            carried = Carried(asking, session, in_flight, clock, chain, call, told, hold)
            try:
                found = await carried.wait()
            except asyncio.CancelledError:
                streams = True  # or is over, and that was seen to
                raise
            if isinstance(found, Response):
                streams = True
                return found
            reply, first = told(found)
        else:
            reply, first = told(await chain(call))
        if reply.source is not None:
            response = _stream(asking, reply, first, in_flight, clock, holders)
            streams = True
        else:
            assert first is not None
            status = revisions.status_of(asking.code, new=asking.new) if asking.code else 200
            response = Response(status, [JSON], first, reason=Reason.UPSTREAM, ends=reply.ends)
        if context.integrity:  # the tool is not as it was approved, but is used all the same
            response.headers.append((b"x-tollhouse-integrity", context.integrity.encode()))
        if context.cached or context.cache:
            response.headers.append((b"x-tollhouse-cache", b"hit" if context.cached else context.cache.encode()))
        return response
    except asyncio.CancelledError:
        if streams or not interrupted(asking, in_flight):
            raise
        failure = in_flight.failure if in_flight is not None else None
        raise failure or Failure(499, Reason.CLIENT_GONE, "the request was cancelled") from None
    finally:
        if not streams:
            over(asking, in_flight)


async def _described(asking: Asking, server: Server, kind: Kind, name: str) -> Entry | None:
    """What the server says of a tool that is about to be called. Raises Failure."""
    try:
        listing = await server.upstream.listing(kind, asking.session, asking.request.context.principal, asking.lists)
    except Failure as failure:
        if failure.code != ACCOUNT_NEEDED:
            raise
        return None  # rules that ask for it are in doubt, and the call itself says what it needs
    return listing.index.get(name)


_SAME = 8  # requests of one id, which agents must not use twice
_GRACE = 30.0  # seconds after the end of a credential in which a call that it let in may come to its end

_REPEATABLE = frozenset(("prompts/get", "resources/read", "completion/complete", *tasks.METHODS, *tasks.OLD_METHODS))


def _told(
    asking: Asking, server: Server, bridge: Bridge, retry: Retry | None, reply: Reply
) -> tuple[Reply, bytes | None]:
    """`reply` as an agent of its era can have it, and its first message in the agent's words; None where that is left
    out. Raises Failure when it cannot be told."""
    call = asking.call
    assert call is not None
    new = server.upstream.new if call.instead is None else call.instead.new
    if asking.method in METHODS:
        asks = call.asks
        if asking.new:
            asking.bridge, asking.inner = bridge, bool(new) or asks is not None
        if asking.inner:
            pass  # the server's state travels in ours
        elif asks is not None:  # the gateway asks first
            asks.carry = partial(bridge.carried, call, server=server, endpoint=asking.endpoint, retry=retry)
        elif reply.source is not None or (new and b"input_required" in reply.first):
            reply = bridge.carried(call, reply, server, asking.endpoint, retry)
    try:
        data = reply.first  # empty where the first event is still to come
        for tap in reply.taps or () if data else ():
            data = tap(data)
        if reply.source is not None:
            return reply, asking.tell(data) if data else None
        read, reply.read = reply.read, None
        body, asking.code = asking.first(data, read[1] if read is not None and read[0] is data else None)
        return reply, body
    except jsonrpc.Malformed as problem:
        asking.request.context.mcp_outcome = "protocol_error"
        failure = Failure(502, Reason.UPSTREAM_FAILURE, f"{server.name}: {problem.message}", sent=True)
        reply.close(Ending(502, failure.reason, 0, failure))
        raise failure from None


def _hold(asking: Asking, holders: Holders, answer: Answer | ResumableAnswer) -> None:
    """It streams: it is to end when who asked is no longer good."""
    context = asking.request.context
    held = holders.hold(context.principal, answer, grace=_GRACE, context=context)
    answer.ends.append(lambda _: held.release())


def _stream(
    asking: Asking, reply: Reply, first: bytes | None, in_flight: InFlight | None, clock: Clock, holders: Holders
) -> Response:
    def ended(failure: Failure | None) -> None:
        context = asking.request.context
        if not context.mcp_outcome:
            context.mcp_outcome = "cancelled"
        over(asking, in_flight)

    tell, failed = asking.tell, asking.failed
    session = asking.session
    answer: Answer | ResumableAnswer
    if session is None:
        answer = Answer(clock, reply, first, tell=tell, failed=failed, ended=ended)
    else:
        answer = session.answer(
            reply, first, id=asking.id, tell=tell, failed=failed, ended=ended, call=asking.call, token=asking.token
        )
    if in_flight is not None:
        in_flight.task = None
        in_flight.answer = answer
    _hold(asking, holders, answer)
    return answer.response()


def begin(asking: Asking) -> InFlight | None:
    """This task answers a request of a session from now on: its agent may cancel it. Raises Refused."""
    session = asking.session
    if session is None:
        return None
    before = session.calls.get(asking.id)
    if before is not None and len(before) >= _SAME:
        raise Refused(jsonrpc.INVALID_REQUEST, "too many requests with this id are being answered", status=400)
    in_flight = session.calls[asking.id] = InFlight(asyncio.current_task(), before)
    return in_flight


def interrupted(asking: Asking, in_flight: InFlight | None) -> bool:
    """Whether this task was interrupted because the agent has cancelled the request; else the task itself ends, and
    that is noted."""
    task = in_flight.task if in_flight is not None else None
    if in_flight is None or not in_flight.cancelled or task is None or task.uncancel():
        asking.request.context.mcp_outcome = "cancelled"
        return False
    return True
