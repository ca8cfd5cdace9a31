"""Many tools: what is shown in their place, found, and called, by agents of both eras over real sockets."""

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Answer, Gateway, gateway
from tests.fixtures.mcp_raw import Asked, Old, Upstream, result, upstream
from tests.unit.endpoints.mcp.test_rules import Rules

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request
from tollhouse.endpoints.mcp.search import Search, Vectors
from tollhouse.wire.mcp.overrides import Argument, Override, Overrides, Selection

pytestmark = pytest.mark.anyio

ON = Search("on")


def tool(name: str, description: str = "", **more: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"text": {"type": "string", "description": "what to write"}}}
    return {"name": name, "description": description, "inputSchema": schema, **more}


TOOLS = [tool(f"tool_{n}", f"Does thing number {n}.") for n in range(5)]
SHOP = [tool("order_item", "Buys something."), tool("cancel_order", "Gives something back."), tool("hidden", "Secret.")]


def server(tools: list[dict[str, Any]]) -> Old:
    def called(asked: Asked) -> bytes:
        told = {"content": [{"type": "text", "text": json.dumps(asked.body["params"])}]}
        return result(asked, told)

    return Old(tools_list=lambda asked: result(asked, {"tools": tools}), tools_call=called)


@asynccontextmanager
async def two(
    a: list[dict[str, Any]] = TOOLS, b: list[dict[str, Any]] = SHOP, **more: Any
) -> AsyncIterator[tuple[Gateway, Upstream, Upstream]]:
    async with upstream(server(a)) as first, upstream(server(b)) as second:
        specs: Any = {"things": HttpServerSpec(url=first.url), "shop": HttpServerSpec(url=second.url)}
        async with gateway(specs, **{"search": ON, **more}) as running:
            yield running, first, second


def names(answered: Answer) -> list[str]:
    return [one["name"] for one in answered.message["result"]["tools"]]


def found(answered: Answer) -> list[str]:
    return [one["name"] for one in json.loads(answered.text)["tools"]]


@pytest.mark.parametrize("new", [False, True])
async def test_find_and_call(new: bool) -> None:
    async with two() as (running, _, shop):
        agent = running.stateless() if new else await running.agent()
        listed = await agent.ask("tools/list")
        assert names(listed) == ["find_tools", "call_tool"]
        assert "Servers: things, shop." in listed.message["result"]["tools"][0]["description"]
        if new:
            assert listed.message["result"]["cacheScope"] == "private" or listed.message["result"]["ttlMs"] >= 0
        hit = await agent.call("find_tools", {"query": "buy something in the shop", "limit": 1})
        assert not hit.message["result"].get("isError")
        (one,) = json.loads(hit.text)["tools"]
        assert one == {**SHOP[0], "name": "shop__order_item"}  # its whole schema
        told = await agent.call("call_tool", {"name": "shop__order_item", "arguments": {"text": "a"}})
        assert json.loads(told.text) == {"name": "order_item", "arguments": {"text": "a"}}
        direct = await agent.call("shop__order_item", {"text": "a"})
        assert direct.text == told.text
        assert [asked.body["params"]["name"] for asked in shop.calls("tools/call")] == ["order_item"] * 2


async def test_the_same_list_each_time() -> None:
    async with two() as (running, _, _):
        first, second = await running.agent(), await running.agent(who="b")
        bodies = {(await agent.ask("tools/list")).body.partition(b'"result"')[2] for agent in (first, second, first)}
        assert len(bodies) == 1


@pytest.mark.parametrize(
    "search, replaced",
    [
        (Search("off"), False),
        (Search("auto", 8, None), False),
        (Search("auto", 7, None), True),
        (Search("auto", None, 5000), False),
        (Search("auto", None, 50), True),
        (Search("auto", 100, 50), True),
    ],
)
async def test_when_the_list_is_replaced(search: Search, replaced: bool) -> None:
    async with two(search=search) as (running, _, _):
        shown = names(await (await running.agent()).ask("tools/list"))
        whole = [*(f"things__tool_{n}" for n in range(5)), *(f"shop__{one['name']}" for one in SHOP)]
        assert shown == (["find_tools", "call_tool"] if replaced else whole)


async def test_auto_counts_what_the_caller_may_use() -> None:
    def permitted(call: ToolCall) -> bool:
        return call.principal is not None and (call.principal.id == "all" or call.server == "shop")

    async with two(search=Search("auto", 4, None), permitted=permitted) as (running, _, _):
        few, every = running.stateless(who="few"), running.stateless(who="all")
        assert names(await few.ask("tools/list")) == [f"shop__{one['name']}" for one in SHOP]
        assert names(await every.ask("tools/list")) == ["find_tools", "call_tool"]
        assert "things" not in (await running.stateless(who="none").call("find_tools", {"query": ""})).text


async def test_what_may_not_be_used_is_not_found_nor_called() -> None:
    rules = Rules({"deny": 'mcp.tool.name == "hidden"'})
    async with two(**rules.parts) as (running, _, shop):
        agent = running.stateless(who="x")
        assert found(await agent.call("find_tools", {"query": "secret hidden"})) == []
        assert "hidden" not in (await agent.call("find_tools", {"query": ""})).text
        refused = await agent.call("call_tool", {"name": "shop__hidden", "arguments": {}})
        assert refused.message["error"]["data"]["reason"] == "permission_denied"
        assert shop.calls("tools/call") == []
        assert "tools/list" in rules.asked  # for find_tools


