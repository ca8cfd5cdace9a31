"""A provider's stream on its way to the client: Sink of the exchange, Source for the server.

Rule: bytes flow by callback from one side to the other, and so does back-pressure; nothing is awaited after the first
event. After its end, in whatever way, Events refers to neither side, so that no stream waits for the cycle collector.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

from msgspec.structs import replace

from tollhouse.core.call import Context, Usage
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Sink
from tollhouse.core.reply import Tap
from tollhouse.net.client import Exchange
from tollhouse.wire.llm.dialect import Framing, StreamReader
from tollhouse.wire.llm.reader import is_json
from tollhouse.wire.llm.tokens import of_text
from tollhouse.wire.sse import Framer, parse

__all__ = ["Events", "estimated"]

_HEAD = 1 << 14  # bytes; what is longer says something, if not in words
_SOON = 2.0  # the clock looks once a second; what is shorter is hurried


class Events:
    """Passes whole events on. `first` gives what there is at the commit; everything after it comes by `start`.

    taps: applied in order to every block that comes by `start`; it is the Reply's own list, to append to. A stream
    that the upstream ends before its answer was cut, and that is a Failure; where only the event is missing that ends
    an answer, it is written here.
    """

    __slots__ = (
        "_clock",
        "_context",
        "_exchange",
        "_failure",
        "_framer",
        "_held",
        "_idle",
        "_over",
        "_patient",
        "_prompt",
        "_reader",
        "_sink",
        "_started",
        "_waiter",
        "deadline",
        "taps",
    )

    def __init__(
        self,
        exchange: Exchange,
        reader: StreamReader,
        context: Context,
        clock: Clock,
        *,
        framer: Framing | None = None,
        prompt: Callable[[], int],
        idle: float = 0.0,
        patient: bool = False,
    ) -> None:
        """framer: cuts the provider's stream; None for server-sent events. prompt: gives the estimated input tokens,
        and is asked when the provider did not get to tell. idle: seconds of silence that end the stream after its
        first event; 0.0 where the exchange sees to that itself. patient: `first` waits until something is said, or the
        answer is whole: what begins with nothing but a head may still be withheld."""
        self._exchange: Exchange | None = exchange
        self._reader = reader
        self._context = context
        self._clock = clock
        self._prompt = prompt
        self._idle = idle
        self._patient = patient
        self._framer: Framing = framer if framer is not None else Framer()
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._held: list[bytes] = []  # whole events that came before there was a sink
        self._failure: Failure | None = None
        self._started = False  # the exchange delivers to us
        self._over = False  # the exchange has ended
        self.taps: list[Tap] = []
        self.deadline = FOREVER

    # ---- before the commit
    async def first(self, deadline: float) -> bytes:
        """What has come, as soon as it means something (a comment or a ping does not). Raises Failure when the stream
        fails or ends before that, and 504 at `deadline` (monotonic)."""
        exchange = self._exchange
        assert exchange is not None
        block = self._framer.feed(exchange.take())
        if block:
            block = self._reader.read(block)
        if self._reader.failure is not None:
            raise self._told()
        if block:
            self._held.append(block)
        if self._is_enough():
            held, self._held = self._held, []
            return b"".join(held)
        await self._wait(exchange, deadline)
        if self._failure is not None:
            raise self._failed()
        held, self._held = self._held, []
        return b"".join(held)

    async def _wait(self, exchange: Exchange, deadline: float) -> None:
        self._waiter = waiter = asyncio.get_running_loop().create_future()
        self._started = True
        exchange.start(self)
        try:
            if not waiter.done():
                self.deadline = deadline
                self._clock.watch(self)
                self._clock.hurry(self)
                try:
                    await waiter
                finally:
                    self._clock.drop(self)
        finally:
            self._waiter = None

    def _is_enough(self) -> bool:
        """Whether there is a first event for the caller."""
        reader = self._reader
        if not reader.began or not self._patient:
            return reader.began
        return reader.text > 0 or reader.finished or sum(map(len, self._held)) > _HEAD

    def expire(self) -> None:
        self.deadline = FOREVER
        waiter = self._waiter
        if waiter is None:
            exchange = self._exchange
            if exchange is not None:
                exchange.close()
                self.end(Failure(504, Reason.TIMEOUT, "the provider sent nothing for too long", retry=True, sent=True))
        elif not waiter.done():
            self._failure = Failure(504, Reason.TIMEOUT, "the provider sent no event in time", retry=True, sent=True)
            waiter.set_result(None)

    # ---- Sink of the exchange
    def send(self, data: bytes) -> None:
        if self._idle:
            self._arm()
        block = self._framer.feed(data)
        if not block:
            return
        reader = self._reader
        block = reader.read(block)
        if block:
            sink = self._sink
            if sink is None:
                self._held.append(block)
            elif self.taps:
                self._pass(block)
            else:
                sink.send(block)
        if reader.failure is not None:
            raise self._told()  # the exchange ends with it, and tells `end`
        waiter = self._waiter
        if waiter is not None and not waiter.done() and self._is_enough():
            waiter.set_result(None)
            self.pause()  # until there is a client to send to

    def end(self, failure: Failure | None = None) -> None:
        self._exchange = None
        self._over = True
        if self._idle:
            self._clock.drop(self)
        self._context.upstream_ended = monotonic()
        if failure is None:
            try:
                failure = self._last()
            except Failure as raised:  # a tap's
                failure = raised
        elif self._reader.finished:
            failure = None  # the answer is whole; how the connection ends is not the caller's concern
        sink, self._sink = self._sink, None
        if sink is not None:
            self.taps = []
            sink.end(failure)
            return
        self._failure = failure
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _pass(self, block: bytes) -> None:
        sink = self._sink
        if sink is None:
            self._held.append(block)
            return
        for tap in self.taps:
            block = tap(block)
        if block:
            sink.send(block)

    def _last(self) -> Failure | None:
        """The upstream closed in good order: is the answer whole?"""
        reader = self._reader
        if not reader.finished:
            rest = self._framer.rest()
            stopped = reader.stopped
            # Some servers leave the last blank line out. Half an event behind an answer's end is nothing.
            if rest.strip(b"\r\n") and (not stopped or is_json(parse(rest)[1])):
                block = reader.read(rest + b"\n\n")
                if reader.failure is not None:
                    return self._told()
                if _finished(reader) or reader.stopped > stopped:
                    self._pass(block)
            if not _finished(reader) and reader.stopped:
                self._pass(reader.last())
        return None if _finished(reader) else _cut()

    # ---- Source for the client
    def start(self, sink: Sink) -> None:
        self._sink = sink
        held, self._held = self._held, []
        try:
            for block in held:
                self._pass(block)
        except Failure as failure:  # a tap's
            self.close()
            sink.end(failure)
            return
        if self._over:
            self._sink = None
            self.taps = []
            ended, self._failure = self._failure, None
            sink.end(ended)
            return
        exchange = self._exchange
        if exchange is None:  # closed meanwhile
            self._sink = None
            return
        if self._idle:
            self._clock.watch(self)
            self._arm()
        if self._started:
            exchange.resume()
        else:
            self._started = True
            exchange.start(self)

    def pause(self) -> None:
        self.deadline = FOREVER  # it is not the upstream that is slow
        if self._exchange is not None:
            self._exchange.pause()

    def resume(self) -> None:
        if self._exchange is not None:
            if self._idle:
                self._arm()
            self._exchange.resume()

    def _arm(self) -> None:
        if self._sink is not None:
            self.deadline = self._clock.now + self._idle
            if self._idle < _SOON:
                self._clock.hurry(self)

    def close(self) -> None:
        exchange, self._exchange = self._exchange, None
        self._sink = None
        self._held = []
        if self._idle:
            self._clock.drop(self)
        if exchange is not None:
            self._context.upstream_ended = monotonic()
            exchange.close()

    # ---- at the end
    def settle(self, ending: Ending) -> None:
        """Write down what was used: the provider's count, or an estimate from what was seen; and that who left after
        the whole answer has had it. Goes into the Reply's `ends`, first, so that what settles after it finds it."""
        reader = self._reader
        self._context.model_answered = reader.model
        if ending.gone and reader.finished:
            # Many clients leave at the event that ends the answer, and do not wait for the end of the body.
            ending.status, ending.reason, ending.gone = 200, Reason.UPSTREAM, False
        usage = reader.usage
        if usage is not None and reader.counted and (usage.output or usage.total or not reader.text):
            self._context.usage = usage
        else:
            self._context.usage = estimated(usage, self._prompt(), reader.text)
            self._context.raw_usage = reader.uncounted

    # A failure is handed over and not kept, and never in a variable of the frame that raises it: it would refer back.
    def _told(self) -> Failure:
        failure, self._reader.failure = self._reader.failure, None
        return failure if failure is not None else _cut()

    def _failed(self) -> Failure:
        failure, self._failure = self._failure, None
        return failure if failure is not None else _cut()


def estimated(told: Usage | None, prompt: int, text: int) -> Usage:
    """Usage where the provider did not tell, or not all. told: what it did tell. prompt: tokens. text: bytes."""
    if told is None or not told.total:
        tier = "" if told is None else told.tier
        return Usage(prompt, of_text(text), estimated=True, tier=tier)
    return replace(told, output=max(told.output, of_text(text)), estimated=True)


def _finished(reader: StreamReader) -> bool:
    return reader.finished


def _cut() -> Failure:
    message = "the provider's stream ended before the answer was complete"
    return Failure(502, Reason.UPSTREAM_FAILURE, message, retry=True, sent=True)
