"""Texts of Bedrock Converse: requests, answers, and the messages of a binary stream.

A stream's texts go on by content block. Not every block says that it begins, and none whether it was cut: a text ends
where another block begins, or at `messageStop`. A changed message has new checksums (`wire.eventstream`).
"""

import msgspec

from tollhouse.core.errors import Failure
from tollhouse.wire.eventstream import opened, sealed, split
from tollhouse.wire.guard.llm.blob import Blob
from tollhouse.wire.guard.llm.citations import Moved
from tollhouse.wire.guard.llm.events import Event, StreamTexts, every
from tollhouse.wire.guard.llm.forms import GOING, SKIP, Form, Json, JsonText, Opaque, Other, Path, Text
from tollhouse.wire.guard.llm.objects import Each, Object
from tollhouse.wire.llm.converse import BedrockConverse

__all__ = ["ANSWER", "REQUEST", "ConverseTexts"]

Raw = msgspec.Raw


def _medium(kind: str) -> Object:
    source = Object(
        {"bytes": Blob(kind, only=True), "s3Location": Opaque(kind), "text": Text(), "content": Each(_TEXTS)}
    )
    return Object({"format": SKIP, "name": Text(), "context": Text(), "citations": SKIP, "source": source})


_TEXTS = Object({"text": Text()})
_MEDIA: dict[str, Form | None] = {
    "image": _medium("image"),
    "audio": _medium("audio"),
    "video": _medium("video"),
    "document": _medium("file"),
}
_CITATION = Object(
    {
        "title": Text("text"),
        "source": Text("text"),
        "sourceContent": Each(Object({"text": Text("text", label="source")})),
        "location": Other("text"),
    }
)
_FOUND = Object({"source": Text(), "title": Text(), "content": Each(_TEXTS), "citations": SKIP}, kind="results")
_RESULT = Object(
    {
        "toolUseId": SKIP,
        "status": SKIP,
        "type": SKIP,
        "content": Each(Object({"text": Text(), "json": Json(), "searchResult": _FOUND, **_MEDIA})),
    },
    kind="results",
)
_BLOCK = Object(
    {
        "text": Text(label="text"),
        "toolUse": Object({"toolUseId": SKIP, "name": Text("names"), "type": SKIP, "input": Json("arguments")}),
        "toolResult": _RESULT,
        "reasoningContent": Object(
            {
                "reasoningText": Object(
                    {"text": Text("reasoning"), "signature": SKIP}, signature="signature", stale={"signature": b'""'}
                ),
                "redactedContent": Opaque("encrypted"),
            }
        ),
        "citationsContent": Object({"content": Each(_TEXTS), "citations": Each(_CITATION)}),
        "searchResult": _FOUND,
        "guardContent": Object(
            {
                "text": Object({"text": Text(), "qualifiers": SKIP}),
                "image": Object({"format": SKIP, "source": Opaque("image")}),
            }
        ),
        "cachePoint": SKIP,
        **_MEDIA,
    }
)
_CONTENT = Each(_BLOCK)
_SCHEMA = Object({"json": Json("descriptions")})
_TOOL = Object({"name": Text("names"), "description": Text("descriptions"), "inputSchema": _SCHEMA, "strict": SKIP})
REQUEST = Object(
    {
        "modelId": SKIP,
        "messages": Each(Object({"role": SKIP, "content": _CONTENT})),
        "system": Each(Object({"text": Text(), "guardContent": Json(), "cachePoint": SKIP}, kind="system")),
        "toolConfig": Object(
            {
                "toolChoice": SKIP,
                "tools": Each(Object({"toolSpec": _TOOL, "cachePoint": SKIP}, rest=Other("descriptions"))),
            }
        ),
        "inferenceConfig": Object({}),
        "promptVariables": Json(),
        "outputConfig": Json("descriptions"),
        "guardrailConfig": SKIP,
        "performanceConfig": SKIP,
        "serviceTier": SKIP,
    }
)
_TOLD: dict[str, Form | None] = {
    "usage": SKIP,
    "metrics": SKIP,
    "performanceConfig": SKIP,
    "serviceTier": SKIP,
    "stopReason": SKIP,
    "trace": Json("text"),
    "additionalModelResponseFields": Json("text"),
    "p": SKIP,  # padding
}
ANSWER = Object({**_TOLD, "output": Object({"message": Object({"role": SKIP, "content": _CONTENT})})})

_PIECE = Object(
    {
        "contentBlockIndex": SKIP,
        "p": SKIP,
        "delta": Object(
            {
                "text": Text(label="text"),
                "toolUse": Object({"input": JsonText("arguments", label="input")}),
                "toolResult": Each(Object({"text": Text("results", label="result"), "json": Json("results")})),
                "reasoningContent": Object(
                    {
                        "text": Text("reasoning", label="reasoning"),
                        "signature": SKIP,
                        "redactedContent": Opaque("encrypted"),
                    }
                ),
                "citation": _CITATION,
                "image": Opaque("image"),
            },
            rest=GOING,
        ),
    },
    by="contentBlockIndex",
)
_STARTED = Object({"toolUseId": SKIP, "name": Text("names"), "type": SKIP, "status": SKIP, "format": SKIP})
_START = Object(
    {
        "contentBlockIndex": SKIP,
        "p": SKIP,
        "start": Object({"toolUse": _STARTED, "toolResult": _STARTED, "image": _STARTED}),
    }
)
_REST = Object({**_TOLD, "role": SKIP, "contentBlockIndex": SKIP})
_EXCEPTION = Object({"message": Text("text")})
_FORMS = {
    b"messageStart": _REST,
    b"contentBlockStart": _START,
    b"contentBlockDelta": _PIECE,
    b"contentBlockStop": _REST,
    b"messageStop": _REST,
    b"metadata": _REST,
}


