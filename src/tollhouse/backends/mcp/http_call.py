"""The event stream that answers one call over Streamable HTTP, to the response that ends it.

Rule: it flows by callback. One that ends before its answer but after an event id is taken up again by GET, by a task
that ends with the call (2025-11-25, Resumability and Redelivery); one that ends without is lost.
"""

import asyncio
import re
from random import random
from time import monotonic
from typing import Any

from tollhouse.backends.mcp.heal import DELAYS, EXPIRED, call_lost
from tollhouse.backends.mcp.http_exchange import Exchanging
from tollhouse.backends.mcp.messages import Messages, Rescuer, messages_of
from tollhouse.backends.mcp.place import Place
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.net.client import Exchange
from tollhouse.wire import jsonrpc, sse
from tollhouse.wire.mcp import capabilities

__all__ = ["LEAST_RETRY", "MOST_RETRY", "RETRY", "HttpCall", "marked"]

RETRY = 0.5  # seconds before a stream is taken up again, where the server does not say
LEAST_RETRY = 0.1  # whatever the server says
MOST_RETRY = 30.0

_LEFT_OVER = 65_536  # bytes after the answer for which a connection is worth keeping
_SILENT, _MOST_SILENT = 1.0, 5.0  # seconds after which a resumed stream that says nothing is asked for anew
_RESUMES = 8  # in a row that fail
_MAX_EVENT_ID = 1024
_FLOOD = 20_000  # notifications, questions and comments a second
_ID_LINE = re.compile(rb"(?:^|[\r\n])id:[ ]?([\x20-\x7e\x80-\xff]*)(?=[\r\n]|$)")
_RETRY_LINE = re.compile(rb"(?:^|[\r\n])retry:[ ]?(\d{1,6})[\r\n]")


