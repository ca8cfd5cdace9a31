"""MCP over Streamable HTTP, our side as the client (2025-03-26 to 2026-07-28, Transports).

Rule: an answer that is whole is returned whole. A session id is taken from a successful `initialize` and nowhere else;
a server that has forgotten it is told apart from one that fails, because then nothing was done.
"""

import asyncio
import re
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import msgspec

from tollhouse.backends.mcp.agent import Key
from tollhouse.backends.mcp.handshake import Features, handshake
from tollhouse.backends.mcp.heal import EXPIRED, call_lost
from tollhouse.backends.mcp.http import HttpPlace
from tollhouse.backends.mcp.http_call import HttpCall
from tollhouse.backends.mcp.http_early import Early, interactive
from tollhouse.backends.mcp.http_exchange import Exchanging
from tollhouse.backends.mcp.http_hear import hear, listen
from tollhouse.backends.mcp.http_refusal import NOT_OURS, error_in, is_modern, may_have_forgotten, refusal
from tollhouse.backends.mcp.listen import Ears
from tollhouse.backends.mcp.messages import ANSWER_HEADERS, Messages
from tollhouse.backends.mcp.place import Place
from tollhouse.backends.mcp.records import Record
from tollhouse.backends.mcp.session import Elsewhere, Expired, Owner
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.net.client import Exchange, Until
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.catalogue import KINDS
from tollhouse.wire.mcp.headers import NAMED, encode_value, params_for

__all__ = ["HttpSession"]

_SESSION_ID = re.compile(rb"[\x21-\x7e]{1,1024}")
_APART = 1 << 20  # from ids of requests in a session that another worker has used
_HEARS = 5.0  # seconds for a server to answer our GET before it is subscribed to without
_ERROR = 65_536  # bytes; an error object is smaller, and large results are not searched for one


