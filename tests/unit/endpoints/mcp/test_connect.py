"""What agents see of a server at which their user has no account: a tool of ours by which he connects one, in every
list there is, and nothing of anybody else's. Over real sockets; `Connected` stands for what keeps accounts."""

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.accounts import Connected
from tests.fixtures.mcp_gateway import NEW, Answer, Gateway, gateway, sessions, until
from tests.fixtures.mcp_raw import Asked, Old, Upstream, result, upstream
from tests.unit.endpoints.mcp.test_credentials import Issuer
from tests.unit.policies.floor import Time, parts

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.backends.mcp.upstream import Upstream as McpUpstream
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.http import Headers, Request
from tollhouse.endpoints.mcp.connect import Connect
from tollhouse.endpoints.mcp.search import Search
from tollhouse.endpoints.tools import ToolsEndpoint
from tollhouse.net.program import Limits, Programs
from tollhouse.policies.account import AccountAsked
from tollhouse.policies.exchange import exchange
from tollhouse.wire.mcp.catalogue import Cursors, Listing
from tollhouse.wire.mcp.overrides import Override, Overrides, Selection
from tollhouse.wire.mcp.sealed import Seals

pytestmark = pytest.mark.anyio

BOTH = ["hub__connect", "plain__echo"]
URL: dict[str, Any] = {"elicitation": {"url": {}}}


def tool(name: str, **more: Any) -> Any:
    return {"name": name, "inputSchema": {"type": "object"}, **more}


class Hub(Old):
    """A server of which everybody sees what his account may: a tool that has its name. tools: that it has besides."""

    def __init__(self, *tools: str) -> None:
        super().__init__()
        self.tools = tools
        self.holds: asyncio.Event | None = None
        self.called: list[str] = []

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "tools/list":
            _, _, token = asked.headers["authorization"].partition(" ")
            told = result(asked, self.complete({"tools": [tool(name) for name in (token, *self.tools)]}))
            return told if self.holds is None else [self.holds.wait(), told]
        if asked.method == "prompts/list":
            return result(asked, self.complete({"prompts": [{"name": "p"}]}))
        if asked.method == "resources/list":
            return result(asked, self.complete({"resources": [{"name": "r", "uri": "r:/r"}]}))
        if asked.method == "resources/templates/list":
            return result(asked, self.complete({"resourceTemplates": []}))
        if asked.method == "tools/call":
            self.called.append(asked.body["params"]["name"])
            return result(asked, self.complete({"content": [{"type": "text", "text": "done"}]}))
        return super().__call__(asked)

    def complete(self, value: Any) -> Any:
        return {**value, "resultType": "complete", "ttlMs": 60_000, "cacheScope": "public"}


class NewHub(Hub):
    """The same, stateless."""

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "server/discover":
            about = {"supportedVersions": [NEW], "capabilities": {"tools": {}, "prompts": {}, "resources": {}}}
            return result(asked, self.complete({**about, "serverInfo": {"name": "b", "version": "1"}}))
        return super().__call__(asked)


HUBS = pytest.mark.parametrize("script", [Hub, NewHub])


class World:
    def __init__(self, running: Gateway, accounts: Connected, hub: Upstream, script: Hub) -> None:
        self.gateway = running
        self.accounts = accounts
        self.hub = hub
        self.script = script

    async def agent(self, who: str = "ada", *, new: bool = False, path: str = "/mcp", can: Any = None) -> Any:
        if new:
            return self.gateway.stateless(path, who=who)
        return await self.gateway.agent(can, path=path, who=who)


