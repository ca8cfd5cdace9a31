"""Results of tools that come again: of those that only read, where both sides say so."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.fixtures.valkey import valkey
from tests.unit.policies.cache.house import House, over
from tests.unit.policies.floor import Shelf, Time, counted, layer, tool, who

from tollhouse.core.call import Consent, ToolCall
from tollhouse.core.errors import Failure
from tollhouse.core.handler import compose
from tollhouse.core.reply import Reply
from tollhouse.policies.cache import CACHE
from tollhouse.policies.cache.spec import CacheSpec, ToolCacheSpec, TopCacheSpec
from tollhouse.policies.cache.tools import only_reads
from tollhouse.store.redis import RedisState
from tollhouse.store.spec import StateSpec
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio

READS = b'{"name":"search","annotations":{"readOnlyHint":true}}'
FOUND = jsonrpc.result(0, b'{"content":[{"type":"text","text":"found"}]}')
SPEC = {"exact": {"ttl": "1m"}}


class Tools(House):
    """A server's chain."""

    def __init__(self, *specs: tuple[Any, str, str], **more: Any) -> None:
        super().__init__()
        self.parts = self.made(entrance="mcp", **more)
        specs = specs or ((ToolCacheSpec.model_validate(SPEC), "server", "shop"),)
        self.policy = CACHE.make(tuple(layer(spec, level, name) for spec, level, name in specs), self.parts)
        self.made_of: list[ToolCall] = []
        self.says: list[bytes | Reply] = []
        self.open = asyncio.Event()
        self.open.set()
        self.tools = compose(() if self.policy is None else (self.policy,), self.answer)

    async def answer(self, call: Any) -> Reply:
        self.made_of.append(call)
        await self.open.wait()
        said = self.says.pop(0) if self.says else FOUND
        return said if isinstance(said, Reply) else Reply(200, [], said)

    async def call(self, definition: bytes = READS, **changes: Any) -> bytes:
        call = changes.pop("call", None) or tool(
            "search", changes.pop("principal", None), **changes.pop("arguments", {})
        )
        call.definition = definition
        for name, value in changes.items():
            setattr(call, name, value)
        reply = await self.tools(call)
        over(call, reply)
        return reply.first

    def asking(self, call: ToolCall | None = None) -> "asyncio.Task[bytes]":
        return asyncio.ensure_future(self.call(call=call or tool("search")))


@pytest.fixture
async def tools() -> AsyncIterator[Tools]:
    made = Tools()
    yield made
    await made.close()


async def test_a_tool_that_reads_is_called_once(tools: Tools) -> None:
    call = tool("search")
    assert await tools.call() == await tools.call(call=call) == FOUND
    assert len(tools.made_of) == 1
    assert (call.context.cached, call.context.mcp_outcome) == ("exact", "ok")
    found = counted(tools.parts, "cache_requests_total")
    assert found == {("exact", "miss", "unknown"): 1, ("exact", "hit", "unknown"): 1}


@pytest.mark.parametrize(
    "definition",
    [
        b"", b"{}", b'{"annotations":null}', b'{"annotations":{"readOnlyHint":false}}',
        b'{"annotations":{"idempotentHint":true,"destructiveHint":true}}', b'{"annotations":{"readOnlyHint":"yes"}}',
        b"nonsense",
    ],
)  # fmt: skip
async def test_a_tool_that_does_not_say_so_is_called_each_time(tools: Tools, definition: bytes) -> None:
    assert not only_reads(definition)
    for _ in range(2):
        await tools.call(definition)
    assert len(tools.made_of) == 2


@pytest.mark.parametrize(
    "specs",
    [
        ((TopCacheSpec.model_validate(SPEC), "top", ""),),  # which is about models
        ((ToolCacheSpec.model_validate(SPEC), "server", "shop"), (ToolCacheSpec(mode="off"), "tool", "shop/search")),
    ],
)
async def test_an_operator_who_does_not_want_it(specs: Any) -> None:
    assert Tools(*specs).policy is None
    assert CACHE.make((layer(CacheSpec(mode="off"), "model", "m"),), House().parts) is None


@pytest.mark.parametrize(
    "answer",
    [
        jsonrpc.result(0, b'{"content":[],"isError":true}'),
        jsonrpc.result(0, b'{"resultType":"input_required","inputRequests":{}}'),
        jsonrpc.result(0, b'{"task":{"taskId":"1"}}'),
        jsonrpc.error(0, -32603, "broken"),
        b"nonsense",
        Reply(202, [], FOUND),
    ],
)
async def test_what_is_no_result_is_not_kept(tools: Tools, answer: Any) -> None:
    tools.says.append(answer)
    await tools.call()
    assert await tools.call() == FOUND
    assert len(tools.made_of) == 2


async def resume(call: ToolCall) -> Any: ...


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 1}, {"resume": resume}, {"connects": True}, {"onward": "x"}, {"method": "prompts/get"},
        {"consent": Consent("approval", "accept", resume)}, {"params": {"task": msgspec.Raw(b"{}")}},  # type: ignore[arg-type]
    ],
)  # fmt: skip
async def test_what_goes_on_or_is_no_call_is_not_looked_at(tools: Tools, changes: dict[str, Any]) -> None:
    await tools.call()
    await tools.call(**changes)
    assert len(tools.made_of) == 2


async def test_a_result_is_its_user_s(tools: Tools) -> None:
    await tools.call(principal=who(id="ada"))
    await tools.call(principal=who(id="bob"))
    assert len(tools.made_of) == 2
    await tools.call(principal=who(id="ada"))
    assert len(tools.made_of) == 2


