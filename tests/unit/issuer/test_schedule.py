"""When which key signs and verifies, as a function of time."""

import itertools
from collections.abc import Callable

import pytest

from tollhouse.issuer.records import KeySet, StoredKey
from tollhouse.issuer.schedule import (
    Fresh,
    Times,
    active,
    dropped,
    planned,
    published,
    rotated,
    state,
    with_new_secret,
    without,
)

DAY = 86400.0
TIMES = Times(next=DAY, active=30 * DAY, retired=7200.0)
NOW = 1_800_000_000.0


def maker() -> Fresh:
    numbers = itertools.count(1)
    return lambda alg: (f"{alg}-{next(numbers)}", b"private")


@pytest.fixture
def fresh() -> Fresh:
    return maker()


def plan(kept: KeySet, now: float, fresh: Fresh, *algorithms: str, times: Times = TIMES) -> KeySet:
    return planned(kept, algorithms or ("ES256",), times, now, fresh, b"s" * 32)


def states(kept: KeySet, now: float) -> dict[str, str]:
    return {key.kid: state(key, now) for key in kept.keys}


def test_the_first_key_signs_at_once_and_one_is_next(fresh: Fresh) -> None:
    first = plan(KeySet(), NOW, fresh)
    assert states(first, NOW) == {"ES256-1": "active", "ES256-2": "next"}
    assert first.version == 1
    assert len(first.secrets) == 1
    assert plan(first, NOW + 5, fresh) is first


def test_a_key_becomes_active_and_retired_and_goes(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh)
    at = NOW + 30 * DAY
    assert states(kept, at - 1) == {"ES256-1": "active", "ES256-2": "next"}
    assert states(kept, at) == {"ES256-1": "retired", "ES256-2": "active"}
    kept = plan(kept, at, fresh)
    assert states(kept, at) == {"ES256-1": "retired", "ES256-2": "active", "ES256-3": "next"}
    assert states(kept, at + 7200) == {"ES256-1": "gone", "ES256-2": "active", "ES256-3": "next"}
    kept = plan(kept, at + 7300, fresh)
    assert "ES256-1" not in states(kept, at + 7300)
    assert [key.kid for key in published(kept.keys, at)] == ["ES256-2", "ES256-3"]


def test_there_is_one_active_key_at_any_time(fresh: Fresh) -> None:
    kept, now = KeySet(), NOW
    for _ in range(400):
        kept = plan(kept, now, fresh)
        assert sorted(states(kept, now).values()).count("active") == 1
        assert sorted(states(kept, now).values()).count("next") == 1
        now += 0.37 * DAY


def test_each_algorithm_has_its_own(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh, "ES256", "RS256")
    for alg in ("ES256", "RS256"):
        found = active(kept.keys, alg, NOW)
        assert found is not None
        assert found.alg == alg
    assert active(kept.keys, "EdDSA", NOW) is None
    # one that is configured no more goes on to verify as long as it would have, and has no next
    kept = plan(kept, NOW + 61 * DAY, fresh, "ES256")
    assert {key.alg for key in kept.keys} == {"ES256"}


def test_a_house_that_stood_empty_begins_anew(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh)
    late = NOW + 200 * DAY
    kept = plan(kept, late, fresh)
    assert states(kept, late) == {"ES256-3": "active", "ES256-4": "next"}


def test_who_comes_late_lets_the_key_sign_longer_rather_than_one_too_new(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh)
    late = NOW + 60 * DAY - 60  # the second key ends in a minute, and nobody made a third
    kept = plan(kept, late, fresh)
    second, third = kept.keys
    assert third.publish_at == late
    assert third.active_at == second.retire_at == late + DAY