@asynccontextmanager
async def world(script: Hub, *users: str, guard: Any = None, hidden: Any = None, **more: Any) -> AsyncIterator[World]:
    """A gateway before `hub`, which has accounts, and `plain`. guard, hidden: of the hub, its overrides and rules."""
    accounts = Connected(*users)
    p = parts(Time(), entrance="mcp", server="hub", exchangers=Issuer(), accounts=lambda _: accounts)
    overrides = more.pop("shown", None)

    def shaped(name: str, reached: McpUpstream, all: Any) -> dict[str, Any]:
        if name != "hub":
            return {}
        made = exchange((), p)
        assert made is not None
        reached.bears = made.credential

        def changed(whose: Any) -> None:  # as `gateway.mcp_routes` joins them
            reached.forget(whose)
            all.changes.changed_for(name, whose)

        accounts.changed = changed
        asks = AccountAsked(name, accounts, all.clock, lambda: None)
        return {
            "policies": (asks.handle,),
            "innermost": (made.handle,),
            "connect": Connect(name, accounts.host),
            "guard": guard,
        }

    async with upstream(script) as hub, upstream(Old(prompts_list=_prompts)) as plain:
        specs: Any = {"hub": HttpServerSpec(url=hub.url), "plain": HttpServerSpec(url=plain.url)}
        more.setdefault("overrides", {"hub": overrides} if overrides else None)
        async with gateway(specs, shaped=shaped, permitted=hidden, **more) as running:
            yield World(running, accounts, hub, script)


def _prompts(asked: Asked) -> bytes:
    return result(asked, {"prompts": [{"name": "q"}]})


def names(listed: Answer, member: str = "tools") -> list[str]:
    return [one["name"] for one in listed.message["result"][member]]


async def tools(agent: Any) -> list[str]:
    return names(await agent.ask("tools/list"))


# ---- what is listed
@HUBS
@pytest.mark.parametrize("new", [False, True])
async def test_a_server_without_an_account_has_one_tool(script: Any, new: bool) -> None:
    async with world(script(), "bob") as w:
        bob = await w.agent("bob", new=new)
        assert await tools(bob) == ["hub__token-of-bob", "plain__echo"]
        ada = await w.agent(new=new)
        listed = await ada.ask("tools/list")
        assert names(listed) == BOTH
        assert "_meta" not in listed.message["result"] or "unavailable" not in str(listed.message["result"]["_meta"])
        one = listed.message["result"]["tools"][0]
        assert "login.example.com" in one["description"]
        assert "hub" in one["description"]
        assert one["inputSchema"]["type"] == "object"
        if new:
            assert listed.message["result"]["cacheScope"] == "private"
            assert listed.message["result"]["ttlMs"] <= 2000
        alone = await w.agent(new=new, path="/mcp/hub")
        assert await tools(alone) == ["connect"]
        assert await tools(bob) == ["hub__token-of-bob", "plain__echo"]


@HUBS
async def test_its_other_lists_are_empty(script: Any) -> None:
    async with world(script(), "bob") as w:
        for path, own in (("/mcp", ["plain__q"]), ("/mcp/hub", [])):
            ada = await w.agent(path=path)
            told = await ada.ask("prompts/list")
            assert names(told, "prompts") == own
            assert "_meta" not in told.message["result"]
            if not own:
                assert names(await ada.ask("resources/list"), "resources") == []
        bob = await w.agent("bob", path="/mcp/hub")
        assert names(await bob.ask("prompts/list"), "prompts") == ["p"]


async def test_the_opening_says_that_there_are_tools() -> None:
    class Bare(Hub):
        """Its accounts have prompts only."""

        def __call__(self, asked: Asked) -> Any:
            if asked.method == "initialize":
                about = {"protocolVersion": "2025-11-25", "capabilities": {"prompts": {}}, "instructions": "of bob"}
                return result(asked, {**about, "serverInfo": {"name": "b", "version": "1"}}, mcp_session_id="s")
            return super().__call__(asked)

    async with world(Bare(), "bob") as w:
        assert names(await (await w.agent("bob", path="/mcp/hub")).ask("prompts/list"), "prompts") == ["p"]
        ada = await w.agent(path="/mcp/hub")
        assert ada.opening["capabilities"]["tools"] == {"listChanged": True}
        assert "instructions" not in ada.opening
        assert await tools(ada) == ["connect"]
        found = (await (await w.agent(new=True, path="/mcp/hub")).ask("server/discover")).message["result"]
        assert "tools" in found["capabilities"]
        assert "instructions" not in found
        assert (await w.agent("bob", path="/mcp/hub")).opening["instructions"] == "of bob"


