"""Embeddings at every kind of provider over real sockets: who is asked at which address, with what, and what comes
back."""

from typing import Any

import msgspec
import pytest
from tests.unit.backends.calls import call, world
from tests.unit.backends.providers.scripted import ask, fields_of, named_by_path, said, script
from tests.unit.backends.providers.test_bedrock import ACCESS, SECRET, bedrock, is_signed
from tests.unit.backends.providers.test_vertex import BASE, CLAUDE, vertex
from tests.unit.net.upstreams import upstream

from tollhouse.backends.sigv4 import AWSCredentials
from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm import EMBEDDINGS, GEMINI, GENERATE

pytestmark = pytest.mark.anyio

_, BATCH, EMBED, COUNT = GEMINI
VECTOR = [0.5, -1.0, 2.0]
GOOGLES = {"embeddings": [{"values": VECTOR}, {"values": VECTOR}]}
USED = {"usageMetadata": {"promptTokenCount": 3}}
OPENAIS = {
    "object": "list", "model": "m-1", "usage": {"prompt_tokens": 5, "total_tokens": 5},
    "data": [{"object": "embedding", "index": n, "embedding": VECTOR} for n in (1, 0)],
}  # fmt: skip


def told(body: bytes) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode(body)
    return found


async def test_gemini() -> None:
    play, asked = script(said({**GOOGLES, **USED}), said(GOOGLES))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", kind="gemini", base_url=up.url("/v1beta"), api_key="k")
        one = call({"input": ["a", "bcdef"], "dimensions": 3}, dialect=EMBEDDINGS)
        reply = await ask(made, "gemini-embedding-001", asked=one)
        assert told(reply.first) == {
            "object": "list", "model": "gemini-embedding-001", "usage": {"prompt_tokens": 3, "total_tokens": 3},
            "data": [{"object": "embedding", "index": n, "embedding": VECTOR} for n in range(2)],
        }  # fmt: skip
        assert one.context.usage == Usage(3)
        assert one.context.model_answered == "gemini-embedding-001"
        two = call({"input": ["a", "bcdef"]}, dialect=EMBEDDINGS)
        assert (await ask(made, "gemini-embedding-001", asked=two)).status == 200
        assert two.context.usage == Usage(3, estimated=True)
    assert asked[0].target == "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    assert fields_of(asked[0]) == {
        "requests": [
            {"model": "models/gemini-embedding-001", "content": {"parts": [{"text": t}]}, "outputDimensionality": 3}
            for t in ("a", "bcdef")
        ]
    }


@pytest.mark.parametrize("kind", ["openai", "azure"])
async def test_google_s_own_callers_at_openai(kind: str) -> None:
    play, asked = script(said(OPENAIS))
    async with upstream(play) as up, world() as it:
        url = up.url("/v1") if kind == "openai" else up.url("").rstrip("/")
        made = it.provider("o", kind=kind, base_url=url, api_key="k")
        requests = [{"model": "models/x", "content": {"parts": [{"text": t}]}} for t in ("a", "b")]
        batch = named_by_path(BATCH, {"requests": requests}, "smart")
        reply = await ask(made, "text-embedding-3-small", asked=batch)
        assert told(reply.first)["embeddings"] == [{"values": VECTOR}, {"values": VECTOR}]
        assert batch.context.usage == Usage(5)
        assert fields_of(asked[0]) == {
            "model": "text-embedding-3-small", "input": ["a", "b"], "encoding_format": "float",
        }  # fmt: skip
    assert asked[0].target.endswith("/embeddings")
    play, asked = script(said({**OPENAIS, "data": OPENAIS["data"][:1]}))  # type: ignore[index]
    async with upstream(play) as up, world() as it:
        made = it.openai(up.url("/v1"))
        alone = named_by_path(EMBED, {"content": {"parts": [{"text": "a"}]}}, "smart")
        assert told((await ask(made, "m", asked=alone)).first)["embedding"] == {"values": VECTOR}
        named = {"content": {"parts": [{"text": "a"}]}, "taskType": "RETRIEVAL_QUERY"}
        with pytest.raises(Failure, match="taskType: query") as caught:
            await ask(made, "m", asked=named_by_path(EMBED, named, "smart"))
        assert (caught.value.status, caught.value.code) == (400, "not_expressible")


