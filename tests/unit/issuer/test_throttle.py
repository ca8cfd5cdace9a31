"""Who fails waits, who does not is not even looked up."""

import pytest

from tollhouse.core.http import Headers, Request
from tollhouse.issuer.throttle import Throttle, address_of


def test_some_failures_are_free_and_then_they_come_back_slowly() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0], amount=3, window=30.0)
    for _ in range(3):
        assert throttle.wait(("a",)) <= 0.0
        throttle.failed(("a",))
    assert throttle.wait(("a",)) == pytest.approx(10.0)
    assert throttle.wait(("b",)) <= 0.0
    assert throttle.wait(("b", "a")) == pytest.approx(10.0)
    now[0] = 10.0
    assert throttle.wait(("a",)) <= 0.0
    throttle.failed(("a",))
    assert throttle.wait(("a",)) > 0.0


def test_failing_on_makes_nobody_wait_longer_than_the_window() -> None:
    throttle = Throttle(lambda: 0.0, amount=3, window=30.0)
    for _ in range(100):
        throttle.failed(("a",))
    assert throttle.wait(("a",)) <= 10.0


def test_it_has_a_bound() -> None:
    throttle = Throttle(lambda: 0.0, limit=10)
    for n in range(100):
        throttle.failed((str(n),))
    assert len(throttle) == 10


@pytest.mark.parametrize(
    ("peer", "known"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002/64"),
        ("fe80::1%eth0", "fe80000000000000/64"),
        ("unix", "unix"),
    ],
)
def test_a_household_is_one_address(peer: str, known: str) -> None:
    assert address_of(Request(b"POST", b"/", Headers(), peer=peer)) == known


def test_behind_a_proxy_the_client_counts() -> None:
    request = Request(b"POST", b"/", Headers(), peer="10.0.0.1")
    request.context.client = "192.0.2.7"
    assert address_of(request) == "192.0.2.7"
