"""OpenAI responses: `POST /responses`, an object or a stream of named events.

Every event has its name in `type` too. A stream ends with the event that tells the whole response again, and its usage:
`response.completed`, `response.incomplete` or `response.failed`; there is no `[DONE]`. `input_tokens` includes cached
tokens, `output_tokens` includes reasoning. No two events are alike, since each has its number.

An error is told twice in one event: in the fields that are documented, and in the object that the SDKs raise at.
"""

import re

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.dialect import StreamFailure, bytes_of, text_of
from tollhouse.wire.llm.openai_chat import OpenAIDialect
from tollhouse.wire.llm.reader import Reader, is_text
from tollhouse.wire.llm.system import System, around_text, without_instructions
from tollhouse.wire.llm.usage import ResponsesUsage, raw_usage, tiered
from tollhouse.wire.sse import frame, parse, split

__all__ = ["OpenAIResponses", "ResponsesReader"]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode


class _Error(msgspec.Struct, gc=False):
    code: Raw = _ABSENT
    type: Raw = _ABSENT
    message: Raw = _ABSENT


class _Answer(msgspec.Struct, gc=False):
    model: str | None = None
    usage: ResponsesUsage | None = None
    service_tier: Raw = _ABSENT


class _Response(_Answer, gc=False):
    error: Raw = _ABSENT


class _OddEvent(msgspec.Struct, gc=False):
    """One whose `delta` is not text."""

    type: str = ""
    response: Raw = _ABSENT
    error: Raw = _ABSENT


class _Event(_OddEvent, gc=False):
    delta: str | None = None


_answer = msgspec.json.Decoder(_Answer, strict=False).decode
_event = msgspec.json.Decoder(_Event, strict=False).decode
_odd_event = msgspec.json.Decoder(_OddEvent, strict=False).decode
_response = msgspec.json.Decoder(_Response, strict=False).decode
_error = msgspec.json.Decoder(_Error, strict=False).decode
_decode = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode

# Text in an event whose form we do not know. A match cannot begin inside a JSON string: there the quote before the
# colon would be escaped.
_TEXT = re.compile(rb'"delta"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"')
_SOUND = "response.audio.delta"  # base64
_ENDS = ("response.completed", "response.incomplete")
_FAILED = "response.failed"


class OpenAIResponses(OpenAIDialect):
    """`POST /v1/responses`."""

    __slots__ = ()

    operation = "responses"
    path = b"/responses"
    output_bounds = ("max_output_tokens",)

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        try:
            answer = _answer(body)
        except UNREADABLE:
            return None, ""
        usage = answer.usage
        return None if usage is None else tiered(usage.normal(), answer.service_tier), answer.model or ""

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        fields["instructions"] = around_text(fields.get("instructions"), system, "instructions")
        if not system.own and "input" in fields:
            fields["input"] = without_instructions(fields["input"], "input")

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        error = _decode(self.error(failure, request_id))["error"]
        told = _decode(error)
        form = {
            "type": "error",
            "code": told["code"],
            "message": told["message"],
            "param": told["param"],
            "error": error,
            "sequence_number": 0,
        }
        return frame(_encode(form), b"error")

    def reader(self, *, strip: bool) -> "ResponsesReader":
        return ResponsesReader()


class ResponsesReader(Reader):
    """StreamReader of response events."""

    __slots__ = ()

    def read(self, block: bytes) -> bytes:
        passed = 0
        for raw in split(block):
            name, data = parse(raw)
            if data:
                self._read(name, data, raw)
                if self.failure is not None:
                    return block[:passed]
            passed += len(raw)
        return block

    def _read(self, name: bytes, data: bytes, raw: bytes) -> None:
        event: _OddEvent
        try:
            event = _event(data)
        except UNREADABLE:
            if not name.startswith(b"response.audio."):
                self.text += sum(map(len, _TEXT.findall(data)))
            try:
                event = _odd_event(data if is_text(data) else b"")
            except UNREADABLE:
                event = _OddEvent(name.decode("latin-1"))
                if event.type != "error":
                    self.unread(data)
                    if self.failure is not None:
                        return
        else:
            if event.delta is not None:
                if event.type != _SOUND:
                    self.text += bytes_of(event.delta)
                self.began = True
                return
        kind = event.type
        response = _Response()
        if bytes(event.response):
            try:
                response = _response(event.response)
            except UNREADABLE:
                self.uncounted = raw_usage(data)  # not for us to judge; it passes
        if not self.model and response.model:
            self.model = response.model
        if response.usage is not None and (usage := response.usage.normal()) is not None:
            self.usage = tiered(usage, response.service_tier)
            self.counted = True
        if kind == "error" or name == b"error":
            self.failure = _told(event.error if bytes(event.error) else Raw(data), raw)
        elif kind == _FAILED:
            self.failure = _told(response.error, raw)
        else:
            self.began = True
            self.finished = self.finished or kind in _ENDS


def _told(error: Raw, raw: bytes) -> StreamFailure:
    try:
        told = _error(error)
    except UNREADABLE:
        told = _Error()
    code, kind = text_of(told.code), text_of(told.type)
    limited = "rate_limit" in code or "rate_limit" in kind or code == "insufficient_quota" or bytes(told.code) == b"429"
    detail = f"{code or kind or 'error'}: {text_of(told.message)}"[:500]
    return StreamFailure(429 if limited else 502, "the provider failed", raw, detail=detail)
