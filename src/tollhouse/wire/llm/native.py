"""What a provider alone has, passed on unread: files, batches, fine-tuning, and whatever comes next. Errors of the
gateway are in the words of the provider's other APIs.
"""

from collections.abc import Mapping

import msgspec

from tollhouse.core.call import Usage
from tollhouse.wire.llm.anthropic import AnthropicMessages
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.openai_chat import OpenAIDialect

__all__ = ["NATIVE", "NATIVE_ANTHROPIC"]


class _Unread(Dialect):
    __slots__ = ()

    operation = "native"
    streams = False

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        return None, ""

    def estimate(self, body: bytes, fields: Mapping[str, msgspec.Raw]) -> int:
        return 0

    def with_system(self, fields: dict[str, msgspec.Raw], system: object) -> None:
        """There is no place that is known."""


class _Native(_Unread, OpenAIDialect):
    __slots__ = ()


class _NativeAnthropic(_Unread, AnthropicMessages):
    __slots__ = ()


NATIVE = _Native()
"""Any path of a provider that is not Anthropic."""

NATIVE_ANTHROPIC = _NativeAnthropic()
