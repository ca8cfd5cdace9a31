"""What servers list: how long that is kept, whose it is, and what stands in for a list that does not come."""

import asyncio
from time import monotonic
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Gateway, child, gateway, until
from tests.fixtures.mcp_raw import TOOLS, Asked, Changing, Old, answer, result, upstream

from tollhouse.backends.mcp import catalogue as its
from tollhouse.backends.mcp.heal import Budget
from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.spec import McpServerSpec

pytestmark = pytest.mark.anyio


def names(answered: Any) -> list[str]:
    return [tool["name"] for tool in answered.message["result"]["tools"]]


class Flaky:
    """A list that can be made to fail or to hang."""

    def __init__(self) -> None:
        self.mode = "fine"
        self.tools = list(TOOLS)

    def __call__(self, asked: Asked) -> Any:
        if self.mode == "hangs":
            return None
        return answer(503, b"down") if self.mode == "down" else result(asked, {"tools": self.tools})


def grow_old(running: Gateway) -> None:
    for server in running.servers.all:
        for listing in server.catalogue._listings.values():
            listing.until = 0.0


@pytest.mark.parametrize("mode", ["down", "hangs"])
async def test_an_old_list_is_better_than_none(mode: str) -> None:
    flaky = Flaky()
    async with (
        upstream(Old(tools_list=flaky)) as server,
        gateway({"u": HttpServerSpec(url=server.url, list_timeout=0.2)}) as running,
    ):
        agent = await running.agent()
        assert names(await agent.ask("tools/list")) == ["echo"]
        flaky.mode = mode
        grow_old(running)
        assert names(await agent.ask("tools/list")) == ["echo"]
        for known in running.servers.all:
            for listing in known.catalogue._listings.values():
                listing.at -= its.STALE
        assert (await agent.ask("tools/list")).error == (200, -32603)


@pytest.mark.timed
async def test_after_one_timeout_nobody_waits() -> None:
    flaky = Flaky()
    async with (
        upstream(Old(tools_list=flaky)) as server,
        gateway({"u": HttpServerSpec(url=server.url, list_timeout=0.3)}) as running,
    ):
        agent = await running.agent()
        await agent.ask("tools/list")
        flaky.mode = "hangs"
        grow_old(running)
        loop = asyncio.get_running_loop()
        await agent.ask("tools/list")
        began = loop.time()
        await agent.ask("tools/list")
        assert loop.time() - began < 0.2


@pytest.mark.parametrize("failure", ["open", "closed"])
async def test_failure(failure: Any) -> None:
    flaky = Flaky()
    flaky.mode = "down"
    async with upstream(Old(tools_list=flaky)) as bad, upstream(Old()) as good:
        specs = {"bad": HttpServerSpec(url=bad.url), "good": HttpServerSpec(url=good.url)}
        async with gateway(specs, failure=failure) as running:
            for agent in (await running.agent(), running.stateless()):
                answered = await agent.ask("tools/list")
                if failure == "closed":
                    assert answered.error == (200, -32603)
                    continue
                assert names(answered) == ["good__echo"]
                told = answered.message["result"]
                assert told["_meta"] == {"dev.tollhouse/unavailable": ["bad"]}
                assert told.get("ttlMs", 0) <= 2000


async def test_a_change_is_seen_at_once() -> None:
    async with gateway({"c": child()}) as running:
        agent = await running.agent()
        before = names(await agent.ask("tools/list"))
        stream = await agent.listen()
        await agent.call("grow")
        assert (await stream.next())["method"] == "notifications/tools/list_changed"
        assert names(await agent.ask("tools/list")) == [*before, "grown"]
        await stream.close()


async def test_waiting_for_a_list_is_the_servers_time() -> None:
    contexts: list[Any] = []

    async def admit(call: Any) -> None:
        contexts.append(call.context)

    def listed(asked: Asked) -> Any:
        return [asyncio.sleep(0.05), result(asked, {"tools": TOOLS})]

    async with (
        upstream(Old(tools_list=listed)) as server,
        gateway({"u": HttpServerSpec(url=server.url)}, admit=admit) as running,
    ):
        agent = await running.agent()
        for _ in range(2):
            assert "result" in (await agent.ask("tools/list")).message
        first, second = contexts[-2:]
        assert first.upstream_ended - first.upstream_began > 0.04  # loops count milliseconds
        assert (second.upstream_began, second.upstream_ended) == (0.0, 0.0)  # from memory


