"""OpenAI chat completions: `POST /chat/completions`, an object or a stream of `chat.completion.chunk`.

A stream is data-only events and ends with `data: [DONE]`. It tells its usage only when `stream_options.include_usage`
is set, in a last chunk whose `choices` are empty; the gateway sets it always and takes that chunk out for a caller
who did not. `prompt_tokens` includes cached tokens, `completion_tokens` includes reasoning.

An error in a stream is `data: {"error": {...}}` and no `[DONE]` after it: the SDKs raise at the error object, and a
client that does not know it still sees an answer without its end.
"""

import re
from collections.abc import Mapping
from math import isnan

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.dialect import Dialect, StreamFailure, bytes_of, text_of
from tollhouse.wire.llm.reader import TextReader
from tollhouse.wire.llm.system import System, around_messages
from tollhouse.wire.llm.tokens import MOST_OUTPUT
from tollhouse.wire.llm.usage import ChatUsage, tier_of, tiered, uncounted
from tollhouse.wire.sse import frame, parse, split

__all__ = ["ChatReader", "OpenAIChat", "OpenAIDialect", "choices"]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode

# Text in a chunk whose form we do not know. A match cannot begin inside a JSON string: there the quote before the colon
# would be escaped.
_TEXT = re.compile(
    rb'"(?:content|text|arguments|reasoning_content|reasoning|refusal)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"'
)
_DONE = b"[DONE]"
_NO_ERROR = (b"", b"null", b"{}", b'""')


class _Answer(msgspec.Struct, gc=False):
    model: str | None = None
    usage: ChatUsage | None = None
    service_tier: Raw = _ABSENT


class _Function(msgspec.Struct, gc=False):
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    delta: _Delta | None = None
    text: str | None = None  # of the older completions
    index: int | None = None
    finish_reason: Raw = _ABSENT


class _Chunk(msgspec.Struct, gc=False):
    model: str | None = None
    choices: list[_Choice] | None = None
    usage: ChatUsage | None = None
    service_tier: Raw = _ABSENT
    error: Raw = _ABSENT


class _OddChunk(msgspec.Struct, gc=False):
    """One whose choices are not of the usual form."""

    model: str | None = None
    choices: list[Raw] | None = None
    usage: ChatUsage | None = None
    service_tier: Raw = _ABSENT
    error: Raw = _ABSENT


class _Error(msgspec.Struct, gc=False):
    message: Raw = _ABSENT
    type: Raw = _ABSENT
    code: Raw = _ABSENT


_answer = msgspec.json.Decoder(_Answer, strict=False).decode
_chunk = msgspec.json.Decoder(_Chunk, strict=False).decode
_odd_chunk = msgspec.json.Decoder(_OddChunk, strict=False).decode
_error = msgspec.json.Decoder(_Error, strict=False).decode
_options = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


_NOT_ENDED = (_ABSENT, Raw(b"null"), Raw(b'""'))
_ASK_USAGE = Raw(b'{"include_usage":true}')
_TRUE = Raw(b"true")

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def choices(raw: Raw) -> int:
    """How many answers are asked for, at least 1. Some servers take a text or a fraction for a number."""
    try:
        number = float(bytes(raw).strip(b'"'))
    except ValueError:
        return 1
    return 1 if isnan(number) else int(min(max(number, 1.0), MOST_OUTPUT))


class OpenAIDialect(Dialect):
    """What the OpenAI APIs have in common: the error object and the form of usage."""

    __slots__ = ()

    family = "openai"

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        try:
            answer = _answer(body)
        except UNREADABLE:
            return None, ""
        usage = answer.usage
        return None if usage is None else tiered(usage.normal(), answer.service_tier), answer.model or ""

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
    output_bounds: tuple[str, ...] = ("max_completion_tokens", "max_tokens")

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        bound = Dialect.output_bound(self, fields)
        return bound * choices(fields["n"]) if "n" in fields else bound

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

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        fields["messages"] = around_messages(fields.get("messages"), system)

    def reader(self, *, strip: bool) -> "ChatReader":
        return ChatReader(strip)


