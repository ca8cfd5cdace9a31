"""Codecs of embeddings: what each API says, what it cannot say, and that nothing is left out in silence."""

import struct
from base64 import b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CODECS, EMBEDDINGS
from tollhouse.wire.llm.codec import Codec, Lost
from tollhouse.wire.llm.codec.bedrock_embeddings import CohereEmbedCodec, TitanEmbedCodec
from tollhouse.wire.llm.codec.embeddings import OpenAIEmbeddingsCodec
from tollhouse.wire.llm.codec.gemini_embeddings import (
    GeminiBatchEmbedCodec,
    GeminiEmbedCodec,
    VertexBatchEmbedCodec,
    VertexEmbedCodec,
    VertexPredictCodec,
)
from tollhouse.wire.llm.embedding import Embedded, Embedding
from tollhouse.wire.llm.translate import Translation

OPENAI, EMBED, BATCH = OpenAIEmbeddingsCodec(), GeminiEmbedCodec(), GeminiBatchEmbedCodec()
TITAN, COHERE = TitanEmbedCodec(), CohereEmbedCodec()
VERTEX, VERTEX_BATCH, PREDICT = VertexEmbedCodec(), VertexBatchEmbedCodec(), VertexPredictCodec()
OUT = (OPENAI, EMBED, BATCH, VERTEX, VERTEX_BATCH, PREDICT, TITAN, COHERE)


def read(codec: Codec, body: Any) -> Embedding:
    fields = msgspec.json.decode(msgspec.json.encode(body), type=dict[str, msgspec.Raw])
    found = codec.decode(fields, model="m", stream=False)
    assert isinstance(found, Embedding)
    return found


def write(codec: Codec, asked: Embedding, model: str = "m", quiet: Codec = OPENAI) -> tuple[Any, list[str]]:
    lost = Lost(quiet.quiet)
    fields = codec.encode(asked, lost, model=model, max_output=1)
    return msgspec.json.decode(msgspec.json.encode(fields)), lost.places


def asked(*texts: str, **more: Any) -> Embedding:
    return Embedding("embeddings", "smart", list(texts), **more)


# ---- requests that are read
@pytest.mark.parametrize(
    ("body", "inputs"),
    [({"input": "a"}, ["a"]), ({"input": ["a", "b"]}, ["a", "b"]), ({"input": ""}, [""]), ({"input": ["é"]}, ["é"])],
)
def test_texts(body: dict[str, Any], inputs: list[str]) -> None:
    assert read(OPENAI, body).inputs == inputs


def test_all_that_openai_has() -> None:
    body = {
        "model": "smart", "input": ["a"], "dimensions": 256, "encoding_format": "base64", "user": "u",
        "input_type": "search_query", "further": 1,
    }  # fmt: skip
    found = read(OPENAI, body)
    assert (found.dimensions, found.encoding, found.user, found.purpose) == (256, "base64", "u", "query")
    assert list(found.extra or ()) == ["further"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input: is missing"),
        ({"input": None}, "input: is missing"),
        ({"input": []}, "input: must not be empty"),
        ({"input": 5}, "input: must be a string"),
        ({"input": ["a", 1]}, "input: must be a string"),
        ({"input": {"text": "a"}}, "input: must be a string"),
        ({"input": "a", "dimensions": 0}, "dimensions: must be at least 1"),
        ({"input": "a", "dimensions": "9"}, "dimensions: must be an integer"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format: must be float or base64"),
        ({"input": "a", "user": 1}, "user: must be a string"),
    ],
)
def test_what_is_no_request(body: dict[str, Any], message: str) -> None:
    with pytest.raises(Failure) as caught:
        read(OPENAI, body)
    assert caught.value.status == 400
    assert caught.value.message.startswith(message)


