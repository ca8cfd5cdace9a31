"""Gemini's stream and the neutral model: each event is an answer of its own, with the parts that are new.

Text goes on in the part that is open; a call mostly comes whole, and is always written so. Every event may tell usage,
as the totals up to then. There is no event that ends the stream: it is whole when each candidate has said why it ended.
What is told beside the parts (what they cite, log-probs) is about the text that is open.
"""

from typing import Any

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import misread, unreadable
from tollhouse.wire.llm.codec.gemini_answer import (
    FINISH,
    Cited,
    call_id,
    read_citations,
    read_logprobs,
    stop_of,
    write_citation,
    write_logprobs,
    write_part,
)
from tollhouse.wire.llm.codec.gemini_arguments import Arguments, partial
from tollhouse.wire.llm.codec.gemini_parts import opened, read_part
from tollhouse.wire.llm.codec.reading import Fields
from tollhouse.wire.llm.gemini import failed
from tollhouse.wire.llm.model import (
    ArgumentsDelta,
    Began,
    Citation,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
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
from tollhouse.wire.llm.usage import GeminiUsage, uncounted

__all__ = ["GenerateDecoder", "GenerateEncoder"]

Raw = msgspec.Raw
_ABSENT = Raw()

_encode = msgspec.json.Encoder().encode


class _Content(msgspec.Struct, gc=False):
    parts: list[Raw] | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    index: int | None = None
    grounding_metadata: Raw = _ABSENT
    citation_metadata: Raw = _ABSENT
    logprobs_result: Raw = _ABSENT


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: str | None = None


class _Response(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: GeminiUsage | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: Raw = _ABSENT


class _Plain(msgspec.Struct, gc=False, rename="camel", forbid_unknown_fields=True):
    """The usual part."""

    text: str
    thought: bool = False
    thought_signature: str | None = None


_response = msgspec.json.Decoder(_Response, strict=False).decode
_plain = msgspec.json.Decoder(_Plain).decode
_NOTHING = (b"", b"null")


class _Open:
    """A candidate that is being read. kind: of the part that goes on: "text", "thinking", "" for none. call: one whose
    arguments come in pieces."""

    __slots__ = ("arguments", "call", "calls", "cited", "ended", "kind", "part", "parts", "told")

    def __init__(self) -> None:
        self.kind = ""
        self.part = -1
        self.parts = 0
        self.calls = 0
        self.ended = False
        self.call: ToolCall | None = None
        self.arguments = Arguments()
        self.cited = Cited()
        self.told: set[tuple[str | None, int | None, int | None]] = set()


class GenerateDecoder:
    """StreamDecoder of partial answers."""

    __slots__ = ("_choices", "_id", "finished", "uncounted")

    def __init__(self) -> None:
        self._id: str | None = None
        self._choices: dict[int, _Open] = {}
        self.finished = False
        self.uncounted = ""

    @property
    def stopped(self) -> bool:
        """Never sooner: the last part of an answer says that it is."""
        return self.finished

    def read(self, name: bytes, data: bytes) -> list[Event]:
        try:
            response = _response(data)
        except UNREADABLE:
            response, self.uncounted = _uncounted(data)
        if bytes(response.error) not in _NOTHING:
            raise failed(data, b"data: %b\n\n" % data)
        events: list[Event] = []
        if self._id is None:
            self._id = response.response_id or ""
            events.append(Began(self._id, response.model_version or ""))
        if response.candidates is not None:
            for candidate in response.candidates:
                self._candidate(candidate, events)
        usage = response.usage_metadata
        if usage is not None and (normal := usage.normal()) is not None:
            events.append(Used(normal))
        feedback = response.prompt_feedback
        if feedback is not None and feedback.block_reason is not None and not self._choices:
            events.append(Ended("content_filter", None, feedback.block_reason))
            self.finished = True
        elif self._choices and all(c.ended for c in self._choices.values()):
            self.finished = True
        return events

    def _candidate(self, candidate: _Candidate, events: list[Event]) -> None:
        index = candidate.index or 0
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = _Open()
        content = candidate.content
        if content is not None and content.parts is not None:
            for raw in content.parts:
                self._part(raw, choice, index, events)
        if bytes(candidate.logprobs_result) not in _NOTHING and choice.kind == "text":
            logprobs = read_logprobs(Fields.of(candidate.logprobs_result, "logprobsResult.", misread))
            if bytes(logprobs) != b"[]":
                events.append(LogprobsDelta(choice.part, logprobs, index))
        if bytes(candidate.grounding_metadata) or bytes(candidate.citation_metadata):
            self._cite(candidate, choice, index, events)
        reason = candidate.finish_reason
        if reason is not None and not choice.ended:
            choice.ended = True
            self._close(choice, index, events)
            events.append(Ended(stop_of(reason, choice.calls > 0), None, reason, index))

    def _part(self, raw: Raw, choice: _Open, index: int, events: list[Event]) -> None:
        try:
            plain = _plain(raw)
        except UNREADABLE:
            self._other(opened(Fields.of(raw, "part.", misread)), choice, index, events)
            return
        text, signature = plain.text, plain.thought_signature
        kind = "thinking" if plain.thought else "text"
        if choice.kind != kind:
            # The signature of the last event has an empty text, and is about what was said before it.
            if not text and not (signature is not None and plain.thought):
                return
            self._begin(choice, index, Thinking() if plain.thought else Text(""), events)
            choice.kind = kind
        if text:
            if plain.thought:
                events.append(ThinkingDelta(choice.part, text, index))
            else:
                events.append(TextDelta(choice.part, text, index))
                choice.cited.more(text)
        if signature is not None:
            events.append(SignatureDelta(choice.part, signature, index))
            if plain.thought:
                self._close(choice, index, events)  # it is the last of a thought; another one may follow at once

    def _begin(self, choice: _Open, index: int, part: Part, events: list[Event]) -> None:
        self._close(choice, index, events)
        choice.part = choice.parts
        choice.parts += 1
        choice.cited.part(part)
        events.append(PartBegan(choice.part, part, index))

    def _other(self, f: Fields, choice: _Open, index: int, events: list[Event]) -> None:
        call = f.peek("functionCall")
        if call is not None:
            call = opened(call)
            if partial(call):
                self._piece(f, call, choice, index, events)
                return
        part = read_part(f)
        if isinstance(part, ToolCall):
            self._call(part, choice, index, events)
            return
        self._begin(choice, index, part, events)
        events.append(PartEnded(choice.part, index))

    def _call(self, call: ToolCall, choice: _Open, index: int, events: list[Event]) -> None:
        call.id = call.id or call_id(self._id or "", index, choice.calls)
        choice.calls += 1
        arguments, call.arguments = call.arguments, ""
        self._begin(choice, index, call, events)
        events.append(ArgumentsDelta(choice.part, arguments, index))
        events.append(PartEnded(choice.part, index))

    def _piece(self, f: Fields, call: Fields, choice: _Open, index: int, events: list[Event]) -> None:
        """One of a call that comes in pieces; only the first has the name, and the last is often empty."""
        name = call.text("name")
        if name:
            self._close(choice, index, events)
            choice.call = ToolCall(call.text("id") or "", name)
            choice.arguments = Arguments()
        if choice.call is None:
            return
        choice.call.signature = f.text("thoughtSignature") or choice.call.signature
        if not choice.arguments.take(call):
            self._gathered(choice, index, events)

    def _gathered(self, choice: _Open, index: int, events: list[Event]) -> None:
        call, choice.call = choice.call, None
        if call is not None:
            call.arguments = choice.arguments.text()
            self._call(call, choice, index, events)

    def _close(self, choice: _Open, index: int, events: list[Event]) -> None:
        if choice.call is not None:
            self._gathered(choice, index, events)
        if choice.kind:
            events.append(PartEnded(choice.part, index))
            choice.kind = ""

    def _cite(self, candidate: _Candidate, choice: _Open, index: int, events: list[Event]) -> None:
        """Each event tells all that is known by then."""
        if choice.kind != "text":
            return
        told = (candidate.grounding_metadata, candidate.citation_metadata)
        grounding, cited = (None if bytes(r) in _NOTHING else Fields.of(r, "candidate.", misread) for r in told)
        found: list[tuple[Text, Citation]] = []
        read_citations(grounding, cited, choice.cited, found)
        for _, citation in found:
            key = (citation.url, citation.begin, citation.end)
            if key not in choice.told:
                choice.told.add(key)
                events.append(CitationDelta(choice.part, citation, index))


_TEXT = b'data: {"candidates":[{"content":{"role":"model","parts":[{"text":%b%b}]},"index":%d%b}],%b}\n\n'
_THOUGHT = b',"thought":true'


def _uncounted(data: bytes) -> tuple[_Response, str]:
    """An event whose usage is none, and that."""
    try:
        return uncounted(_response, data, ("usageMetadata",))
    except UNREADABLE:
        raise unreadable("an event is not a part of an answer") from None


class _Told:
    """A candidate that is being written. text: of the part that is open; said: bytes of the texts before it. cited:
    citations that came before it."""

    __slots__ = ("calls", "cited", "ended", "said", "text", "thoughts")

    def __init__(self) -> None:
        self.calls: dict[int, tuple[ToolCall, list[str]]] = {}
        self.thoughts: dict[int, Thinking] = {}  # their signatures; they are told when they are whole
        self.cited: list[Citation] = []
        self.ended: Ended | None = None
        self.text = bytearray()
        self.said = 0


def _candidate(part: dict[str, Any], index: int) -> dict[str, Any]:
    return {"content": {"role": "model", "parts": [part]}, "index": index}


class GenerateEncoder:
    """StreamEncoder of partial answers. Why each ended is told at the end, with the usage."""

    __slots__ = ("_choices", "_first", "_tail", "_usage")

    def __init__(self) -> None:
        self._tail = b'"modelVersion":"","responseId":""'
        self._usage: Usage | None = None
        self._first = _Told()
        self._choices: dict[int, _Told] = {0: self._first}

    def write(self, events: list[Event]) -> bytes:
        out = []
        for n, event in enumerate(events):
            if isinstance(event, TextDelta):
                self._told(event.choice).text += event.text.encode("utf-8", "surrogatepass")
                beside = b""
                if n + 1 < len(events):
                    following = events[n + 1]
                    if isinstance(following, LogprobsDelta) and following.choice == event.choice:
                        beside = b',"logprobsResult":' + _encode(write_logprobs(following.logprobs))
                out.append(_TEXT % (_encode(event.text), b"", event.choice, beside, self._tail))
            elif isinstance(event, ThinkingDelta):
                out.append(_TEXT % (_encode(event.text), _THOUGHT, event.choice, b"", self._tail))
            elif isinstance(event, ArgumentsDelta):
                call = self._told(event.choice).calls.get(event.part)
                if call is not None:
                    call[1].append(event.text)
            elif isinstance(event, LogprobsDelta):
                if n == 0 or not isinstance(events[n - 1], TextDelta):
                    beside = b',"logprobsResult":' + _encode(write_logprobs(event.logprobs))
                    out.append(_TEXT % (b'""', b"", event.choice, beside, self._tail))
            else:
                out.append(self._rare(event))
        return out[0] if len(out) == 1 else b"".join(out)

    def _told(self, choice: int) -> _Told:
        if choice == 0:
            return self._first
        told = self._choices.get(choice)
        if told is None:
            told = self._choices[choice] = _Told()
        return told

    def _rare(self, event: Event) -> bytes:
        if isinstance(event, Began):
            self._tail = b'"modelVersion":%b,"responseId":%b' % (_encode(event.model), _encode(event.id))
            return b""
        if isinstance(event, Used):
            self._usage = event.usage
            return b""
        told = self._told(event.choice)
        if isinstance(event, PartBegan):
            return self._began(event, told)
        if isinstance(event, Ended):
            told.ended = event
            cut = event.stop in ("length", "context_window")
            proofs = [self._proof(part, event.choice, told) for part in list(told.thoughts)]
            return b"".join(proofs) + b"".join(
                self._call(part, event.choice, told, cut=cut, late=True) for part in list(told.calls)
            )
        if isinstance(event, PartEnded):
            if event.part in told.thoughts:
                return self._proof(event.part, event.choice, told)
            if told.cited:
                waiting, told.cited = told.cited, []
                return self._cited(waiting, event.choice, told)
            return self._call(event.part, event.choice, told, cut=False, late=False)
        if isinstance(event, SignatureDelta):
            call = told.calls.get(event.part)
            if call is not None:
                call[0].signature = (call[0].signature or "") + event.signature
                return b""
            thought = told.thoughts.get(event.part)
            if thought is not None:
                thought.signature = (thought.signature or "") + event.signature
                return b""
            return self._part({"text": "", "thoughtSignature": event.signature}, event.choice)
        if isinstance(event, RefusalDelta):
            return _TEXT % (_encode(event.text), b"", event.choice, b"", self._tail)
        if isinstance(event, CitationDelta) and event.citation.url:
            if told.text:
                return self._cited([event.citation], event.choice, told)
            told.cited.append(event.citation)  # the text that it is about comes after it
        return b""

    def _cited(self, citations: list[Citation], choice: int, told: _Told) -> bytes:
        text = told.text.decode("utf-8", "surrogatepass")
        candidate = _candidate({"text": ""}, choice)
        candidate["citationMetadata"] = {"citations": [write_citation(c, text, told.said) for c in citations]}
        return self._event([candidate])

    def _began(self, event: PartBegan, told: _Told) -> bytes:
        value = event.value
        if isinstance(value, ToolCall):
            call = ToolCall(value.id, value.name, "", value.signature)
            told.calls[event.part] = (call, [value.arguments] if value.arguments else [])
            return b""
        if isinstance(value, Thinking):
            told.thoughts[event.part] = Thinking("", value.signature, value.sealed)
            return self._part({"text": value.text, "thought": True}, event.choice) if value.text else b""
        if isinstance(value, Text):
            told.said += len(told.text)
            told.text = bytearray(value.text.encode("utf-8", "surrogatepass"))
        if isinstance(value, (Text, Refusal)) and not value.text:
            return b""
        form = write_part(value)
        return b"" if form is None else self._part(form, event.choice)

    def _proof(self, part: int, choice: int, told: _Told) -> bytes:
        """A thought's signature or seal, in a part of its own."""
        form = write_part(told.thoughts.pop(part))
        return b"" if form is None or "thoughtSignature" not in form else self._part(form, choice)

    def _call(self, part: int, choice: int, told: _Told, *, cut: bool, late: bool) -> bytes:
        """A call that is whole. One whose arguments are not waits for the reason: it may be that the answer was cut,
        and it has no arguments then."""
        call = told.calls.get(part)
        if call is None:
            return b""
        call[0].arguments = "".join(call[1])
        try:
            form = write_part(call[0], cut=cut)
        except Failure:
            if late:
                raise
            return b""
        del told.calls[part]
        assert form is not None
        return self._part(form, choice)

    def _part(self, form: dict[str, Any], choice: int) -> bytes:
        return self._event([_candidate(form, choice)])

    def _event(self, candidates: list[dict[str, Any]], **more: Any) -> bytes:
        fields = _encode({"candidates": candidates, **more})
        return b"data: %b,%b}\n\n" % (fields[:-1], self._tail)

    def end(self) -> bytes:
        """The last event. It has an empty text, as one without a part is none to some clients."""
        candidates = []
        for index, told in sorted(self._choices.items()):
            candidate = _candidate({"text": ""}, index)
            candidate["finishReason"] = FINISH[told.ended.stop if told.ended is not None else "stop"]
            candidates.append(candidate)
        usage = {} if self._usage is None else {"usageMetadata": GeminiUsage.form(self._usage)}
        return self._event(candidates, **usage)
