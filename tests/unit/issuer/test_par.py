"""Pushed authorization requests: judged when they are pushed, used once, and there again in the same browser."""

import httpx
import pytest
from tests.fixtures.auth_provider import APP, Browser, Flow, Provider, providing

pytestmark = pytest.mark.anyio

SECRET = str(APP["secret"])


async def push(provider: Provider, flow: Flow, **more: str) -> httpx.Response:
    async with httpx.AsyncClient() as http:
        return await http.post(f"{provider.url}/oauth/par", data={**flow.sent, "client_secret": SECRET, **more})


def taken(provider: Provider, uri: str, client_id: str = "app") -> str:
    return f"{provider.url}/oauth/authorize?client_id={client_id}&request_uri={uri}"


async def test_a_pushed_request_becomes_an_interaction_that_a_reload_finds_again() -> None:
    async with providing() as provider, Browser(provider) as browser:
        flow = Flow(provider)
        pushed = await push(provider, flow)
        assert pushed.status_code == 201
        assert pushed.headers["cache-control"] == "no-store"
        assert pushed.json()["expires_in"] == 60
        uri = pushed.json()["request_uri"]
        await browser.get(taken(provider, uri))
        assert "Password" in browser.page.text
        await browser.get(taken(provider, uri))
        assert "Password" in browser.page.text
        async with Browser(provider) as another:
            assert (await another.get(taken(provider, uri))).status_code == 400
        await browser.login()
        await browser.submit(do="allow")
        assert (await flow.redeem(browser.answer["code"])).status_code == 200
        assert (await browser.get(taken(provider, uri))).status_code == 400


async def test_what_stands_beside_a_request_uri_is_not_looked_at() -> None:
    async with providing() as provider, Browser(provider) as browser:
        uri = (await push(provider, Flow(provider))).json()["request_uri"]
        beside = "&redirect_uri=https%3A%2F%2Fevil.example%2F&scope=calendar&state=other"
        await browser.get(taken(provider, uri) + beside)
        await browser.login()
        await browser.submit(do="allow")
        assert browser.left.startswith("https://app.example.com/cb?")
        assert browser.answer["state"] != "other"


async def test_a_pushed_request_is_of_the_client_that_pushed_it() -> None:
    async with providing() as provider, Browser(provider) as browser:
        uri = (await push(provider, Flow(provider))).json()["request_uri"]
        assert (await browser.get(taken(provider, uri, "other"))).status_code == 400


async def test_what_is_wrong_is_said_when_it_is_pushed() -> None:
    async with providing() as provider:
        answers = {
            error: await push(provider, Flow(provider, **changed), **more)
            for error, changed, more in (
                ("invalid_client", {}, {"client_secret": "x" * 40}),
                ("invalid_request", {"redirect_uri": "https://evil.example/"}, {}),
                ("invalid_scope", {"scope": "calendar"}, {}),
                ("invalid_target", {"resource": "https://elsewhere.example"}, {}),
                ("unsupported_response_type", {"response_type": "token"}, {}),
            )
        }
        nested = await push(provider, Flow(provider), request_uri="urn:ietf:params:oauth:request_uri:x")
    for error, answer in answers.items():
        assert answer.json()["error"] == error
        assert answer.status_code == (401 if error == "invalid_client" else 400)
    assert nested.json()["error"] == "invalid_request"


async def test_a_client_that_must_push_gets_nothing_else() -> None:
    strict = {**APP, "require_par": True}
    async with providing(clients=[strict]) as provider, Browser(provider) as browser:
        await browser.get(Flow(provider).url)
        assert browser.answer["error"] == "invalid_request"
        uri = (await push(provider, Flow(provider))).json()["request_uri"]
        await browser.get(taken(provider, uri))
        assert "Password" in browser.page.text


async def test_the_secret_is_not_kept_with_the_request() -> None:
    async with providing() as provider:
        uri = (await push(provider, Flow(provider))).json()["request_uri"]
        pushed = await provider.parts.tables.pushed.take(uri)
    assert pushed is not None
    assert SECRET not in str(pushed)


async def test_a_pushed_request_has_its_size_and_its_number() -> None:
    async with providing() as provider:
        assert (await push(provider, Flow(provider), more="x" * 17_000)).status_code == 413
        for _ in range(50):
            await provider.exhaust()
            if (answer := await push(provider, Flow(provider))).status_code != 201:
                break
    assert answer.status_code == 429
    assert answer.json()["error"] == "temporarily_unavailable"
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_pushed_request_ends_with_its_minute() -> None:
    async with providing() as provider, Browser(provider) as browser:
        uri = (await push(provider, Flow(provider))).json()["request_uri"]
        await provider.parts.tables.pushed.remove(uri)  # as the store does, in the end
        assert (await browser.get(taken(provider, uri))).status_code == 400
