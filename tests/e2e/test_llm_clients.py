"""The OpenAI and Anthropic SDKs through a running gateway, against a provider that misbehaves when asked to."""

import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anthropic
import anyio
import openai
import pytest
from tests.fixtures.gateway import Gateway
from tests.fixtures.provider import WORDS, Provider, provider

pytestmark = pytest.mark.anyio

TEXT = "".join(WORDS)
CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
ledger: sqlite:tollhouse.db
providers:
  one: {{kind: openai, base_url: http://127.0.0.1:{port}/v1, api_key: upstream-secret}}
  two: {{kind: anthropic, base_url: http://127.0.0.1:{port}, api_key: upstream-secret}}
  dead: {{kind: openai, base_url: http://127.0.0.1:{closed}/v1}}
models:
  - {{name: smart, targets: [{{provider: one, model: ok}}]}}
  - {{name: "one/*", targets: [{{provider: one, model: "*"}}], timeout: {{total: 3s, first_event: 2s, idle: 2s}}}}
  - {{name: claude, targets: [{{provider: two, model: ok}}]}}
  - {{name: "two/*", targets: [{{provider: two, model: "*"}}]}}
  - {{name: down, targets: [{{provider: dead}}]}}
  - name: rescued
    targets: [{{provider: dead}}]
    fallback: [{{provider: one, model: ok, notice: true}}]
authenticate:
  keys: [{{name: ci, key: caller-secret, user: ci-bot, org: platform}}]
authorize:
  rules: [{{deny: 'llm.model == "one/secret"'}}]
telemetry: {{access_log: {{path: access.log}}}}
"""


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@pytest.fixture
async def upstream(anyio_backend: Any) -> AsyncIterator[Provider]:
    async with provider() as running:
        yield running


@pytest.fixture
async def running(upstream: Provider, tmp_path: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway(CONFIG.format(port=upstream.port, closed=closed_port()), tmp_path)
    await anyio.to_thread.run_sync(gateway.start)
    try:
        yield gateway
    finally:
        await anyio.to_thread.run_sync(gateway.stop)


@pytest.fixture
async def chat(running: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="caller-secret", max_retries=0) as client:
        yield client


@pytest.fixture
async def messages(running: Gateway) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=running.url, api_key="caller-secret", max_retries=0) as client:
        yield client


ASK: Any = [{"role": "user", "content": "hi"}]


async def test_openai_unary_stream_embeddings_and_models(
    chat: openai.AsyncOpenAI, upstream: Provider, running: Gateway
) -> None:
    answer = await chat.chat.completions.create(model="smart", messages=ASK)
    assert answer.choices[0].message.content == TEXT
    assert answer.usage is not None
    assert answer.usage.total_tokens == 15
    seen = upstream.seen[-1]
    assert seen.body["model"] == "ok"
    assert seen.headers["authorization"] == "Bearer upstream-secret"

    stream = await chat.chat.completions.create(model="smart", messages=ASK, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == TEXT
    assert all(c.choices for c in chunks), "the usage chunk that nobody asked for was not taken out"
    assert upstream.seen[-1].body["stream_options"] == {"include_usage": True}

    stream = await chat.chat.completions.create(
        model="smart", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6

    embeddings = await chat.embeddings.create(model="smart", input="hello", encoding_format="float")
    assert embeddings.data[0].embedding == [0.5, 0.25]
    assert "smart" in [model.id async for model in chat.models.list()]

    records = await anyio.to_thread.run_sync(running.records, 4)
    assert [(r["input"], r["output"]) for r in records] == [(9, 6), (9, 6), (9, 6), (4, 0)]
    assert {r["org"] for r in records} == {"platform"}
    assert {r["outcome"] for r in records} == {"ok"}


async def test_anthropic_unary_and_stream(
    messages: anthropic.AsyncAnthropic, upstream: Provider, running: Gateway
) -> None:
    answer = await messages.messages.create(model="claude", messages=ASK, max_tokens=64)
    assert answer.content[0].text == TEXT  # type: ignore[union-attr]
    assert upstream.seen[-1].headers["x-api-key"] == "upstream-secret"
    assert "caller-secret" not in str(upstream.seen[-1].headers)
    async with messages.messages.stream(model="claude", messages=ASK, max_tokens=64) as stream:
        assert "".join([text async for text in stream.text_stream]) == TEXT
        final = await stream.get_final_message()
        assert final.usage.output_tokens == 6
    records = await anyio.to_thread.run_sync(running.records, 2)
    assert [(r["input"], r["cache_read"], r["output"]) for r in records] == [(7, 2, 6), (7, 2, 6)]


async def test_errors_come_in_the_dialect_that_was_asked(
    chat: openai.AsyncOpenAI, messages: anthropic.AsyncAnthropic, running: Gateway
) -> None:
    with pytest.raises(openai.NotFoundError, match="smart") as unknown:
        await chat.chat.completions.create(model="smrt", messages=ASK)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(anthropic.NotFoundError, match="claude"):
        await messages.messages.create(model="claud", messages=ASK, max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="seed"):
        await chat.chat.completions.create(model="claude", messages=ASK, seed=7)
    with pytest.raises(openai.BadRequestError, match="/v1/messages"):
        await chat.embeddings.create(model="claude", input="x")
    with pytest.raises(openai.PermissionDeniedError):
        await chat.chat.completions.create(model="one/secret", messages=ASK)
    with pytest.raises(openai.RateLimitError):
        await chat.chat.completions.create(model="one/429", messages=ASK)
    with pytest.raises(openai.APIStatusError) as down:
        await chat.chat.completions.create(model="down", messages=ASK)
    assert down.value.status_code in (502, 503)
    assert down.value.response.headers["x-tollhouse-reason"] in ("UpstreamFailure", "NoHealthyBackend")
    for mode in ("500", "garbage", "drop", "401"):
        with pytest.raises(openai.APIStatusError) as failed:
            await chat.chat.completions.create(model=f"one/{mode}", messages=ASK)
        assert failed.value.status_code in (502, 503), mode
        assert "upstream-secret" not in failed.value.response.text
    stranger = openai.AsyncOpenAI(base_url=running.url + "/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        await stranger.chat.completions.create(model="smart", messages=ASK)
    other = anthropic.AsyncAnthropic(base_url=running.url, api_key="wrong", max_retries=0)
    with pytest.raises(anthropic.AuthenticationError):
        await other.messages.create(model="claude", messages=ASK, max_tokens=1)
    await stranger.close()
    await other.close()
    for path in ("/v1/chat/completions", "/v1/messages"):
        status, body = await anyio.to_thread.run_sync(
            lambda path=path: running.ask("POST", path, b'{"model":', {"authorization": "Bearer caller-secret"})
        )
        assert status == 400
        assert b"error" in body
        assert b"Traceback" not in body


async def test_a_hanging_provider_is_a_timeout(chat: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as late:
        await chat.chat.completions.create(model="one/hang", messages=ASK)
    assert late.value.status_code == 504
    assert late.value.response.headers["x-tollhouse-reason"] == "Timeout"


async def test_a_stream_that_dies_says_so_and_is_recorded(
    chat: openai.AsyncOpenAI, messages: anthropic.AsyncAnthropic, running: Gateway
) -> None:
    stream = await chat.chat.completions.create(model="one/cut", messages=ASK, stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    with pytest.raises(anthropic.APIError):
        async with messages.messages.stream(model="two/cut", messages=ASK, max_tokens=9) as events:
            async for _ in events:
                pass
    records = await anyio.to_thread.run_sync(running.records, 2)
    assert {r["outcome"] for r in records} == {"cut"}
    assert all(r["estimated"] for r in records)


async def test_a_client_that_leaves_a_stream_cancels_the_provider_and_is_counted(
    upstream: Provider, chat: openai.AsyncOpenAI, running: Gateway
) -> None:
    upstream.pace = 0.2
    stream = await chat.chat.completions.create(model="smart", messages=ASK, stream=True)
    async for _ in stream:
        break
    await stream.close()
    with anyio.fail_after(10):
        while not upstream.gone:
            await anyio.sleep(0.02)
    (record,) = await anyio.to_thread.run_sync(running.records, 1)
    assert record["outcome"] == "client_gone"
    assert record["estimated"]
    assert record["output"] > 0


async def test_the_fallback_answers_and_says_so(chat: openai.AsyncOpenAI) -> None:
    raw = await chat.chat.completions.with_raw_response.create(model="rescued", messages=ASK)
    assert raw.parse().choices[0].message.content == TEXT
    assert raw.headers["x-tollhouse-fallback"] == "one/ok"


async def test_metrics_and_the_access_log_tell_what_happened(chat: openai.AsyncOpenAI, running: Gateway) -> None:
    await chat.chat.completions.create(model="smart", messages=ASK)
    with pytest.raises(openai.NotFoundError):
        await chat.chat.completions.create(model="nope", messages=ASK)
    text = await anyio.to_thread.run_sync(running.metrics)
    assert re.search(r'tollhouse_requests_total\{[^}]*backend="one"[^}]*status="200"[^}]*\} 1', text)
    assert re.search(r'tollhouse_requests_total\{[^}]*reason="NotFound"[^}]*\} 1', text)
    assert re.search(r'tollhouse_gen_ai_client_token_usage_sum\{gen_ai_token_type="input"[^}]*\} 9', text)
    with anyio.fail_after(10):
        while len(running.lines()) < 2:
            await anyio.sleep(0.05)
    first, second = running.lines()
    assert first["status"] == 200
    assert first["user"] == "ci-bot"
    assert first["key"] == "ci"
    assert (first["model"], first["model_answered"], first["tokens_in"]) == ("smart", "ok-2026", 9)
    assert second["reason"] == "NotFound"
    assert "caller-secret" not in str(running.lines())
