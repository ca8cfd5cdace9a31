"""The Python MCP SDK's own OAuth flow with a person in a real browser, in each era of the protocol and with each way
that a client can be known: from 401 to a tool, a step up, a refresh, and what happens when it is all taken back."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from mcp import Client
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.auth import OAuthClientMetadata
from pydantic import AnyUrl
from tests.fixtures.auth_provider import HASH, PASSWORD, Browser, Provider
from tests.fixtures.gateway import Gateway, free_port, serving
from tests.fixtures.identity import Person, Storage, landing, metadata_document, person
from tests.fixtures.identity_node import run
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.mcp_suite import needs_node

pytestmark = pytest.mark.anyio

CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
egress: {{allow: [localhost]}}
authenticate: {{resource_metadata: {{scopes: [mcp]}}}}
requires: [mcp]
mcp:
  servers: {{one: {{url: "{url}", tools: {{echo: {{requires: [calculate]}}}}}}}}
issuer:
  url: http://127.0.0.1:{port}
  users: [{{name: ada, password_hash: "{hash}"}}]
  scopes: {{mcp: Use tools, calculate: Calculate}}
  registration: {{dynamic: {dynamic}}}
"""


@asynccontextmanager
async def agent(
    gateway: Gateway, storage: Storage, user: Person, redirect: str, mode: Any, document: str | None
) -> AsyncIterator[tuple[Client, OAuthClientProvider]]:
    answers: list[dict[str, str]] = []

    async def follow(url: str) -> None:
        answers.append(await user.follow(url))

    async def back() -> AuthorizationCodeResult:
        answer = answers.pop()
        assert "code" in answer, answer
        return AuthorizationCodeResult(code=answer["code"], state=answer.get("state"), iss=answer.get("iss"))

    metadata = OAuthClientMetadata(
        client_name="An Agent", redirect_uris=[AnyUrl(redirect)], token_endpoint_auth_method="none"
    )
    auth = OAuthClientProvider(f"{gateway.url}/mcp", metadata, storage, follow, back, client_metadata_url=document)
    http = create_mcp_http_client(auth=auth)
    async with http, Client(streamable_http_client(f"{gateway.url}/mcp", http_client=http), mode=mode) as client:
        yield client, auth


@pytest.mark.parametrize(("mode", "known"), [("legacy", "by registration"), ("2026-07-28", "by its document")])
async def test_the_whole_life_of_a_grant(tmp_path: Path, mode: str, known: str) -> None:
    by_document = known == "by its document"
    (tmp_path / "browser").mkdir()
    with http_server() as url, landing() as place, metadata_document(tmp_path, place.url) as (id, authority):
        port = free_port()
        config = CONFIG.format(port=port, url=url, hash=HASH, dynamic='"off"' if by_document else "loopback")
        env = {**os.environ, "SSL_CERT_FILE": str(authority)}
        async with (
            serving(config, tmp_path, env) as gateway,
            person("ada", PASSWORD, place, tmp_path / "browser") as ada,
        ):
            storage = Storage()
            async with agent(gateway, storage, ada, place.url, mode, id if by_document else None) as (client, auth):
                # From nothing: 401, metadata, registration, login, consent, token.
                assert "echo" in {tool.name for tool in (await client.list_tools()).tools}
                assert storage.client is not None
                assert storage.tokens is not None
                assert (storage.client.client_id == id) == by_document
                assert (ada.logins, ada.consents, len(ada.asked)) == (1, 1, 1)
                # A tool that needs more: one step up, which the person is asked about; nobody logs in again.
                assert not (await client.call_tool("echo", {"message": "hello"})).is_error
                assert ada.asked[1] == {"mcp", "calculate", "offline_access"}
                assert (ada.logins, ada.consents, len(ada.asked)) == (1, 2, 2)
                # The client believes that its token has expired: it gets another, and nobody is asked.
                first = storage.tokens
                auth.context.token_expiry_time = 1.0
                assert not (await client.call_tool("echo", {"message": "again"})).is_error
                assert storage.tokens.access_token != first.access_token
                assert storage.tokens.refresh_token != first.refresh_token
                assert len(ada.asked) == 2
                # The grant is given back: the tokens are dead at once.
                metadata = auth.context.oauth_metadata
                assert metadata is not None
                form = {"token": storage.tokens.refresh_token, "client_id": storage.client.client_id}
                async with httpx.AsyncClient() as http:
                    assert (await http.post(str(metadata.revocation_endpoint), data=form)).status_code == 200
                    gone = storage.tokens
                    bearer = {"authorization": f"Bearer {gone.access_token}"}
                    refused = await http.post(f"{gateway.url}/mcp", headers=bearer, json={})
                    assert refused.status_code == 401
                    assert 'error="invalid_token"' in refused.headers["www-authenticate"]
                    form = {**form, "grant_type": "refresh_token", "refresh_token": gone.refresh_token}
                    dead = await http.post(f"{gateway.url}/oauth/token", data=form)
                    assert (dead.status_code, dead.json()["error"]) == (400, "invalid_grant")
            # The agent comes back with what it has kept, and the person is asked again.
            async with agent(gateway, storage, ada, place.url, mode, id if by_document else None) as (client, _):
                await client.list_tools()
                assert not (await client.call_tool("echo", {"message": "once more"})).is_error
            assert storage.tokens.refresh_token not in (first.refresh_token, gone.refresh_token)
            assert (ada.logins, len(ada.asked)) == (1, 4)
            assert "An Agent" in await ada.see(f"{gateway.url}/oauth/grants")
            for secret in (PASSWORD, first.access_token, str(first.refresh_token), str(storage.tokens.refresh_token)):
                assert secret not in gateway.text()


@needs_node
@pytest.mark.parametrize(("sdk", "known"), [(1, "by registration"), (2, "by its document")])
async def test_the_typescript_sdks_log_in_and_step_up(tmp_path: Path, sdk: int, known: str) -> None:
    by_document = known == "by its document"
    redirect = "http://127.0.0.1:3999/callback"
    with http_server() as url, metadata_document(tmp_path, redirect) as (id, authority):
        config = CONFIG.format(port=free_port(), url=url, hash=HASH, dynamic='"off"' if by_document else "loopback")
        env = {**os.environ, "SSL_CERT_FILE": str(authority)}
        async with serving(config, tmp_path, env) as gateway:
            async with Browser(cast("Provider", SimpleNamespace(url=gateway.url))) as browser:

                async def errand(asked: dict[str, Any]) -> Any:
                    await browser.get(asked["go"])
                    if not browser.left and "password" in browser.page.fields:
                        await browser.login()
                    if not browser.left:
                        await browser.submit(do="allow")
                    return {"url": browser.left}

                settings = {
                    "sdk": sdk,
                    "url": f"{gateway.url}/mcp",
                    "redirect": redirect,
                    "document": id if by_document else "",
                    "calls": [["echo", {"message": "hello"}]],
                }
                found = await run("mcp_auth.mjs", settings, errand)
            assert "echo" in found["tools"]
            assert "hello" in found["said"][0]
            assert (found["client"] == id) == by_document
            assert "calculate" in found["scopes"][-1]
            assert {"mcp", "calculate"} <= set(found["scope"].split())
