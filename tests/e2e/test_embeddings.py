"""Embeddings and Gemini's other routes through a running gateway: the OpenAI SDK and Google's against upstreams that
speak each provider's wire form, a rerank by hand, and what becomes of a key in a query."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import openai
import pytest
from google import genai
from google.genai import types as google
from tests.e2e.test_operations import json_answer
from tests.fixtures.gateway import Gateway
from tests.unit.net.upstreams import Peer, upstream

pytestmark = pytest.mark.anyio

CALLER = "caller-secret-0123"
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
ledger: sqlite:tollhouse.db
providers:
  openai: {{kind: openai, base_url: "{url}/v1", api_key: upstream-secret}}
  gemini: {{kind: gemini, base_url: "{url}/v1beta", api_key: upstream-secret}}
  vertex: {{kind: vertex, base_url: "{url}", project: p-1, api_key: upstream-secret}}
  bedrock:
    kind: bedrock
    base_url: "{url}"
    region: eu-central-1
    auth: {{access_key_id: AKIAIOSFODNN7EXAMPLE, secret_access_key: upstream-secret}}
models:
  - {{name: openai, targets: [{{provider: openai, model: text-embedding-3-small}}]}}
  - {{name: gemini, aliases: [gemini-embedding-001], targets: [{{provider: gemini, model: gemini-embedding-001}}]}}
  - {{name: vertex, targets: [{{provider: vertex, model: gemini-embedding-001}}]}}
  - {{name: older, targets: [{{provider: vertex, model: text-embedding-005}}]}}
  - {{name: titan, targets: [{{provider: bedrock, model: "amazon.titan-embed-text-v2:0"}}]}}
  - {{name: cohere, targets: [{{provider: bedrock, model: "cohere.embed-v4:0"}}]}}
  - {{name: hidden, targets: [{{provider: openai, model: m}}]}}
authenticate: {{keys: [{{name: ci, key: {caller}, user: ci-bot, org: platform}}]}}
authorize: {{rules: [{{deny: 'llm.model == "hidden"'}}]}}
prices: [{{provider: openai, model: flexible, tier: flex, input: 1, output: 2}}]
telemetry: {{access_log: {{path: access.log}}}}
"""
VECTOR = [0.5, -1.25, 3.0]
VALUES = {"values": VECTOR}
NAMES = ("gemini-embedding-001", "text-embedding-005")
GOOGLE = "/v1/projects/p-1/locations/global/publishers/google/models/"
USED = {"usageMetadata": {"promptTokenCount": 9, "totalTokenCount": 9}}


def answered(target: str, body: Any) -> Any:
    """What each provider says: as many vectors as it was asked for."""
    match target.rsplit(":", 1)[-1].rsplit("/", 1)[-1]:
        case "embeddings":
            texts = body["input"] if isinstance(body["input"], list) else [body["input"]]
            items = [{"object": "embedding", "index": n, "embedding": VECTOR} for n in range(len(texts))]
            return {"object": "list", "data": items, "model": body["model"], "usage": {"prompt_tokens": 5}}
        case "batchEmbedContents":
            return {"embeddings": [VALUES for _ in body["requests"]], **USED}
        case "embedContent":
            return {"embedding": VALUES, **USED}
        case "predict":
            told = {**VALUES, "statistics": {"token_count": 4, "truncated": False}}
            return {"predictions": [{"embeddings": told} for _ in body["instances"]]}
        case "invoke" if "titan" in target:
            return {"embedding": VECTOR, "inputTextTokenCount": 3}
        case "invoke":
            return {"id": "1", "embeddings": [VECTOR for _ in body["texts"]], "response_type": "embeddings_floats"}
        case "countTokens":
            return {"totalTokens": 42}
        case "rerank":
            results = [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]
            meta = {
                "api_version": {"version": "2"},
                "billed_units": {"search_units": 1},
                "tokens": {"input_tokens": 12},
            }
            return {"id": "r", "results": results, "meta": meta}
    return None


