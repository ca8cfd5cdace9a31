"""Calls that need an account of the agent's user, at servers of either era, over real sockets: he is asked to connect
one by URL elicitation in his agent's era, or gets the link in words."""

import asyncio
import gc
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp_types import ElicitResult
from tests.fixtures.accounts import Connected
from tests.fixtures.mcp_gateway import NEW, Answer, Gateway, gateway, until
from tests.fixtures.mcp_raw import Asked, Either, answer, upstream
from tests.unit.endpoints.mcp.test_bridge import needed
from tests.unit.policies.floor import Time, counted, layer, limiting, parts

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.call import Call, Context, ToolCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.identity import Target
from tollhouse.endpoints.mcp.search import Search
from tollhouse.net.program import Limits, Programs
from tollhouse.net.timer import Timer
from tollhouse.policies.account import AccountAsked
from tollhouse.policies.authorize import APPROVE, AUTHORIZE, GuardSpec
from tollhouse.policies.limits import LimitSpec
from tollhouse.store.memory import MemoryState
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio

URL: dict[str, Any] = {"elicitation": {"url": {}}}
BOTH: dict[str, Any] = {"elicitation": {"url": {}, "form": {}}}
CAPABILITIES = "io.modelcontextprotocol/clientCapabilities"
DECLARED = {CAPABILITIES: URL}
YES, NO = {"action": "accept"}, {"action": "decline"}


class Shop(Either):
    """A server of the old era. bearers: what each call came with."""

    offers = ("tools", "prompts")

    def __init__(self) -> None:
        super().__init__()
        self.bearers: list[str] = []
        self.takes: Callable[[str], bool] = lambda bearer: True

    def __call__(self, asked: Asked) -> Any:
        if asked.method in ("tools/call", "prompts/get"):
            bearer = asked.headers.get("authorization", "")
            if not self.takes(bearer):
                return answer(401, b"")
            self.bearers.append(bearer)
        return super().__call__(asked)


class NewShop(Shop):
    """The same, stateless."""

    stateless = True


class World:
    """A gateway before a shop. contexts: of every call, as it ended. connects: `connect` is our tool."""

    def __init__(self, running: Gateway, shop: Shop, accounts: Connected, contexts: list[Context], p: Any) -> None:
        self.gateway = running
        self.shop = shop
        self.accounts = accounts
        self.contexts = contexts
        self.parts = p
        self.connects = False

    @property
    def said(self) -> tuple[str, str, str]:
        """(rule, decision, approver) of the last call."""
        context = self.contexts[-1]
        return context.rule, context.decision, context.approver


@asynccontextmanager
async def world(shop: Shop, *users: str, before: Any = (), endpoint: Any = None, **how: float) -> AsyncIterator[World]:
    """before: makes the policies outside of it. how: of AccountAsked."""
    accounts = Connected(*users)
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    p = replace(parts(Time(), entrance="mcp"), clock=clock)
    contexts: list[Context] = []
    asked = p.families.accounts.child("u", "asked").inc
    policy = AccountAsked("u", accounts, clock, asked, **how)
    target = Target("https://shop.example.com", (), 60.0, False)

    async def seen(call: Call, next: Any) -> Any:
        contexts.append(call.context)
        if w.connects and isinstance(call, ToolCall) and call.name == "connect":
            call.connects = True
        return await next(call)

    async def bearing(call: Call, next: Any) -> Any:
        """As `policies.exchange` does, without remembering."""
        assert call.principal is not None
        token = accounts.exchanged(call.principal, target).token
        call.credential = b"Bearer " + token
        try:
            return await next(call)
        except Failure as failure:
            if failure.code != "upstream_credentials" or failure.sent:
                raise
        accounts.refused(call.principal, token)
        call.credential = b"Bearer " + accounts.exchanged(call.principal, target).token
        return await next(call)

    policies = (seen, *(made for made in (make(p) for make in before) if made), policy.handle, bearing)
    try:
        async with (
            upstream(shop) as server,
            gateway({"u": HttpServerSpec(url=server.url)}, policies=policies, **(endpoint or {})) as running,
        ):
            w = World(running, shop, accounts, contexts, p)
            await running.stateless(who="nobody").ask("tools/list")
            yield w
    finally:
        timer.stop()


