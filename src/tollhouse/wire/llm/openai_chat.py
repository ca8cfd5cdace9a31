"""OpenAI chat completions: `POST /chat/completions`, an object or a stream of `chat.completion.chunk`.

A stream is data-only events and ends with `data: [DONE]`. It tells its usage only when `stream_options.include_usage`
is set, in a last chunk whose `choices` are empty; the gateway sets it always and takes that chunk out for a caller
who did not. `prompt_tokens` includes cached tokens, `completion_tokens` includes reasoning.

An error in a stream is `data: {"error": {...}}` and no `[DONE]` after it: the SDKs raise at the error object, and a
client that does not know it still sees an answer without its end.
"""

import re
from collections.abc import Mapping
from typing import Annotated

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.dialect import Dialect, StreamFailure, text_of
from tollhouse.wire.sse import frame, parse, split

__all__ = ["ChatReader", "OpenAIChat", "OpenAIDialect"]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode
_Count = Annotated[int, msgspec.Meta(ge=0)]

# One scan finds all text and every object worth a look. A match cannot begin inside a JSON string: there the quote
# before the colon would be escaped.
_NOTABLE = re.compile(
    rb'"(?:content|text|arguments|reasoning_content|reasoning|refusal|usage|error)"\s*:\s*'
    rb'(?:"[^"\\]*(?:\\.[^"\\]*)*"|\{)'
)
_KEY = len('"content":""')
_OBJECT = 0x7B
_DONE = b"[DONE]"
_NO_ERROR = (b"", b"null", b"{}", b'""')


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None


class _CompletionDetails(msgspec.Struct, gc=False):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Answer(msgspec.Struct, gc=False):
    model: str | None = None
    usage: _Usage | None = None


class _Chunk(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[Raw] | None = None
    usage: _Usage | None = None
    error: Raw = _ABSENT


class _Error(msgspec.Struct, gc=False):
    message: Raw = _ABSENT
    type: Raw = _ABSENT
    code: Raw = _ABSENT


_answer = msgspec.json.Decoder(_Answer, strict=False).decode
_chunk = msgspec.json.Decoder(_Chunk, strict=False).decode
_error = msgspec.json.Decoder(_Error, strict=False).decode
_options = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode

_ASK_USAGE = Raw(b'{"include_usage":true}')
_TRUE = Raw(b"true")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


class OpenAIDialect(Dialect):
    """What the OpenAI APIs have in common: the error object and the form of usage."""

    __slots__ = ()

    family = "openai"

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        try:
            answer = _answer(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None, ""
        return (None if answer.usage is None else _normal(answer.usage)), answer.model or ""

    def error(self, failure: Failure, request_id: str) -> bytes:
        kind = _TYPES.get(failure.status) or ("invalid_request_error" if failure.status < 500 else "server_error")
        param = "model" if failure.code in ("model_not_found", "model_required") else None
        return _encode({"error": {"message": failure.message, "type": kind, "param": param, "code": failure.code}})

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        return frame(self.error(failure, request_id))


class OpenAIChat(OpenAIDialect):
    """`POST /v1/chat/completions`."""

    __slots__ = ()

    operation = "chat"
    path = b"/chat/completions"
    output_bounds = ("max_completion_tokens", "max_tokens")

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        bound = super().output_bound(fields)
        choices = fields.get("n")
        if choices is not None and (n := bytes(choices)).isdigit() and len(n) < 4:
            return bound * max(int(n), 1)
        return bound

    def usage_options(self, fields: Mapping[str, Raw]) -> Raw | None:
        raw = fields.get("stream_options")
        if raw is None or bytes(raw) == b"null":
            return _ASK_USAGE
        try:
            options = _options(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None  # the provider will say what is wrong with it
        asked = options.get("include_usage")
        if asked is not None and bytes(asked) == b"true":
            return None
        options["include_usage"] = _TRUE
        return Raw(_encode(options))

    def reader(self, *, strip: bool) -> "ChatReader":
        return ChatReader(strip)


class ChatReader:
    """StreamReader of chat completion chunks."""

    __slots__ = ("_strip", "began", "counted", "failure", "finished", "model", "text", "usage")

    def __init__(self, strip: bool) -> None:
        self._strip = strip
        self.began = False
        self.finished = False
        self.failure: StreamFailure | None = None
        self.usage: Usage | None = None
        self.counted = False
        self.model = ""
        self.text = 0

    def read(self, block: bytes) -> bytes:
        look = not self.began
        for match in _NOTABLE.findall(block):
            if match[-1] == _OBJECT or match.startswith(b'"error"'):
                look = True
            else:
                self.text += max(len(match) - _KEY, 0)
        if look or _DONE in block:
            return self._look(block)
        return block

    def _look(self, block: bytes) -> bytes:
        kept = []
        events = split(block)
        for raw in events:
            _, data = parse(raw)
            if not data:
                kept.append(raw)
                continue
            if data == _DONE:
                self.began = self.finished = True
                kept.append(raw)
                continue
            try:
                chunk = _chunk(data)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self.began = True  # not for us to judge; it passes
                kept.append(raw)
                continue
            if bytes(chunk.error) not in _NO_ERROR:
                self.failure = _told(chunk.error, raw)
                break
            self.began = True
            if not self.model and chunk.model:
                self.model = chunk.model
            if chunk.usage is not None and (usage := _normal(chunk.usage)) is not None:
                self.usage = usage
                self.counted = True
                if self._strip and chunk.choices is not None and not chunk.choices:
                    continue
            kept.append(raw)
        return block if len(kept) == len(events) else b"".join(kept)


def _normal(usage: _Usage) -> Usage | None:
    """OpenAI's counts as ours: cached tokens out of the input."""
    if usage.prompt_tokens is None and usage.completion_tokens is None:
        return None
    prompt = usage.prompt_tokens or 0
    read = write = reasoning = 0
    if usage.prompt_tokens_details is not None:
        read = usage.prompt_tokens_details.cached_tokens or 0
        write = usage.prompt_tokens_details.cache_write_tokens or 0
    if usage.completion_tokens_details is not None:
        reasoning = usage.completion_tokens_details.reasoning_tokens or 0
    fresh = max(prompt - read - write, 0)
    return Usage(fresh, usage.completion_tokens or 0, read, write, reasoning)


def _told(error: Raw, raw: bytes) -> StreamFailure:
    try:
        told = _error(error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return StreamFailure(502, "the provider failed", raw, detail=text_of(error)[:500])
    code, kind = text_of(told.code), text_of(told.type)
    number = bytes(told.code)
    limited = number == b"429" or "rate_limit" in code or "rate_limit" in kind or code == "insufficient_quota"
    status = 429 if limited else 502
    return StreamFailure(status, "the provider failed", raw, detail=f"{kind or 'error'}: {text_of(told.message)}"[:500])
