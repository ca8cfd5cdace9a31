"""Gemini: `POST /models/{model}:generateContent`, an object, and `:streamGenerateContent?alt=sse`, a stream of them.

The model is in the path, and so is whether to stream. Every name of a request may be spelt in two ways (ProtoJSON). A
stream has no event that ends it: it is whole when each candidate has said why it ended; each event may tell the usage,
as the totals up to then. `promptTokenCount` includes what was read from the cache, `candidatesTokenCount` leaves the
thoughts out. An error has a number, a word and a list of details (`google.rpc.Status`).
"""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request
from tollhouse.wire.llm.dialect import Asked, Dialect, StreamFailure, bytes_of
from tollhouse.wire.llm.reader import TextReader
from tollhouse.wire.llm.system import System, around_content
from tollhouse.wire.llm.tokens import DEFAULT_OUTPUT, MOST_OUTPUT
from tollhouse.wire.llm.usage import GeminiUsage, uncounted
from tollhouse.wire.members import Names
from tollhouse.wire.sse import frame, parse, split

__all__ = [
    "GeminiBatchEmbed",
    "GeminiCount",
    "GeminiDialect",
    "GeminiEmbed",
    "GeminiGenerate",
    "GenerateReader",
    "failed",
    "resource",
]

Raw = msgspec.Raw
_ABSENT = Raw()

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_ACTED_ON = Names(
    "contents", "content", "requests", "model", "systemInstruction", "system_instruction", "tools", "toolConfig",
    "tool_config", "generationConfig", "generation_config", "generateContentRequest", "generate_content_request",
    usual=(
        "cachedContent", "cached_content", "labels", "outputDimensionality", "safetySettings", "safety_settings",
        "serviceTier", "store", "taskType", "title",
    ),
)  # fmt: skip
_PATH = re.compile(rb"/v1(?:beta|alpha)?/models/([^:]+(?::[^:]+)*):(\w+)")
_RESOURCES = ("models/", "tunedModels/")
_STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    409: "ABORTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    502: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_TYPE = "type.googleapis.com/google.rpc."


class _Bounds(msgspec.Struct, gc=False):
    camel: int | None = msgspec.field(default=None, name="maxOutputTokens")
    snake: int | None = msgspec.field(default=None, name="max_output_tokens")
    answers: int | None = msgspec.field(default=None, name="candidateCount")


class _Answer(msgspec.Struct, gc=False, rename="camel"):
    usage_metadata: GeminiUsage | None = None
    model_version: str | None = None


class _Part(msgspec.Struct, gc=False, rename="camel"):
    text: str | None = None
    function_call: Raw = _ABSENT


class _Content(msgspec.Struct, gc=False):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, gc=False, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    index: int | None = None


class _Feedback(msgspec.Struct, gc=False, rename="camel"):
    block_reason: str | None = None