class HttpSession(Exchanging):
    """A session with a server behind a URL; for a stateless one, only the place where its calls start."""

    def __init__(self, upstream: Owner, key: Key, place: HttpPlace) -> None:
        super().__init__(upstream, key, place)
        self._hearing: asyncio.Task[Any] | None = None
        self._hears: asyncio.Future[None] | None = None  # done once the server has answered our first GET
        self._early: list[Early] = []  # calls that can be asked, and are not being answered yet
        self._refused = False  # the last request of our own was answered by HTTP alone, with a status that says no

    async def open(self) -> None:
        self.issued = False
        try:
            await handshake(self)
        except Failure:
            place = self.http
            if not self._refused or self.upstream.new is not None or place.spec.transport != "auto":
                raise
            place.legacy = True  # 2025-03-26, Backwards Compatibility: then it may be one of 2024-11-05
            raise Elsewhere from None
        if not self.new:  # also where nobody listens: what the server asks there must be refused, or it waits for ever
            self._begin_to_hear()

    def adopt(self, record: Record) -> bool:
        try:
            capabilities = jsonrpc.decode_fields(record.capabilities)
        except jsonrpc.Malformed:
            return False
        self.id = record.id.encode()
        self.issued = True
        self.features = Features(record.revision, capabilities, record.instructions)
        self.level, self.event, self.generation = record.level, record.event, record.generation
        self.opened()
        self._begin_to_hear()
        return True

    def _begin_to_hear(self) -> None:
        self._hears = asyncio.get_running_loop().create_future()
        self._hearing = self.upstream.spawn(hear(self, self._hears), cut=True)

    # ---- calls
    async def call(self, call: ToolCall, deadline: float) -> Reply:
        hears = self._hears
        if call.method == "resources/subscribe" and hears is not None and not hears.done():
            # What is told of it comes on that stream, and many a server tells only who listens already.
            await asyncio.wait((hears,), timeout=min(_HEARS, max(0.0, deadline - monotonic())))
        if self.profile and call.session is None and not self.new:
            return await interactive(call, partial(self._call, call, deadline), self._early, self)
        for last in (False, True):
            reply = await self._call(call, deadline)
            said = reply.first
            if reply.source is not None or len(said) > _ERROR or b'"error"' not in said or b"-3202" not in said:
                break
            problem = jsonrpc.error_fields(jsonrpc.decode(reply.first).error)
            if problem.code == revisions.UNSUPPORTED_VERSION or (
                problem.code == revisions.HEADER_MISMATCH and not self.new
            ):
                self._other_era()
            if last or problem.code != revisions.HEADER_MISMATCH or call.method != "tools/call":
                break
            # The tool's schema, which says what to repeat in headers, is not the one we know: nothing was done.
            self.upstream.changed(KINDS["tools/list"].changed)
            await self.upstream.listing(KINDS["tools/list"], call.session, call.principal, call.profile)
        return reply

    def sole(self) -> Messages | None:
        if self._early and not self.streaming:
            return self._early[0] if len(self._early) == 1 and self.active == 1 else None
        return super().sole()

    def _other_era(self) -> None:
        """It is another server than it was: find out what it speaks now. Raises Expired."""
        self.upstream.new = None
        raise Expired

    async def _call(self, call: ToolCall, deadline: float) -> Reply:
        id = self.next_id()
        body = jsonrpc.request(id, call.method, self.params_of(call, id))
        self.active += 1
        try:
            try:
                routing = self._routing(call) + call.identity if self.new else call.identity
                exchange = await self.post(body, routing, deadline, call.idempotent, call.credential)
            except asyncio.CancelledError:
                self.cancel(id)
                raise
            except Failure as failure:
                if failure.reason is Reason.TIMEOUT and failure.sent:
                    self.cancel(id)
                raise self.lost_under(failure) from None
            if exchange.status != 200:
                data = await self._refusal(exchange, id)
                if self.new and exchange.status in NOT_OURS and await self._is_old(data):
                    self._other_era()
                return Reply(200, ANSWER_HEADERS, data)
            if exchange.event_stream:
                messages = HttpCall(self, id, exchange, call, deadline)
                self.active += 1  # its own, until its end
                exchange.start(messages)
                first = await messages.first()
                call.answer, call.moves = self.tell, messages
                return messages.reply(first)
            data = exchange.take()
            return Reply(200, ANSWER_HEADERS, data, read=(data, self._checked(data, id)))
        finally:
            self.done()

    def take_up(self, place: Place, call: ToolCall, deadline: float) -> Reply:
        self.id = place.session
        self.issued = self.kept = True  # the session is also whose it was, and others may come back for it
        self.features = Features(place.revision, {})
        self.opened()
        self._ids = place.call + _APART
        messages = HttpCall(self, place.call, None, call, deadline)
        messages.event, messages.retry, messages.streams = place.event, 0.0, True
        self.active += 1
        call.answer, call.moves = self.tell, messages
        messages.take_up(self)
        return Reply(200, ANSWER_HEADERS, b"", messages)

    async def _is_old(self, data: bytes) -> bool:
        """Whether what looked like a stateless server is none (any more): it refuses `server/discover` too."""
        if is_modern(data):
            return False
        params = jsonrpc.encode_fields({"_meta": revisions.new_meta(b"{}", self.upstream.client, None, "")})
        more = b"mcp-method: server/discover\r\n"
        timeout = self.upstream.spec.list_timeout
        exchange = await self.post(
            jsonrpc.request(self.next_id(), "server/discover", params), more, monotonic() + timeout
        )
        refused = exchange.status in NOT_OURS
        exchange.close()
        return refused

    def _checked(self, data: bytes, id: int) -> jsonrpc.Message:
        """The answer to our request of that id. Raises Failure where it is none."""
        try:
            message = jsonrpc.decode(data)
        except jsonrpc.Malformed as problem:
            raise self.garbled(problem.message) from None
        if message.method or bytes(message.id) != b"%d" % id:
            raise self.garbled("it is not the answer to our request")
        return message

    def _routing(self, call: ToolCall) -> bytes:
        """The headers that repeat what the body says (2026-07-28)."""
        lines = b"mcp-method: %b\r\n" % call.method.encode()
        if call.method in NAMED:
            lines += b"mcp-name: %b\r\n" % encode_value(call.name)
        if call.method == "tools/call":
            known = self.upstream.known(KINDS["tools/list"], call.session, call.profile, call.principal)
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
        error = error_in(data)
        self._refused = False
        if (
            self.id
            and not self.new
            and (status == 404 or (may_have_forgotten(status, error) and await self._forgotten()))
        ):
            raise Expired
        return refusal(self.upstream.name, exchange, data, error, id)

    async def _forgotten(self) -> bool:
        """Whether the server has lost our session: it refuses a ping too."""
        body = jsonrpc.request(self.next_id(), "ping")
        exchange = await self.post(body, b"", monotonic() + self.upstream.spec.list_timeout)
        refused = exchange.status in (400, 404)
        exchange.close()
        return refused

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message:
        id = self.next_id()
        body = jsonrpc.request(id, method, jsonrpc.encode_fields(params))
        more = b""
        if self.new:
            more = b"mcp-method: %b\r\n" % method.encode()
            if not self._fields:
                more += b"mcp-protocol-version: %b\r\n" % revisions.NEWEST_NEW.encode()
        deadline = monotonic() + timeout
        try:
            exchange = await self.post(body, more, deadline)
            if exchange.status != 200:
                return await self._told_no(exchange, id)
            if exchange.event_stream:
                answer = await self._answer_in(exchange, id, deadline)
            else:
                data = exchange.take()
                self._checked(data, id)
                answer = jsonrpc.decode(data)
        except Expired:
            self.upstream.discard(self, EXPIRED)
            raise Failure(
                502, Reason.UPSTREAM_FAILURE, f"{self.upstream.name}: the session has expired", retry=True
            ) from None
        if method == "initialize" and len(answer.result):
            given = exchange.headers.get(b"mcp-session-id")
            if given is not None and _SESSION_ID.fullmatch(given):
                self.id = given
                self.issued = True
        return answer

    async def _told_no(self, exchange: Exchange, id: int) -> jsonrpc.Message:
        status = exchange.status
        try:
            return jsonrpc.decode(await self._refusal(exchange, id))
        except Failure:
            if status in (*NOT_OURS, 422) and not exchange.event_stream:
                self._refused = status in (400, 404, 405)
                return jsonrpc.decode(jsonrpc.error(id, jsonrpc.INVALID_REQUEST, f"status {status}"))
            raise

    async def _answer_in(self, exchange: Exchange, id: int, deadline: float) -> jsonrpc.Message:
        messages = HttpCall(self, id, exchange, None, deadline)
        self.active += 1
        exchange.start(messages)
        while True:
            message = jsonrpc.decode(await messages.first())
            if message.is_response:
                return message
            messages.rearm(asyncio.get_running_loop().create_future())

    async def listen(self, params: dict[str, Any], heard: Callable[[bytes, jsonrpc.Message], None]) -> Ears:
        return await listen(self, params, heard)

    async def close(self) -> None:
        self.lost = True
        if self._hearing is not None:
            self._hearing.cancel()
        for messages in list(self.streaming.values()):
            messages.lose(call_lost(self.upstream.name, "its session was closed"), self.upstream)
        if self.id and not self.new and not self.kept:
            exchange = await self.http.calls.exchange(
                b"%b%b%b\r\n" % (self.http.delete, self._fields, await self.borne()),
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
