"""OpenAI responses and the neutral model: the stream that is read. The one that is written is in
`openai_responses_encoder`.

Its events count items (`output_index`) and the parts in them (`content_index`, `summary_index`). What only announces
may be missing: a delta opens its part, and what no delta has said is said by the event that ends it.
"""

from typing import Any

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import misread, unreadable
from tollhouse.wire.llm.codec.openai_responses_answer import (
    status_of,
    stopped,
)
from tollhouse.wire.llm.codec.openai_responses_items import read_citation
from tollhouse.wire.llm.codec.openai_responses_thoughts import SIGNATURE, seal_abroad
from tollhouse.wire.llm.codec.reading import Fields
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
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
from tollhouse.wire.llm.usage import ResponsesUsage, tiered, uncounted
from tollhouse.wire.sse import frame

__all__ = ["ResponsesDecoder"]

Raw = msgspec.Raw
_ABSENT = Raw()
_NOTHING = (b"", b"null", b"[]", b"{}")


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: str | None = None
    output_index: int = 0
    content_index: int = 0
    summary_index: int = 0
    logprobs: Raw = _ABSENT


class _Google(msgspec.Struct, gc=False):
    thought_signature: str | None = None


class _ExtraContent(msgspec.Struct, gc=False):
    google: _Google | None = None


class _Item(msgspec.Struct, gc=False):
    type: str = ""
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    encrypted_content: str | None = None
    extra_content: _ExtraContent | None = None


class _Summary(msgspec.Struct, gc=False):
    text: str | None = None


class _Thought(msgspec.Struct, gc=False):
    summary: list[_Summary] | None = None
    content: list[_Summary] | None = None


class _Content(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct, gc=False):
    content: list[_Content] | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Error(msgspec.Struct, gc=False):
    code: str | int | None = None
    type: str | None = None
    message: str | None = None