class HttpCall(Messages):
    """The event stream that answers one POST: Sink of its exchange, Source of the messages."""

    __slots__ = (
        "_ended_future", "_exchange", "_framer", "_id", "_left_over", "_said", "_session",
        "_since", "event", "resuming", "retry", "until",
    )  # fmt: skip

    def __init__(
        self, session: Exchanging, id: int, exchange: Exchange | None, call: ToolCall | None, until: float
    ) -> None:
        super().__init__(asyncio.get_running_loop().create_future(), call)
        self.until = until
        self.event = b""
        self.retry: float | None = None
        self.resuming: asyncio.Task[Any] | None = None
        self._ended_future: asyncio.Future[None] | None = None
        self._session: Exchanging | None = session
        self._exchange = exchange
        self._said = 0  # things that are not the answer, since `_since`
        self._since = 0.0
        self._framer = sse.Framer()
        self._id = id
        self._left_over = 0
        session.streaming[id] = self

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
                if raw[:6] != b"data: ":
                    self.event, self.retry = marked(raw, self.event, self.retry)
                if message:
                    self._message(message)
                elif self._session is not None:
                    self._noise(self._session)

    def allow(self, seconds: float) -> None:
        super().allow(seconds)
        self.until += seconds
        if self._exchange is not None:
            self._exchange.allow(seconds)

    def _follow(self, exchange: Exchange) -> "asyncio.Future[None]":
        """Go on with another exchange. The future is done when that has ended."""
        self._exchange = exchange
        self._framer = sse.Framer()
        self._ended_future = asyncio.get_running_loop().create_future()
        return self._ended_future

    def _message(self, data: bytes) -> None:
        session = self._session
        if session is None:
            return
        try:
            for part in messages_of(data, session.revision):
                self._one(session, part)
        except jsonrpc.Malformed as problem:
            self._fail(session.garbled(problem.message))

    def _one(self, session: Exchanging, data: bytes) -> None:
        message = jsonrpc.decode(data)
        if message.is_response:
            if bytes(message.id) == b"%d" % self._id:
                self.push(data)
                self.finish()
            return
        method = message.method
        if self._noise(session):
            return
        if message.is_request:
            # What is asked on the stream of a call is asked within it, whoever shares the session.
            asks = method != "ping" and self.call is not None
            if not (asks and capabilities.allows(session.profile, method, message.params) and self.ask(data)):
                session.refuse(message)
        elif method.endswith("/list_changed"):
            session.hear(data, message)
        elif (self.progress or method != "notifications/progress") and (self.logs or method != "notifications/message"):
            self.push(data, droppable=True)

    def _noise(self, session: Exchanging) -> bool:
        """One more thing that is not the answer. True: the call has ended, because reading more of it would be all that
        this worker does."""
        now = session.upstream.clock.now
        if now - self._since >= 1.0:
            self._since, self._said = now, 0
        self._said += 1
        if self._said <= _FLOOD:
            return False
        why = f"{session.upstream.name}: the server says far too much before its answer"
        session.cancel(self._id)
        self._fail(Failure(502, Reason.UPSTREAM_FAILURE, why, sent=True))
        return True

    def end(self, failure: Failure | None = None) -> None:
        self._exchange = None
        ended, self._ended_future = self._ended_future, None
        if ended is not None:
            if not ended.done():
                ended.set_result(None)
            return
        session = self._session
        if self.over or session is None:
            return
        if failure is not None and failure.reason is Reason.TIMEOUT:
            session.cancel(self._id)
            self.finish(failure)
        elif self.event and not session.new and not session.lost:
            if self.call is not None and self.call.session is not None:
                self.push(b"")  # such an agent may be let go meanwhile as we are, and come back
            self.take_up(session)
        elif failure is not None:
            self.lose(session.lost_under(failure), session.upstream)
        else:
            why = "it ended its stream without an answer"
            self.lose(call_lost(session.upstream.name, why), session.upstream)

    def take_up(self, session: Exchanging) -> None:
        """Its stream has ended early, here or at another worker, and can be taken up again."""
        try:
            self.resuming = session.upstream.spawn(self._resume(session), cut=True)
        except Failure as failure:
            self.lose(failure, session.upstream)

    async def _resume(self, session: Exchanging) -> None:
        """Take the stream up again, until it has its answer. Servers close streams to be asked again, and some say
        nothing on a new one that was opened too early: then it is opened once more."""
        failed = empty = 0
        silent = _SILENT
        upstream = session.upstream
        name = upstream.name
        try:
            while True:
                wait = RETRY * random() if self.retry is None else max(self.retry, LEAST_RETRY)  # noqa: S311 - spreads load
                wait += DELAYS.delay(max(failed, empty))
                await asyncio.sleep(min(wait, max(0.0, self.until - monotonic())))
                if self.over:
                    return
                if monotonic() >= self.until:
                    self.expire()
                    return
                before = self.event
                try:
                    exchange = await session.get(self.event, self.until, min(10.0, self.until - monotonic()), silent)
                except Failure as failure:
                    failed += 1
                    if failed > _RESUMES:
                        self.lose(call_lost(name, failure.message, failure.detail), upstream)
                        return
                    continue
                try:
                    if exchange.status != 200 or not exchange.event_stream:
                        failed += 1
                        if exchange.status in (400, 404, 405) or failed > _RESUMES:
                            why = f"its stream could not be taken up again: status {exchange.status}"
                            if exchange.status == 404 and session.id:
                                upstream.discard(session, EXPIRED)
                            self.lose(call_lost(name, why), upstream)
                            return
                        continue
                    failed = 0
                    ended = self._follow(exchange)
                    exchange.start(self)
                    await ended
                finally:
                    exchange.close()
                if self._session is None:  # it has its answer
                    return
                told = self.event != before
                empty = 0 if told else min(empty + 1, _RESUMES)
                silent = _SILENT if told else min(silent * 2, _MOST_SILENT)
        except asyncio.CancelledError:
            self.resuming = None
            self.lose(Failure(503, Reason.UPSTREAM_FAILURE, f"{name}: the session was closed", sent=True), upstream)
            raise

    # Movable
    def place(self) -> bytes:
        session = self._session
        if session is None or session.new or not session.shared_id() or not self.event or self.over:
            return b""
        mark, known = session.upstream.mark, session.shared_id().encode()
        return Place(mark, known, session.revision, session.profile, self._id, self.event).encode()

    def leave(self) -> None:
        session = self._session
        if session is not None:
            session.kept = True
        self._hang_up()
        self._quit_resuming()
        self._sink = None  # whoever listened is told by who leaves
        super().finish()
        self._settle()

    # ---- how it ends
    def lose(self, failure: Failure, owner: Rescuer) -> None:
        self._hang_up()
        self._quit_resuming()
        super().lose(failure, owner)

    def parted(self) -> None:
        self._quit_resuming()
        self._settle()

    def _hang_up(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.close()

    def _quit_resuming(self) -> None:
        task, self.resuming = self.resuming, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _fail(self, failure: Failure) -> None:
        self._hang_up()
        self.finish(failure)

    def finish(self, failure: Failure | None = None) -> None:
        super().finish(failure)
        self._settle()

    def quit(self, call: ToolCall | None) -> None:
        session = self._session
        self._hang_up()
        self._quit_resuming()
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
        """Never watched: the exchange has the deadline, or the task that resumes it."""
        session = self._session
        if session is not None:
            session.cancel(self._id)
            self.finish(
                Failure(504, Reason.TIMEOUT, f"{session.upstream.name}: the server did not answer in time", sent=True)
            )

    def _settle(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.streaming.pop(self._id, None)
            session.done()


def marked(raw: bytes, event: bytes, retry: float | None) -> tuple[bytes, float | None]:
    """The last event id, and the seconds to wait before the stream is asked for again, after the event `raw` (WHATWG
    HTML, 9.2.6)."""
    if raw[:3] == b"id:" or b"\nid:" in raw or b"\rid:" in raw:  # most have none, and some are large
        for match in _ID_LINE.finditer(raw):
            event = match[1] if len(match[1]) <= _MAX_EVENT_ID else b""
    if raw[:6] == b"retry:" or b"\nretry:" in raw:
        said = _RETRY_LINE.search(raw)
        if said is not None:
            retry = min(int(said[1]) / 1000, MOST_RETRY)
    return event, retry
