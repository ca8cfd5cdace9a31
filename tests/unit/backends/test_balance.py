"""Whom a call is given to: by weight, in turn, by latency, always the same for a caller, by condition."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.backends.calls import DONE, EVENT, HEAD, always, answer, call, chunk, stream, taken, world
from tests.unit.net.upstreams import Peer, upstream

from tollhouse.backends.balance import Condition, InTurn, Latency, LeastLatency, Member, Sticky, Weighted, caller
from tollhouse.backends.health import Health, PassiveHealthSpec
from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.provider import Provider, Timeouts
from tollhouse.core.call import ModelCall, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure

pytestmark = pytest.mark.anyio

SPEC = PassiveHealthSpec.model_validate({"failures": 1, "eject": "1s", "slow_start": "10s"})


def members(*weights: float, spec: PassiveHealthSpec = SPEC) -> list[Member]:
    provider = Provider("p", "openai", Clock())
    return [Member(LLMBackend(provider, f"m{n}", Timeouts()), Health(spec), w) for n, w in enumerate(weights)]


def by(user: str = "", org: str = "", key: str = "", source: str = "key", **fields: Any) -> ModelCall:
    it = call(fields)
    it.principal = it.context.principal = Principal(f"key:{user or key}", source=source, user=user, org=org, key=key)
    return it


def back(member: Member, now: float) -> None:
    """It was out, and has just come back."""
    member.health.failed(now - 2.0)
    member.health.began(now)
    member.health.succeeded()


# ---- weights, turns
def test_shares_by_weight() -> None:
    one, other, last = all_of = members(3, 1, 0)
    found = Counter(id(Weighted().pick(all_of, call(), 0.0)) for _ in range(4000))
    assert 2800 < found[id(one)] < 3200
    assert not found[id(last)]
    assert Weighted().pick([last], call(), 0.0) is last
    assert other.share(0.0) == 1


@pytest.mark.parametrize("passed, least, most", [(0.1, 50, 500), (5.0, 1050, 1650), (20.0, 1800, 2200)])
def test_who_comes_back_gets_its_share_little_by_little(passed: float, least: int, most: int) -> None:
    for balance in (Weighted(), InTurn()):
        one, _ = all_of = members(1, 1)
        back(one, 100.0)
        assert one.share(100.0) == 0.1
        found = Counter(id(balance.pick(all_of, call(), 100.0 + passed)) for _ in range(4000))
        assert least < found[id(one)] < most, balance


# ---- callers
@pytest.mark.parametrize("key", ["user", "org", "key", "principal.user", 'request.headers["x-session"]'])
def test_a_caller_keeps_a_target(key: str) -> None:
    all_of = members(1, 1, 1)
    sticky = Sticky("smart", caller(key))
    places = Counter[int]()
    for n in range(300):
        name = f"ada-{n}"
        it = by(user=name, org=name, key=name)
        it.request.headers.append((b"x-session", name.encode()))
        first = sticky.pick(all_of, it, 0.0)
        assert all(sticky.pick(list(reversed(all_of)), it, 0.0) is first for _ in range(3))
        places[id(first)] += 1
    assert len(places) == 3
    assert min(places.values()) > 60


def test_others_stay_where_they_are_when_one_is_out() -> None:
    all_of = members(1, 1, 1)
    sticky = Sticky("smart", caller("user"))
    calls = [by(user=f"u{n}") for n in range(300)]
    before = [sticky.pick(all_of, it, 0.0) for it in calls]
    after = [sticky.pick(all_of[1:], it, 0.0) for it in calls]
    assert all(new is old for old, new in zip(before, after, strict=True) if old is not all_of[0])
    assert {id(new) for old, new in zip(before, after, strict=True) if old is all_of[0]} == set(map(id, all_of[1:]))


def test_callers_are_shared_by_weight() -> None:
    all_of = members(4, 1, 0)
    sticky = Sticky("smart", caller("user"))
    found = Counter(id(sticky.pick(all_of, by(user=f"u{n}"), 0.0)) for n in range(2000))
    assert 1500 < found[id(all_of[0])] < 1700
    assert not found[id(all_of[2])]


def test_models_share_callers_out_differently() -> None:
    all_of = members(1, 1)
    calls = [by(user=f"u{n}") for n in range(64)]
    one, other = ([Sticky(name, caller("user")).pick(all_of, it, 0.0) for it in calls] for name in ("a", "b"))
    assert one != other


@pytest.mark.parametrize("key", ["user", "org", "key", "jwt.session"])
def test_nobody_is_not_somebody(key: str) -> None:
    all_of = members(1, 1)
    sticky = Sticky("smart", caller(key))
    for it in (by(source="anonymous"), call()):
        assert len({id(sticky.pick(all_of, it, 0.0)) for _ in range(64)}) == 2


def test_what_is_no_caller() -> None:
    with pytest.raises(ValueError, match="unknown variable"):
        caller("team")


# ---- latency
def test_a_latency_is_a_mean_of_what_was_of_late() -> None:
    latency = Latency()
    assert not latency.measured
    latency.note(1.0, 0.0)
    assert latency.value(0.0) == 1.0
    latency.note(2.0, 10.0)
    assert 1.5 < latency.value(10.0) < 2.0
    assert latency.value(40.0) < 0.15, "who was slow is tried again"


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 60.0)), min_size=1, max_size=30))
def test_a_latency_is_between_what_was_measured(steps: list[tuple[float, float]]) -> None:
    latency, now = Latency(), 0.0
    for seconds, passed in steps:
        now += passed
        latency.note(seconds, now)
        assert -1e-9 <= latency.value(now) <= max(s for s, _ in steps) + 1e-9


def test_who_was_not_measured_is_tried() -> None:
    one, other = all_of = members(1, 1)
    balance = LeastLatency(Clock())
    one.latencies[False].note(0.001, 0.0)
    assert all(balance.pick(all_of, call(), 0.0) is other for _ in range(20))
    other.busy = 1  # it is being tried
    assert any(balance.pick(all_of, call(), 0.0) is one for _ in range(20))
    assert balance.pick(all_of, call({"stream": True}), 0.0) is one, "of streams nothing is known yet"


def test_the_quicker_and_the_freer_is_chosen() -> None:
    one, other = all_of = members(1, 1)
    balance = LeastLatency(Clock())
    one.latencies[True].note(0.1, 0.0)
    other.latencies[True].note(0.3, 0.0)
    streamed = call({"stream": True})
    assert balance.pick(all_of, streamed, 0.0) is one
    one.busy = 3
    assert balance.pick(all_of, streamed, 0.0) is other
    heavy = members(4, 1)
    for member in heavy:
        member.latencies[True].note(0.1, 0.0)
        member.busy = 1
    assert balance.pick(heavy, streamed, 0.0) is heavy[0]
    spare = members(1, 0)
    assert balance.pick(spare, streamed, 0.0) is spare[0]


async def test_calls_go_where_the_first_event_comes_sooner() -> None:
    async def late(peer: Peer) -> None:
        while True:
            await peer.request()
            await asyncio.sleep(0.05)
            await peer.send(stream(EVENT, DONE))

    targets = [{"provider": name, "model": "m"} for name in ("slow", "quick")]
    async with upstream(late) as slow, upstream(always(stream(EVENT, DONE))) as quick, world() as it:
        it.openai(slow.url(), "slow")
        it.openai(quick.url(), "quick")
        pool = it.pool(targets=targets, balance="least_latency")
        found: Counter[str] = Counter()
        for _ in range(20):
            asked = call({"stream": True})
            await taken(await pool.handle(asked))
            found[asked.context.backend] += 1
        assert found == {"slow": 1, "quick": 19}
        assert [m.busy for m in pool.members] == [0, 0]
        both = [m.latencies[True].value(it.clock.now) for m in pool.members]
        assert both[0] > both[1]


async def test_who_is_under_way_is_counted_until_the_end() -> None:
    gate = asyncio.Event()

    async def play(peer: Peer) -> None:
        await peer.request()
        if peer.number:
            peer.cut()
            return
        await peer.send(HEAD + chunk(EVENT))
        await gate.wait()
        await peer.send(chunk(DONE) + b"0\r\n\r\n")
        await peer.request()
        peer.cut()

    async with upstream(play) as up, upstream(always(answer(b"{}", 500))) as bad, world() as it:
        it.openai(up.url())
        it.openai(bad.url(), "bad")
        pool = it.pool(
            targets=[{"provider": "up", "model": "m"}, {"provider": "bad", "model": "m", "weight": 0}],
            balance="least_latency",
        )
        reply = await pool.handle(call({"stream": True}))
        assert [m.busy for m in pool.members] == [1, 0]
        gate.set()
        await taken(reply)
        assert [m.busy for m in pool.members] == [0, 0]
        with pytest.raises(Failure):
            await pool.handle(call())
        assert [m.busy for m in pool.members] == [0, 0]


# ---- conditions
@pytest.mark.parametrize(
    "source, fields, holds",
    [
        ("llm.tools", {"tools": [{"type": "function"}]}, True),
        ("llm.tools", {"tools": []}, False),
        ("llm.tools", {"tools": None}, False),
        ("llm.tools", {}, False),
        ("llm.tokens > 1000", {"messages": [{"role": "user", "content": "word " * 2000}]}, True),
        ("llm.tokens > 1000", {"max_tokens": 10}, False),
        ('llm.metadata.tier == "gold"', {"metadata": {"tier": "gold"}}, True),
        ('llm.metadata.tier == "gold"', {"metadata": {"tier": "tin"}}, False),
        ('llm.metadata.tier == "gold"', {"metadata": "gold"}, False),
        ('llm.metadata.tier == "gold"', {}, False),
        ("has(llm.metadata.tier)", {"metadata": {"tier": 1}}, True),
        ("has(llm.metadata.tier)", {}, False),
        ('request.headers["x-org"] == "a"', {}, False),
        ('principal.org == "research"', {}, True),
        ("llm.stream", {"stream": True}, True),
        ('"text"', {}, False),
    ],
)
def test_conditions(source: str, fields: dict[str, Any], holds: bool) -> None:
    condition = Condition(source)
    it = by(user="ada", org="research", **fields)
    assert condition.holds(it) is holds
    assert condition.holds(it) is holds


# ---- conditions
def test_a_condition_that_is_no_bool_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    condition = Condition('request.headers["x-tier"]')
    it = call()
    it.request.headers.append((b"x-tier", b"gold"))
    assert not condition.holds(call())  # what is not there is no fault of the expression
    assert caplog.messages == []
    assert [condition.holds(it), condition.holds(it)] == [False, False]
    (told,) = caplog.messages
    assert told.endswith("never holds: it is a text, neither true nor false")
    assert 'request.headers["x-tier"]' in told
    assert "gold" not in told
