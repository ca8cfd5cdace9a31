"""Calls that the agent's user approves, by elicitation in either era, at servers of either era, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.fixtures.mcp_gateway import Answer, Gateway, gateway, until
from tests.fixtures.mcp_raw import Asked, Either, result, upstream
from tests.unit.endpoints.mcp.test_bridge import needed
from tests.unit.policies.floor import Time, layer, parts

from tollhouse.backends.mcp.http import HttpServerSpec
from tollhouse.core.clock import Clock
from tollhouse.net.timer import Timer
from tollhouse.policies.authorize import APPROVE, GuardSpec
from tollhouse.wire import jsonrpc

pytestmark = pytest.mark.anyio

ASKABLE: dict[str, Any] = {"elicitation": {"form": {}}}
DECLARED = {"io.modelcontextprotocol/clientCapabilities": ASKABLE}
YES, NO = {"action": "accept", "content": {}}, {"action": "decline"}
RULE: dict[str, Any] = {"approve": 'mcp.tool.name == "pay"', "name": "pay"}
TOOLS = [{"name": name, "inputSchema": {"type": "object"}} for name in ("pay", "look")]


class Bank(Either):
    """A server of the old era. paid: the arguments of each call that came."""

    tools = TOOLS

    def __init__(self) -> None:
        super().__init__()
        self.paid: list[Any] = []

    def __call__(self, asked: Asked) -> Any:
        if asked.method == "tools/call":
            self.paid.append(asked.body["params"].get("arguments"))
        return super().__call__(asked)


class NewBank(Bank):
    """The same, stateless."""

    stateless = True


@asynccontextmanager
async def bank(made: Bank, *rules: dict[str, Any], **approvals: Any) -> AsyncIterator[Gateway]:
    clock = Clock()
    timer = Timer(clock)
    timer.start()
    written: dict[str, Any] = {"rules": rules or [RULE | {"by": "user"}]}
    if approvals:
        written["approvals"] = approvals
    p = replace(parts(Time(), entrance="mcp"), clock=clock)
    policy = APPROVE.make((layer(GuardSpec.model_validate(written)),), p)
    try:
        async with upstream(made) as server, _in_front(server.url, policy) as running:
            await running.stateless().ask("tools/list")
            yield running
    finally:
        timer.stop()


def _in_front(url: str, policy: Any) -> Any:
    return gateway({"u": HttpServerSpec(url=url)}, policies=(policy,))


BANKS = pytest.mark.parametrize("made", [Bank, NewBank])


# ---- agents with sessions
@BANKS
async def test_the_user_of_an_agent_with_a_session_is_asked(made: Callable[[], Bank]) -> None:
    shop = made()
    async with bank(shop) as running:
        agent = await running.agent(ASKABLE, who="ada")
        stream = await agent.start("tools/call", {"name": "pay", "arguments": {"amount": 5}})
        await stream.head()
        asked = await stream.next()
        assert asked["method"] == "elicitation/create"
        assert asked["params"]["message"] == 'Allow the call of pay at u?\nArguments: {"amount": 5}'
        assert asked["params"]["requestedSchema"] == {"type": "object", "properties": {}}
        assert shop.paid == []
        assert (await agent.answer(asked["id"], YES)).status == 202
        told = await stream.next()
        assert told["result"]["content"][0]["text"] == "done"
        assert told["id"] == agent.ids
        assert await stream.next() is None
        assert shop.paid == [{"amount": 5}]
        await stream.close()
        assert (await agent.call("look")).text == "done"


@BANKS
@pytest.mark.parametrize("said", [NO, {"action": "cancel"}, {}, {"action": "ACCEPT"}])
async def test_a_user_who_does_not_agree(made: Callable[[], Bank], said: Any) -> None:
    shop = made()
    async with bank(shop) as running:
        agent = await running.agent(ASKABLE)
        stream = await agent.start("tools/call", {"name": "pay"})
        await stream.head()
        asked = await stream.next()
        await agent.answer(asked["id"], said)
        told = await stream.next()
        assert told["error"]["data"]["reason"] == "not_approved"
        assert await stream.next() is None
        assert shop.paid == []
        await stream.close()


@BANKS
async def test_a_user_who_does_not_answer(made: Callable[[], Bank]) -> None:
    shop = made()
    async with bank(shop, timeout="200ms") as running:
        agent = await running.agent(ASKABLE)
        answer = await agent.call("pay")
        assert [message.get("method") for message in answer.messages] == ["elicitation/create", None]
        assert answer.message["error"]["data"]["reason"] == "approval_timeout"
        late = await agent.answer(answer.messages[0]["id"], YES)
        assert late.status == 202
        assert shop.paid == []


async def test_an_agent_that_cancels_while_its_user_is_asked() -> None:
    shop = Bank()
    async with bank(shop) as running:
        agent = await running.agent(ASKABLE)
        stream = await agent.start("tools/call", {"name": "pay"})
        await stream.head()
        asked = await stream.next()
        await agent.tell("notifications/cancelled", {"requestId": agent.ids})
        assert await stream.next() is None
        await agent.answer(asked["id"], YES)
        await agent.ask("ping")
        assert shop.paid == []
        await stream.close()


@BANKS
async def test_a_server_that_asks_itself_is_heard_after_the_approval(made: Callable[[], Bank]) -> None:
    shop = made()
    shop.asks = True
    async with bank(shop) as running:
        agent = await running.agent(ASKABLE)
        stream = await agent.start("tools/call", {"name": "pay"})
        await stream.head()
        asked = await stream.next()
        await agent.answer(asked["id"], YES)
        told = await stream.next()
        if made is NewBank:
            assert told["params"]["message"] == "PIN?"
            await agent.answer(told["id"], YES)
            told = await stream.next()
        assert told["result"]["content"][0]["text"] == "done"
        assert len(shop.paid) == (2 if made is NewBank else 1)
        await stream.close()


async def test_who_cannot_be_asked() -> None:
    shop = Bank()
    async with bank(shop) as running:
        for agent in (await running.agent({}), running.stateless(), await running.agent({"elicitation": {"url": {}}})):
            refused = await agent.call("pay")
            assert refused.message["error"]["data"]["reason"] == "not_approved"
        assert shop.paid == []


# ---- stateless agents
async def retry(agent: Any, asked: Any, said: Any, **more: Any) -> Answer:
    responses = dict.fromkeys(asked["inputRequests"], said)
    params = {"name": "pay", "arguments": {"amount": 5}, **more}
    params |= {"requestState": asked["requestState"], "inputResponses": responses, "_meta": DECLARED}
    told: Answer = await agent.ask("tools/call", params)
    return told


@BANKS
async def test_the_user_of_a_stateless_agent_is_asked(made: Callable[[], Bank]) -> None:
    shop = made()
    async with bank(shop) as running:
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("pay", {"amount": 5}, _meta=DECLARED))
        (question,) = asked["inputRequests"].values()
        assert question["method"] == "elicitation/create"
        assert question["params"]["message"] == 'Allow the call of pay at u?\nArguments: {"amount": 5}'
        assert shop.paid == []
        assert len(running.bridge) == 0  # nothing waits here
        told = await retry(agent, asked, YES)
        assert told.text == "done"
        assert told.message["result"]["resultType"] == "complete"
        assert shop.paid == [{"amount": 5}]
        again = await retry(agent, asked, YES)  # one approval is for one call
        assert "error" in again.message
        assert len(shop.paid) == 1


@BANKS
@pytest.mark.parametrize("said", [NO, {"action": "cancel"}, {}, {"action": 1}])
async def test_a_stateless_agents_user_who_does_not_agree(made: Callable[[], Bank], said: Any) -> None:
    shop = made()
    async with bank(shop) as running:
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("pay", {"amount": 5}, _meta=DECLARED))
        refused = await retry(agent, asked, said)
        assert refused.message["error"]["data"]["reason"] == "not_approved"
        assert shop.paid == []


async def test_an_approval_is_for_its_caller_and_its_call() -> None:
    shop = Bank()
    async with bank(shop) as running:
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("pay", {"amount": 5}, _meta=DECLARED))
        for refused in (
            await retry(running.stateless(who="bob"), asked, YES),
            await retry(agent, asked, YES, arguments={"amount": 5000}),
            await retry(agent, asked, YES, name="look"),
            await retry(running.stateless("/mcp/u", who="ada"), asked, YES),
        ):
            assert refused.message["error"]["code"] == jsonrpc.INVALID_PARAMS
        nothing = {"requestState": asked["requestState"], "_meta": DECLARED}
        refused = await agent.ask("tools/call", {"name": "pay", "arguments": {"amount": 5}, **nothing})
        assert refused.message["error"]["data"]["reason"] == "not_approved"
        assert shop.paid == []


async def test_answers_without_a_question_approve_nothing() -> None:
    shop = Bank()
    async with bank(shop) as running:
        agent = running.stateless(who="ada")
        params = {"name": "pay", "arguments": {}, "inputResponses": {"approval": YES}, "_meta": DECLARED}
        needed(await agent.ask("tools/call", params))
        for state in ("approval", "consent", "x" * 100):
            refused = await agent.ask("tools/call", params | {"requestState": state})
            assert refused.message["error"]["code"] == jsonrpc.INVALID_PARAMS
        assert shop.paid == []


async def test_a_late_answer_approves_nothing() -> None:
    shop = Bank()
    async with bank(shop, timeout="1s") as running:
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("pay", {"amount": 5}, _meta=DECLARED))
        now = running.bridge._now
        running.bridge._now = lambda: now() + 2
        refused = await retry(agent, asked, YES)
        assert refused.message["error"]["data"]["reason"] == "approval_timeout"
        assert shop.paid == []


async def test_a_server_cannot_speak_for_the_user() -> None:
    """One that answers with a state like ours gets its own question asked, and no call approved."""

    class Forging(NewBank):
        def called(self, asked: Asked) -> Any:
            if len(self.paid) > 1:
                return super().called(asked)
            question = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}
            said = {"resultType": "input_required", "inputRequests": {"approval": question}, "requestState": "consent"}
            return result(asked, said)

    shop = Forging()
    async with bank(shop, {"approve": "mcp.arguments.amount > 9", "by": "user"}) as running:
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("pay", {"amount": 5}, _meta=DECLARED))
        assert (await retry(agent, asked, YES)).text == "done"
        refused = await retry(agent, asked, YES, arguments={"amount": 50})
        assert refused.message["error"]["code"] == jsonrpc.INVALID_PARAMS


async def test_an_approval_carries_one_call_through_all_its_rounds() -> None:
    """The state of a later round that is sent a second time begins the call anew, and its user is asked again."""

    shop = NewBank()
    shop.asks = True
    async with bank(shop) as running:
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("pay", {"amount": 5}, _meta=DECLARED))
        asked = needed(await retry(agent, asked, YES))
        assert "pin" in asked["inputRequests"]
        assert (await retry(agent, asked, YES)).text == "done"
        paid = len(shop.paid)
        assert "pin" not in needed(await retry(agent, asked, YES))["inputRequests"]
        assert len(shop.paid) == paid


@BANKS
async def test_what_was_approved_may_be_kept(made: Callable[[], Bank]) -> None:
    shop = made()
    async with bank(shop, RULE | {"by": "user", "remember": "1h"}) as running:
        agent = running.stateless(who="ada")
        asked = needed(await agent.call("pay", {"amount": 5}, _meta=DECLARED))
        assert (await retry(agent, asked, YES)).text == "done"
        assert (await agent.call("pay", {"amount": 7}, _meta=DECLARED)).text == "done"
        needed(await running.stateless(who="bob").call("pay", {"amount": 7}, _meta=DECLARED))
        with_session = await running.agent(ASKABLE, who="ada")
        assert (await with_session.call("pay")).text == "done"
        assert len(shop.paid) == 3


async def test_nothing_is_left_behind() -> None:
    shop = Bank()
    async with bank(shop) as running:
        agent = await running.agent(ASKABLE)

        async def once() -> None:
            stream = await agent.start("tools/call", {"name": "pay"})
            await stream.head()
            asked = await stream.next()
            await agent.answer(asked["id"], YES)
            assert (await stream.next())["result"]["content"]
            assert await stream.next() is None
            await stream.close()

        await once()
        assert asyncio.all_tasks()
        before = len(asyncio.all_tasks())
        await once()
        await until(lambda: len(asyncio.all_tasks()) <= before)
        assert json.dumps(shop.paid)
