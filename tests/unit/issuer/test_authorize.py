"""The authorization endpoint: what is wrong is said to the right one, and what is right leads to a code."""

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from tests.fixtures.auth_provider import CALENDAR, MCP, Browser, Flow, providing, registered

from tollhouse.core.clock import Clock
from tollhouse.store.base import KeyValue, State, unavailable
from tollhouse.store.memory import MemoryState

pytestmark = pytest.mark.anyio


async def test_a_login_and_a_consent_end_in_a_code_that_is_redeemed() -> None:
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider, nonce="n-1")
        await browser.get(flow.url)
        assert browser.hops == [303, 200]
        await browser.login()
        await browser.submit(do="allow")
        assert browser.answer["state"] == flow.params["state"]
        assert browser.answer["iss"] == provider.url
        answer = (await flow.redeem(browser.answer["code"])).json()
    assert answer["scope"] == "mcp openid"
    assert answer["id_token"]


async def test_what_was_asked_before_is_answered_at_once_by_a_redirect() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        await browser.submit(do="allow")
        flow = Flow(provider)
        await browser.get(flow.url)
        assert browser.hops == [303]
        assert (await flow.redeem(browser.answer["code"])).status_code == 200


@pytest.mark.parametrize(
    "uri",
    [
        "https://app.example.com/cb/",
        "https://app.example.com/cb/../evil",
        "https://app.example.com/CB",
        "https://app.example.com/cb?x=1",
        "https://app.example.com/cb#f",
        "https://app.example.com/cb%20",
        "https://app.example.com/c%62",
        "https://APP.example.com/cb",
        "https://app.example.com:443/cb",
        "https://app.example.com.evil.example/cb",
        "https://app.example.com@evil.example/cb",
        "https://evil.example/?https://app.example.com/cb",
        "https://user@app.example.com/cb",
        "https://app.example.com\\@evil.example/cb",
        "//app.example.com/cb",
        "http://app.example.com/cb",
        "javascript:alert(1)",
        "data:text/html,x",
        " https://app.example.com/cb",
        "https://app.example.com/cb ",
        "https://app.example.com/cb\t",
        "",
    ],
)
async def test_a_redirect_uri_that_was_not_registered_is_a_page_and_no_redirect(uri: str) -> None:
    """Attacks 5, 7, 8."""
    async with providing() as provider, Browser(provider) as browser:
        response = await browser.get(Flow(provider, redirect_uri=uri, scope="bad scope").url)
        assert response.status_code == 400
        assert "location" not in response.headers
        assert not browser.left
        assert "evil" not in response.text
        assert browser.page.forms == []


@pytest.mark.parametrize(
    "uri, fits",
    [
        ("http://127.0.0.1:41873/cb", True),
        ("http://127.0.0.1/cb", True),
        ("com.example.app:/cb", True),
        ("http://127.0.0.1:41873/other", False),
        ("http://localhost:41873/cb", False),
        ("http://127.0.0.2:41873/cb", False),
        ("http://127.0.0.1:70000/cb", False),
        ("http://127.0.0.1:1@evil.example/cb", False),
        ("https://127.0.0.1:41873/cb", False),
        ("com.example.app:/cb2", False),
    ],
)
async def test_any_port_does_for_a_native_client_on_loopback_but_no_other_host_or_path(uri: str, fits: bool) -> None:
    """Attack 6."""
    async with providing() as provider, Browser(provider) as browser:
        response = await browser.get(Flow(provider, client_id="native", redirect_uri=uri).url)
        assert response.status_code == (200 if fits else 400)


async def test_any_port_does_not_for_a_client_that_is_not_native() -> None:
    web = {"id": "web", "redirect_uris": ["http://127.0.0.1:5000/cb"], "native": False}
    async with providing(clients=[web]) as provider, Browser(provider) as browser:
        flow = Flow(provider, client_id="web", redirect_uri="http://127.0.0.1:5001/cb")
        assert (await browser.get(flow.url)).status_code == 400


