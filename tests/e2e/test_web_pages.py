"""Pages in a browser on the gateway's machine: they may not call what asks nobody for a credential, nor MCP at all."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fixtures.gateway import Gateway, serving
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.provider import Provider, provider
from tests.fixtures.wire import Answer, once

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:0, metrics: null, public_url: "https://AI.example.com"}}
providers: {{up: {{kind: openai, base_url: "http://127.0.0.1:{port}/v1", api_key: real-upstream-key}}}}
models: [{{name: smart, targets: [{{provider: up, model: ok}}]}}]
mcp: {{servers: {{py: {{url: "{mcp}"}}}}}}
routes: [{{name: pages, path: /pages/, to: "http://127.0.0.1:{port}"}}]
{more}
"""
CORS = 'cors: {origins: ["https://app.example.com"]}'
KEYS = "authenticate: {mode: optional, keys: [{name: ci, key: client-key}]}"
PING = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{}}}'
ASK = b'{"model":"smart","messages":[]}'


@asynccontextmanager
async def running(where: Path, more: str) -> AsyncIterator[tuple[Gateway, Provider]]:
    with http_server() as mcp:
        async with (
            provider() as models,
            serving(CONFIG.format(port=models.port, mcp=mcp, more=more), where) as gateway,
        ):
            yield gateway, models


async def page(gateway: Gateway, path: str, origin: str | None, **more: str) -> Answer:
    headers: dict[str, Any] = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
    if origin is not None:
        headers["origin"] = origin
    return await once(gateway.url, "POST", path, PING if path == "/mcp" else ASK, headers | more)


async def test_pages_of_strangers_are_refused(tmp_path: Path) -> None:
    async with running(tmp_path, CORS) as (gateway, models):
        for path in ("/mcp", "/v1/chat/completions"):
            for origin in ("https://evil.example", "null", "https://ai.example.com:8443", "http://app.example.com"):
                refused = await page(gateway, path, origin)
                assert (refused.status, refused.headers["x-tollhouse-reason"]) == (403, "Authorization")
                assert "cors.origins" in refused.json()["error"]["message"]
                assert refused.headers["vary"] == "origin"
                assert "access-control-allow-origin" not in refused.headers
            assert not models.seen
            for origin in (None, "http://localhost:5173", "https://ai.example.com", "https://app.example.com"):
                assert (await page(gateway, path, origin)).status == 200
            models.seen.clear()
        allowed = await page(gateway, "/mcp", "https://app.example.com")
        assert allowed.headers["access-control-allow-origin"] == "https://app.example.com"
        listed = await once(gateway.url, "GET", "/v1/models", b"", {"origin": "https://evil.example"})
        assert listed.status == 403


async def test_pages_whose_name_leads_here_are_refused(tmp_path: Path) -> None:
    """DNS rebinding: to its browser the page is at home here, and says no Origin where it only reads."""
    async with running(tmp_path, KEYS) as (gateway, models):
        key = {"authorization": "Bearer client-key"}
        port = gateway.url.rpartition(":")[2]
        for path in ("/mcp", "/v1/chat/completions", "/v1/models"):
            method = "GET" if path == "/v1/models" else "POST"
            body = PING if path == "/mcp" else ASK if method == "POST" else b""

            async def called(host: str, more: dict[str, str], at: tuple[str, str, bytes] = (method, path, body)) -> int:
                both = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
                return (await once(gateway.url, *at, both | {"host": host} | more)).status

            for host in (f"rebind.example:{port}", f"0.0.0.0:{port}", "localhost.rebind.example"):
                assert await called(host, {}) == 403
                assert await called(host, key) == 200  # no page knows it
            for host in (f"localhost:{port}", f"127.0.0.1:{port}", "ai.example.com", f"tool.localhost:{port}"):
                assert await called(host, {}) == 200
        models.seen.clear()
        told = await once(gateway.url, "POST", "/v1/chat/completions", ASK, {"host": "rebind.example"})
        assert (told.headers["x-tollhouse-reason"], models.seen) == ("Authorization", [])
        assert "server.hosts" in told.json()["error"]["message"]
        page = await once(gateway.url, "GET", "/pages/x", b"", {"host": "rebind.example"})
        assert page.status != 403  # services say themselves for which hosts they are

        proxied = gateway.config.read_text().replace("metrics: null", "metrics: null, hosts: [rebind.example]")
        await gateway.change(proxied)
        assert (await once(gateway.url, "GET", "/v1/models", b"", {"host": f"rebind.example:{port}"})).status == 200
        assert (await once(gateway.url, "GET", "/v1/models", b"", {"host": f"other.example:{port}"})).status == 403


async def test_who_says_who_he_is_is_asked_no_further_but_by_mcp(tmp_path: Path) -> None:
    async with running(tmp_path, KEYS) as (gateway, models):
        evil, key = "https://evil.example", {"authorization": "Bearer client-key"}
        assert (await page(gateway, "/v1/chat/completions", evil)).status == 403
        assert (await page(gateway, "/v1/chat/completions", evil, **key)).status == 200
        assert (await page(gateway, "/mcp", evil, **key)).status == 403
        assert len(models.seen) == 1


GUARDED = """
headers: {response: {set: {strict-transport-security: "max-age=60"}}}
cors: {origins: ["https://app.example.com"]}
authenticate: {keys: [{name: ci, key: client-key}, {name: other, key: other-key}]}
authorize: {rules: [{deny: 'key.name == "other"'}]}
limits: [{per: key, requests: 3, window: 1h}]
"""


async def test_rules_limits_and_header_rules_hold_for_what_asks_no_model(tmp_path: Path) -> None:
    async with running(tmp_path, GUARDED) as (gateway, models):

        async def ask(path: str, key: str, model: str = "") -> int:
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            body = b'{"model":"%b","messages":[]}' % model.encode() if model else b""
            answer = await once(gateway.url, "POST" if model else "GET", path, body, headers)
            assert answer.headers["strict-transport-security"] == "max-age=60"
            return answer.status

        assert await ask("/v1/models", "nobodys-key") == 401
        assert await ask("/v1/models", "other-key") == 403
        assert await ask("/v1/models/smart", "other-key") == 403
        assert await ask("/v1/chat/completions", "other-key", "guess") == 403
        assert await ask("/v1/models", "client-key") == 200
        assert await ask("/v1/models/none", "client-key") == 404
        assert await ask("/v1/chat/completions", "client-key", "guess") == 404
        assert await ask("/v1/chat/completions", "client-key", "guess") == 429
        assert await ask("/v1/models", "client-key") == 429
        assert await ask("/v1/chat/completions", "client-key", "smart") == 429  # one bucket
        assert not models.seen
