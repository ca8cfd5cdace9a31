"""Bedrock ConverseStream and the neutral model: the stream.

A block's kind is known with its first delta: only calls have a start of their own. Usage comes after the event that
says why the answer ended, so the stream is finished with `metadata`. Exceptions are messages too; they come here under
their type, the way `wire.llm.converse` names them.
"""

from base64 import b64decode, b64encode
from typing import Any

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.eventstream import frame, sealed, text_headers
from tollhouse.wire.llm.codec import Lost, misread, unreadable
from tollhouse.wire.llm.codec.converse_citations import read_citation, write_citation
from tollhouse.wire.llm.codec.converse_parts import decodable, image_format, image_type
from tollhouse.wire.llm.codec.reading import Fields
from tollhouse.wire.llm.converse import failed
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    CitationDelta,
    Ended,
    Event,
    Image,
    Media,
    Part,
    PartBegan,
    PartEnded,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Stop,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)
from tollhouse.wire.llm.usage import ConverseUsage, tiered, uncounted

__all__ = ["ConverseDecoder", "ConverseEncoder", "stop_sequence"]

Raw = msgspec.Raw
_ABSENT = Raw()
_PIECE = 1 << 20  # characters of base64 in one message, each whole: readers bound its size

_encode = msgspec.json.Encoder().encode


class _Call(msgspec.Struct, gc=False, rename="camel"):
    tool_use_id: str | None = None
    name: str | None = None
    type: str | None = None
    input: str | None = None


class _Thought(msgspec.Struct, gc=False, rename="camel"):
    text: str | None = None
    signature: str | None = None
    redacted_content: str | None = None


class _Source(msgspec.Struct, gc=False):
    bytes: str | None = None


class _Picture(msgspec.Struct, gc=False):
    format: str | None = None
    source: _Source | None = None


class _Delta(msgspec.Struct, gc=False, rename="camel"):
    text: str | None = None
    tool_use: _Call | None = None
    reasoning_content: _Thought | None = None
    citation: Raw = _ABSENT
    image: _Picture | None = None


class _DeltaEvent(msgspec.Struct, gc=False, rename="camel"):
    delta: _Delta | None = None
    content_block_index: int = 0


class _Start(msgspec.Struct, gc=False, rename="camel"):
    tool_use: _Call | None = None
    image: _Picture | None = None


class _StartEvent(msgspec.Struct, gc=False, rename="camel"):
    start: _Start | None = None
    content_block_index: int = 0


class _StopEvent(msgspec.Struct, gc=False, rename="camel"):
    content_block_index: int = 0


class _MessageStop(msgspec.Struct, gc=False, rename="camel"):
    stop_reason: str | None = None
    additional_model_response_fields: Raw = _ABSENT


class _Metadata(msgspec.Struct, gc=False, rename="camel"):
    usage: ConverseUsage | None = None
    service_tier: Raw = _ABSENT


class _Additional(msgspec.Struct, gc=False):
    stop_sequence: str | None = None


_delta = msgspec.json.Decoder(_DeltaEvent, strict=False).decode
_start = msgspec.json.Decoder(_StartEvent, strict=False).decode
_stop = msgspec.json.Decoder(_StopEvent, strict=False).decode
_message_stop = msgspec.json.Decoder(_MessageStop, strict=False).decode
_metadata = msgspec.json.Decoder(_Metadata, strict=False).decode
_additional = msgspec.json.Decoder(_Additional).decode


def stop_sequence(fields: Raw | None) -> str | None:
    """Which of the stop sequences it was, from `additionalModelResponseFields`, where a model's own words stand."""
    if fields is None:
        return None
    try:
        return _additional(fields).stop_sequence
    except UNREADABLE:
        return None


class _Open:
    """A block that is being read. part: its number in the neutral model, -1 while that does not know it."""

    __slots__ = ("format", "kind", "part", "pieces")

    def __init__(self, kind: str, part: int) -> None:
        self.kind = kind  # "text" | "thinking" | "sealed" | "call" | "image" | "opaque"
        self.part = part
        self.format = ""
        self.pieces: list[str] = []  # of base64, each whole


