"""Logout: who may end a session, what ends with it, and where the browser goes."""

from urllib.parse import urlencode

import httpx
import pytest
from tests.fixtures.auth_provider import APP, Browser, Flow, Provider, providing, registered

pytestmark = pytest.mark.anyio

BYE = "https://app.example.com/bye"


async def logged_in(browser: Browser, provider: Provider, scope: str = "openid") -> dict[str, str]:
    flow = Flow(provider, scope=scope)
    await browser.get(flow.url)
    if "Password" in browser.page.text:
        await browser.login()
    if not browser.left:
        await browser.submit(do="allow")
    answer: dict[str, str] = (await flow.redeem(browser.answer["code"])).json()
    return answer


async def refresh(provider: Provider, token: str) -> httpx.Response:
    form = {
        "grant_type": "refresh_token",
        "refresh_token": token,
        "client_id": "app",
        "client_secret": str(APP["secret"]),
    }
    async with httpx.AsyncClient() as http:
        return await http.post(f"{provider.url}/oauth/token", data=form)


def where(provider: Provider, **params: str) -> str:
    return f"{provider.url}/oauth/logout?{urlencode(params)}"


async def test_an_application_that_shows_whom_it_means_ends_the_session() -> None:
    async with providing() as provider, Browser(provider) as browser:
        tokens = await logged_in(browser, provider)
        provider.wait(3600)  # the id_token has expired
        await browser.get(where(provider, id_token_hint=tokens["id_token"], post_logout_redirect_uri=BYE, state="a b"))
        assert browser.left == f"{BYE}?state=a%20b"
        assert browser.cookie() == ""
        await browser.get(f"{provider.url}/oauth/grants")
        assert "Password" in browser.page.text


async def test_with_the_session_end_the_tokens_that_live_by_it() -> None:
    async with providing() as provider, Browser(provider) as browser:
        online = await logged_in(browser, provider)
        offline = await logged_in(browser, provider, "openid offline_access")
        await browser.get(where(provider, id_token_hint=online["id_token"]))
        assert (await refresh(provider, online["refresh_token"])).json()["error"] == "invalid_grant"
        assert (await refresh(provider, offline["refresh_token"])).status_code == 200


async def test_a_grant_of_before_a_second_login_ends_with_it_too() -> None:
    async with providing() as provider, Browser(provider) as browser:
        before = await logged_in(browser, provider)
        await browser.get(Flow(provider, prompt="login").url)
        await browser.login()
        after = await logged_in(browser, provider)
        await browser.get(where(provider, id_token_hint=after["id_token"]))
        assert browser.cookie() == ""
        assert (await refresh(provider, before["refresh_token"])).json()["error"] == "invalid_grant"


async def test_a_grant_of_somebody_ends_when_another_logs_in_instead() -> None:
    async with providing() as provider, Browser(provider) as browser:
        before = await logged_in(browser, provider)
        await browser.get(Flow(provider, prompt="login").url)
        await browser.login("bob")
        assert (await refresh(provider, before["refresh_token"])).json()["error"] == "invalid_grant"


async def test_anybody_else_makes_us_ask() -> None:
    async with providing() as provider, Browser(provider) as browser, Browser(provider) as another:
        await logged_in(browser, provider)
        foreign = await logged_in(another, provider)  # ada, in another session
        for params in (
            {},
            {"id_token_hint": "e30.e30.AA"},
            {"id_token_hint": foreign["access_token"]},
            {"id_token_hint": foreign["id_token"]},
            {"post_logout_redirect_uri": BYE, "client_id": "app"},
        ):
            await browser.get(where(provider, **params))
            assert "Sign out" in browser.page.text
            assert browser.cookie()
            assert not browser.left
        await browser.submit(do="logout")
        assert browser.left == BYE
        assert browser.cookie() == ""


async def test_a_forged_logout_is_refused() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await logged_in(browser, provider)
        await browser.get(where(provider))
        page = browser.page
        for headers, fields in (
            ({"origin": "https://evil.example"}, page.fields),
            ({"sec-fetch-site": "cross-site"}, page.fields),
            ({}, {**page.fields, "csrf": "0" * 64}),
        ):
            assert (await browser.post(page.action, {**fields, "do": "logout"}, headers)).status_code == 403
        assert browser.cookie()


@pytest.mark.parametrize(
    "uri", ["https://evil.example/", f"{BYE}/", f"{BYE}?x=1", "https://app.example.com/cb", "javascript:alert(1)"]
)
async def test_the_browser_goes_only_where_the_application_has_registered(uri: str) -> None:
    async with providing() as provider, Browser(provider) as browser:
        tokens = await logged_in(browser, provider)
        await browser.get(where(provider, id_token_hint=tokens["id_token"], post_logout_redirect_uri=uri))
        assert "signed out" in browser.page.text
        assert not browser.left
        assert "evil" not in browser.response.text


async def test_a_hint_and_a_client_that_do_not_fit_lead_nowhere() -> None:
    async with providing() as provider, Browser(provider) as browser:
        tokens = await logged_in(browser, provider)
        params = {"id_token_hint": tokens["id_token"], "client_id": "other", "post_logout_redirect_uri": BYE}
        await browser.get(where(provider, **params))
        assert "Sign out" in browser.page.text
        assert browser.cookie()


async def test_logging_out_twice_is_no_error() -> None:
    async with providing() as provider, Browser(provider) as browser:
        response = await browser.get(where(provider, post_logout_redirect_uri=BYE, client_id="app"))
        assert response.status_code == 200
        assert browser.left == BYE


async def test_nobody_is_led_astray_by_an_application_that_anybody_could_register() -> None:
    """Attack 7: without an id_token only the operator's own applications send browsers on, and nothing is looked up."""
    bye = "https://agent.example/bye"
    async with providing(registration={"dynamic": "on"}) as provider, Browser(provider) as browser:
        client_id = await registered(provider, post_logout_redirect_uris=[bye])
        for id in (client_id, "https://agent.example/client.json"):
            response = await browser.get(where(provider, client_id=id, post_logout_redirect_uri=bye))
            assert response.status_code == 200
            assert "agent.example" not in response.text
        flow = Flow(provider, client_id=client_id, redirect_uri="https://agent.example/cb", scope="openid")
        await browser.get(flow.url)
        await browser.login()
        await browser.submit(do="allow")
        hint = (await flow.redeem(browser.answer["code"])).json()["id_token"]
        await browser.get(Flow(provider, prompt="login").url)
        await browser.login("bob")  # so that the hint means somebody else: a question
        await browser.get(where(provider, id_token_hint=hint, post_logout_redirect_uri=bye))
        assert "Sign out" in browser.page.text
        await browser.submit(do="logout")
        assert browser.left == bye