@pytest.mark.parametrize("tokens", [[1, 2, 3], [[1, 2], [3]]])
@pytest.mark.parametrize("codec", OUT[1:], ids=lambda codec: codec.name)
def test_tokens_are_of_one_vocabulary(codec: Codec, tokens: Any) -> None:
    found = read(OPENAI, {"input": tokens})
    with pytest.raises(Failure) as caught:
        write(codec, found)
    assert (caught.value.status, caught.value.code) == (400, "not_expressible")
    assert caught.value.message.startswith("input: tokens")


def test_one_content() -> None:
    body = {
        "content": {"role": "user", "parts": [{"text": "a"}, {"text": "b"}]}, "task_type": "RETRIEVAL_QUERY",
        "title": "t", "output_dimensionality": 9,
    }  # fmt: skip
    found = read(EMBED, body)
    assert (found.inputs, found.purpose, found.title, found.dimensions) == (["ab"], "query", "t", 9)
    body = {"content": {"parts": [{"text": "a"}]}, "embedContentConfig": {"taskType": "CODE_RETRIEVAL_QUERY"}}
    assert read(EMBED, body).purpose == "code_retrieval_query"
    body = {"content": {"parts": [{"text": "a"}]}, "taskType": "TASK_TYPE_UNSPECIFIED"}
    assert read(EMBED, body).purpose == ""


def request(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "models/smart", "content": {"parts": [{"text": text}]}, **more}


def test_a_batch() -> None:
    body = {"requests": [request("a", taskType="CLUSTERING"), request("b", taskType="CLUSTERING")]}
    found = read(BATCH, body)
    assert (found.inputs, found.purpose, found.unsaid) == (["a", "b"], "clustering", [])
    body = {"requests": [request("a", title="one", taskType="CLUSTERING"), request("b", outputDimensionality=5)]}
    assert write(OPENAI, read(BATCH, body), quiet=BATCH)[1] == [
        "requests[1].taskType: another than the first one's", "requests[1].title: another than the first one's",
        "requests[1].outputDimensionality: another than the first one's", "taskType: clustering", "title",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("codec", "body", "message"),
    [
        (EMBED, {}, "content: is missing"),
        (EMBED, {"content": {}}, "content.parts: is missing"),
        (EMBED, {"content": {"parts": [{"text": 1}]}}, "content.parts[0].text: must be a string"),
        (EMBED, {"content": {"parts": [{"text": "a"}]}, "outputDimensionality": 0}, "outputDimensionality: must be at"),
        (BATCH, {}, "requests: is missing"),
        (BATCH, {"requests": []}, "requests: must not be empty"),
        (BATCH, {"requests": [request("a"), {}]}, "requests[1].content: is missing"),
    ],
)
def test_what_is_no_request_of_google(codec: Codec, body: dict[str, Any], message: str) -> None:
    with pytest.raises(Failure) as caught:
        read(codec, body)
    assert caught.value.status == 400
    assert caught.value.message.startswith(message)


def test_a_picture_is_not_left_out() -> None:
    picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    body = {"requests": [request("a"), {"content": {"parts": [{"text": "b"}, picture]}}]}
    with pytest.raises(Failure, match=r"requests\[1\].content.parts\[1\]: only text") as caught:
        write(OPENAI, read(BATCH, body))
    assert caught.value.code == "not_expressible"


# ---- requests that are written
def test_to_openai() -> None:
    found = read(BATCH, {"requests": [request("a", outputDimensionality=9), request("b", outputDimensionality=9)]})
    assert write(OPENAI, found, "real") == (
        {"model": "real", "input": ["a", "b"], "encoding_format": "float", "dimensions": 9}, [],
    )  # fmt: skip


def test_to_gemini() -> None:
    body, lost = write(BATCH, asked("a", "b", dimensions=9, purpose="document", encoding="base64"), "gemini-embedding")
    options = {"taskType": "RETRIEVAL_DOCUMENT", "outputDimensionality": 9}
    name = "models/gemini-embedding"
    assert body == {"requests": [{"model": name, "content": {"parts": [{"text": t}]}, **options} for t in "ab"]}
    assert lost == []
    assert write(EMBED, asked("a"))[0] == {"model": "models/m", "content": {"parts": [{"text": "a"}]}}
    assert write(BATCH, asked("a", user="u"))[1] == ["user"]


