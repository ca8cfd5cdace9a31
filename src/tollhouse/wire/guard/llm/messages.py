"""Texts of Anthropic messages: requests, answers, and the events of a stream.

A stream's texts go on by content block. That a block ends does not say whether it is whole: a limit is told in the
`message_delta` after it, so its text ends there, or where the next block begins. Thinking is signed; its signature is
emptied when the text changes. What a citation quotes is a text of its own; its numbers count in the document.
"""

import msgspec

from tollhouse.wire.guard.llm.blob import Blob
from tollhouse.wire.guard.llm.citations import Moved
from tollhouse.wire.guard.llm.events import Event, SseTexts, every
from tollhouse.wire.guard.llm.forms import GOING, SKIP, Json, JsonText, Link, Opaque, Other, Path, Text
from tollhouse.wire.guard.llm.objects import Choice, Each, Object, Tagged

__all__ = ["ANSWER", "REQUEST", "MessagesTexts"]

Raw = msgspec.Raw

_TYPE = {"type": SKIP, "cache_control": SKIP}
_CITATION = Object(
    {
        "type": SKIP,
        "cited_text": Text("text"),
        "document_title": Text("text"),
        "title": Text("text"),
        "url": Text("text"),
        "source": Text("text"),
        "encrypted_index": SKIP,
        "file_id": SKIP,
    }
)
_CITATIONS = Choice(many=Each(_CITATION), one=Object({"enabled": SKIP}))
_TEXT = Object({**_TYPE, "text": Text(label="text"), "citations": _CITATIONS})
_PICTURE = Tagged(
    "type",
    {
        "base64": Object({"type": SKIP, "media_type": SKIP, "data": Opaque("image")}),
        "url": Object({"type": SKIP, "url": Link("image")}),
        "file": Object({"type": SKIP, "file_id": SKIP}, opaque="image"),
    },
)
_IMAGE = Object({**_TYPE, "source": _PICTURE})
_PLAIN = {"text": _TEXT, "image": _IMAGE}
_PLAIN_CONTENT = Choice(text=Text(), many=Each(Tagged("type", _PLAIN)))
_DOCUMENT = Object(
    {
        **_TYPE,
        "title": Text(),
        "context": Text(),
        "citations": _CITATIONS,
        "source": Tagged(
            "type",
            {
                "base64": Object({"type": SKIP, "media_type": SKIP, "data": Blob("file", only=True)}),
                "text": Object({"type": SKIP, "media_type": SKIP, "data": Text()}),
                "url": Object({"type": SKIP, "url": Link("file")}),
                "file": Object({"type": SKIP, "file_id": SKIP}, opaque="file"),
                "content": Object({"type": SKIP, "content": _PLAIN_CONTENT}),
            },
        ),
    }
)
_FOUND = Object(
    {**_TYPE, "source": Text(), "title": Text(), "content": _PLAIN_CONTENT, "citations": _CITATIONS}, kind="results"
)
_INNER = {**_PLAIN, "document": _DOCUMENT, "search_result": _FOUND, "tool_reference": Object({}, rest=SKIP)}
_CALL = Object(
    {**_TYPE, "id": SKIP, "name": Text("names"), "server_name": SKIP, "input": Json("arguments"), "caller": SKIP}
)
_RESULT = Object(
    {
        **_TYPE,
        "tool_use_id": SKIP,
        "content": Choice(text=Text(), many=Each(Tagged("type", _INNER)), one=Json()),
    },
    kind="results",
)
_PAGE = Object(
    {"type": SKIP, "title": Text(), "url": Text(), "page_age": Text(), "encrypted_content": Opaque("encrypted")}
)
_SERVED = Object({**_TYPE, "tool_use_id": SKIP, "content": Json(), "caller": SKIP}, kind="results")
_BLOCK = Tagged(
    "type",
    {
        **_INNER,
        "thinking": Object(
            {"type": SKIP, "thinking": Text("reasoning", label="thinking"), "signature": SKIP},
            stale={"signature": b'""'},
            signature="signature",
        ),
        "redacted_thinking": Object({"type": SKIP, "data": Opaque("encrypted")}),
        "tool_use": _CALL,
        "server_tool_use": _CALL,
        "mcp_tool_use": _CALL,
        "tool_result": _RESULT,
        "mcp_tool_result": _RESULT,
        "web_search_tool_result": Object(
            {**_TYPE, "tool_use_id": SKIP, "content": Choice(many=Each(_PAGE), one=Json()), "caller": SKIP},
            kind="results",
        ),
        "web_fetch_tool_result": Object(
            {
                **_TYPE,
                "tool_use_id": SKIP,
                "content": Object({"type": SKIP, "url": Text(), "content": _DOCUMENT, "retrieved_at": SKIP}),
                "caller": SKIP,
            },
            kind="results",
        ),
        "code_execution_tool_result": _SERVED,
        "bash_code_execution_tool_result": _SERVED,
        "text_editor_code_execution_tool_result": _SERVED,
        "tool_search_tool_result": _SERVED,
        "container_upload": Object({**_TYPE, "file_id": SKIP}, opaque="file"),
        "compaction": Object({**_TYPE, "content": Text(label="compaction")}),
    },
)
_CONTENT = Choice(text=Text(), many=Each(_BLOCK))
_MESSAGE = {"role": SKIP, "content": _CONTENT}
ANSWER = Object(
    {
        "id": SKIP,
        "type": SKIP,
        "role": SKIP,
        "model": SKIP,
        "content": Each(_BLOCK),
        "stop_reason": SKIP,
        "usage": SKIP,
        "container": SKIP,
        "context_management": SKIP,
        "error": Json("text"),
    }
)
REQUEST = Object(
    {
        "model": SKIP,
        "system": Choice(text=Text("system"), many=Each(Object({**_TYPE, "text": Text()}, kind="system"))),
        "messages": Each(
            Tagged("role", {"system": Object(_MESSAGE, kind="system")}, default=Object(_MESSAGE), role=True)
        ),
        "tools": Each(
            Object(
                {
                    **_TYPE,
                    "name": Text("names"),
                    "description": Text("descriptions"),
                    "input_schema": Json("descriptions"),
                    "input_examples": Json("descriptions"),
                },
                rest=Other("descriptions"),
            )
        ),
        "tool_choice": SKIP,
        "thinking": SKIP,
        "cache_control": SKIP,
        "context_management": SKIP,
        "container": SKIP,
        "service_tier": SKIP,
        "speed": SKIP,
        "output_config": Json("descriptions"),
        "output_format": Json("descriptions"),
        "mcp_servers": Each(
            Object({"type": SKIP, "name": SKIP, "url": Text(), "authorization_token": SKIP, "tool_configuration": SKIP})
        ),
    }
)

