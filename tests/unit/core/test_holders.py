"""What is held for principals, and how it ends when they are no longer good."""

from collections.abc import Callable
from typing import Any

import pytest

from tollhouse.core.call import Context, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Held, Holders

GONE = Failure(401, Reason.JWT_AUTH, "gone")


class World:
    """now: of both clocks, which are 1000 apart. ended: (name, what it was told) of holders, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(source=lambda: self.now)
        self.holders = Holders(self.clock, lambda: self.now + 1000.0)
        self.ended: list[tuple[str, str]] = []

    def hold(self, who: Principal | None, name: str, *, does: Callable[[], None] = lambda: None, **more: Any) -> Held:
        return self.holders.hold(who, One(self, name, does), **more)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.turns(16)

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.clock.turn()

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.ended]


class One:
    def __init__(self, world: World, name: str, does: Callable[[], None]) -> None:
        self.world = world
        self.name = name
        self.does = does

    def lapse(self, failure: Failure) -> None:
        self.world.ended.append((self.name, failure.message))
        self.does()


def principal(id: str = "jwt:i|ada", expires: float = 1e18, source: str = "jwt") -> Principal:
    return Principal(id, source=source, expires=expires)


def test_it_ends_with_its_credentials_time() -> None:
    it = World()
    ada = principal(expires=1010.0)
    it.hold(ada, "stream")
    it.hold(ada, "call", grace=30.0)
    it.hold(ada, "session", expires=False)
    it.hold(principal(), "another")
    released = it.hold(ada, "released")
    released.release()
    released.release()
    it.pass_(9)
    assert it.ended == []
    it.pass_(2)
    assert it.names == ["stream"]
    it.pass_(30)
    assert it.names == ["stream", "call"]
    it.pass_(10_000)
    assert len(it.holders) == 2
    assert {text for _, text in it.ended} == {"the credential that this was opened with has expired"}


def test_nothing_is_left_of_what_has_ended() -> None:
    it = World()
    for n in range(100):
        it.hold(principal(expires=1001.0 + n % 2), "stream")
    it.pass_(1.5)
    assert 0 < len(it.ended) < 100
    it.holders.end("jwt:i|ada", GONE)
    assert len(it.ended) == 100
    assert not any(it.clock._slices)


def test_who_was_revoked_meanwhile_holds_nothing() -> None:
    it = World()
    it.holders = Holders(it.clock, lambda: it.now + 1000.0, in_force=lambda principal: principal.id == "jwt:i|ada")
    it.hold(principal("jwt:i|eve"), "hers", expires=False)
    it.hold(principal(), "ada's")
    it.pass_(0.1)
    assert it.names == ["hers"]
    assert len(it.holders) == 1


def test_one_that_has_expired_already_ends_soon() -> None:
    it = World()
    it.hold(principal(expires=5.0), "late")
    it.pass_(1)
    assert it.names == ["late"]


def test_all_of_one_end_the_newest_first() -> None:
    it = World()
    for name in ("session", "stream", "call"):
        it.hold(principal(), name)
    it.hold(principal("key:ci"), "other")
    it.holders.end("jwt:i|ada", GONE)
    it.holders.end("nobody", GONE)
    assert it.ended == [("call", "gone"), ("stream", "gone"), ("session", "gone")]
    assert len(it.holders) == 1


def test_a_review_asks_once_for_each_principal() -> None:
    it = World()
    asked: list[str] = []
    ada, bob = principal(), principal("key:bob", source="key")
    for n in range(10):
        it.hold(ada, f"a{n}")
        it.hold(bob, f"b{n}")
    it.hold(None, "nobody")

    def good(who: Principal) -> bool:
        asked.append(who.id)
        return who is not bob

    it.holders.review(good, GONE)
    assert sorted(asked) == ["", "jwt:i|ada", "key:bob"]
    assert it.names == [f"b{n}" for n in reversed(range(10))]
    assert len(it.holders) == 11


def test_many_are_looked_at_a_few_a_turn() -> None:
    it = World()
    for n in range(1200):
        it.hold(principal(f"key:{n}"), str(n))
    it.holders.review(lambda _: False, GONE)
    assert len(it.ended) == 500
    it.turns(1)
    assert len(it.ended) == 1000
    it.hold(principal("key:late"), "late")
    it.turns(1)
    assert (len(it.ended), len(it.holders)) == (1200, 1)
    assert not it.clock._hooks


def test_what_is_asked_again_meanwhile_is_asked_once_more() -> None:
    it = World()
    bad: set[str] = set()
    for n in range(600):
        it.hold(principal(f"key:{n}"), str(n))

    def good(who: Principal) -> bool:
        return who.id not in bad

    it.holders.review(good, GONE)
    bad.add("key:599")  # it was looked at
    for _ in range(5):
        it.holders.review(good, GONE)
    assert it.ended == []
    it.turns(4)
    assert it.names == ["599"]
    assert not it.clock._hooks


def test_others_may_end_while_one_does() -> None:
    it = World()
    it.hold(principal(), "first")
    second = it.hold(principal(), "second")
    it.hold(principal(), "third", does=second.release)
    it.holders.review(lambda _: False, GONE)
    assert it.names == ["third", "first"]
    assert len(it.holders) == 0


@pytest.mark.parametrize("later", [True, False])
def test_who_was_seen_later_is_asked_about(later: bool) -> None:
    it = World()
    old, new = principal(), principal()
    held = it.hold(old, "session", expires=False)
    if later:
        held.principal = new
    it.holders.review(lambda who: who is not old, GONE)
    assert it.names == ([] if later else ["session"])


def test_a_run_that_is_stopped_ends_and_no_other() -> None:
    it = World()
    ada, bob = principal(), principal("jwt:i|bob")
    it.hold(ada, "of it", context=Context(run_id="ada/1"))
    it.hold(ada, "of another", context=Context(run_id="ada/2"))
    it.hold(bob, "of another's", context=Context(run_id="bob/1"))
    it.hold(ada, "of none")
    it.holders.end_run("ada/1", GONE)
    assert it.ended == [("of it", "gone")]
    it.holders.end_run("", GONE)  # what is in no run is in none of that name
    assert it.names == ["of it"]
