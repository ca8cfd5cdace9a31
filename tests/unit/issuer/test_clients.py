"""A client_id belongs to one source, and a client stays the same object while it stays the same."""

import asyncio

import pytest
from tests.fixtures.issuer import CLIENTS, SECRET, issuing, new_key, signed

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.net.client import Client as Fetcher
from tollhouse.wire.client_metadata import ClientMetadata
from tollhouse.wire.jose import Token, parse
from tollhouse.wire.oauth import OAuthError

pytestmark = pytest.mark.anyio
METADATA = ClientMetadata(redirect_uris=("http://127.0.0.1/cb",), token_endpoint_auth_method="none")


async def test_a_client_of_the_configuration() -> None:
    async with issuing() as node:
        client = await node.parts.clients.find("app")
        assert client is not None
        assert client is node.parts.clients.configured("app")
        assert (client.name, client.host, client.source, client.verified) == ("app", "app.example.com", "config", True)
        assert client.secret_hash != SECRET.encode()
        assert SECRET not in repr(client)
        client.must("authorization_code")
        with pytest.raises(OAuthError) as error:
            client.must("client_credentials")
        assert error.value.error == "unauthorized_client"


@pytest.mark.parametrize(
    "id", ["nobody", "", "dyn_", "dyn_x", "https://", "http://client.example.com/x", "u_x", "x" * 3000]
)
async def test_who_is_nobody(id: str) -> None:
    async with issuing(registration={"dynamic": "on", "metadata_documents": "off"}) as node:
        assert await node.parts.clients.find(id) is None


async def test_nobody_takes_the_place_of_a_client_of_the_configuration() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        assert await node.parts.clients.add("app", METADATA, "")
        client = await node.parts.clients.find("app")
        assert client is not None
        assert client.source == "config"


async def test_registrations_count_only_while_they_are_allowed() -> None:
    async with issuing(registration={"dynamic": "on"}) as node:
        assert await node.parts.clients.add("dyn_a", METADATA, "")
        assert not await node.parts.clients.add("dyn_a", METADATA, "")
        first = await node.parts.clients.find("dyn_a")
        assert first is not None
        assert await node.parts.clients.find("dyn_a") is first
    async with issuing() as node:
        await node.parts.clients.add("dyn_a", METADATA, "")
        assert await node.parts.clients.find("dyn_a") is None


async def test_what_tokens_of_it_may_be_for() -> None:
    async with issuing(clients=[{**CLIENTS[2], "audiences": ["https://api.example.com"]}]) as node:
        client = node.parts.clients.configured("robot")
        assert client is not None
        assert client.may_target("https://api.example.com")
        assert not client.may_target("https://other.example.com")


async def test_a_client_that_is_not_remembered_any_more_gives_up_its_keys() -> None:
    there = ClientMetadata(
        redirect_uris=("http://127.0.0.1/cb",),
        token_endpoint_auth_method="private_key_jwt",
        jwks_uri="https://keys.example.com/jwks",
    )
    asked, gate = asyncio.Event(), asyncio.Event()

    async def lookup(_: str, __: int) -> list[tuple[int, str]]:
        asked.set()
        await gate.wait()
        return []

    fetcher = Fetcher(Clock(), lookup=lookup)
    async with issuing(registration={"dynamic": "on"}, fetcher=fetcher) as node:
        clients = node.parts.clients
        for n in range(1001):
            assert await clients.add(f"dyn_{n}", METADATA if n else there, "")
        first = await clients.find("dyn_0")
        assert first is not None
        assert first.keys is not None
        token = parse(signed(new_key(), {"iss": "dyn_0", "exp": 1}).encode())
        assert isinstance(token, Token)
        waiting = asyncio.ensure_future(first.keys.keys(token))
        await asked.wait()
        for n in range(1, 1001):
            await clients.find(f"dyn_{n}")
        for _ in range(10):
            await asyncio.sleep(0)
        assert waiting.done()  # and does not wait for what nobody will read
        with pytest.raises(Failure) as error:
            await waiting
        assert error.value.status == 503
        assert await clients.find("dyn_0") is not first
    await fetcher.close()