async def test_who_cannot_log_in_is_told_so() -> None:
    async with world(Hub()) as w:
        alone = await (await w.agent("bot", path="/mcp/hub")).ask("tools/list")
        assert "user who can log in" in alone.message["error"]["message"]
        both = await w.agent("bot")
        assert await tools(both) == ["plain__echo"]


@pytest.mark.parametrize("failure", ["open", "closed"])
async def test_an_account_that_is_missing_is_no_failure(failure: Any) -> None:
    async with world(Hub(), failure=failure) as w:
        assert await tools(await w.agent()) == BOTH


async def test_an_endpoint_of_chosen_tools_has_it_all_the_same() -> None:
    async with world(Hub("own"), "bob", selection=Selection(("hub__own",), ("*connect",))) as w:
        assert await tools(await w.agent()) == ["hub__connect"]
        assert "start?l=ada" in (await (await w.agent()).call("hub__connect")).text
        assert await tools(await w.agent("bob")) == ["hub__own"]


async def test_rules_hide_and_refuse_it() -> None:
    def hidden(call: ToolCall) -> bool:
        assert call.name != "connect" or b"login.example.com" in bytes(call.definition)
        return call.name != "connect"

    async with world(Hub(), hidden=hidden) as w:
        assert await tools(await w.agent()) == ["plain__echo"]


async def test_no_guard_has_a_word_in_it() -> None:
    """Nobody approves our own tool, and nobody pins it."""

    class Guard:
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def withheld(self, listing: Listing) -> Collection[str]:
            self.seen |= listing.index.keys()
            return listing.index.keys()

    guard = Guard()
    async with world(Hub(), "bob", guard=guard) as w:
        assert await tools(await w.agent()) == BOTH
        assert await tools(await w.agent("bob")) == ["plain__echo"]
    assert guard.seen == {"token-of-bob"}


async def test_names_without_their_server() -> None:
    async with world(Hub(), prefix="never") as w:
        ada = await w.agent()
        assert await tools(ada) == ["connect", "echo"]
        assert "start?l=ada" in (await ada.call("connect")).text
        w.accounts.connect("ada")
        assert await tools(ada) == ["token-of-ada", "echo"]
        assert "is connected" in (await ada.call("connect")).text


# ---- what a call of it does
@HUBS
@pytest.mark.parametrize("new", [False, True])
async def test_a_call_of_it_gives_the_link(script: Any, new: bool) -> None:
    async with world(script()) as w:
        ada = await w.agent(new=new)
        assert "start?l=ada-1" in (await ada.call("hub__connect")).text
        w.accounts.connect("ada")
        assert "is connected" in (await ada.call("hub__connect")).text
        assert await tools(ada) == ["hub__token-of-ada", "plain__echo"]
        assert w.script.called == []
        assert (await ada.call("hub__token-of-ada")).text == "done"


@HUBS
async def test_an_agent_that_can_ask_its_user(script: Any) -> None:
    async with world(script()) as w:
        ada = await w.agent(can=URL)
        stream = await ada.start("tools/call", {"name": "hub__connect", "arguments": {}, "task": {"ttl": 1000}})
        await stream.head()
        asked = await stream.next()
        assert asked["params"]["mode"] == "url"
        await ada.answer(asked["id"], {"action": "accept"})
        w.accounts.connect("ada")
        seen = [message async for message in _rest(stream)]
        await stream.close()
        assert "is connected" in seen[-1]["result"]["content"][0]["text"]
        assert await tools(ada) == ["hub__token-of-ada", "plain__echo"]


async def _rest(stream: Any) -> AsyncIterator[Any]:
    while (message := await stream.next()) is not None:
        yield message