def approving(**more: Any) -> Callable[[Any], Any]:
    rule = {"approve": "true", "name": "ask", "by": "user", **more}
    return lambda p: APPROVE.make((layer(GuardSpec.model_validate({"rules": [rule]})),), p)


def ruled(**rule: Any) -> Callable[[Any], Any]:
    return lambda p: AUTHORIZE.make((layer(GuardSpec.model_validate({"rules": [rule]})),), p)


def limited(calls: int) -> Callable[[Any], Any]:
    spec = LimitSpec.model_validate({"per": "user", "calls": calls, "window": "1h"})
    return lambda p: limiting((spec,), p)


SHOPS = pytest.mark.parametrize("made", [Shop, NewShop])


def failed(told: Answer, text: str) -> str:
    """The text of a tool's error, which has `text` in it."""
    assert told.message["result"]["isError"] is True
    assert text in told.text
    return told.text


# ---- agents with sessions
@SHOPS
async def test_the_user_of_an_agent_with_a_session_is_asked(made: Callable[[], Shop]) -> None:
    async with world(made()) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo", "arguments": {"amount": 5}})
        await stream.head()
        asked = await stream.next()
        assert asked["method"] == "elicitation/create"
        params = asked["params"]
        assert params.pop("elicitationId")
        assert params == {
            "mode": "url",
            "message": "u needs your account at login.example.com: connect it, and echo goes on.",
            "url": "https://gateway.example.com/oauth/upstream/start?l=ada-1",
        }
        assert (await agent.answer(asked["id"], YES)).status == 202
        assert w.shop.bearers == []  # opened is not connected
        w.accounts.connect("ada")
        complete = await stream.next()
        assert complete["method"] == "notifications/elicitation/complete"
        told = await stream.next()
        assert told["result"]["content"][0]["text"] == "done"
        assert told["id"] == agent.ids
        assert await stream.next() is None
        assert w.shop.bearers == ["Bearer token-of-ada"]
        assert w.said == ("", "", "")
        await stream.close()
        assert (await agent.call("echo")).text == "done"  # and is not asked again
        assert counted(w.parts, "accounts_total") == {("u", "asked"): 1}


@SHOPS
async def test_the_account_counts_and_not_the_agents_answer(made: Callable[[], Shop]) -> None:
    """An agent that says nothing until its user is back, and one that lies."""
    async with world(made()) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        asked = await stream.next()
        w.accounts.connect("bob")  # of somebody else
        w.accounts.connect("ada")
        complete = await stream.next()
        assert complete["params"] == {"elicitationId": asked["params"]["elicitationId"]}
        assert (await stream.next())["result"]["content"][0]["text"] == "done"
        late = await agent.answer(asked["id"], NO)
        assert late.status == 202
        await stream.close()
        assert w.shop.bearers == ["Bearer token-of-ada"]


@SHOPS
@pytest.mark.parametrize("said", [NO, {"action": "cancel"}, {}, {"action": "ACCEPT"}])
async def test_a_user_who_does_not_agree(made: Callable[[], Shop], said: Any) -> None:
    async with world(made()) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        asked = await stream.next()
        await agent.answer(asked["id"], said)
        told = await stream.next()
        assert told["result"]["isError"] is True
        assert "did not agree to connect an account at login.example.com" in told["result"]["content"][0]["text"]
        assert "https://" not in told["result"]["content"][0]["text"]
        assert await stream.next() is None
        assert w.shop.bearers == []
        assert w.said == ("account", "deny", "user")
        await stream.close()


@SHOPS
async def test_a_user_who_does_not_come_back(made: Callable[[], Shop]) -> None:
    async with world(made(), patience=0.2) as w:
        agent = await w.gateway.agent(URL, who="ada")
        told = await agent.call("echo")
        assert [message.get("method") for message in told.messages] == ["elicitation/create", None]
        failed(told, "No account was connected in time")
        failed(told, "l=ada-2")  # a new one: the first may have ended
        assert w.said == ("account", "deny", "timeout")
        assert w.shop.bearers == []


