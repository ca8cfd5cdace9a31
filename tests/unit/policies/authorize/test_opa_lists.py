"""What a policy server says of lists: a real one on a socket, real agents where the list is MCP's."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import child, gateway
from tests.unit.policies.authorize.test_opa import decide, guard, server, world
from tests.unit.policies.floor import counted, layer, model, tool, who

from tollhouse.core.call import Call, Principal
from tollhouse.policies.authorize import Authorize, GuardSpec, permitted
from tollhouse.policies.base import Parts

pytestmark = pytest.mark.anyio

ADA, EVE = who(groups=("ops",)), who(id="eve")


def names(count: int, principal: Principal = ADA) -> list[Call]:
    return [tool(f"t{n}", principal) for n in range(count)]


def asking(p: Parts, *layers: Any) -> Authorize:
    made = permitted(layers, p)
    assert made is not None
    assert made.asks
    return made


def even(asked: Any) -> Any:
    return {"result": int(asked["mcp"]["tool"]["name"][1:]) % 2 == 0}


async def shown(made: Authorize, probes: Sequence[Call]) -> list[int]:
    return [n for n, may in enumerate(await made.shown(probes)) if may]


async def test_what_it_refuses_is_hidden() -> None:
    async with server() as opa, world() as p:
        opa.says = even
        made = asking(p, guard(opa.url))
        assert await made.shown([]) == []
        assert await shown(made, names(40)) == list(range(0, 40, 2))
        assert len(opa.asked) == 40
        opa.says = lambda asked: {"result": {"allow": asked["llm"]["model"] == "b", "reason": "x"}}
        assert await shown(made, [model(name, ADA) for name in "abc"]) == [1]


async def test_the_question_has_the_caller_the_name_and_the_annotations() -> None:
    async with server() as opa, world() as p:
        principal = who(claims={"sub": "s"}, groups=("ops",))
        probe = tool("pay", principal, amount=5)
        probe.definition = b'{"name":"pay","annotations":{"readOnlyHint":true}}'
        made = asking(p, guard(opa.url, token="t0ken", path="a/b"))
        assert await shown(made, [probe]) == [0]
        line, headers, body = opa.asked[0]
        assert line == "POST /v1/data/a/b HTTP/1.1"
        assert headers["authorization"] == "Bearer t0ken"
        asked = body["input"]
        assert sorted(asked) == ["jwt", "key", "listing", "mcp", "principal"]
        assert (asked["jwt"], asked["principal"]["groups"], asked["listing"]) == ({"sub": "s"}, ["ops"], True)
        assert (asked["mcp"]["server"], asked["mcp"]["method"]) == ("shop", "tools/call")
        assert (asked["mcp"]["tool"]["name"], "arguments" in asked["mcp"]) == ("pay", False)
        assert asked["mcp"]["tool"]["annotations"]["readOnlyHint"] is True
        await decide(p, probe, guard(opa.url))
        assert "listing" not in opa.asked[1][2]["input"]
        anonymous = tool("x")
        anonymous.principal = None
        assert await shown(made, [anonymous]) == [0]
        assert opa.asked[2][2]["input"]["principal"]["id"] == "anonymous"


async def test_answers_are_kept_for_each_caller_name_and_annotations() -> None:
    async with server() as opa, world() as p:
        opa.says = even
        made = asking(p, guard(opa.url, cache="60s"))
        for _ in range(3):
            assert await shown(made, names(10)) == [0, 2, 4, 6, 8]
        assert len(opa.asked) == 10
        opa.says = lambda asked: {"result": asked["principal"]["user"] == "eve"}
        assert await shown(made, names(10, EVE)) == list(range(10))
        assert await shown(made, names(10)) == [0, 2, 4, 6, 8]
        assert len(opa.asked) == 20
        assert await shown(made, names(10, who(groups=("dev",)))) == []  # the same user, who is something else now
        probe = tool("t0", ADA)
        probe.definition = b'{"annotations":{"destructiveHint":false}}'
        assert await shown(made, [probe]) == []
        assert await shown(made, [tool("t0", ADA, server="other"), tool("t0", ADA, method="prompts/get")]) == []
        assert len(opa.asked) == 33
        p.clock.now += 61.0
        assert await shown(made, names(10)) == []
        assert len(opa.asked) == 43


async def test_without_a_cache_each_list_asks_and_each_name_once() -> None:
    async with server() as opa, world() as p:
        made = asking(p, guard(opa.url))
        assert await shown(made, [*names(3), *names(3)]) == [0, 1, 2, 3, 4, 5]
        assert len(opa.asked) == 3
        opa.says = {"result": False}
        assert await shown(made, names(3)) == []


async def test_not_more_than_so_many_answers_are_kept() -> None:
    async with server() as opa, world() as p:
        made = asking(p, guard(opa.url, cache="60s"))
        kept = made._servers[0]._listed
        kept |= {(b"x", n): (1e18, True) for n in range(16_384)}
        assert await shown(made, names(2)) == [0, 1]
        assert len(kept) == 16_384
        assert (b"x", 1) not in kept


async def test_what_is_not_answered_in_time_is_not_listed(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as opa, world() as p:
        opa.says = lambda asked: None if asked["mcp"]["tool"]["name"] == "t3" else {"result": True}
        made = asking(p, guard(opa.url, timeout="500ms", cache="60s"))
        assert await shown(made, names(6)) == [0, 1, 2, 4, 5]
        opa.says = {"result": True}
        assert await shown(made, names(6)) == [0, 1, 2, 3, 4, 5]  # doubt is not kept
        assert len(opa.asked) == 7
        opa.says = None
        with caplog.at_level(logging.WARNING):
            began = monotonic()
            assert await shown(made, names(300, EVE)) == []
        assert 0.9 < monotonic() - began < 5.0  # sixteen after sixteen they would have 9.5 s
        assert opa.most == 16
        assert counted(p, "authorization_decisions_total") == {("opa", "unavailable"): 2}
        assert len([r for r in caplog.records if "cannot be asked" in r.message]) <= 1
        opa.says = {"result": True}
        assert await decide(p, tool("x"), guard(opa.url, timeout="500ms", cache="60s")) is None
        assert await shown(made, names(300, EVE)) == list(range(300))


async def test_where_calls_would_be_let_through_their_names_are_listed() -> None:
    async with server() as opa, world() as p:
        opa.says = lambda asked: None if asked["mcp"]["tool"]["name"] == "t1" else {"result": False}
        assert await shown(asking(p, guard(opa.url, timeout="500ms", on_failure="allow")), names(3)) == [1]


@pytest.mark.parametrize("says", [b"no json", {"result": "true"}, {"result": [True]}, b" " * 70_000, {}, {"result": 1}])
async def test_garbage_hides(says: Any) -> None:
    async with server() as opa, world() as p:
        opa.says = lambda asked: says if asked["mcp"]["tool"]["name"] == "t1" else {"result": True}
        assert await shown(asking(p, guard(opa.url)), names(3)) == [0, 2]
        opa.status = 500
        assert await shown(asking(p, guard(opa.url)), names(3)) == []


async def test_nobody_there() -> None:
    async with server() as opa:
        url = opa.url
    async with world() as p:
        assert await shown(asking(p, guard(url)), names(100)) == []


async def test_what_cannot_be_asked_about_is_hidden() -> None:
    async with server() as opa, world() as p:
        probes = [*names(1), tool("bad\ud800", ADA), tool("t9", ADA)]
        made = asking(p, guard(opa.url, on_failure="allow"))
        assert await shown(made, probes) == [0, 2]
        assert await shown(made, names(2, who(claims={"x": object()}))) == []
        assert len(opa.asked) == 2


async def test_in_shadow_it_hides_nothing_and_is_not_asked() -> None:
    async with server() as opa, world() as p:
        assert permitted((guard(opa.url, shadow=True),), p) is None
        assert permitted((guard(opa.url, more={"shadow": True}),), p) is None
        rules = {"rules": [{"deny": 'mcp.tool.name == "t0"'}]}
        made = permitted((guard(opa.url, more=rules, shadow=True),), p)
        assert made is not None
        assert not made.asks
        assert not opa.asked


async def test_rules_alone_ask_nobody() -> None:
    async with world() as p:
        made = permitted((layer(GuardSpec.model_validate({"rules": [{"deny": 'mcp.tool.name == "t0"'}]})),), p)
        assert made is not None
        assert not made.asks


@pytest.mark.parametrize(("connections", "most"), [(64, 16), (4, 2), (1, 1)])
async def test_so_many_are_asked_at_once(connections: int, most: int) -> None:
    async with server() as opa, world() as p:
        there = asyncio.Event()

        async def gate() -> None:
            if opa.now == most:
                there.set()
            await there.wait()

        opa.gate, opa.says = gate, even
        made = asking(p, guard(opa.url, connections=connections, timeout="20s"))
        ada, eve = await asyncio.gather(shown(made, names(100)), shown(made, names(100, EVE)))
        assert ada == eve == list(range(0, 100, 2))
        assert (opa.most, opa.connections) == (most, most)


async def test_a_list_that_waits_keeps_no_call_waiting_and_ends_with_its_caller() -> None:
    async with server() as opa, world() as p:
        hung = asyncio.Event()

        def says(asked: Any) -> Any:
            if "listing" not in asked:
                return {"result": True}
            hung.set()
            return None

        opa.says = says
        made = asking(p, guard(opa.url, connections=2, timeout="60s"))
        listing = asyncio.create_task(made.shown(names(50)))
        await hung.wait()
        assert await decide(p, tool("x"), guard(opa.url, connections=2, timeout="60s")) is None
        listing.cancel()
        with suppress(asyncio.CancelledError):
            await listing
        assert listing.cancelled()
        opa.says = even
        assert await shown(made, names(4)) == [0, 2]


# ---- lists of MCP
async def test_lists_of_agents() -> None:
    async with server() as opa, world() as p:
        made = asking(p, guard(opa.url, cache="60s", more={"rules": [{"deny": 'mcp.tool.name == "env"'}]}))

        def says(asked: Any) -> Any:
            name = asked["mcp"]["tool"]["name"]
            return {"result": name == "echo" or (name == "pid" and asked["principal"]["id"] == "ada")}

        opa.says = says
        own = {"shown": made.shown}
        async with gateway({"c": child()}, permitted=made.permitted, shaped=lambda *_: dict(own)) as running:
            for who_asks, expected in (("ada", ["echo", "pid"]), ("eve", ["echo"])) * 2:
                agent = await running.agent(who=who_asks)
                listed = (await agent.ask("tools/list")).message["result"]["tools"]
                assert [one["name"] for one in listed] == expected
            count = len(opa.asked)
            assert "env" not in {body["input"]["mcp"]["tool"]["name"] for _, _, body in opa.asked}
            answered = await running.stateless(who="eve").ask("tools/list")
            assert answered.message["result"]["cacheScope"] == "private"
            assert [one["name"] for one in answered.message["result"]["tools"]] == ["echo"]
            assert len(opa.asked) == count


async def test_servers_without_one_beside_servers_with_one() -> None:
    async with server() as opa, world() as p:
        opa.says = {"result": False}
        made = asking(p, guard(opa.url))
        own = {"a": {"shown": made.shown}}
        async with gateway({"a": child(), "b": child()}, shaped=lambda name, *_: dict(own.get(name, {}))) as running:
            listed = (await (await running.agent()).ask("tools/list")).message["result"]["tools"]
            assert {one["name"].partition("__")[0] for one in listed} == {"b"}
