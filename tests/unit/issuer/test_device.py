"""The page of the device flow: two deliberate steps, and few guesses."""

from typing import Any

import httpx
import pytest
from tests.fixtures.auth_provider import APP, MCP, Browser, Provider, providing

from tollhouse.issuer.forgery import token

pytestmark = pytest.mark.anyio

SECRET = str(APP["secret"])


async def begun(provider: Provider, **more: str) -> dict[str, Any]:
    form = {"client_id": "app", "client_secret": SECRET, "scope": "openid mcp:read", "resource": MCP, **more}
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{provider.url}/oauth/device", data=form)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def poll(provider: Provider, device: dict[str, Any]) -> httpx.Response:
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:device_code",
        "device_code": device["device_code"],
        "client_id": "app",
        "client_secret": SECRET,
    }
    async with httpx.AsyncClient() as http:
        return await http.post(f"{provider.url}/oauth/token", data=form)


async def test_a_device_is_let_in_by_two_steps() -> None:
    async with providing() as provider, Browser(provider) as browser:
        device = await begun(provider)
        assert (await poll(provider, device)).json()["error"] == "authorization_pending"
        await browser.get(device["verification_uri_complete"])
        await browser.login()
        assert browser.page.fields["user_code"] == device["user_code"]
        assert (await poll(provider, device)).json()["error"] in ("authorization_pending", "slow_down")
        await browser.submit(do="find")
        text = browser.page.text
        for words in ("The App wants access", device["user_code"], "Read with tools", "ada@example.com"):
            assert words in text
        await browser.submit(do="allow")
        assert "All done here" in browser.page.text
        answer = (await poll(provider, device)).json()
        assert answer["scope"] == "mcp:read openid"
        assert (await browser.get(f"{provider.url}/oauth/grants")).status_code == 200
        assert "The App" in browser.page.text


async def test_who_denies_is_believed() -> None:
    async with providing() as provider, Browser(provider) as browser:
        device = await begun(provider)
        await browser.get(device["verification_uri"])
        await browser.login()
        await browser.submit(do="find", user_code=device["user_code"].lower().replace("-", " "))
        fields = browser.page.fields
        await browser.submit(do="deny")
        assert "Denied" in browser.page.text
        assert (await poll(provider, device)).json()["error"] == "access_denied"
        assert (await browser.post("/oauth/verify", {**fields, "do": "allow"})).status_code == 409


async def test_a_code_is_not_decided_by_one_post_and_not_by_another_page() -> None:
    async with providing() as provider, Browser(provider) as browser:
        device = await begun(provider)
        await browser.get(device["verification_uri"])
        await browser.login()
        form = browser.page.fields
        # The form that asks for the code does not decide about one.
        for do in ("allow", "deny"):
            response = await browser.post("/oauth/verify", {**form, "user_code": device["user_code"], "do": do})
            assert response.status_code == 403
        assert (await browser.post("/oauth/verify", {**form, "user_code": device["user_code"]})).status_code == 400
        other = await begun(provider)
        await browser.get(device["verification_uri"])
        await browser.submit(do="find", user_code=device["user_code"])
        fields = {**browser.page.fields, "do": "allow"}
        response = await browser.post("/oauth/verify", {**fields, "user_code": other["user_code"]})
        assert response.status_code == 403
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert (await browser.post("/oauth/verify", fields, headers)).status_code == 403
        assert (await poll(provider, device)).json()["error"] == "authorization_pending"


async def test_codes_cannot_be_guessed_fast() -> None:
    """Attack 48."""
    async with providing() as provider, Browser(provider) as browser:
        device = await begun(provider)
        await browser.get(device["verification_uri"])
        await browser.login()
        statuses = []
        for n in range(15):
            guess = "BCDF-GHJ" + "BCDFGHJKLMNPQRST"[n]
            statuses.append((await browser.submit(do="find", user_code=guess)).status_code)
        assert set(statuses[:10]) == {404}
        assert statuses[-1] == 429
        slowed = await browser.submit(do="find", user_code=device["user_code"])
        assert slowed.status_code == 429
        provider.wait(int(slowed.headers["retry-after"]))
        await browser.submit(do="find", user_code=device["user_code"])
        assert "wants access" in browser.page.text


async def test_a_code_has_its_time() -> None:
    async with providing() as provider, Browser(provider) as browser:
        device = await begun(provider)
        await browser.get(device["verification_uri"])
        await browser.login()
        await browser.submit(do="find", user_code=device["user_code"])
        provider.wait(601)
        assert (await browser.submit(do="allow")).status_code == 409


async def test_nobody_is_asked_before_they_are_logged_in() -> None:
    async with providing() as provider, Browser(provider) as browser:
        device = await begun(provider)
        await browser.post("/oauth/verify", {"user_code": device["user_code"], "do": "allow", "csrf": "x"})
        assert "Password" in browser.page.text
        await browser.login()
        assert browser.page.fields["user_code"] == ""
        assert (await poll(provider, device)).json()["error"] == "authorization_pending"


async def test_a_code_in_the_link_is_a_code_or_nothing() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(f"{provider.url}/oauth/verify?user_code=%22%3E%3Cscript%3E")
        await browser.login()
        assert browser.page.fields["user_code"] == ""
        assert "<script" not in browser.response.text


async def test_codes_cannot_be_guessed_fast_past_the_first_step() -> None:
    """Attack 48: the token of the second form is made of a cookie that its own user knows."""
    async with providing() as provider, Browser(provider) as browser:
        device = await begun(provider)
        await browser.get(device["verification_uri"])
        await browser.login()
        statuses = []
        for n in range(15):
            guess = "BCDFGHJ" + "BCDFGHJKLMNPQRST"[n]
            csrf = token("device", browser.cookie(), guess)
            fields = {"user_code": guess, "csrf": csrf, "do": "allow"}
            statuses.append((await browser.post("/oauth/verify", fields)).status_code)
    assert set(statuses[:10]) == {409}
    assert statuses[-1] == 429
