"""Bedrock Converse: `POST /model/{model}/converse`, an object, and `/converse-stream`, a binary event stream.

The model is in the path, and so is whether to stream. A stream ends with `messageStop`, after which `metadata` tells
the usage. `inputTokens` excludes what was read from and written to the cache. What goes wrong in a stream is an
exception: a message of its own, after which nothing comes.
"""

from collections.abc import Mapping
from urllib.parse import quote, unquote

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request, Response
from tollhouse.wire.eventstream import Framer, Header, frame, headers, opened, split, text_headers
from tollhouse.wire.llm.dialect import Dialect, StreamFailure, bytes_of
from tollhouse.wire.llm.reader import Reader
from tollhouse.wire.llm.system import System, around_blocks
from tollhouse.wire.llm.tokens import DEFAULT_OUTPUT, MOST_OUTPUT
from tollhouse.wire.llm.usage import ConverseUsage, raw_usage, tiered
from tollhouse.wire.members import Names

__all__ = ["BedrockConverse", "ConverseReader", "failed"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_ACTED_ON = Names(
    "messages", "system", "inferenceConfig", "toolConfig",
    usual=(
        "additionalModelRequestFields", "additionalModelResponseFieldPaths", "guardrailConfig", "outputConfig",
        "performanceConfig", "promptVariables", "requestMetadata", "serviceTier",
    ),
)  # fmt: skip

_FAILED = b"error"  # the name we give to what is no exception of the API's
_STATUSES = {
    b"throttlingException": 429,
    b"serviceUnavailableException": 503,
    b"validationException": 400,
    b"modelTimeoutException": 504,
}
"""Of exceptions; the others are the provider's own trouble: 502."""

_TYPES = {
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    503: "ServiceUnavailableException",
    504: "ModelTimeoutException",
}
_EXCEPTIONS = {
    429: b"throttlingException",
    502: b"modelStreamErrorException",
    503: b"serviceUnavailableException",
}

_CONVERSE, _STREAM, _MODEL = b"/converse", b"/converse-stream", b"/model/"


class _Inference(msgspec.Struct, gc=False, rename="camel"):
    max_tokens: int | None = None


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    usage: ConverseUsage | None = None
    service_tier: Raw = Raw()


class _ToolUse(msgspec.Struct, gc=False):
    input: str | None = None


class _Reasoning(msgspec.Struct, gc=False):
    text: str | None = None


class _Delta(msgspec.Struct, gc=False, rename="camel"):
    text: str | None = None
    tool_use: _ToolUse | None = None
    reasoning_content: _Reasoning | None = None


class _DeltaEvent(msgspec.Struct, gc=False):
    delta: _Delta | None = None


class _Exception(msgspec.Struct, gc=False, rename="camel"):
    message: str | None = None
    original_status_code: int | None = None
    original_message: str | None = None


_inference = msgspec.json.Decoder(_Inference).decode
_answer = msgspec.json.Decoder(_Answer, strict=False).decode
_delta = msgspec.json.Decoder(_DeltaEvent, strict=False).decode
_exception = msgspec.json.Decoder(_Exception, strict=False).decode


def _head(name: bytes) -> bytes:
    return text_headers({b":event-type": name, b":content-type": b"application/json", b":message-type": b"event"})


_DELTA = b"contentBlockDelta"
_USUAL = {
    _head(name): name
    for name in (b"messageStart", b"contentBlockStart", _DELTA, b"contentBlockStop", b"messageStop", b"metadata")
}
"""Headers as AWS writes them, by which most messages are known at once."""


class BedrockConverse(Dialect):
    """`POST /model/{model}/converse` and `/model/{model}/converse-stream`."""

    __slots__ = ()

    family = "bedrock"
    operation = "converse"
    path = b"/model/"
    id_header = b"x-amzn-requestid"
    stream_type = b"application/vnd.amazon.eventstream"
    acted_on = _ACTED_ON

    def target(self, model: str, *, stream: bool) -> bytes:
        """The path below a provider's base URL to ask `model` at; an ARN's colons and slashes are escaped."""
        return b"%b%b%b" % (_MODEL, quote(model, safe="").encode("ascii"), _STREAM if stream else _CONVERSE)

    def read_target(self, path: bytes) -> tuple[str, bool] | None:
        """Model and whether to stream of a request's path, or None for another operation's."""
        stream = path.endswith(_STREAM)
        if not path.startswith(_MODEL) or not (stream or path.endswith(_CONVERSE)):
            return None
        model = path[len(_MODEL) : -len(_STREAM if stream else _CONVERSE)]
        try:
            return (unquote(model.decode("ascii"), errors="strict"), stream) if model else None
        except UnicodeDecodeError:
            return None

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        raw = fields.get("inferenceConfig")
        if raw is None:
            return DEFAULT_OUTPUT
        try:
            bound = _inference(raw).max_tokens
        except UNREADABLE:
            return DEFAULT_OUTPUT
        return DEFAULT_OUTPUT if bound is None or bound < 0 else min(bound, MOST_OUTPUT)

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        """The usage; which model answered is not told."""
        try:
            answer = _answer(body)
        except UNREADABLE:
            return None, ""
        usage = answer.usage
        return (None if usage is None else tiered(usage.normal(), answer.service_tier)), ""

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        fields["system"] = around_blocks(fields.get("system"), system, "system", typed=False)

    def framer(self) -> Framer:
        return Framer()

    def reader(self, *, strip: bool) -> "ConverseReader":
        return ConverseReader()

    def events(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Name and payload of each message. An exception has its type for a name, or "error" when that is none of the
        API's. Raises Failure 502 for what is no message."""
        return [_event(raw) for raw in split(block)]

    def streamed(self, headers: Headers) -> bool:
        return (headers.get(b"content-type") or b"").startswith(self.stream_type)

    def complaint(self, body: bytes) -> tuple[str, str]:
        """The kind of error is in a header (`x-amzn-errortype`); what it is about, in the message's words."""
        try:
            told = _exception(body).message or ""
        except UNREADABLE:
            return "", ""
        return super().complaint(_encode({"error": {"message": told}}))

    def error(self, failure: Failure, request_id: str) -> bytes:
        return _encode({"message": failure.message})

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        status = failure.status
        name = _EXCEPTIONS.get(status) or (b"validationException" if status < 500 else b"internalServerException")
        return frame(name, self.error(failure, request_id), kind=b"exception")

    def render(self, failure: Failure, request: Request) -> Response:
        response = super().render(failure, request)
        status = failure.status
        kind = _TYPES.get(status) or ("ValidationException" if status < 500 else "InternalServerException")
        response.headers.append((b"x-amzn-errortype", kind.encode("ascii")))
        return response


class ConverseReader(Reader):
    """StreamReader of binary events. The usage comes last, but nothing of the answer is missing without it."""

    __slots__ = ()

    def read(self, block: bytes) -> bytes:
        passed = 0
        try:
            for raw in split(block):
                name, data = _event(raw)
                failure = failed(name, data, raw)
                if failure is not None:
                    self.failure = failure
                    return block[:passed]
                self._note(name, data)
                if self.failure is not None:
                    return block[:passed]
                passed += len(raw)
        except Failure as broken:
            self.failure = broken.with_traceback(None)
            return block[:passed]
        return block

    def _note(self, name: bytes, data: bytes) -> None:
        if name == _DELTA:
            try:
                delta = _delta(data).delta
            except UNREADABLE:
                self.unread(data)
                return
            self.began = True
            if delta is None:
                return
            text = delta.text
            if text is None and delta.tool_use is not None:
                text = delta.tool_use.input
            elif text is None and delta.reasoning_content is not None:
                text = delta.reasoning_content.text
            if text:
                self.text += bytes_of(text)
            return
        self.began = True
        if name == b"messageStop":
            self.finished = True
        elif name == b"metadata":
            self.finished = True
            try:
                told = _answer(data)
            except UNREADABLE:
                self.uncounted = raw_usage(data)
                self.unread(data)
                return
            if told.usage is not None and (counted := told.usage.normal()) is not None:
                self.usage = tiered(counted, told.service_tier)
                self.counted = True


def failed(name: bytes, data: bytes, words: bytes = b"") -> StreamFailure | None:
    """The failure that an exception tells; None for an event. name: as `BedrockConverse.events` gives it. words: the
    raw message, when it is there."""
    if not name.endswith(b"xception") and name != _FAILED:
        return None
    try:
        said = _exception(data)
    except UNREADABLE:
        said = _Exception()
    more = f" (the model: {said.original_status_code} {said.original_message})" if said.original_status_code else ""
    detail = f"{name.decode('utf-8', 'replace')}: {said.message or ''}{more}"[:500]
    words = words or frame(name, data, kind=b"exception")
    failure = StreamFailure(_STATUSES.get(name, 502), "the provider failed", words, detail=detail)
    failure.retry = failure.status != 400  # what one target finds wrong with the request, the next one will too
    return failure


def _event(raw: bytes) -> tuple[bytes, bytes]:
    head, payload = opened(raw)
    name = _USUAL.get(head)
    if name is not None:
        return name, payload
    said = headers(head)
    kind = said.get(":message-type")
    if kind == "exception":
        name = _text(said, ":exception-type").encode()
        return (name if name.endswith(b"xception") else _FAILED), payload or b"{}"
    if kind == "error":
        told = f"{_text(said, ':error-code')}: {_text(said, ':error-message')}"
        return _FAILED, _encode({"message": told})
    return _text(said, ":event-type").encode(), payload or b"{}"


def _text(said: Mapping[str, Header], name: str) -> str:
    value = said.get(name)
    return value if isinstance(value, str) else ""
