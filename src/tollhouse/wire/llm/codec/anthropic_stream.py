"""Anthropic messages and the neutral model: the stream.

Its events are ours but for names: blocks begin, get deltas and stop, counted by `index`. Usage comes twice, each time
with the totals known then; the input's with the first event, before there is a word of the answer. A block that only
this API has is held until it is whole.
"""

from typing import Any

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import misread, unreadable
from tollhouse.wire.llm.codec.anthropic_citations import read_citation, write_citation
from tollhouse.wire.llm.codec.anthropic_stops import REASONS, STOPS
from tollhouse.wire.llm.codec.reading import Fields
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    CitationDelta,
    Ended,
    Event,
    Opaque,
    Part,
    PartBegan,
    PartEnded,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)
from tollhouse.wire.llm.usage import MessagesUsage, uncounted

__all__ = ["MessagesDecoder", "MessagesEncoder"]

Raw = msgspec.Raw
_ABSENT = Raw()

_encode = msgspec.json.Encoder().encode


class _Delta(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    citation: Raw = _ABSENT
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _Block(msgspec.Struct, gc=False):
    type: str = ""
    id: str | None = None
    name: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    input: Raw = _ABSENT


class _Message(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    usage: MessagesUsage | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    index: int = 0
    delta: _Delta | None = None
    content_block: Raw = _ABSENT
    message: _Message | None = None
    usage: MessagesUsage | None = None


class _Error(msgspec.Struct, gc=False):
    type: str = ""
    message: str = ""


class _Failed(msgspec.Struct, gc=False):
    error: _Error | None = None


_event = msgspec.json.Decoder(_Event, strict=False).decode
_block = msgspec.json.Decoder(_Block, strict=False).decode
_failed = msgspec.json.Decoder(_Failed, strict=False).decode
_object = msgspec.json.Decoder(dict[str, Raw]).decode

_STATUSES = {"rate_limit_error": 429, "overloaded_error": 503, "timeout_error": 504}


class MessagesDecoder:
    """StreamDecoder of message events. stopped: `message_delta` has told why."""

    __slots__ = ("_opaque", "_usage", "finished", "stopped", "uncounted")

    def __init__(self) -> None:
        self._usage = Usage()
        self._opaque: dict[int, tuple[Raw, list[str]]] = {}
        self.stopped = False
        self.finished = False
        self.uncounted = ""

    def read(self, name: bytes, data: bytes) -> list[Event]:
        try:
            event = _event(data)
        except UNREADABLE:
            if name == b"error":
                raise _told(data) from None
            event, self.uncounted = _uncounted(data)
        kind = event.type
        if kind == "content_block_delta":
            delta = event.delta
            return [] if delta is None else self._delta(event.index, delta)
        if kind == "content_block_start":
            return self._began(event.index, event.content_block)
        if kind == "content_block_stop":
            return [*self._whole(event.index), PartEnded(event.index)]
        if kind == "message_start":
            return self._start(event.message)
        if kind == "message_delta":
            return self._end(event)
        if kind == "message_stop":
            self.finished = True
        elif kind == "error" or name == b"error":
            raise _told(data)
        return []

    def _delta(self, index: int, delta: _Delta) -> list[Event]:
        if delta.text is not None:
            return [TextDelta(index, delta.text)] if delta.text else []
        if delta.partial_json is not None:
            if self._opaque and (held := self._opaque.get(index)) is not None:
                held[1].append(delta.partial_json)
                return []
            return [ArgumentsDelta(index, delta.partial_json)] if delta.partial_json else []
        if delta.thinking is not None:
            return [ThinkingDelta(index, delta.thinking)] if delta.thinking else []
        if delta.signature is not None:
            return [SignatureDelta(index, delta.signature)] if delta.signature else []
        if bytes(delta.citation):
            return [CitationDelta(index, read_citation(Fields.of(delta.citation, "citation.", misread)))]
        return []

    def _began(self, index: int, raw: Raw) -> list[Event]:
        try:
            block = _block(raw)
            given = bytes(block.input).decode()
        except UNREADABLE:
            raise unreadable("a content block is not of the messages API") from None
        kind = block.type
        if kind == "text":
            return [PartBegan(index, Text(block.text or ""))]
        if kind == "thinking":
            return [PartBegan(index, Thinking(block.thinking or "", block.signature or None))]
        if kind == "redacted_thinking":
            return [PartBegan(index, Thinking(sealed=block.data or ""))]
        if kind == "tool_use":
            if not block.id or not block.name:
                raise unreadable("a call has no id or no name")
            return [PartBegan(index, ToolCall(block.id, block.name, "" if given in ("", "{}", "null") else given))]
        if not kind:
            raise unreadable("a content block has no type")
        self._opaque[index] = (raw, [])
        return []

    def _whole(self, index: int) -> list[Event]:
        """A block of another kind, with the input that has come in pieces."""
        held = self._opaque.pop(index, None)
        if held is None:
            return []
        raw, pieces = held
        try:
            if pieces:
                raw = Raw(_encode({**_object(raw), "input": _object("".join(pieces))}))
            kind = _block(raw).type
        except UNREADABLE:
            raise unreadable("the input of a tool of the provider's is not a JSON object") from None
        return [PartBegan(index, Opaque("messages", kind, raw))]

    def _start(self, message: _Message | None) -> list[Event]:
        if message is None:
            raise unreadable("message_start has no message")
        events: list[Event] = [Began(message.id or "", message.model or "")]
        if message.usage is not None:
            message.usage.merge(self._usage)
            if message.usage.normal() is not None:
                events.append(Used(msgspec.structs.replace(self._usage)))
        return events

    def _end(self, event: _Event) -> list[Event]:
        events: list[Event] = []
        if event.usage is not None:
            event.usage.merge(self._usage)
            if event.usage.normal() is not None:
                events.append(Used(msgspec.structs.replace(self._usage)))
        delta = event.delta
        if delta is not None and delta.stop_reason is not None:
            self.stopped = True
            stop = STOPS.get(delta.stop_reason, "stop")
            events.append(Ended(stop, delta.stop_sequence, delta.stop_reason))
        return events


def _uncounted(data: bytes) -> tuple[_Event, str]:
    """An event whose usage is none, and that."""
    try:
        return uncounted(_event, data, ("usage",), ("message", "usage"))
    except UNREADABLE:
        raise unreadable("an event is not of the messages API") from None


def _told(data: bytes) -> StreamFailure:
    try:
        error = _failed(data).error or _Error()
    except UNREADABLE:
        error = _Error()
    status = _STATUSES.get(error.type, 502)
    words = b"event: error\ndata: %b\n\n" % data
    detail = f"{error.type or 'error'}: {error.message}"[:500]
    return StreamFailure(status, "the provider failed", words, detail=detail)


_TEXT = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":%b:%b}}\n\n'
_BEGIN = b'event: content_block_start\ndata: {"type":"content_block_start","index":%d,"content_block":%b}\n\n'
_STOP = b'event: content_block_stop\ndata: {"type":"content_block_stop","index":%d}\n\n'
_TEXT_KIND = b'"text_delta","text"'
_INPUT_KIND = b'"input_json_delta","partial_json"'
_THINKING_KIND = b'"thinking_delta","thinking"'


class MessagesEncoder:
    """StreamEncoder of message events. There is one choice; what other choices say is left out, as are parts for which
    there is no block. The input's usage is told with the first event when it is known by then, and with the last one
    otherwise."""

    __slots__ = ("_blocks", "_ended", "_open", "_thoughts", "_usage")

    def __init__(self) -> None:
        self._usage: Usage | None = None
        self._blocks = 0
        self._open: dict[int, int] = {}  # a part: its block
        self._thoughts: set[int] = set()
        self._ended: Ended | None = None

    def write(self, events: list[Event]) -> bytes:
        out = []
        if events and isinstance(events[0], Began):
            for event in events:
                if isinstance(event, Used):
                    self._usage = event.usage  # known early: it belongs into the first event
        for event in events:
            if isinstance(event, TextDelta):
                if not event.choice and (index := self._open.get(event.part)) is not None:
                    out.append(_TEXT % (index, _TEXT_KIND, _encode(event.text)))
            elif isinstance(event, ArgumentsDelta):
                if not event.choice and (index := self._open.get(event.part)) is not None:
                    out.append(_TEXT % (index, _INPUT_KIND, _encode(event.text)))
            elif isinstance(event, ThinkingDelta):
                if not event.choice and (index := self._open.get(event.part)) is not None:
                    out.append(_TEXT % (index, _THINKING_KIND, _encode(event.text)))
            else:
                out.append(self._rare(event))
        return out[0] if len(out) == 1 else b"".join(out)

    def _rare(self, event: Event) -> bytes:
        if isinstance(event, Began):
            return self._start(event)
        if isinstance(event, Used):
            self._usage = event.usage
            return b""
        if event.choice:
            return b""
        if isinstance(event, Ended):
            self._ended = event
            return b""
        if isinstance(event, PartBegan):
            return self._part(event.part, event.value)
        index = self._open.get(event.part)
        if index is None:
            return b""
        if isinstance(event, PartEnded):
            del self._open[event.part]
            return _STOP % index
        if isinstance(event, SignatureDelta):
            if event.part in self._thoughts:
                return _TEXT % (index, b'"signature_delta","signature"', _encode(event.signature))
        elif isinstance(event, RefusalDelta):
            return _TEXT % (index, _TEXT_KIND, _encode(event.text))
        elif isinstance(event, CitationDelta):
            # Of a stream it is not known whose it is; what rides along is only ours to write when it was read here.
            cited = _encode(write_citation(event.citation, own=True))
            return _TEXT % (index, b'"citations_delta","citation"', cited)
        return b""

    def _start(self, event: Began) -> bytes:
        message: dict[str, Any] = {
            "id": event.id,
            "type": "message",
            "role": "assistant",
            "model": event.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": MessagesUsage.form(self._usage or Usage()),
        }
        return b'event: message_start\ndata: {"type":"message_start","message":%b}\n\n' % _encode(message)

    def _part(self, part: int, value: Part) -> bytes:
        """A block begins empty; what is known of it comes as its first delta."""
        block: Any
        first, text = b"", ""
        if isinstance(value, (Text, Refusal)):
            block = {"type": "text", "text": ""}
            first, text = _TEXT_KIND, value.text
        elif isinstance(value, ToolCall):
            block = {"type": "tool_use", "id": value.id, "name": value.name, "input": {}}
            first, text = _INPUT_KIND, value.arguments
        elif isinstance(value, Thinking):
            if value.sealed is not None:
                block = {"type": "redacted_thinking", "data": value.sealed}
            else:
                block = {"type": "thinking", "thinking": "", "signature": value.signature or ""}
                first, text = _THINKING_KIND, value.text
                self._thoughts.add(part)
        elif isinstance(value, Opaque) and value.dialect == "messages":
            block = value.value
        else:
            return b""
        index = self._open[part] = self._blocks
        self._blocks += 1
        start = _BEGIN % (index, _encode(block))
        return start + _TEXT % (index, first, _encode(text)) if text else start

    def end(self) -> bytes:
        ended = self._ended or Ended()
        form = {
            "type": "message_delta",
            "delta": {"stop_reason": REASONS[ended.stop], "stop_sequence": ended.stop_sequence},
            "usage": MessagesUsage.form(self._usage or Usage()),
        }
        return (
            b"".join(_STOP % index for index in sorted(self._open.values()))
            + b"event: message_delta\ndata: %b\n\n" % _encode(form)
            + b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
        )
