"""Verdicts on texts that belong to no call: asked for once, kept, renewed behind, and bounded."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.policies.floor import Time, counted, layer, parts

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure
from tollhouse.policies.guardrails.acts import Acts, Counts, Guard
from tollhouse.policies.guardrails.asking import Asked, Entry, made
from tollhouse.policies.guardrails.check import CannotCheck, Finding, Phase
from tollhouse.policies.guardrails.spec import GuardRuleSpec
from tollhouse.policies.guardrails.verdicts import Judge, Question, Verdicts, about, ask_each, judges_of

pytestmark = pytest.mark.anyio


class Service:
    """A check that answers when it may. says: findings, or why it cannot."""

    name = "webhook"
    phases: frozenset[Phase] = frozenset(("request", "response"))
    masks = True

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole
        self.asked: list[tuple[str, ...]] = []
        self.says: Any = ()
        self.go: asyncio.Event | None = None
        self.now = self.most = 0

    async def check(self, texts: Sequence[str], call: Call, phase: Phase) -> Sequence[Finding]:
        self.asked.append(tuple(texts))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if self.go is not None:
                await self.go.wait()
            if isinstance(self.says, Exception):
                raise self.says
            return tuple(self.says)
        finally:
            self.now -= 1

    def health(self) -> str:
        return ""

    async def close(self) -> None: ...


def judge(service: Service, verdicts: Verdicts, *, timeout: float = 5.0, rule: str = "r", **more: Any) -> Judge:
    spec = GuardRuleSpec.model_validate({"webhook": {"url": "http://127.0.0.1:9/"}, **more})
    return Judge(Asked(service, Guard(spec), timeout=timeout, rule=rule), verdicts)


def question(of: Judge, text: str = "Adds.", *, server: str = "s", name: str = "add") -> Question:
    found = of.question([Entry("k", "descriptions", text)], about(server, "tools/list", name), "response")
    assert found is not None
    return found


def acts() -> Acts:
    made = parts(entrance="mcp")
    return Acts(about("s", "tools/list").context, "response", Counts(made.families))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_is_asked_for_once_whoever_needs_it() -> None:
    service, kept = Service(), Verdicts(Time().clock)
    service.go = asyncio.Event()
    one = judge(service, kept)
    asking = [asyncio.ensure_future(question(of).ask()) for of in (one, one, judge(service, kept))]
    await settled()
    assert service.asked == [("Adds.",)]
    asking[0].cancel()  # who leaves takes nothing from the others
    service.go.set()
    await asyncio.gather(*asking[1:])
    assert question(one).is_answered
    await question(one, server="t").ask()
    await question(one, name="sum").ask()
    await question(judge(service, kept, rule="other")).ask()
    assert len(service.asked) == 4
    await kept.close()


async def test_a_verdict_is_renewed_behind_and_stands_for_a_day_where_it_cannot_be() -> None:
    time, service = Time(), Service()
    kept = Verdicts(time.clock)
    one = judge(service, kept)
    await question(one).ask()
    time.advance(3599)
    assert question(one).is_answered
    await settled()
    assert len(service.asked) == 1
    time.advance(2)
    service.says = CannotCheck("gone")
    assert question(one).is_answered
    await settled()
    assert len(service.asked) == 2
    time.advance(80_000)
    service.says = (Finding("bad"),)
    assert question(one).act(acts(), {})  # the old one, and another is on its way
    await settled()
    with pytest.raises(Failure) as caught:
        question(one).act(acts(), {})
    assert caught.value.status == 403
    service.says = CannotCheck("gone")
    time.advance(86_401)
    assert not question(one).is_answered
    await kept.close()


@pytest.mark.parametrize(("on_failure", "status"), [("closed", 503), ("open", 0)])
async def test_who_cannot_run_fails_as_the_rule_says_and_is_asked_again(on_failure: str, status: int) -> None:
    service, kept = Service(), Verdicts(Time().clock)
    one = judge(service, kept, on_failure=on_failure)
    service.says = CannotCheck("gone")
    asked = question(one)
    await asked.ask()
    assert not asked.is_answered
    if status:
        with pytest.raises(Failure) as caught:
            asked.act(acts(), {})
        assert (caught.value.status, caught.value.code) == (503, "guardrail_unavailable")
        assert "gone" in caught.value.detail
    else:
        assert asked.act(acts(), {}) is False
    service.says = ()
    await asked.ask()
    assert asked.act(acts(), {})
    await kept.close()


async def test_what_is_kept_does_not_say_that_a_guard_can_run() -> None:
    service, kept = Service(), Verdicts(Time().clock)
    one = judge(service, kept, on_failure="open")
    made_of = parts(entrance="mcp")
    acting = Acts(about("s", "tools/list").context, "response", Counts(made_of.families))
    asked = question(one)
    await asked.ask()
    acting.unable(one.asked.guard, "gone since")
    for again, unable in ((question(one), {("webhook",): 1}), (asked, {})):
        assert again.act(acting, {})
        assert counted(made_of, "guardrail_unable") == unable
    await kept.close()


async def test_who_is_too_slow_is_stopped_and_who_fails_often_is_left_alone() -> None:
    time, service = Time(), Service()
    kept = Verdicts(time.clock)
    one = judge(service, kept, timeout=0.01)
    service.go = asyncio.Event()
    await ask_each([question(one, f"text {n}") for n in range(20)])
    assert service.most == 8  # at once
    assert len(service.asked) < 20
    before = len(service.asked)
    await question(one, "more").ask()  # at once: nobody is asked
    assert len(service.asked) == before
    time.advance(6)
    service.go.set()
    await question(one, "more").ask()
    assert question(one, "more").is_answered
    await kept.close()


async def test_what_is_kept_is_bounded() -> None:
    service, kept = Service(), Verdicts(Time().clock, most=3)
    one = judge(service, kept)
    for text in ("a", "b", "c", "a", "d"):
        await question(one, text).ask() if not question(one, text).is_answered else None
    assert [question(one, text).is_answered for text in "abcd"] == [True, False, True, True]
    huge = "x" * (9 << 20)
    service.says = (Finding("m", ((0, 0, 1),), replaces=(huge,), decided="mask"),)
    await question(one, "e").ask()
    await question(one, "f").ask()
    assert [question(one, text).is_answered for text in "def"] == [False, False, True]
    await kept.close()


async def test_places_and_words_of_findings_count_too() -> None:
    service, kept = Service(), Verdicts(Time().clock)
    one = judge(service, kept)
    for number, finding in enumerate(
        (
            Finding("m", ((0, 0, 1),) * 70_000),
            Finding("m", message="x" * (9 << 20)),
            Finding("m", shown="y" * (9 << 20)),
        )
    ):
        service.says = (finding,)
        await question(one, f"{number}a").ask()
        await question(one, f"{number}b").ask()
        assert [question(one, f"{number}{n}").is_answered for n in "ab"] == [False, True]
    await kept.close()


def test_a_rule_is_another_when_its_file_says_something_else(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    spec = {"schema": {"file": str(file)}, "in": ["descriptions"]}
    rules = []
    for content in ('{"type": "string"}', '{"type": "object"}', '{"type": "string"}'):
        file.write_text(content)
        rule = GuardRuleSpec.model_validate(spec)
        made_of = made(rule, Guard(rule), layer(rule), "response[0]", parts(entrance="mcp"))
        rules.append(made_of.rule)
    assert rules[0] == rules[2] != rules[1]


async def test_close_stops_who_asks() -> None:
    service, kept = Service(), Verdicts(Time().clock)
    service.go = asyncio.Event()
    asked = question(judge(service, kept))
    asking = asyncio.ensure_future(asked.ask())
    await settled()
    await kept.close()
    await asking
    assert (asked.is_answered, service.now) == (False, 0)


async def test_an_error_of_ours_is_no_verdict() -> None:
    service, kept = Service(), Verdicts(Time().clock)
    service.says = KeyError("secret text")
    asked = question(judge(service, kept))
    await asked.ask()
    with pytest.raises(Failure) as caught:
        asked.act(acts(), {})
    assert caught.value.status == 503
    assert "secret" not in caught.value.detail
    await kept.close()


def test_who_judges_what() -> None:
    kept = Verdicts(Time().clock)
    rules = {"plain": {}, "named": {"in": ["descriptions"]}, "other": {"in": ["results"]}}
    guards = {
        name: Guard(GuardRuleSpec.model_validate({"webhook": {"url": "http://127.0.0.1:9/"}, "name": name, **more}))
        for name, more in rules.items()
    }
    some = [Asked(Service(), guard) for guard in guards.values()]
    whole = [Asked(Service(whole=True), guard) for guard in guards.values()]

    def labels(checks: Any, kind: str) -> list[str]:
        return [one.asked.guard.label for one in judges_of(checks, kept, kind)]

    assert labels(some, "descriptions") == ["plain", "named"]
    assert labels(whole, "descriptions") == ["named"]
    assert labels(some, "") == ["plain", "named", "other"]
    assert labels(whole, "") == []


def test_nothing_of_a_caller_is_told() -> None:
    call = about("s", "tools/list", "add")
    assert (call.principal, call.server, call.method, call.name) == (None, "s", "tools/list", "add")
    assert (call.context.request_id, call.context.client) == ("", "")
