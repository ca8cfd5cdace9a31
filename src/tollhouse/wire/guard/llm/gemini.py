"""Texts of Gemini: requests, answers, and the partial answers of a stream.

A stream's texts go on by candidate: what is said, what is thought, code. The arguments of a call come whole, or by
their path. What grounds an answer and what it quotes is numbered in its text: that goes where the text has changed. A
thought's signature is the model's own state and vouches for no words, so it stays. Names are spelt in two ways
(ProtoJSON).
"""

from collections.abc import Mapping

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.guard.llm.blob import Blob
from tollhouse.wire.guard.llm.citations import Moved
from tollhouse.wire.guard.llm.events import Event, SseTexts, every
from tollhouse.wire.guard.llm.forms import GOING, SKIP, Form, Json, Link, Look, New, Opaque, Other, Path, Text, string
from tollhouse.wire.guard.llm.objects import Choice, Each, Object
from tollhouse.wire.guard.llm.tokens import Tokens

__all__ = ["ANSWER", "CONTENT", "CONTENTS", "REQUEST", "GeminiTexts"]

Raw = msgspec.Raw


def _both(members: Mapping[str, Form | None]) -> dict[str, Form | None]:
    """Members by both spellings of their names."""
    told = dict(members)
    for name, form in members.items():
        snake = "".join([f"_{char.lower()}" if char.isupper() else char for char in name])
        told[snake] = form
    return told


_INLINE = Object(_both({"mimeType": SKIP, "displayName": Text(), "data": Blob("file", only=True)}))
_FILE = Object(_both({"mimeType": SKIP, "displayName": Text(), "fileUri": Link("file")}))


class _Argument(Object):
    """A piece of an argument that is a text: it goes on under its path."""

    __slots__ = ()

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        name = look.name
        path = fields.get("jsonPath", fields.get("json_path"))
        look.name = (*name, string(path) if path is not None else None)
        super().look_fields(fields, at, look)
        look.name = name


_ARGUMENT = _Argument(
    _both(
        {"jsonPath": SKIP, "stringValue": Text("arguments", label="argument"), "nullValue": SKIP, "willContinue": SKIP}
    )
)
_CALL = Object(
    _both(
        {
            "id": SKIP,
            "name": Text("names"),
            "args": Json("arguments"),
            "partialArgs": Each(_ARGUMENT),
            "willContinue": SKIP,
        }
    )
)
_RESPONSE = Object(
    _both(
        {
            "id": SKIP,
            "name": SKIP,
            "response": Json(),
            "willContinue": SKIP,
            "scheduling": SKIP,
            "parts": Each(Object(_both({"inlineData": _INLINE, "fileData": _FILE}))),
        }
    ),
    kind="results",
)


class _Part(Object):
    """A part: what is thought is no text."""

    __slots__ = ()

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        kind = look.kind
        if bytes(fields.get("thought", b"")) == b"true":
            look.kind = "reasoning"
        super().look_fields(fields, at, look)
        look.kind = kind