@pytest.mark.parametrize(
    "changed",
    [
        {"client_id": None},
        {"client_id": "nobody"},
        {"redirect_uri": None},
        {"client_id": ["app", "app"]},
        {"state": ["a", "b"]},
        {"request": "e30.e30."},
        {"request_uri": "https://evil.example/request"},
        {"request_uri": "urn:ietf:params:oauth:request_uri:made-up"},
        {"state": "a\x00b"},
    ],
)
async def test_until_the_answer_has_an_address_the_person_is_told(changed: dict[str, Any]) -> None:
    async with providing() as provider, Browser(provider) as browser:
        response = await browser.get(Flow(provider, **changed).url)
        assert response.status_code == 400
        assert "location" not in response.headers
        assert "text/html" in response.headers["content-type"]


@pytest.mark.parametrize(
    "changed, error",
    [
        ({"response_type": "token"}, "unsupported_response_type"),
        ({"response_type": None}, "unsupported_response_type"),
        ({"code_challenge": None}, "invalid_request"),
        ({"code_challenge_method": None}, "invalid_request"),
        ({"code_challenge_method": "plain"}, "invalid_request"),
        ({"code_challenge": "a" * 42}, "invalid_request"),
        ({"code_challenge": "a" * 44}, "invalid_request"),
        ({"resource": "https://elsewhere.example"}, "invalid_target"),
        ({"resource": "not a uri"}, "invalid_target"),
        ({"scope": "calendar"}, "invalid_scope"),
        ({"scope": 'mc"p'}, "invalid_scope"),
        ({"prompt": "none"}, "login_required"),
        ({"prompt": "none login"}, "invalid_request"),
        ({"prompt": "surprise"}, "invalid_request"),
        ({"max_age": "-1"}, "invalid_request"),
        ({"max_age": "soon"}, "invalid_request"),
        ({"response_mode": "fragment"}, "invalid_request"),
        ({"dpop_jkt": "short"}, "invalid_request"),
        ({"nonce": "n" * 1025}, "invalid_request"),
        ({"id_token_hint": "e30.e30.AA"}, "invalid_request"),
    ],
)
async def test_after_that_the_application_is_told_with_state_and_issuer(changed: dict[str, Any], error: str) -> None:
    """Attacks 4 (PKCE downgrade) and 9 (mix-up: `iss` is in errors, too)."""
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider, **changed)
        await browser.get(flow.url)
        assert browser.hops == [303]
        assert browser.left.startswith("https://app.example.com/cb?")
        answer = browser.answer
        assert answer["error"] == error
        assert answer["state"] == flow.params["state"]
        assert answer["iss"] == provider.url


async def test_a_client_without_the_grant_gets_no_code() -> None:
    app = {"id": "app", "secret": "x" * 32, "redirect_uris": ["https://app.example.com/cb"]}
    robot = {**app, "id": "robot", "grants": ["authorization_code"], "scopes": ["mcp"]}
    async with providing(clients=[robot]) as provider, Browser(provider) as browser:
        await browser.get(Flow(provider, client_id="robot", scope="mcp:read").url)
        assert browser.answer["error"] == "invalid_scope"


async def test_a_resource_that_is_not_the_clients_is_refused() -> None:
    app = {"id": "app", "redirect_uris": ["https://app.example.com/cb"], "audiences": [CALENDAR]}
    async with providing(clients=[app]) as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        assert browser.answer["error"] == "invalid_target"


async def test_a_state_that_is_too_long_is_not_carried_along() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider, state="s" * 8193).url)
        assert browser.answer["error"] == "invalid_request"
        assert "state" not in browser.answer


async def test_an_answer_may_be_posted_and_that_page_alone_has_a_script_by_its_hash() -> None:
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider, response_mode="form_post")
        await browser.get(flow.url)
        await browser.login()
        response = await browser.submit(do="allow")
        page = browser.page
        policy = response.headers["content-security-policy"]
    assert page.action == flow.params["redirect_uri"]
    assert page.fields["state"] == flow.params["state"]
    assert page.fields["code"]
    assert page.fields["iss"] == provider.url
    assert "script-src 'sha256-" in policy
    assert "unsafe-inline" not in policy
    assert policy.endswith(f"script-src {policy.rpartition('script-src ')[2]}")
    assert "form-action https:;" in policy


