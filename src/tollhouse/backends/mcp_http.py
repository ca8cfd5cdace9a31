"""MCP over Streamable HTTP, our side as the client (2025-11-25 and 2026-07-28, Transports).

Rule: a call is one exchange, and the exchange is all there is of it: no task, no timer, no queue. An answer that is
whole is returned whole; a stream of events flows by callback. A session id is taken from a successful `initialize`
and nowhere else; a server that has forgotten it is told apart from one that fails, because then nothing was done.
"""

import asyncio
import logging
import re
from time import monotonic
from typing import Any

import msgspec
from pydantic import Field, SecretStr, field_validator

from tollhouse.backends.header_fields import HeaderFields, UpstreamTLSSpec, header_lines
from tollhouse.backends.mcp_session import ANSWER_HEADERS, Expired, Key, McpServerSpec, Messages, Owner, Session
from tollhouse.backends.retry_after import retry_after
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.net.client import Client, Exchange, Origin, Until
from tollhouse.wire import jsonrpc, sse
from tollhouse.wire.mcp import capabilities, revisions
from tollhouse.wire.mcp.catalogue import KINDS
from tollhouse.wire.mcp.headers import NAMED, encode_value, params_for

__all__ = ["HttpPlace", "HttpServerSpec", "HttpSession"]

log = logging.getLogger("tollhouse.backends.mcp")

