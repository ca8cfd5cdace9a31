"""A stream that outlives its provider: what was said so far is given to another target to go on from.

Rule: once for each stream, and only where nothing but text was said: a tool call that is cut in half cannot be
continued. What the client has is not taken back: the second stream is read, its beginning left out, and the rest
written as a continuation of the first one. Usage is that of both, and an estimate.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from tollhouse.backends.hedge import added, share, shared, twin
from tollhouse.backends.llm import MAX_OUTPUT
from tollhouse.core.call import Context, ModelCall, Usage
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import End, Ending, finish
from tollhouse.core.reply import Reply, Tap
from tollhouse.core.stand_in import StandIn
from tollhouse.wire.llm.codec import Codec, Lost, StreamDecoder, StreamEncoder
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.model import (
    Began,
    Chat,
    Ended,
    Event,
    Message,
    PartBegan,
    PartEnded,
    Text,
    TextDelta,
    Used,
)
from tollhouse.wire.llm.tokens import of_text

__all__ = ["Another", "Lasting", "Resumed", "continuation"]

log = logging.getLogger("tollhouse.backends.llm")


class Resumed(NamedTuple):
    """Who goes on with a stream. name: the target's. call: that was made. echoes: the answer may begin with what was
    said."""

    name: str
    call: ModelCall
    reply: Reply
    echoes: bool


Another = Callable[[str], Awaitable[Resumed | None]]
"""Asks a target to go on from a text."""

_LOST = (Reason.UPSTREAM_FAILURE, Reason.TIMEOUT)


class Lasting(StandIn):
    """The Source of a stream for the client, and the Sink of the one that is read at the moment. It takes a Reply's
    place by `over`. another: as Another."""

    __slots__ = (
        "_another", "_began", "_call", "_codec", "_decoder", "_dialect", "_ends", "_first_usage", "_pieces", "_plain",
        "_resumed", "_splice", "_task", "_twin", "taps",
    )  # fmt: skip

    def __init__(self, call: ModelCall, codec: Codec, another: Another) -> None:
        super().__init__()
        self._call = call
        self._dialect: Dialect = call.dialect
        self._codec = codec
        self._decoder: StreamDecoder = codec.decoder()
        self._another: Another | None = another
        self._began = Began("", "")
        self._pieces: list[str] = []
        self._plain = True  # nothing but text was said, and it goes on
        self._resumed = False
        self._splice: _Splice | None = None
        self._task: asyncio.Task[None] | None = None
        self._ends: list[End] = []
        self._first_usage: Usage | None = None
        self._twin: Context | None = None
        self.taps: list[Tap] = []

    def over(self, reply: Reply) -> None:
        """Stand between the Reply and whoever gets it."""
        assert reply.source is not None
        self._source, reply.source = reply.source, self
        self._ends, reply.ends = reply.ends, [self.settle]
        self.taps = reply.taps = list(reply.taps or ())
        self._read(reply.first)

    # ---- Source for the client
    def close(self) -> None:
        self._sink = self._another = None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._close_behind()

    # ---- Sink of the stream that is read
    def send(self, data: bytes) -> None:
        if self._splice is not None:
            data = self._splice.read(data)
        elif self._plain:
            self._read(data)
        for tap in self.taps:
            data = tap(data)
        if data and self._sink is not None:
            self._sink.send(data)

    def end(self, failure: Failure | None = None) -> None:
        self._source = None
        if failure is None or self._resumed or not self._plain or failure.reason not in _LOST or self._another is None:
            self._over(failure)
            return
        self._resumed = True
        finish(self._ends, Ending(failure.status, failure.reason, failure=failure))
        self._first_usage = self._call.context.usage
        self._task = asyncio.get_running_loop().create_task(self._go_on(failure))

    def _over(self, failure: Failure | None) -> None:
        sink, self._sink, self._another = self._sink, None, None
        self.taps = []
        if sink is not None:
            sink.end(failure)

    def _read(self, data: bytes) -> None:
        try:
            for name, payload in self._dialect.events(data):
                if payload:
                    for event in self._decoder.read(name, payload):
                        self._note(event)
        except Failure:
            self._plain = False

    def _note(self, event: Event) -> None:
        if isinstance(event, TextDelta):
            self._pieces.append(event.text)
        elif isinstance(event, Began):
            self._began = event
        elif isinstance(event, PartBegan) and isinstance(event.value, Text):
            if event.value.text:
                self._pieces.append(event.value.text)
        elif not isinstance(event, (PartEnded, Used)):
            self._plain = False  # a thought, a call, log-probs; or the answer has ended
            return
        if getattr(event, "choice", 0):
            self._plain = False

    # ---- the other one
    async def _go_on(self, failure: Failure) -> None:
        said = "".join(self._pieces)
        found = None
        another = self._another
        try:
            if another is not None:
                found = await another(said)
        except Failure as again:
            log.info("a stream could not be resumed: %s", again.detail or again.message)
        except Exception:  # a task's root: the client must get an end all the same
            log.exception("a stream could not be resumed")
        self._task = None
        if found is None:
            self._over(failure)
            return
        name, call, reply, echoes = found
        if self._sink is None or reply.source is None:
            reply.close(Ending(499, Reason.CLIENT_GONE, gone=True))
            self._over(failure)
            return
        self._ends, reply.ends = reply.ends, []
        self._twin = call.context
        self._splice = _Splice(
            self._dialect, self._codec, call.chat, self._began, said, self._first_usage, echoes=echoes
        )
        self._source, reply.source = reply.source, None
        if self._dialect.stream_type.startswith(b"text/event-stream"):
            self._sink.send(b": tollhouse resumed on %b\n\n" % name.encode("ascii", "backslashreplace"))
        try:
            self.send(reply.first)
        except Failure as told:  # a tap's
            self._close_behind()
            self.end(told)
            return
        self._start_behind()

    def settle(self, ending: Ending) -> None:
        """The end of the whole: both streams' ends have run then."""
        context = self._call.context
        finish(self._ends, ending)
        if self._resumed:
            context.usage = self._first_usage
            if self._twin is not None and self._twin.usage is not None:
                shared(context, share(self._twin))
            if context.usage is not None:
                context.usage.estimated = True


