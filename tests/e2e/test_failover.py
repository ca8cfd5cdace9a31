"""One running gateway whose providers fail: what its callers see of it, and what its operator does."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gateway import Gateway, free_port, serving, until
from tests.fixtures.provider import Provider, provider
from tests.fixtures.wire import Answer, once

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: 127.0.0.1:0}}
telemetry: {{access_log: {{path: access.log}}}}
providers:
  a: {{kind: openai, base_url: "http://127.0.0.1:{a}/v1"}}
  b: {{kind: openai, base_url: "http://127.0.0.1:{b}/v1"}}
  c: {{kind: openai, base_url: "http://127.0.0.1:{c}/v1"}}
  claude: {{kind: anthropic, base_url: "http://127.0.0.1:{c}", api_key: k}}
  gone: {{kind: openai, base_url: "http://127.0.0.1:{gone}/v1"}}
models:
  - name: three
    aliases: [trio]
    targets: [{{provider: a, model: ok}}, {{provider: b, model: ok}}, {{provider: c, model: ok}}]
  - name: chain
    targets: [{{provider: gone, model: ok}}]
    fallback: [{{provider: a, model: "500"}}, {{provider: claude, model: ok, notice: true}}]
  - name: broken
    targets: [{{provider: a, model: drop}}, {{provider: b, model: garbage}}]
  - name: shapes
    targets:
      - {{provider: b, model: tools, when: llm.tools}}
      - {{provider: c, model: org, when: 'request.headers["x-org"] == "acme"'}}
      - {{provider: a, model: plain}}
  - name: watched
    targets: [{{provider: c, model: ok}}, {{provider: gone, model: ok}}]
    health: {{check: {{path: /models, interval: 50ms, unhealthy: 1}}}}
"""


@dataclass
class Running:
    gateway: Gateway
    a: Provider
    b: Provider
    c: Provider

    async def ask(self, model: str, path: str = "/v1/chat/completions", **fields: Any) -> Answer:
        headers = {"content-type": "application/json", **fields.pop("headers", {})}
        body = {"model": model, "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
        return await once(
            self.gateway.url, "POST", path, json.dumps(body).encode(), {"content-type": "application/json", **headers}
        )


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        a, b, c = [await stack.enter_async_context(provider()) for _ in range(3)]
        config = CONFIG.format(a=a.port, b=b.port, c=c.port, gone=free_port())
        yield Running(await stack.enter_async_context(serving(config, where)), a, b, c)


async def test_failures_that_callers_do_not_see(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        # One of three dies under load.
        answered: Counter[int] = Counter()
        killed = asyncio.Event()

        async def client() -> None:
            for n in range(15):
                answered[(await it.ask("three")).status] += 1
                if n == 4 and not killed.is_set():
                    killed.set()
                    it.b.kill()

        await asyncio.gather(*(client() for _ in range(10)))
        assert answered == {200: 150}
        assert min(len(it.a.seen), len(it.c.seen)) > 20

        # The chain, each step named.
        found = await it.ask("chain")
        assert found.status == 200
        assert found.headers["x-tollhouse-attempts"] == "gone/ok, a/500, claude/ok"
        assert found.headers["x-tollhouse-fallback"] == "claude/ok"
        assert found.json()["choices"][0]["message"]["content"] == "Hello there, how are you?"
        found = await it.ask("chain")
        assert found.headers["x-tollhouse-attempts"] == "a/500, claude/ok"  # nobody asks who is gone

        # What is no answer is no answer.
        found = await it.ask("broken")
        assert found.status == 502
        assert found.json()["error"]["type"] == "server_error"

        # Conditions.
        for fields, model in (
            ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
            ({"headers": {"x-org": "acme"}}, "org"),
            ({}, "plain"),
        ):
            found = await it.ask("shapes", **fields)
            if model != "tools":  # b is dead
                assert found.json()["model"] == f"{model}-2026"
            else:
                assert found.status == 502

        lines = [line for line in it.gateway.lines() if line.get("fallback")]
        await until(lambda: [line for line in it.gateway.lines() if line.get("fallback")])
        lines = [line for line in it.gateway.lines() if line.get("fallback")]
        assert (lines[0]["fallback"], lines[0]["retries"]) == ("claude/ok", 2)


async def test_what_the_operator_sees_of_it(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        await it.ask("chain")
        found = await it.ask("trio")
        assert found.status == 200
        text = it.gateway.metrics()
        for backend, why in (("gone", "connect"), ("a", "502")):
            assert f'tollhouse_retries_total{{route="chat",backend="{backend}",reason="{why}"}} 1' in text
        assert 'gen_ai_request_model="three"' in text
        assert "trio" not in text
        listed = await once(it.gateway.url, "GET", "/v1/models", None, {})
        assert {"three", "trio"} <= {model["id"] for model in listed.json()["data"]}
        await until(lambda: len(it.gateway.lines()) >= 3)
        line = it.gateway.lines()[0]
        assert line["tried"] == "gone/ok, a/500, claude/ok"
        # Checks run, and stop with the configuration that has them.
        await until(lambda: [one for one in it.c.seen if one.target == "/v1/models"])
        await it.gateway.change(it.gateway.config.read_text().replace("interval: 50ms", "interval: 1h"))
        await asyncio.sleep(0.2)
        before = sum(one.target == "/v1/models" for one in it.c.seen)
        await asyncio.sleep(0.3)
        assert sum(one.target == "/v1/models" for one in it.c.seen) == before
