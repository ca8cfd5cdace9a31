"""Texts of OpenAI chat completions: requests, answers and `chat.completion.chunk`s.

A stream's texts go on by choice: content, refusal, reasoning (by whatever name a server has for it), the arguments of
each call, and the transcript of what is spoken. Log-probs tell the tokens of a choice again: they go where its texts
change.
"""

import msgspec

from tollhouse.wire.guard.llm.blob import Blob
from tollhouse.wire.guard.llm.citations import Cited, Moved, renumbered
from tollhouse.wire.guard.llm.events import Event, SseTexts, every
from tollhouse.wire.guard.llm.forms import GOING, SKIP, Form, Json, JsonText, Link, New, Opaque, Other, Path, Text
from tollhouse.wire.guard.llm.objects import Choice, Each, Object, Tagged
from tollhouse.wire.guard.llm.tokens import Tokens
from tollhouse.wire.guard.llm.tokens import told as tokens_of

__all__ = ["ANNOTATION", "ANSWER", "REQUEST", "ChatTexts"]

Raw = msgspec.Raw

_CITED = {"title": Text("text"), "url": Text("text"), "start_index": SKIP, "end_index": SKIP, "type": SKIP}
ANNOTATION = Tagged(
    "type", {"url_citation": Object({**_CITED, "url_citation": Object(_CITED)})}, missing="url_citation"
)
"""Of a text: what it cites."""

_IMAGE = Choice(text=Link("image"), one=Object({"url": Link("image"), "detail": SKIP}))
_FILE = Object({"file_id": Opaque("file"), "filename": Text(), "file_data": Blob("file", only=True)})
_CACHED: dict[str, Form | None] = {"cache_control": SKIP, "prompt_cache_breakpoint": SKIP}
_PART = Tagged(
    "type",
    {
        "text": Object({"type": SKIP, "text": Text(label="content"), **_CACHED}),
        "refusal": Object({"type": SKIP, "refusal": Text(label="refusal")}),
        "image_url": Object({"type": SKIP, "image_url": _IMAGE, **_CACHED}),
        "input_audio": Object({"type": SKIP, "input_audio": Opaque("audio")}),
        "audio_url": Object({"type": SKIP, "audio_url": Object({"url": Link("audio")})}),
        "video_url": Object({"type": SKIP, "video_url": Object({"url": Link("video")})}),
        "file": Object({"type": SKIP, "file": _FILE}),
        "thinking": Object(
            {
                "type": SKIP,
                "thinking": Choice(
                    text=Text("reasoning", label="thinking"),
                    many=Each(Object({"type": SKIP, "text": Text("reasoning", label="thinking")})),
                ),
                "closed": SKIP,
                "signature": SKIP,
            }
        ),
    },
)
_CONTENT = Choice(text=Text(label="content"), many=Each(_PART))
_FUNCTION = {
    "name": Text("names"),
    "arguments": Choice(text=JsonText("arguments", label="arguments"), one=Json("arguments")),
}
_CALL = Object(
    {
        "index": SKIP,
        "id": SKIP,
        "type": SKIP,
        "function": Object(_FUNCTION),
        "custom": Object({"name": Text("names"), "input": Text("arguments", label="input")}),
        "extra_content": SKIP,  # Gemini's proof of a thought
    },
    by="index",
)
_DETAIL = Object(
    {
        "type": SKIP,
        "id": SKIP,
        "format": SKIP,
        "index": SKIP,
        "signature": SKIP,
        "text": Text("reasoning", label="detail"),
        "summary": Text("reasoning", label="summary"),
        "data": Opaque("encrypted"),
    },
    by="index",
    stale={"signature": b"null"},
)
_MESSAGE = {
    "role": SKIP,
    "content": _CONTENT,
    "refusal": Text(label="refusal"),
    "reasoning_content": Text("reasoning", label="reasoning_content"),
    "reasoning": Text("reasoning", label="reasoning"),
    "reasoning_details": Each(_DETAIL),
    "tool_calls": Each(_CALL),
    "function_call": Object(
        {
            "name": Text("names"),
            "arguments": Choice(text=JsonText("arguments", label="function"), one=Json("arguments")),
        }
    ),
    "audio": Object({"id": SKIP, "data": Opaque("audio"), "transcript": Text(label="transcript"), "expires_at": SKIP}),
    "annotations": Each(ANNOTATION),
    "tool_call_id": SKIP,
    **_CACHED,
}
_SAID = Cited(_MESSAGE, text="content", citations="annotations", within="url_citation")
_STALE = {"logprobs": b"null", "token_ids": b"null"}
_CHOICE = Object(
    {
        "index": SKIP,
        "finish_reason": SKIP,
        "native_finish_reason": SKIP,
        "stop_reason": SKIP,
        "logprobs": Tokens(b"null"),
        "token_ids": SKIP,
        "content_filter_results": SKIP,
        "message": _SAID,
        "delta": Object(_MESSAGE, rest=GOING),
    },
    by="index",
    stale=_STALE,
)
ANSWER = Object(
    {
        "id": SKIP,
        "object": SKIP,
        "created": SKIP,
        "model": SKIP,
        "provider": SKIP,
        "choices": Each(_CHOICE),
        "usage": SKIP,
        "service_tier": SKIP,
        "system_fingerprint": SKIP,
        "obfuscation": SKIP,
        "p": SKIP,
        "prompt_token_ids": SKIP,
        "x_groq": SKIP,
        "timings": SKIP,
        "prompt_filter_results": SKIP,
        "error": Json("text"),
    }
)
"""An answer, whole or a chunk of it."""