_PART = _Part(
    _both(
        {
            "text": Text(label="text"),
            "thought": SKIP,
            "thoughtSignature": SKIP,
            "inlineData": _INLINE,
            "fileData": _FILE,
            "functionCall": _CALL,
            "functionResponse": _RESPONSE,
            "executableCode": Object(_both({"id": SKIP, "language": SKIP, "code": Text("arguments", label="code")})),
            "codeExecutionResult": Object(
                _both({"id": SKIP, "outcome": SKIP, "output": Text("results", label="output")})
            ),
            "toolCall": Json("arguments"),
            "toolResponse": Json("results"),
            "videoMetadata": SKIP,
            "mediaResolution": SKIP,
            "partMetadata": SKIP,
        }
    ),
    rest=GOING,
)
CONTENT = Choice(text=Text(), one=Object({"role": SKIP, "parts": Choice(many=Each(_PART), text=Text(), one=_PART)}))
CONTENTS = Choice(many=Each(CONTENT), text=Text(), one=CONTENT)
_SYSTEM = Choice(
    text=Text("system"),
    one=Object({"role": SKIP, "parts": Choice(many=Each(_PART), text=Text(), one=_PART)}, kind="system"),
)
_SCHEMA = Json("descriptions")
_FUNCTION = Object(
    _both(
        {
            "name": Text("names"),
            "description": Text("descriptions"),
            "parameters": _SCHEMA,
            "parametersJsonSchema": _SCHEMA,
            "response": _SCHEMA,
            "responseJsonSchema": _SCHEMA,
            "behavior": SKIP,
        }
    )
)
_GENERATION = Object(
    _both(
        {
            "responseSchema": _SCHEMA,
            "responseJsonSchema": _SCHEMA,
            "responseMimeType": SKIP,
            "responseModalities": SKIP,
            "thinkingConfig": SKIP,
            "speechConfig": SKIP,
            "mediaResolution": SKIP,
            "imageConfig": SKIP,
        }
    )
)
REQUEST = Object(
    _both(
        {
            "model": SKIP,
            "contents": CONTENTS,
            "systemInstruction": _SYSTEM,
            "tools": Each(Object(_both({"functionDeclarations": Each(_FUNCTION)}), rest=Other("descriptions"))),
            "toolConfig": SKIP,
            "safetySettings": SKIP,
            "generationConfig": _GENERATION,
            "cachedContent": SKIP,
            "serviceTier": SKIP,
        }
    )
)

_PLACE = Object(_both({"uri": Text("text"), "title": Text("text"), "domain": Text("text"), "text": Text("text")}))
_GROUNDING = Object(
    _both(
        {
            "groundingChunks": Each(Object(_both({"web": _PLACE, "retrievedContext": _PLACE, "maps": _PLACE}))),
            "groundingSupports": Each(Object({"segment": Object({"text": Text("beside")}, rest=SKIP)}, rest=SKIP)),
            "retrievalMetadata": SKIP,
            "searchEntryPoint": Object(_both({"renderedContent": Text("text"), "sdkBlob": Opaque("encrypted")})),
            "webSearchQueries": Each(Text("text")),
            "imageSearchQueries": Each(Text("text")),
        }
    )
)
_SOURCES = Each(Object(_both({"uri": Text("text"), "title": Text("text"), "license": SKIP, "publicationDate": SKIP})))
_CANDIDATE = Object(
    _both(
        {
            "index": SKIP,
            "content": CONTENT,
            "finishReason": SKIP,
            "finishMessage": Text("text"),
            "safetyRatings": SKIP,
            "citationMetadata": Object({"citationSources": _SOURCES, "citations": _SOURCES}),
            "tokenCount": SKIP,
            "avgLogprobs": SKIP,
            "logprobsResult": Tokens(b"{}"),
            "groundingMetadata": _GROUNDING,
            "urlContextMetadata": Json("text"),
            "groundingAttributions": Json("text"),
        }
    ),
    by="index",
    stale={"logprobsResult": None, "logprobs_result": None},
)
_ANSWER = Object(
    _both(
        {
            "candidates": Each(_CANDIDATE),
            "promptFeedback": Object(_both({"blockReason": SKIP, "safetyRatings": SKIP}), rest=Other("text")),
            "usageMetadata": SKIP,
            "modelVersion": SKIP,
            "modelStatus": SKIP,
            "responseId": SKIP,
            "createTime": SKIP,
            "error": Json("text"),
        }
    )
)
_SUPPORTS = ("groundingSupports", "grounding_supports")
_NUMBERED = ("citationMetadata", "citation_metadata")
_METADATA = ("groundingMetadata", "grounding_metadata")
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Whole(Form):
    """An answer. What is numbered in a text goes with what changes in its candidate."""

    __slots__ = ()

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        _ANSWER.look(raw, at, look)

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        told = _ANSWER.put(raw, at, new)
        changed = {
            key[len(at) + 1] for key in new.texts if key[len(at) : len(at) + 1] == ("candidates",) and "content" in key
        }
        return Raw(unnumbered(bytes(told), changed)) if changed else told


ANSWER = Choice(many=Each(_Whole()), one=_Whole())
"""An answer, whole or a part of it; or the array of those that a stream without events is."""


