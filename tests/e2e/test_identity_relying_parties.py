"""Relying parties that are not ours, against `tollhouse serve` with an issuer: openid-client and oauth4webapi of the
npm registry, and authlib's own rules for metadata. Each does what its authors think an issuer must answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from authlib.oidc.discovery import OpenIDProviderMetadata
from joserfc.jwk import ECKey
from tests.fixtures.auth_provider import HASH, Browser, Provider
from tests.fixtures.gateway import Gateway, free_port, serving
from tests.fixtures.identity_node import run
from tests.fixtures.issuer import issuing
from tests.fixtures.mcp_gateway import http_server
from tests.fixtures.mcp_suite import needs_node

pytestmark = [pytest.mark.anyio, needs_node]

SECRET = "a secret with / and + : of more than 32 characters"
REDIRECT = "http://127.0.0.1:3999/callback"
BYE = "http://127.0.0.1:3999/bye"
CONFIG = """
server: {{listen: 127.0.0.1:{port}, metrics: null, shutdown: {{min: 0s, max: 5s}}}}
authenticate: {{resource_metadata: {{scopes: [mcp]}}}}
requires: [mcp]
mcp: {{servers: {{one: {{url: "{url}", tools: {{echo: {{requires: [calculate]}}}}}}}}}}
issuer:
  url: http://127.0.0.1:{port}
  users: [{{name: ada, password_hash: "{hash}", full_name: Ada Lovelace, email: ada@example.com, groups: [dev]}}]
  registration: {{dynamic: loopback}}
  resources: [{{uri: https://next.example.com}}]
  clients:
    - id: web
      secret: "{secret}"
      redirect_uris: ["{redirect}"]
      post_logout_redirect_uris: ["{bye}"]
      grants: [authorization_code, refresh_token, device_code, client_credentials]
      serves: [http://127.0.0.1:{port}]
    - {{id: robot, jwks: {jwks}, grants: [client_credentials], scopes: [mcp]}}
    - id: gateway
      secret: "{secret}"
      grants: [token_exchange]
      serves: [http://127.0.0.1:{port}/mcp]
      token_exchange: {{targets: [{{audience: https://next.example.com, scopes: {{mcp: [mcp]}}}}]}}
"""
KEY = ECKey.generate_key("P-256", {"kid": "k-1", "alg": "ES256", "use": "sig"})


@asynccontextmanager
async def house(where: Path) -> AsyncIterator[Gateway]:
    jwks = {"keys": [KEY.as_dict(private=False)]}
    with http_server() as url:
        values = {"hash": HASH, "secret": SECRET, "redirect": REDIRECT, "bye": BYE, "jwks": jwks}
        async with serving(CONFIG.format(port=free_port(), url=url, **values), where) as gateway:
            yield gateway


class User:
    """Follows a link, logs in and allows what is asked."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    async def __call__(self, asked: dict[str, Any]) -> Any:
        browser = self.browser
        await browser.get(asked.get("go") or asked["allow"])
        for _ in range(6):
            if browser.left or not browser.page.forms:
                break
            if "password" in browser.page.fields:
                await browser.login()
            else:
                is_code = "wants access" not in browser.page.text
                await browser.submit(do="find" if is_code else "allow")
        return {"url": browser.left}


def user(gateway: Gateway) -> User:
    return User(Browser(cast("Provider", SimpleNamespace(url=gateway.url))))


def settings(gateway: Gateway) -> dict[str, Any]:
    """What each program is told."""
    return {"issuer": gateway.url, "resource": f"{gateway.url}/mcp", "redirect": REDIRECT, "secret": SECRET}


async def test_openid_client(tmp_path: Path) -> None:
    async with house(tmp_path) as gateway:
        ada = user(gateway)
        async with ada.browser:
            found = await run("openid_client.mjs", {**settings(gateway), "bye": BYE}, ada)
        assert found["start"] == ["client_id", "request_uri"]
        assert found["mixed"] == "OAUTH_INVALID_RESPONSE"
        assert found["without"] == "OAUTH_INVALID_RESPONSE"
        assert found["type"] == "dpop"
        assert (found["claims"]["sub"], found["claims"]["email"]) == ("ada", "ada@example.com")
        assert found["scope"] == "email mcp offline_access openid profile"
        assert found["again"] == "invalid_grant"
        assert found["userinfo"]["email"] == "ada@example.com"
        assert found["rotated"] is True
        assert (found["bound"], found["bare"]) == (200, 401)
        assert "verification_uri_complete" in found["device"]
        assert found["deviceClaims"] == "ada"
        assert (found["before"], found["after"]) == (True, "invalid_grant")
        assert found["bye"] == f"{BYE}?state=s-1"
        assert (found["posted"], found["own"], found["registered"]) == ("bearer", "dpop", "dyn_")
        assert SECRET not in gateway.text()


async def test_oauth4webapi(tmp_path: Path) -> None:
    async with house(tmp_path) as gateway:
        ada = user(gateway)
        async with ada.browser:
            found = await run("oauth4webapi.mjs", {**settings(gateway), "key": KEY.as_dict(private=True)}, ada)
        assert found["servers"] == [gateway.url]
        assert found["same"] is True
        assert found["scope"] == "mcp"
        assert (found["claims"]["sub"], found["claims"]["client_id"]) == ("robot", "robot")
        assert found["elsewhere"].startswith("OAUTH_")
        assert found["tooMuch"] == "invalid_scope"
        assert found["foreign"] == "invalid_target"
        assert found["twice"] in ("invalid_client", "OAUTH_WWW_AUTHENTICATE_CHALLENGE")
        assert (found["active"], found["inactive"]) == (True, False)
        assert (found["exchanged"]["sub"], found["exchanged"]["act"]) == (
            "ada",
            {"iss": gateway.url, "sub": found["id"]},
        )
        assert found["registered"] == "dyn_"
        assert (found["user"], found["redeemed"]) == ("ada", "invalid_grant")
        assert (found["device"], found["pushed"], found["life"]) == ("authorization_pending", 60, 5)


@pytest.mark.parametrize("path", ["", "/tenant"])
async def test_authlib_finds_nothing_wrong_with_the_metadata(path: str) -> None:
    # It wants RS256 of who does OpenID Connect, as Discovery does.
    async with issuing(url=f"https://auth.example.com{path}", keys={"algorithm": "RS256"}) as node:
        place = node.url.removesuffix(path)
        names = (
            ("oauth-authorization-server", AuthorizationServerMetadata),
            ("openid-configuration", OpenIDProviderMetadata),
        )
        for name, rules in names:
            for where in {f"{place}/.well-known/{name}{path}", f"{place}{path}/.well-known/{name}"}:
                answer = await node.http.get(where)
                assert answer.status_code == 200
                rules(answer.json()).validate()