_START = Object({"type": SKIP, "message": ANSWER})
_BEGIN = Object({"type": SKIP, "index": SKIP, "content_block": _BLOCK}, by="index")
_PIECE = Object(
    {
        "type": SKIP,
        "index": SKIP,
        "delta": Tagged(
            "type",
            {
                "text_delta": Object({"type": SKIP, "text": Text(label="text")}),
                "input_json_delta": Object({"type": SKIP, "partial_json": JsonText("arguments", label="input")}),
                "thinking_delta": Object({"type": SKIP, "thinking": Text("reasoning", label="thinking")}),
                "signature_delta": Object({"type": SKIP, "signature": SKIP}),
                "citations_delta": Object({"type": SKIP, "citation": _CITATION}),
                "compaction_delta": Object({"type": SKIP, "content": Text(label="compaction")}),
            },
            default=Object({"type": SKIP}, rest=GOING),
        ),
    },
    by="index",
)
_STOPPED = Object(
    {"type": SKIP, "delta": Object({"stop_reason": SKIP, "container": SKIP}), "usage": SKIP, "context_management": SKIP}
)
_NOTHING = Object({"type": SKIP, "index": SKIP})
_BRIEF = 64  # bytes of an event that has nothing else to say
_ERROR = Object({"type": SKIP, "error": Json("text"), "request_id": SKIP})


