"""oidc-provider (npm) as a foreign identity provider: the gateway takes its tokens by discovery alone, and our issuer
logs people in there and gives them tokens of its own."""

import secrets
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urljoin, urlsplit

import httpx
import pytest
from tests.fixtures.auth_provider import Page
from tests.fixtures.gateway import free_port, serving
from tests.fixtures.issuer import challenge_of, claims_of
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.mcp_suite import needs_node
from tests.fixtures.oidc_provider import oidc_provider

pytestmark = [pytest.mark.anyio, needs_node]

SECRET = "a-secret-of-more-than-thirty-two-characters"
REDIRECT = "http://127.0.0.1:3999/callback"
INITIALIZE = {
    "jsonrpc": "2.0", "id": 1, "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}  # fmt: skip


def provider_for(port: int, gateway: str) -> AbstractAsyncContextManager[str]:
    return oidc_provider("oidc_provider.mjs", port, gateway=gateway, audience=f"{gateway}/mcp", secret=SECRET)


async def use(http: httpx.AsyncClient, gateway: str, token: str) -> httpx.Response:
    headers = {"authorization": f"Bearer {token}", "accept": "application/json, text/event-stream"}
    return await http.post(f"{gateway}/mcp", json=INITIALIZE, headers=headers)


async def test_its_tokens_open_the_gateway_by_discovery(tmp_path: Path) -> None:
    port, there = free_port(), free_port()
    config = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null}}
authenticate: {{jwt: [{{issuer: "http://127.0.0.1:{there}", discovery: true}}]}}
requires: [mcp]
"""
    with http_server() as url:
        config += f'mcp: {{servers: {{one: {{url: "{url}"}}}}}}\n'
        async with (
            serving(config, tmp_path) as gateway,
            provider_for(there, gateway.url) as provider,
            httpx.AsyncClient(timeout=30) as http,
        ):
            found = (await http.get(f"{gateway.url}/.well-known/oauth-protected-resource/mcp")).json()
            assert found["authorization_servers"] == [provider]
            form = {"grant_type": "client_credentials", "resource": found["resource"]}
            tokens = {}
            for scope in ("mcp", ""):
                answer = await http.post(f"{provider}/token", data={**form, "scope": scope}, auth=("robot", SECRET))
                tokens[scope] = answer.json()["access_token"]
            assert (await use(http, gateway.url, tokens["mcp"])).status_code == 200
            lacks = await use(http, gateway.url, tokens[""])
            assert lacks.status_code == 403
            assert 'error="insufficient_scope"' in lacks.headers["www-authenticate"]
            head, claims, signature = tokens["mcp"].split(".")
            forged = f"{head}.{claims}.{'A' if signature[0] != 'A' else 'B'}{signature[1:]}"
            assert (await use(http, gateway.url, forged)).status_code == 401


async def walk(http: httpx.AsyncClient, url: str) -> str:
    """Through the pages of both, as who logs in as `grace` and allows everything: where the application is."""
    response = await http.get(url)
    for _ in range(30):
        if response.is_redirect:
            url = urljoin(str(response.url), response.headers["location"])
            if url.startswith(REDIRECT):
                return url
            response = await http.get(url)
            continue
        page = Page(response.text)
        if page.refresh.startswith(REDIRECT):
            return page.refresh
        assert response.status_code == 200, response.text
        fields = {name: value for name, value in page.fields.items() if name}
        if "login" in fields:
            fields |= {"login": "grace", "password": "any"}
        elif "csrf" in fields:
            fields["do"] = "allow"
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(str(response.url)))
        action = urljoin(str(response.url), page.action)
        response = await http.post(action, data=fields, headers={"origin": origin})
    raise AssertionError("the pages go in a circle")


async def test_people_log_in_there(tmp_path: Path) -> None:
    port, there = free_port(), free_port()
    config = f"""
server: {{listen: 127.0.0.1:{port}, metrics: null}}
authenticate: {{}}
issuer:
  url: http://127.0.0.1:{port}
  upstream: [{{name: idp, issuer: "http://127.0.0.1:{there}", client_id: tollhouse, client_secret: {SECRET}}}]
  clients: [{{id: app, redirect_uris: ["{REDIRECT}"]}}]
"""
    with http_server() as url:
        config += f'mcp: {{servers: {{one: {{url: "{url}"}}}}}}\n'
        async with (
            serving(config, tmp_path) as gateway,
            provider_for(there, gateway.url) as provider,
            httpx.AsyncClient(timeout=30) as http,
        ):

            async def login(**more: str) -> tuple[dict[str, str], dict[str, Any]]:
                verifier = secrets.token_urlsafe(32)
                challenge = challenge_of(verifier)
                asked = {
                    "response_type": "code", "client_id": "app", "redirect_uri": REDIRECT, "state": "s",
                    "scope": "openid email profile", "code_challenge": challenge,
                    "code_challenge_method": "S256", **more,
                }  # fmt: skip
                landed = await walk(http, f"{gateway.url}/oauth/authorize?{httpx.QueryParams(asked)}")
                answer = dict(parse_qsl(urlsplit(landed).query))
                if "code" not in answer:
                    return answer, {}
                form = {
                    "grant_type": "authorization_code", "code": answer["code"], "code_verifier": verifier,
                    "redirect_uri": REDIRECT, "client_id": "app",
                }  # fmt: skip
                redeemed = await http.post(f"{gateway.url}/oauth/token", data=form)
                assert redeemed.status_code == 200, redeemed.text
                return answer, redeemed.json()

            answer, tokens = await login()
            assert answer["iss"] == gateway.url
            claims = claims_of(tokens["id_token"])
            assert (claims["iss"], claims["email"], claims["name"]) == (
                gateway.url, "grace@idp.example.com", "grace of the provider",
            )  # fmt: skip
            assert claims["sub"].startswith("u_")
            # Their tokens are ours: for the MCP endpoint, and the same person again after another login there.
            _, tokens = await login(scope="", resource=f"{gateway.url}/mcp", prompt="login")
            assert claims_of(tokens["access_token"])["sub"] == claims["sub"]
            assert (await use(http, gateway.url, tokens["access_token"])).status_code == 200
            _, tokens = await login(max_age="0")
            assert claims_of(tokens["id_token"])["auth_time"] >= claims["auth_time"]
            assert provider not in tokens["access_token"]
        assert SECRET not in gateway.text()
        assert "Traceback" not in gateway.text()
