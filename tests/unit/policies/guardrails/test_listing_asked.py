"""What servers list, under guards that have to be asked: a service on a real socket, that may hang, lie or be gone."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import msgspec
import pytest
from tests.fixtures.guard_services import GuardServices, guard_services
from tests.unit.policies.floor import Shelf, Time, counted, parts
from tests.unit.policies.guardrails.test_asking import named, until
from tests.unit.policies.guardrails.test_listing import PROMPTS, TOOLS, entry, layers, listing

from tollhouse.core.errors import Failure, Reason
from tollhouse.policies.base import Parts
from tollhouse.policies.guardrails.listing import Descriptions, descriptions
from tollhouse.wire.mcp.catalogue import Listing

pytestmark = pytest.mark.anyio

FOR_EVER = 1e18


class House:
    """again: guards of lists that begin with the same memory."""

    def __init__(self, services: GuardServices, made: Parts, rule: Any) -> None:
        self.services = services
        self.parts = made
        self.changed: list[str] = []
        self._rule = {"webhook": {"url": services.url + "/g"}, **rule}
        self.looked = self.again()

    def again(self, **own: Any) -> Descriptions:
        spec = {"response": [self._rule]}
        found = descriptions("s", layers(spec), own, self.parts, self.changed.append, again=0.02)
        assert found is not None
        return found

    async def get(self, of: Listing, looked: Descriptions | None = None, kind: Any = TOOLS) -> Listing:
        return await (looked or self.looked).judged(kind, of, FOR_EVER)

    def fails(self, how: str) -> None:
        self.services.fails = how


@asynccontextmanager
async def house(time: Time | None = None, **rule: Any) -> AsyncIterator[House]:
    async with guard_services() as services:
        services.says = named
        shelf = Shelf()
        made = parts(time, entrance="mcp", shared=shelf)
        yield House(services, made, rule)
        await shelf.close()
        await made.client.close()


def names(of: Listing) -> list[str]:
    return [one.name for one in of.entries]


async def test_each_entry_is_judged_by_itself_and_once_for_all() -> None:
    async with house() as at:
        old = entry("mail", "for Anna, as it was")
        add, bad = entry("add", "Adds."), entry("bad", "makes a bomb")
        before = listing(add, entry("mail", "for Anna", old=old), bad)
        assert at.looked.shown(TOOLS, before) is None
        got = await asyncio.gather(*[at.get(before) for _ in range(20)])
        assert len({id(one) for one in got}) == 1
        after = got[0]
        assert names(after) == ["add", "mail"]
        assert after.entries[0] is add
        mail = after.entries[1]
        assert msgspec.json.decode(mail.raw)["description"] == "for X"
        assert msgspec.json.decode(mail.raw)["inputSchema"]["properties"]["to"]["description"] == "for X"
        assert mail.old is not None
        assert msgspec.json.decode(mail.old.raw)["description"] == "for X, as it was"
        assert after.source is before
        assert at.looked.shown(TOOLS, before) is after
        asked = [one.body for one in at.services.asked]
        assert len(asked) == 3
        assert {one["call"]["name"] for one in asked} == {"add", "mail", "bad"}
        assert all(one["call"] == {**one["call"], "server": "s", "method": "tools/list"} for one in asked)
        assert [(one["caller"], one["id"], one["phase"]) for one in asked] == [({}, "", "response")] * 3
        assert counted(at.parts, "guardrail_checks") == {("Response", "Reject"): 1}
        # Another list that says the same, and the guards of another configuration: nobody is asked.
        same = listing(add, entry("mail", "for Anna", old=old), bad)
        fresh = at.looked.shown(TOOLS, same)
        assert fresh is not None
        assert names(fresh) == ["add", "mail"]
        other = at.again().shown(TOOLS, before)
        assert other is not None
        assert names(other) == ["add", "mail"]
        assert len(at.services.asked) == 3
        # Of another list what is new alone is asked about.
        await at.get(listing(add, entry("sub", "Subtracts."), bad))
        assert [one.body["call"]["name"] for one in at.services.asked[3:]] == ["sub"]
        assert not at.changed


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        ({"in": ["descriptions"]}, ["add"]),
        ({"shadow": True}, ["add", "bad"]),
        ({"action": "mask"}, ["add"]),
    ],
)
async def test_what_a_rule_says_is_done(rule: Any, shown: list[str]) -> None:
    async with house(**rule) as at:
        after = await at.get(listing(entry("add", "Adds."), entry("bad", "makes a bomb")))
        assert names(after) == shown
        assert ("Response", "webhook", "reject", "true" if "shadow" in rule else "false") in counted(
            at.parts, "guardrail_findings_total"
        )


async def test_what_is_flagged_stays() -> None:
    async with house(action="flag") as at:
        at.services.says = {"action": "flag"}
        before = listing(entry("add", "Adds."))
        assert await at.get(before) is before
        assert counted(at.parts, "guardrail_checks") == {("Response", "Flag"): 1}


async def test_what_patterns_have_masked_is_not_shown_to_a_service() -> None:
    async with house() as at:
        spec = [{"response": [{"pii": ["email"], "action": "mask"}, at._rule]}]
        looked = descriptions("s", layers(*spec), {}, at.parts)
        assert looked is not None
        await at.get(listing(entry("mail", "to ada@example.org")), looked, PROMPTS)
        assert "ada@" not in at.services.asked[0].raw.decode()
        assert "[EMAIL]" in at.services.asked[0].body["texts"][0]


async def test_tools_with_rules_of_their_own() -> None:
    async with house() as at:
        looked = descriptions("s", (), {"t": layers({"response": [at._rule]})}, at.parts)
        assert looked is not None
        after = await at.get(listing(entry("t", "a bomb"), entry("u", "a bomb")), looked)
        assert names(after) == ["u"]
        assert len(at.services.asked) == 1


@pytest.mark.parametrize("how", ["hang", "cut", "half", "garbage", "empty", "redirect", "500", "429", "gzip"])
async def test_a_service_that_fails_hides_what_nobody_has_looked_at(how: str) -> None:
    async with house(timeout="1s" if how == "hang" else "10s", name="gone") as at:
        add = entry("add", "Adds.")
        known = listing(add)
        assert await at.get(known) is known
        at.fails(how)
        began = monotonic()
        after = await at.get(listing(add, entry("sub", "Subtracts."), entry("bad", "a bomb")))
        assert monotonic() - began < 5.0
        assert names(after) == ["add"]
        assert after.until <= monotonic() + 2.0  # it is not good for long
        with pytest.raises(Failure) as caught:
            await at.get(listing(entry("sub", "Subtracts.")), kind=PROMPTS)
        assert (caught.value.status, caught.value.reason) == (503, Reason.GUARDRAIL)
        assert counted(at.parts, "guardrail_unable") == {("gone",): 1}
        assert at.looked.shown(TOOLS, known) is known  # what was looked at stays
        assert not at.changed
        at.fails("")
        at.services.says = named
        await until(lambda: len(set(at.changed)) == 2)
        again = at.looked.shown(TOOLS, listing(add, entry("sub", "Subtracts."), entry("bad", "a bomb")))
        assert again is not None
        assert names(again) == ["add", "sub"]


async def test_a_service_that_fails_open_is_asked_again() -> None:
    async with house(on_failure="open") as at:
        at.fails("500")
        before = listing(entry("add", "Adds."), entry("bad", "a bomb"))
        assert names(await at.get(before)) == ["add", "bad"]
        assert counted(at.parts, "guardrail_checks") == {("Response", "FailOpen"): 1}
        at.fails("")
        await until(lambda: at.changed == [TOOLS.changed])
        after = at.looked.shown(TOOLS, before)
        assert after is not None
        assert names(after) == ["add"]


async def test_a_hanging_service_is_not_asked_about_all_of_a_long_list() -> None:
    async with house(timeout="300ms") as at:
        at.fails("hang")
        began = monotonic()
        with pytest.raises(Failure):
            await at.get(listing(*[entry(f"t{n}", f"Does {n}.") for n in range(200)]))
        assert monotonic() - began < 3.0
        assert len(at.services.asked) <= 24


async def test_a_list_waits_no_longer_than_its_caller() -> None:
    async with house(timeout="30s") as at:
        at.services.gate = asyncio.Event()
        before = listing(entry("add", "Adds."), entry("bad", "a bomb"))
        with pytest.raises(Failure) as caught:
            await at.looked.judged(TOOLS, before, monotonic() + 0.1)
        assert caught.value.status == 503
        with pytest.raises(Failure):
            at.looked.hides(TOOLS, before, "add")
        await until(lambda: at.services.most == 2)
        at.services.gate.set()
        await until(lambda: at.changed == [TOOLS.changed])  # who was refused is told
        assert names(await at.get(before)) == ["add"]
        assert len(at.services.asked) == 2


async def test_many_questions_are_asked_some_at_a_time() -> None:
    async with house() as at:
        before = listing(*[entry(f"t{n}", f"Does {n}.") for n in range(60)])
        assert await at.get(before) is before
        assert (len(at.services.asked), at.services.most <= 8) == (60, True)


async def test_what_is_hidden() -> None:
    async with house() as at:
        before = listing(entry("add", "Adds."), entry("bad", "a bomb", original="worse"))
        await at.get(before)
        assert at.looked.rejects
        told = [at.looked.hides(TOOLS, before, name) for name in ("add", "worse", "bad", "none")]
        assert told == [False, True, False, False]


async def test_guards_are_asked_again_after_an_hour_and_the_list_follows(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    async with house(time) as at:
        before = listing(entry("add", "Adds."), entry("sub", "Subtracts."))
        assert await at.get(before) is before
        at.services.says = lambda body: {"action": "reject" if "Adds." in body["texts"] else "allow"}
        time.advance(601)
        assert at.looked.shown(TOOLS, before) is before
        assert len(at.services.asked) == 2
        time.advance(3000)
        assert at.looked.shown(TOOLS, before) is before  # they are asked behind
        await until(lambda: len(at.services.asked) == 4)
        await asyncio.sleep(0)
        time.advance(601)

        def follows() -> bool:
            after = at.looked.shown(TOOLS, before)
            time.advance(601)
            return after is not None and names(after) == ["sub"]

        with caplog.at_level(logging.WARNING):
            await until(follows)
        assert at.changed == [TOOLS.changed]
        assert "'add' is not listed: guard webhook" in caplog.text


async def test_lists_that_nobody_wants_are_not_asked_about_for_ever() -> None:
    async with house() as at:
        at.fails("500")
        for n in range(20):
            with pytest.raises(Failure):
                await at.get(listing(entry(f"t{n}", f"Does {n}.")))
        await until(lambda: len(at.looked._tasks) <= 16)
        await at.looked.close()
        assert not at.looked._tasks


async def test_who_waits_for_a_list_hears_at_once_that_nobody_answers_any_more() -> None:
    async with house(timeout="60s") as at:
        at.fails("hang")
        waiting = asyncio.ensure_future(at.get(listing(entry("add", "Adds."))))
        await until(lambda: at.services.asked)
        began = monotonic()
        await at.looked.close()
        with pytest.raises(Failure) as raised:
            await waiting
        assert raised.value.status == 503
        assert monotonic() - began < 5.0
