"""What is remembered of tokens: for how long, how many, and what makes it ask again."""

import pytest

from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.policies.authenticate.remembered import Entry, Refusals, Remembered
from tollhouse.store.memory import MemoryState
from tollhouse.store.revocation import Revocations

pytestmark = pytest.mark.anyio

ADA = Principal("jwt:i|ada", source="jwt", issuer="i", subject="ada", jti="one", issued=50.0)


class Keys:
    def __init__(self) -> None:
        self.current: object = object()


def entry(keys: Keys, until: float = 1000.0, principal: Principal = ADA, *admitted: str) -> Entry:
    made = Entry(principal, until, keys, keys.current, 0, frozenset(("here",)), "i")
    made.admitted.update(admitted or ("here",))
    return made


def test_it_is_known_where_it_was_shown_until_it_expires_or_its_keys_change() -> None:
    now, keys = [100.0], Keys()
    tokens = Remembered(None, lambda: now[0])
    tokens.put(b"a", entry(keys))
    assert tokens.finder("here")(b"a") is ADA
    assert tokens.finder("there")(b"a") is None
    assert tokens.entry(b"a") is not None  # still good, elsewhere
    assert tokens.finder("here")(b"b") is None
    now[0] = 1000.0
    assert tokens.finder("here")(b"a") is None
    assert len(tokens) == 0
    tokens.put(b"a", entry(keys, 2000.0))
    assert tokens.finder("here")(b"a") is ADA
    keys.current = object()
    assert tokens.finder("here")(b"a") is None
    assert len(tokens) == 0


async def test_a_revocation_is_seen_at_the_next_look() -> None:
    clock = Clock()
    revocations = Revocations(MemoryState(clock), clock, now=lambda: 100.0)
    await revocations.load()
    tokens, keys = Remembered(revocations, lambda: 100.0), Keys()
    for n, jti in enumerate(("one", "two", "three")):
        tokens.put(b"%d" % n, entry(keys, 1000.0, Principal("x", source="jwt", subject="ada", jti=jti, issued=50.0)))
    await revocations.revoke("jti", "one", 1000.0)
    assert tokens.finder("here")(b"0") is None
    assert tokens.finder("here")(b"1") is not None
    await revocations.revoke("sub", "ada", 1000.0)
    assert tokens.finder("here")(b"1") is None
    assert tokens.finder("here")(b"2") is None
    assert len(tokens) == 0


def test_there_are_no_more_than_so_many_and_those_go_that_nobody_shows() -> None:
    keys = Keys()
    tokens = Remembered(None, lambda: 0.0, most=100)
    for n in range(100):
        tokens.put(b"%d" % n, entry(keys))
    for n in range(100):
        tokens.entry(b"%d" % n).used = n < 5  # type: ignore[union-attr]
    for n in range(100, 400):
        tokens.put(b"%d" % n, entry(keys))
        for kept in range(5):
            assert tokens.finder("here")(b"%d" % kept) is ADA, n
        assert len(tokens) <= 100
    assert tokens.finder("here")(b"7") is None


def test_they_take_no_more_than_so_many_bytes() -> None:
    keys = Keys()
    tokens = Remembered(None, lambda: 0.0, room=200_000)
    small = Principal("x", source="jwt", token=b"t" * 300, claims={"sub": "x"})
    for n in range(200):
        tokens.put(b"%d" % n, entry(keys, 1000.0, small))
        assert tokens.size <= 200_000
    assert 60 < len(tokens) < 120
    large = Principal("y", source="jwt", token=b"t" * 30_000, claims={"groups": [f"group-{n}" for n in range(1000)]})
    tokens.entry(b"199").used = True  # type: ignore[union-attr]
    tokens.put(b"large", entry(keys, 1000.0, large))
    assert tokens.finder("here")(b"large") is large
    assert tokens.finder("here")(b"199") is small
    for n in range(5):
        tokens.put(b"large-%d" % n, entry(keys, 1000.0, large))
        assert tokens.size <= 200_000
    huge = Principal("z", source="jwt", token=b"", claims={"groups": ["x" * 300_000]})
    tokens.put(b"huge", entry(keys, 1000.0, huge))  # it stands alone, and goes with the next one
    assert len(tokens) == 1
    tokens.put(b"small", entry(keys, 1000.0, small))
    assert tokens.finder("here")(b"huge") is None
    keys.current = object()
    assert tokens.finder("here")(b"small") is None
    assert (len(tokens), tokens.size) == (0, 0)


def test_what_is_over_goes_as_others_come() -> None:
    now, keys = [100.0], Keys()
    tokens = Remembered(None, lambda: now[0])
    for n in range(100_000):  # ever new ones: ten a second, good for a minute
        now[0] += 0.1
        tokens.put(b"%d" % n, entry(keys, now[0] + 60.0))
        if n % 1000 == 999:
            assert len(tokens) < 600 * 1.6
    left = [one for n in range(100_000) if (one := tokens.entry(b"%d" % n)) is not None]
    assert tokens.size == sum(one.size for one in left)


def test_refusals_are_forgotten_after_ten_seconds_and_with_other_keys() -> None:
    now, keys = [100.0], object()
    bad = Refusals(lambda: now[0], most=16)
    bad.put(b"a", keys, "why")
    assert bad.find(b"a", keys) == "why"
    assert bad.find(b"b", keys) is None
    assert bad.find(b"a", object()) is None
    bad.put(b"a", keys, "why")
    now[0] = 110.0
    assert bad.find(b"a", keys) is None
    for n in range(1000):
        bad.put(b"%d" % n, keys, "why")
        assert len(bad) <= 16