_ASKED = {**_MESSAGE, "name": Text()}
_SCHEMA = {"name": Text("names"), "description": Text("descriptions"), "strict": SKIP}
_OFFERED = Object({**_SCHEMA, "parameters": Json("descriptions")})
REQUEST = Object(
    {
        "model": SKIP,
        "messages": Each(
            Tagged(
                "role",
                {
                    "system": Object(_ASKED, kind="system"),
                    "developer": Object(_ASKED, kind="system"),
                    "tool": Object(_ASKED, kind="results"),
                    "function": Object(_ASKED, kind="results"),
                },
                default=Object(_ASKED),
                role=True,
            )
        ),
        "tools": Each(
            Object(
                {
                    "type": SKIP,
                    "function": _OFFERED,
                    "custom": Object({**_SCHEMA, "format": Json("descriptions")}),
                    "cache_control": SKIP,
                },
                rest=Other("descriptions"),
            )
        ),
        "functions": Each(_OFFERED),
        "tool_choice": SKIP,
        "function_call": SKIP,
        "response_format": Object({"type": SKIP, "json_schema": Object({**_SCHEMA, "schema": Json("descriptions")})}),
        "prediction": Object({"type": SKIP, "content": _CONTENT}),
        "stream_options": SKIP,
        "logit_bias": SKIP,
        "modalities": SKIP,
        "audio": SKIP,
        "reasoning": SKIP,
        "reasoning_effort": SKIP,
        "verbosity": SKIP,
        "service_tier": SKIP,
        "prompt_cache_retention": SKIP,
        "provider": SKIP,
    }
)