async def test_an_agent_that_cancels_while_its_user_is_away() -> None:
    async with world(Shop()) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        asked = await stream.next()
        await agent.answer(asked["id"], YES)
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        assert await stream.next() is None
        w.accounts.connect("ada")
        await agent.ask("ping")
        assert w.shop.bearers == []
        await stream.close()


async def test_an_agent_that_loses_its_connection_meanwhile() -> None:
    async with world(Shop()) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        while b"elicitation/create" not in (event := await stream.chunk()):
            pass
        last = re.search(rb"id: (\S+)", event)
        assert last is not None
        await stream.close()
        w.accounts.connect("ada")
        again = await w.gateway.open(None, agent.headers | {"last-event-id": last[1].decode()}, method="GET")
        await again.head()
        assert (await again.next())["method"] == "notifications/elicitation/complete"
        assert (await again.next())["result"]["content"][0]["text"] == "done"
        await again.close()
        assert w.shop.bearers == ["Bearer token-of-ada"]


async def test_an_agent_that_cannot_show_the_link_after_all() -> None:
    async with world(Shop()) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        asked = await stream.next()
        error = {"code": -32601, "message": "no such method"}
        await w.gateway.send({"jsonrpc": "2.0", "id": asked["id"], "error": error}, agent.headers)
        told = (await stream.next())["result"]
        assert told["isError"] is True
        assert w.accounts.links[1] in told["content"][0]["text"]
        await stream.close()


async def test_an_agent_hears_that_its_call_is_waited_for() -> None:
    async with world(Shop(), beat=0.05) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo", "_meta": {"progressToken": "p"}})
        await stream.head()
        await stream.next()
        beats = [(await stream.next())["params"] for _ in range(3)]
        assert all(beat["progressToken"] == "p" and "login.example.com" in beat["message"] for beat in beats)
        assert beats[0]["progress"] < beats[1]["progress"] < beats[2]["progress"] < 0.1  # the server's own go on
        w.accounts.connect("ada")
        while "result" not in (told := await stream.next()):
            pass
        assert told["result"]["content"][0]["text"] == "done"
        await stream.close()