class _Input(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    input: str


class _Thought(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    text: str


class _Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    text: str | None = None
    tool_use: _Input | None = None
    reasoning_content: _Thought | None = None


class _Piece(msgspec.Struct, gc=False, forbid_unknown_fields=True, rename="camel"):
    """The usual message."""

    content_block_index: int
    delta: _Delta
    p: str | None = None


class _Place(msgspec.Struct, gc=False, rename="camel"):
    content_block_index: int = -1
    stop_reason: str | None = None


_piece = msgspec.json.Decoder(_Piece).decode
_place = msgspec.json.Decoder(_Place).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode
_UNREADABLE = (msgspec.DecodeError, RecursionError)
_CUT = ("max_tokens", "model_context_window_exceeded", "content_filtered", "guardrail_intervened",
        "malformed_model_output", "malformed_tool_use")  # fmt: skip
_SIGNATURE = b'"signature"'
_QUOTED = ("source", "text")
_CONVERSE = BedrockConverse()


class ConverseTexts(StreamTexts):
    """A stream of binary messages."""

    __slots__ = ("_quoting", "_unsigned")

    def __init__(self) -> None:
        super().__init__()
        self._quoting = False  # pieces of what a citation quotes are under way
        self._unsigned: set[object] = set()

    def read(self, block: bytes) -> list[Event]:
        try:
            return [self._event(raw) for raw in split(block)]
        except Failure:
            raise ValueError("a message of the stream cannot be read") from None

    def _event(self, raw: bytes) -> Event:
        ((name, data),) = _CONVERSE.events(raw)
        if name == b"contentBlockDelta":
            return self._delta(raw, data)
        form = _FORMS.get(name)
        if form is None:
            if name == b"error" or name.endswith(b"xception"):
                return self.looked(raw, data, _EXCEPTION, ends=every, ending="cut")
            return self.unknown(raw, data)
        place = self._told(data)
        if name == b"contentBlockStart":
            index = place.content_block_index
            return self.looked(raw, data, form, ends=lambda key: key[0] != index)
        if name == b"messageStop":
            ending = "cut" if place.stop_reason in _CUT else "whole"
            return self.looked(raw, data, form, ends=every, ending=ending)
        return self.looked(raw, data, form)

    def _delta(self, raw: bytes, data: bytes) -> Event:
        try:
            told = _piece(data)
        except _UNREADABLE:
            event, index = self.looked(raw, data, _PIECE), self._told(data).content_block_index
        else:
            index, delta = told.content_block_index, told.delta
            if delta.text:
                event = self.piece(raw, data, _PIECE, (index, "text", "text"), delta.text)
            elif delta.tool_use is not None and delta.tool_use.input:
                key: Path = (index, "input", "arguments")
                event = self.piece(raw, data, _PIECE, key, delta.tool_use.input, json=True)
            elif delta.reasoning_content is not None and delta.reasoning_content.text:
                key = (index, "reasoning", "reasoning")
                event = self.piece(raw, data, _PIECE, key, delta.reasoning_content.text)
                event.signed = (key,)
            else:
                event = self.looked(raw, data, _PIECE)
        if event.opens:
            self.end(event, lambda key: key[0] != index, "")
        if self._quoting and not any(key[-2:] == _QUOTED for key, _ in event.texts):
            self.end(event, lambda key: key[-2:] == _QUOTED, "")
            self._quoting = False
        elif event.texts and event.texts[-1][0][-2:] == _QUOTED:
            self._quoting = True
        return event

    def _told(self, data: bytes) -> _Place:
        try:
            return _place(data)
        except _UNREADABLE:
            return _Place()

    def changed(self, event: Event, key: Path, moved: Moved) -> None:
        if key in event.signed:
            self._unsigned.add(key[0])

    def encoded(self, event: Event, changed: dict[Path, str]) -> bytes:
        if self._unsigned and _SIGNATURE in event.data and self._told(event.data).content_block_index in self._unsigned:
            fields = _fields(event.data)
            delta = _fields(fields.get("delta", Raw(b"{}")))
            if "reasoningContent" in delta:
                thought = {**_fields(delta["reasoningContent"]), "signature": ""}
                fields["delta"] = Raw(_encode({**delta, "reasoningContent": thought}))
                return self.framed(event, _encode(fields))
        return super().encoded(event, changed)

    def framed(self, event: Event, data: bytes, *, bare: bool = False) -> bytes:
        return sealed(opened(event.raw)[0], data)
