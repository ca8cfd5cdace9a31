"""A session whose messages to the server are HTTP requests (2025-03-26 to 2026-07-28, Streamable HTTP).

Rule: a call is one exchange, and the exchange is all there is of it: no task, no timer, no queue. What several kinds
of exchanges need is here: their heads, and how a broken one is told.
"""

import logging
from collections.abc import Awaitable
from time import monotonic

from tollhouse.backends.mcp.agent import Key
from tollhouse.backends.mcp.heal import call_lost
from tollhouse.backends.mcp.http import HttpPlace
from tollhouse.backends.mcp.messages import Messages, result_of
from tollhouse.backends.mcp.session import Owner, Session
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Exchange, Until
from tollhouse.wire import jsonrpc

__all__ = ["Exchanging"]

log = logging.getLogger("tollhouse.backends.mcp")

_TELL_TIMEOUT = 10.0
_HEAD, _WHOLE = Until.HEAD, Until.WHOLE  # to ask an Enum for a member costs as much as a call


class Exchanging(Session):
    """http: where the server is. id: the server's for the session, b"" for none. streaming: calls that are answered by
    a stream, by our id. head: of a POST, but for what differs between requests."""

    def __init__(self, upstream: Owner, key: Key, place: HttpPlace) -> None:
        super().__init__(upstream, key)
        self.http = place
        self.id = b""
        self.head = place.post
        self.streaming: dict[int, Messages] = {}
        self._fields = b""  # of this session, in every head

    def shared_id(self) -> str:
        return self.id.decode()

    def opened(self) -> None:
        fields = b"mcp-protocol-version: %b\r\n" % self.revision.encode()
        if self.id and not self.new:
            fields += b"mcp-session-id: %b\r\n" % self.id
        self._fields = fields
        self.head = self.http.post + fields

    def in_flight(self) -> Messages | None:
        return next((messages for messages in reversed(self.streaming.values()) if messages.call is not None), None)

    def result_of(self, task: str) -> Messages | None:
        return result_of(self.streaming.values(), task) or super().result_of(task)

    async def post(
        self, body: bytes, more: bytes, deadline: float, resend: bool = True, credential: bytes = b""
    ) -> Exchange:
        """more: header lines. resend: it does no harm when the server gets it twice. credential: that a call goes out
        with; what is no call, with that of whom the session serves, and once more with another where the server does
        not take it: then it has done nothing."""
        if credential:
            more += b"authorization: %b\r\n" % credential
        elif self.upstream.bears is not None:
            return await self.bearing(lambda line: self._post(body, more + line, deadline, resend))
        return await self._post(body, more, deadline, resend)

    def _post(self, body: bytes, more: bytes, deadline: float, resend: bool) -> Awaitable[Exchange]:
        timeout = self.upstream.spec.timeout
        return self.http.calls.exchange(
            b"%b%bcontent-length: %d\r\n\r\n" % (self.head, more, len(body)),
            body,
            method=b"POST",
            until=_WHOLE,
            deadline=deadline,
            first_byte=timeout,
            idle=timeout,
            resend=resend,
        )

    async def get(self, event: bytes, deadline: float, first_byte: float, idle: float) -> Exchange:
        """A stream by GET, from after the event of that id, if it is one."""
        after = b"last-event-id: %b\r\n" % event if event else b""

        def send(line: bytes) -> Awaitable[Exchange]:
            return self.http.streams.exchange(
                b"%b%b%b%b\r\n" % (self.http.get, self._fields, after, line),
                b"",
                method=b"GET",
                until=_HEAD,
                deadline=deadline,
                first_byte=first_byte,
                idle=idle,
                resend=True,
            )

        return await self.bearing(send)

    def cancel(self, id: int) -> None:
        """Nobody waits for `id`. To a stateless server the closed stream has said so."""
        if not self.new and not self.lost:
            params = jsonrpc.encode_fields({"requestId": id, "reason": "the client does not wait for it any more"})
            self.tell(jsonrpc.notification("notifications/cancelled", params))

    def tell(self, message: bytes) -> None:
        if not self.new:
            self.upstream.later(self._tell(message))

    async def _tell(self, message: bytes) -> None:
        exchange = await self.post(message, b"", monotonic() + _TELL_TIMEOUT)
        if exchange.status >= 400:
            log.info("mcp server %s: refused a notification with %d", self.upstream.name, exchange.status)
        exchange.close()

    def lost_under(self, failure: Failure) -> Failure:
        """What a connection that broke under a call means for it."""
        if failure.status != 502 or not failure.sent or failure.code is not None or not failure.retry:
            return failure
        return call_lost(self.upstream.name, failure.message, failure.detail)

    def garbled(self, why: str) -> Failure:
        return Failure(
            502,
            Reason.UPSTREAM_FAILURE,
            f"{self.upstream.name}: the server's answer cannot be read",
            detail=why,
            sent=True,
        )