class _Event(_Answer, gc=False, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    error: Raw = _ABSENT


class _Status(msgspec.Struct, gc=False):
    code: int | None = None
    message: str | None = None
    status: str | None = None


class _Failed(msgspec.Struct, gc=False):
    error: _Status | None = None


_bounds = msgspec.json.Decoder(_Bounds, strict=False).decode
_answer = msgspec.json.Decoder(_Answer, strict=False).decode
_event = msgspec.json.Decoder(_Event, strict=False).decode
_failed = msgspec.json.Decoder(_Failed, strict=False).decode
_failed_list = msgspec.json.Decoder(list[_Failed], strict=False).decode


class GeminiDialect(Dialect):
    """What all of the API's methods share. method: the word after the model; stream_method: for a stream."""

    __slots__ = ()

    family = "gemini"
    path = b"/models"
    acted_on = _ACTED_ON
    streams = False
    method = b""
    stream_method = b""

    def target(self, model: str, *, stream: bool) -> bytes:
        """The path below a provider's base URL, which ends in the version. model: its name, or one that says of which
        kind it is ("tunedModels/a")."""
        method = self.stream_method + b"?alt=sse" if stream else self.method
        return b"/%b:%b" % (quote(resource(model)).encode("ascii"), method)

    def read_target(self, path: bytes) -> tuple[str, bool] | None:
        """Model and whether to stream of `/v1beta/models/{model}:{method}`, or None for another method's path."""
        found = _PATH.fullmatch(path)
        if found is None:
            return None
        name, method = found.groups()
        if method != self.method and (not self.stream_method or method != self.stream_method):
            return None
        try:
            return unquote(name.decode("ascii"), errors="strict"), method == self.stream_method
        except UnicodeDecodeError:
            return None

    def refuse(self, request: Request) -> None:
        """Raises Failure 400 for a stream that is not to be one of events: the API can also answer with one array."""
        if self.stream_method and request.path.endswith(b":" + self.stream_method):
            alt = [value for name, value in parse_qsl(request.query) if name in (b"alt", b"$alt")]
            if alt[-1:] != [b"sse"]:
                raise Failure(
                    400,
                    Reason.INVALID_REQUEST,
                    f"{self.stream_method.decode()} is answered as server-sent events only: ask with ?alt=sse",
                    code="unsupported_alt",
                )

    def decode(self, body: bytes, *, model: str | None = None, stream: bool | None = None) -> Asked:
        """Raises Failure 400 also for a field that stands there in both spellings."""
        asked = super().decode(body, model=model, stream=stream)
        for name in asked.fields:
            if "_" in name and _camel(name) in asked.fields:
                message = f"{name!r} and {_camel(name)!r} are the same field: leave one out"
                raise Failure(400, Reason.INVALID_REQUEST, message, code="ambiguous_field")
        return asked

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        try:
            answer = _answer(body)
        except UNREADABLE:
            return None, ""
        usage = answer.usage_metadata
        return (None if usage is None else usage.normal()), answer.model_version or ""

    def reader(self, *, strip: bool) -> "GenerateReader":
        return GenerateReader()

    def complaint(self, body: bytes) -> tuple[str, str]:
        """Also of an error that stands in an array, as those of streams may."""
        error = _status(body)
        return super().complaint(_encode({"error": {"code": error.status, "message": error.message}}))

    def error(self, failure: Failure, request_id: str) -> bytes:
        status = failure.status
        word = _STATUSES.get(status) or ("INVALID_ARGUMENT" if status < 500 else "INTERNAL")
        details: list[dict[str, Any]] = []
        if failure.code:
            reason = failure.code.upper()
            details.append({"@type": _TYPE + "ErrorInfo", "reason": reason, "domain": "tollhouse"})
        if failure.retry_after is not None:
            details.append({"@type": _TYPE + "RetryInfo", "retryDelay": f"{max(failure.retry_after, 0.0):.3f}s"})
        if request_id:
            details.append({"@type": _TYPE + "RequestInfo", "requestId": request_id})
        error: dict[str, Any] = {"code": status, "message": failure.message, "status": word}
        if details:
            error["details"] = details
        return _encode({"error": error})

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        return frame(self.error(failure, request_id))


class GeminiGenerate(GeminiDialect):
    """`generateContent` and `streamGenerateContent`."""

    __slots__ = ()

    operation = "generate"
    streams = True
    method = b"generateContent"
    stream_method = b"streamGenerateContent"

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        raw = fields.get("generationConfig", fields.get("generation_config"))
        if raw is None:
            return DEFAULT_OUTPUT
        try:
            bounds = _bounds(raw)
        except UNREADABLE:
            return DEFAULT_OUTPUT
        bound = bounds.camel if bounds.camel is not None else bounds.snake
        each = DEFAULT_OUTPUT if bound is None or bound < 0 else min(bound, MOST_OUTPUT)
        return each * min(max(bounds.answers or 1, 1), 8)

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        name = "system_instruction" if "system_instruction" in fields else "systemInstruction"
        fields[name] = around_content(fields.get(name), system, name)


class _Without(GeminiDialect):
    """A method that has no answer in words. Where its body names the model again, it is the provider's name for it."""

    __slots__ = ()

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        return 0

    def said(self, answer: bytes) -> int:
        return 0


class GeminiEmbed(_Without):
    """`embedContent`: one embedding."""

    __slots__ = ()

    operation = "embed"
    method = b"embedContent"

    def encode(self, fields: Mapping[str, Raw], body: bytes) -> bytes:
        return _encode(_renamed(fields))


class GeminiBatchEmbed(_Without):
    """`batchEmbedContents`: embeddings of several contents, each with the model's name."""

    __slots__ = ()

    operation = "embed_batch"
    method = b"batchEmbedContents"

    def encode(self, fields: Mapping[str, Raw], body: bytes) -> bytes:
        name = fields.get("model")
        raw = fields.get("requests")
        if name is None or raw is None:
            return _encode(fields)
        try:
            requests = [{**one, "model": _resource(name)} for one in _objects(raw)]
        except UNREADABLE:
            return _encode({n: v for n, v in fields.items() if n != "model"})  # for the provider to refuse
        return _encode({**{n: v for n, v in fields.items() if n != "model"}, "requests": requests})


class GeminiCount(_Without):
    """`countTokens`. It uses none."""

    __slots__ = ()

    operation = "count"
    method = b"countTokens"

    def estimate(self, body: bytes, fields: Mapping[str, Raw]) -> int:
        return 0

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        return Usage(), ""

    def encode(self, fields: Mapping[str, Raw], body: bytes) -> bytes:
        name = fields.get("model")
        sent: dict[str, Any] = {n: v for n, v in fields.items() if n != "model"}
        for place in ("generateContentRequest", "generate_content_request"):
            raw = sent.get(place)
            if raw is not None and name is not None:
                try:
                    sent[place] = {**_object(raw), "model": _resource(name)}
                except UNREADABLE:
                    pass  # for the provider to refuse
        return _encode(sent)


def _renamed(fields: Mapping[str, Raw]) -> dict[str, Any]:
    name = fields.get("model")
    return dict(fields) if name is None else {**fields, "model": _resource(name)}


def resource(model: str) -> str:
    """A model's name that says of which kind it is: "models/gemini-2.5-flash"."""
    return model if model.startswith(_RESOURCES) else "models/" + model


def _resource(name: Raw) -> str:
    """A model's name as bodies have it."""
    return resource(msgspec.json.decode(name, type=str))


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word[:1].upper() + word[1:] for word in rest)


