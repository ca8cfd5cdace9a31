"""Login at an upstream: what its answer must be, and who somebody is here who is somebody there."""

from typing import Any
from urllib.parse import quote_plus, urlencode

import httpx
import pytest
from joserfc.jwk import ECKey, RSAKey
from tests.fixtures.auth_provider import ADA, APP, BOB, MCP, Browser, Flow, Provider, providing
from tests.fixtures.openid_provider import SECRET, OpenIdProvider, basic, openid_provider

from tollhouse.issuer.records import Session
from tollhouse.issuer.subject import federated

pytestmark = pytest.mark.anyio


async def begin(browser: Browser, provider: Provider, idp: OpenIdProvider, **params: Any) -> dict[str, str]:
    """Up to where the browser is at the upstream: what it was sent there with."""
    await browser.get(Flow(provider, **params).url)
    if not browser.left:
        await browser.get(next(link for link in browser.page.links if "/oauth/login/" in link))
    return idp.begun(browser.left)


async def come_back(browser: Browser, asked: dict[str, str], **answer: str | None) -> None:
    said = {"code": "good", "state": asked["state"], **answer}
    query = urlencode({name: value for name, value in said.items() if value is not None})
    headers = {"sec-fetch-site": "cross-site"}
    await browser.get(f"{asked['redirect_uri']}?{query}", headers)


async def session_from(browser: Browser, provider: Provider, idp: OpenIdProvider) -> Session:
    """What a login at the upstream makes here."""
    await come_back(browser, await begin(browser, provider, idp))
    held = await provider.parts.tables.sessions.get(browser.cookie())
    assert held is not None
    return held.value


async def test_somebody_logs_in_there_and_is_somebody_of_his_own_here() -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        asked = await begin(browser, provider, idp)
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert asked["redirect_uri"] == f"{provider.url}/oauth/callback/idp"
        assert asked["scope"].split()[0] == "openid"
        await come_back(browser, asked)
        assert "Signed in as grace@example.com" in browser.page.text
        await browser.submit(do="allow")
        held = await provider.parts.tables.codes.get(browser.answer["code"])
        form, authorization = idp.asked[0]
    assert held is not None
    code = held.value
    assert code.sub == federated(idp.url, "s-1")  # what they are called when a token of theirs is exchanged, too
    assert (code.user.name, code.user.email, code.user.email_verified) == ("Grace H.", "grace@example.com", True)
    assert code.user.groups == ("ops",)
    assert authorization == basic("us", quote_plus(SECRET))
    assert "client_secret" not in form


async def test_a_secret_goes_in_the_form_where_the_upstream_wants_that() -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        idp.metadata = {"token_endpoint_auth_methods_supported": ["client_secret_post"]}
        await come_back(browser, await begin(browser, provider, idp))
        form, authorization = idp.asked[0]
    assert (form["client_id"], form["client_secret"], authorization) == ("us", SECRET, "")


async def test_the_only_way_to_log_in_is_taken_without_a_page() -> None:
    async with (
        openid_provider() as idp,
        providing(upstream=[idp.spec()], users=[]) as provider,
        Browser(provider) as browser,
    ):
        await browser.get(Flow(provider, login_hint="grace").url)
        assert browser.hops == [303, 303, 303]
        assert idp.begun(browser.left)["login_hint"] == "grace"


async def test_after_a_form_it_is_a_page_that_leads_there() -> None:
    """A redirect to somebody else after a form of ours is what `form-action` forbids."""
    async with (
        openid_provider() as idp,
        providing(upstream=[idp.spec()], users=[]) as provider,
        Browser(provider) as browser,
    ):
        await browser.get(Flow(provider).url)
        await come_back(browser, idp.begun(browser.left))
        page = browser.page
        await provider.parts.tables.sessions.remove(browser.cookie())
        await browser.post(page.action, {**page.fields, "do": "allow"})
        assert browser.hops == [303, 200]
        assert "Continue with" in browser.page.text
        await browser.post("/oauth/verify", {"user_code": "BCDF-GHJK", "do": "find"})
        assert browser.hops == [303, 200]