def unnumbered(data: bytes, candidates: "set[object]") -> bytes:
    """An answer without what is numbered in the texts of these candidates, by their places in it."""
    try:
        fields = _fields(data)
        told = _items(fields["candidates"])
        for number in candidates:
            if not isinstance(number, int):
                continue
            candidate = {name: value for name, value in _fields(told[number]).items() if name not in _NUMBERED}
            for name in _METADATA:
                if name in candidate:
                    metadata = _fields(candidate[name])
                    kept = {name: value for name, value in metadata.items() if name not in _SUPPORTS}
                    candidate[name] = Raw(_encode(kept))
            told[number] = Raw(_encode(candidate))
        fields["candidates"] = Raw(_encode(told))
    except (*UNREADABLE, KeyError, IndexError):
        return data
    return _encode(fields)


class _Said(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    text: str | None = None
    thought: bool = False
    thought_signature: str | None = None


class _Content(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    parts: list[_Said]
    role: str | None = None


class _Candidate(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    content: _Content
    index: int = 0
    finish_reason: str | None = None
    safety_ratings: Raw = Raw()
    token_count: int | None = None


class _Event(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """The usual one."""

    candidates: list[_Candidate]
    usage_metadata: Raw = Raw()
    model_version: str | None = None
    response_id: str | None = None
    create_time: str | None = None


class _Ended(msgspec.Struct, gc=False, rename="camel"):
    index: int | None = None
    finish_reason: str | None = None


class _Odd(msgspec.Struct, gc=False, rename="camel"):
    candidates: list[_Ended] | None = None
    error: Raw = Raw()


_event = msgspec.json.Decoder(_Event).decode
_odd = msgspec.json.Decoder(_Odd).decode
_WHOLE_REASONS = ("STOP", "FINISH_REASON_UNSPECIFIED")
_NO_ERROR = (b"", b"null")


class GeminiTexts(SseTexts):
    """A stream of partial answers."""

    __slots__ = ("_touched",)

    def __init__(self) -> None:
        super().__init__()
        self._touched: set[object] = set()  # candidates of which a text has changed

    def told(self, raw: bytes, name: bytes, data: bytes) -> Event:
        try:
            event = _event(data)
        except UNREADABLE:
            return self._any(raw, data)
        if len(event.candidates) == 1:
            candidate = event.candidates[0]
            parts = candidate.content.parts
            if len(parts) == 1 and candidate.finish_reason is None:
                part = parts[0]
                text = part.text
                if text:
                    key: Path = (candidate.index, "text", "reasoning" if part.thought else "text")
                    return self.piece(raw, data, ANSWER, key, text)
        return self._any(raw, data)

    def _any(self, raw: bytes, data: bytes) -> Event:
        try:
            odd = _odd(data)
        except UNREADABLE:
            odd = _Odd()
        if bytes(odd.error) not in _NO_ERROR:
            return self.looked(raw, data, ANSWER, ends=every, ending="cut")
        ends: set[int] = set()
        ending = ""
        for number, candidate in enumerate(odd.candidates or ()):
            if candidate.finish_reason is not None:
                ends.add(number if candidate.index is None else candidate.index)
                cut = candidate.finish_reason not in _WHOLE_REASONS
                ending = "cut" if cut or ending == "cut" else "whole"
        return self.looked(raw, data, ANSWER, ends=lambda key: key[0] in ends, ending=ending)

    def changed(self, event: Event, key: Path, moved: Moved) -> None:
        self._touched.add(key[0])

    def encoded(self, event: Event, changed: dict[Path, str]) -> bytes:
        if not self._touched or (b"itation" not in event.data and b"upports" not in event.data):
            return super().encoded(event, changed)
        data = bytes(event.form.put(Raw(event.data), (), New(changed))) if changed else event.data
        told = unnumbered(data, self._places(data))
        return event.raw if told == event.data else self.framed(event, told)

    def _places(self, data: bytes) -> set[object]:
        try:
            odd = _odd(data)
        except UNREADABLE:
            return set()
        candidates = enumerate(odd.candidates or ())
        return {n for n, one in candidates if (n if one.index is None else one.index) in self._touched}