async def test_a_request_that_is_posted_comes_back_as_a_get() -> None:
    """Browsers send no Lax cookie with another site's form."""
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        await browser.submit(do="allow")
        flow = Flow(provider)
        where = f"{provider.url}/oauth/authorize"
        await browser.post(where, flow.sent, {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"})
        assert browser.hops == [303, 303]
        assert browser.answer["state"] == flow.params["state"]


async def test_a_fresh_login_is_asked_for_and_counts_once() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        await browser.submit(do="allow")
        for params in ({"prompt": "login"}, {"max_age": "0"}):
            flow = Flow(provider, **params)
            await browser.get(flow.url)
            assert "Password" in browser.page.text
            old = browser.cookie()
            await browser.login()
            assert browser.cookie() != old
            assert (await flow.redeem(browser.answer["code"])).status_code == 200


async def test_a_login_that_is_too_old_is_asked_again() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        await browser.submit(do="allow")
        provider.wait(100)
        await browser.get(Flow(provider, max_age="1000").url)
        assert browser.answer["code"]
        await browser.get(Flow(provider, max_age="90").url)
        assert "Password" in browser.page.text
        await browser.get(Flow(provider, max_age="90", prompt="none").url)
        assert browser.answer["error"] == "login_required"


async def test_an_account_is_chosen_by_going_on_or_logging_in() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        await browser.submit(do="allow")
        await browser.get(Flow(provider, prompt="select_account").url)
        assert "Continue as ada@example.com" in browser.page.text
        action, fields = browser.page.forms[0]
        await browser.post(action, {**fields, "do": "keep"})
        assert browser.answer["code"]


async def test_going_on_does_not_stand_for_the_login_that_was_asked() -> None:
    async with providing() as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        await browser.login()
        await browser.submit(do="allow")
        await browser.get(Flow(provider, prompt="login").url)
        assert "Continue as" not in browser.page.text
        await browser.submit(do="keep")
        assert "Password" in browser.page.text
        assert not browser.left


async def test_whoever_was_meant_must_be_who_logs_in() -> None:
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider)
        await browser.get(flow.url)
        await browser.login()
        await browser.submit(do="allow")
        hint = (await flow.redeem(browser.answer["code"])).json()["id_token"]
        await browser.get(Flow(provider, prompt="none", id_token_hint=hint).url)
        assert browser.answer["code"]
        async with Browser(provider) as another:
            await another.get(Flow(provider, id_token_hint=hint).url)
            await another.login("bob")
            assert another.answer["error"] == "login_required"
            # Nor does it help that he has allowed all of it before.
            await another.get(Flow(provider).url)
            await another.submit(do="allow")
            await another.get(Flow(provider, prompt="none", id_token_hint=hint).url)
            assert another.answer["error"] == "login_required"
        # Another application's id_token says nothing to this one.
        await browser.get(Flow(provider, client_id="other", id_token_hint=hint).url)
        assert browser.answer["error"] == "invalid_request"


async def test_the_login_hint_is_filled_in_and_escaped() -> None:
    async with providing() as provider, Browser(provider) as browser:
        response = await browser.get(Flow(provider, login_hint='"><script>alert(1)</script>').url)
        assert "<script" not in response.text
        assert browser.page.fields["username"] == '"><script>alert(1)</script>'


async def test_the_code_has_what_was_asked() -> None:
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider, resource=[MCP, CALENDAR], scope="mcp:read calendar", dpop_jkt="j" * 43)
        await browser.get(flow.url)
        await browser.login()
        await browser.submit(do="allow")
        held = await provider.parts.tables.codes.get(browser.answer["code"])
        assert held is not None
        code = held.value
    assert code.resources == (MCP, CALENDAR)
    assert code.scopes == ("calendar", "mcp:read")
    assert (code.sub, code.user.email, code.amr) == ("ada", "ada@example.com", ("pwd",))
    assert code.dpop_jkt == "j" * 43
    assert code.challenge == flow.params["code_challenge"]
    assert code.sid