async def test_lists_of_many_pages() -> None:
    def pages(asked: Asked) -> Any:
        cursor = int(asked.body["params"].get("cursor", "0"))
        tools = [{"name": f"t{cursor}", "inputSchema": {}}]
        return result(asked, {"tools": tools} | ({"nextCursor": str(cursor + 1)} if cursor < 4 else {}))

    def endless(asked: Asked) -> Any:
        return result(asked, {"tools": TOOLS, "nextCursor": "same"})

    async with upstream(Old(tools_list=pages)) as server, upstream(Old(tools_list=endless)) as other:
        specs = {"u": HttpServerSpec(url=server.url), "v": HttpServerSpec(url=other.url)}
        async with gateway(specs, page=2) as running:
            agent = await running.agent()
            names: list[str] = []
            cursor: dict[str, Any] = {}
            for _ in range(10):
                said = (await agent.ask("tools/list", cursor)).message["result"]
                names += [tool["name"] for tool in said["tools"]]
                if "nextCursor" not in said:
                    break
                cursor = {"cursor": said["nextCursor"]}
            assert names == [f"u__t{n}" for n in range(5)] + ["v__echo"]
            assert len(other.calls("tools/list")) == 2
            foreign = await running.stateless(who="eve").ask("tools/list", cursor)
            assert foreign.error == (400, -32602)


async def test_a_list_that_changes_all_the_time_is_told_of_less_often() -> None:
    told: list[str] = []
    async with gateway({"c": child()}) as running:
        server = running.servers.all[0]
        server.catalogue._on_change = lambda name, method: told.append(method)
        for _ in range(200):
            server.changed("notifications/tools/list_changed")
        assert len(told) == 10
        assert server.catalogue._untold == {"notifications/tools/list_changed"}
        server.changed("notifications/prompts/list_changed")
        assert len(told) == 10


async def test_a_server_with_too_many_tools() -> None:
    tools = [{"name": f"t{n}", "description": "x" * 40, "inputSchema": {"type": "object"}} for n in range(50_000)]

    def listed(asked: Asked) -> Any:
        return result(asked, {"tools": tools})

    async with upstream(Old(tools_list=listed)) as big, upstream(Old()) as small:
        specs: dict[str, McpServerSpec] = {
            "big": HttpServerSpec(url=big.url, list_timeout=20.0),
            "small": HttpServerSpec(url=small.url),
        }
        async with gateway(specs) as running:
            agent = await running.agent()
            answered = await agent.ask("tools/list")
            assert "result" in answered.message
            listing = next(iter(running.servers.all[0].catalogue._listings.values()))
            assert len(listing.entries) == 10_000
            assert any("10000" in what for what in listing.dropped)
            assert (await agent.call("small__echo")).text == "ok"


@pytest.mark.timed
async def test_a_server_that_hangs_is_waited_for_once() -> None:
    hangs = [True]
    script = Old(tools_list=lambda asked: None if hangs[0] else result(asked, {"tools": TOOLS}))
    async with upstream(script) as server, upstream(Old()) as other:
        specs: dict[str, McpServerSpec] = {
            "bad": HttpServerSpec(url=server.url, list_timeout=0.4),
            "good": HttpServerSpec(url=other.url),
        }
        async with gateway(specs) as running:
            agent = await running.agent()
            ears = await agent.listen()
            took = []
            for _ in range(3):
                began = monotonic()
                assert names(await agent.ask("tools/list")) == ["good__echo"]
                took.append(monotonic() - began)
            assert took[0] > 0.35
            assert max(took[1:]) < 0.2
            hangs[0] = False
            bad = running.servers.all[0]
            for task in list(bad.catalogue._fetching.values()):
                task.cancel()
            await until(lambda: not bad.catalogue._fetching)
            bad.expire()  # its time to look again has come
            assert (await ears.next())["method"] == "notifications/tools/list_changed"
            assert names(await agent.ask("tools/list")) == ["bad__echo", "good__echo"]
            await ears.close()


