"""The whole: it opens when its state is there, and lets go of all it has."""

import asyncio
from pathlib import Path

import pytest
from tests.fixtures.issuer import CLIENTS, MCP, RESOURCES, issuing
from tests.fixtures.valkey import Valkey

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.http import Headers, Request
from tollhouse.issuer.keys import SigningKeys
from tollhouse.issuer.provider import Issuer
from tollhouse.issuer.spec import IssuerSpec
from tollhouse.net.client import Client
from tollhouse.net.timer import Timer
from tollhouse.store.redis import RedisState
from tollhouse.store.revocation import Revocations
from tollhouse.store.spec import StateSpec

pytestmark = pytest.mark.anyio


async def test_it_opens_as_soon_as_its_state_is_there(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    spec = {"url": server.url, "encryption_key": "a secret that has thirty-two bytes or more", "timeout": "250ms"}
    state = RedisState(StateSpec.model_validate(spec), clock)
    settings = IssuerSpec.model_validate({"url": "https://auth.example.com", "clients": CLIENTS})
    revocations, client = Revocations(state, clock), Client(clock)
    keys = SigningKeys(state.values, settings.keys, revocations=revocations)
    issuer = Issuer(
        settings, state=state, clock=clock, client=client, resources=RESOURCES, keys=keys, revocations=revocations
    )
    token = next(address for address in issuer.addresses if address.path == "/oauth/token")
    fields = Headers([(b"content-type", b"application/x-www-form-urlencoded")])
    form = f"grant_type=client_credentials&resource={MCP}&client_id=robot&client_secret={CLIENTS[2]['secret']}".encode()
    try:
        issuer.start()
        issuer.start()
        with pytest.raises(Failure) as failure:
            await token.handler(Request(b"POST", b"/oauth/token", fields, form))
        assert failure.value.status == 503
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(issuer.ready(), 0.2)
        server.start()
        await asyncio.wait_for(issuer.ready(), 20)
        assert (await token.handler(Request(b"POST", b"/oauth/token", fields, form))).status == 200
    finally:
        await issuer.close()
        await keys.close()
        await client.close()
        await state.close()
        timer.stop()
        server.kill()


async def test_nothing_is_left_running() -> None:
    before = asyncio.all_tasks()
    async with issuing() as node:
        await node.login()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before


async def test_where_nobody_logs_in_there_are_no_pages() -> None:
    async with issuing(users=[], clients=[CLIENTS[2]]) as node:
        paths = {address.path for address in node.issuer.addresses}
        assert not {"/oauth/authorize", "/oauth/login", "/oauth/device", "/oauth/par"} & paths
        assert {"/oauth/token", "/oauth/introspect", "/oauth/revoke", "/oauth/jwks"} <= paths