async def test_finding_and_calling_are_limited() -> None:
    rules = Rules(requests=3)
    async with two(**rules.parts) as (running, _, _):
        agent = running.stateless(who="x")
        for _ in range(3):
            assert (await agent.call("find_tools", {"query": "order"})).message["result"]
        refused = await agent.call("find_tools", {"query": "order"})
        assert refused.message["error"]["data"]["reason"] == "rate_limit_exceeded"
        assert (await running.stateless(who="y").call("find_tools", {"query": "order"})).message["result"]


async def test_a_selection_holds_for_what_is_found_and_called() -> None:
    async with two(selection=Selection(["shop__*"], ["*cancel*"])) as (running, _, _):
        agent = await running.agent()
        assert found(await agent.call("find_tools", {"query": "order thing"})) == ["shop__order_item"]
        for name in ("things__tool_1", "shop__cancel_order"):
            assert (await agent.call("call_tool", {"name": name})).message["error"]["code"] == -32602


async def test_overrides_hold() -> None:
    own = Overrides({"order_item": Override("buy", "Purchase goods.", {"text": Argument("what")})})
    async with two(overrides={"shop": own}) as (running, _, shop):
        agent = await running.agent()
        (one,) = json.loads((await agent.call("find_tools", {"query": "purchase", "limit": 1})).text)["tools"]
        assert one["name"] == "shop__buy"
        assert list(one["inputSchema"]["properties"]) == ["what"]
        await agent.call("call_tool", {"name": "shop__buy", "arguments": {"what": "tea"}})
        assert shop.calls("tools/call")[0].body["params"] == {"name": "order_item", "arguments": {"text": "tea"}}


@pytest.mark.parametrize(
    "arguments, error",
    [
        ({}, -32602),
        ({"name": 7}, -32602),
        ({"name": "n" * 300}, -32602),
        ({"name": "nobody__knows"}, -32602),
        ({"name": "find_tools"}, -32602),
        ({"name": "call_tool", "arguments": {"name": "shop__order_item"}}, -32602),
        ({"name": "shop__order_item", "arguments": 7}, -32602),
        ({"name": "shop__order_item", "arguments": "seven"}, -32602),
    ],
)
async def test_bad_calls(arguments: Any, error: int) -> None:
    async with two() as (running, _, shop):
        agent = await running.agent()
        assert (await agent.call("call_tool", arguments)).message["error"]["code"] == error
        assert shop.calls("tools/call") == []


async def test_arguments_as_text() -> None:
    async with two() as (running, _, _):
        told = await (await running.agent()).call("call_tool", {"name": "shop__hidden", "arguments": '{"text": "x"}'})
        assert json.loads(told.text)["arguments"] == {"text": "x"}


@pytest.mark.parametrize("arguments", [{}, {"query": 7}, {"query": "x", "limit": []}])
async def test_bad_questions_are_answered_to_the_model(arguments: Any) -> None:
    async with two() as (running, _, _):
        told = (await (await running.agent()).call("find_tools", arguments)).message["result"]
        assert told["isError"]
        assert "query" in told["content"][0]["text"]


async def test_questions() -> None:
    async with two() as (running, _, _):
        agent = await running.agent()
        assert len(found(await agent.call("find_tools", {"query": "thing", "limit": 100}))) == 5
        assert len(found(await agent.call("find_tools", {"query": "thing number", "limit": "2"}))) == 2
        assert len(found(await agent.call("find_tools", {"query": "thing number", "limit": -1}))) == 1
        assert found(await agent.call("find_tools", {"query": "thing", "server": "shop"})) == []
        assert found(await agent.call("find_tools", {"query": "order", "server": "nobody"})) == []
        nothing = await agent.call("find_tools", {"query": "zebra"})
        assert "other words" in json.loads(nothing.text)["hint"]
        every = json.loads((await agent.call("find_tools", {"query": " "})).text)
        assert every["names"] == [*(f"things__tool_{n}" for n in range(5)), *(f"shop__{one['name']}" for one in SHOP)]


async def test_what_is_found_is_of_the_list_that_is_known() -> None:
    """Whoever takes tasks for answers has the list of everybody else."""
    declared = {"io.modelcontextprotocol/clientCapabilities": {"extensions": {"io.modelcontextprotocol/tasks": {}}}}
    async with two() as (running, things, shop):
        agent = running.stateless()
        await agent.ask("tools/list")
        assert found(await agent.call("find_tools", {"query": "buy"}, _meta=declared)) == ["shop__order_item"]
        assert [len(behind.calls("tools/list")) for behind in (things, shop)] == [1, 1]


async def test_an_answer_has_a_size() -> None:
    big = [tool(f"big_{n}", "x" * 30_000) for n in range(4)]
    async with two(b=big) as (running, _, _):
        told = json.loads((await (await running.agent()).call("find_tools", {"query": "big"})).text)
        assert len(told["tools"]) == 2
        assert told["more"] == 2