class _Function(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    arguments: str | None = None
    name: str | None = None


class _Call(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    index: int
    function: _Function | None = None
    id: str | None = None
    type: str | None = None


class _Delta(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: str | None = None
    role: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None
    function_call: None = None
    audio: None = None
    annotations: None = None


class _Choice(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    index: int
    delta: _Delta
    finish_reason: str | None = None
    logprobs: Raw = Raw()
    native_finish_reason: str | None = None
    stop_reason: Raw = Raw()
    token_ids: Raw = Raw()
    content_filter_results: Raw = Raw()


class _Chunk(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """The usual one."""

    choices: list[_Choice]
    id: str | None = None
    object: str | None = None
    created: float | None = None
    model: str | None = None
    service_tier: str | None = None
    system_fingerprint: str | None = None
    obfuscation: str | None = None
    provider: str | None = None
    p: str | None = None
    usage: Raw = Raw()
    prompt_token_ids: Raw = Raw()
    timings: Raw = Raw()
    x_groq: Raw = Raw()


class _Ending(msgspec.Struct, gc=False):
    index: int | None = None
    finish_reason: str | None = None
    delta: Raw = Raw()


class _Odd(msgspec.Struct, gc=False):
    choices: list[_Ending] | None = None
    error: Raw = Raw()


def _proved(choice: _Choice) -> bool:
    """Whether its log-probs are those of its text."""
    try:
        return tokens_of(choice.logprobs) == choice.delta.content
    except (msgspec.DecodeError, RecursionError):
        return False


_chunk = msgspec.json.Decoder(_Chunk).decode
_odd = msgspec.json.Decoder(_Odd, strict=False).decode
_CUT = ("length", "content_filter", "error", "max_tokens")
_SAYING = ("reasoning_content", "reasoning", "refusal")
_NO_ERROR = (b"", b"null", b"{}", b'""')


class ChatTexts(SseTexts):
    """A stream of chunks."""

    __slots__ = ("_keys",)

    form: Form = ANSWER

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[int, Path] = {}

    def told(self, raw: bytes, name: bytes, data: bytes) -> Event:
        try:
            chunk = _chunk(data)
        except (msgspec.DecodeError, RecursionError):
            return self.any(raw, data)
        choices = chunk.choices
        if len(choices) == 1:
            choice = choices[0]
            if choice.finish_reason is None and (len(choice.logprobs) < 5 or _proved(choice)):
                delta = choice.delta
                calls = delta.tool_calls
                text = delta.content
                if text:
                    if not (delta.refusal or delta.reasoning_content or delta.reasoning or calls):
                        key = self._keys.get(choice.index)
                        if key is None:
                            key = self._keys[choice.index] = (choice.index, "content", "text")
                        return self.piece(raw, data, self.form, key, text)
                    return self.any(raw, data)
                if not calls:
                    said = [(label, text) for label in _SAYING if (text := getattr(delta, label))]
                    if len(said) == 1:
                        label, text = said[0]
                        key = (choice.index, label, "text" if label == "refusal" else "reasoning")
                        return self.piece(raw, data, self.form, key, text)
                    return self.any(raw, data)
                if len(calls) == 1:
                    call = calls[0]
                    function = call.function
                    text = function.arguments if function is not None and not function.name else None
                    if text and not (delta.refusal or delta.reasoning_content or delta.reasoning):
                        key = (choice.index, call.index, "arguments", "arguments")
                        return self.piece(raw, data, self.form, key, text, json=True)
        return self.any(raw, data)

    def any(self, raw: bytes, data: bytes) -> Event:
        """A chunk that is not just a piece of a text."""
        ends: set[int] = set()
        ending = ""
        try:
            odd = _odd(data)
        except (msgspec.DecodeError, RecursionError):
            odd = _Odd()
        for number, choice in enumerate(odd.choices or ()):
            if choice.finish_reason:
                ends.add(number if choice.index is None else choice.index)
                cut = choice.finish_reason in _CUT
                ending = "cut" if cut or ending == "cut" else "whole"
        if bytes(odd.error) not in _NO_ERROR:
            return self.looked(raw, data, self.form, ends=every, ending="cut")
        return self.looked(raw, data, self.form, ends=lambda key: key[0] in ends, ending=ending)

    def encoded(self, event: Event, changed: dict[Path, str]) -> bytes:
        if not self._changes or b'"annotations"' not in event.data:
            return super().encoded(event, changed)
        data = bytes(event.form.put(Raw(event.data), (), New(changed))) if changed else event.data
        told = renoted(data, self._changes)
        return event.raw if told == event.data else self.framed(event, told)


_encode = msgspec.json.Encoder().encode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode


def renoted(data: bytes, changes: dict[Path, list[Moved]]) -> bytes:
    """A chunk whose annotations tell where the text is that they are about, once that has changed."""
    try:
        chunk = _fields(data)
        choices = _items(chunk["choices"])
        for number, raw in enumerate(choices):
            choice = _fields(raw)
            index = msgspec.json.decode(choice["index"], type=int) if "index" in choice else number
            moves = changes.get((index, "content", "text"))
            delta = _fields(choice.get("delta", Raw(b"{}")))
            if moves and "annotations" in delta:
                notes = [
                    renumbered(note, moves, "start_index", "end_index", "url_citation")
                    for note in _items(delta["annotations"])
                ]
                delta["annotations"] = Raw(_encode(notes))
                choices[number] = Raw(_encode({**choice, "delta": Raw(_encode(delta))}))
                chunk["choices"] = Raw(_encode(choices))
                data = _encode(chunk)
    except (msgspec.DecodeError, KeyError, RecursionError):
        pass
    return data
