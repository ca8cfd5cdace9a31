"""The transport of revision 2024-11-05 (HTTP+SSE) before an endpoint that speaks Streamable HTTP.

Rule: this is a translation of transports and nothing else. Each message that is posted becomes a request to the
endpoint as an agent of today would make it, and whatever the endpoint answers is put on the one stream that the agent
has open. The session ends with that stream, and the stream with the credential that it was opened with. No caller may
have so many that others find no room.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from tollhouse.core.call import Context
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.holders import Held, Holders
from tollhouse.core.http import Ending, Headers, Request, Response, Source, finish
from tollhouse.endpoints.mcp.apart import answered
from tollhouse.endpoints.mcp.request import LONGEST_METHOD, plain
from tollhouse.endpoints.mcp.stream import Outlet
from tollhouse.endpoints.mcp.subscriptions import caller_of
from tollhouse.wire import jsonrpc, sse
from tollhouse.wire.mcp import revisions

__all__ = ["HttpSse"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_OPEN = 1000  # streams at once
_OPEN_EACH = 250  # of one caller
_POSTED = 64  # messages of one agent that are being answered
_TRANSPORT = frozenset(
    (
        b"accept", b"content-type", b"content-length", b"content-encoding", b"transfer-encoding", b"connection",
        b"expect", b"last-event-id", b"mcp-session-id", b"mcp-protocol-version", b"mcp-method", b"mcp-name",
    )
)  # fmt: skip
"""What is said anew. All else stays: rules and limits may go by it."""


class HttpSse:
    """path: of the endpoint; the stream is at `<path>/sse` and messages go to `<path>/messages`. endpoint: its Handler;
    another one may take its place. end: called with (session id, principal, path) when a stream has ended. limit_each:
    streams of one caller (`caller_of`). holders: where it is written down whose they are."""

    def __init__(
        self,
        path: str,
        endpoint: Handler[Request, Response],
        clock: Clock,
        *,
        end: Callable[[str, str, str], None],
        max_body: int = 10 << 20,
        limit_each: int = _OPEN_EACH,
        holders: Holders | None = None,
    ) -> None:
        self.limit_each = limit_each
        self.holders = holders if holders is not None else Holders(clock)
        self._of: dict[str, int] = {}
        self.path = path
        self.clock = clock
        self.endpoint = endpoint
        self.end = end
        self._max_body = max_body
        self._open: dict[str, _Stream] = {}

    def serve(self, endpoint: Handler[Request, Response]) -> None:
        """Another configuration serves: `endpoint` answers from now on."""
        self.endpoint = endpoint

    def __len__(self) -> int:
        return len(self._open)

    async def stream(self, request: Request) -> Response:
        """GET: the stream; its first event says where to post (2024-11-05, HTTP with SSE). Raises Failure."""
        if request.method != b"GET":
            return plain(405, "use GET", (b"allow", b"GET"))
        context = request.context
        caller = caller_of(context.principal, context.client or request.peer)
        own, most = self._of.get(caller, 0), min(self.limit_each, _OPEN_EACH)
        if own >= most:
            raise Failure(429, Reason.RATE_LIMIT, f"this caller has {most} event streams of HTTP+SSE open: end some")
        if len(self._open) >= _OPEN:
            raise Failure(503, Reason.MCP, f"{_OPEN} event streams of HTTP+SSE are open already")
        context.operation = "mcp"
        id = secrets.token_urlsafe(24)
        stream = self._open[id] = _Stream(self, id, _who(request), caller)
        self._of[caller] = own + 1
        stream.held = self.holders.hold(context.principal, stream)
        place = f"{self.path}/messages?session_id={id}"
        stream.outlet.put(b"event: endpoint\ndata: %b\n\n" % place.encode())
        return stream.outlet.response()

    async def message(self, request: Request) -> Response:
        """POST: one message; its answer is told on the stream. Raises Failure."""
        if request.method != b"POST":
            return plain(405, "use POST", (b"allow", b"POST"))
        body = await request.read(self._max_body)
        request.context.operation = "mcp"
        request.context.bytes_in = len(body)
        given = dict(pair.partition(b"=")[::2] for pair in request.query.split(b"&"))
        stream = self._open.get(given.get(b"session_id", b"").decode("latin-1"))
        if stream is None or stream.principal != _who(request):
            return plain(404, f"there is no such session: begin with GET {self.path}/sse")
        try:
            message = jsonrpc.decode(body)
        except jsonrpc.Malformed as problem:
            return plain(400, problem.message)
        request.context.mcp_method = message.method[:LONGEST_METHOD]
        request.context.mcp_outcome = "ok"
        if not stream.take(request, body, handshake=message.method == "initialize"):
            return plain(429, f"{_POSTED} messages of this session are being answered")
        return Response(202, [])

    def left(self, id: str, caller: str) -> None:
        """That stream has ended."""
        if self._open.pop(id, None) is not None:
            left = self._of.pop(caller) - 1
            if left:
                self._of[caller] = left

    def finish(self) -> None:
        """End every stream: the process leaves."""
        for stream in list(self._open.values()):
            stream.outlet.finish()


class _Stream:
    """The one stream of an agent, and what is being answered on it."""

    __slots__ = ("_caller", "_home", "_id", "_session", "_sources", "_tasks", "held", "outlet", "principal")

    def __init__(self, home: HttpSse, id: str, principal: str, caller: str) -> None:
        self._caller = caller
        self.held: Held | None = None
        self._home = home
        self._id = id
        self._session = b""
        self._tasks: set[asyncio.Task[None]] = set()
        self._sources: set[_Part] = set()
        self.principal = principal
        self.outlet = Outlet(home.clock, self._closed, greeting=b"")

    def take(self, request: Request, body: bytes, *, handshake: bool) -> bool:
        """Have one message answered; False when too many are."""
        if len(self._tasks) + len(self._sources) >= _POSTED:
            return False
        part = self._request(b"POST", request.headers, request.context, body, handshake=handshake)
        part.peer, part.scheme, part.listener = request.peer, request.scheme, request.listener
        self._run(self._answer(part, handshake=handshake))
        return True

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _request(
        self, method: bytes, given: Headers, context: Context, body: bytes = b"", *, handshake: bool = False
    ) -> Request:
        headers = Headers((name, value) for name, value in given if name not in _TRANSPORT)
        headers.append((b"accept", b"application/json, text/event-stream"))
        if body:
            headers.append((b"content-type", b"application/json"))
        if handshake:
            headers.append((b"mcp-protocol-version", revisions.OLDEST.encode()))
        elif self._session:
            headers.append((b"mcp-session-id", self._session))
        request = Request(method, self._home.path.encode(), headers, body)
        request.context = msgspec.structs.replace(context)
        return request

    async def _answer(self, request: Request, *, handshake: bool) -> None:
        try:
            response = await answered(request, self._home.endpoint, self._home.holders)
        except asyncio.CancelledError:
            _settle(request, Response(499, []), Ending(499, Reason.CLIENT_GONE, 0, None, True))
            raise
        except Exception:  # the root of this task: a bug ends this stream and nothing else
            log.exception("a message over HTTP+SSE could not be answered")
            self.outlet.finish()
            return
        self._put(request, response)
        session = next((value for name, value in response.headers if name == b"mcp-session-id"), b"")
        if handshake and session:
            self._end_session()
            self._session = session
            await self._answer(self._request(b"GET", request.headers, request.context), handshake=False)

    def _put(self, request: Request, response: Response) -> None:
        source = response.source
        if source is not None:
            part = _Part(self, request, response, source)
            self._sources.add(part)
            source.start(part)
            return
        if response.body:
            self.outlet.put(sse.frame(jsonrpc.one_line(response.body), b"message"))
        _settle(request, response, Ending(response.status, response.reason, len(response.body)))

    def over(self, part: "_Part") -> None:
        self._sources.discard(part)

    def _end_session(self) -> None:
        session, self._session = self._session, b""
        if session:
            self._home.end(session.decode("latin-1"), self.principal, self._home.path)

    def lapse(self, failure: Failure) -> None:
        """Who opened it is no longer good. What it was asked for was told so, or has time by itself."""
        self.outlet.finish()

    def _closed(self, _: Outlet) -> None:
        self._home.left(self._id, self._caller)
        held, self.held = self.held, None
        if held is not None:
            held.release()
        for task in list(self._tasks):
            task.cancel()
        for part in list(self._sources):
            part.close()
        self._end_session()


class _Part:
    """Sink of one event stream of the endpoint."""

    __slots__ = ("_out", "_request", "_response", "_source", "_stream")

    def __init__(self, stream: _Stream, request: Request, response: Response, source: Source) -> None:
        self._stream = stream
        self._request = request
        self._response = response
        self._source: Source | None = source
        self._out = 0

    def send(self, data: bytes) -> None:
        if self._source is not None and not data.startswith(b":"):  # our stream has comments of its own
            self._out += len(data)
            self._stream.outlet.put(data)

    def end(self, failure: Failure | None = None) -> None:
        self._over(Ending(self._response.status, self._response.reason, self._out, failure))

    def close(self) -> None:
        source = self._source
        if source is not None:
            source.close()
            self._over(Ending(499, Reason.CLIENT_GONE, self._out, None, True))

    def _over(self, ending: Ending) -> None:
        if self._source is not None:
            self._source = None
            self._stream.over(self)
            _settle(self._request, self._response, ending)


def _settle(request: Request, response: Response, ending: Ending) -> None:
    """What is due at the end of an exchange, as the server does it for others."""
    ends = [*(response.ends or ()), *reversed(request.ends)]
    response.ends, request.ends = None, []
    try:
        finish(ends, ending)
    except Failure as failure:
        log.error("the end of a message over HTTP+SSE could not be settled: %s", failure.detail or failure.message)


def _who(request: Request) -> str:
    principal = request.context.principal
    return principal.id if principal is not None else ""
