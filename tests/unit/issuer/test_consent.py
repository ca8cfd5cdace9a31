"""Consent: asked once for what is new, in words, and never forged."""

import pytest
from tests.fixtures.auth_provider import APP, CALENDAR, MCP, PASSWORD, Browser, Flow, providing, registered

pytestmark = pytest.mark.anyio


async def agree(browser: Browser, flow: Flow) -> None:
    await browser.get(flow.url)
    if "Password" in browser.page.text:
        await browser.login()
    if "wants access" in browser.page.text:
        await browser.submit(do="allow")
    assert browser.answer["code"]


async def test_the_page_says_who_what_and_where_in_words() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider, scope="openid email mcp:read offline_access").url)
        await browser.login()
        text = browser.page.text
    for words in (
        "The App wants access",
        "ada@example.com",
        "app.example.com",
        "Tools of the house",
        MCP,
        "Read with tools",
        "See your email address",
        "Stay connected while you are away",
    ):
        assert words in text
    assert "Use all tools" not in text


async def test_only_what_is_new_is_asked() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await agree(browser, Flow(provider, scope="mcp:read"))
        await browser.get(Flow(provider, scope="mcp:read mcp").url)
        text = browser.page.text
        assert "Use all tools" in text
        assert "Read with tools" not in text
        assert "some things before" in text
        await browser.submit(do="allow")
        await browser.get(Flow(provider, scope="mcp:read mcp").url)
        assert browser.hops == [303]


async def test_another_resource_user_client_or_redirect_host_is_asked() -> None:
    """Attack 30: a second client is asked, whatever the first one got."""
    two = {**APP, "redirect_uris": [*APP["redirect_uris"], "https://elsewhere.example/cb"]}
    async with providing(clients=[two, {**APP, "id": "other"}]) as provider, Browser(provider) as browser:
        await agree(browser, Flow(provider))
        await browser.get(Flow(provider, resource=CALENDAR, scope="openid").url)
        assert "Calendar" in browser.page.text
        await browser.get(Flow(provider, client_id="other").url)
        assert "wants access" in browser.page.text
        await browser.get(Flow(provider, redirect_uri="https://elsewhere.example/cb").url)
        assert "elsewhere.example" in browser.page.text
        async with Browser(provider) as another:
            await another.get(Flow(provider).url)
            await another.login("bob")
            assert "wants access" in another.page.text


async def test_prompt_asks_again_and_silence_asks_nothing() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        await browser.get(Flow(provider, prompt="none").url)
        assert browser.answer["error"] == "consent_required"
        await agree(browser, Flow(provider))
        await browser.get(Flow(provider, prompt="none").url)
        assert browser.answer["code"]
        await browser.get(Flow(provider, prompt="consent").url)
        assert "wants access" in browser.page.text


@pytest.mark.parametrize("uri", ["http://127.0.0.1:41873/cb", "com.example.app:/cb"])
async def test_a_program_on_this_machine_is_asked_for_each_time(uri: str) -> None:
    """RFC 8252 section 8.6: any program may listen on a port, and take a scheme."""
    async with providing() as provider, Browser(provider) as browser:
        flow = {"client_id": "native", "redirect_uri": uri}
        await browser.get(Flow(provider, **flow).url)
        await browser.login()
        await browser.submit(do="allow")
        assert "code=" in browser.page.links[0]
        await browser.get(Flow(provider, **flow).url)
        assert "a program on this computer" in browser.page.text
        await browser.get(Flow(provider, prompt="none", **flow).url)
        assert browser.answer["error"] == "consent_required"


async def test_who_denies_is_believed() -> None:
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider)
        await browser.get(flow.url)
        await browser.login()
        await browser.submit(do="deny")
        assert browser.hops == [200]
        answer = browser.answer
        assert (answer["error"], answer["state"], answer["iss"]) == (
            "access_denied",
            flow.params["state"],
            provider.url,
        )
        await browser.get(Flow(provider).url)
        assert "wants access" in browser.page.text


async def test_a_forged_consent_is_refused() -> None:
    """Attack 12."""
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        login_token = browser.page.fields["csrf"]
        await browser.login()
        where, fields = browser.page.action, {**browser.page.fields, "do": "allow"}
        for token in ("", "0" * 64, login_token):
            assert (await browser.post(where, {**fields, "csrf": token})).status_code == 403
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
            assert (await browser.post(where, fields, headers)).status_code == 403
        # What another user's page has does not do for this one's session, in the same browser.
        await browser.get(f"/oauth/login?i={fields['i']}&switch=1")
        await browser.login("bob")
        assert (await browser.post(where, fields)).status_code == 403
        await browser.get(f"/oauth/consent?i={fields['i']}")
        await browser.submit(do="allow")
        assert browser.answer["code"]


async def test_an_interaction_ends_in_one_code() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        where, fields = browser.page.action, {**browser.page.fields, "do": "allow"}
        assert (await browser.post(where, fields)).status_code == 200
        assert (await browser.post(where, fields)).status_code == 400


async def test_after_a_form_a_page_leads_on_and_no_redirect() -> None:
    """Browsers hold redirects against `form-action`; a scheme of an application's own takes the reader's hand."""
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        response = await browser.submit(do="allow")
        assert "form-action 'none'" in response.headers["content-security-policy"]
        assert browser.page.refresh == browser.page.links[0]
        flow = Flow(provider, client_id="native", redirect_uri="com.example.app:/cb")
        await browser.get(flow.url)
        await browser.submit(do="allow")
        assert browser.page.refresh == ""
        assert browser.page.links[0].startswith("com.example.app:/cb?code=")


async def test_a_login_before_a_silent_consent_is_left_by_a_page_too() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await agree(browser, Flow(provider))
        await browser.get(Flow(provider, prompt="login").url)
        await browser.login()
        assert browser.hops == [303, 200]
        assert browser.answer["code"]


async def test_a_client_that_is_not_vouched_for_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    registration = {"dynamic": "on"}
    async with providing(registration=registration) as provider, Browser(provider) as browser:
        client_id = await registered(provider, client_name="<b>Your Bank</b>")
        flow = Flow(provider, client_id=client_id, redirect_uri="https://agent.example/cb")
        await browser.get(flow.url)
        await browser.login()
        assert "unverified" in browser.page.text
        assert "<b>Your Bank</b>" in browser.page.text
        assert "<b>Your Bank" not in browser.response.text
        assert "agent.example" in browser.page.text


async def test_a_session_that_ended_meanwhile_leads_back_to_the_login() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        page = browser.page
        await provider.parts.tables.sessions.remove(browser.cookie())
        await browser.post(page.action, {**page.fields, "do": "allow"})
        assert "Password" in browser.page.text
        await browser.submit(username="ada", password=PASSWORD, do="login")
        await browser.submit(do="allow")
        assert browser.answer["code"]