def test_to_vertex() -> None:
    config = {"taskType": "CLUSTERING", "outputDimensionality": 9}
    content = {"content": {"parts": [{"text": "a"}]}}
    found = asked("a", dimensions=9, purpose="clustering")
    assert write(VERTEX, found) == ({**content, "embedContentConfig": config}, [])
    assert write(VERTEX_BATCH, found) == ({"requests": [{**content, "embedContentConfig": config}]}, [])
    assert write(VERTEX, asked("a"))[0] == content
    found.title = "t"
    instance = {"content": "a", "task_type": "CLUSTERING", "title": "t"}
    assert write(PREDICT, found) == ({"instances": [instance], "parameters": {"outputDimensionality": 9}}, [])
    assert write(PREDICT, asked("a", "b"))[0] == {"instances": [{"content": "a"}, {"content": "b"}]}


def test_to_titan() -> None:
    assert write(TITAN, asked("a", dimensions=256), "amazon.titan-embed-text-v2:0") == (
        {"inputText": "a", "dimensions": 256}, [],
    )  # fmt: skip
    assert write(TITAN, asked("a", dimensions=256), "amazon.titan-embed-text-v1") == (
        {"inputText": "a"}, ["dimensions"],
    )  # fmt: skip
    assert write(TITAN, asked("a", purpose="query", user="u"))[1] == ["input_type: query", "user"]


def test_to_cohere() -> None:
    third, fourth = "eu.cohere.embed-multilingual-v3", "cohere.embed-v4:0"
    assert write(COHERE, asked("a", "b"), third) == ({"texts": ["a", "b"], "input_type": "search_document"}, [])
    assert write(COHERE, asked("a", dimensions=512, purpose="query"), fourth) == (
        {"texts": ["a"], "input_type": "search_query", "output_dimension": 512}, [],
    )  # fmt: skip
    assert write(COHERE, asked("a", dimensions=512), third)[1] == ["dimensions"]
    found = read(EMBED, {"content": {"parts": [{"text": "a"}]}, "taskType": "FACT_VERIFICATION"})
    assert write(COHERE, found, fourth)[1] == ["taskType: fact_verification"]


@pytest.mark.parametrize("codec", [EMBED, VERTEX, TITAN], ids=lambda codec: codec.name)
def test_one_text_at_a_time(codec: Codec) -> None:
    with pytest.raises(Failure, match=r"input: .* at a time, and here are 2") as caught:
        write(codec, asked("a", "b"))
    assert caught.value.code == "not_expressible"


@pytest.mark.parametrize("codec", OUT[1:], ids=lambda codec: codec.name)
def test_what_only_one_api_has_is_told(codec: Codec) -> None:
    found = read(OPENAI, {"input": "a", "truncate_prompt_tokens": 5, "stream": False})
    assert "truncate_prompt_tokens" in write(codec, found)[1]
    assert "stream" not in write(codec, found)[1]


# ---- answers
VECTORS = [[0.5, -1.25, 3.0], [0.0, 1.0, 2.0]]


def values(*vectors: list[float]) -> list[dict[str, Any]]:
    return [{"values": vector} for vector in vectors]


