"""Guesses: a few are free, then each costs more time, and nobody is shut out."""

import pytest

from tollhouse.core.clock import Clock
from tollhouse.issuer.login_throttle import LoginThrottle
from tollhouse.store.memory import MemoryCounter

pytestmark = pytest.mark.anyio


class Rig:
    def __init__(self) -> None:
        self.now = 1000.0
        self.clock = Clock(source=lambda: self.now)
        self.throttle = LoginThrottle(MemoryCounter(self.clock))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.clock.turn()


async def test_waits_grow_from_a_second_to_a_quarter_of_an_hour() -> None:
    rig = Rig()
    waits = []
    for _ in range(25):
        attempt = await rig.throttle.password("ada", "192.0.2.1")
        waits.append(attempt.wait)
        if attempt.wait:
            rig.wait(attempt.wait)
            assert not (await rig.throttle.password("ada", "192.0.2.1")).wait
    assert waits[:5] == [0.0] * 5
    assert waits[5] == 1.0
    assert max(waits[:9]) <= 2.0
    assert 25.0 <= waits[12] <= 30.0
    assert 800.0 <= waits[-1] <= 900.0


async def test_what_succeeds_is_given_back() -> None:
    rig = Rig()
    for _ in range(100):
        attempt = await rig.throttle.password("ada", "192.0.2.1")
        assert not attempt.wait
        attempt.succeeded()


async def test_another_account_and_another_address_are_not_concerned() -> None:
    rig = Rig()
    while not (await rig.throttle.password("ada", "192.0.2.1")).wait:
        pass
    assert not (await rig.throttle.password("bob", "192.0.2.1")).wait
    assert not (await rig.throttle.password("ada", "192.0.2.2")).wait


async def test_many_addresses_slow_an_account_and_many_accounts_an_address() -> None:
    rig = Rig()
    waits = [(await rig.throttle.password("ada", f"192.0.2.{n}")).wait for n in range(120)]
    assert waits[:100] == [0.0] * 100
    assert waits[-1] == 10.0  # and not a quarter of an hour: its owner gets in, too
    waits = [(await rig.throttle.password(f"user{n}", "198.51.100.1")).wait for n in range(80)]
    assert waits[:60] == [0.0] * 60
    assert waits[-1] == 2.0


async def test_codes_of_devices_are_few_in_a_minute() -> None:
    rig = Rig()
    waits = [(await rig.throttle.code("ada", "192.0.2.1")).wait for _ in range(12)]
    assert waits == [0.0] * 10 + [6.0] * 2


async def test_any_name_of_an_account_is_taken() -> None:
    rig = Rig()
    for name in ("", "x" * 10_000, "\ud800", "a|b"):
        assert not (await rig.throttle.password(name, "192.0.2.1")).wait
