"""A stream of OpenAI chat completions as the neutral model's events. It is written by `openai_chat_encoder`.

Its chunks know no parts: text, thoughts and calls come side by side in deltas, calls counted by `index`. A part begins
with its first delta and ends when another one begins, or with the choice.
"""

from typing import Any

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import misread, unreadable
from tollhouse.wire.llm.codec.openai_chat_messages import read_part
from tollhouse.wire.llm.codec.openai_chat_stops import stop_of
from tollhouse.wire.llm.codec.reading import Fields
from tollhouse.wire.llm.dialect import StreamFailure
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    Citation,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
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
from tollhouse.wire.llm.usage import ChatUsage, tiered, uncounted

__all__ = ["ChatDecoder"]

Raw = msgspec.Raw
_ABSENT = Raw()

_encode = msgspec.json.Encoder().encode
_DONE = b"[DONE]"


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _Google(msgspec.Struct, gc=False):
    thought_signature: str | None = None


class _ExtraContent(msgspec.Struct, gc=False):
    google: _Google | None = None


class _Call(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    type: str | None = None
    function: _Function | None = None
    extra_content: _ExtraContent | None = None


class _Detail(msgspec.Struct, gc=False):
    type: str | None = None
    text: str | None = None
    summary: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None


class _UrlCitation(msgspec.Struct, gc=False):
    url: str | None = None
    title: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class _Annotation(msgspec.Struct, gc=False):
    url_citation: _UrlCitation | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    reasoning_details: list[_Detail] | None = None
    refusal: str | None = None
    tool_calls: list[_Call] | None = None
    annotations: list[_Annotation] | None = None


class _Logprobs(msgspec.Struct, gc=False):
    content: Raw = _ABSENT


class _Choice(msgspec.Struct, gc=False):
    index: int | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    model: str | None = None
    created: float | None = None
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None
    service_tier: Raw = _ABSENT
    error: Raw = _ABSENT


class _OddDelta(_Delta, gc=False):
    content: Raw = _ABSENT  # type: ignore[assignment]


class _OddChoice(_Choice, gc=False):
    delta: _OddDelta | None = None


class _OddChunk(_Chunk, gc=False):
    """One whose content is not a text."""

    choices: list[_OddChoice] | None = None  # type: ignore[assignment]


class _Error(msgspec.Struct, gc=False):
    message: Any = None
    type: Any = None
    code: Any = None


_chunk = msgspec.json.Decoder(_Chunk, strict=False).decode
_odd_chunk = msgspec.json.Decoder(_OddChunk, strict=False).decode
_error = msgspec.json.Decoder(_Error, strict=False).decode
_text = msgspec.json.Decoder(str).decode


class _Open:
    """A choice of the stream that is being read: which part is open."""

    __slots__ = ("bare", "calls", "ended", "kind", "part", "parts", "refused")

    def __init__(self) -> None:
        self.kind = ""  # "text" | "thinking" | "refusal" | "call"
        self.bare = False  # the open thought was told without details: they repeat it
        self.part = -1
        self.parts = 0
        self.calls: dict[int, tuple[int, str]] = {}  # the API's index of a call: its part and id
        self.refused = False
        self.ended = False


class ChatDecoder:
    """StreamDecoder of chunks."""

    __slots__ = ("_began", "_choices", "_id", "finished", "uncounted")

    def __init__(self) -> None:
        self._began = False
        self._id = ""
        self._choices: dict[int, _Open] = {}
        self.finished = False
        self.uncounted = ""

    @property
    def stopped(self) -> bool:
        return bool(self._choices) and all(choice.ended for choice in self._choices.values())

    def read(self, name: bytes, data: bytes) -> list[Event]:
        if data == _DONE:
            self.finished = True
            return []
        odd = False
        try:
            chunk = _chunk(data)
        except UNREADABLE:
            odd = True
            chunk = self._oddly(data)
        if chunk.error is not _ABSENT or name == b"error":
            self._failed(chunk.error, name, data)
        events: list[Event] = []
        if not self._began:
            self._began = True
            self._id = chunk.id or ""
            events.append(Began(self._id, chunk.model or "", int(chunk.created or 0)))
        for choice in chunk.choices or ():
            index = choice.index or 0
            open_ = self._choices.get(index)
            if open_ is None:
                open_ = self._choices[index] = _Open()
            if not open_.ended:  # what comes later tells of filters, or nothing
                if odd and choice.delta is not None:
                    self._odd(choice.delta, index, open_, events)
                self._choice(choice, index, open_, events)
        if chunk.usage is not None:
            usage = tiered(chunk.usage.normal(), chunk.service_tier)
            if usage is not None:
                events.append(Used(usage))
        return events

    def _oddly(self, data: bytes) -> _Chunk:
        """A chunk whose contents are not all text, or whose usage is none."""
        try:
            return _odd_chunk(data)
        except UNREADABLE:
            pass
        try:
            chunk, self.uncounted = uncounted(_odd_chunk, data, ("usage",))
        except UNREADABLE:
            raise unreadable("an event is not a chat completion chunk") from None
        return chunk

    def _choice(self, choice: _Choice, index: int, open_: _Open, events: list[Event]) -> None:
        delta = choice.delta
        if delta is not None:
            text = delta.content
            if delta.reasoning_details:
                for detail in delta.reasoning_details:
                    self._detail(detail, index, open_, events)
            elif thought := delta.reasoning_content or delta.reasoning:
                self._open(open_, "thinking", Thinking(), index, events)
                open_.bare = True
                events.append(ThinkingDelta(open_.part, thought, index))
            if text:
                if open_.kind != "text":
                    self._open(open_, "text", Text(""), index, events)
                events.append(TextDelta(open_.part, text, index))
            if delta.refusal:
                open_.refused = True
                self._open(open_, "refusal", Refusal(""), index, events)
                events.append(RefusalDelta(open_.part, delta.refusal, index))
            if delta.tool_calls:
                for call in delta.tool_calls:
                    self._call(call, index, open_, events)
            if delta.annotations:
                self._annotations(delta.annotations, index, open_, events)
        logprobs = choice.logprobs
        if logprobs is not None and open_.part >= 0 and bytes(logprobs.content) not in (b"", b"null", b"[]"):
            events.append(LogprobsDelta(open_.part, logprobs.content, index))
        reason = choice.finish_reason
        if reason:  # some servers say "" until there is one
            open_.ended = True
            self._close(open_, index, events)
            stop = stop_of(reason, calls=bool(open_.calls), refused=open_.refused)
            events.append(Ended(stop, None, reason, index))

    def _open(
        self, open_: _Open, kind: str, value: Text | Thinking | Refusal | ToolCall, index: int, events: list[Event]
    ) -> None:
        if open_.kind == kind != "call":
            return
        self._close(open_, index, events)
        open_.kind = kind
        open_.bare = False
        open_.part = open_.parts
        open_.parts += 1
        events.append(PartBegan(open_.part, value, index))

    def _close(self, open_: _Open, index: int, events: list[Event]) -> None:
        if open_.kind:
            events.append(PartEnded(open_.part, index))
            open_.kind = ""

    def _odd(self, delta: _Delta, index: int, open_: _Open, events: list[Event]) -> None:
        """Some servers give a thought as a part of a list in place of a text."""
        raw: Any = delta.content
        delta.content = None
        if raw is _ABSENT or bytes(raw) == b"null":
            return
        if bytes(raw)[:1] == b'"':
            delta.content = Fields({"content": raw}, "delta.", misread).text("content")
            return
        for part in Fields({"content": raw}, "delta.", misread).children("content") or ():
            value = read_part(part, told=True)
            if isinstance(value, Thinking) and value.text:
                self._open(open_, "thinking", Thinking(), index, events)
                events.append(ThinkingDelta(open_.part, value.text, index))
            elif isinstance(value, Text) and value.text:
                self._open(open_, "text", Text(""), index, events)
                events.append(TextDelta(open_.part, value.text, index))

    def _detail(self, detail: _Detail, index: int, open_: _Open, events: list[Event]) -> None:
        if detail.data is not None:
            self._open(open_, "sealed", Thinking(sealed=detail.data, id=detail.id), index, events)
            self._close(open_, index, events)
            return
        text = detail.text or detail.summary
        if text or detail.signature:
            self._open(open_, "thinking", Thinking(id=detail.id), index, events)
            if text and not open_.bare:
                events.append(ThinkingDelta(open_.part, text, index))
            if detail.signature:
                # It is the last of a thought; another one may follow at once.
                events.append(SignatureDelta(open_.part, detail.signature, index))
                self._close(open_, index, events)

    def _call(self, call: _Call, index: int, open_: _Open, events: list[Event]) -> None:
        function = call.function
        calls = open_.calls
        if call.index is not None:
            number = call.index
        else:
            number = len(calls) if call.id or not calls else len(calls) - 1
        known = calls.get(number)
        if known is not None and call.id and call.id != known[1] and function is not None and function.name:
            number = len(calls)  # some servers count all calls of a turn as the first
            while number in calls:
                number += 1
            known = None
        if known is None:
            name = function.name if function is not None else None
            id = call.id or f"call_{self._id or 'x'}_{index}_{len(calls)}"
            self._open(open_, "call", ToolCall(id, name or "", ""), index, events)
            known = calls[number] = (open_.part, id)
        elif known[0] != open_.part or open_.kind != "call":
            if function is None or not function.arguments:
                return
            raise unreadable("a call goes on after another part has begun")
        content = call.extra_content
        if content is not None and content.google is not None and content.google.thought_signature is not None:
            events.append(SignatureDelta(known[0], content.google.thought_signature, index))
        if function is not None and function.arguments:
            events.append(ArgumentsDelta(known[0], function.arguments, index))

    def _annotations(self, told: list[_Annotation], index: int, open_: _Open, events: list[Event]) -> None:
        for one in told:
            cited = one.url_citation
            if cited is not None:
                self._open(open_, "text", Text(""), index, events)
                citation = Citation("url", cited.title, cited.url, begin=cited.start_index, end=cited.end_index)
                events.append(CitationDelta(open_.part, citation, index))

    def _failed(self, error: Raw, name: bytes, data: bytes) -> None:
        """Raises, unless the error says nothing."""
        said = bytes(error)
        if name != b"error" and said in (b"null", b"{}", b'""'):
            return
        try:
            told = _Error(_text(said)) if said[:1] == b'"' else _error(said if said[:1] == b"{" else data)
        except UNREADABLE:
            told = _Error()
        words = b"event: error\ndata: %b\n\n" % data if name == b"error" else b"data: %b\n\n" % data
        kind = " ".join(str(word) for word in (told.type, told.code) if word)
        limited = "429" in kind or "rate_limit" in kind or "insufficient_quota" in kind
        detail = f"{kind or 'error'}: {told.message or ''}"[:500]
        raise StreamFailure(429 if limited else 502, "the provider failed", words, detail=detail)