USED = {"usageMetadata": {"promptTokenCount": 7, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 7}]}}
ITEMS = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(VECTORS)]
PREDICTED = [{"embeddings": {"values": v, "statistics": {"token_count": 3.0, "truncated": False}}} for v in VECTORS]
ANSWERS: list[tuple[Codec, dict[str, Any], Usage | None, str]] = [
    (OPENAI, {"data": ITEMS, "model": "m-1", "usage": {"prompt_tokens": 7, "total_tokens": 7}}, Usage(7), "m-1"),
    (OPENAI, {"data": ITEMS[::-1], "usage": None}, None, ""),
    (BATCH, {"embeddings": values(*VECTORS), **USED}, Usage(7), ""),
    (VERTEX_BATCH, {"embeddings": values(*VECTORS)}, None, ""),
    (PREDICT, {"predictions": PREDICTED, "metadata": {"billableCharacterCount": 9}}, Usage(6), ""),
    (COHERE, {"embeddings": VECTORS, "response_type": "embeddings_floats"}, None, ""),
    (COHERE, {"embeddings": {"float": VECTORS}, "response_type": "embeddings_by_type"}, None, ""),
]
ALONE: list[tuple[Codec, dict[str, Any], Usage | None]] = [
    (EMBED, {"embedding": {"values": VECTORS[0]}}, None),
    (VERTEX, {"embedding": {"values": VECTORS[0]}, **USED, "truncated": False}, Usage(7)),
    (TITAN, {"embedding": VECTORS[0], "inputTextTokenCount": 4, "embeddingsByType": {"float": VECTORS[0]}}, Usage(4)),
]


@pytest.mark.parametrize(("codec", "answer", "usage", "model"), ANSWERS)
def test_answers(codec: Codec, answer: dict[str, Any], usage: Usage | None, model: str) -> None:
    told = codec.decode_answer(msgspec.json.encode(answer))
    assert told == Embedded(VECTORS, model, usage)


@pytest.mark.parametrize(("codec", "answer", "usage"), ALONE)
def test_answers_of_one(codec: Codec, answer: dict[str, Any], usage: Usage | None) -> None:
    assert codec.decode_answer(msgspec.json.encode(answer)) == Embedded([VECTORS[0]], "", usage)


@pytest.mark.parametrize("count", [10**30, 1 << 32, -1, 1.5, "4", None])
def test_a_count_that_is_none_is_not_told(count: Any) -> None:
    titan = {"embedding": VECTORS[0], "inputTextTokenCount": count}
    predicted = {"predictions": [{"embeddings": {"values": VECTORS[0], "statistics": {"token_count": count}}}]}
    for codec, answer in ((TITAN, titan), (PREDICT, predicted)):
        assert codec.decode_answer(msgspec.json.encode(answer)) == Embedded([VECTORS[0]], "", None)


def test_vectors_as_base64() -> None:
    packed = b64encode(struct.pack("<3f", *VECTORS[0])).decode()
    body = {"data": [{"embedding": packed}], "model": "m"}
    assert OPENAI.decode_answer(msgspec.json.encode(body)).vectors == [VECTORS[0]]
    told = msgspec.json.decode(OPENAI.encode_answer(Embedded([VECTORS[0]], "m"), asked("a", encoding="base64")))
    assert told["data"] == [{"object": "embedding", "index": 0, "embedding": packed}]


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False)), max_size=4))
def test_base64_loses_nothing(vectors: list[list[float]]) -> None:
    for encoding in ("", "base64"):
        told = OPENAI.encode_answer(Embedded(vectors, "m"), asked("a", encoding=encoding))
        assert OPENAI.decode_answer(told).vectors == vectors


@pytest.mark.parametrize("codec", OUT, ids=lambda codec: codec.name)
@pytest.mark.parametrize(
    "answer",
    [
        b"", b"<html>", b"[]", b"{}", b'{"data":[{}]}', b'{"data":[{"embedding":"AAA"}]}', b'{"embeddings":[1]}',
        b'{"embedding":{"values":["a"]}}', b'{"predictions":[{}]}', b'{"data":[{"embedding":[NaN]}]}', b"\xff",
        b'{"embedding":null}', b'{"data":[{"embedding":"!!!!"}]}',
    ],
)  # fmt: skip
def test_what_is_no_answer(codec: Codec, answer: bytes) -> None:
    with pytest.raises(Failure) as caught:
        codec.decode_answer(answer)
    assert caught.value.status == 502