class GenerateReader(TextReader):
    """StreamReader of partial answers."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        super().__init__()
        self._open: dict[int, bool] = {}  # candidates: whether they have not ended

    def look(self, block: bytes) -> bytes:
        passed = 0
        raws = split(block)
        for raw in raws:
            _, data = parse(raw)
            if data:
                event = self._read(data)
                if event is None:
                    self.unread(data)
                    if self.failure is not None:
                        return block[:passed]
                    passed += len(raw)
                    continue
                if bytes(event.error) not in (b"", b"null"):
                    self.failure = failed(data, raw)
                    return block[:passed]
                self._note(event, block if len(raws) == 1 else b"")
            passed += len(raw)
        return block

    def _read(self, data: bytes) -> _Event | None:
        """An event; without its usage where that is none."""
        try:
            return _event(data)
        except UNREADABLE:
            pass
        try:
            event, self.uncounted = uncounted(_event, data, ("usageMetadata",))
        except UNREADABLE:
            return None
        return event

    def _note(self, event: _Event, alone: bytes) -> None:
        """alone: the block, when the event is all of it."""
        self.began = True
        if event.model_version:
            self.model = event.model_version
        texts = []
        for candidate in event.candidates or ():
            index = candidate.index or 0
            if candidate.finish_reason is not None:
                self._open[index] = False
                alone = b""
            else:
                self._open.setdefault(index, True)
            content = candidate.content
            for part in (content.parts if content is not None else None) or ():
                if part.text:
                    texts.append(part.text)
                self.text += len(bytes(part.function_call))
        if len(texts) == 1 and alone:
            self.said(alone, texts[0])
        else:
            self.text += sum(map(bytes_of, texts))
        feedback = event.prompt_feedback
        blocked = feedback is not None and feedback.block_reason is not None
        if blocked or (self._open and not any(self._open.values())):
            self.finished = True
        usage = event.usage_metadata
        if usage is not None and (counted := usage.normal()) is not None:
            self.usage = counted
        self.counted = self.finished and self.usage is not None


def failed(data: bytes, words: bytes) -> StreamFailure:
    """The failure that an event with an error tells. words: the raw event."""
    error = _status(data)
    status = error.code if error.code in (429, 503, 504) else 502
    detail = f"{error.status or 'error'}: {error.message or ''}"[:500]
    return StreamFailure(status, "the provider failed", words, detail=detail)


def _status(body: bytes) -> _Status:
    try:
        return _failed(body).error or _Status()
    except UNREADABLE:
        pass
    try:
        told = _failed_list(body)
    except UNREADABLE:
        return _Status()
    return (told[0].error if told else None) or _Status()
