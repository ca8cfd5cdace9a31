"""OpenAI embeddings and the neutral model; and what the codecs of embeddings have in common.

`input` is a text, a list of texts, tokens or a list of tokens; `encoding_format` says whether a vector comes as numbers
or as base64 of 32-bit floats. `input_type` is not OpenAI's own: servers of its API take it as what the vector is for.
"""

import sys
from array import array
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.llm.codec import Codec, Lost, StreamDecoder, StreamEncoder, misread, unreadable
from tollhouse.wire.llm.codec.reading import Fields, encoded, put_back
from tollhouse.wire.llm.embedding import Embedded, Embedding
from tollhouse.wire.llm.model import Event
from tollhouse.wire.llm.usage import ChatUsage, counted

__all__ = ["EmbeddingCodec", "OpenAIEmbeddingsCodec", "lose"]

Raw = msgspec.Raw
_ABSENT = Raw()  # a union with Raw does not decode

_encode = msgspec.json.Encoder().encode
_text = msgspec.json.Decoder(str).decode
_texts = msgspec.json.Decoder(list[str]).decode
_tokens = msgspec.json.Decoder(list[int]).decode
_token_lists = msgspec.json.Decoder(list[list[int]]).decode
_usage = msgspec.json.Decoder(ChatUsage, strict=False).decode
_FLOAT32 = 4  # bytes
_TOKENS = "input: tokens are of one model's own vocabulary, and the provider's API takes text; send the text itself"
_PURPOSES = {
    "query": "query",
    "search_query": "query",
    "document": "document",
    "passage": "document",
    "search_document": "document",
    "classification": "classification",
    "clustering": "clustering",
}
_PLACES = {"embed": "taskType", "embed_batch": "taskType"}


class _Item(msgspec.Struct, gc=False):
    embedding: list[float] | str
    index: int | None = None


class _Answer(msgspec.Struct, gc=False):
    data: list[_Item]
    model: str | None = None
    usage: Raw = _ABSENT


class EmbeddingCodec(Codec):
    """One API of embeddings, which never streams."""

    __slots__ = ()

    kind = "embeddings"

    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Embedding:
        raise NotImplementedError  # nobody asks the gateway in one of a provider's own

    def encode_answer(self, answer: Embedded, chat: Embedding) -> bytes:
        raise NotImplementedError

    def decoder(self) -> StreamDecoder:
        return _NoStream()

    def encoder(self, chat: Embedding) -> StreamEncoder:
        return _NoStream()


class _NoStream:
    """What a provider streams is no answer to it."""

    __slots__ = ()

    finished = False
    uncounted = ""
    stopped = False

    def read(self, name: bytes, data: bytes) -> list[Event]:
        raise unreadable("embeddings do not come as a stream")

    def write(self, events: list[Event]) -> bytes:
        return b""

    def end(self) -> bytes:
        return b""


class OpenAIEmbeddingsCodec(EmbeddingCodec):
    """`POST /v1/embeddings`."""

    __slots__ = ()

    name = "embeddings"
    quiet: ClassVar[Mapping[str, tuple[bytes, ...]]] = {"stream": (b"false",)}

    def decode(self, fields: dict[str, Raw], *, model: str, stream: bool) -> Embedding:
        f = Fields(fields)
        f.raw("model")
        asked = Embedding(self.name, model, [])
        raw = f.raw("input")
        if raw is None:
            f.fail("input", "is missing: it must be a string, or a list of strings or tokens")
        _read_input(f, raw, asked)
        asked.dimensions = f.integer("dimensions")
        if asked.dimensions is not None and asked.dimensions < 1:
            f.fail("dimensions", "must be at least 1")
        asked.encoding = f.text("encoding_format") or ""
        if asked.encoding not in ("", "float", "base64"):
            f.fail("encoding_format", "must be float or base64")
        asked.user = f.text("user")
        purpose = f.peek_text("input_type") if f.is_text("input_type") else None
        if purpose in _PURPOSES:
            f.text("input_type")
            asked.purpose = _PURPOSES[purpose]
        asked.extra = f.rest()
        return asked

    def encode(self, chat: Embedding, lost: Lost, *, model: str, max_output: int) -> dict[str, Raw]:
        body: dict[str, Any] = {"model": model, "input": chat.texts(), "encoding_format": "float"}
        if chat.dimensions is not None:
            body["dimensions"] = chat.dimensions
        if chat.user is not None:
            body["user"] = chat.user
        lose(chat, lost, purpose=chat.purpose, title=True)
        put_back(body, chat.extra, chat.dialect == self.name, lost, "")
        return encoded(body)

    def decode_answer(self, body: bytes) -> Embedded:
        try:
            told = _answer(body)
            items = told.data
            if all(item.index is not None for item in items):
                items = sorted(items, key=lambda item: item.index or 0)
            vectors = [_vector(item.embedding) for item in items]
        except (*UNREADABLE, ValueError):
            raise misread("answer.data", "is not a list of embeddings") from None
        return Embedded(vectors, told.model or "", counted(_usage, told.usage))

    def encode_answer(self, answer: Embedded, chat: Embedding) -> bytes:
        packed = chat.encoding == "base64"
        data = [
            {"object": "embedding", "index": n, "embedding": _packed(vector) if packed else vector}
            for n, vector in enumerate(answer.vectors)
        ]
        used = answer.usage.total if answer.usage is not None else 0
        usage = {"prompt_tokens": used, "total_tokens": used}
        return _encode({"object": "list", "data": data, "model": answer.model, "usage": usage})


_answer = msgspec.json.Decoder(_Answer).decode


def lose(
    chat: Embedding, lost: Lost, *, purpose: str = "", title: bool = False, user: bool = False, dimensions: bool = False
) -> None:
    """Put down what an API has no word for. purpose: the one that it cannot say."""
    for place in chat.unsaid:
        lost.add(place)
    if purpose:
        lost.add(f"{_PLACES.get(chat.dialect, 'input_type')}: {purpose}")
    if title and chat.title is not None:
        lost.add("title")
    if user and chat.user is not None:
        lost.add("user")
    if dimensions and chat.dimensions is not None:
        lost.add("dimensions")


def _read_input(f: Fields, raw: Raw, asked: Embedding) -> None:
    first = bytes(raw)[:1]
    try:
        asked.inputs = [_text(raw)] if first == b'"' else _texts(raw)
    except UNREADABLE:
        for decode in (_tokens, _token_lists):
            try:
                tokens = decode(raw)
            except UNREADABLE:
                continue
            asked.untranslatable = _TOKENS
            asked.inputs = [""] * (len(tokens) if decode is _token_lists else 1)
            return
        f.fail("input", "must be a string, or a list of strings or tokens")
    if not asked.inputs:
        f.fail("input", "must not be empty")


def _vector(told: list[float] | str) -> list[float]:
    """Raises ValueError for what is not base64 of 32-bit floats."""
    if not isinstance(told, str):
        return told
    data = a2b_base64(told, strict_mode=True)
    if len(data) % _FLOAT32:
        raise ValueError("a part of a number")
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def _packed(vector: list[float]) -> str:
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return b2a_base64(numbers.tobytes(), newline=False).decode("ascii")
