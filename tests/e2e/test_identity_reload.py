"""An auth provider whose configuration changes while it is used: what was begun goes on, and what was issued stays good
as long as it was meant to, also when tokens are signed in another way from then on."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from joserfc.jws import extract_compact
from tests.fixtures.auth_provider import HASH, Browser, Flow, Provider
from tests.fixtures.gateway import Gateway, free_port, serving
from tests.fixtures.mcp_gateway import http_server

pytestmark = pytest.mark.anyio

SECRET = "a-secret-of-more-than-thirty-two-characters"
REDIRECT = "https://app.example.com/cb"
CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
authenticate: {{}}
mcp: {{servers: {{one: {{url: "{url}"}}}}}}
issuer:
  url: http://127.0.0.1:{port}
  users: [{{name: {user}, password_hash: "{hash}"}}]
  clients:
    - id: app
      name: {name}
      secret: {secret}
      redirect_uris: ["{redirect}"]
      grants: [authorization_code, refresh_token, client_credentials]
  keys: {{algorithm: {algorithm}}}
  ttl: {{access: {access}}}
"""
INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}  # fmt: skip


def config(port: int, url: str, **changed: Any) -> str:
    values = {
        "user": "ada", "name": "One", "algorithm": "ES256", "access": "10m", "hash": HASH, "secret": SECRET,
        "redirect": REDIRECT, **changed,
    }  # fmt: skip
    return CONFIG.format(port=port, url=url, **values)


class Client:
    def __init__(self, gateway: Gateway, http: httpx.AsyncClient) -> None:
        self.gateway = gateway
        self.http = http
        self.resource = f"{gateway.url}/mcp"

    async def token(self, **form: str) -> httpx.Response:
        return await self.http.post(f"{self.gateway.url}/oauth/token", data=form, auth=("app", SECRET))

    async def own(self) -> str:
        answer = await self.token(grant_type="client_credentials", resource=self.resource)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    async def use(self, token: str) -> int:
        headers = {"authorization": f"Bearer {token}", "accept": "application/json, text/event-stream"}
        return (await self.http.post(self.resource, json=INITIALIZE, headers=headers)).status_code


def algorithm_of(token: str) -> str:
    return str(extract_compact(token.encode()).headers()["alg"])


async def test_what_was_begun_goes_on(tmp_path: Path) -> None:
    with http_server() as url:
        port = free_port()
        async with serving(config(port, url), tmp_path) as gateway, httpx.AsyncClient(timeout=30) as http:
            client = Client(gateway, http)
            provider = cast("Provider", SimpleNamespace(url=gateway.url))
            async with Browser(provider) as browser:
                flow = Flow(provider, resource=client.resource, scope="openid offline_access")
                await browser.get(flow.url)
                await gateway.change(config(port, url, name="Two"))
                await browser.login()
                assert "Two" in browser.page.text
                await gateway.change(config(port, url, name="Three"))
                await browser.submit(do="allow")
                code = browser.answer["code"]
                await gateway.change(config(port, url, name="Four"))
                form = {"code": code, "code_verifier": flow.verifier, "redirect_uri": REDIRECT}
                tokens = (await client.token(grant_type="authorization_code", **form)).json()
                assert await client.use(tokens["access_token"]) == 200
                # Who is taken out gets no more tokens and is logged in no more.
                await gateway.change(config(port, url, user="bob"))
                again = await client.token(grant_type="refresh_token", refresh_token=tokens["refresh_token"])
                assert (again.status_code, again.json()["error"]) == (400, "invalid_grant")
                await browser.get(flow.url)
                assert "password" in browser.page.fields


@pytest.mark.parametrize(("before", "after"), [("ES256", "RS256"), ("EdDSA", "ES256")])
async def test_no_token_fails_when_they_are_signed_in_another_way(tmp_path: Path, before: str, after: str) -> None:
    with http_server() as url:
        port = free_port()
        async with (
            serving(config(port, url, algorithm=before), tmp_path) as gateway,
            httpx.AsyncClient(timeout=30) as http,
        ):
            client = Client(gateway, http)
            old = [await client.own() for _ in range(4)]
            for changed in ({"algorithm": after}, {"algorithm": after, "access": "1h"}):
                await gateway.change(config(port, url, **changed))
                # At once, not when the new key is made: an RSA key takes its time.
                made = await client.own()
                assert await client.use(old.pop()) == 200
                assert await client.use(made) == 200
            async with asyncio.timeout(20):
                while algorithm_of(made := await client.own()) != after:
                    await asyncio.sleep(0.02)
            assert await client.use(made) == 200
            assert algorithm_of(old[-1]) == before
            assert await client.use(old.pop()) == 200