class ConverseDecoder:
    """StreamDecoder of events by name. stopped: `messageStop` has come; nothing of the answer is missing any more, but
    for the usage."""

    __slots__ = ("_blocks", "_parts", "_stops", "finished", "stopped", "uncounted")

    def __init__(self, stops: dict[str, Stop]) -> None:
        self._stops = stops
        self._blocks: dict[int, _Open] = {}  # by the API's index
        self._parts = 0
        self.stopped = False
        self.finished = False
        self.uncounted = ""

    def read(self, name: bytes, data: bytes) -> list[Event]:
        try:
            if name == b"contentBlockDelta":
                event = _delta(data)
                return [] if event.delta is None else self._delta(event.content_block_index, event.delta)
            if name == b"contentBlockStart":
                begun = _start(data)
                return [] if begun.start is None else self._start(begun.content_block_index, begun.start)
            if name == b"contentBlockStop":
                return self._end(_stop(data).content_block_index)
            if name == b"messageStart":
                return [Began("", "")]
            if name == b"messageStop":
                return self._stop(_message_stop(data))
            if name == b"metadata":
                self.finished = True
                told = self._metadata(data)
                counted = tiered(told.usage.normal(), told.service_tier) if told.usage is not None else None
                return [] if counted is None else [Used(counted)]
        except UNREADABLE:
            raise unreadable("an event is not of the Converse API") from None
        failure = failed(name, data)
        if failure is not None:
            raise failure
        return []  # one that came to the API after us

    def _begin(self, index: int, kind: str, value: Part | None, events: list[Event]) -> _Open:
        """The block, newly begun unless it is open. value: what begins in the neutral model."""
        block = self._blocks.get(index)
        if block is not None and (block.kind == kind or value is None):
            return block
        if block is not None:
            events += self._end(index)
        block = self._blocks[index] = _Open(kind, -1)
        if value is not None:
            self._number(block, value, events)
        return block

    def _number(self, block: _Open, value: Part, events: list[Event]) -> None:
        block.part = self._parts
        self._parts += 1
        events.append(PartBegan(block.part, value))

    def _metadata(self, data: bytes) -> _Metadata:
        """Without a usage that is none. Raises DecodeError."""
        try:
            return _metadata(data)
        except UNREADABLE:
            told, self.uncounted = uncounted(_metadata, data, ("usage",))
        return told

    def _delta(self, index: int, delta: _Delta) -> list[Event]:
        events: list[Event] = []
        block = self._blocks.get(index)
        text = delta.text
        if text is not None:
            if block is None or block.kind != "text":
                block = self._begin(index, "text", Text(""), events)
            if text:
                events.append(TextDelta(block.part, text))
        elif delta.tool_use is not None:
            if block is not None and block.kind == "call" and delta.tool_use.input:
                events.append(ArgumentsDelta(block.part, delta.tool_use.input))
        elif delta.reasoning_content is not None:
            self._thought(index, delta.reasoning_content, events)
        elif bytes(delta.citation) not in (b"", b"null"):
            if block is None or block.kind != "text":
                block = self._begin(index, "text", Text(""), events)
            events.append(CitationDelta(block.part, read_citation(Fields.of(delta.citation, "citation.", misread))))
        elif delta.image is not None and block is not None and block.kind == "image":
            source = delta.image.source
            if source is not None and source.bytes:
                block.pieces.append(source.bytes)
        return events

    def _thought(self, index: int, thought: _Thought, events: list[Event]) -> None:
        if thought.redacted_content is not None:
            block = self._blocks.get(index)
            if block is None or block.kind != "sealed":
                if block is not None:
                    events += self._end(index)
                block = self._begin(index, "sealed", None, events)
            block.pieces.append(thought.redacted_content)
            return
        block = self._begin(index, "thinking", Thinking(), events)
        if thought.text:
            events.append(ThinkingDelta(block.part, thought.text))
        if thought.signature:
            events.append(SignatureDelta(block.part, thought.signature))

    def _start(self, index: int, start: _Start) -> list[Event]:
        events: list[Event] = self._end(index)
        call = start.tool_use
        if call is not None and call.type is None:
            self._begin(index, "call", ToolCall(call.tool_use_id or "", call.name or "", ""), events)
        elif start.image is not None:
            self._begin(index, "image", None, events).format = start.image.format or ""
        else:
            self._begin(index, "opaque", None, events)  # a tool that the provider runs itself
        return events

    def _end(self, index: int) -> list[Event]:
        block = self._blocks.pop(index, None)
        if block is None:
            return []
        events: list[Event] = []
        if block.pieces:
            whole = _joined(block.pieces)
            if block.kind == "sealed":
                self._number(block, Thinking(sealed=whole), events)
            else:
                self._number(block, Image(Media(image_type(block.format), whole)), events)
        if block.part >= 0:
            events.append(PartEnded(block.part))
        return events

    def _stop(self, stop: _MessageStop) -> list[Event]:
        events: list[Event] = []
        for index in sorted(self._blocks):
            events += self._end(index)
        self.stopped = True
        reason = stop.stop_reason or "end_turn"
        sequence = stop_sequence(stop.additional_model_response_fields)
        events.append(Ended(self._stops.get(reason, "stop"), sequence, reason))
        return events


def _joined(pieces: list[str]) -> str:
    """One base64 text of several, each of which may end in padding."""
    if len(pieces) == 1:
        return pieces[0]
    try:
        return b64encode(b"".join(b64decode(piece, validate=True) for piece in pieces)).decode()
    except ValueError:
        raise unreadable("a block of bytes is not base64") from None


def _head(name: bytes) -> bytes:
    return text_headers({b":event-type": name, b":content-type": b"application/json", b":message-type": b"event"})


_DELTA = _head(b"contentBlockDelta")
_STOP = _head(b"contentBlockStop")


