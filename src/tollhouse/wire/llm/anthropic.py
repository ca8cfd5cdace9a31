"""Anthropic messages: `POST /v1/messages`, an object or a stream of named events.

A stream begins with `message_start`, whose usage has the input, and ends with `message_stop`; the usage of
`message_delta` is cumulative and replaces what it names. `input_tokens` excludes what was read from and written to
the cache. An error in a stream is an `error` event; `ping` may come at any time.
"""

import re

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.dialect import Dialect, StreamFailure, bytes_of, text_of
from tollhouse.wire.llm.reader import TextReader
from tollhouse.wire.llm.system import System, around_blocks
from tollhouse.wire.llm.usage import MessagesUsage, uncounted
from tollhouse.wire.sse import frame, parse, split

__all__ = ["AnthropicMessages", "MessagesReader"]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode

# Text in an event whose form we do not know. A match cannot begin inside a JSON string: there the quote before the
# colon would be escaped.
_TEXT = re.compile(rb'"(?:text|thinking|partial_json)"\s*:\s*"([^"\\]*(?:\\.[^"\\]*)*)"')


class _Message(msgspec.Struct, gc=False):
    model: str | None = None
    usage: MessagesUsage | None = None


class _Error(msgspec.Struct, gc=False):
    type: Raw = _ABSENT
    message: Raw = _ABSENT


class _Content(msgspec.Struct, gc=False):
    text: str | None = None
    thinking: str | None = None
    partial_json: str | None = None
    stop_reason: Raw = _ABSENT


class _OddEvent(msgspec.Struct, gc=False):
    """One whose content is not of the usual form."""

    type: str = ""
    message: _Message | None = None
    usage: MessagesUsage | None = None
    error: _Error | None = None


class _Event(_OddEvent, gc=False):
    delta: _Content | None = None
    content_block: _Content | None = None


_message = msgspec.json.Decoder(_Message, strict=False).decode
_event = msgspec.json.Decoder(_Event, strict=False).decode
_odd_event = msgspec.json.Decoder(_OddEvent, strict=False).decode
_encode = msgspec.json.Encoder().encode

_USAGES = (("usage",), ("message", "usage"))
_SAID = b"event: content_block_delta\ndata: {"
_DELTA = "content_block_delta"
_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STATUSES = {"rate_limit_error": 429, "overloaded_error": 503, "timeout_error": 504}


class AnthropicMessages(Dialect):
    """`POST /v1/messages`."""

    __slots__ = ()

    family = "anthropic"
    operation = "messages"
    path = b"/v1/messages"
    id_header = b"request-id"
    output_bounds = ("max_tokens",)

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        try:
            answer = _message(body)
        except UNREADABLE:
            return None, ""
        usage = answer.usage
        return None if usage is None else usage.normal(), answer.model or ""

    def with_system(self, fields: dict[str, Raw], system: System) -> None:
        fields["system"] = around_blocks(fields.get("system"), system, "system")

    def error(self, failure: Failure, request_id: str) -> bytes:
        kind = _TYPES.get(failure.status) or ("invalid_request_error" if failure.status < 500 else "api_error")
        return _encode(
            {
                "type": "error",
                "error": {"type": kind, "message": failure.message},
                "request_id": request_id or None,
            }
        )

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        return frame(self.error(failure, request_id), b"error")

    def reader(self, *, strip: bool) -> "MessagesReader":
        return MessagesReader()


class MessagesReader(TextReader):
    """StreamReader of message events. An answer has stopped with the reason why, in `message_delta`."""

    __slots__ = ("_stopped",)

    def __init__(self) -> None:
        super().__init__()
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self.finished or self._stopped

    def last(self) -> bytes:
        self.finished = True
        return frame(_encode({"type": "message_stop"}), b"message_stop")

    def look(self, block: bytes) -> bytes:
        if block.startswith(_SAID) and block.find(b"\n", len(_SAID)) == len(block) - 2 and self.began:
            # Mostly: one event with some text in it.
            try:
                event = _event(block[len(_SAID) - 1 : -2])
            except UNREADABLE:
                return self._each(block)
            content = event.delta
            if event.type == _DELTA and content is not None:
                self.said(block, content.text or content.thinking or content.partial_json or "")
                return block
        return self._each(block)

    def _each(self, block: bytes) -> bytes:
        passed = 0
        for raw in split(block):
            name, data = parse(raw)
            if data and name != b"ping":
                event = self._read(data)
                if event is None:
                    if name == b"error":
                        self.failure = StreamFailure(502, "the provider failed", raw)
                        return block[:passed]
                    self.unread(data)
                    if self.failure is not None:
                        return block[:passed]
                elif event.type == "error" or name == b"error":
                    self.failure = _told(event.error, raw)
                    return block[:passed]
                elif event.type != "ping":
                    self._note(event)
            passed += len(raw)
        return block

    def _read(self, data: bytes) -> _OddEvent | None:
        """An event, with its text counted."""
        try:
            event = _event(data)
        except UNREADABLE:
            self.text += sum(map(len, _TEXT.findall(data)))
            try:
                return _odd_event(data)
            except UNREADABLE:
                pass
            try:
                odd, self.uncounted = uncounted(_odd_event, data, *_USAGES)
            except UNREADABLE:
                return None
            return odd
        for content in (event.delta, event.content_block):
            if content is not None:
                self.text += bytes_of(content.text or content.thinking or content.partial_json or "")
        return event

    def _note(self, event: _OddEvent) -> None:
        self.began = True
        kind = event.type
        if kind == "message_start" and event.message is not None:
            self.model = event.message.model or ""
            if event.message.usage is not None:
                self.usage = Usage()
                event.message.usage.merge(self.usage)
        elif kind == "message_delta":
            if isinstance(event, _Event) and event.delta is not None:
                self._stopped = bytes(event.delta.stop_reason) not in (b"", b"null")
            if event.usage is not None:
                if self.usage is None:
                    self.usage = Usage()
                event.usage.merge(self.usage)
                self.counted = event.usage.output_tokens is not None
        elif kind == "message_stop":
            self.finished = True


def _told(error: _Error | None, raw: bytes) -> StreamFailure:
    kind = text_of(error.type) if error is not None else ""
    message = text_of(error.message) if error is not None else ""
    status = _STATUSES.get(kind, 502)
    return StreamFailure(status, "the provider failed", raw, detail=f"{kind or 'error'}: {message}"[:500])