@SHOPS
async def test_a_server_that_asks_itself_is_heard_afterwards(made: Callable[[], Shop]) -> None:
    shop = made()
    shop.asks = True
    async with world(shop) as w:
        agent = await w.gateway.agent(BOTH, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        await stream.next()
        w.accounts.connect("ada")
        assert (await stream.next())["method"] == "notifications/elicitation/complete"
        told = await stream.next()
        if made is NewShop:
            assert told["params"]["message"] == "PIN?"
            await agent.answer(told["id"], YES | {"content": {}})
            told = await stream.next()
        assert told["result"]["content"][0]["text"] == "done"
        await stream.close()


@SHOPS
async def test_approval_and_account_are_both_asked_for_once(made: Callable[[], Shop]) -> None:
    async with world(made(), before=(limited(1), approving())) as w:
        agent = await w.gateway.agent(BOTH, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        asked = await stream.next()
        assert asked["params"]["message"].startswith("Allow the call of echo")
        assert w.accounts.links == []
        await agent.answer(asked["id"], YES | {"content": {}})
        asked = await stream.next()
        assert asked["params"]["mode"] == "url"
        await agent.answer(asked["id"], YES)
        w.accounts.connect("ada")
        assert (await stream.next())["method"] == "notifications/elicitation/complete"
        assert (await stream.next())["result"]["content"][0]["text"] == "done"
        assert await stream.next() is None
        await stream.close()
        assert w.said == ("top: ask", "approved", "user")
        assert counted(w.parts, "approvals_total") == {("user", "approved"): 1}
        refused = await agent.call("echo")
        assert refused.message["error"]["data"]["reason"] == "rate_limit_exceeded"


async def test_an_agent_that_shows_forms_alone_is_asked_to_approve_and_gets_the_link() -> None:
    async with world(Shop(), before=(approving(),)) as w:
        agent = await w.gateway.agent({"elicitation": {}}, who="ada")
        for method, params in (("tools/call", {"name": "echo"}), ("prompts/get", {"name": "p"})):
            stream = await agent.start(method, params)
            await stream.head()
            asked = await stream.next()
            assert asked["params"]["message"].startswith("Allow the call")
            await agent.answer(asked["id"], YES | {"content": {}})
            told = await stream.next()
            if method == "tools/call":
                assert w.accounts.links[-1] in told["result"]["content"][0]["text"]
            else:
                assert told["error"]["data"] == {"reason": "account_needed", "url": w.accounts.links[-1]}
            assert await stream.next() is None
            await stream.close()


async def test_two_calls_of_one_user_have_a_question_each_and_one_account_serves_both() -> None:
    async with world(Shop()) as w:
        agent = await w.gateway.agent(URL, who="ada")
        streams = [await agent.start("tools/call", {"name": "echo"}) for _ in range(2)]
        for stream in streams:
            await stream.head()
        urls = {(await stream.next())["params"]["url"] for stream in streams}
        assert len(urls) == 2
        w.accounts.connect("ada")
        for stream in streams:
            assert (await stream.next())["method"] == "notifications/elicitation/complete"
            assert (await stream.next())["result"]["content"][0]["text"] == "done"
            await stream.close()


# ---- the link in words
async def test_who_cannot_be_asked_gets_the_link_in_words() -> None:
    async with world(Shop()) as w:
        for agent, meta in (
            (await w.gateway.agent({}, who="ada"), {}),
            (await w.gateway.agent({"elicitation": {}}, who="ada"), {}),
            (await w.gateway.agent(URL, who="ada", revision="2025-06-18"), {}),
            (await w.gateway.agent(URL, who="ada", revision="2025-03-26"), {}),
            (w.gateway.stateless(who="ada"), {}),
            (w.gateway.stateless(who="ada"), {CAPABILITIES: {"elicitation": {"form": {}}}}),
        ):
            told = await agent.call("echo", _meta=meta)
            failed(told, w.accounts.links[-1])
            failed(told, "u needs an account of the user at login.example.com")
            assert w.said == ("account", "", "")  # the answer was the question
        assert w.shop.bearers == []
        w.accounts.connect("ada")
        assert (await agent.call("echo")).text == "done"
        assert counted(w.parts, "accounts_total") == {("u", "asked"): 6}


async def test_what_is_no_tool_gets_an_error_with_the_link() -> None:
    async with world(NewShop()) as w:
        for agent in (await w.gateway.agent({}, who="ada"), w.gateway.stateless(who="ada")):
            told = await agent.ask("prompts/get", {"name": "p"})
            assert told.message["error"]["data"] == {"reason": "account_needed", "url": w.accounts.links[-1]}
            assert "https://" not in told.message["error"]["message"]  # which logs may have
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("prompts/get", {"name": "p"})  # its user can be asked within it
        await stream.head()
        asked = await stream.next()
        await agent.answer(asked["id"], NO)
        told = await stream.next()
        assert told["error"]["data"] == {"reason": "account_needed"}
        await stream.close()


async def test_a_task_that_cannot_begin_is_an_error() -> None:
    async with world(Shop()) as w:
        agent = await w.gateway.agent({}, who="ada")
        told = await agent.call("echo", task={})
        assert told.message["error"]["data"]["url"] == w.accounts.links[-1]


async def test_callers_without_a_user() -> None:
    async with world(Shop()) as w:
        for agent in (await w.gateway.agent(URL, who="bot-1"), w.gateway.stateless(who="bot-1")):
            told = await agent.call("echo", _meta=DECLARED)
            assert told.message["error"]["data"]["reason"] == "permission_denied"
        assert w.accounts.links == []


async def test_what_rules_refuse_is_not_asked_for() -> None:
    async with world(Shop(), before=(ruled(deny='mcp.tool.name == "echo"'),)) as w:
        for agent in (await w.gateway.agent(URL, who="ada"), w.gateway.stateless(who="ada")):
            told = await agent.call("echo", _meta=DECLARED)
            assert told.message["error"]["data"]["reason"] == "permission_denied"
        assert w.accounts.links == []


async def test_tools_that_are_searched() -> None:
    """Called by `call_tool` it is a call of the agent's own."""
    async with world(Shop(), endpoint={"search": Search("on")}) as w:
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "call_tool", "arguments": {"name": "echo", "arguments": {}}})
        await stream.head()
        assert (await stream.next())["params"]["mode"] == "url"
        w.accounts.connect("ada")
        await stream.next()
        assert (await stream.next())["result"]["content"][0]["text"] == "done"
        await stream.close()
        bob = w.gateway.stateless(who="bob")
        failed(await bob.call("call_tool", {"name": "echo", "arguments": {}}), w.accounts.links[-1])