class _Splice:
    """Turns a second stream into the rest of the first."""

    __slots__ = (
        "_decoder", "_dialect", "_echo", "_encoder", "_finished", "_heard", "_next", "_open", "_parts", "_tail",
        "_used",
    )  # fmt: skip

    def __init__(
        self,
        dialect: Dialect,
        codec: Codec,
        chat: Chat,
        began: Began,
        said: str,
        used: Usage | None,
        *,
        echoes: bool = False,
    ) -> None:
        self._dialect = dialect
        self._decoder = codec.decoder()
        self._encoder: StreamEncoder = codec.encoder(chat)
        # What the client has already; its bytes are not needed again.
        self._encoder.write([began, PartBegan(0, Text("")), TextDelta(0, said)])
        self._parts: dict[int, int] = {}
        self._open = True  # the part that the first stream began
        self._next = 1
        prefix = said.rstrip()
        self._tail = said[len(prefix) :]
        self._echo = prefix if echoes else ""  # what may be said again, as far as it did not come yet
        self._heard = ""
        self._used = used
        self._finished = False

    def read(self, data: bytes) -> bytes:
        out = []
        for name, payload in self._dialect.events(data):
            if not payload or self._finished:
                continue
            events = [e for event in self._decoder.read(name, payload) for e in self._moved(event)]
            if events:
                out.append(self._encoder.write(events))
            if self._decoder.finished:
                self._finished = True
                out.append(self._encoder.end())
        return b"".join(out)

    def _moved(self, event: Event) -> list[Event]:
        """The event as one of the first stream's."""
        if isinstance(event, Began):
            return []
        if isinstance(event, Used):
            return [Used(added(self._used, event.usage) or event.usage)]
        if isinstance(event, Ended):
            return [*self._unsaid(), *self._closed(), event]
        if isinstance(event, PartBegan):
            if self._open and isinstance(event.value, Text) and not self._parts:
                self._parts[event.part] = 0
                fresh = self._fresh(event.value.text)
                return [TextDelta(0, fresh)] if fresh else []
            moved = msgspec.structs.replace(event, part=self._next)
            self._parts[event.part] = self._next
            self._next += 1
            return [*self._unsaid(), *self._closed(), moved]
        part = self._parts.get(event.part)
        if part is None:
            return []
        event.part = part
        if part:
            return [event]
        if isinstance(event, TextDelta):
            event.text = self._fresh(event.text)
            return [event] if event.text else []
        if isinstance(event, PartEnded):
            return [*self._unsaid(), *self._closed()]
        return []  # places in a text of which the provider knows a part

    def _closed(self) -> list[Event]:
        if not self._open:
            return []
        self._open = False
        return [PartEnded(0)]

    def _unsaid(self) -> list[Event]:
        """What was held back as the beginning of an echo, and is none: the answer has ended before it was one."""
        heard, self._heard, self._echo = self._heard, "", ""
        return [TextDelta(0, heard)] if heard and self._open else []

    def _fresh(self, text: str) -> str:
        """Without what the client has: the prefix, if that is said again, and the blanks that it was sent without."""
        if not text:
            return text
        if self._echo:
            text = self._heard + text
            if self._echo.startswith(text) and text != self._echo:
                self._heard = text  # so far it is one
                return ""
            text = text.removeprefix(self._echo)
            self._heard = self._echo = ""
            if not text:
                return text
        tail, self._tail = self._tail, ""
        return text.removeprefix(tail) if tail else text


def continuation(call: ModelCall, codec: Codec, said: str) -> ModelCall:
    """The call that asks to go on from `said`, with a Context of its own. Raises Failure 400 for a request that cannot
    be read."""
    if call.chat is None:
        call.chat = codec.decode(call.fields, model=call.model, stream=call.stream)
    chat: Chat = call.chat
    prefix = said.rstrip()  # one API refuses blanks at the end
    fields = call.fields
    if prefix:
        longer = msgspec.structs.replace(chat, messages=[*chat.messages, Message("assistant", [Text(prefix)])])
        before, after = (codec.encode(c, Lost(), model=call.model, max_output=MAX_OUTPUT) for c in (chat, longer))
        # Only what the prefix has changed: the rest stays as the caller wrote it.
        fields = {**fields, **{n: v for n, v in after.items() if bytes(before.get(n, b"")) != bytes(v)}}
        spent = of_text(len(prefix))
        for name in call.dialect.output_bounds:
            if bytes(bound := fields.get(name, msgspec.Raw())).isdigit():
                fields[name] = msgspec.Raw(b"%d" % max(int(bytes(bound)[:9]) - spent, 1))
        if longer.max_output is not None:
            longer.max_output = max(longer.max_output - spent, 1)
        chat = longer
    return msgspec.structs.replace(
        twin(call),
        fields=fields,
        chat=chat,
        body=msgspec.json.encode(fields),
        reserve=None,
        continued=bool(prefix),
    )