class _Response(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    created_at: float | None = None
    usage: ResponsesUsage | None = None
    service_tier: Raw = _ABSENT
    incomplete_details: _Incomplete | None = None
    error: _Error | None = None


class _Rare(msgspec.Struct, gc=False):
    """Of an event that begins or ends something."""

    type: str = ""
    output_index: int = 0
    content_index: int = 0
    item: Raw = _ABSENT
    part: _Content | None = None
    response: _Response | None = None
    text: str | None = None
    refusal: str | None = None
    arguments: str | None = None
    annotation: Raw = _ABSENT


class _Failed(msgspec.Struct, gc=False):
    error: _Error | None = None
    response: _Response | None = None
    code: str | int | None = None
    message: str | None = None


class _Kind(msgspec.Struct, gc=False):
    type: str = ""


_event = msgspec.json.Decoder(_Event, strict=False).decode
_rare = msgspec.json.Decoder(_Rare, strict=False).decode
_item = msgspec.json.Decoder(_Item, strict=False).decode
_thought = msgspec.json.Decoder(_Thought, strict=False).decode
_message = msgspec.json.Decoder(_Message, strict=False).decode
_failed = msgspec.json.Decoder(_Failed, strict=False).decode
_kind = msgspec.json.Decoder(_Kind, strict=False).decode

_TEXT = "response.output_text.delta"
_ARGUMENTS = "response.function_call_arguments.delta"
_REFUSAL = "response.refusal.delta"
_SUMMARY = "response.reasoning_summary_text.delta"
_THOUGHT = "response.reasoning_text.delta"
_DELTAS = (_TEXT, _ARGUMENTS, _REFUSAL, _SUMMARY, _THOUGHT)
_CALL = -1  # stands for `content_index` where an item is one part
_RARE = (
    "response.created",
    "response.output_item.added",
    "response.output_item.done",
    "response.content_part.added",
    "response.content_part.done",
    "response.output_text.done",
    "response.refusal.done",
    "response.function_call_arguments.done",
    "response.output_text.annotation.added",
    "response.completed",
    "response.incomplete",
)


class _Open:
    """A part that is being read. said: something of it has come. piece: which of a thought's texts came last."""

    __slots__ = ("part", "piece", "said")

    def __init__(self, part: int) -> None:
        self.part = part
        self.said = False
        self.piece: tuple[str, int] | None = None


class ResponsesDecoder:
    """StreamDecoder of response events."""

    __slots__ = ("_began", "_calls", "_ids", "_open", "_parts", "_refused", "finished", "uncounted")

    def __init__(self) -> None:
        self._began = False
        self._parts = 0
        self._open: dict[tuple[int, int], _Open] = {}  # by output_index and content_index
        self._ids: dict[int, str] = {}  # of thoughts, by output_index
        self._calls = False
        self._refused = False
        self.finished = False
        self.uncounted = ""

    @property
    def stopped(self) -> bool:
        """Never sooner: what ends an answer is the whole of it."""
        return self.finished

    def read(self, name: bytes, data: bytes) -> list[Event]:
        if data == b"[DONE]":
            return []  # some servers end every stream with it
        try:
            event = _event(data)
        except UNREADABLE:
            return self._odd(data)
        kind = event.type
        if kind not in _DELTAS:
            return self._rarely(kind, data)
        text = event.delta
        events: list[Event] = []
        if not self._began:
            self._begin(None, events)
        if kind == _TEXT:
            open_ = self._open.get((event.output_index, event.content_index))
            if open_ is None:
                open_ = self._opened(event.output_index, event.content_index, Text(""), events)
            if open_.part < 0:
                raise unreadable("text comes after its end")
            if text:
                open_.said = True
                events.append(TextDelta(open_.part, text))
            if bytes(event.logprobs) not in _NOTHING:
                events.append(LogprobsDelta(open_.part, event.logprobs))
        elif not text:
            pass
        elif kind == _ARGUMENTS:
            open_ = self._open.get((event.output_index, _CALL))
            if open_ is None or open_.part < 0:
                raise unreadable("arguments come without their call")
            open_.said = True
            events.append(ArgumentsDelta(open_.part, text))
        elif kind == _REFUSAL:
            open_ = self._opened(event.output_index, event.content_index, Refusal(""), events)
            if open_.part < 0:
                raise unreadable("a refusal comes after its end")
            open_.said = True
            events.append(RefusalDelta(open_.part, text))
        else:
            piece = ("s", event.summary_index) if kind == _SUMMARY else ("c", event.content_index)
            self._think(event.output_index, piece, text, events)
        return events

    def _odd(self, data: bytes) -> list[Event]:
        """An event whose fields are not of the usual types: it may be of another kind."""
        try:
            kind = _kind(data).type
        except UNREADABLE:
            raise unreadable("an event is not of the responses API") from None
        if kind in _DELTAS:
            raise unreadable(f"{kind} is not in its form")
        return self._rarely(kind, data)

    def _rarely(self, kind: str, data: bytes) -> list[Event]:
        if kind in ("error", "response.failed"):
            raise _told(kind, data)
        if kind not in _RARE:
            return []
        try:
            event = _rare(data)
        except UNREADABLE:
            event, self.uncounted = _uncounted(kind, data)
        events: list[Event] = []
        if not self._began:
            self._begin(event.response, events)
        place = event.output_index, event.content_index
        if kind == "response.output_item.added":
            self._item_added(event.output_index, event.item, events)
        elif kind == "response.output_item.done":
            self._item_done(event.output_index, event.item, events)
        elif kind == "response.content_part.added":
            self._part_added(place, event.part, events)
        elif kind == "response.content_part.done":
            self._whole(place, event.part, events)
            self._close(place, events)
        elif kind == "response.output_text.done":
            self._whole(place, _Content("output_text", event.text), events)
        elif kind == "response.refusal.done":
            self._whole(place, _Content("refusal", None, event.refusal), events)
        elif kind == "response.function_call_arguments.done":
            self._arguments(event.output_index, event.arguments, events)
        elif kind == "response.output_text.annotation.added":
            citation = None
            if bytes(event.annotation) not in _NOTHING:
                citation = read_citation(Fields.of(event.annotation, "annotation.", misread))
            if citation is not None:
                open_ = self._opened(*place, Text(""), events)
                if open_.part >= 0:
                    events.append(CitationDelta(open_.part, citation))
        elif kind != "response.created":
            self._end(kind, event.response, events)
        return events

    def _begin(self, response: _Response | None, events: list[Event]) -> None:
        self._began = True
        response = response or _Response()
        events.append(Began(response.id or "", response.model or "", int(response.created_at or 0)))

    def _opened(self, item: int, content: int, value: Part, events: list[Event]) -> _Open:
        open_ = self._open.get((item, content))
        if open_ is None:
            open_ = self._open[item, content] = _Open(self._parts)
            self._parts += 1
            self._refused = self._refused or isinstance(value, Refusal)
            events.append(PartBegan(open_.part, value))
        return open_

    def _close(self, place: tuple[int, int], events: list[Event]) -> None:
        open_ = self._open.get(place)
        if open_ is not None and open_.part >= 0:
            events.append(PartEnded(open_.part))
            open_.part = -1  # and nothing more is said of it

    def _item_added(self, index: int, raw: Raw, events: list[Event]) -> None:
        item = _of(_item, raw, "an item")
        if item.type == "function_call":
            self._calls = True
            self._opened(index, _CALL, ToolCall(item.call_id or "", item.name or "", ""), events)
        elif item.type == "reasoning" and item.id:
            self._ids[index] = item.id

    def _item_done(self, index: int, raw: Raw, events: list[Event]) -> None:
        """What has not been said of an item is said now."""
        item = _of(_item, raw, "an item")
        if item.type == "function_call":
            self._item_added(index, raw, events)
            self._arguments(index, item.arguments, events)
            google = item.extra_content.google if item.extra_content is not None else None
            open_ = self._open.get((index, _CALL))
            if google is not None and google.thought_signature and open_ is not None and open_.part >= 0:
                events.append(SignatureDelta(open_.part, google.thought_signature))
            self._close((index, _CALL), events)
        elif item.type == "message":
            for n, part in enumerate(_of(_message, raw, "a message").content or ()):
                self._whole((index, n), part, events)
                self._close((index, n), events)
        elif item.type == "reasoning":
            self._thought_done(index, item, _of(_thought, raw, "a thought"), events)
        else:
            self._opened(index, _CALL, Opaque("responses", item.type, raw), events)
            self._close((index, _CALL), events)

    def _part_added(self, place: tuple[int, int], part: _Content | None, events: list[Event]) -> None:
        if part is None:
            return
        if part.type == "output_text":
            self._opened(*place, Text(""), events)
        elif part.type == "refusal":
            self._opened(*place, Refusal(""), events)

    def _whole(self, place: tuple[int, int], part: _Content | None, events: list[Event]) -> None:
        """A part's end tells its whole text, which counts when no delta has."""
        if part is None or part.type not in ("output_text", "refusal"):
            return
        said = part.text if part.type == "output_text" else part.refusal
        open_ = self._opened(*place, Text("") if part.type == "output_text" else Refusal(""), events)
        if said and not open_.said and open_.part >= 0:
            open_.said = True
            text = part.type == "output_text"
            events.append(TextDelta(open_.part, said) if text else RefusalDelta(open_.part, said))

    def _arguments(self, index: int, arguments: str | None, events: list[Event]) -> None:
        open_ = self._open.get((index, _CALL))
        if open_ is not None and not open_.said and open_.part >= 0 and arguments:
            open_.said = True
            events.append(ArgumentsDelta(open_.part, arguments))

    def _think(self, index: int, piece: tuple[str, int], text: str, events: list[Event]) -> None:
        open_ = self._opened(index, _CALL, Thinking(id=self._ids.get(index)), events)
        if open_.part < 0:
            raise unreadable("a thought comes after its end")
        if open_.piece is not None and open_.piece != piece:
            events.append(ThinkingDelta(open_.part, "\n\n"))
        open_.piece = piece
        open_.said = True
        events.append(ThinkingDelta(open_.part, text))

    def _thought_done(self, index: int, item: _Item, thought: _Thought, events: list[Event]) -> None:
        if item.id:
            self._ids[index] = item.id
        open_ = self._open.get((index, _CALL))
        if open_ is None:
            for kind, texts in (("c", thought.content), ("s", thought.summary)):
                for n, one in enumerate(texts or ()):
                    if one.text:
                        self._think(index, (kind, n), one.text, events)
            open_ = self._open.get((index, _CALL))
        if item.encrypted_content:
            sealed = seal_abroad(item.id, item.encrypted_content)
            if open_ is None:
                proof = item.encrypted_content.startswith(SIGNATURE)
                value = Thinking("", sealed, None, item.id) if proof else Thinking(sealed=sealed, id=item.id)
                self._opened(index, _CALL, value, events)
            elif open_.part >= 0:
                events.append(SignatureDelta(open_.part, sealed))
        self._close((index, _CALL), events)

    def _end(self, kind: str, response: _Response | None, events: list[Event]) -> None:
        response = response or _Response()
        for place in list(self._open):
            self._close(place, events)
        usage = tiered(response.usage.normal(), response.service_tier) if response.usage is not None else None
        if usage is not None:
            events.append(Used(usage))
        reason = response.incomplete_details.reason if response.incomplete_details is not None else None
        told: list[Part] = [ToolCall("", "")] if self._calls else [Refusal("")] if self._refused else []
        stop, detail = stopped(kind.removeprefix("response."), reason, told)
        events.append(Ended(stop, None, detail))
        self.finished = True


def _uncounted(kind: str, data: bytes) -> tuple[_Rare, str]:
    """An event whose usage is none, and that."""
    try:
        return uncounted(_rare, data, ("response", "usage"))
    except UNREADABLE:
        raise unreadable(f"{kind} is not in its form") from None


def _of(decode: Any, raw: Raw, what: str) -> Any:
    try:
        return decode(raw)
    except UNREADABLE:
        raise unreadable(f"{what} is not of the responses API") from None


def _told(kind: str, data: bytes) -> StreamFailure:
    """`error`, in its documented form and with the object that the service sends; or `response.failed`."""
    try:
        failed = _failed(data)
    except UNREADABLE:
        failed = _Failed()
    error = failed.error or (failed.response.error if failed.response is not None else None)
    if error is None:
        error = _Error(failed.code, None, failed.message)
    code = str(error.code or error.type or "error")
    detail = f"{code}: {error.message or ''}"[:500]
    return StreamFailure(status_of(code), "the provider failed", frame(data, kind.encode()), detail=detail)