class Up:
    """What was asked last, and every head that came."""

    def __init__(self) -> None:
        self.target = ""
        self.body: Any = None
        self.heads: list[bytes] = []

    async def play(self, peer: Peer) -> None:
        while True:
            head, body = await peer.request()
            self.heads.append(head)
            self.target = head.split(b" ")[1].decode()
            self.body = json.loads(body)
            answer = answered(self.target, self.body)
            missing = {"error": {"code": 404, "message": "no such path", "status": "NOT_FOUND"}}
            await peer.send(json_answer(missing, 404) if answer is None else json_answer(answer))


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[tuple[Gateway, Up]]:
    up = Up()
    async with upstream(up.play) as server:
        gateway = Gateway(CONFIG.format(url=server.url("").rstrip("/"), caller=CALLER), where)
        await anyio.to_thread.run_sync(gateway.start)
        try:
            yield gateway, up
        finally:
            await anyio.to_thread.run_sync(gateway.stop)
    assert "Traceback" not in gateway.text()


def googles(gateway: Gateway) -> Any:
    return genai.Client(api_key=CALLER, http_options=google.HttpOptions(base_url=gateway.url, timeout=30_000)).aio


async def test_openais_sdk_at_every_provider(tmp_path: Path) -> None:
    sent = {
        "openai": "/v1/embeddings",
        "gemini": f"/v1beta/models/{NAMES[0]}:batchEmbedContents",
        "vertex": f"{GOOGLE}{NAMES[0]}:batchEmbedContents",
        "older": f"{GOOGLE}{NAMES[1]}:predict",
        "cohere": "/model/cohere.embed-v4%3A0/invoke",
    }
    async with (
        running(tmp_path) as (gateway, up),
        openai.AsyncOpenAI(base_url=gateway.url + "/v1", api_key=CALLER, max_retries=0) as client,
    ):
        for model, target in sent.items():
            # The SDK asks for base64 and unpacks it, unless it is told otherwise.
            made = await client.embeddings.create(model=model, input=["one", "two"], dimensions=256)
            assert [item.embedding for item in made.data] == [VECTOR, VECTOR]
            assert up.target == target
            plain = await client.embeddings.create(model=model, input=["one", "two"], encoding_format="float")
            assert [item.embedding for item in plain.data] == [VECTOR, VECTOR]
        for model, target in (("titan", "/model/amazon.titan-embed-text-v2%3A0/invoke"), ("vertex", "embedContent")):
            alone = await client.embeddings.create(model=model, input="one")
            assert [item.embedding for item in alone.data] == [VECTOR]
            assert alone.usage.prompt_tokens in (3, 9)
            assert up.target.endswith(target)
        assert up.body == {"content": {"parts": [{"text": "one"}]}}
        assert (await client.embeddings.create(model="openai", input=[1, 2, 3])).data[0].embedding == VECTOR
        for model in ("gemini", "older", "titan", "cohere"):
            with pytest.raises(openai.BadRequestError, match="input: tokens"):
                await client.embeddings.create(model=model, input=[[1, 2, 3]])
        with pytest.raises(openai.BadRequestError, match="Titan embeds one text"):
            await client.embeddings.create(model="titan", input=["one", "two"])
        with pytest.raises(openai.BadRequestError, match="user"):
            await client.embeddings.create(model="gemini", input="one", user="u")
        records = await anyio.to_thread.run_sync(gateway.records, 19)
    used = {(r["model_asked"], r["input"], r["estimated"]) for r in records if r["status"] == 200}
    assert used == {
        ("openai", 5, 0), ("gemini", 9, 0), ("vertex", 9, 0), ("older", 8, 0), ("titan", 3, 0), ("cohere", 2, 1),
    }  # fmt: skip
    assert all(CALLER.encode() not in head for head in up.heads)


