"""What servers say outside of calls, under guards that have to be asked: a service on a real socket."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from tests.fixtures.guard_services import GuardServices, guard_services
from tests.unit.policies.floor import Shelf, Time, counted, layer, parts
from tests.unit.policies.guardrails.test_asking import named, until
from tests.unit.policies.guardrails.test_outside import message

from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.outside import Outside, outside
from tollhouse.policies.guardrails.spec import GuardrailsSpec

pytestmark = pytest.mark.anyio

LOG = "notifications/message"


class House:
    def __init__(self, services: GuardServices, made: Parts, looked: Outside) -> None:
        self.services = services
        self.parts = made
        self.looked = looked

    async def hear(self, data: bytes, method: str = LOG) -> bytes | None:
        heard = self.looked.heard(data, method)
        return await heard if isinstance(heard, Coroutine) else heard

    async def tell(self, data: bytes) -> Any:
        told = self.looked.told(data, "elicitation/create")
        return json.loads(await told if isinstance(told, Coroutine) else told)

    async def instructions(self, text: str) -> str:
        said = self.looked.instructions(text)
        return await said if isinstance(said, Coroutine) else said


@asynccontextmanager
async def house(phase: str = "response", time: Time | None = None, **rule: Any) -> AsyncIterator[House]:
    async with guard_services() as services:
        services.says = named
        shelf = Shelf()
        made = parts(time, entrance="mcp", shared=shelf)
        spec = GuardrailsSpec.model_validate({phase: [{"webhook": {"url": services.url + "/g"}, **rule}]})
        looked = outside("s", [layer(spec)], made)
        assert looked is not None
        yield House(services, made, looked)
        await shelf.close()
        await made.client.close()


def log(data: Any) -> bytes:
    return message(LOG, {"level": "info", "data": data})


async def test_guards_may_think_otherwise_of_instructions_later() -> None:
    time = Time()
    async with house(time=time) as at:
        assert await at.instructions("makes a bomb") == ""
        at.services.says = {"action": "allow"}
        time.advance(599)
        assert await at.instructions("makes a bomb") == ""
        assert len(at.services.asked) == 1
        time.advance(3002)
        assert await at.instructions("makes a bomb") == ""  # it is asked again behind
        await until(lambda: len(at.services.asked) == 2)
        async with asyncio.timeout(10):
            while await at.instructions("makes a bomb") == "":
                time.advance(601)  # for the answer that is on its way
                await asyncio.sleep(0.005)
        assert len(at.services.asked) == 2


async def test_messages_are_judged(caplog: pytest.LogCaptureFixture) -> None:
    async with house() as at:
        fine = log("fine")
        assert await at.hear(fine) == fine
        masked = await at.hear(log({"to": "Anna"}))
        assert masked is not None
        assert json.loads(masked)["params"]["data"] == {"to": "X"}
        with caplog.at_level(logging.WARNING):
            assert await at.hear(log("a bomb")) is None
        assert "a message outside of calls is left out" in caplog.text
        assert "bomb" not in caplog.text
        question = message("elicitation/create", {"message": "Is it Anna?", "requestedSchema": {}}, id=3)
        asked = await at.hear(question, "elicitation/create")
        assert asked is not None
        assert json.loads(asked)["params"]["message"] == "Is it X?"
        calls = [one.body["call"] for one in at.services.asked]
        assert [(one["server"], one["method"]) for one in calls] == [("s", LOG)] * 3 + [("s", "elicitation/create")]
        assert at.services.asked[0].body["caller"] == {}
        assert counted(at.parts, "guardrail_checks") == {
            ("Response", "Allow"): 1, ("Response", "Mask"): 2, ("Response", "Reject"): 1,
        }  # fmt: skip
        # What was judged is told at once.
        assert at.looked.heard(fine, LOG) is fine
        # What nobody has to be asked about is told at once, too.
        ready = message("notifications/tasks/status", {"taskId": "t", "status": "working"})
        assert at.looked.heard(ready, "notifications/tasks/status") is ready


async def test_an_agents_answers_are_judged() -> None:
    async with house("request", message="no bombs, please") as at:

        def answer(text: str) -> bytes:
            return json.dumps({"jsonrpc": "2.0", "id": 7, "result": {"content": {"to": text}}}).encode()

        assert (await at.tell(answer("Anna")))["result"]["content"] == {"to": "X"}
        told = await at.tell(answer("a bomb"))
        assert (told["id"], told["error"]["message"]) == (7, "no bombs, please")
        assert at.services.asked[0].body["phase"] == "request"
        at.services.fails = "500"
        told = await at.tell(answer("what is new"))
        assert (told["id"], "could not look" in told["error"]["message"]) == (7, True)
        assert at.looked.heard(log("Anna"), LOG) is not None  # nobody looks at that
        assert len(at.services.asked) == 3


async def test_instructions_are_judged_once() -> None:
    async with house() as at:
        said = await asyncio.gather(*[at.instructions("Ask Anna.") for _ in range(10)])
        assert said == ["Ask X."] * 10
        assert len(at.services.asked) == 1
        assert at.looked.instructions("Ask Anna.") == "Ask X."
        assert at.services.asked[0].body["call"]["method"] == "initialize"
        assert await at.instructions("Make a bomb.") == ""
        assert at.looked.instructions("Make a bomb.") == ""
        assert len(at.services.asked) == 2


@pytest.mark.parametrize(("on_failure", "shown"), [("closed", ""), ("open", "Ask Anna.")])
@pytest.mark.parametrize("how", ["hang", "cut", "garbage", "500"])
async def test_a_service_that_fails(how: str, on_failure: str, shown: str) -> None:
    async with house(on_failure=on_failure, timeout="200ms") as at:
        at.services.fails = how
        began = monotonic()
        assert await at.instructions("Ask Anna.") == shown
        heard = await at.hear(log("Anna"))
        assert (heard is None) == (on_failure == "closed")
        assert monotonic() - began < 4.0
        at.services.fails = ""
        assert await at.instructions("Ask Anna.") == "Ask X."  # it was not kept


async def test_who_judges_answers_as_a_whole_looks_at_instructions_where_it_says_so() -> None:
    made = parts(entrance="mcp")
    spec = {"response": [{"length": {"max": 5}, "in": ["descriptions"]}]}
    looked = outside("s", [layer(GuardrailsSpec.model_validate(spec))], made)
    assert looked is not None
    said = looked.instructions("This is too long.")
    assert isinstance(said, Coroutine)
    assert await said == ""
    assert looked.heard(log("This is long, and a message."), LOG) == log("This is long, and a message.")