async def test_programs_hear_of_the_link() -> None:
    """Within them nobody can be asked."""
    pytest.importorskip("pydantic_monty", reason="the extra `code` is not installed")
    programs = Programs()
    try:
        async with world(Shop(), endpoint={"programs": (programs, Limits(wall=15))}) as w:
            agent = await w.gateway.agent(URL, who="ada")
            told = await agent.call("run_program", {"code": "await call_tool('echo', {})"})
            assert len(told.messages) == 1
            assert w.accounts.links[-1] in json.dumps(told.message)
    finally:
        await programs.close()


@SHOPS
async def test_agents_that_can_have_tasks(made: Callable[[], Shop]) -> None:
    async with world(made()) as w:
        agent = w.gateway.stateless(who="ada")
        meta = {"_meta": {CAPABILITIES: {**URL, "extensions": {"io.modelcontextprotocol/tasks": {}}}}}
        asked = needed(await agent.call("echo", {"amount": 5}, **meta))
        w.accounts.connect("ada")
        assert (await retry(agent, asked, YES, **meta)).text == "done"
        bob = w.gateway.stateless(who="bob")
        meta = {"_meta": {CAPABILITIES: {"extensions": {"io.modelcontextprotocol/tasks": {}}}}}
        failed(await bob.call("echo", **meta), w.accounts.links[-1])


async def test_rules_that_ask_what_the_tool_is_decide_before_anybody_knows() -> None:
    """The server says nothing without an account. MCP takes such a tool for one that destroys."""
    async with world(Shop(), before=(ruled(deny="mcp.tool.annotations.destructiveHint"),)) as w:

        async def bears(principal: Any, refused: bytes = b"") -> bytes:
            token = w.accounts.exchanged(principal, Target("https://shop.example.com", (), 60.0, False))
            return b"Bearer " + token.token

        w.gateway.reached["u"].described = True
        w.gateway.servers.all[0].bears = bears
        agent = w.gateway.stateless(who="ada")
        refused = await agent.call("unheard", _meta=DECLARED)
        assert refused.message["error"]["data"]["reason"] == "permission_denied"
        assert w.accounts.links == []


# ---- stateless agents
async def retry(agent: Any, asked: Any, said: Any = None, **more: Any) -> Answer:
    params = {"name": "echo", "arguments": {"amount": 5}, "_meta": DECLARED, **more}
    params["requestState"] = asked["requestState"]
    if said is not None:
        params["inputResponses"] = dict.fromkeys(asked["inputRequests"], said)
    told: Answer = await agent.ask("tools/call", params)
    return told


async def ask(agent: Any, **more: Any) -> Any:
    return needed(await agent.call("echo", {"amount": 5}, _meta=DECLARED, **more))


@SHOPS
async def test_the_user_of_a_stateless_agent_is_asked(made: Callable[[], Shop]) -> None:
    async with world(made()) as w:
        agent = w.gateway.stateless(who="ada")
        asked = await ask(agent)
        (question,) = asked["inputRequests"].values()
        assert question["method"] == "elicitation/create"
        assert question["params"] == {
            "mode": "url",
            "message": "u needs your account at login.example.com: connect it, and echo goes on.",
            "url": "https://gateway.example.com/oauth/upstream/start?l=ada-1",
        }
        assert len(w.gateway.bridge) == 0  # nothing waits here
        running = asyncio.ensure_future(retry(agent, asked, YES))
        await asyncio.sleep(0)
        assert w.shop.bearers == []
        w.accounts.connect("ada")
        told = await running
        assert told.text == "done"
        assert told.message["result"]["resultType"] == "complete"
        assert w.shop.bearers == ["Bearer token-of-ada"]
        assert (await agent.call("echo", _meta=DECLARED)).text == "done"