@pytest.mark.parametrize(("scope", "asked"), [("private", 2), ("public", 1)])
async def test_private_lists_are_not_shared(scope: str, asked: int) -> None:
    class Scoped(Changing):
        def __call__(self, asked: Asked) -> Any:
            if asked.method == "tools/list":
                value = {"tools": TOOLS, "ttlMs": 60_000, "cacheScope": scope, "resultType": "complete"}
                return result(asked, value)
            return super().__call__(asked)

    async with upstream(Scoped("new")) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        for who in ("ada", "bob", "ada", "bob"):
            assert names(await running.stateless(who=who).ask("tools/list")) == ["echo"]
        assert len(server.calls("tools/list")) == asked


async def test_a_catalogue_of_each_session() -> None:
    def listed(asked: Asked) -> Any:
        return result(asked, {"tools": [{"name": f"of-{asked.headers['mcp-session-id']}", "inputSchema": {}}]})

    async with (
        upstream(Old(tools_list=listed)) as server,
        gateway({"u": HttpServerSpec(url=server.url, catalogue="session")}) as running,
    ):
        agents = [await running.agent() for _ in range(2)]
        assert [names(await agent.ask("tools/list")) for agent in agents] == [["of-s-1"], ["of-s-2"]]
        assert [names(await agent.ask("tools/list")) for agent in agents] == [["of-s-1"], ["of-s-2"]]
        assert len(server.calls("tools/list")) == 2


@pytest.mark.parametrize(("ttl", "asked"), [(0.0, 3), (60.0, 1)])
async def test_how_long_lists_are_kept(ttl: float, asked: int) -> None:
    async with upstream(Old()) as server, gateway({"u": HttpServerSpec(url=server.url, list_ttl=ttl)}) as running:
        for _ in range(3):
            await running.stateless().ask("tools/list")
        assert len(server.calls("tools/list")) == asked


async def test_a_list_that_is_another_than_before_is_told_of() -> None:
    """Also by a server that does not tell."""
    tools = [list(TOOLS)]
    script = Old(tools_list=lambda asked: result(asked, {"tools": tools[0]}))
    async with upstream(script) as server, gateway({"u": HttpServerSpec(url=server.url, list_ttl=0.0)}) as running:
        agent = await running.agent()
        ears = await agent.listen()
        await agent.ask("tools/list")
        tools[0] = [*TOOLS, {"name": "more", "inputSchema": {}}]
        await agent.ask("tools/list")
        assert (await ears.next())["method"] == "notifications/tools/list_changed"
        await ears.close()


async def test_a_change_that_could_not_be_told_for_want_of_room_is_told_later() -> None:
    told: list[str] = []
    async with gateway({"c": child()}) as running:
        server = running.servers.all[0]
        server.catalogue._on_change = lambda name, method: told.append(method)
        server.catalogue._changes = Budget(1, 0.05)
        much = [server.spawn(asyncio.sleep(600), cut=True) for _ in range(1024)]
        for _ in range(3):
            server.changed("notifications/tools/list_changed")
        assert len(told) == 1
        for task in much:
            task.cancel()
        await asyncio.wait(much)
        server.changed("notifications/tools/list_changed")
        await until(lambda: len(told) == 2)


async def test_a_name_that_is_listed_twice_is_listed_once() -> None:
    tool = {"name": "echo", "inputSchema": {"type": "object"}}
    pages = Old(tools_list=lambda asked: result(asked, {"tools": [tool, tool], "nextCursor": "again"}))
    async with upstream(pages) as server, gateway({"u": HttpServerSpec(url=server.url)}) as running:
        listed = (await (await running.agent()).ask("tools/list")).message["result"]["tools"]
        assert [tool["name"] for tool in listed] == ["echo"]
