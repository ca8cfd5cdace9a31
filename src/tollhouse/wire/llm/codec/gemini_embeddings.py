"""Google's embeddings and the neutral model: `embedContent` and `batchEmbedContents` of the Gemini API, the same two at
Vertex AI, and Vertex's older `predict`.

The three forms differ in where they say what a vector is for: beside the content (Gemini), in an `embedContentConfig`
(Vertex), or in the instance, with the dimensions in `parameters` (predict). A batch of the Gemini API names the model
again in each request. Usage is `usageMetadata`, or the `token_count` of each instance.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from tollhouse.core.call import Usage
from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Lost, misread
from tollhouse.wire.llm.codec.embeddings import EmbeddingCodec, lose
from tollhouse.wire.llm.codec.reading import Fields, encoded, put_back
from tollhouse.wire.llm.embedding import Embedded, Embedding, inexpressible
from tollhouse.wire.llm.gemini import resource
from tollhouse.wire.llm.usage import GeminiUsage, count_in, counted

__all__ = [
    "GeminiBatchEmbedCodec",
    "GeminiEmbedCodec",
    "VertexBatchEmbedCodec",
    "VertexEmbedCodec",
    "VertexPredictCodec",
]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode

_encode = msgspec.json.Encoder().encode
_usage = msgspec.json.Decoder(GeminiUsage, strict=False).decode
_SPELLINGS = {
    "embed_content_config": "embedContentConfig",
    "output_dimensionality": "outputDimensionality",
    "task_type": "taskType",
}
_WORDS = {"query": "RETRIEVAL_QUERY", "document": "RETRIEVAL_DOCUMENT", "similarity": "SEMANTIC_SIMILARITY"}
_PURPOSES = {word: purpose for purpose, word in _WORDS.items()}
_UNSPECIFIED = "TASK_TYPE_UNSPECIFIED"
_ONE = "input: this model is asked for one text at a time, and here are {n}"


class _Vector(msgspec.Struct, gc=False):
    values: list[float]


class _Embedded(msgspec.Struct, gc=False):
    embedding: _Vector
    usage: Raw = msgspec.field(default=_ABSENT, name="usageMetadata")


class _BatchEmbedded(msgspec.Struct, gc=False):
    embeddings: list[_Vector]
    usage: Raw = msgspec.field(default=_ABSENT, name="usageMetadata")


class _Statistics(msgspec.Struct, gc=False):
    token_count: Raw = _ABSENT


class _Predicted(msgspec.Struct, gc=False):
    values: list[float]
    statistics: _Statistics | None = None


class _Prediction(msgspec.Struct, gc=False):
    embeddings: _Predicted


class _Predictions(msgspec.Struct, gc=False):
    predictions: list[_Prediction]


_embedded = msgspec.json.Decoder(_Embedded).decode
_batch_embedded = msgspec.json.Decoder(_BatchEmbedded).decode
_predictions = msgspec.json.Decoder(_Predictions).decode


class _GoogleCodec(EmbeddingCodec):
    """What the forms have in common."""

    __slots__ = ()

    quiet: ClassVar[Mapping[str, tuple[bytes, ...]]] = {"autoTruncate": (b"true",)}


class GeminiEmbedCodec(_GoogleCodec):
    """`models/{model}:embedContent`."""

    __slots__ = ()

    name = "embed"

    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Embedding:
        f = _opened(Fields(fields))
        f.raw("model")
        asked = Embedding(self.name, model, [])
        _read_request(f, asked)
        asked.extra = f.rest()
        return asked

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        body = {"model": resource(model), **_request(_alone(chat)), **_options(chat)}
        _lose(chat, lost, body, chat.dialect == self.name)
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        return _read_one(body)

    def encode_answer(self, answer: Embedded, chat: Embedding) -> bytes:
        vectors = answer.vectors[0] if answer.vectors else []
        return _encode({"embedding": {"values": vectors}, **_told(answer)})


class GeminiBatchEmbedCodec(_GoogleCodec):
    """`models/{model}:batchEmbedContents`."""

    __slots__ = ()

    name = "embed_batch"

    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Embedding:
        f = _opened(Fields(fields))
        f.raw("model")
        requests = f.children("requests")
        if not requests:
            f.fail("requests", "is missing: it must be a list of requests" if requests is None else "must not be empty")
        asked = Embedding(self.name, model, [])
        for n, request in enumerate(map(_opened, requests)):
            request.raw("model")
            one = Embedding(self.name, model, [])
            _read_request(request, one)
            if n == 0:
                asked = one
            else:
                _together(asked, one, request.where)
            for name in request.rest() or {}:
                asked.unsaid.append(request.where + name)
        asked.extra = f.rest()
        return asked

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        name = resource(model)
        options = _options(chat)
        body = {"requests": [{"model": name, **_request(text), **options} for text in chat.texts()]}
        _lose(chat, lost, body, chat.dialect == self.name)
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        return _read_batch(body)

    def encode_answer(self, answer: Embedded, chat: Embedding) -> bytes:
        return _encode({"embeddings": [{"values": vector} for vector in answer.vectors], **_told(answer)})


class VertexEmbedCodec(_GoogleCodec):
    """Vertex AI's `embedContent`, of Gemini's models. One text."""

    __slots__ = ()

    name = "vertex_embed"

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        body = {**_request(_alone(chat)), **_config(chat)}
        _lose(chat, lost, body, False)
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        return _read_one(body)


class VertexBatchEmbedCodec(_GoogleCodec):
    """Vertex AI's `batchEmbedContents`, of Gemini's models. Several texts."""

    __slots__ = ()

    name = "vertex_embed_batch"

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        config = _config(chat)
        body = {"requests": [{**_request(text), **config} for text in chat.texts()]}
        _lose(chat, lost, body, False)
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        return _read_batch(body)


class VertexPredictCodec(_GoogleCodec):
    """Vertex AI's `predict`, of the text-embedding models."""

    __slots__ = ()

    name = "predict"

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        about: dict[str, Any] = {}
        if chat.purpose:
            about["task_type"] = _word(chat.purpose)
        if chat.title is not None:
            about["title"] = chat.title
        body: dict[str, Any] = {"instances": [{"content": text, **about} for text in chat.texts()]}
        if chat.dimensions is not None:
            body["parameters"] = {"outputDimensionality": chat.dimensions}
        _lose(chat, lost, body, False)
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        try:
            told = [each.embeddings for each in _predictions(body).predictions]
        except UNREADABLE:
            raise misread("answer.predictions", "is not a list of embeddings") from None
        counts = [count_in(each.statistics.token_count) for each in told if each.statistics is not None]
        known = [count for count in counts if count is not None]
        usage = Usage(sum(known)) if told and len(known) == len(told) else None
        return Embedded([each.values for each in told], usage=usage)


