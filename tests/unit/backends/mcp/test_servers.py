"""Servers from one configuration to the next."""

import asyncio

import pytest
from tests.fixtures.mcp_gateway import child, gateway, until

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.servers import fingerprint
from tollhouse.backends.mcp.stdio import StdioServerSpec

pytestmark = pytest.mark.anyio


async def test_a_server_that_leaves_the_configuration_ends_when_its_calls_have_ended() -> None:
    async with gateway({"c": child()}) as running:
        agent = running.stateless()
        await agent.call("echo")
        server = running.servers.all[0]
        stream = await agent.start("tools/call", {"name": "never", "arguments": {}})
        await until(lambda: next(iter(server.sessions)).active == 1)
        running.servers.retain({})
        await asyncio.sleep(0.05)
        assert len(list(server.sessions)) == 1
        await stream.close()
        await until(lambda: server.idle)
        running.servers.retain({})
        assert running.servers.all == []


async def test_the_same_configuration_is_the_same_server() -> None:
    async with gateway({"c": child()}) as running:
        server = running.servers.all[0]
        assert running.servers.get("c", child()) is server
        running.servers.retain({"c": child()})
        assert running.servers.all == [server]
        assert running.servers.get("c", child(env={"A": "1"})) is not server


def test_fingerprints() -> None:
    class More(StdioServerSpec):
        limits: int = 0

    plain = StdioServerSpec(command="a")
    assert fingerprint(plain) == fingerprint(More(command="a", limits=7))
    assert fingerprint(plain) != fingerprint(StdioServerSpec(command="b"))
    assert fingerprint(plain) != fingerprint(HttpServerSpec(url="http://a"))
    keys = [HttpServerSpec.model_validate({"url": "http://a", "headers": {"x-key": key}}) for key in "abb"]
    assert fingerprint(keys[0]) != fingerprint(keys[1])  # another credential is another server
    assert fingerprint(keys[1]) == fingerprint(keys[2])