class ChatReader(TextReader):
    """StreamReader of chat completion chunks."""

    __slots__ = ("_ended", "_highest", "_strip")

    def __init__(self, strip: bool) -> None:
        super().__init__()
        self._strip = strip
        self._highest = -1  # of the choices that were begun
        self._ended: set[int] = set()

    @property
    def stopped(self) -> bool:
        return self.finished or (self._highest >= 0 and len(self._ended) > self._highest)

    def last(self) -> bytes:
        self.finished = True
        return frame(_DONE)

    def look(self, block: bytes) -> bytes:
        if not block.startswith(b"data: {") or block.find(b"\n") != len(block) - 2:
            return self._each(block)
        # Mostly: one event with some text in it.
        try:
            chunk = _chunk(block[6:-2])
        except UNREADABLE:
            return self._each(block)
        if chunk.usage is not None or chunk.error is not _ABSENT or not self.model:
            return block if self._note(chunk, block) else b""
        choices = chunk.choices
        if choices and len(choices) == 1:
            self._place(choices[0])
            self.said(block, _text(choices[0]))
        else:
            self._count(chunk)
        return block

    def _each(self, block: bytes) -> bytes:
        kept = []
        events = split(block)
        for raw in events:
            _, data = parse(raw)
            if data == _DONE:
                self.began = self.finished = True
            elif data and not self._read(data, raw):
                if self.failure is not None:
                    break
                continue
            kept.append(raw)
        return block if len(kept) == len(events) else b"".join(kept)

    def _read(self, data: bytes, raw: bytes) -> bool:
        """Note what an event says. False: it is not passed on."""
        try:
            return self._note(_chunk(data), raw)
        except UNREADABLE:
            pass
        try:
            odd = _odd_chunk(data)
        except UNREADABLE:
            return self._read_uncounted(data, raw)
        self.text += sum(map(len, _TEXT.findall(data)))
        return self._note(odd, raw)

    def _read_uncounted(self, data: bytes, raw: bytes) -> bool:
        """The same of an event whose usage is none, or that is none at all."""
        try:
            chunk, self.uncounted = uncounted(_chunk, data, ("usage",))
        except UNREADABLE:
            self.text += sum(map(len, _TEXT.findall(data)))
            self.unread(data)
            return self.failure is None
        return self._note(chunk, raw) and not (self._strip and chunk.choices is not None and not chunk.choices)

    def _note(self, chunk: _Chunk | _OddChunk, raw: bytes) -> bool:
        if chunk.error is not _ABSENT and bytes(chunk.error) not in _NO_ERROR:
            self.failure = _told(chunk.error, raw)
            return False
        self.began = True
        if not self.model and chunk.model:
            self.model = chunk.model
        if isinstance(chunk, _Chunk):
            self._count(chunk)
        tier = tier_of(chunk.service_tier)
        if chunk.usage is not None and (usage := chunk.usage.normal()) is not None:
            usage.tier = tier or (self.usage.tier if self.usage is not None else "")
            self.usage = usage
            self.counted = True
            return not (self._strip and chunk.choices is not None and not chunk.choices)
        if tier and self.usage is None:
            self.usage = Usage(tier=tier)  # of a stream that is left: it has a price of its own, too
        return True

    def _count(self, chunk: _Chunk) -> None:
        for choice in chunk.choices or ():
            self._place(choice)
            self.text += bytes_of(_text(choice))

    def _place(self, choice: _Choice) -> None:
        index = choice.index or 0
        if index > self._highest:
            self._highest = index
        if choice.finish_reason not in _NOT_ENDED:
            self._ended.add(index)


def _text(choice: _Choice) -> str:
    """The text in one choice of a chunk. Some providers send a thought under two names, so only one counts."""
    delta = choice.delta
    if delta is None:
        return choice.text or ""
    text = delta.content or delta.reasoning_content or delta.reasoning or delta.refusal
    if text:
        return text
    calls = delta.tool_calls
    return "".join(c.function.arguments or "" for c in calls if c.function is not None) if calls else ""


def _told(error: Raw, raw: bytes) -> StreamFailure:
    try:
        told = _error(error)
    except UNREADABLE:
        return StreamFailure(502, "the provider failed", raw, detail=text_of(error)[:500])
    code, kind = text_of(told.code), text_of(told.type)
    number = bytes(told.code)
    limited = number == b"429" or "rate_limit" in code or "rate_limit" in kind or code == "insufficient_quota"
    status = 429 if limited else 502
    return StreamFailure(status, "the provider failed", raw, detail=f"{kind or 'error'}: {text_of(told.message)}"[:500])
