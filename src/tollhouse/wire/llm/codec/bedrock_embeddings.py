"""Embeddings of Bedrock's models and the neutral model: the bodies that InvokeModel takes, which are the models' own.

Titan embeds one text a call, and counts its tokens. Cohere's models embed up to 96, want to know what for (a document,
where the caller does not say), and tell no usage in the body. Only version 4 has a choice of dimensions.
"""

from typing import Any

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Lost, misread
from tollhouse.wire.llm.codec.embeddings import EmbeddingCodec, lose
from tollhouse.wire.llm.codec.reading import encoded, put_back
from tollhouse.wire.llm.embedding import Embedded, Embedding, inexpressible
from tollhouse.wire.llm.usage import count_in

__all__ = ["CohereEmbedCodec", "TitanEmbedCodec"]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode

_SECOND = "titan-embed-text-v2"
_FOURTH = "embed-v4"
_WORDS = {
    "query": "search_query",
    "document": "search_document",
    "classification": "classification",
    "clustering": "clustering",
}


class _Titan(msgspec.Struct, gc=False):
    embedding: list[float]
    tokens: Raw = msgspec.field(default=_ABSENT, name="inputTextTokenCount")


class _Floats(msgspec.Struct, gc=False):
    vectors: list[list[float]] = msgspec.field(name="float")


class _ByType(msgspec.Struct, gc=False):
    embeddings: _Floats


class _Cohere(msgspec.Struct, gc=False):
    embeddings: list[list[float]]


_titan = msgspec.json.Decoder(_Titan).decode
_cohere = msgspec.json.Decoder(_Cohere).decode
_cohere_by_type = msgspec.json.Decoder(_ByType).decode


class TitanEmbedCodec(EmbeddingCodec):
    """Amazon Titan Text Embeddings."""

    __slots__ = ()

    name = "titan_embed"

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        texts = chat.texts()
        if len(texts) != 1:
            raise inexpressible(f"input: Titan embeds one text at a time, and here are {len(texts)}")
        second = _SECOND in model
        body: dict[str, Any] = {"inputText": texts[0]}
        if second and chat.dimensions is not None:
            body["dimensions"] = chat.dimensions
        lose(chat, lost, purpose=chat.purpose, title=True, user=True, dimensions=not second)
        put_back(body, chat.extra, False, lost, "")
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        try:
            told = _titan(body)
        except UNREADABLE:
            raise misread("answer.embedding", "is not an embedding") from None
        tokens = count_in(told.tokens)
        return Embedded([told.embedding], usage=None if tokens is None else Usage(tokens))


class CohereEmbedCodec(EmbeddingCodec):
    """Cohere Embed, versions 3 and 4."""

    __slots__ = ()

    name = "cohere_embed"

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        fourth = _FOURTH in model
        word = _WORDS.get(chat.purpose)
        body: dict[str, Any] = {"texts": chat.texts(), "input_type": word or _WORDS["document"]}
        if fourth and chat.dimensions is not None:
            body["output_dimension"] = chat.dimensions
        unsaid = "" if word is not None else chat.purpose
        lose(chat, lost, purpose=unsaid, title=True, user=True, dimensions=not fourth)
        put_back(body, chat.extra, False, lost, "")
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        try:
            return Embedded(_cohere(body).embeddings)
        except UNREADABLE:
            pass
        try:
            return Embedded(_cohere_by_type(body).embeddings.vectors)
        except UNREADABLE:
            raise misread("answer.embeddings", "is not a list of embeddings") from None
