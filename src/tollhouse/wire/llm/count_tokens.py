"""Counting tokens: Anthropic's `POST /v1/messages/count_tokens`, a messages request that is answered with its size, and
Gemini's `:countTokens`.

Counting uses no tokens. Where no provider of the model can count in that API, the gateway answers with an estimate, and
says so.
"""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.anthropic import AnthropicMessages
from tollhouse.wire.llm.codec import Codec, invalid
from tollhouse.wire.llm.codec.anthropic import AnthropicCodec
from tollhouse.wire.llm.codec.gemini import GeminiCodec
from tollhouse.wire.llm.dialect import bytes_of
from tollhouse.wire.llm.gemini import GeminiCount
from tollhouse.wire.llm.model import (
    Chat,
    Json,
    Opaque,
    Part,
    Refusal,
    Text,
    Thinking,
    Tool,
    ToolCall,
    ToolResult,
)
from tollhouse.wire.llm.tokens import PICTURE, of_text

__all__ = ["CountTokens", "GeminiCountTokens"]

Raw = msgspec.Raw

Count = Callable[[str], int]
"""Tokens of a text."""

_MESSAGE = 4  # tokens that the frame of a message, a tool or a call takes
_LOOK = 1 << 16  # characters that are counted
_CODEC = AnthropicCodec()
_GEMINI = GeminiCodec()
_WHOLE = ("generateContentRequest", "generate_content_request")
_object = msgspec.json.Decoder(dict[str, Raw]).decode
_encode = msgspec.json.Encoder().encode


class _Answer(msgspec.Struct, gc=False):
    input_tokens: int


_answer = msgspec.json.Decoder(_Answer).decode


class CountTokens(AnthropicMessages):
    """`POST /v1/messages/count_tokens`."""

    __slots__ = ()

    operation = "count_tokens"
    path = b"/v1/messages/count_tokens"
    streams = False

    def estimate(self, body: bytes, fields: Mapping[str, Raw]) -> int:
        return 0

    def output_bound(self, fields: Mapping[str, Raw]) -> int:
        return 0

    def said(self, answer: bytes) -> int:
        return 0

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        try:
            _answer(body)
        except UNREADABLE:
            return None, ""
        return Usage(), ""

    def here(self, fields: dict[str, Raw], model: str, count: Count | None = None) -> bytes | None:
        return _encode({"input_tokens": _tokens(_CODEC, fields, model, count)})


class GeminiCountTokens(GeminiCount):
    """`models/{model}:countTokens`, of `contents` or of a whole `generateContentRequest`."""

    __slots__ = ()

    def here(self, fields: dict[str, Raw], model: str, count: Count | None = None) -> bytes | None:
        for name in _WHOLE:
            if name in fields and bytes(fields[name]) != b"null":
                try:
                    fields = _object(fields[name])
                except UNREADABLE:
                    raise invalid(name, "must be an object") from None
                break
        return _encode({"totalTokens": _tokens(_GEMINI, fields, model, count)})


def _tokens(codec: Codec, fields: dict[str, Raw], model: str, count: Count | None) -> int:
    size = _Size()
    size.chat(codec.decode(fields, model=model, stream=False))
    return size.tokens(count)


class _Size:
    """What a request says: its texts, and in tokens what is no text."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._more = 0

    def tokens(self, count: Count | None) -> int:
        if count is None:
            return self._more + sum(of_text(bytes_of(text)) for text in self._texts)
        # Of a long text the beginning is counted and the rest put in proportion.
        whole = "\n".join(self._texts)
        looked = whole[:_LOOK]
        return self._more + (count(looked) * len(whole) // len(looked) if looked else 0)

    def chat(self, chat: Chat) -> None:
        for message in chat.messages:
            self._more += _MESSAGE
            self._parts(message.parts)
        for tool in chat.tools or ():
            self._more += _MESSAGE
            if isinstance(tool, Tool):
                self._texts += (tool.name, tool.description or "", _shown(tool.parameters))
            else:
                self._texts.append(_shown(tool.value))

    def _parts(self, parts: Iterable[Part]) -> None:
        for part in parts:
            if isinstance(part, (Text, Thinking, Refusal)):
                self._texts.append(part.text)
            elif isinstance(part, ToolCall):
                self._more += _MESSAGE
                self._texts += (part.name, part.arguments)
            elif isinstance(part, ToolResult):
                self._more += _MESSAGE
                self._parts(part.parts)
            elif isinstance(part, (Json, Opaque)):
                self._texts.append(_shown(part.value))
            elif part.media.text:
                self._texts.append(part.media.text)
            else:
                self._more += PICTURE


def _shown(raw: Raw | None) -> str:
    return "" if raw is None else bytes(raw).decode("utf-8", "replace")