_OURS = frozenset(("accept", "last-event-id", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id"))
_SESSION_ID = re.compile(rb"[\x21-\x7e]{1,1024}")
_FORGOTTEN = frozenset((-32000, -32001, jsonrpc.INVALID_REQUEST))  # what some servers say with a 400 instead of a 404
_NEVER = 1e18
_LEFT_OVER = 65_536  # bytes after the answer for which a connection is worth keeping
_TELL_TIMEOUT = 10.0


class HttpServerSpec(McpServerSpec):
    """A server with a URL. headers: sent with every request, its credentials among them."""

    url: str
    headers: HeaderFields = Field(default={})
    tls: UpstreamTLSSpec | None = None
    proxy: str | None = None

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        Origin.of(value)
        return value

    @field_validator("headers")
    @classmethod
    def _not_ours(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name in value:
            if name.lower() in _OURS or name.lower().startswith("mcp-param-"):
                raise ValueError(f"the header {name!r} is the gateway's own to set")
        return value

    def origin(self) -> tuple[Origin, bytes]:
        tls = None if self.tls is None else self.tls.value()
        return Origin.of(self.url, tls=tls, proxy=self.proxy)


class HttpPlace:
    """Where a server is: its pools and the part of every head that never changes. Shared by its sessions.

    streams: another client, so that open streams never take the places of calls. Raises OriginError when the URL's TLS
    files or its proxy cannot be used.
    """

    __slots__ = ("calls", "delete", "get", "post", "spec", "streams")

    def __init__(self, spec: HttpServerSpec, client: Client, streams: Client) -> None:
        origin, path = spec.origin()
        self.calls = client.pool(origin)
        self.streams = streams.pool(origin, 10_000)
        self.spec = spec
        fixed = header_lines(spec.headers)
        if "user-agent" not in {name.lower() for name in spec.headers}:
            fixed += b"user-agent: tollhouse\r\n"
        line = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b"
        both = b"accept: application/json, text/event-stream\r\ncontent-type: application/json\r\n"
        self.post = line % (b"POST", path, origin.authority, fixed) + both
        self.get = line % (b"GET", path, origin.authority, fixed) + b"accept: text/event-stream\r\n"
        self.delete = line % (b"DELETE", path, origin.authority, fixed)


class HttpSession(Session):
    """A session with a server behind a URL; for a stateless one, only the place where its calls start."""

    def __init__(self, upstream: Owner, key: Key, place: HttpPlace) -> None:
        super().__init__(upstream, key)
        self._place = place
        self._fields = b""  # of this session, in every head
        self._head = place.post
        self._streaming: dict[int, _HttpCall] = {}
        self._hearing: asyncio.Task[Any] | None = None
        self._id = b""

    async def open(self) -> None:
        await self.handshake()
        if not self.new:  # also where nobody listens: what the server asks there must be refused, or it waits for ever
            self._hearing = self.upstream.spawn(self._hear_stream())

    def opened(self) -> None:
        revision = self.features.revision if self.features is not None else ""
        fields = b"mcp-protocol-version: %b\r\n" % revision.encode()
        if self._id and not self.new:
            fields += b"mcp-session-id: %b\r\n" % self._id
        self._fields = fields
        self._head = self._place.post + fields

    # ---- calls
    async def call(self, call: ToolCall, deadline: float) -> Reply:
        for last in (False, True):
            reply = await self._call(call, deadline)
            if last or not self.new or reply.source is not None or call.method != "tools/call":
                break
            if b'"error"' not in reply.first:
                break
            problem = jsonrpc.error_fields(jsonrpc.decode(reply.first).error)
            if problem.code == revisions.UNSUPPORTED_VERSION:  # it is another server than it was
                self.upstream.new = None
                self.upstream.discard(self)
                raise Expired
            if problem.code != revisions.HEADER_MISMATCH:
                break
            # The tool's schema, which says what to repeat in headers, is not the one we know: nothing was done.
            self.upstream.changed(KINDS["tools/list"].changed)
            await self.upstream.listing(KINDS["tools/list"], call.session, call.principal)
        return reply

    async def _call(self, call: ToolCall, deadline: float) -> Reply:
        id = self.next_id()
        body = jsonrpc.request(id, call.method, self.params_of(call, id))
        self.active += 1
        try:
            try:
                exchange = await self._post(body, self._routing(call) if self.new else b"", deadline, call.idempotent)
            except asyncio.CancelledError:
                self.cancel(id)
                raise
            if exchange.status != 200:
                return Reply(200, ANSWER_HEADERS, await self._refusal(exchange, id))
            if exchange.event_stream:
                messages = _HttpCall(self, id, exchange, call)
                self.active += 1  # its own, until its end
                exchange.start(messages)
                first = await messages.first()
                call.answer = self.tell
                return messages.reply(first)
            data = exchange.take()
            self._check(data, id)
            return Reply(200, ANSWER_HEADERS, data)
        finally:
            self.done()

    def _check(self, data: bytes, id: int) -> None:
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed as problem:
            raise self.garbled(problem.message) from None
        if message.method or bytes(message.id) != b"%d" % id:
            raise self.garbled("it is not the answer to our request")

    def garbled(self, why: str) -> Failure:
        return Failure(
            502,
            Reason.UPSTREAM_FAILURE,
            f"{self.upstream.name}: the server's answer cannot be read",
            detail=why,
            sent=True,
        )

    async def _post(self, body: bytes, more: bytes, deadline: float, resend: bool = True) -> Exchange:
        """more: header lines. resend: it does no harm when the server gets it twice."""
        timeout = self.upstream.spec.timeout
        return await self._place.calls.exchange(
            b"%b%bcontent-length: %d\r\n\r\n" % (self._head, more, len(body)),
            body,
            method=b"POST",
            until=Until.WHOLE,
            deadline=deadline,
            first_byte=timeout,
            idle=timeout,
            resend=resend,
        )

    def _routing(self, call: ToolCall) -> bytes:
        """The headers that repeat what the body says (2026-07-28)."""
        lines = b"mcp-method: %b\r\n" % call.method.encode()
        if call.method in NAMED:
            lines += b"mcp-name: %b\r\n" % encode_value(call.name)
        if call.method == "tools/call":
            known = self.upstream.known(KINDS["tools/list"], call.session)
            entry = known.index.get(call.name) if known is not None else None
            if entry is not None and entry.headers and len(call.arguments):
                arguments = msgspec.json.decode(call.arguments)
                for pair in params_for(entry.headers, arguments):
                    lines += b"%b: %b\r\n" % pair
        return lines

    async def _refusal(self, exchange: Exchange, id: int) -> bytes:
        """The JSON-RPC error in an answer that is not 200. Raises Expired, or Failure when there is none."""
        status = exchange.status
        if exchange.event_stream:
            exchange.close()
            raise self.garbled(f"status {status} with an event stream")
        data = exchange.take()
        error: msgspec.Raw | None = None
        try:
            error = msgspec.json.decode(data, type=jsonrpc.Message).error
        except (msgspec.DecodeError, RecursionError):
            pass
        if self._id and not self.new:
            if status == 404:
                raise Expired
            maybe = status == 400 and error is not None and jsonrpc.error_fields(error).code in _FORGOTTEN
            if maybe and await self._forgotten():
                raise Expired
        if status in (401, 403):
            raise Failure(
                502,
                Reason.UPSTREAM_FAILURE,
                f"{self.upstream.name}: the server refused the gateway's credentials ({status})",
                code="upstream_credentials",
                sent=True,
            )
        if status == 429:
            raise Failure(
                429,
                Reason.UPSTREAM,
                f"{self.upstream.name}: the server is limiting requests; try again later",
                code="rate_limit_exceeded",
                detail=data[:200].decode(errors="replace"),
                retry=True,
                retry_after=retry_after(exchange.headers),
            )
        if error is not None and len(error) and 400 <= status < 500:
            return jsonrpc.failed(id, error)
        raise Failure(
            503 if status == 503 else 502,
            Reason.UPSTREAM_FAILURE,
            f"{self.upstream.name}: the server answered with status {status}",
            detail=data[:200].decode(errors="replace"),
            retry=status in (502, 503, 504),
            retry_after=retry_after(exchange.headers) if status == 503 else None,
            sent=True,
        )

    async def _forgotten(self) -> bool:
        """Whether the server has lost our session: it refuses a ping too."""
        body = jsonrpc.request(self.next_id(), "ping")
        exchange = await self._post(body, b"", monotonic() + self.upstream.spec.list_timeout)
        refused = exchange.status in (400, 404)
        exchange.close()
        return refused

    def cancel(self, id: int) -> None:
        """Nobody waits for `id`. To a stateless server the closed stream has said so."""
        if not self.new and not self.lost:
            params = jsonrpc.encode_fields({"requestId": id, "reason": "the client does not wait for it any more"})
            self.tell(jsonrpc.notification("notifications/cancelled", params))

    def tell(self, message: bytes) -> None:
        if not self.new:
            self.upstream.later(self._tell(message))

    async def _tell(self, message: bytes) -> None:
        exchange = await self._post(message, b"", monotonic() + _TELL_TIMEOUT)
        if exchange.status >= 400:
            log.info("mcp server %s: refused a notification with %d", self.upstream.name, exchange.status)
        exchange.close()

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message:
        id = self.next_id()
        body = jsonrpc.request(id, method, jsonrpc.encode_fields(params))
        more = b""
        if self.new:
            more = b"mcp-method: %b\r\n" % method.encode()
            if not self._fields:
                more += b"mcp-protocol-version: %b\r\n" % revisions.NEWEST_NEW.encode()
        try:
            exchange = await self._post(body, more, monotonic() + timeout)
            if exchange.status != 200:
                return await self._told_no(exchange, id)
            if exchange.event_stream:
                answer = await self._answer_in(exchange, id)
            else:
                data = exchange.take()
                self._check(data, id)
                answer = jsonrpc.decode(data)
        except Expired:
            self.upstream.discard(self)
            raise Failure(
                502, Reason.UPSTREAM_FAILURE, f"{self.upstream.name}: the session has expired", retry=True
            ) from None
        if method == "initialize" and len(answer.result):
            given = exchange.headers.get(b"mcp-session-id")
            if given is not None and _SESSION_ID.fullmatch(given):
                self._id = given
        return answer

    async def _told_no(self, exchange: Exchange, id: int) -> jsonrpc.Message:
        status = exchange.status
        try:
            return jsonrpc.decode(await self._refusal(exchange, id))
        except Failure:
            if status in (400, 404, 405, 406, 415, 422) and not exchange.event_stream:
                return jsonrpc.decode(jsonrpc.error(id, jsonrpc.INVALID_REQUEST, f"status {status}"))
            raise

    async def _answer_in(self, exchange: Exchange, id: int) -> jsonrpc.Message:
        messages = _HttpCall(self, id, exchange, None)
        self.active += 1
        exchange.start(messages)
        while True:
            message = jsonrpc.decode(await messages.first())
            if message.is_response:
                return message
            if message.is_request:
                text = "no call is in progress that could carry this request"
                self.tell(jsonrpc.error(bytes(message.id), jsonrpc.INTERNAL_ERROR, text))
            messages.rearm(asyncio.get_running_loop().create_future())

    # ---- the stream outside of calls
    def in_flight(self) -> Messages | None:
        return next(reversed(self._streaming.values()), None)

    def streaming(self, id: int, messages: "_HttpCall | None") -> None:
        if messages is None:
            self._streaming.pop(id, None)
        else:
            self._streaming[id] = messages

    async def _hear_stream(self) -> None:
        """Hold the GET stream open while the server offers one."""
        pause = 0.5
        while not self.lost:
            try:
                exchange = await self._place.streams.exchange(
                    b"%b%b\r\n" % (self._place.get, self._fields),
                    b"",
                    method=b"GET",
                    until=Until.HEAD,
                    deadline=_NEVER,
                    first_byte=30.0,
                    idle=_NEVER,
                    resend=True,
                )
                try:
                    if exchange.status in (404, 405) or (exchange.status == 200 and not exchange.event_stream):
                        return  # it offers none, or has forgotten us: the next call will see
                    if exchange.status == 200:
                        began = monotonic()
                        heard = _Heard(self, asyncio.get_running_loop().create_future())
                        exchange.start(heard)
                        await heard.ended
                        if monotonic() - began > 5.0:
                            pause = 0.5
                finally:
                    exchange.close()
            except Failure as failure:
                log.debug("mcp server %s: no stream: %s", self.upstream.name, failure)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 30.0)

    async def close(self) -> None:
        self.lost = True
        if self._hearing is not None:
            self._hearing.cancel()
        for messages in list(self._streaming.values()):
            messages.end(
                Failure(503, Reason.UPSTREAM_FAILURE, f"{self.upstream.name}: the session was closed", sent=True)
            )
        if self._id and not self.new:
            exchange = await self._place.calls.exchange(
                b"%b%b\r\n" % (self._place.delete, self._fields),
                b"",
                method=b"DELETE",
                until=Until.WHOLE,
                deadline=monotonic() + 2.0,
                first_byte=2.0,
                idle=2.0,
                connect=1.0,
                resend=True,
            )
            exchange.close()


class _HttpCall(Messages):
    """The event stream that answers one POST: Sink of its exchange, Source of the messages."""

    __slots__ = ("_exchange", "_framer", "_id", "_left_over", "_session")

    def __init__(self, session: HttpSession, id: int, exchange: Exchange, call: ToolCall | None) -> None:
        super().__init__(asyncio.get_running_loop().create_future(), call)
        self._session: HttpSession | None = session
        self._exchange: Exchange | None = exchange
        self._framer = sse.Framer()
        self._id = id
        self._left_over = 0
        session.streaming(id, self)

    def send(self, data: bytes) -> None:
        if self.over:
            self._left_over += len(data)
            if self._left_over > _LEFT_OVER and self._exchange is not None:
                self._exchange.close()
            return
        block = self._framer.feed(data)
        if block:
            for raw in sse.split(block):
                _, message = sse.parse(raw)
                if message and not self.over:
                    self._message(message)

    def _message(self, data: bytes) -> None:
        session = self._session
        if session is None:
            return
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed as problem:
            self._fail(session.garbled(problem.message))
            return
        if message.is_response:
            if bytes(message.id) == b"%d" % self._id:
                self.push(data)
                self.finish()
            return
        method = message.method
        if message.is_request:
            if method == "ping" or session.key[0] != "agent":
                session.asked(data, message)
            elif capabilities.allows(session.profile, method, message.params):
                self.push(data)
            else:
                session.asked(data, message)
        elif method.endswith("/list_changed"):
            session.upstream.changed(method)
        elif (self.progress or method != "notifications/progress") and (self.logs or method != "notifications/message"):
            self.push(data, droppable=True)

    def end(self, failure: Failure | None = None) -> None:
        self._exchange = None
        if not self.over:
            name = self._session.upstream.name if self._session is not None else ""
            self.finish(
                failure
                or Failure(
                    502, Reason.UPSTREAM_FAILURE, f"{name}: the server ended its stream without an answer", sent=True
                )
            )

    def _fail(self, failure: Failure) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        self.finish(failure)

    def finish(self, failure: Failure | None = None) -> None:
        super().finish(failure)
        self._settle()

    def quit(self) -> None:
        session = self._session
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        if session is not None:
            session.cancel(self._id)
        self._settle()

    def pause(self) -> None:
        super().pause()
        if self._exchange is not None and not self.over:
            self._exchange.pause()

    def resume(self) -> None:
        super().resume()
        if self._exchange is not None and not self.over:
            self._exchange.resume()

    def expire(self) -> None:
        """Never watched: the exchange has the deadline."""

    def _settle(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.streaming(self._id, None)
            session.done()


class _Heard:
    """Sink of a GET stream."""

    __slots__ = ("_framer", "_session", "ended")

    def __init__(self, session: HttpSession, ended: "asyncio.Future[None]") -> None:
        self._session = session
        self._framer = sse.Framer()
        self.ended = ended

    def send(self, data: bytes) -> None:
        block = self._framer.feed(data)
        for raw in sse.split(block) if block else ():
            _, payload = sse.parse(raw)
            if not payload:
                continue
            try:
                message = jsonrpc.decode(payload)
            except jsonrpc.Malformed:
                continue
            if not message.is_response:
                self._session.hear(payload, message)

    def end(self, failure: Failure | None = None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