async def test_vertex() -> None:
    one, several = {"embedding": {"values": VECTOR}, **USED}, {**GOOGLES, **USED}
    predicted = {"predictions": [{"embeddings": {"values": VECTOR, "statistics": {"token_count": 2}}}] * 2}
    play, asked = script(said(one), said(several), said(predicted), said(several))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", **vertex(up.url("/")))
        for model, texts in (
            ("gemini-embedding-001", ["a"]), ("gemini-embedding-001", ["a", "b"]), ("text-embedding-005", ["a", "b"])
        ):  # fmt: skip
            asks = call({"input": texts, "dimensions": 3}, dialect=EMBEDDINGS)
            reply = await ask(made, model, asked=asks)
            assert [item["embedding"] for item in told(reply.first)["data"]] == [VECTOR] * len(texts)
            assert asks.context.usage == Usage(4 if model.startswith("text") else 3)
        requests = [{"content": {"parts": [{"text": t}]}, "taskType": "CLUSTERING"} for t in "ab"]
        own = named_by_path(BATCH, {"requests": requests}, "smart")
        assert len(told((await ask(made, "gemini-embedding-001", asked=own)).first)["embeddings"]) == 2
        for dialect in (EMBEDDINGS, BATCH, EMBED, GENERATE):
            assert made.answers(dialect.operation, True)
        with pytest.raises(Failure, match="make no embeddings") as caught:
            await ask(made, CLAUDE, asked=call({"input": "a"}, dialect=EMBEDDINGS))
        assert caught.value.code == "not_expressible"
        assert len(list(made.all_faces())) == 5
    assert [each.target for each in asked] == [
        f"{BASE}/google/models/{rest}"
        for rest in (
            "gemini-embedding-001:embedContent", "gemini-embedding-001:batchEmbedContents",
            "text-embedding-005:predict", "gemini-embedding-001:batchEmbedContents",
        )
    ]  # fmt: skip
    config = {"outputDimensionality": 3}
    content = {"content": {"parts": [{"text": "a"}]}}
    assert fields_of(asked[0]) == {**content, "embedContentConfig": config}
    assert fields_of(asked[2]) == {"instances": [{"content": "a"}, {"content": "b"}], "parameters": config}
    assert fields_of(asked[3])["requests"][0] == {**content, "embedContentConfig": {"taskType": "CLUSTERING"}}


async def test_bedrock() -> None:
    titan = {"embedding": VECTOR, "inputTextTokenCount": 2, "embeddingsByType": {"float": VECTOR}}
    cohere = {"id": "1", "embeddings": [VECTOR, VECTOR], "texts": ["a", "b"], "response_type": "embeddings_floats"}
    play, asked = script(said(titan), said(cohere))
    async with upstream(play) as up, world() as it:
        made = it.provider("aws", **bedrock(up.url("/base/")))
        one = call({"input": "a", "dimensions": 256}, dialect=EMBEDDINGS)
        reply = await ask(made, "amazon.titan-embed-text-v2:0", asked=one)
        assert [item["embedding"] for item in told(reply.first)["data"]] == [VECTOR]
        assert one.context.usage == Usage(2)
        two = call({"input": ["abcd", "b"]}, dialect=EMBEDDINGS)
        reply = await ask(made, "eu.cohere.embed-v4:0", asked=two)
        assert [item["embedding"] for item in told(reply.first)["data"]] == [VECTOR, VECTOR]
        assert two.context.usage == Usage(2, estimated=True)
        with pytest.raises(Failure, match="is not known to make embeddings") as caught:
            await ask(made, "anthropic.claude-x", asked=call({"input": "a"}, dialect=EMBEDDINGS))
        assert caught.value.code == "not_expressible"
    assert [each.target for each in asked] == [
        "/base/model/amazon.titan-embed-text-v2%3A0/invoke", "/base/model/eu.cohere.embed-v4%3A0/invoke",
    ]  # fmt: skip
    assert [fields_of(each) for each in asked] == [
        {"inputText": "a", "dimensions": 256}, {"texts": ["abcd", "b"], "input_type": "search_document"},
    ]  # fmt: skip
    assert all(is_signed(each, AWSCredentials(ACCESS, SECRET)) for each in asked)


