"""Who gets the next request: weights, ejection, trials, checks."""

import asyncio
from collections import Counter

import pytest

from tollhouse.backends.health import Balancer, Checker, CheckSpec, Health, HealthSpec, Member

pytestmark = pytest.mark.anyio

SPEC = HealthSpec.model_validate({"failures": 2, "eject": "10s"})


def members(*weights: int, spec: HealthSpec = SPEC) -> list[Member]:
    return [Member(w, Health(spec)) for w in weights]


def eject(member: Member, now: float = 0.0) -> None:
    member.health.failed(now)
    member.health.failed(now)


def test_weights_are_spread_evenly() -> None:
    a, b, c = all_of = members(5, 1, 1)
    balancer = Balancer(all_of)
    order = [balancer.pick(0.0) for _ in range(7)]
    assert order == [a, a, b, a, c, a, a]
    assert [balancer.pick(0.0) for _ in range(7)] == order


def test_the_tried_are_left_out_while_there_are_others() -> None:
    a, b = all_of = members(1, 1)
    balancer = Balancer(all_of)
    assert balancer.pick(0.0, [a]) is b
    assert balancer.pick(0.0, [b]) is a
    assert balancer.pick(0.0, [a, b]) is not None


def test_failures_in_a_row_eject_and_a_success_between_them_does_not() -> None:
    a, b = all_of = members(1, 1)
    a.health.failed(0.0)
    a.health.succeeded()
    a.health.failed(0.0)
    assert a.health.usable(0.0)
    a.health.failed(0.0)
    assert not a.health.usable(9.9)
    assert {Balancer(all_of).pick(5.0) for _ in range(4)} == {b}


def test_after_its_time_one_request_tries() -> None:
    health = members(1)[0].health
    health.failed(0.0)
    health.failed(0.0)
    assert health.usable(10.0)
    health.began()
    assert not health.usable(10.0)
    health.left()
    assert health.usable(10.0)
    health.began()
    health.failed(10.0)
    assert not health.usable(29.9), "twice as long the second time"
    assert health.usable(30.0)
    health.began()
    health.succeeded()
    assert health.usable(30.0)
    health.failed(31.0)
    assert health.usable(31.0), "it counts from the beginning again"


def test_failures_of_requests_under_way_do_not_prolong() -> None:
    health = members(1)[0].health
    for _ in range(20):
        health.failed(1.0)
    assert health.until == 11.0


def test_the_time_is_bounded() -> None:
    health = members(1)[0].health
    now = 0.0
    for _ in range(40):
        health.failed(now)
        now = max(now, health.until)
    health.failed(now)
    assert health.until - now == 300.0


def test_the_last_one_is_not_ejected() -> None:
    (a,) = alone = members(1)
    eject(a)
    assert Balancer(alone).pick(1.0) is a
    a, b = both = members(1, 1)
    eject(a)
    eject(b, 5.0)
    assert Balancer(both).pick(6.0) is a, "the one that comes back first"
    assert Balancer(both).pick(6.0, [a]) is b


def test_what_is_down_gets_nothing() -> None:
    a, b = both = members(1, 1)
    a.health.down = b.health.down = True
    assert Balancer(both).pick(0.0) is None
    assert Balancer([a]).pick(0.0) is None
    b.health.down = False
    eject(b)
    assert Balancer(both).pick(1.0) is b


def test_checks_need_several_in_a_row() -> None:
    spec = HealthSpec.model_validate({"check": {"healthy": 2, "unhealthy": 3}})
    health = Health(spec)
    for good, down in [(0, 0), (0, 0), (1, 0), (0, 0), (0, 0), (0, 1), (1, 1), (0, 1), (1, 1), (1, 0)]:
        health.checked(bool(good))
        assert health.down is bool(down)


def test_a_good_check_ends_an_ejection() -> None:
    health = Health(HealthSpec.model_validate({"failures": 1, "check": {"unhealthy": 1}}))
    health.failed(0.0)
    health.checked(False)
    health.checked(True)
    assert health.usable(0.0)


async def test_checker_runs_until_it_is_closed() -> None:
    spec = CheckSpec.model_validate({"interval": "5ms", "unhealthy": 1})
    all_of = members(1, 1, spec=HealthSpec(check=spec))
    asked: Counter[int] = Counter()
    enough = asyncio.Event()

    async def ask(member: Member) -> bool:
        asked[id(member)] += 1
        if len(asked) == 2 and min(asked.values()) > 2:
            enough.set()
        return member is all_of[0]

    checker = Checker(spec, all_of, ask)
    checker.start()
    async with asyncio.timeout(5):
        await enough.wait()
    await checker.close()
    assert [m.health.down for m in all_of] == [False, True]
    before = asked.total()
    await asyncio.sleep(0.02)
    assert asked.total() == before
    await checker.close()
