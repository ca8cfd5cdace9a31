"""What OpenAI's APIs for pictures and sound have in common: the form of their usage, and named events whose last one
tells it. Their answers are mostly not text, so that their size says nothing about their tokens.
"""

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.dialect import StreamFailure, bytes_of, text_of
from tollhouse.wire.llm.openai_chat import OpenAIDialect
from tollhouse.wire.llm.reader import Reader
from tollhouse.wire.llm.usage import ResponsesUsage
from tollhouse.wire.sse import Framer, frame, parse, split

__all__ = ["MediaDialect", "MediaReader"]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode

_LARGEST = 32 << 20  # bytes of one event: a picture comes in one


class _Answer(msgspec.Struct, gc=False):
    usage: ResponsesUsage | None = None


class _Event(msgspec.Struct, gc=False):
    type: str = ""
    delta: str | None = None
    usage: ResponsesUsage | None = None
    error: Raw = _ABSENT


class _Error(msgspec.Struct, gc=False):
    code: Raw = _ABSENT
    type: Raw = _ABSENT
    message: Raw = _ABSENT


_answer = msgspec.json.Decoder(_Answer, strict=False).decode
_event = msgspec.json.Decoder(_Event, strict=False).decode
_error = msgspec.json.Decoder(_Error, strict=False).decode

_DONE = b"[DONE]"
_ENDS = (".done", ".completed")


class MediaDialect(OpenAIDialect):
    """An API of pictures or sound."""

    __slots__ = ()

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        """The usage; which model answered is not told."""
        try:
            usage = _answer(body).usage
        except UNREADABLE:
            return None, ""
        return (None if usage is None else usage.normal()), ""

    def said(self, answer: bytes) -> int:
        return 0

    def framer(self) -> Framer:
        return Framer(_LARGEST)

    def reader(self, *, strip: bool) -> "MediaReader":
        return MediaReader()

    def error_event(self, failure: Failure, request_id: str) -> bytes:
        return frame(self.error(failure, request_id), b"error")


class MediaReader(Reader):
    """StreamReader of events like `transcript.text.delta`, `image_generation.partial_image`, `speech.audio.done`."""

    __slots__ = ()

    def read(self, block: bytes) -> bytes:
        passed = 0
        for raw in split(block):
            name, data = parse(raw)
            if data == _DONE:
                self.began = self.finished = True
            elif data:
                self._read(name, data, raw)
                if self.failure is not None:
                    return block[:passed]
            passed += len(raw)
        return block

    def _read(self, name: bytes, data: bytes, raw: bytes) -> None:
        try:
            event = _event(data)
        except UNREADABLE:
            event = _Event(name.decode("latin-1"))
            if event.type != "error":
                self.unread(data)
                if self.failure is not None:
                    return
        kind = event.type
        if kind == "error" or name == b"error" or bytes(event.error)[:1] == b"{":
            self.failure = _told(event.error if bytes(event.error) else Raw(data), raw)
            return
        self.began = True
        if event.delta is not None:
            self.text += bytes_of(event.delta)
        if event.usage is not None and (usage := event.usage.normal()) is not None:
            self.usage = usage
            self.counted = True
        if kind.endswith(_ENDS):
            self.finished = True


def _told(error: Raw, raw: bytes) -> StreamFailure:
    try:
        told = _error(error)
    except UNREADABLE:
        told = _Error()
    code, kind = text_of(told.code), text_of(told.type)
    limited = "rate_limit" in code or "rate_limit" in kind or code == "insufficient_quota"
    detail = f"{code or kind or 'error'}: {text_of(told.message)}"[:500]
    return StreamFailure(429 if limited else 502, "the provider failed", raw, detail=detail)