@pytest.mark.parametrize(
    "claims",
    [
        {"iss": "https://evil.example"},
        {"aud": "somebody-else"},
        {"aud": ["us", "them"]},
        {"aud": ["us", "them"], "azp": "them"},
        {"azp": "them"},
        {"exp": 1_000_000_000},
        {"exp": None},
        {"iat": 4_000_000_000},
        {"iat": None},
        {"nonce": "another"},
        {"nonce": None},
        {"sub": ""},
        {"sub": None},
        {"sub": "x" * 256},
        {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"},
    ],
)
async def test_an_id_token_of_another_login_is_refused(claims: dict[str, Any]) -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        asked = await begin(browser, provider, idp)
        idp.claims = claims
        await come_back(browser, asked)
        assert "could not be logged in" in browser.page.text
        assert browser.cookie() == ""


@pytest.mark.parametrize("header", [{"typ": "at+jwt"}, {"typ": "logout+jwt"}, {"kid": "unknown"}, {"alg": "RS256"}])
async def test_an_id_token_that_is_not_signed_as_one_is_refused(header: dict[str, Any]) -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        asked = await begin(browser, provider, idp)
        if header.get("alg") == "RS256":
            idp.key = RSAKey.generate_key(2048, {"kid": "k1"})
        idp.header = header
        await come_back(browser, asked)
        assert "could not be logged in" in browser.page.text


async def test_an_id_token_signed_with_an_unknown_key_is_refused() -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        asked = await begin(browser, provider, idp)
        idp.key = ECKey.generate_key("P-256", {"kid": "k1"})
        await come_back(browser, asked)
        assert "could not be logged in" in browser.page.text


async def test_an_answer_of_one_upstream_does_not_count_for_another() -> None:
    """Attack 10: the code of one is brought to the address of the other."""
    async with openid_provider() as honest, openid_provider() as evil:
        upstream = [honest.spec(), {**evil.spec(), "name": "evil"}]
        async with providing(upstream=upstream) as provider, Browser(provider) as browser:
            await browser.get(Flow(provider).url)
            await browser.get(next(link for link in browser.page.links if "/login/idp" in link))
            asked = honest.begun(browser.left)
            asked["redirect_uri"] = f"{provider.url}/oauth/callback/evil"
            await come_back(browser, asked)
            assert browser.response.status_code == 400
            assert not honest.asked
            assert not evil.asked


async def test_an_answer_that_says_another_issuer_is_refused() -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        await come_back(browser, await begin(browser, provider, idp), iss="https://evil.example")
        assert "could not be logged in" in browser.page.text
        assert not idp.asked
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        idp.metadata = {"authorization_response_iss_parameter_supported": True}
        await come_back(browser, await begin(browser, provider, idp))
        assert "could not be logged in" in browser.page.text
        assert not idp.asked
        await browser.get(next(link for link in browser.page.links if "/oauth/login/" in link))
        await come_back(browser, idp.begun(browser.left), iss=idp.url)
        assert browser.cookie()


async def test_an_answer_counts_in_its_browser_and_once() -> None:
    async with (
        openid_provider() as idp,
        providing(upstream=[idp.spec()]) as provider,
        Browser(provider) as browser,
        Browser(provider) as another,
    ):
        asked = await begin(browser, provider, idp)
        await another.get(Flow(provider).url)
        await come_back(another, asked)
        assert another.response.status_code == 400
        assert another.cookie() == ""
        for state in ("", asked["state"][:-1], asked["state"] + "x", asked["state"].partition(".")[0]):
            await come_back(browser, asked, state=state)
            assert browser.response.status_code == 400
        assert not idp.asked
        await come_back(browser, asked)
        assert browser.cookie()
        await come_back(browser, asked)
        assert browser.response.status_code == 400
        assert len(idp.asked) == 1


async def test_an_error_of_the_upstream_leads_back_to_the_login_and_stands_in_no_page() -> None:
    async with (
        openid_provider() as idp,
        providing(upstream=[idp.spec()], users=[]) as provider,
        Browser(provider) as browser,
    ):
        asked = await begin(browser, provider, idp)
        await come_back(browser, asked, code=None, error="access_denied", error_description="<b>go away</b>")
        assert "could not be logged in" in browser.page.text
        assert "go away" not in browser.response.text
        assert not browser.left


async def test_what_does_not_fit_the_upstreams_own_metadata_is_refused() -> None:
    for metadata in (
        {"issuer": "https://evil.example"},
        {"token_endpoint": "http://10.0.0.1/token"},
        {"jwks_uri": "file:///etc/passwd"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "https://idp.example/a b"},
        {"token_endpoint": 5},
    ):
        async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
            idp.metadata = metadata
            await browser.get(Flow(provider).url)
            await browser.get(next(link for link in browser.page.links if "/oauth/login/" in link))
            assert not browser.left
            assert "could not be logged in" in browser.page.text


async def test_an_upstream_that_is_down_is_said_and_comes_back() -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        idp.fails = True
        await browser.get(Flow(provider).url)
        start = next(link for link in browser.page.links if "/oauth/login/" in link)
        await browser.get(start)
        assert "could not be logged in" in browser.page.text
        idp.fails = False
        provider.wait(6)
        await browser.get(start)
        assert idp.begun(browser.left)


async def test_claims_that_are_missing_are_asked_for_and_must_be_about_the_same() -> None:
    for sub, is_in in (("s-1", True), ("s-2", False)):
        async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
            idp.metadata = {"userinfo_endpoint": f"{idp.url}/userinfo"}
            idp.claims = {"name": None, "email": None, "email_verified": None}
            idp.userinfo = {"sub": sub, "name": "Grace", "email": "g@example.com"}
            await come_back(browser, await begin(browser, provider, idp))
            assert ("Signed in as g@example.com" in browser.page.text) == is_in


async def test_an_address_is_verified_by_who_names_it() -> None:
    async with (
        openid_provider() as idp,
        providing(upstream=[idp.spec(link_by_email=True)]) as provider,
        Browser(provider) as browser,
    ):
        idp.metadata = {"userinfo_endpoint": f"{idp.url}/userinfo"}
        idp.claims = {"name": None, "email": "ada@example.com", "email_verified": None}
        idp.userinfo = {"name": "Grace", "email": "grace@example.com", "email_verified": True}
        session = await session_from(browser, provider, idp)
    assert session.sub.startswith("u_")
    assert not session.user.email_verified


@pytest.mark.parametrize(
    "linked, claims, sub",
    [
        (True, {"email": "ADA@example.com"}, "ada"),
        (False, {"email": "ada@example.com"}, "u_"),
        (True, {"email": "ada@example.com", "email_verified": False}, "u_"),
        (True, {"email": "ada@example.com", "email_verified": "true"}, "u_"),
        (True, {"email": "ada@example.com", "email_verified": None}, "u_"),
        (True, {"email": "nobody@example.com"}, "u_"),
        (True, {"email": "ada@e\u017fample.com"}, "u_"),
        (True, {"email": "ad\u00aa@example.com"}, "u_"),
    ],
)
async def test_nobody_is_linked_by_address_unless_the_operator_says_so(
    linked: bool, claims: dict[str, Any], sub: str
) -> None:
    async with openid_provider() as idp:
        upstream = [idp.spec(link_by_email=linked)]
        async with providing(upstream=upstream) as provider, Browser(provider) as browser:
            idp.claims = claims
            session = await session_from(browser, provider, idp)
    assert session.sub.startswith(sub)
    if sub == "ada":
        assert session.user.groups == ("dev",)


async def test_two_local_users_with_one_address_are_linked_to_by_nobody() -> None:
    async with openid_provider() as idp:
        twice = [ADA, {**BOB, "email": "ada@example.com"}]
        async with (
            providing(upstream=[idp.spec(link_by_email=True)], users=twice) as provider,
            Browser(provider) as browser,
        ):
            idp.claims = {"email": "ada@example.com"}
            session = await session_from(browser, provider, idp)
    assert session.sub.startswith("u_")


async def test_claims_that_could_break_a_header_or_a_log_are_left_out() -> None:
    """Attack 49."""
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        idp.claims = {
            "name": "Grace\r\nX-Injected: 1",
            "email": "g@example.com\x00",
            "groups": ["ops", "a\nb", 5, "x" * 300],
            "acr": "a\tb",
        }
        session = await session_from(browser, provider, idp)
    assert (session.user.name, session.user.email, session.user.groups, session.acr) == ("", "", ("ops",), "")
    assert not session.user.email_verified


async def test_a_fresh_login_is_asked_for_there_and_must_have_been() -> None:
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        asked = await begin(browser, provider, idp, prompt="login", max_age="300")
        assert (asked["prompt"], asked["max_age"]) == ("login", "300")
        idp.claims = {"auth_time": 1_000_000_000}
        await come_back(browser, asked)
        assert "could not be logged in" in browser.page.text
        await browser.get(next(link for link in browser.page.links if "/oauth/login/" in link))
        asked = idp.begun(browser.left)
        idp.claims = {"auth_time": int(provider.parts.now())}
        await come_back(browser, asked)
        assert "wants access" in browser.page.text


async def test_another_one_of_us_is_an_upstream() -> None:
    us = {"id": "us", "secret": APP["secret"], "redirect_uris": ["http://127.0.0.1/oauth/callback/first"]}
    async with providing(clients=[us]) as first:
        spec = {"issuer": first.url, "client_id": "us", "client_secret": APP["secret"], "name": "first"}
        async with (
            providing(upstream=[spec], users=[]) as second,
            Browser(first) as there,
            Browser(second) as here,
        ):
            flow = Flow(second)
            await here.get(flow.url)
            await there.get(here.left)
            await there.login()
            await there.submit(do="allow")
            await here.get(there.left)
            assert "Signed in as ada@example.com" in here.page.text
            await here.submit(do="allow")
            assert (await flow.redeem(here.answer["code"])).status_code == 200


@pytest.mark.parametrize(
    "upstream, why",
    [
        ([{"issuer": "https://a.example", "client_id": "x", "name": "a"}] * 2, "two upstreams are called 'a'"),
        ([{"issuer": "http://idp.example.com", "client_id": "x"}], "is https, unless"),
        ([{"issuer": "ftp://127.0.0.1", "client_id": "x"}], "is https, unless"),
    ],
)
async def test_upstreams_that_cannot_be_used_are_refused(upstream: list[dict[str, str]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        async with providing(upstream=upstream):
            pass


async def test_a_letter_that_becomes_another_in_lower_case_makes_nobody_else() -> None:
    """The sign for Kelvin is a k in lower case, and its address somebody else's."""
    async with openid_provider() as idp:
        users = [{**ADA, "email": "kim@example.com"}]
        async with (
            providing(upstream=[idp.spec(link_by_email=True)], users=users) as provider,
            Browser(provider) as browser,
        ):
            idp.claims = {"email": "\u212aim@example.com"}
            session = await session_from(browser, provider, idp)
    assert session.sub.startswith("u_")


async def test_what_is_verified_is_the_claim_email_and_no_other() -> None:
    """Many providers let users choose what the claim says that the configuration takes the address from."""
    async with openid_provider() as idp:
        upstream = [idp.spec(link_by_email=True, claims={"email": "preferred_username"})]
        async with providing(upstream=upstream) as provider, Browser(provider) as browser:
            idp.claims = {"preferred_username": "ada@example.com", "email": "eve@example.com", "email_verified": True}
            session = await session_from(browser, provider, idp)
    assert session.sub.startswith("u_")
    assert not session.user.email_verified


async def test_what_comes_of_a_login_there_says_so_and_when() -> None:
    """So that it ends with the provider (`grants.refresh_token`), and with a revocation."""
    async with openid_provider() as idp, providing(upstream=[idp.spec()]) as provider, Browser(provider) as browser:
        await come_back(browser, await begin(browser, provider, idp))
        await browser.submit(do="allow")
        code = await provider.parts.tables.codes.get(browser.answer["code"])
        async with httpx.AsyncClient() as http:
            form = {"client_id": "app", "client_secret": str(APP["secret"]), "scope": "mcp", "resource": MCP}
            shown = (await http.post(f"{provider.url}/oauth/device", data=form)).json()["user_code"]
        await browser.get(f"{provider.url}/oauth/verify?user_code={shown}")
        await browser.submit(do="find")
        await browser.submit(do="allow")
        device = await provider.parts.tables.devices.get(shown.replace("-", ""))
        assert code is not None
        assert device is not None
        for allowed in (code.value, device.value):
            assert allowed.upstream == idp.url
            assert abs(allowed.issued - provider.parts.now()) < 60