# ---- reading


def _opened(f: Fields) -> Fields:
    """The same with the names that are known in their usual spelling."""
    return f.renamed(lambda name: _SPELLINGS.get(name, name))


def _read_request(f: Fields, asked: Embedding) -> None:
    """One content, and what its vector is for."""
    content = f.need_child("content", "a content with parts")
    content.text("role")
    parts = content.children("parts")
    if not parts:
        content.fail("parts", "is missing: it must be a list of parts with text")
    texts = []
    for part in parts:
        text = part.text("text")
        if text is None or part.rest():
            asked.untranslatable = f"{part.where.rstrip('.')}: only text can be asked of another API"
        texts.append(text or "")
    asked.inputs = ["".join(texts)]
    for config in (f, _below(f, "embedContentConfig")):
        if config is None:
            continue
        word = config.text("taskType")
        if word and word != _UNSPECIFIED:
            asked.purpose = _PURPOSES.get(word.upper(), word.lower())
        asked.title = config.text("title") or asked.title
        dimensions = config.integer("outputDimensionality")
        if dimensions is not None:
            if dimensions < 1:
                config.fail("outputDimensionality", "must be at least 1")
            asked.dimensions = dimensions
        if config is not f:
            f.leave("embedContentConfig", config)


def _below(f: Fields, name: str) -> Fields | None:
    found = f.child(name)
    return None if found is None else _opened(found)


def _together(asked: Embedding, one: Embedding, where: str) -> None:
    """A further request of a batch. What it wants otherwise than the first can be said to nobody else."""
    asked.inputs += one.inputs
    asked.untranslatable = asked.untranslatable or one.untranslatable
    for name, field in (("taskType", "purpose"), ("title", "title"), ("outputDimensionality", "dimensions")):
        if getattr(one, field) != getattr(asked, field):
            asked.unsaid.append(f"{where}{name}: another than the first one's")


def _read_one(body: bytes) -> Embedded:
    try:
        told = _embedded(body)
    except UNREADABLE:
        raise misread("answer.embedding", "is not an embedding") from None
    return Embedded([told.embedding.values], usage=counted(_usage, told.usage))


def _read_batch(body: bytes) -> Embedded:
    try:
        told = _batch_embedded(body)
    except UNREADABLE:
        raise misread("answer.embeddings", "is not a list of embeddings") from None
    return Embedded([each.values for each in told.embeddings], usage=counted(_usage, told.usage))


# ---- writing


def _alone(chat: Embedding) -> str:
    texts = chat.texts()
    if len(texts) != 1:
        raise inexpressible(_ONE.format(n=len(texts)))
    return texts[0]


def _request(text: str) -> dict[str, Any]:
    return {"content": {"parts": [{"text": text}]}}


def _options(chat: Embedding) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if chat.purpose:
        options["taskType"] = _word(chat.purpose)
    if chat.title is not None:
        options["title"] = chat.title
    if chat.dimensions is not None:
        options["outputDimensionality"] = chat.dimensions
    return options


def _config(chat: Embedding) -> dict[str, Any]:
    options = _options(chat)
    return {"embedContentConfig": options} if options else {}


def _word(purpose: str) -> str:
    return _WORDS.get(purpose, purpose.upper())


def _lose(chat: Embedding, lost: Lost, body: dict[str, Any], own: bool) -> None:
    lose(chat, lost, user=True)
    put_back(body, chat.extra, own, lost, "")


def _told(answer: Embedded) -> Mapping[str, Any]:
    used = answer.usage
    return {} if used is None else {"usageMetadata": {"promptTokenCount": used.total, "totalTokenCount": used.total}}