async def test_a_stateless_agent_that_can_ask_its_user() -> None:
    async with world(NewHub()) as w:
        ada = await w.agent(new=True)
        meta = {"_meta": {"io.modelcontextprotocol/clientCapabilities": URL}}
        asked = (await ada.call("hub__connect", **meta)).message["result"]
        assert asked["resultType"] == "input_required"
        w.accounts.connect("ada")
        answers = {key: {"action": "accept"} for key in asked["inputRequests"]}
        told = await ada.call("hub__connect", inputResponses=answers, requestState=asked["requestState"], **meta)
        assert "is connected" in told.text


# ---- a server that has a tool of that name
async def test_its_own_tool_wins_once_there_is_an_account() -> None:
    async with world(Hub("connect")) as w:
        ada = await w.agent()
        assert await tools(ada) == BOTH
        assert "start?l=ada" in (await ada.call("hub__connect")).text
        w.accounts.connect("ada")
        assert await tools(ada) == ["hub__token-of-ada", "hub__connect", "plain__echo"]
        assert (await ada.call("hub__connect")).text == "done"
        assert w.script.called == ["connect"]


async def test_its_own_tool_is_not_called_by_who_has_called_ours() -> None:
    async with world(NewHub("connect")) as w:
        ada = await w.agent(new=True)
        meta = {"_meta": {"io.modelcontextprotocol/clientCapabilities": URL}}
        asked = (await ada.call("hub__connect", **meta)).message["result"]
        w.accounts.connect("ada")
        assert "hub__connect" in await tools(ada)  # the server's
        answers = {key: {"action": "accept"} for key in asked["inputRequests"]}
        told = await ada.call("hub__connect", inputResponses=answers, requestState=asked["requestState"], **meta)
        assert "is connected" in told.text
        assert w.script.called == []
        assert (await ada.call("hub__connect", **meta)).text == "done"


async def test_its_own_tool_under_another_name() -> None:
    async with world(Hub("connect"), shown=Overrides({"connect": Override("link", "")})) as w:
        ada = await w.agent()
        assert await tools(ada) == BOTH
        w.accounts.connect("ada")
        assert await tools(ada) == ["hub__token-of-ada", "hub__link", "plain__echo"]
        assert "is connected" in (await ada.call("hub__connect")).text
        assert w.script.called == []
        assert (await ada.call("hub__link")).text == "done"
        assert w.script.called == ["connect"]


# ---- an account comes and goes
@HUBS
async def test_the_users_own_agents_hear_of_it(script: Any) -> None:
    async with world(script()) as w:
        ada, other, bob = await w.agent(), await w.agent(path="/mcp/plain"), await w.agent("bob")
        streams = [await agent.listen() for agent in (ada, other, bob)]
        wanted = {"notifications": {"toolsListChanged": True}}
        subscribed = [
            await (await w.agent(who, new=True)).start("subscriptions/listen", wanted) for who in ("ada", "bob")
        ]
        for one in subscribed:
            await one.head()
            assert "acknowledged" in (await one.next())["method"]
        for move, seen in ((w.accounts.connect, "hub__token-of-ada"), (w.accounts.disconnect, "hub__connect")):
            move("ada")
            heard = {(await streams[0].next())["method"] for _ in range(3)}
            assert heard == {f"notifications/{what}/list_changed" for what in ("tools", "prompts", "resources")}
            assert (await subscribed[0].next())["method"] == "notifications/tools/list_changed"
            assert await tools(ada) == [seen, "plain__echo"]
            assert await tools(await w.agent(new=True)) == [seen, "plain__echo"]
        for quiet in (*streams[1:], subscribed[1]):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await quiet.next()
        for stream in (*streams, *subscribed):
            await stream.close()


async def test_nothing_of_an_earlier_account_is_used() -> None:
    """Neither its list nor the session that was opened with it."""
    async with world(Hub(), "bob") as w:
        ada, bob = await w.agent(), await w.agent("bob")
        await tools(bob)
        w.accounts.connect("ada", b"first")
        assert await tools(ada) == ["hub__first", "plain__echo"]
        assert (await ada.call("hub__first")).text == "done"
        opened = len(w.hub.calls("initialize"))
        w.accounts.connect("ada", b"second")
        assert await tools(ada) == ["hub__second", "plain__echo"]
        assert (await ada.call("hub__second")).text == "done"
        assert len(w.hub.calls("initialize")) == opened + 1
        shown = {asked.headers.get("mcp-session-id"): set[str]() for asked in w.hub.asked}
        for asked in w.hub.asked:
            shown[asked.headers.get("mcp-session-id")].add(asked.headers["authorization"])
        assert all(len(who) == 1 for id, who in shown.items() if id is not None)
        assert await tools(bob) == ["hub__token-of-bob", "plain__echo"]


