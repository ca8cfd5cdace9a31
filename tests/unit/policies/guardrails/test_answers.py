"""What agents answer to servers' questions within a call, under guards that have to be asked."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.fixtures.guard_services import GuardServices, guard_services
from tests.unit.policies.floor import layer, parts, tool
from tests.unit.policies.guardrails.house import Server, guarded, through
from tests.unit.policies.guardrails.test_asking import named, until
from tests.unit.policies.guardrails.test_tools import result

from tollhouse.core.call import ToolCall
from tollhouse.policies.guardrails.acts import Acts, Counts
from tollhouse.policies.guardrails.answers import Answers
from tollhouse.policies.guardrails.plan import plan_of
from tollhouse.policies.guardrails.spec import GuardrailsSpec

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def calling(**rule: Any) -> AsyncIterator[tuple[ToolCall, GuardServices]]:
    """A call that is under way."""
    async with guard_services() as services:
        made = parts(entrance="mcp")
        spec = {"request": [{"webhook": {"url": services.url + "/g"}, **rule}]}
        call = tool(text="Adds.")
        await through(guarded(Server(result("x")), spec, made=made, entrance="mcp"), call)
        services.says = named
        yield call, services
        await made.client.close()


async def sent(call: ToolCall, text: str) -> Any:
    """What the server gets."""
    told: list[bytes] = []
    assert call.outgoing is not None
    response = {"jsonrpc": "2.0", "id": 7, "result": {"action": "accept", "content": {"to": text}}}
    call.outgoing(call, json.dumps(response).encode(), told.append)
    await until(lambda: told)
    return json.loads(told[0])


async def test_answers_are_judged() -> None:
    async with calling() as (call, services):
        assert (await sent(call, "Ben"))["result"]["content"] == {"to": "Ben"}
        assert (await sent(call, "Anna"))["result"]["content"] == {"to": "X"}
        told = await sent(call, "a bomb")
        assert (told["id"], told["error"]["message"]) == (7, "no bombs")
        assert services.asked[-1].body["phase"] == "request"
        assert services.asked[-1].body["caller"]["user"] == "ada"


@pytest.mark.parametrize(("on_failure", "passes"), [("closed", False), ("open", True)])
@pytest.mark.parametrize("how", ["hang", "cut", "500"])
async def test_a_service_that_fails(how: str, on_failure: str, passes: bool) -> None:
    async with calling(on_failure=on_failure, timeout="200ms") as (call, services):
        services.fails = how
        told = await sent(call, "Anna")
        assert (told["id"], "result" in told) == (7, passes)


async def test_they_are_bounded_and_end_with_the_configuration() -> None:
    async with guard_services() as services:
        services.gate = asyncio.Event()
        made = parts(entrance="mcp")
        rules = [{"webhook": {"url": services.url + "/g"}}]
        plan = plan_of([layer(GuardrailsSpec.model_validate({"request": rules}))], "request", made)
        assert plan is not None
        answers, call = Answers(plan), tool()
        acts = Acts(call.context, "request", Counts(made.families))
        told: list[bytes] = []
        for n in range(257):
            answers.looked_at(acts, call, b'{"jsonrpc":"2.0","id":%d,"result":{"a":"b"}}' % n, told.append)
        [refused] = told
        assert (json.loads(refused)["id"], "error" in json.loads(refused)) == (256, True)
        await answers.close()
        assert len(told) == 1
        await made.client.close()