def test_a_stream_is_no_answer() -> None:
    decoder, encoder = OPENAI.decoder(), OPENAI.encoder(asked("a"))
    with pytest.raises(Failure) as caught:
        decoder.read(b"", b"{}")
    assert caught.value.status == 502
    assert (encoder.write([]), encoder.end()) == (b"", b"")
    reader = Translation(asked("a"), OPENAI, BATCH, 0).reader(EMBEDDINGS)
    assert reader.read(b"data: {}\n\n") == b""
    assert reader.failure is not None


# ---- from one API to another
texts = st.lists(st.text(max_size=20), min_size=1, max_size=3)
options = st.fixed_dictionaries(
    {},
    optional={
        "dimensions": st.integers(1, 4096),
        "purpose": st.sampled_from(["query", "document", "similarity", "clustering", "question_answering"]),
        "title": st.text(max_size=9),
    },
)


@given(texts, options)
def test_google_loses_nothing_that_it_can_say(inputs: list[str], more: dict[str, Any]) -> None:
    if more.get("title") == "":
        del more["title"]
    found = Embedding("embed_batch", "m", inputs, **more)
    body, lost = write(BATCH, found)
    assert lost == []
    assert read(BATCH, body) == found
    if len(inputs) == 1:
        alone = Embedding("embed", "m", inputs, **more)
        assert read(EMBED, write(EMBED, alone)[0]) == alone


@given(texts, st.none() | st.integers(1, 4096), st.none() | st.text(max_size=9))
def test_openai_loses_nothing_that_it_can_say(inputs: list[str], dimensions: int | None, user: str | None) -> None:
    found = Embedding("embeddings", "m", inputs, dimensions, "float", user)
    body, lost = write(OPENAI, found)
    assert (lost, read(OPENAI, body)) == ([], found)


def test_a_translation_counts_where_nobody_did() -> None:
    translation = Translation(asked("abcd", "efghi", encoding="float"), OPENAI, COHERE, 0)
    fields, lost = translation.request(model="cohere.embed-v4:0", max_output=1, lossy=False)
    assert (bytes(fields["texts"]), lost) == (b'["abcd","efghi"]', [])
    body, usage, model = translation.answer(msgspec.json.encode({"embeddings": VECTORS}))
    assert (usage, model) == (Usage(3, estimated=True), "cohere.embed-v4:0")
    told = msgspec.json.decode(body)
    assert told["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [item["embedding"] for item in told["data"]] == VECTORS


def test_as_many_vectors_as_texts() -> None:
    translation = Translation(asked("a"), OPENAI, BATCH, 0)
    translation.request(model="m", max_output=1, lossy=False)
    with pytest.raises(Failure, match="2 embeddings for 1 texts") as caught:
        translation.answer(msgspec.json.encode({"embeddings": values(*VECTORS)}))
    assert caught.value.status == 502


def test_what_google_is_told() -> None:
    found = read(BATCH, {"requests": [request("a"), request("b")]})
    translation = Translation(found, BATCH, OPENAI, 0)
    translation.request(model="m", max_output=1, lossy=False)
    body, usage, _ = translation.answer(msgspec.json.encode({"data": ITEMS, "usage": {"prompt_tokens": 7}}))
    told = {"promptTokenCount": 7, "totalTokenCount": 7}
    assert (msgspec.json.decode(body), usage) == (
        {"embeddings": values(*VECTORS), "usageMetadata": told}, Usage(7),
    )  # fmt: skip
    alone = read(EMBED, {"content": {"parts": [{"text": "a"}]}})
    body = EMBED.encode_answer(Embedded([VECTORS[0]], usage=Usage(7)), alone)
    assert msgspec.json.decode(body) == {"embedding": {"values": VECTORS[0]}, "usageMetadata": told}


def test_codecs_of_two_kinds_are_apart() -> None:
    kinds = {name: codec.kind for name, codec in CODECS.items()}
    assert {name for name, kind in kinds.items() if kind == "embeddings"} == {"embeddings", "embed", "embed_batch"}
