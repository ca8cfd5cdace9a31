"""Azure's own clients, at both of its APIs, with providers at both of them and one of another kind."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.fixtures.gateway import Gateway, serving
from tests.fixtures.provider import Provider, provider

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null}}
authenticate: {{keys: [{{name: ci, key: gateway-key}}]}}
providers:
  dated: {{kind: azure, base_url: "http://127.0.0.1:{port}", api_key: k, api_version: 2024-10-21}}
  current: {{kind: azure, base_url: "http://127.0.0.1:{port}", api_key: k}}
  claude: {{kind: anthropic, base_url: "http://127.0.0.1:{port}", api_key: k}}
models:
  - {{name: dated, targets: [{{provider: dated, model: my-deployment}}]}}
  - {{name: current, targets: [{{provider: current, model: my-deployment}}]}}
  - {{name: claude, targets: [{{provider: claude, model: claude-sonnet}}]}}
"""
TARGETS = {
    "dated": "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21",
    "current": "/openai/v1/chat/completions",
    "claude": "/v1/messages",
}
SAID = "Hello there, how are you?"
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[tuple[Gateway, Provider]]:
    async with provider() as models, serving(CONFIG.format(port=models.port), where) as gateway:
        yield gateway, models


def clients(url: str) -> list[openai.OpenAI]:
    """Of the older API, whose paths name deployments, and of the v1 API."""
    return [
        openai.AzureOpenAI(azure_endpoint=url, api_key="gateway-key", api_version="2024-10-21", max_retries=0),
        openai.OpenAI(base_url=url + "/openai/v1", api_key="gateway-key", max_retries=0),
    ]


def chatted(client: openai.OpenAI, model: str) -> list[str]:
    whole = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=50)
    stream = client.chat.completions.create(model=model, messages=MESSAGES, max_tokens=50, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    return [whole.choices[0].message.content or "", "".join(pieces)]


def responded(client: openai.OpenAI, model: str) -> list[str]:
    whole = client.responses.create(model=model, input="hi", max_output_tokens=50)
    with client.responses.stream(model=model, input="hi", max_output_tokens=50) as stream:
        last = list(stream)[-1]
    assert last.type == "response.completed"
    return [whole.output_text, last.response.output_text]


async def test_both_clients_are_answered_by_every_provider(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, models):
        for client in clients(gateway.url):
            for model, target in TARGETS.items():
                models.seen.clear()
                assert await asyncio.to_thread(chatted, client, model) == [SAID, SAID]
                assert [one.target for one in models.seen] == [target, target]
                assert "gateway-key" not in str(models.seen)
            assert await asyncio.to_thread(responded, client, "claude") == [SAID, SAID]
            client.close()


async def test_refusals_are_in_their_words(tmp_path: Path) -> None:
    async with running(tmp_path) as (gateway, _):
        for client in clients(gateway.url):
            with pytest.raises(openai.NotFoundError) as caught:
                await asyncio.to_thread(chatted, client, "nobody")
            assert caught.value.code == "model_not_found"
            stranger = client.with_options(api_key="wrong")
            with pytest.raises(openai.AuthenticationError):
                await asyncio.to_thread(chatted, stranger, "claude")
            client.close()