@SHOPS
async def test_its_request_comes_again_while_the_user_is_away(made: Callable[[], Shop]) -> None:
    """He is not asked a second time."""
    async with world(made(), round=0.05) as w:
        agent = w.gateway.stateless(who="ada")
        asked = needed(await retry(agent, await ask(agent), YES))
        for _ in range(3):
            assert "inputRequests" not in asked
            asked = needed(await retry(agent, asked))
        w.accounts.connect("ada")
        assert (await retry(agent, asked)).text == "done"
        assert len(w.accounts.links) == 1
        assert w.said == ("", "", "")


async def test_its_request_may_come_to_another_worker() -> None:
    async with world(Shop()) as first, world(Shop(), "ada") as second:
        asked = await ask(first.gateway.stateless(who="ada"))
        assert (await retry(second.gateway.stateless(who="ada"), asked, YES)).text == "done"
        assert second.shop.bearers == ["Bearer token-of-ada"]


async def test_the_official_client_comes_again_by_itself() -> None:
    async with world(NewShop(), round=0.2) as w:
        links: list[str] = []

        async def elicited(context: Any, params: Any) -> Any:
            links.append(params.url)
            return ElicitResult(action="accept")

        async with (
            create_mcp_http_client(headers={"x-who": "ada"}) as http,
            Client(
                streamable_http_client(w.gateway.url, http_client=http), mode=NEW, elicitation_callback=elicited
            ) as client,
        ):
            running = asyncio.ensure_future(client.call_tool("echo", {}))
            await until(lambda: len(w.contexts) >= 4)  # that of the question, and three of who waits
            w.accounts.connect("ada")
            told: Any = await running
            assert told.content[0].text == "done"
        assert links == w.accounts.links
        assert len(links) == 1


@pytest.mark.parametrize("said", [NO, {"action": "cancel"}, {}, {"action": 1}])
async def test_a_stateless_agents_user_who_does_not_agree(said: Any) -> None:
    async with world(Shop()) as w:
        agent = w.gateway.stateless(who="ada")
        told = await retry(agent, await ask(agent), said)
        assert "https://" not in failed(told, "did not agree")
        assert w.said == ("account", "deny", "user")
        nothing = await retry(agent, await ask(agent))  # the answer is missing
        failed(nothing, "did not agree")
        assert w.shop.bearers == []


async def test_a_stateless_agents_user_who_does_not_come_back() -> None:
    async with world(Shop(), patience=2.0, round=0.05) as w:
        agent = w.gateway.stateless(who="ada")
        asked = await ask(agent)
        while (told := await retry(agent, asked, YES if "inputRequests" in asked else None)).message["result"].get(
            "resultType"
        ) == "input_required":
            asked = needed(told)
        failed(told, "No account was connected in time")
        failed(told, "l=ada-2")
        assert w.said == ("account", "deny", "timeout")


async def test_a_late_answer_goes_on_where_there_is_an_account() -> None:
    async with world(Shop(), patience=2.0) as w:
        agent = w.gateway.stateless(who="ada")
        asked, again = await ask(agent), await ask(agent)
        now = w.gateway.bridge._now
        w.gateway.bridge._now = lambda: now() + 5
        failed(await retry(agent, asked, YES), "in time")
        w.accounts.connect("ada")
        assert (await retry(agent, again, YES)).text == "done"


async def test_a_round_is_for_its_caller_and_its_call() -> None:
    async with world(Shop(), "bob") as w:
        agent = w.gateway.stateless(who="ada")
        asked = await ask(agent)
        for refused in (
            await retry(w.gateway.stateless(who="bob"), asked, YES),
            await retry(agent, asked, YES, arguments={"amount": 5000}),
            await retry(w.gateway.stateless("/mcp/u", who="ada"), asked, YES),
        ):
            assert refused.message["error"]["code"] == jsonrpc.INVALID_PARAMS
        assert w.shop.bearers == []


