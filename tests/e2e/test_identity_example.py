"""examples/identity as its README says: it starts as it is, a password works, and the agent with a secret gets its own
scope and no other."""

import base64
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from tests.fixtures.auth_provider import HASH, Browser, Flow, Provider
from tests.fixtures.gateway import free_port, serving

pytestmark = pytest.mark.anyio

EXAMPLE = Path(__file__).parents[2] / "examples" / "identity" / "tollhouse.yaml"
SECRET = base64.b64encode(b"s" * 32).decode()
INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "nightly", "version": "1"}},
}  # fmt: skip


async def test_the_example_does_what_its_readme_says(tmp_path: Path) -> None:
    port = free_port()
    config = EXAMPLE.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    config = config.replace("command: python\n", f"command: {sys.executable}\n")
    config = config.replace("server: {listen", "server: {admin: null, metrics: null, listen")
    env = {**os.environ, "ADA_HASH": HASH, "NIGHTLY_SECRET": SECRET}
    async with serving(config, tmp_path, env) as gateway, httpx.AsyncClient(timeout=30) as http:
        form = {"grant_type": "client_credentials"}
        answer = await http.post(f"{gateway.url}/oauth/token", data=form, auth=("nightly", SECRET))
        assert answer.json().get("scope") == "tools", answer.text
        headers = {
            "authorization": f"Bearer {answer.json()['access_token']}",
            "accept": "application/json, text/event-stream",
        }
        begun = await http.post(f"{gateway.url}/mcp", json=INITIALIZE, headers=headers)
        assert begun.status_code == 200, begun.text
        headers["mcp-session-id"] = begun.headers["mcp-session-id"]
        asked = {"name": "add", "arguments": {"a": 1, "b": 2}}
        call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": asked}
        lacks = await http.post(f"{gateway.url}/mcp", json=call, headers=headers)
        assert lacks.status_code == 403
        assert 'scope="calculate tools"' in lacks.headers["www-authenticate"]
        registered = await http.post(
            f"{gateway.url}/oauth/register",
            json={"redirect_uris": ["http://127.0.0.1:1/cb"], "token_endpoint_auth_method": "none"},
        )
        id = registered.json()["client_id"]
        provider = cast("Provider", SimpleNamespace(url=gateway.url))
        async with Browser(provider) as browser:
            asked = {"client_id": id, "redirect_uri": "http://127.0.0.1:1/cb", "scope": "tools"}
            flow = Flow(provider, **asked, resource=f"{gateway.url}/mcp")
            await browser.get(flow.url)
            await browser.login()
            assert "Use the tools" in browser.page.text
            await browser.submit(do="allow")
            assert (await flow.redeem(browser.answer["code"])).status_code == 200
