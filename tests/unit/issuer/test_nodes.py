"""Two nodes on one Valkey: whatever one of them began, the other one goes on with."""

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from tests.fixtures.auth_provider import APP, Browser, Flow, Provider, providing
from tests.fixtures.valkey import Valkey, valkey

from tollhouse.core.clock import Clock
from tollhouse.store.base import State
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    with valkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server


async def refresh(provider: Provider, token: str) -> httpx.Response:
    form = {"grant_type": "refresh_token", "refresh_token": token, "client_id": "app"}
    async with httpx.AsyncClient() as http:
        return await http.post(f"{provider.url}/oauth/token", data={**form, "client_secret": str(APP["secret"])})


async def test_each_request_is_at_another_node(server: Valkey) -> None:
    spec = StateSpec.model_validate({"url": server.url, "encryption_key": "k" * 32})

    def two(clock: Clock) -> list[State]:
        return [RedisState(spec, clock, (), lambda *_: None) for _ in range(2)]

    async with providing(states=two) as provider, Browser(provider) as browser:
        flow = Flow(provider)
        async with httpx.AsyncClient() as http:
            form = {**flow.sent, "client_secret": str(APP["secret"])}
            uri = (await http.post(f"{provider.url}/oauth/par", data=form)).json()["request_uri"]
        await browser.get(f"{provider.url}/oauth/authorize?client_id=app&request_uri={uri}")
        await browser.login("ada", "wrong")
        await browser.login()
        await browser.submit(do="allow")
        tokens = (await flow.redeem(browser.answer["code"])).json()
        tokens = (await refresh(provider, tokens["refresh_token"])).json()
        await browser.get(f"{provider.url}/oauth/grants")
        page = browser.page
        provider.wait(1)
        await browser.post(page.action, {**page.fields, "do": "revoke"})
        assert "allowed no application anything" in browser.page.text
        refused = 0
        async with asyncio.timeout(5):
            while refused < 2:  # once at each: one did it, the other hears of it
                answer = await refresh(provider, tokens["refresh_token"])
                refused = refused + 1 if answer.status_code == 400 else 0
                tokens = tokens if refused else answer.json()
        # What is kept says nothing to whoever reads the server.
        with server.client() as client:
            kept = [client.get(key) or b"" for key in client.keys("*") if client.type(key) == b"string"]
        assert kept
        assert not any(b"ada@example.com" in value or browser.cookie().encode() in value for value in kept)