async def test_googles_sdk(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, up):
        client = googles(gateway)
        config = google.EmbedContentConfig(output_dimensionality=256)
        for model in (NAMES[0], "openai", "vertex", "older", "cohere"):
            made = await client.models.embed_content(model=model, contents=["one", "two"], config=config)
            assert [each.values for each in made.embeddings] == [VECTOR, VECTOR]
        assert up.body == {"texts": ["one", "two"], "input_type": "search_document", "output_dimension": 256}
        query = google.EmbedContentConfig(task_type="RETRIEVAL_QUERY")
        await client.models.embed_content(model="cohere", contents="one", config=query)
        assert up.body == {"texts": ["one"], "input_type": "search_query"}
        with pytest.raises(genai.errors.ClientError, match="taskType: query"):
            await client.models.embed_content(model="openai", contents="one", config=query)

        counted = await client.models.count_tokens(model="gemini", contents="hello there")
        assert (counted.total_tokens, up.target) == (42, f"/v1beta/models/{NAMES[0]}:countTokens")
        up.target = ""
        counted = await client.models.count_tokens(model="openai", contents="hello there")
        assert counted.total_tokens == 7
        assert counted.sdk_http_response.headers["x-tollhouse-estimated"] == "true"
        assert up.target == ""  # nobody was asked

        names = [model.name async for model in await client.models.list(config={"page_size": 4})]
        listed = ("cohere", "gemini", NAMES[0], "older", "openai", "titan", "vertex")
        assert names == [f"models/{name}" for name in listed]
        one = await client.models.get(model="gemini")
        assert (one.name, "embedContent" in one.supported_actions) == ("models/gemini", True)
        with pytest.raises(genai.errors.ClientError, match="is not there") as caught:
            await client.models.get(model="hidden")
        assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


async def test_a_key_in_a_query_goes_nowhere(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, up), httpx.AsyncClient(base_url=gateway.url) as client:
        body = {"content": {"parts": [{"text": "one"}]}}
        for path in ("/v1beta/models", "/v1/models", "/v1beta/models/gemini"):
            assert (await client.get(path, params={"key": CALLER})).status_code == 200
            assert (await client.get(path, params={"key": "wrong-secret"})).status_code == 401
            assert (await client.get(path)).status_code == 401
        for version in ("v1beta", "v1"):
            asked = await client.post(f"/{version}/models/gemini:embedContent?key={CALLER}&alt=json", json=body)
            assert asked.json()["embedding"] == VALUES
        for path in ("/v1/embeddings", "/v1/chat/completions", "/v1/messages"):
            assert (await client.post(path, params={"key": CALLER}, json={"model": "gemini"})).status_code == 401
        missing = await client.get("/v1beta/nothing", params={"key": CALLER})
        assert missing.status_code == 404
        await anyio.to_thread.run_sync(gateway.records, 2)
        metrics = (await httpx.AsyncClient().get(gateway.metrics_url + "/metrics")).text
    log = (tmp_path / "access.log").read_text() + gateway.text()
    assert '"query":"alt=json"' in log
    for kept in (log, metrics, b"".join(up.heads).decode()):
        assert CALLER not in kept
        assert "wrong-secret" not in kept


async def test_a_rerank_in_coheres_form(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, up), httpx.AsyncClient(base_url=gateway.url) as client:
        asked = {"model": "openai", "query": "q", "documents": ["a", "b"], "top_n": 2, "max_tokens_per_doc": 100}
        headers = {"authorization": f"bearer {CALLER}"}
        for path in ("/v2/rerank", "/v1/rerank", "/rerank"):
            ranked = await client.post(path, json=asked, headers=headers)
            assert [result["index"] for result in ranked.json()["results"]] == [1, 0]
            assert up.body == {**asked, "model": "text-embedding-3-small"}
        refused = await client.post("/v2/rerank", json={**asked, "model": "gemini"}, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_operation")
        records = await anyio.to_thread.run_sync(gateway.records, 4)
    assert {(r["operation"], r["input"]) for r in records if r["status"] == 200} == {("rerank", 12)}
