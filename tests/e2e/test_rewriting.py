"""What a running gateway changes on the way, by rules in CEL: header fields of requests and answers, and fields of any
depth in requests to models."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gateway import Gateway, serving
from tests.fixtures.provider import Provider, provider
from tests.fixtures.service import Service, service
from tests.fixtures.wire import Answer, once

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null}}
authenticate:
  keys:
    - {{name: ci, key: key-of-ada, user: ada, org: platform}}
    - {{name: web, key: key-of-bob, user: bob, org: web}}
providers:
  one: {{kind: anthropic, base_url: "http://127.0.0.1:{port}", api_key: k}}
models: [{{name: smart, targets: [{{provider: one, model: ok}}]}}]
routes: [{{name: plain, path: /plain, to: "{url}"}}]
headers:
  request:
    - set: {{x-user: {{cel: principal.user}}}}
    - {{when: principal.org == "platform", set: {{anthropic-beta: platform-1}}}}
    - when: '"x-team" in request.headers'
      set: {{x-for: {{cel: 'request.headers["x-team"] + "/" + principal.org'}}}}
  response:
    set: {{x-model: {{cel: llm.model}}, x-org: {{cel: principal.org}}}}
transform:
  set: {{/metadata/user_id: {{cel: principal.user}}}}
  remove: [/tools/*/strict]
  defaults: {{/thinking/type: disabled}}
"""


@dataclass
class Running:
    gateway: Gateway
    provider: Provider
    service: Service

    async def get(self, key: str, **headers: str) -> Answer:
        sent = {"authorization": f"Bearer {key}", **{n.replace("_", "-"): v for n, v in headers.items()}}
        return await once(self.gateway.url, "GET", "/plain/x", None, sent)

    async def ask(self, key: str, **fields: Any) -> Answer:
        body = {"model": "smart", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return await once(self.gateway.url, "POST", "/v1/messages", json.dumps(body).encode(), headers)


@asynccontextmanager
async def running(where: Path) -> AsyncIterator[Running]:
    async with (
        provider() as models,
        service() as plain,
        serving(CONFIG.format(port=models.port, url=plain.url), where) as gateway,
    ):
        yield Running(gateway, models, plain)


async def test_a_service_is_told_who_calls(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        found = await it.get("key-of-ada", x_user="root", x_team="t")
        assert found.status == 200
        assert found.headers["x-org"] == "platform"
        assert "x-model" not in found.headers  # it is no model that was asked
        _, _, headers = it.service.requests[-1]
        told = dict(headers)
        assert (told["x-user"], told["x-for"]) == ("ada", "t/platform")
        await it.get("key-of-bob")
        assert dict(it.service.requests[-1][2])["x-user"] == "bob"
        assert (await it.get("key-of-nobody")).headers["x-org"] == ""  # a refusal, too


async def test_so_is_a_provider_that_reads_it(tmp_path: Path) -> None:
    async with running(tmp_path) as it:
        found = await it.ask("key-of-ada", metadata={"User_ID": "somebody"}, tools=[{"name": "f", "strict": True}])
        assert found.status == 200
        assert (found.headers["x-model"], found.headers["x-org"]) == ("smart", "platform")
        seen = it.provider.seen[-1]
        assert seen.headers["anthropic-beta"] == "platform-1"
        assert seen.body["metadata"] == {"user_id": "ada"}
        assert seen.body["tools"] == [{"name": "f"}]
        assert seen.body["thinking"] == {"type": "disabled"}
        await it.ask("key-of-bob", thinking={"type": "enabled", "budget_tokens": 1024})
        assert "anthropic-beta" not in it.provider.seen[-1].headers
        assert it.provider.seen[-1].body["thinking"] == {"type": "enabled", "budget_tokens": 1024}
        found = await it.ask("key-of-ada", metadata="mine")
        assert found.status == 400
        assert found.json()["error"]["message"].startswith("metadata: must be an object")
