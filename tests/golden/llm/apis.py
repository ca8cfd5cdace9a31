"""The chat APIs of the suite: a new one joins by one line in `APIS`."""

from collections.abc import Callable
from typing import Any

import msgspec

from tollhouse.wire.eventstream import frame as binary_frame
from tollhouse.wire.llm import CHAT, CODECS, CONVERSE, GENERATE, MESSAGES, RESPONSES
from tollhouse.wire.llm.codec import Codec
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.model import Answer, Part, Text, Thinking
from tollhouse.wire.sse import frame

__all__ = ["APIS", "Api"]

DONE = "[DONE]"


class Api:
    """One API. model: what to ask its provider for. choices: how many an answer may have. framed: one event's JSON as
    the stream has it. even: makes a whole answer what its stream can tell."""

    def __init__(
        self,
        dialect: Dialect,
        model: str,
        framed: Callable[[Any], bytes],
        *,
        choices: int = 1,
        even: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        self.dialect = dialect
        self.codec: Codec = CODECS[dialect.operation]
        self.model = model
        self.framed = framed
        self.choices = choices
        self.even = even

    def events(self, stream: bytes) -> list[tuple[bytes, bytes]]:
        return self.dialect.events(stream) if stream else []

    def told(self, stream: bytes) -> list[Any]:
        """A stream to read: each event's JSON, of a binary one under its name."""
        found: list[Any] = []
        for name, data in self.events(stream):
            value = DONE if data == DONE.encode() else msgspec.json.decode(data)
            found.append({name.decode(): value} if self.framed is _binary else value)
        return found


def _bare(event: Any) -> bytes:
    return frame(DONE.encode() if event == DONE else msgspec.json.encode(event))


def _named(event: Any) -> bytes:
    return frame(msgspec.json.encode(event), event["type"].encode())


def _binary(event: Any) -> bytes:
    ((name, value),) = event.items()
    return binary_frame(name.encode(), msgspec.json.encode(value))


def _joined(answer: Answer) -> None:
    """Neighbouring texts are one in a stream that has no borders between them, and thoughts up to their proof. A source
    that its events name again and again is cited once."""
    for choice in answer.choices:
        parts: list[Part] = []
        for part in choice.parts:
            last = parts[-1] if parts else None
            if isinstance(part, Text) and isinstance(last, Text):
                last.text += part.text
            elif isinstance(part, Thinking) and isinstance(last, Thinking) and last.signature is None:
                last.text += part.text
                last.signature = part.signature
            else:
                parts.append(part)
            if isinstance(part, Text) and part.citations:
                part.citations = [c for n, c in enumerate(part.citations) if c not in part.citations[:n]]
        choice.parts = parts


APIS: dict[str, Api] = {
    "chat": Api(CHAT, "gpt-x", _bare, choices=2),
    "responses": Api(RESPONSES, "gpt-x", _named),
    "messages": Api(MESSAGES, "claude-x", _named),
    "generate": Api(GENERATE, "gemini-x", _bare, choices=2, even=_joined),
    "converse": Api(CONVERSE, "us.anthropic.claude-sonnet-4-5-20250929-v1:0", _binary),
}