async def test_an_issuer_below_a_path_keeps_its_pages_and_cookies_there() -> None:
    async with providing(path="/tenant") as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        assert urlsplit(str(browser.response.url)).path == "/tenant/oauth/login"
        assert "/tenant/oauth/style.css" in browser.response.text
        await browser.login()
        assert {cookie.path for cookie in browser.cookies.jar} == {"/tenant"}
        await browser.submit(do="allow")
        assert browser.answer["iss"] == provider.url


async def test_the_parameters_join_those_the_redirect_uri_has() -> None:
    app = {"id": "app", "secret": "x" * 32, "redirect_uris": ["https://app.example.com/cb?a=1&b=%2F"]}
    async with providing(clients=[app]) as provider, Browser(provider) as browser:
        flow = Flow(provider, redirect_uri=app["redirect_uris"][0], prompt="none", state="a b&c=d")
        await browser.get(flow.url)
        query = urlsplit(browser.left).query
        assert query.startswith("a=1&b=%2F&error=login_required&")
        assert dict(parse_qsl(query))["state"] == "a b&c=d"


async def test_nobody_fills_the_state_from_one_address() -> None:
    async with providing() as provider, Browser(provider) as browser:
        for _ in range(50):
            await provider.exhaust()
            if (await browser.get(f"{provider.url}/oauth/authorize?client_id=nobody")).status_code != 400:
                break
        response = browser.response
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert "text/html" in response.headers["content-type"]


async def test_a_document_that_cannot_be_used_is_a_page_without_a_challenge() -> None:
    async with providing() as provider, Browser(provider) as browser:
        response = await browser.get(Flow(provider, client_id="https://127.0.0.1/client.json").url)
        assert response.status_code == 400
        assert "www-authenticate" not in response.headers


async def test_while_the_state_is_gone_people_are_told_to_come_back() -> None:
    class Gone:
        def __init__(self, values: KeyValue) -> None:
            self.values = values
            self.is_gone = False

        def __getattr__(self, name: str) -> Any:
            if self.is_gone:
                raise unavailable("it is gone")
            return getattr(self.values, name)

    stores: list[Gone] = []

    def lost(clock: Clock) -> list[State]:
        state = MemoryState(clock)
        stores.append(Gone(state.values))
        state.values = stores[0]  # type: ignore[assignment]
        return [state]

    async with providing(states=lost) as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        stores[0].is_gone = True
        for response in (await browser.get(str(browser.response.url)), await browser.get(Flow(provider).url)):
            assert response.status_code == 503
            assert "try again in a second" in browser.page.text
            assert "it is gone" not in response.text
        stores[0].is_gone = False


async def test_a_huge_request_is_refused() -> None:
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider, acr_values="x" * 20_000)
        response = await browser.post(f"{provider.url}/oauth/authorize", flow.sent)
        assert response.status_code == 413
        many = urlencode([(f"p{n}", "1") for n in range(100)])
        assert (await browser.get(f"{Flow(provider).url}&{many}")).status_code == 400


@pytest.mark.parametrize("changed", [{"prompt": "none"}, {"response_type": "token"}, {"response_mode": "form_post"}])
async def test_an_error_takes_nobody_to_an_application_that_nobody_knows(changed: dict[str, Any]) -> None:
    """RFC 9700 section 4.11.2: whoever registers one could lead people astray from here."""
    bad = {"scope": "nonsense", **changed} if "response_mode" in changed else changed
    async with providing(registration={"dynamic": "on"}) as provider, Browser(provider) as browser:
        client_id = await registered(provider, client_name="<i>Agent")
        there = {"client_id": client_id, "redirect_uri": "https://agent.example/cb"}
        response = await browser.get(Flow(provider, **there, **bad).url)
        assert response.status_code == 400
        assert browser.left == ""
        assert "agent.example" in browser.page.text
        assert "<i>" not in response.text
        assert "form-action 'none'" in response.headers["content-security-policy"]
        assert browser.page.links[0].startswith("https://agent.example/cb?error=")
        await browser.get(Flow(provider, **there).url)
        await browser.login()
        await browser.submit(do="allow")
        await browser.get(Flow(provider, **there, prompt="none", max_age="0").url)
        assert browser.answer["error"] == "login_required"
