"""Servers that are shown who asks: each message says it, and nobody shares anything with anybody."""

from typing import Any

import pytest
from tests.fixtures.mcp_gateway import gateway, until
from tests.fixtures.mcp_raw import TOOLS, Asked, Old, answer, result, upstream

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.upstream import Upstream
from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure, Reason

pytestmark = pytest.mark.anyio


async def exchanged(call: Any, next: Any) -> Any:
    """Stands for the policy."""
    call.credential = f"Bearer call-of-{call.principal.id}".encode()
    return await next(call)


def own(principal: Principal | None, refused: bytes = b"") -> bytes:
    if principal is None or principal.id == "lost":
        raise Failure(401, Reason.JWT_AUTH, "nobody", code="invalid_token")
    if principal.id == "key":
        raise Failure(403, Reason.AUTHORIZATION, "this needs a user", code="access_denied")
    return f"Bearer own-of-{principal.id}".encode()


def bearing(running: Any) -> Upstream:
    [server] = running.servers.all
    assert isinstance(server, Upstream)
    server.bears = own
    return server


class New(Old):
    def __call__(self, asked: Asked) -> Any:
        if asked.method == "server/discover":
            value = {
                "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}, "resources": {"subscribe": True}},
            }
            return result(asked, {**value, "serverInfo": {"name": "raw", "version": "1"}, "resultType": "complete"})
        if asked.method == "tools/list":
            return result(asked, {"tools": TOOLS, "resultType": "complete", "ttlMs": 60000, "cacheScope": "public"})
        if asked.method == "tools/call":
            return result(asked, {"content": [{"type": "text", "text": "ok"}], "resultType": "complete"})
        return super().__call__(asked)


@pytest.mark.parametrize("script", [Old, New])
async def test_every_message_says_on_whose_behalf(script: Any) -> None:
    async with upstream(script()) as server:
        async with gateway({"u": HttpServerSpec(url=server.url)}, policies=(exchanged,)) as running:
            bearing(running)
            for who in ("ada", "bob"):
                for agent in (await running.agent(who=who), running.stateless(who=who)):
                    assert (await agent.call("echo")).text == "ok"
                    assert (await agent.ask("tools/list")).message["result"]["tools"]
        await until(lambda: server.calls("tools/call")[3:])
    for asked in server.asked:
        kind = "call" if asked.method == "tools/call" else "own"
        assert asked.headers["authorization"] in (f"Bearer {kind}-of-ada", f"Bearer {kind}-of-bob"), asked.method
    assert [asked.http for asked in server.asked].count("DELETE") == len(
        {asked.headers["mcp-session-id"] for asked in server.asked if "mcp-session-id" in asked.headers}
    )
    lists = [asked.headers["authorization"] for asked in server.calls("tools/list")]
    assert sorted(set(lists)) == ["Bearer own-of-ada", "Bearer own-of-bob"]


async def test_a_stateless_server_has_no_stream_for_all() -> None:
    async with (
        upstream(New()) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(exchanged,)) as running,
    ):
        bearing(running)
        agent = await running.agent(who="ada")
        refused = (await agent.ask("resources/subscribe", {"uri": "file:///a"})).message
    assert "cannot be subscribed to" in refused["error"]["message"]
    assert not server.calls("subscriptions/listen")


async def test_who_is_refused_takes_nothing_from_the_others() -> None:
    def script(asked: Asked) -> Any:
        return answer(401) if asked.headers["authorization"].endswith("eve") else calm(asked)

    calm = Old()
    async with (
        upstream(script) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(exchanged,)) as running,
    ):
        reached = bearing(running)
        for _ in range(8):
            eve = await running.agent(who="eve")
            assert "refused" in (await eve.call("echo")).message["error"]["message"]
        assert not reached.gate.open
        assert (await (await running.agent(who="ada")).call("echo")).text == "ok"


@pytest.mark.parametrize("script", [Old, New])
async def test_what_the_server_does_not_take_is_replaced_once(script: Any) -> None:
    def said(asked: Asked) -> Any:
        return answer(401) if asked.headers["authorization"] == "Bearer old" else calm(asked)

    def renewed(principal: Principal | None, refused: bytes = b"") -> bytes:
        refusals.append(refused)
        return b"Bearer new" if refused else b"Bearer old"

    calm, refusals = script(), []
    async with (
        upstream(said) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(exchanged,)) as running,
    ):
        bearing(running).bears = renewed
        assert (await running.stateless(who="ada").ask("tools/list")).message["result"]["tools"]
        assert set(refusals) == {b"", b"Bearer old"}
        for agent in (await running.agent(who="ada"), running.stateless(who="ada")):
            assert (await agent.call("echo")).text == "ok"


async def test_lists_are_for_those_who_are_known() -> None:
    async with (
        upstream(Old()) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(exchanged,)) as running,
    ):
        bearing(running)
        nobody = (await running.stateless().ask("tools/list")).message
        lost = (await running.stateless(who="lost").ask("tools/list")).message
        ada = (await running.stateless(who="ada").ask("tools/list")).message
    assert "error" in nobody or not nobody["result"]["tools"]
    assert "error" in lost or not lost["result"]["tools"]
    assert ada["result"]["tools"]
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer own-of-ada"}


async def test_who_may_not_have_a_list_is_told_so_each_time(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        upstream(Old()) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, policies=(exchanged,)) as running,
    ):
        bearing(running)
        for _ in range(3):
            told = (await running.stateless(who="key").ask("tools/list")).message
            assert told["error"]["data"]["reason"] == "access_denied"
            assert "this needs a user" in told["error"]["message"]
    assert not server.asked
    assert "no tools/list" not in caplog.text
