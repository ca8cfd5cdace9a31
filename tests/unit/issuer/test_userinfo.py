"""Userinfo: for a token of ours, for us, with openid; claims by scope."""

from base64 import urlsafe_b64encode
from hashlib import sha256
from typing import Any, cast

import httpx
import pytest
from tests.fixtures.auth_provider import APP, Browser, Flow, Provider, providing
from tests.fixtures.issuer import dpop_proof, new_key

pytestmark = pytest.mark.anyio


async def token(browser: Browser, provider: Provider, scope: str, **params: str | None) -> str:
    flow = Flow(provider, scope=scope, **params)
    await browser.get(flow.url)
    if "Password" in browser.page.text:
        await browser.login()
    if not browser.left:
        await browser.submit(do="allow")
    return str((await flow.redeem(browser.answer["code"])).json()["access_token"])


async def ask(provider: Provider, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.get(f"{provider.url}/oauth/userinfo", headers=headers)


@pytest.mark.parametrize(
    "scope, said",
    [
        ("openid", {}),
        ("openid profile", {"name": "Ada L.", "preferred_username": "ada"}),
        ("openid email", {"email": "ada@example.com", "email_verified": True}),
        ("openid groups", {"groups": ["dev"]}),
    ],
)
async def test_scopes_say_which_claims_come_back(scope: str, said: dict[str, object]) -> None:
    async with providing() as provider, Browser(provider) as browser:
        response = await ask(provider, authorization=f"Bearer {await token(browser, provider, scope, resource=None)}")
    assert response.status_code == 200
    assert response.json() == {"sub": "ada", **said}
    assert response.headers["cache-control"] == "no-store"


async def test_a_token_for_something_else_is_refused() -> None:
    async with providing() as provider, Browser(provider) as browser:
        response = await ask(provider, authorization=f"Bearer {await token(browser, provider, 'openid mcp')}")
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["www-authenticate"]


async def test_what_is_no_token_is_refused() -> None:
    async with providing() as provider:
        missing = await ask(provider)
        assert (missing.status_code, missing.headers["www-authenticate"]) == (401, "Bearer")
        for value in ("Bearer", "Bearer x", "Basic YTpi", "Bearer " + "x" * 9000, "DPoP x"):
            assert (await ask(provider, authorization=value)).status_code == 401
        async with httpx.AsyncClient() as http:
            query = await http.get(f"{provider.url}/oauth/userinfo?access_token=x")
        assert query.status_code == 401


async def test_a_token_without_openid_is_refused() -> None:
    async with providing() as provider:
        minted = provider.parts.mint.access(
            sub="ada", aud=provider.url, client_id="app", scopes=("email",), ttl=60.0
        ).token.decode()
        response = await ask(provider, authorization=f"Bearer {minted}")
    assert response.status_code == 403
    assert 'error="insufficient_scope"' in response.headers["www-authenticate"]


async def test_a_token_that_is_bound_to_a_key_needs_its_proof() -> None:
    async with providing() as provider:
        minted = provider.parts.mint.access(
            sub="ada", aud=provider.url, client_id="app", scopes=("openid",), ttl=60.0, cnf={"jkt": "k" * 43}
        ).token.decode()
        for scheme in ("Bearer", "DPoP"):
            assert (await ask(provider, authorization=f"{scheme} {minted}")).status_code == 401


async def test_a_token_that_is_revoked_is_no_token() -> None:
    async with providing() as provider, Browser(provider) as browser:
        bearer = f"Bearer {await token(browser, provider, 'openid', resource=None)}"
        assert (await ask(provider, authorization=bearer)).status_code == 200
        await provider.parts.revocations.revoke("sub", "ada", provider.parts.now() + 60)
        assert (await ask(provider, authorization=bearer)).status_code == 401


async def test_a_token_may_come_in_a_form() -> None:
    async with providing() as provider, Browser(provider) as browser:
        bearer = await token(browser, provider, "openid", resource=None)
        async with httpx.AsyncClient() as http:
            response = await http.post(f"{provider.url}/oauth/userinfo", data={"access_token": bearer})
    assert response.json() == {"sub": "ada"}


async def test_a_token_is_shown_in_the_scheme_that_it_is_of() -> None:
    """Attack 46: a bound one as Bearer, even with a proof beside it, and an unbound one as DPoP."""
    async with providing() as provider, Browser(provider) as browser:
        unbound = await token(browser, provider, "openid", resource=None)
        assert (await ask(provider, authorization=f"DPoP {unbound}")).status_code == 401
        key, here = new_key(), cast("Any", provider)
        flow = Flow(provider, scope="openid", resource=None)
        await browser.get(flow.url)
        async with httpx.AsyncClient() as http:
            form = {"grant_type": "authorization_code", "code": browser.answer["code"], "code_verifier": flow.verifier}
            form |= {"client_id": "app", "client_secret": str(APP["secret"])}
            shown = {"dpop": dpop_proof(key, here, "token")}
            answer = await http.post(f"{provider.url}/oauth/token", data=form, headers=shown)
        bound = answer.json()["access_token"]
        ath = urlsafe_b64encode(sha256(bound.encode()).digest()).decode().rstrip("=")
        for scheme, status in (("Bearer", 401), ("DPoP", 200)):
            proof = dpop_proof(key, here, "userinfo", htm="GET", ath=ath)
            assert (await ask(provider, authorization=f"{scheme} {bound}", dpop=proof)).status_code == status