async def test_what_they_refuse() -> None:
    error = {"error": {"code": 400, "message": "too long for the model", "status": "INVALID_ARGUMENT"}}
    play, _ = script(said(error, 400))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", kind="gemini", base_url=up.url("/v1beta"), api_key="k")
        reply = await ask(made, "m", asked=call({"input": "a"}, dialect=EMBEDDINGS))
        assert (reply.status, told(reply.first)["error"]["message"]) == (400, "too long for the model")
    play, _ = script(said({"message": "Malformed input request"}, 400))
    async with upstream(play) as up, world() as it:
        made = it.provider("aws", **bedrock(up.url("/")))
        alone = named_by_path(EMBED, {"content": {"parts": [{"text": "a"}]}}, "smart")
        reply = await ask(made, "cohere.embed-english-v3", asked=alone)
        assert told(reply.first)["error"]["message"] == "Malformed input request"


@pytest.mark.parametrize("answer", [b"<html>", b'{"embeddings":[]}', b'{"error":"no"}'])
async def test_garbage(answer: bytes) -> None:
    play, _ = script(said(answer))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", kind="gemini", base_url=up.url("/v1beta"), api_key="k")
        with pytest.raises(Failure) as caught:
            await ask(made, "m", asked=call({"input": "a"}, dialect=EMBEDDINGS))
        assert (caught.value.status, caught.value.retry) == (502, True)
    event = b"data: {}\n\n"
    play, _ = script(said(event, headers=b"content-type: text/event-stream\r\n"))
    async with upstream(play) as up, world() as it:
        made = it.provider("g", kind="gemini", base_url=up.url("/v1beta"), api_key="k")
        with pytest.raises(Failure, match="do not come as a stream"):
            await ask(made, "m", asked=call({"input": "a"}, dialect=EMBEDDINGS))


async def test_who_makes_none() -> None:
    async with world() as it:
        made = it.provider("c", kind="anthropic", api_key="k")
        assert made.answers("messages", True)
        assert not made.answers("embeddings", True)
        assert not it.provider("l", kind="local").answers("embed", True)
        with pytest.raises(KeyError):
            made.face(call({"input": "a"}, dialect=EMBEDDINGS), "m")


async def test_a_list_is_read_once_whoever_is_asked() -> None:
    """A target whose API cannot say it gives way to one whose can."""
    play, asked = script(said(OPENAIS))
    async with upstream(play) as up, world() as it:
        it.provider("aws", **bedrock(up.url("/")))
        it.openai(up.url("/v1"), "o")
        titan = {"provider": "aws", "model": "amazon.titan-embed-text-v2:0", "weight": 1}
        pool = it.pool(targets=[titan, {"provider": "o", "model": "m", "weight": 0}])
        batch = {"requests": [{"content": {"parts": [{"text": t}]}} for t in "ab"]}
        asks = named_by_path(BATCH, batch, "smart")
        assert len(told((await pool.handle(asks)).first)["embeddings"]) == 2
        assert asks.context.attempts == 1
    assert [each.target for each in asked] == ["/v1/embeddings"]


async def test_counting_where_nobody_can() -> None:
    async with world() as it:
        it.openai("http://127.0.0.1:1/v1")
        asks = named_by_path(COUNT, {"contents": [{"parts": [{"text": "hello there"}]}]}, "smart")
        reply = await it.pool().handle(asks)
        assert told(reply.first) == {"totalTokens": 7}
        assert (b"x-tollhouse-estimated", b"true") in reply.headers
        assert asks.context.usage == Usage()
