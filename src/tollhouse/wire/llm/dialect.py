"""Dialect: how one API asks, answers, streams and fails. Bytes in, values out; no I/O.

Rule: only the fields the gateway acts on are read; everything else passes as the bytes it came in. A request is
its top level with the values unparsed, so what is not understood is encoded again byte for byte. An answer is never
encoded again at all.
"""

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any, Protocol

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Headers, Request, Response
from tollhouse.wire.llm.system import System
from tollhouse.wire.llm.tokens import DEFAULT_OUTPUT, MOST_OUTPUT, of_body
from tollhouse.wire.members import Names
from tollhouse.wire.sse import Framer, parse, split

__all__ = ["Asked", "Dialect", "Framing", "StreamFailure", "StreamReader", "bytes_of", "text_of"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_complaint = msgspec.json.Decoder(dict[str, Any], strict=False).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_string = msgspec.json.Decoder(str).decode
_integer = msgspec.json.Decoder(int).decode
_TRUE = b"true"
_NOT_TRUE = (b"false", b"null")
_NO_MODELS = (b"null", b"[]")
_OVERFLOWS = frozenset(("context_length_exceeded", "model_context_window_exceeded", "string_above_max_length"))
_OVERFLOW = (
    "maximum context length",
    "prompt is too long",
    "input is too long",
    "exceeds the maximum number of tokens",
    "exceed context limit",
    "too many input tokens",
    "context window",
)
_POLICIES = frozenset(("content_filter", "content_policy_violation", "responsibleaipolicyviolation"))
_POLICY = ("content management policy", "content policy", "usage policies", "blocked by content filter")
_ACTED_ON = Names(
    "model", "messages", "input", "system", "tools", "stream", "stream_options", "n", "max_tokens",
    "max_completion_tokens", "max_output_tokens",
    usual=(
        "temperature", "top_p", "top_k", "user", "tool_choice", "parallel_tool_calls", "response_format", "stop",
        "stop_sequences", "seed", "metadata", "reasoning_effort", "thinking", "encoding_format", "dimensions",
    ),
)  # fmt: skip


class Asked(msgspec.Struct, gc=False):
    """A request as far as the gateway reads it. fields: the body's top level; the last of duplicate names counts, and
    only it is sent on. content_type: of a body that is not JSON."""

    model: str
    fields: dict[str, Raw]
    stream: bool
    content_type: bytes = b""


class StreamFailure(Failure):
    """A stream's failure that the upstream has told in the dialect's own words: `words` are the raw event, to be
    passed on as they are in place of an event of ours."""

    __slots__ = ("words",)

    def __init__(self, status: int, message: str, words: bytes, *, detail: str = "") -> None:
        super().__init__(status, Reason.UPSTREAM_FAILURE, message, detail=detail, retry=True)
        self.words = words


class StreamReader(Protocol):
    """Reads one answer's stream block by block (`wire.sse`), and forgets it.

    began: an event that means something has come (no comment, no ping). finished: the event that ends a whole answer
    has come. stopped: nothing of the answer is missing, but perhaps that event and the usage. failure: the upstream has
    said an error; it is not in what `read` gives back, and nothing after it is.
    counted: usage is the provider's own and complete. uncounted: what it told instead, which is no usage, as it stands.
    text: bytes of text seen, to estimate with otherwise.
    """

    began: bool
    finished: bool
    failure: Failure | None
    usage: Usage | None
    counted: bool
    uncounted: str
    model: str
    text: int

    @property
    def stopped(self) -> bool: ...

    def read(self, block: bytes) -> bytes:
        """What of `block` goes to the caller: all of it, but for an event that only the gateway asked for."""
        ...

    def last(self) -> bytes:
        """The stream has ended in good order, `stopped` and not `finished`: the event that ends the answer, in the
        provider's place."""
        ...


class Framing(Protocol):
    """Cuts a stream's bytes into blocks of whole events (`wire.sse.Framer`, `wire.eventstream.Framer`)."""

    def feed(self, data: bytes) -> bytes:
        """All whole events that end in `data`; b"" when none does. Raises Failure 502."""
        ...

    def rest(self) -> bytes:
        """What is left of an event that did not end, once."""
        ...


class Dialect:
    """One API. Stateless: one instance serves every request.

    family: whose error shape and headers ("openai", "anthropic"). operation: what is asked ("chat", "embeddings",
    "messages"); a provider that speaks it understands the dialect. path: below a provider's base URL. id_header:
    where the family's clients look for the request id, when it is not x-request-id. acted_on: fields whose names must
    not come in another case. stream_type: the media type of its
    streams.
    """

    __slots__ = ()

    family = ""
    operation = ""
    path = b""
    acted_on = _ACTED_ON
    id_header: bytes | None = None
    streams = True
    stream_type = b"text/event-stream; charset=utf-8"
    opaque_answer = False
    """Whole answers are not JSON, and say nothing to the gateway."""
    output_bounds: tuple[str, ...] = ()
    """Fields that bound the output tokens; the first that is there counts."""

    def target(self, model: str, *, stream: bool) -> bytes:
        """The path below a provider's base URL to ask `model` at."""
        return self.path

    def read_target(self, path: bytes) -> tuple[str, bool] | None:
        """Model and whether to stream, for an API whose paths say so; None for a path that is none of its own."""
        return None

    def refuse(self, request: Request) -> None:
        """Raises Failure 400 for what a request's head asks for and the gateway does not do in this API."""

    def decode(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> Asked:
        """Read a request. model, stream: where the path says them and the body does not. Raises Failure 400 for what
        is not a JSON object with a `model`, and for a field that the provider might read in place of one that is
        acted on: also OpenRouter's `models`, of which no rule and no budget would know."""
        try:
            fields = _fields(body)
        except msgspec.ValidationError:
            raise _invalid("the request body must be a JSON object", code="invalid_json") from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _invalid(f"the request body is not valid JSON: {error}", code="invalid_json") from None
        except RecursionError:
            raise _invalid("the request body is nested too deeply", code="invalid_json") from None
        if (name := self.acted_on.misspelt(fields)) is not None:
            raise _invalid(f"{name!r} differs only by case from a field: write it as that", code="ambiguous_field")
        if "models" in fields and bytes(fields["models"]) not in _NO_MODELS:
            message = '"models": name one model; which others are asked in its place is for the gateway to say'
            raise _invalid(message, code="invalid_value")
        if stream is None:
            stream = self.streams and (flag := fields.get("stream")) is not None and _flag(flag)
        if model is not None:
            return Asked(model, fields, stream)
        raw = fields.get("model")
        if raw is None:
            raise _invalid('"model" is missing: name the model to ask', code="model_required")
        try:
            model = _string(raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _invalid('"model" must be a string', code="model_required") from None
        return Asked(model, fields, stream)

    def encode(self, fields: Mapping[str, Raw], body: bytes) -> bytes:
        """The body to send: `fields`, changed from what `decode` gave, and what of `body` is not in them."""
        return _encode(fields)

    def estimate(self, body: bytes, fields: Mapping[str, Raw]) -> int:
        """Tokens to reserve for a request, input and output together."""
        return of_body(body) + self.output_bound(fields)

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        """Output tokens to reserve: what the caller allows, up to `MOST_OUTPUT`; else `DEFAULT_OUTPUT`."""
        for name in self.output_bounds:
            raw = fields.get(name)
            if raw is not None and (bound := _count(raw)) is not None:
                return bound if bound < MOST_OUTPUT else MOST_OUTPUT
        return DEFAULT_OUTPUT

    def usage_options(self, fields: Mapping[str, Raw]) -> Raw | None:
        """The `stream_options` to send so that a stream tells its usage, or None when it does so anyway. When they
        are sent, the stream's reader takes the extra event out again."""
        return None

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        """Usage and answering model of a whole answer; (None, "") where it does not say."""
        raise NotImplementedError

    def said(self, answer: bytes) -> int:
        """Bytes of text in a whole answer that does not tell its usage, to estimate its output with."""
        return len(answer)

    def unsaid(self, fields: Mapping[str, Raw], answer: bytes) -> int:
        """Output tokens, about, of an opaque answer that does not tell them."""
        return 0

    def here(self, fields: dict[str, Raw], model: str, count: Callable[[str], int] | None = None) -> bytes | None:
        """The gateway's own answer where no provider of the model knows the operation; None where there is none.
        count: the model's tokens in a text, where that is known. Raises Failure 400."""
        return None

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        """Put a system text around the caller's own in `fields`. Nothing is done where the API has no place for one.
        Raises Failure 400 for a request that is not of the API's form there."""

    def reader(self, *, strip: bool) -> StreamReader:
        """A reader for one stream; strip: take the usage event out that only the gateway asked for."""
        raise NotImplementedError

    def framer(self) -> Framing:
        """A framer for one stream of the API."""
        return Framer()

    def events(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Name and data of each event in a block of the API's stream; b"" for what it does not have."""
        return [parse(raw) for raw in split(block)]

    def streamed(self, headers: Headers) -> bool:
        """Whether an answer is a stream that is not `text/event-stream`."""
        return False

    def complaint(self, body: bytes) -> tuple[str, str]:
        """What the API says is wrong with a request: a code and a message, "" for what it does not say. The codes
        "context_length_exceeded" and "content_policy" mean what they say, in every dialect."""
        try:
            error = _complaint(body).get("error")
        except UNREADABLE:
            return "", ""
        if not isinstance(error, dict):
            return "", error if isinstance(error, str) else ""
        message = error.get("message")
        code = error.get("code") or error.get("type") or error.get("status")
        told = message if isinstance(message, str) else ""
        return _kind(code if isinstance(code, str) else "", told), told

    def error(self, failure: Failure, request_id: str) -> bytes:
        """A Failure as the dialect's error object, JSON."""
        raise NotImplementedError

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        """A Failure as the dialect's event in a stream, raw."""
        raise NotImplementedError

    def last_words(self, failure: Failure, request_id: str = "") -> bytes:
        """What a stream says when it fails after the commit. Nothing follows it: a client that does not know the error
        event still misses the end it waits for, and takes the answer for cut."""
        if isinstance(failure, StreamFailure):
            return failure.words
        return self.error_event(failure, request_id)

    def render(self, failure: Failure, request: Request) -> Response:
        """A Failure as an answer."""
        headers = Headers(failure.headers)
        if failure.retry_after is not None and headers.get(b"retry-after") is None:
            headers.append((b"retry-after", b"%d" % max(ceil(failure.retry_after), 0)))
        if headers.get(b"content-type") is None:
            headers.append((b"content-type", b"application/json"))
        request_id = request.context.request_id
        if self.id_header is not None and request_id:
            headers.append((self.id_header, request_id.encode("latin-1", "replace")))
        return Response(failure.status, headers, self.error(failure, request_id), reason=failure.reason)


def _kind(code: str, message: str) -> str:
    """The API's code, or the one that its message means: not every API has a code for these two."""
    text = message.lower()
    if code in _OVERFLOWS or any(words in text for words in _OVERFLOW):
        return "context_length_exceeded"
    if code in _POLICIES or any(words in text for words in _POLICY):
        return "content_policy"
    return code


def bytes_of(text: str) -> int:
    """Bytes of a text as UTF-8, to estimate its tokens with."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def text_of(raw: Raw) -> str:
    """A JSON string's text, or "" for anything else."""
    try:
        return _string(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _flag(raw: Raw) -> bool:
    """Whether to stream. What is neither true nor false would be one thing to us and may be another to a provider."""
    if (told := bytes(raw)) == _TRUE:
        return True
    if told not in _NOT_TRUE:
        raise _invalid("stream: must be true or false", code="invalid_value")
    return False


def _count(raw: Raw) -> int | None:
    try:
        value = _integer(raw)
    except msgspec.DecodeError:
        return None
    return value if value >= 0 else None


def _invalid(message: str, *, code: str) -> Failure:
    return Failure(400, Reason.INVALID_REQUEST, message, code=code)
