"""What users have allowed: they see it, and what they take back ends at once."""

import httpx
import pytest
from tests.fixtures.auth_provider import APP, Browser, Flow, Provider, providing

pytestmark = pytest.mark.anyio


async def granted(browser: Browser, provider: Provider, **params: str) -> dict[str, str]:
    flow = Flow(provider, **params)
    await browser.get(flow.url)
    if "Password" in browser.page.text:
        await browser.login()
    if not browser.left:
        await browser.submit(do="allow")
    answer: dict[str, str] = (await flow.redeem(browser.answer["code"])).json()
    return answer


async def refresh(provider: Provider, client_id: str, token: str) -> int:
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": client_id}
    async with httpx.AsyncClient() as http:
        response = await http.post(f"{provider.url}/oauth/token", data={**form, "client_secret": str(APP["secret"])})
    return response.status_code


async def test_what_is_taken_back_ends_and_nothing_else() -> None:
    async with providing() as provider, Browser(provider) as browser, Browser(provider) as another:
        app = await granted(browser, provider, scope="openid mcp offline_access")
        other = await granted(browser, provider, client_id="other")
        await another.get(Flow(provider).url)
        await another.login("bob")
        await another.submit(do="allow")
        await browser.get(f"{provider.url}/oauth/grants")
        text = browser.page.text
        for words in ("The App", "Tools of the house", "Use all tools", "Stay connected", "app.example.com"):
            assert words in text
        action, fields = next(form for form in browser.page.forms if form[1]["client_id"] == "app")
        provider.wait(1)
        await browser.post(action, {**fields, "do": "revoke"})
        assert browser.hops == [303, 200]
        assert "The App" not in browser.page.text
        assert await refresh(provider, "app", app["refresh_token"]) == 400
        assert await refresh(provider, "other", other["refresh_token"]) == 200
        await browser.get(Flow(provider).url)
        assert "wants access" in browser.page.text
        await another.get(Flow(provider).url)
        assert another.answer["code"]
        provider.wait(1)
        await browser.submit(do="allow")
        again = await granted(browser, provider)
        assert await refresh(provider, "app", again["refresh_token"]) == 200


async def test_it_takes_a_login_and_leads_back() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(f"{provider.url}/oauth/grants")
        await browser.login()
        assert browser.response.url.path == "/oauth/grants"
        assert "allowed no application anything" in browser.page.text


async def test_a_forged_revocation_is_refused() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await granted(browser, provider)
        await browser.get(f"{provider.url}/oauth/grants")
        action, fields = browser.page.action, browser.page.fields
        assert (await browser.post(action, fields, {"origin": "https://evil.example"})).status_code == 403
        assert (await browser.post(action, {**fields, "csrf": "0" * 64})).status_code == 403
        await browser.get(f"{provider.url}/oauth/grants")
        assert "The App" in browser.page.text


async def test_what_was_never_allowed_is_not_put_on_the_list_of_what_is_revoked() -> None:
    """That list is everybody's, and has an end."""
    async with providing() as provider, Browser(provider) as browser:
        await granted(browser, provider)
        await browser.get(f"{provider.url}/oauth/grants")
        action, fields = browser.page.action, browser.page.fields
        before = len(provider.parts.revocations)
        for n in range(5):
            await browser.post(action, {**fields, "client_id": f"nobody-{n}"})
            assert browser.response.status_code == 200
        assert len(provider.parts.revocations) == before
        await browser.post(action, fields)
        await browser.post(action, fields)
        assert len(provider.parts.revocations) == before + 1


async def test_nobody_fills_the_state_by_asking_for_pages() -> None:
    async with providing() as provider, Browser(provider) as browser:
        for page in ("grants", "verify"):
            for _ in range(50):
                await provider.exhaust()
                if (await browser.get(f"{provider.url}/oauth/{page}")).status_code != 200:
                    break
            assert browser.response.status_code == 429
            assert int(browser.response.headers["retry-after"]) >= 1