@pytest.mark.parametrize("times", [Times(DAY, 3600.0, 600.0), Times(600.0, 3600.0, 600.0)])
def test_no_key_signs_before_verifiers_have_it(times: Times, fresh: Fresh) -> None:
    kept, now = plan(KeySet(), NOW, fresh, times=times), NOW
    first = kept.keys[0].kid
    for _ in range(300):
        now += 1234.5
        kept = plan(kept, now, fresh, times=times)
        for key in kept.keys:
            assert key.kid == first or key.active_at - key.publish_at >= times.next


def test_rotation_waits_until_verifiers_have_the_next_key(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh)
    early, at = rotated(kept, "ES256", TIMES, NOW + 60, fresh)
    assert at == NOW + DAY
    assert states(early, NOW + DAY) == {"ES256-1": "retired", "ES256-2": "active"}
    assert states(early, NOW + DAY - 1) == {"ES256-1": "active", "ES256-2": "next"}
    later, at = rotated(kept, "ES256", TIMES, NOW + 10 * DAY, fresh)
    assert at == NOW + 10 * DAY
    assert states(later, at) == {"ES256-1": "retired", "ES256-2": "active", "ES256-3": "next"}
    # a node that has not heard signs with the first until it was to retire: it verifies as long as it would have
    assert later.keys[0].gone_at == kept.keys[0].gone_at


def test_rotating_twice_brings_nothing_forward(fresh: Fresh) -> None:
    kept, at = rotated(plan(KeySet(), NOW, fresh), "ES256", TIMES, NOW + 10 * DAY, fresh)
    again, then = rotated(kept, "ES256", TIMES, at + 5, fresh)
    assert then == at + DAY
    assert rotated(again, "ES256", TIMES, at + 10, fresh)[1] == then


def test_a_dropped_key_is_followed_by_one_that_verifiers_have(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh)
    now = NOW + 5 * DAY
    left = dropped(kept, "ES256-1", TIMES, now, fresh)
    assert left is not None
    assert states(left, now) == {"ES256-2": "active", "ES256-3": "next"}
    assert left.version == kept.version + 1
    assert dropped(left, "ES256-1", TIMES, now, fresh) is None
    # of the next or a retired one nothing else changes
    left = dropped(left, "ES256-3", TIMES, now, fresh)
    assert left is not None
    assert states(left, now) == {"ES256-2": "active", "ES256-4": "next"}


def test_who_hears_of_a_drop_signs_with_the_next_one(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh)
    left = without(kept, "ES256-1", TIMES, NOW + DAY)
    assert states(left, NOW + DAY) == {"ES256-2": "active"}
    assert left.version == kept.version
    assert without(kept, "other", TIMES, NOW) == kept


def test_a_record_is_written_again_before_the_store_forgets_it(fresh: Fresh) -> None:
    long = Times(DAY, 1000 * DAY, 7200.0)
    kept = plan(KeySet(), NOW, fresh, times=long)
    assert plan(kept, NOW + 29 * DAY, fresh, times=long) is kept
    again = plan(kept, NOW + 31 * DAY, fresh, times=long)
    assert (again.version, again.keys) == (kept.version + 1, kept.keys)


def test_a_new_secret_is_used_when_all_can_have_it(fresh: Fresh) -> None:
    kept = plan(KeySet(), NOW, fresh)
    both = with_new_secret(kept, TIMES, NOW + 5, b"t" * 32)
    assert [secret.active_at for secret in both.secrets] == [NOW + 5 + DAY, NOW]
    assert len(plan(both, NOW + 300 * DAY, fresh).secrets) == 2
    assert len(plan(both, NOW + 402 * DAY, fresh).secrets) == 1


def test_no_private_key_is_shown(fresh: Callable[[str], tuple[str, bytes]]) -> None:
    key = StoredKey("kid", "ES256", b"private", 0.0, 0.0, 0.0, 0.0)
    assert repr(key) == "<StoredKey ES256 kid>"
    assert "private" not in repr(KeySet(1, 0.0, (key,)))
    assert "ssssssss" not in repr(plan(KeySet(), NOW, fresh))
