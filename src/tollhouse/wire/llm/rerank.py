"""Rerank: `POST /rerank`, in the form that Cohere's second version, Jina, Voyage, vLLM and others share: `query` and
`documents` in, `results` with `index` and `relevance_score` out, whole.

Usage is `usage.total_tokens` (Jina, Voyage, vLLM), or `meta.tokens` (Cohere, which bills by search and may leave it
out).
"""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.dialect import StreamReader
from tollhouse.wire.llm.openai_chat import ChatReader, OpenAIDialect
from tollhouse.wire.llm.usage import Count
from tollhouse.wire.members import Names

__all__ = ["Rerank"]


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: Count | None = None
    total_tokens: Count | None = None


_Number = Annotated[float, msgspec.Meta(ge=0, lt=1 << 32)]


class _Tokens(msgspec.Struct, gc=False):
    input_tokens: _Number | None = None
    output_tokens: _Number | None = None


class _Meta(msgspec.Struct, gc=False):
    tokens: _Tokens | None = None
    billed_units: _Tokens | None = None


class _Answer(msgspec.Struct, gc=False):
    model: str | None = None
    usage: _Usage | None = None
    meta: _Meta | None = None


_answer = msgspec.json.Decoder(_Answer, strict=False).decode


class Rerank(OpenAIDialect):
    """`POST /v1/rerank` and `/v2/rerank`."""

    __slots__ = ()

    operation = "rerank"
    path = b"/rerank"
    streams = False
    acted_on = Names(
        "model", "query", "documents",
        usual=("top_n", "top_k", "return_documents", "max_tokens_per_doc", "max_chunks_per_doc", "truncation"),
    )  # fmt: skip

    def output_bound(self, fields: Mapping[str, msgspec.Raw]) -> int:
        return 0

    def said(self, answer: bytes) -> int:
        return 0

    def answer(self, body: bytes) -> tuple[Usage | None, str]:
        try:
            answer = _answer(body)
        except UNREADABLE:
            return None, ""
        return _counted(answer), answer.model or ""

    def reader(self, *, strip: bool) -> StreamReader:
        return ChatReader(strip)  # a provider that streams an answer nobody asked to stream


def _counted(answer: _Answer) -> Usage | None:
    usage, meta = answer.usage, answer.meta
    if usage is not None:
        tokens = usage.total_tokens if usage.total_tokens is not None else usage.prompt_tokens
        return None if tokens is None else Usage(tokens)
    for told in (None, None) if meta is None else (meta.tokens, meta.billed_units):
        if told is not None and told.input_tokens is not None:
            return Usage(int(told.input_tokens), int(told.output_tokens or 0))
    return None
