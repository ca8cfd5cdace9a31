"""MCP over HTTP+SSE, the transport of 2024-11-05: one stream for all that the server says, and a place to POST to that
the stream names first.

Rule: the stream is the session. When it ends, all that was in flight is lost, and the session with it.
"""

import asyncio
import logging
from collections.abc import Awaitable
from time import monotonic
from urllib.parse import urljoin

from tollhouse.backends.mcp.agent import Key
from tollhouse.backends.mcp.channel import Channel
from tollhouse.backends.mcp.handshake import OPEN_TIMEOUT, handshake
from tollhouse.backends.mcp.heal import call_lost
from tollhouse.backends.mcp.http import HttpPlace
from tollhouse.backends.mcp.http_refusal import bad_credentials
from tollhouse.backends.mcp.session import Owner
from tollhouse.core.clock import FOREVER
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Exchange, Origin, OriginError, Until
from tollhouse.wire import jsonrpc, sse

__all__ = ["SseSession"]

log = logging.getLogger("tollhouse.backends.mcp")

_ENDPOINT_TIMEOUT = 10.0
_POST_TIMEOUT = 30.0


class SseSession(Channel):
    """One open stream. It is the Sink of it."""

    def __init__(self, upstream: Owner, key: Key, place: HttpPlace) -> None:
        super().__init__(upstream, key)
        self._place = place
        self._exchange: Exchange | None = None
        self._framer = sse.Framer()
        self._named: asyncio.Future[bytes] | None = None
        self._head = b""  # of a POST

    async def open(self) -> None:
        place, name = self._place, self.upstream.name
        self._named = asyncio.get_running_loop().create_future()
        try:
            self._exchange = exchange = await self.bearing(self._stream)
            if exchange.status != 200 or not exchange.event_stream:
                raise Failure(
                    502,
                    Reason.UPSTREAM_FAILURE,
                    f"{name}: no event stream where HTTP+SSE has one: status {exchange.status}",
                    retry=exchange.status in (502, 503, 504),
                )
            exchange.start(self)
            try:
                async with asyncio.timeout(_ENDPOINT_TIMEOUT):
                    path = await self._named
            except TimeoutError:
                why = f"{name}: the stream does not name the place to post to"
                raise Failure(504, Reason.TIMEOUT, why) from None
        except Failure:
            if place.spec.transport == "auto" and not place.sse_path:
                place.legacy = False  # it was only tried
            raise
        self._head = (
            place.line(b"POST", path) + b"accept: application/json, text/event-stream\r\n"
            b"content-type: application/json\r\n"
        )
        if self.upstream.new is None:
            self.upstream.new = False  # no server of the new era has this transport
        await handshake(self)

    def _stream(self, line: bytes) -> Awaitable[Exchange]:
        """line: of its head, that says who asks."""
        return self._place.streams.exchange(
            self._place.get + line + b"\r\n",
            b"",
            method=b"GET",
            until=Until.HEAD,
            deadline=FOREVER,
            first_byte=OPEN_TIMEOUT,
            idle=FOREVER,
            resend=True,
        )

    # ---- Channel
    def _usable(self) -> bool:
        return bool(self._head) and self._exchange is not None

    def _write(self, message: bytes, id: int) -> None:
        if not self.upstream.later(self._post(message, id), cut=True):
            why = f"{self.upstream.name}: too much is waiting for the server"
            raise Failure(503, Reason.UPSTREAM_FAILURE, why, retry=True, reached=False)

    async def _post(self, message: bytes, id: int) -> None:
        try:
            exchange = await self._place.calls.exchange(
                b"%b%bcontent-length: %d\r\n\r\n" % (self._head, await self._authorization(id), len(message)),
                message,
                method=b"POST",
                until=Until.HEAD,
                deadline=monotonic() + _POST_TIMEOUT,
                first_byte=_POST_TIMEOUT,
                idle=_POST_TIMEOUT,
            )
        except Failure as failure:
            if failure.sent and failure.status == 502:
                failure = call_lost(self.upstream.name, failure.message, failure.detail)
            self._unsent(id, failure.with_traceback(None))
            return
        status = exchange.status
        exchange.close()
        if status == 401:
            self._unsent(id, bad_credentials(self.upstream.name, status))
        elif status >= 400:
            self._unsent(
                id,
                Failure(
                    502, Reason.UPSTREAM_FAILURE, f"{self.upstream.name}: the server answered with status {status}",
                    retry=status in (404, 502, 503, 504), reached=status != 404,
                ),
            )  # fmt: skip
            if status in (400, 404) and not self.lost:  # it does not know the stream any more
                self._end("the server has forgotten the session")

    async def _authorization(self, id: int) -> bytes:
        """The header lines that say who asks: of the call `id`, or of whom the session serves."""
        messages = self._calls.get(id)
        call = messages.call if messages is not None else None
        if call is not None and call.credential:
            return b"authorization: %b\r\n%b" % (call.credential, call.identity)
        return await self.borne() + (call.identity if call is not None else b"")

    def _unsent(self, id: int, failure: Failure) -> None:
        if id:
            self.unsent(id, failure)
        else:
            log.info("mcp server %s: could not tell it something: %s", self.upstream.name, failure.message)

    # ---- Sink of the stream
    def send(self, data: bytes) -> None:
        block = self._framer.feed(data)
        for raw in sse.split(block) if block else ():
            event, payload = sse.parse(raw)
            if event == b"endpoint":
                self._name_endpoint(payload)
            elif payload and not self.lost:
                try:
                    self.received(payload)
                except jsonrpc.Malformed as problem:
                    log.info("mcp server %s: an event is no message (%s)", self.upstream.name, problem.message)
                    self.noise()

    def _name_endpoint(self, payload: bytes) -> None:
        named, place = self._named, self._place
        if named is None or named.done():
            return
        own = f"{place.scheme}://{place.authority.decode()}"
        try:
            url = urljoin(own + place.path.decode("latin-1"), payload.decode())
            origin, path = Origin.of(url)
            if (origin.scheme, origin.authority) != (place.scheme, place.authority):
                raise OriginError("it is at another origin, which our credentials are not for")
        except (OriginError, ValueError) as error:
            why = f"{self.upstream.name}: the stream names a place to post to that cannot be used"
            named.set_exception(Failure(502, Reason.UPSTREAM_FAILURE, why, detail=str(error)))
        else:
            named.set_result(path)

    def end(self, failure: Failure | None = None) -> None:
        self._exchange = None
        why = "the stream ended" if failure is None else failure.message
        named = self._named
        if named is not None and not named.done():
            named.set_exception(Failure(502, Reason.UPSTREAM_FAILURE, f"{self.upstream.name}: {why}", retry=True))
        if not self.lost:
            self._over(why)

    def _end(self, why: str) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        self._over(why)

    async def close(self) -> None:
        if not self.lost or self._calls:
            self._over("its session was closed")
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()
        named = self._named
        if named is not None and named.done() and not named.cancelled():
            named.exception()  # nobody else may have asked
