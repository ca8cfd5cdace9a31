"""OpenAI embeddings: `POST /embeddings`, answered whole. Usage is `prompt_tokens` and `total_tokens`."""

from collections.abc import Mapping

import msgspec

from tollhouse.wire.llm.dialect import StreamReader
from tollhouse.wire.llm.openai_chat import ChatReader, OpenAIDialect

__all__ = ["Embeddings"]


class Embeddings(OpenAIDialect):
    """`POST /v1/embeddings`. There is no output to reserve for."""

    __slots__ = ()

    operation = "embeddings"
    path = b"/embeddings"
    streams = False

    def output_bound(self, fields: Mapping[str, msgspec.Raw]) -> int:
        return 0

    def said(self, answer: bytes) -> int:
        return 0

    def reader(self, *, strip: bool) -> StreamReader:
        return ChatReader(strip)  # a provider that streams an answer nobody asked to stream
