"""Who gets the next request: weights, ejection, trials, checks."""

import asyncio
from collections import Counter
from time import monotonic

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
    health.began(10.0)
    assert not health.usable(10.0)
    health.left(10.0)
    assert health.usable(10.0)
    health.began(10.0)
    health.failed(10.0)
    assert not health.usable(29.9), "twice as long the second time"
    assert health.usable(30.0)
    health.began(30.0)
    health.succeeded()
    assert health.usable(30.0)
    health.failed(31.0)
    assert health.usable(31.0), "it counts from the beginning again"


def test_a_trial_that_never_tells_keeps_others_away_for_a_time_only() -> None:
    health = members(1)[0].health
    health.failed(0.0)
    health.failed(0.0)
    health.began(10.0)
    assert not health.usable(19.9)
    assert health.usable(20.0)


def test_who_asks_for_rest_gets_it_up_to_the_longest() -> None:
    health = members(1)[0].health
    health.rests(0.0, 30.0)
    assert not health.usable(29.9)
    health.succeeded()
    assert not health.usable(29.9), "that one had been under way"
    health.began(30.0)
    assert health.until == 0.0
    health.rests(30.0, 1e9)
    assert health.until == 330.0


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
    check = CheckSpec.model_validate({"healthy": 2, "unhealthy": 3})
    health = Health(SPEC)
    for good, down in [(0, 0), (0, 0), (1, 0), (0, 0), (0, 0), (0, 1), (1, 1), (0, 1), (1, 1), (1, 0)]:
        health.checked(bool(good), check)
        assert health.down is bool(down)


def test_a_good_check_ends_an_ejection() -> None:
    check = CheckSpec.model_validate({"unhealthy": 1})
    health = Health(HealthSpec.model_validate({"failures": 1}))
    health.failed(0.0)
    health.checked(False, check)
    health.checked(True, check)
    assert health.usable(0.0)


RATED = {"failures": 100, "error_rate": 0.5, "window": "10s", "minimum": 10, "slow_start": "10s"}


def rated(**more: object) -> Health:
    return Health(HealthSpec.model_validate({**RATED, **more}))


def feed(health: Health, now: float, outcomes: str) -> None:
    for one in outcomes:
        if one == "+":
            health.succeeded()
        else:
            health.failed(now)


@pytest.mark.parametrize(
    "outcomes, out",
    [
        ("-+" * 4, False),  # too few
        ("+-" * 5, True),
        ("++-" * 10, False),
        ("+" * 50 + "-" * 20, False),
        ("+" * 10 + "-" * 10, True),
        ("-" * 9, False),
        ("-" * 10, True),
    ],
)
def test_a_share_of_failures_ejects(outcomes: str, out: bool) -> None:
    health = rated()
    now = monotonic()
    feed(health, now, outcomes)
    assert health.usable(now) is not out
    never = Health(HealthSpec.model_validate({"failures": 100, "error_rate": None}))
    feed(never, now, outcomes)
    assert never.usable(now)


def test_old_answers_count_for_little() -> None:
    health = rated()
    now = monotonic()
    feed(health, now, "+" * 1000)
    health.failed(now)
    for _ in range(12):
        now += 5.0
        feed(health, now, "-")
    assert health.usable(now), "the last failures are too few"
    feed(health, now, "-" * 10)
    assert not health.usable(now)


def test_after_an_ejection_it_counts_anew() -> None:
    health = rated()
    now = monotonic()
    feed(health, now, "-" * 10)
    now = health.until
    health.began(now)
    health.succeeded()
    feed(health, now, "-" * 9)
    assert health.usable(now)


def test_who_cannot_be_reached_is_out_at_once() -> None:
    health = rated()
    health.failed(5.0, outright=True)
    assert health.until == 15.0
    health.failed(5.0, outright=True)
    assert health.until == 15.0


def test_the_share_of_who_comes_back_grows() -> None:
    health = rated()
    assert health.share(0.0) == 1.0
    health.failed(0.0, outright=True)
    health.began(10.0)
    health.succeeded()
    shares = [health.share(10.0 + seconds) for seconds in (0.0, 0.5, 2.5, 5.0, 9.0, 10.0)]
    assert shares == [0.1, 0.1, 0.25, 0.5, 0.9, 1.0]
    assert health.slow == 0.0
    at_once = rated(slow_start="0s")
    at_once.failed(0.0, outright=True)
    at_once.began(10.0)
    at_once.succeeded()
    assert at_once.share(10.0) == 1.0


def test_turns_are_shared_by_who_comes_back() -> None:
    a, b = both = members(1, 1, spec=HealthSpec.model_validate({"failures": 1, "slow_start": "10s"}))
    a.health.failed(0.0)
    a.health.began(10.0)
    a.health.succeeded()
    balancer = Balancer(both)
    assert balancer.pick(10.0) is b
    found = Counter(balancer.pick(12.5) is a for _ in range(100))
    assert 15 <= found[True] <= 25
    found = Counter(balancer.pick(30.0) is a for _ in range(100))
    assert 49 <= found[True] <= 51


def test_rest_is_told_apart() -> None:
    health = rated()
    health.failed(0.0, outright=True)
    assert health.rest == 0.0
    health.rests(0.0, 60.0)
    assert (health.rest, health.until) == (60.0, 60.0)


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
