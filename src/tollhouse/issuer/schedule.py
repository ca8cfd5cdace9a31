"""When which key is published, signs and verifies: pure functions of a KeySet and a time.

Rule: keys have times, not states, so that a node that cannot reach the store changes over with the others. For each
algorithm one key is active and one is next: it has been published since the one before it became active, so that
verifiers have it long before it signs, and an emergency finds one that they know.

    publish_at      active_at      retire_at      gone_at
        |  next         |  active      |  retired     |  gone

Nothing here changes a time that has passed, and none of a key that others may be using is brought forward, except by
who asks for it (`rotated`, `dropped`).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from tollhouse.issuer.records import KeySet, SharedSecret, StoredKey

__all__ = ["Times", "active", "dropped", "planned", "published", "rotated", "state", "with_new_secret", "without"]

_MARGIN = 60.0
"""Seconds that a key stays in the record after it is gone: clocks differ."""

_SKEW = 300.0
"""Seconds that a key which is needed at once has been active already: on a node whose clock is behind, too."""

_REWRITE = 30 * 86400.0
"""A record is written again after so long: the store forgets what nobody writes."""

_SECRETS = 400 * 86400.0
"""How long a shared secret verifies after the next one took its place: longer than anything made with it lives."""

Fresh = Callable[[str], tuple[str, bytes]]
"""A new key of an algorithm: its kid, and itself."""


class Times(NamedTuple):
    """Seconds. next: a key is published so long before it signs. active: it signs. retired: it verifies after that."""

    next: float
    active: float
    retired: float


def state(key: StoredKey, now: float) -> str:
    """What a key is: "next", "active", "retired" or "gone"."""
    if now >= key.gone_at:
        return "gone"
    if now >= key.retire_at:
        return "retired"
    return "active" if now >= key.active_at else "next"


def active(keys: Iterable[StoredKey], alg: str, now: float) -> StoredKey | None:
    """The key that signs."""
    found = [key for key in keys if key.alg == alg and state(key, now) == "active"]
    return max(found, key=lambda key: (key.active_at, key.kid), default=None)


def published(keys: Iterable[StoredKey], now: float) -> list[StoredKey]:
    """All that verify: those that sign first, then by the time they do."""
    order = {"active": 0, "next": 1, "retired": 2}
    found = [key for key in keys if state(key, now) != "gone"]
    return sorted(found, key=lambda key: (order[state(key, now)], key.active_at, key.kid))


def planned(kept: KeySet, algorithms: Sequence[str], times: Times, now: float, fresh: Fresh, secret: bytes) -> KeySet:
    """What the set must become now: the same object where nothing is missing. secret: for a set that has none."""
    keys = [_lasting(key, now, times) for key in kept.keys if now < key.gone_at + _MARGIN]
    for alg in algorithms:
        _complete(keys, alg, times, now, fresh)
    secrets = _secrets(kept.secrets, now) or (SharedSecret(secret, now),)
    if tuple(keys) == kept.keys and secrets == kept.secrets and now < kept.at + _REWRITE:
        return kept
    return KeySet(kept.version + 1, now, tuple(keys), secrets)


def rotated(kept: KeySet, alg: str, times: Times, now: float, fresh: Fresh) -> tuple[KeySet, float]:
    """The set whose next key signs as soon as verifiers can have it, and when that is. The key before it verifies as
    long as it would have: a node that has not heard of this goes on signing with it."""
    keys = list(kept.keys)
    _complete(keys, alg, times, now, fresh)
    old, new = active(keys, alg, now), _next(keys, alg, now)
    if old is None or new is None:
        raise ValueError("an algorithm that has keys has one that signs and one that will")
    at = min(max(now, new.publish_at + times.next), new.active_at)
    keys[keys.index(old)] = replace(old, retire_at=at, gone_at=max(old.gone_at, at + times.retired))
    keys[keys.index(new)] = _running(new, at, times)
    _complete(keys, alg, times, now, fresh)
    return KeySet(kept.version + 1, now, tuple(keys), kept.secrets), at


def dropped(kept: KeySet, kid: str, times: Times, now: float, fresh: Fresh) -> KeySet | None:
    """The set without a key that others may know; if that signs, the next one does from now on. None: there is no
    such key."""
    lost = next((key for key in kept.keys if key.kid == kid), None)
    if lost is None:
        return None
    keys = list(without(kept, kid, times, now).keys)
    _complete(keys, lost.alg, times, now, fresh)
    return KeySet(kept.version + 1, now, tuple(keys), kept.secrets)


def without(kept: KeySet, kid: str, times: Times, now: float) -> KeySet:
    """What is left of a set for who hears that a key was dropped, until it has read what is there now."""
    lost = [key for key in kept.keys if key.kid == kid]
    keys = [key for key in kept.keys if key.kid != kid]
    for alg in {key.alg for key in lost}:
        if active(keys, alg, now) is None:
            _promoted(keys, alg, times, now)
    return replace(kept, keys=tuple(keys))


def with_new_secret(kept: KeySet, times: Times, now: float, secret: bytes) -> KeySet:
    """The set with another shared secret, which is used once all nodes can have it."""
    secrets = (SharedSecret(secret, now + times.next), *_secrets(kept.secrets, now))
    return KeySet(kept.version + 1, now, kept.keys, secrets)


def _complete(keys: list[StoredKey], alg: str, times: Times, now: float, fresh: Fresh) -> None:
    """See to it that one key of an algorithm is active and one is next."""
    now_signs = active(keys, alg, now)
    if now_signs is None:
        now_signs = _promoted(keys, alg, times, now)
    if now_signs is None:
        # The first of all; or nobody was there to plan while the last ones ran out. Verifiers that do not know it ask.
        kid, private = fresh(alg)
        now_signs = _at_once(StoredKey(kid, alg, private, now, now, now, now), now, times)
        keys.append(now_signs)
    if _next(keys, alg, now) is None:
        at = max(now_signs.retire_at, now + times.next)
        if at > now_signs.retire_at:
            longer = replace(now_signs, retire_at=at, gone_at=max(now_signs.gone_at, at + times.retired))
            keys[keys.index(now_signs)] = longer
        kid, private = fresh(alg)
        keys.append(_running(StoredKey(kid, alg, private, now, at, at, at), at, times))


def _next(keys: Iterable[StoredKey], alg: str, now: float) -> StoredKey | None:
    found = [key for key in keys if key.alg == alg and state(key, now) == "next"]
    return min(found, key=lambda key: (key.active_at, key.kid), default=None)


def _promoted(keys: list[StoredKey], alg: str, times: Times, now: float) -> StoredKey | None:
    """The next key, made the active one because there is none; None where there is no next one either."""
    new = _next(keys, alg, now)
    if new is None:
        return None
    at = keys.index(new)
    keys[at] = _at_once(new, now, times)
    return keys[at]


def _at_once(key: StoredKey, now: float, times: Times) -> StoredKey:
    return replace(_running(key, now, times), active_at=now - _SKEW)


def _lasting(key: StoredKey, now: float, times: Times) -> StoredKey:
    """The key, so that it verifies as long as it must by now: tokens may have been made to live longer since."""
    gone_at = key.retire_at + times.retired
    return replace(key, gone_at=gone_at) if now < key.retire_at and key.gone_at < gone_at else key


def _running(key: StoredKey, at: float, times: Times) -> StoredKey:
    """The key, active from `at` on."""
    retire_at = at + max(times.active, times.next)
    return replace(key, active_at=at, retire_at=retire_at, gone_at=retire_at + times.retired)


def _secrets(secrets: tuple[SharedSecret, ...], now: float) -> tuple[SharedSecret, ...]:
    """Those that may still verify something: one is over so long after the one that took its place."""
    kept: list[SharedSecret] = []
    for secret in secrets:
        if not kept or now < kept[-1].active_at + _SECRETS:
            kept.append(secret)
    return tuple(kept)