class _Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    type: str
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None


class _Piece(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual event."""

    type: str
    index: int
    delta: _Delta


class _StopReason(msgspec.Struct, gc=False):
    stop_reason: str | None = None


class _Kind(msgspec.Struct, gc=False):
    type: str = ""
    index: int = -1


class _Signed(msgspec.Struct, gc=False):
    type: str
    index: int


class _Stop(msgspec.Struct, gc=False):
    delta: _StopReason | None = None


_piece = msgspec.json.Decoder(_Piece).decode
_kind = msgspec.json.Decoder(_Kind).decode
_signed = msgspec.json.Decoder(_Signed).decode
_stop = msgspec.json.Decoder(_Stop).decode
_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_CUT = ("max_tokens", "model_context_window_exceeded", "refusal")
_SIGNATURE = b'"signature_delta"'
_UNREADABLE = (msgspec.DecodeError, RecursionError)


class MessagesTexts(SseTexts):
    """A stream of message events."""

    __slots__ = ("_unsigned",)

    def __init__(self) -> None:
        super().__init__()
        self._unsigned: set[object] = set()

    def told(self, raw: bytes, name: bytes, data: bytes) -> Event:
        try:
            event = _piece(data)
        except _UNREADABLE:
            return self._any(raw, data)
        delta = event.delta
        kind = delta.type
        if kind == "text_delta" and delta.text:
            return self.piece(raw, data, _PIECE, (event.index, "text", "text"), delta.text)
        if kind == "input_json_delta" and delta.partial_json:
            key: Path = (event.index, "input", "arguments")
            return self.piece(raw, data, _PIECE, key, delta.partial_json, json=True)
        if kind == "thinking_delta" and delta.thinking:
            key = (event.index, "thinking", "reasoning")
            piece = self.piece(raw, data, _PIECE, key, delta.thinking)
            piece.signed = (key,)
            return piece
        return self._any(raw, data)

    def _any(self, raw: bytes, data: bytes) -> Event:
        try:
            told = _kind(data)
        except _UNREADABLE:
            return self.unknown(raw, data)
        kind, index = told.type, told.index
        if kind == "content_block_delta":
            return self.looked(raw, data, _PIECE)
        if kind == "content_block_start":
            return self._begun(self.looked(raw, data, _BEGIN, ends=lambda key: key[0] != index))
        if kind in ("content_block_stop", "ping"):
            return self.silent(raw) if len(data) < _BRIEF else self.looked(raw, data, _NOTHING)
        if kind == "message_start":
            return self.looked(raw, data, _START)
        if kind == "message_delta":
            try:
                stop = _stop(data).delta
            except _UNREADABLE:
                stop = None
            reason = stop.stop_reason if stop is not None else None
            if reason is None:
                return self.looked(raw, data, _STOPPED)
            return self.looked(raw, data, _STOPPED, ends=every, ending="cut" if reason in _CUT else "whole")
        if kind == "message_stop":
            return self.ended(raw, data) if len(data) < _BRIEF else self.looked(raw, data, _NOTHING, ends=every)
        if kind == "error":
            return self.looked(raw, data, _ERROR, ends=every, ending="cut")
        return self.unknown(raw, data)

    def _begun(self, event: Event) -> Event:
        event.signed = tuple([key for key, _ in event.texts if key[-1] == "reasoning"])
        return event

    def changed(self, event: Event, key: Path, moved: Moved) -> None:
        if key in event.signed:
            self._unsigned.add(key[0])

    def encoded(self, event: Event, changed: dict[Path, str]) -> bytes:
        if self._unsigned and _SIGNATURE in event.data and _signed(event.data).index in self._unsigned:
            fields = _fields(event.data)
            fields["delta"] = Raw(_encode({**_fields(fields["delta"]), "signature": ""}))
            return self.framed(event, _encode(fields))
        return super().encoded(event, changed)