@SHOPS
async def test_a_round_that_comes_twice_begins_the_call_anew(made: Callable[[], Shop]) -> None:
    """What was approved, and counted, was one call."""
    async with world(made(), before=(limited(2), approving())) as w:
        agent = w.gateway.stateless(who="ada")
        meta = {"_meta": {CAPABILITIES: BOTH}}
        asked = needed(await agent.call("echo", {"amount": 5}, **meta))
        (question,) = asked["inputRequests"].values()
        assert question["params"]["message"].startswith("Allow the call")
        assert w.accounts.links == []
        asked = needed(await retry(agent, asked, YES | {"content": {}}, **meta))
        (question,) = asked["inputRequests"].values()
        assert question["params"]["mode"] == "url"
        w.accounts.connect("ada")
        assert (await retry(agent, asked, YES, **meta)).text == "done"
        assert len(w.shop.bearers) == 1
        again = needed(await retry(agent, asked, YES, **meta))
        (question,) = again["inputRequests"].values()
        assert question["params"]["message"].startswith("Allow the call")
        assert len(w.shop.bearers) == 1
        third = await retry(agent, asked, YES, **meta)
        assert third.message["error"]["data"]["reason"] == "rate_limit_exceeded"
        assert counted(w.parts, "approvals_total") == {("user", "approved"): 1}


async def test_a_round_that_comes_again_after_a_restart() -> None:
    """The state is kept, and with it the keys that rounds are sealed with."""
    state = MemoryState(Clock())
    kept = {"bridging": {"state": state}}
    meta = {"_meta": {CAPABILITIES: BOTH}}
    yes = YES | {"content": {}}
    async with world(Shop(), before=(approving(),), endpoint=kept) as w:
        agent = w.gateway.stateless(who="ada")
        approval = needed(await agent.call("echo", {"amount": 5}, **meta))
        account = needed(await retry(agent, approval, yes, **meta))
        w.accounts.connect("ada")
        assert (await retry(agent, account, YES, **meta)).text == "done"
    async with world(Shop(), "ada", before=(approving(),), endpoint=kept) as w:
        agent = w.gateway.stateless(who="ada")
        again = await retry(agent, approval, yes, **meta)
        assert again.message["error"]["data"]["reason"] == "not_approved"
        (question,) = needed(await retry(agent, account, YES, **meta))["inputRequests"].values()
        assert question["params"]["message"].startswith("Allow the call")
        assert w.shop.bearers == []
    await state.close()


async def test_an_approval_is_none_for_an_account_and_the_other_way_round() -> None:
    """Whoever changes what is configured between two rounds."""
    async with world(Shop(), before=(approving(),)) as w:
        agent = w.gateway.stateless(who="ada")
        meta = {"_meta": {CAPABILITIES: BOTH}}
        asked = needed(await agent.call("echo", {"amount": 5}, **meta))
        w.accounts.connect("ada")
        assert (await retry(agent, asked, YES | {"content": {}}, **meta)).text == "done"
        refused = await retry(agent, asked, YES, **meta)
        assert refused.message["error"]["code"] == jsonrpc.INVALID_PARAMS
        assert len(w.shop.bearers) == 1


# ---- accounts that go
async def test_an_account_that_is_gone_is_asked_for_within_the_call() -> None:
    """The server does not take the token, and there is no other: nothing was done yet."""
    async with world(Shop(), "ada") as w:
        w.shop.takes = lambda bearer: bearer == "Bearer second"
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "echo"})
        await stream.head()
        assert (await stream.next())["method"] == "elicitation/create"
        assert w.accounts.refusals == [b"token-of-ada"]
        w.accounts.connect("ada", b"second")
        assert (await stream.next())["method"] == "notifications/elicitation/complete"
        assert (await stream.next())["result"]["content"][0]["text"] == "done"
        assert w.shop.bearers == ["Bearer second"]
        await stream.close()