class ConverseEncoder:
    """StreamEncoder of binary events. There is one choice; what other choices say is left out. Blocks are numbered
    anew, without those that this API does not have."""

    __slots__ = ("_ended", "_indexes", "_next", "_reasons", "_thoughts", "_usage")

    def __init__(self, reasons: dict[Stop, str]) -> None:
        self._reasons = reasons
        self._indexes: dict[int, int] = {}  # of open parts; -1 while nothing has been said of one
        self._thoughts: set[int] = set()
        self._next = 0
        self._usage: Usage | None = None
        self._ended: Ended | None = None

    def write(self, events: list[Event]) -> bytes:
        out = []
        for event in events:
            if isinstance(event, TextDelta):
                if not event.choice:
                    out.append(self._delta(event.part, b'{"text":%b}' % _encode(event.text)))
            elif isinstance(event, ArgumentsDelta):
                if not event.choice:
                    out.append(self._delta(event.part, b'{"toolUse":{"input":%b}}' % _encode(event.text)))
            elif isinstance(event, ThinkingDelta):
                if not event.choice:
                    out.append(self._delta(event.part, b'{"reasoningContent":{"text":%b}}' % _encode(event.text)))
            else:
                out.append(self._rare(event))
        return out[0] if len(out) == 1 else b"".join(out)

    def _delta(self, part: int, delta: bytes) -> bytes:
        index = self._indexes.get(part)
        if index is None:
            return b""
        if index < 0:
            index = self._number(part)
        return sealed(_DELTA, b'{"contentBlockIndex":%d,"delta":%b}' % (index, delta))

    def _number(self, part: int) -> int:
        index = self._indexes[part] = self._next
        self._next += 1
        return index

    def _rare(self, event: Event) -> bytes:
        if isinstance(event, Began):
            return frame(b"messageStart", b'{"role":"assistant"}')
        if isinstance(event, Used):
            self._usage = event.usage
            return b""
        if event.choice:
            return b""
        if isinstance(event, PartBegan):
            return self._part(event.part, event.value)
        if isinstance(event, PartEnded):
            index = self._indexes.pop(event.part, -1)
            return b"" if index < 0 else _stopped(index)
        if isinstance(event, SignatureDelta):
            if event.part not in self._thoughts:
                return b""  # a call's: there is no place for it
            return self._delta(event.part, b'{"reasoningContent":{"signature":%b}}' % _encode(event.signature))
        if isinstance(event, RefusalDelta):
            return self._delta(event.part, b'{"text":%b}' % _encode(event.text))
        if isinstance(event, CitationDelta):
            citation = write_citation(event.citation, False, Lost(), "")
            return self._delta(event.part, b'{"citation":%b}' % _encode(citation))
        if isinstance(event, Ended):
            self._ended = event
        return b""

    def _part(self, part: int, value: Part) -> bytes:
        if isinstance(value, ToolCall):
            index = self._number(part)
            form = {"contentBlockIndex": index, "start": {"toolUse": {"toolUseId": value.id, "name": value.name}}}
            begun = frame(b"contentBlockStart", _encode(form))
            if value.arguments:
                begun += self._delta(part, b'{"toolUse":{"input":%b}}' % _encode(value.arguments))
            return begun
        if isinstance(value, Image):
            return self._picture(part, value)
        if not isinstance(value, (Text, Refusal, Thinking)):
            return b""
        self._indexes[part] = -1
        if not isinstance(value, Thinking):
            return self._delta(part, b'{"text":%b}' % _encode(value.text)) if value.text else b""
        self._thoughts.add(part)
        told: list[dict[str, str]] = []
        if value.text:
            told.append({"text": value.text})
        elif value.sealed is not None and decodable(value.sealed):
            told.append({"redactedContent": value.sealed})
        if value.signature:
            told.append({"signature": value.signature})
        return b"".join(self._delta(part, b'{"reasoningContent":%b}' % _encode(one)) for one in told)

    def _picture(self, part: int, value: Image) -> bytes:
        """One by URL has no place here, as in a whole answer."""
        word = image_format(value.media.type)
        if word is None or not value.media.data:
            return b""
        start = {"contentBlockIndex": self._number(part), "start": {"image": {"format": word}}}
        data = value.media.data
        pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
        deltas = [self._delta(part, _encode({"image": {"source": {"bytes": piece}}})) for piece in pieces]
        return frame(b"contentBlockStart", _encode(start)) + b"".join(deltas)

    def end(self) -> bytes:
        ended = self._ended or Ended()
        stop: dict[str, Any] = {"stopReason": self._reasons[ended.stop]}
        if ended.stop_sequence is not None:
            stop["additionalModelResponseFields"] = {"stop_sequence": ended.stop_sequence}
        metadata = {"usage": ConverseUsage.form(self._usage or Usage()), "metrics": {"latencyMs": 0}}
        return b"".join(
            (
                *(_stopped(index) for index in sorted(self._indexes.values()) if index >= 0),
                frame(b"messageStop", _encode(stop)),
                frame(b"metadata", _encode(metadata)),
            )
        )


def _stopped(index: int) -> bytes:
    return sealed(_STOP, b'{"contentBlockIndex":%d}' % index)