async def test_without_prefixes() -> None:
    """A server's own find_tools is not ours, while the list is not replaced."""
    a = [tool("find_tools", "theirs"), tool("same", "of things")]
    b = [tool("same", "of shop")]
    async with two(a, b, prefix="never", search=Search("auto", 10, None)) as (running, things, _):
        agent = await running.agent()
        assert names(await agent.ask("tools/list")) == ["find_tools", "same"]
        assert json.loads((await agent.call("find_tools", {"query": "x"})).text)["name"] == "find_tools"
        assert len(things.calls("tools/call")) == 1
    async with two(a, b, prefix="never") as (running, things, _):
        agent = await running.agent()
        assert names(await agent.ask("tools/list")) == ["find_tools", "call_tool"]
        assert found(await agent.call("find_tools", {"query": "same"})) == ["same"]
        assert json.loads((await agent.call("call_tool", {"name": "find_tools"})).text)["name"] == "find_tools"
        assert len(things.calls("tools/call")) == 1


async def test_a_catalogue_that_changes() -> None:
    shop = list(SHOP)
    spec: Any = {}
    async with upstream(server(shop)) as behind:
        spec["shop"] = HttpServerSpec(url=behind.url, list_ttl=0.0)
        async with gateway(spec, search=ON, prefix="always") as running:
            agent = await running.agent()
            assert found(await agent.call("find_tools", {"query": "refund"})) == []
            shop.append(tool("refund", "Sends money back."))
            assert found(await agent.call("find_tools", {"query": "refund"})) == ["shop__refund"]


async def test_a_server_that_is_missing() -> None:
    async with upstream(server(SHOP)) as behind:
        specs: Any = {"shop": HttpServerSpec(url=behind.url), "dead": HttpServerSpec(url="http://127.0.0.1:9/mcp")}
        async with gateway(specs, search=ON) as running:
            told = json.loads((await (await running.agent()).call("find_tools", {"query": "order"})).text)
            assert told["unavailable_servers"] == ["dead"]
            assert told["tools"]


# ---- by sense
MEANING = {"purchase": [1.0, 0.0], "shop: order_item": [0.9, 0.1], "things": [0.0, 1.0], "shop": [0.3, 0.7]}


class Embedder:
    """A model that knows the words of MEANING."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.failure: Failure | None = None

    async def __call__(self, request: Request, texts: Any) -> list[list[float]]:
        self.asked.append(list(texts))
        if self.failure is not None:
            raise self.failure
        return [next(vector for word, vector in MEANING.items() if text.startswith(word)) for text in texts]


@asynccontextmanager
async def by_sense() -> AsyncIterator[tuple[Gateway, Embedder, Vectors]]:
    vectors, embedder = Vectors(), Embedder()
    vectors.use(embedder)
    try:
        async with two(vectors=vectors) as (running, _, _):
            yield running, embedder, vectors
    finally:
        await vectors.close()


async def test_search_by_sense() -> None:
    async with by_sense() as (running, embedder, vectors):
        agent = await running.agent()
        assert found(await agent.call("find_tools", {"query": "purchase"})) == []  # no word of it, and no vectors yet
        while vectors._task is None or not vectors._task.done():
            await asyncio.sleep(0.005)
        assert found(await agent.call("find_tools", {"query": "purchase", "limit": 1})) == ["shop__order_item"]
        assert found(await agent.call("find_tools", {"query": "purchase", "limit": 1})) == ["shop__order_item"]
        assert [len(texts) for texts in embedder.asked] == [8, 1, 1]  # each tool once


@pytest.mark.parametrize("status, again", [(502, 1), (403, 2)])
async def test_search_goes_on_without_vectors(status: int, again: int) -> None:
    async with by_sense() as (running, embedder, vectors):
        embedder.failure = Failure(status, Reason.UPSTREAM_FAILURE, "no")
        agent = await running.agent()
        for _ in range(2):
            assert found(await agent.call("find_tools", {"query": "order", "limit": 1})) == ["shop__order_item"]
            while vectors._task is None or not vectors._task.done():
                await asyncio.sleep(0.005)
        assert len(embedder.asked) == again  # what one caller may not, another may


async def test_admit_sees_the_method() -> None:
    seen: list[tuple[str, str]] = []

    async def admit(call: ToolCall) -> None:
        seen.append((call.method, call.name))

    async with two(admit=admit) as (running, _, _):
        agent = running.stateless()
        await agent.call("find_tools", {"query": "x"})
        await agent.call("call_tool", {"name": "shop__order_item"})
        assert seen == [("tools/list", "")]


async def test_no_garbage() -> None:
    async with two() as (running, _, _):
        agent = running.stateless()
        for name, arguments in (("find_tools", {"query": "order"}), ("call_tool", {"name": "shop__order_item"})):
            await agent.call(name, arguments)
            gc.collect()
            gc.disable()
            try:
                for _ in range(20):
                    await agent.call(name, arguments)
                assert gc.collect() < 20  # not one for each
            finally:
                gc.enable()
