"""The streams on which a server tells things outside of calls, over HTTP: by GET in the old era (2025-11-25, Listening
for Messages from the Server), by `subscriptions/listen` in the new.

Rule: the first is held open while the server offers it, and asked for again from its last event on; of the second who
asked for it sees the end.
"""

import asyncio
import logging
from collections.abc import Callable
from time import monotonic
from typing import Any

from tollhouse.backends.mcp.heal import EXPIRED
from tollhouse.backends.mcp.http_call import LEAST_RETRY, MOST_RETRY, RETRY, marked
from tollhouse.backends.mcp.http_exchange import Exchanging
from tollhouse.backends.mcp.listen import Ears
from tollhouse.backends.mcp.messages import messages_of
from tollhouse.core.clock import FOREVER
from tollhouse.core.errors import Failure
from tollhouse.net.client import Until
from tollhouse.wire import jsonrpc, sse

__all__ = ["hear", "listen"]

log = logging.getLogger("tollhouse.backends.mcp")


async def hear(session: Exchanging, known: "asyncio.Future[None]") -> None:
    """Hold the GET stream of `session` open while the server offers one. known: done once it is open, or it is known
    that it is not to be had now."""
    try:
        await _hear(session, known)
    finally:
        _settle(known)


def _settle(known: "asyncio.Future[None]") -> None:
    if not known.done():
        known.set_result(None)


async def _hear(session: Exchanging, known: "asyncio.Future[None]") -> None:
    pause = RETRY
    deaf = False  # a stream was lost that cannot be taken up where it ended
    while not session.lost:
        heard = _Heard(session, asyncio.get_running_loop().create_future())
        try:
            exchange = await session.get(session.event, FOREVER, 30.0, FOREVER)
            try:
                if exchange.status == 404 and session.id:
                    session.upstream.discard(session, EXPIRED)
                    return
                if exchange.status == 200 and exchange.event_stream:
                    began = monotonic()
                    exchange.start(heard)
                    _settle(known)
                    if deaf:
                        _look_again(session)
                    await heard.ended
                    deaf = not session.event
                    if heard.news or monotonic() - began > 5.0:
                        pause = RETRY
                elif session.event and exchange.status in (400, 409):  # the id is another session's
                    session.event = b""
                elif exchange.status in (200, 400, 404, 405):
                    return  # it offers none
            finally:
                exchange.close()
        except Failure as failure:
            log.debug("mcp server %s: no stream: %s", session.upstream.name, failure)
        _settle(known)
        # What the server says of the time counts while it has something to say; else it may only say longer.
        least = LEAST_RETRY if heard.news and heard.retry is not None else pause
        await asyncio.sleep(max(least, heard.retry or 0.0))
        pause = min(pause * 2, MOST_RETRY)


def _look_again(session: Exchanging) -> None:
    """What agents have subscribed to may have changed while nobody listened."""
    for uri in tuple(session.uris):
        data = jsonrpc.notification("notifications/resources/updated", jsonrpc.encode_fields({"uri": uri}))
        for agent in tuple(session.agents):
            agent.deliver(session.upstream.name, data, jsonrpc.decode(data), session.tell)


async def listen(session: Exchanging, params: dict[str, Any], heard: Callable[[bytes, jsonrpc.Message], None]) -> Ears:
    """Open a stream of `subscriptions/listen`. Raises Failure."""
    id = session.next_id()
    body = jsonrpc.request(id, "subscriptions/listen", jsonrpc.encode_fields(params))
    more = b"mcp-method: subscriptions/listen\r\ncontent-length: %d\r\n\r\n" % len(body)
    exchange = await session.http.streams.exchange(
        session.head + await session.borne() + more,
        body,
        method=b"POST",
        until=Until.HEAD,
        deadline=FOREVER,
        first_byte=30.0,
        idle=FOREVER,
        resend=True,
    )
    if exchange.status != 200 or not exchange.event_stream or session.lost:
        exchange.close()
        raise session.garbled(f"status {exchange.status} to subscriptions/listen")
    ears = session.ears[id] = Ears(heard, exchange.close)
    ears.ended.add_done_callback(lambda _: session.ears.pop(id, None))
    exchange.start(_Told(ears, session))
    return ears


class _Heard:
    """Sink of a GET stream. retry: seconds, as the server says. news: it has told something."""

    __slots__ = ("_framer", "_session", "ended", "news", "retry")

    def __init__(self, session: Exchanging, ended: "asyncio.Future[None]") -> None:
        self._session = session
        self._framer = sse.Framer()
        self.ended = ended
        self.news = False
        self.retry: float | None = None

    def send(self, data: bytes) -> None:
        session = self._session
        block = self._framer.feed(data)
        for raw in sse.split(block) if block else ():
            _, payload = sse.parse(raw)
            session.event, self.retry = marked(raw, session.event, self.retry)
            if session.lost:
                return
            if not payload:
                session.noise()
                continue
            self.news = True
            try:
                for part in messages_of(payload, session.revision):
                    message = jsonrpc.decode(part)
                    if message.is_response:
                        session.noise()
                    else:
                        session.hear(part, message)
            except jsonrpc.Malformed:
                session.noise()

    def end(self, failure: Failure | None = None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class _Told:
    """Sink of a `subscriptions/listen`."""

    __slots__ = ("_ears", "_framer", "_session")

    def __init__(self, ears: Ears, session: Exchanging) -> None:
        self._ears = ears
        self._framer = sse.Framer()
        self._session = session

    def send(self, data: bytes) -> None:
        block = self._framer.feed(data)
        for raw in sse.split(block) if block else ():
            _, payload = sse.parse(raw)
            if self._session.noise():  # it says too much
                return
            if not payload:
                continue
            try:
                self._ears.received(payload, jsonrpc.decode(payload))
            except jsonrpc.Malformed:
                continue

    def end(self, failure: Failure | None = None) -> None:
        self._ears.over()
