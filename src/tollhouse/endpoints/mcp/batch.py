"""JSON-RPC batches, which agents of revision 2025-03-26 may send (and no others).

Rule: a batch is only an envelope. Each message in it is a request of its own to everything that judges, counts and
answers requests; what comes back is put into one answer, as an array, or as one event stream where one of them
streams.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Holders
from tollhouse.core.http import End, Ending, Request, Response, Sink, Source, finish
from tollhouse.endpoints.mcp.apart import answered
from tollhouse.endpoints.mcp.request import JSON, Refused
from tollhouse.endpoints.mcp.stream import HEADERS
from tollhouse.wire import jsonrpc, sse

__all__ = ["LARGEST", "answer", "split"]

LARGEST = 50
"""Messages in one batch."""

_items = msgspec.json.Decoder(list[msgspec.Raw])


def split(body: bytes) -> list[bytes]:
    """The messages of a batch. Raises Malformed for what is no array, Refused for an empty or too large one, for one
    with another in it, and for `initialize` in it (2025-03-26, Lifecycle)."""
    try:
        items = [bytes(item) for item in _items.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise jsonrpc.Malformed(jsonrpc.PARSE_ERROR, "the body is not valid JSON in UTF-8") from None
    except RecursionError:
        raise jsonrpc.Malformed(jsonrpc.PARSE_ERROR, "the JSON is nested too deeply") from None
    if not items:
        raise Refused(jsonrpc.INVALID_REQUEST, "the batch is empty", status=400)
    if len(items) > LARGEST:
        what = f"the batch has {len(items)} messages: at most {LARGEST}"
        raise Refused(jsonrpc.INVALID_REQUEST, what, status=400)
    if any(item.lstrip()[:1] == b"[" for item in items):
        raise Refused(jsonrpc.INVALID_REQUEST, "a batch has messages in it, and no other batch", status=400)
    if any(_method(item) == "initialize" for item in items):
        raise Refused(jsonrpc.INVALID_REQUEST, "initialize must not be in a batch", status=400)
    return items


def _method(item: bytes) -> str:
    try:
        return jsonrpc.decode(item).method
    except jsonrpc.Malformed:
        return ""  # it is refused as one of several


async def answer(
    request: Request, items: Sequence[bytes], put: Callable[[Request], Awaitable[Response]], holders: Holders
) -> Response:
    """Have each message answered by `put`, all at once, and put the answers into one. 202 where there are none."""
    parts = [_part(request, item) for item in items]
    tasks = [asyncio.ensure_future(answered(part, put, holders)) for part in parts]
    try:
        found = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        for task in tasks:
            task.add_done_callback(_left)
        raise
    responses: list[Response] = []
    bug: BaseException | None = None
    for one in found:
        if isinstance(one, Response):
            responses.append(one)
        else:
            bug = one
    if bug is not None:
        for response in responses:
            if response.source is not None:
                response.source.close()
            _settle(response.ends, Ending(500, response.reason))
        raise bug
    request.context.mcp_outcome = "ok"
    ends: list[End] = [partial(_settle, response.ends) for response in responses if response.ends is not None]
    reason = next((response.reason for response in responses), "DirectResponse")
    bodies = [response.body for response in responses if response.source is None and response.body]
    sources = [response.source for response in responses if response.source is not None]
    if sources:
        return Response(200, list(HEADERS), source=_Together(bodies, sources), reason=reason, ends=ends)
    if bodies:
        return Response(200, [JSON], b"[%b]" % b",".join(bodies), reason=reason, ends=ends)
    return Response(202, [], ends=ends)


def _part(request: Request, item: bytes) -> Request:
    """A request with that message alone. What ends with the request, ends with the batch."""
    part = Request(request.method, request.target, request.headers, item, peer=request.peer)
    part.scheme = request.scheme
    part.listener = request.listener
    part.context = msgspec.structs.replace(request.context)
    part.ends = request.ends
    part.render = request.render
    return part


def _left(task: asyncio.Future[Response]) -> None:
    """The agent has gone before all were answered: what is answered is recorded all the same."""
    if not task.cancelled() and task.exception() is None:
        response = task.result()
        if response.source is not None:
            response.source.close()
        _settle(response.ends, Ending(499, Reason.CLIENT_GONE, 0, None, True))


def _settle(ends: list[End] | None, ending: Ending) -> None:
    if ends:
        finish(ends, ending)


class _Together:
    """Several event streams as one. Source of the Response."""

    __slots__ = ("_bodies", "_left", "_sink", "_sources")

    def __init__(self, bodies: Sequence[bytes], sources: Sequence[Source]) -> None:
        self._bodies = list(bodies)
        self._sources = list(sources)
        self._left = len(sources)
        self._sink: Sink | None = None

    def start(self, sink: Sink) -> None:
        self._sink = sink
        for body in self._bodies:
            sink.send(sse.frame(jsonrpc.one_line(body), b"message"))
        self._bodies.clear()
        for source in list(self._sources):
            source.start(_One(self))

    def pause(self) -> None:
        for source in self._sources:
            source.pause()

    def resume(self) -> None:
        for source in self._sources:
            source.resume()

    def close(self) -> None:
        self._sink = None
        sources, self._sources = self._sources, []
        for source in sources:
            source.close()

    def send(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink.send(data)

    def ended(self) -> None:
        self._left -= 1
        if not self._left:
            sink, self._sink = self._sink, None
            self._sources.clear()
            if sink is not None:
                sink.end()


class _One:
    """Sink of one of them."""

    __slots__ = ("_together",)

    def __init__(self, together: _Together) -> None:
        self._together: _Together | None = together

    def send(self, data: bytes) -> None:
        if self._together is not None:
            self._together.send(data)

    def end(self, failure: Failure | None = None) -> None:
        together, self._together = self._together, None
        if together is not None:
            together.ended()