@pytest.mark.parametrize("era", ["session", "stateless"])
async def test_an_account_that_is_not_taken_is_not_asked_for_again_and_again(era: str) -> None:
    async with world(Shop(), "ada") as w:
        w.shop.takes = lambda bearer: False
        if era == "session":
            agent = await w.gateway.agent(URL, who="ada")
            stream = await agent.start("tools/call", {"name": "echo"})
            await stream.head()
            await stream.next()
            w.accounts.connect("ada", b"second")
            await stream.next()
            told = (await stream.next())["result"]
            await stream.close()
        else:
            stateless = w.gateway.stateless(who="ada")
            asked = await ask(stateless)
            w.accounts.connect("ada", b"second")
            told = (await retry(stateless, asked, YES)).message["result"]
        assert told["isError"] is True
        assert w.accounts.links[1] in told["content"][0]["text"]
        assert w.accounts.refusals == [b"token-of-ada", b"second"]


async def test_an_account_that_goes_in_the_middle_of_a_call_is_not_asked_for_there() -> None:
    """A later round brings the server's state along, which a question of ours would lose."""

    shop = NewShop()
    shop.asks = True
    async with world(shop, "ada") as w:
        agent = w.gateway.stateless(who="ada")
        meta = {"_meta": {CAPABILITIES: BOTH}}
        asked = needed(await agent.call("echo", {"amount": 5}, **meta))
        assert "pin" in asked["inputRequests"]
        w.accounts.disconnect("ada")
        failed(await retry(agent, asked, YES | {"content": {}}, **meta), w.accounts.links[-1])


# ---- the tool of ours
async def test_our_tool_has_an_account_connected() -> None:
    async with world(Shop()) as w:
        w.connects = True
        agent = await w.gateway.agent(URL, who="ada")
        stream = await agent.start("tools/call", {"name": "connect"})
        await stream.head()
        asked = await stream.next()
        assert asked["params"]["message"] == "Connect your account at login.example.com, so that u can be used."
        w.accounts.connect("ada")
        await stream.next()
        told = (await stream.next())["result"]
        assert "is connected" in told["content"][0]["text"]
        assert "isError" not in told
        await stream.close()
        assert "is connected" in (await agent.call("connect")).text

        bob = w.gateway.stateless(who="bob")
        for itself in (False, True):  # the server has such a tool itself, which is seen as soon as its list is
            asked = needed(await bob.call("connect", _meta=DECLARED))
            w.accounts.connect("bob")
            w.connects = not itself
            params = {"name": "connect", "arguments": {}, "_meta": DECLARED, "requestState": asked["requestState"]}
            told = await bob.ask("tools/call", params | {"inputResponses": dict.fromkeys(asked["inputRequests"], YES)})
            assert "is connected" in told.text
            w.accounts.disconnect("bob")

        w.connects = True
        eve = w.gateway.stateless(who="eve")
        told = await eve.call("connect")
        assert w.accounts.links[-1] in told.text  # which is what was asked for
        assert "isError" not in told.message["result"]
        assert w.shop.bearers == []  # none of this reached the server
        told = await w.gateway.stateless(who="bot-7").call("connect")
        assert told.message["error"]["data"]["reason"] == "permission_denied"


# ---- what is left behind
async def test_nothing_is_left_behind() -> None:
    async with world(Shop()) as w:
        agent = await w.gateway.agent(URL, who="ada")

        async def once() -> None:
            stream = await agent.start("tools/call", {"name": "echo"})
            await stream.head()
            asked = await stream.next()
            await agent.answer(asked["id"], YES)
            w.accounts.connect("ada")
            await stream.next()
            assert (await stream.next())["result"]["content"]
            assert await stream.next() is None
            await stream.close()
            w.accounts.disconnect("ada")

        await once()
        tasks, calls = len(asyncio.all_tasks()), alive()
        gc.disable()
        try:
            for _ in range(3):
                await once()
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            w.contexts.clear()
            assert alive() <= calls  # without the collector
        finally:
            gc.enable()


def alive() -> int:
    """Calls that something still holds."""
    return sum(isinstance(one, ToolCall) for one in gc.get_objects())