async def test_a_token_that_is_good_for_less_or_another_one_s_to_use_has_results_of_its_own(tools: Tools) -> None:
    for number in (3, 3):
        await tools.call(principal=who(scopes=frozenset(("read", "all"))))
        await tools.call(principal=who(scopes=frozenset(("read",))))
        await tools.call(principal=who(scopes=frozenset(("read",)), agent="bot"))
        assert len(tools.made_of) == number


async def test_other_arguments_are_another_call(tools: Tools) -> None:
    await tools.call(arguments={"q": 1})
    await tools.call(arguments={"q": 2})
    assert len(tools.made_of) == 2


async def test_no_store_and_no_cache(tools: Tools) -> None:
    await tools.call()
    for word, count in ((b"no-store", 2), (b"no-cache", 3), (b"max-age=60", 3)):
        call = tool("search")
        call.request.headers.append((b"cache-control", word))
        await tools.call(call=call)
        assert len(tools.made_of) == count


async def test_what_is_too_large() -> None:
    small = ToolCacheSpec.model_validate({"exact": {"ttl": "1m", "max_size": 1024}})
    tools = Tools((small, "server", "shop"))
    tools.says.append(jsonrpc.result(0, b'{"content":[{"type":"text","text":"%b"}]}' % (b"x" * 1024)))
    await tools.call()
    await tools.call()
    assert len(tools.made_of) == 2
    await tools.close()


@pytest.mark.parametrize(
    "settings, why",
    [
        ({}, "say how long"),
        ({"mode": "off", "exact": {"ttl": "1m"}}, "nothing else"),
        ({"exact": {"ttl": "1m", "replay": "paced"}}, "Extra inputs"),
        ({"exact": {"ttl": "31d"}}, "less than or equal"),
        ({"exact": {"ttl": "1m", "max_size": "64MiB"}}, "less than or equal"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ToolCacheSpec.model_validate(settings)


def test_the_fields_that_an_answer_depends_on_most_count() -> None:
    with pytest.raises(ValueError, match="depends on most"):
        CacheSpec.model_validate({"exact": {"ttl": "1m", "ignore": ["messages"]}})


# ---- at once
async def turn() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def test_the_same_at_once_is_called_once(tools: Tools) -> None:
    tools.open.clear()
    calls = [tool("search") for _ in range(5)]
    asking = [tools.asking(call) for call in calls]
    other = tools.asking(tool("search", q=1))
    await turn()
    assert len(tools.made_of) == 2
    tools.open.set()
    assert list(await asyncio.gather(*asking)) == [FOUND] * 5
    await other
    assert len(tools.made_of) == 2
    assert [call.context.cached for call in calls] == ["", *["exact"] * 4]
    assert [call.context.cache for call in calls] == ["miss", *[""] * 4]


async def test_where_there_is_no_result_the_others_call_but_not_one_after_the_other(tools: Tools) -> None:
    tools.says += [jsonrpc.error(0, -32603, "broken")] * 2
    tools.open.clear()
    asking = [tools.asking() for _ in range(5)]
    await turn()
    tools.open.set()
    answers = await asyncio.gather(*asking)
    assert answers.count(FOUND) == 3
    assert 3 <= len(tools.made_of) <= 5


async def test_who_leaves_takes_nothing_with_him(tools: Tools) -> None:
    tools.open.clear()
    asking = [tools.asking() for _ in range(4)]
    await turn()
    for n in (2, 0):  # who waits, and who asks
        asking[n].cancel()
        await turn()
    assert len(tools.made_of) == 2
    tools.open.set()
    assert [asking[n].result() if asking[n].done() else await asking[n] for n in (1, 3)] == [FOUND] * 2
    store = tools.shelf.parts[("cache", 64 << 20)]
    assert len(store.leaders) == 0
    assert len(tools.made_of) == 2


async def test_each_calls_where_that_is_wanted() -> None:
    tools = Tools((ToolCacheSpec.model_validate({"exact": {"ttl": "1m", "single_flight": False}}), "server", "shop"))
    tools.open.clear()
    asking = [tools.asking() for _ in range(3)]
    await turn()
    assert len(tools.made_of) == 3
    tools.open.set()
    await asyncio.gather(*asking)
    await tools.close()


async def test_only_what_is_kept(tools: Tools) -> None:
    for found in (False, True):
        call = tool("search")
        call.request.headers.append((b"cache-control", b"only-if-cached"))
        if found:
            await tools.call()
            assert await tools.call(call=call) == FOUND
        else:
            with pytest.raises(Failure, match="only-if-cached"):
                await tools.call(call=call)
    assert len(tools.made_of) == 1


async def test_nodes_call_once_and_share_the_result(tmp_path: Path) -> None:
    with valkey(tmp_path) as server:
        states = [RedisState(StateSpec(url=server.url, timeout=5.0), Time().clock) for _ in range(2)]
        one, other = (Tools(state=state, shared=Shelf()) for state in states)
        stores: list[Any] = [node.parts.shared(("cache", 64 << 20), Shelf) for node in (one, other)]
        for store in stores:
            store.start()
            while not store.purges.known:
                await asyncio.sleep(0.001)
        one.open.clear()
        first = one.asking()
        while not one.made_of:
            await asyncio.sleep(0.001)
        second = other.asking()
        while not stores[1].leaders:
            await asyncio.sleep(0.001)
        one.open.set()
        assert list(await asyncio.gather(first, second)) == [FOUND] * 2
        one.says.append(jsonrpc.error(0, -32603, "broken"))
        await asyncio.gather(one.asking(tool("search", q=1)), other.asking(tool("search", q=1)))
        assert len(other.made_of) <= 1
        for node, store, state in zip((one, other), stores, states, strict=True):
            await store.close()
            await node.close()
            await state.close()
