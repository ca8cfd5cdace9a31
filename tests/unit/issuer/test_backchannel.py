"""Applications hear that a login has ended: which of them, in which words, and what happens when they do not listen."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from tests.fixtures.auth_provider import APP, OTHER, Browser, Flow, Provider, providing
from tests.fixtures.foreign_issuer import Asked, ForeignIssuer, foreign_issuer
from tests.fixtures.gateway import until

from tollhouse.issuer.backchannel import BackchannelLogout
from tollhouse.issuer.records import Session, UserInfo
from tollhouse.issuer.spec import ClientSpec
from tollhouse.wire.jose import Token, parse
from tollhouse.wire.oidc import logout_token_flaw

pytestmark = pytest.mark.anyio


def ok(_: Asked) -> Any:
    return 200, b"", {}


@asynccontextmanager
async def listening(says: Any = ok) -> AsyncIterator[tuple[Provider, ForeignIssuer]]:
    """A provider with two applications, one of which wants to hear; and where it hears."""
    async with foreign_issuer(says) as there:
        clients = [{**APP, "backchannel_logout_uri": f"{there.url}/out"}, OTHER]
        async with providing(clients=clients) as provider:
            yield provider, there


async def logged_in(browser: Browser, provider: Provider, **asked: Any) -> str:
    """In an application: its code."""
    await browser.get(Flow(provider, **asked).url)
    if "Password" in browser.page.text:
        await browser.login()
    if "wants access" in browser.page.text:
        await browser.submit(do="allow")
    return browser.answer["code"]


async def log_out(browser: Browser) -> None:
    await browser.get("/oauth/logout")
    await browser.submit(do="logout")
    assert "You are signed out" in browser.page.text


async def test_who_got_a_code_hears_of_it_once() -> None:
    async with listening() as (provider, there), Browser(provider) as browser:
        for _ in range(2):
            await logged_in(browser, provider)
        await logged_in(browser, provider, client_id="other")  # which does not want to
        await log_out(browser)
        await until(lambda: there.forms)
        async with httpx.AsyncClient() as http:
            keys = KeySet.import_key_set((await http.get(f"{provider.url}/oauth/jwks")).json())
            document = (await http.get(f"{provider.url}/.well-known/openid-configuration")).json()
        (form,) = there.forms
        said = jwt.decode(form["logout_token"], keys, algorithms=["ES256"])
        assert said.header["typ"] == "logout+jwt"
        assert (said.claims["iss"], said.claims["aud"], said.claims["sub"]) == (provider.url, "app", "ada")
        assert said.claims["sid"]
        token = parse(form["logout_token"].encode())
        assert isinstance(token, Token)
        flaw = logout_token_flaw(token, issuer=provider.url, client_id="app", now=time(), leeway=0.0, longest=130.0)
        assert flaw == ""
        assert document["backchannel_logout_supported"] is True
        assert document["backchannel_logout_session_supported"] is True


async def test_the_session_that_tokens_name_is_the_one_that_ended() -> None:
    async with listening() as (provider, there), Browser(provider) as browser:
        flow = Flow(provider)
        await browser.get(flow.url)
        await browser.login()
        await browser.submit(do="allow")
        given = (await flow.redeem(browser.answer["code"])).json()
        claims = parse(given["id_token"].encode())
        assert isinstance(claims, Token)
        await log_out(browser)
        await until(lambda: there.forms)
        token = parse(there.forms[0]["logout_token"].encode())
        assert isinstance(token, Token)
        assert token.claims["sid"] == claims.claims["sid"]


async def test_somebody_else_in_the_same_browser_ends_the_one_before() -> None:
    async with listening() as (provider, there), Browser(provider) as browser:
        await logged_in(browser, provider)
        await browser.get(Flow(provider, prompt="login").url)
        await browser.login("bob")
        await until(lambda: there.forms)
        token = parse(there.forms[0]["logout_token"].encode())
        assert isinstance(token, Token)
        assert token.claims["sub"] == "ada"


async def test_the_same_user_again_ends_nothing_and_is_still_told() -> None:
    async with listening() as (provider, there), Browser(provider) as browser:
        await logged_in(browser, provider)
        await browser.get(Flow(provider, client_id="other", prompt="login").url)
        await browser.login()
        assert there.forms == []
        await log_out(browser)
        await until(lambda: len(there.forms) == 1)


async def test_who_got_nothing_hears_nothing() -> None:
    async with listening() as (provider, there), Browser(provider) as browser:
        await logged_in(browser, provider, client_id="other")
        await browser.get(Flow(provider).url)
        await browser.submit(do="deny")
        await log_out(browser)
        assert provider.parts.backchannel is not None
        await provider.parts.backchannel.close()
        assert there.forms == []


async def test_nobody_waits_for_an_application_that_is_silent() -> None:
    hold = asyncio.Event()

    async def never(_: Asked) -> Any:
        await hold.wait()

    async with listening(never) as (provider, there), Browser(provider) as browser:
        await logged_in(browser, provider)
        async with asyncio.timeout(10):
            await log_out(browser)
        await until(lambda: there.forms)
        hold.set()


SESSION = Session("ada", UserInfo(), int(time()), sid="s1", clients=("app", "other", "gone"))


@pytest.mark.parametrize(
    ("answers", "tries"),
    [
        ([200], 1), ([204], 1), ([500, 503, 200], 3), ([429, 200], 2), ([400], 1), ([404], 1), ([302], 4),
        ([500, 500, 500, 500], 4),
    ],
)  # fmt: skip
async def test_tried_again(answers: list[int], tries: int, caplog: pytest.LogCaptureFixture) -> None:
    left = list(answers)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    def says(_: Asked) -> Any:
        return left.pop(0) if len(left) > 1 else left[0], b"", {"location": "http://127.0.0.1:1/"}

    async with listening(says) as (provider, there):
        parts = provider.parts
        telling = BackchannelLogout(parts.mint, parts.clients, parts.fetcher, sleep)
        telling.ended(SESSION)
        (task,) = telling._tasks
        await task
        assert len(there.forms) == tries
        assert waited == [1.0, 5.0, 15.0][: tries - 1]
        assert len({form["logout_token"] for form in there.forms}) == tries
        told = answers[-1] in (200, 204)
        assert ("client app could not be told of a logout" in caplog.text) is not told
        assert all(form["logout_token"] not in caplog.text for form in there.forms)


async def test_so_many_at_a_time_and_none_after_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async def never(_: Asked) -> Any:
        await asyncio.Event().wait()

    async with listening(never) as (provider, _):
        parts = provider.parts
        telling = BackchannelLogout(parts.mint, parts.clients, parts.fetcher)
        for _ in range(258):
            telling.ended(SESSION)
        assert len(telling._tasks) == 256
        assert caplog.text.count("others are being told") == 2
        await telling.close()
        await asyncio.sleep(0)
        assert not telling._tasks


@pytest.mark.parametrize(
    "value", ["ftp://a.example/x", "https://a.example/#x", "https://u:p@a.example/", "https:///x", "/x", "https://a b"]
)
def test_bad_settings(value: str) -> None:
    with pytest.raises(ValueError, match="no https or http URL"):
        ClientSpec.model_validate({**APP, "backchannel_logout_uri": value})
    with pytest.raises(ValueError, match="no effect without the grant"):
        ClientSpec.model_validate(
            {
                "id": "x",
                "secret": "x" * 40,
                "grants": ["client_credentials"],
                "backchannel_logout_uri": "https://a.example",
            }
        )