async def test_a_call_that_runs_ends_in_the_session_that_it_has() -> None:
    class Slow(Hub):
        go = asyncio.Event()

        def __call__(self, asked: Asked) -> Any:
            told = super().__call__(asked)
            return [self.go.wait(), told] if asked.method == "tools/call" else told

    script = Slow("slow")
    script.go = asyncio.Event()
    async with world(script, "ada") as w:
        ada = await w.agent()
        running = asyncio.create_task(ada.call("hub__slow"))
        await until(lambda: script.called)
        w.accounts.connect("ada", b"second")
        script.go.set()
        assert (await running).text == "done"
        assert await tools(ada) == ["hub__second", "hub__slow", "plain__echo"]
        assert len(w.hub.calls("initialize")) == 2
        await until(lambda: len([one for one in sessions(w.gateway) if one.upstream.name == "hub"]) == 1)


async def test_a_list_that_was_read_meanwhile_is_read_again() -> None:
    script = Hub()
    async with world(script, "ada") as w:
        ada = await w.agent()
        script.holds = asyncio.Event()
        before = asyncio.create_task(ada.ask("tools/list"))
        await until(lambda: w.hub.calls("tools/list"))
        w.accounts.connect("ada", b"second")
        script.holds.set()
        await before
        assert await tools(ada) == ["hub__second", "plain__echo"]


# ---- other ways to the tools
async def test_a_search_finds_it() -> None:
    async with world(Hub(), search=Search("on")) as w:
        ada = await w.agent()
        assert await tools(ada) == ["find_tools", "call_tool"]
        (one,) = json.loads((await ada.call("find_tools", {"query": "connect my account", "limit": 1})).text)["tools"]
        assert one["name"] == "hub__connect"
        told = await ada.call("call_tool", {"name": "hub__connect", "arguments": {}})
        assert "start?l=ada" in told.text


async def test_a_program_is_told_the_link() -> None:
    pytest.importorskip("pydantic_monty", reason="the extra `code` is not installed")
    programs = Programs()
    try:
        async with world(Hub("own"), programs=(programs, Limits())) as w:
            ada = await w.agent()
            for name in ("hub__connect", "hub__own"):
                code = f"try:\n    print(call_tool({name!r}, {{}}))\nexcept RuntimeError as e:\n    print(e)"
                assert "start?l=ada" in (await ada.call("run_program", {"code": code})).text
    finally:
        await programs.close()


async def test_it_is_there_as_plain_rest() -> None:
    async with world(Hub()) as w:
        cursors = Cursors(Seals((b"k" * 32,)))
        endpoint = ToolsEndpoint("/tools", w.gateway.reached, cursors=cursors, bridge=w.gateway.bridge)

        async def asked(method: bytes, path: bytes) -> tuple[int, Any]:
            request = Request(method, path, Headers())
            request.context.principal = Principal("ada", source="key")
            response = await endpoint.handle(request)
            return response.status, json.loads(response.body)

        _, document = await asked(b"GET", b"/tools/openapi.json")
        assert sorted(document["paths"]) == ["/tools/hub/connect", "/tools/plain/echo"]
        _, told = await asked(b"POST", b"/tools/hub/connect")
        assert "start?l=ada" in told["content"][0]["text"]
        w.accounts.connect("ada")
        _, told = await asked(b"POST", b"/tools/hub/connect")
        assert "is connected" in told["content"][0]["text"]
        _, document = await asked(b"GET", b"/tools/openapi.json")
        assert "/tools/hub/token-of-ada" in document["paths"]
