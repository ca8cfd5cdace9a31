"""Who holds what in this worker: sessions and streams that outlive the request in which a credential was shown.

Rule: what is held for long is held for a principal, and is written down here. So this is the one place where "this
principal is no longer good" ends all that it has: when its credential's time is over, when a configuration serves that
does not let it in, and when it was revoked. Each holder ends in its own protocol's way, the newest first. Many are
looked at a few a turn of the clock, so that no turn stalls the loop.
"""

import time
from collections.abc import Callable
from typing import Protocol

from tollhouse.core.call import Context, Principal
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason

__all__ = ["EXPIRED", "NOBODY", "Held", "Holder", "Holders"]

_A_TURN = 500  # holders that are looked at
_REVIEWS = 8  # under way at once; one more is made at once

EXPIRED = "token_expired"
"""Code of the Failure by which a holder ends whose principal only has to show a new credential."""

NOBODY = Principal("", source="anonymous")
"""Whose what is held for a caller of whom nothing is known."""

Good = Callable[[Principal], bool]


class Holder(Protocol):
    """What is held for a principal."""

    def lapse(self, failure: Failure) -> None:
        """The principal is no longer good: end, and tell `failure` where there is somebody to tell."""
        ...


class Held:
    """One entry: `holder`, for as long as it is not released. Timed where the principal's credential has an end.
    principal: another of the same id may take its place, who was seen later. context: of the call that it is for,
    which says of which agent run it is part; None for what is of no call."""

    __slots__ = ("_among", "_key", "context", "deadline", "holder", "principal")

    def __init__(
        self, among: "Holders", key: str, principal: Principal, holder: Holder, context: Context | None = None
    ) -> None:
        self._among: Holders | None = among
        self._key = key
        self.principal = principal
        self.holder: Holder | None = holder
        self.context = context
        self.deadline = FOREVER

    def release(self) -> None:
        """It is not held any more; harmless when it was released before."""
        among, self._among = self._among, None
        self.holder = None
        if among is not None:
            among.drop(self, self._key)

    def expire(self) -> None:
        source = self.principal.source
        reason = Reason.API_KEY_AUTH if source == "key" else Reason.JWT_AUTH
        self.end(Failure(401, reason, "the credential that this was opened with has expired", code=EXPIRED))

    def end(self, failure: Failure) -> None:
        """Let it lapse, once."""
        holder = self.holder
        self.release()
        if holder is not None:
            if self.context is not None:
                self.context.stopped = failure.copy()
            holder.lapse(failure)


class Holders:
    """All of a worker. now: unix seconds. in_force: whether a principal was not revoked meanwhile, who has shown a
    credential a while ago (the body of a request may take its time)."""

    __slots__ = ("_clock", "_in_force", "_now", "_of", "_reviews")

    def __init__(self, clock: Clock, now: Callable[[], float] = time.time, in_force: Good | None = None) -> None:
        self._in_force = in_force
        self._clock = clock
        self._now = now
        self._of: dict[str, dict[Held, None]] = {}
        self._reviews: list[_Review] = []

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def hold(
        self,
        principal: Principal | None,
        holder: Holder,
        *,
        expires: bool = True,
        grace: float = 0.0,
        context: Context | None = None,
    ) -> Held:
        """Write down that `holder` is there for `principal`. expires: it ends with the credential's time, `grace`
        seconds after it; else only when the principal is no longer good. context: see `Held`."""
        principal = principal or NOBODY
        held = Held(self, principal.id, principal, holder, context)
        self._of.setdefault(principal.id, {})[held] = None
        if self._in_force is not None and not self._in_force(principal):
            held.deadline = self._clock.now
            self._clock.hurry(held)
        elif expires and principal.expires < FOREVER:
            held.deadline = self._clock.now + max(0.0, principal.expires - self._now()) + grace
            self._clock.watch(held)
        return held

    def drop(self, held: Held, key: str) -> None:
        """`Held.release`."""
        own = self._of.get(key)
        if own is not None:
            own.pop(held, None)
            if not own:
                del self._of[key]
        held.deadline = FOREVER
        self._clock.drop(held)

    def end(self, id: str, failure: Failure) -> None:
        """The principal of that id is no longer good, whatever it has shown."""
        for held in reversed(list(self._of.get(id, ()))):
            held.end(failure)

    def end_run(self, run: str, failure: Failure) -> None:
        """That run was stopped. All that is held is looked at, at once: this is rare, and is not to wait."""
        for held in self._all():
            if run and held.context is not None and held.context.run_id == run:
                held.end(failure)

    def review(self, good: Good, failure: Failure) -> None:
        """Ask of every principal that holds something whether it is still `good`, soon; what is held for others ends
        with `failure`. Where that is asked already it is asked once more."""
        for review in self._reviews:
            if review.good == good:
                review.again = True
                return
        review = _Review(self._all(), good, failure)
        if len(self._reviews) >= _REVIEWS:
            review.go_on(len(review))
        elif review.go_on(_A_TURN):
            self._reviews.append(review)
            if len(self._reviews) == 1:
                self._clock.every_turn(self._turn)

    def _all(self) -> list[Held]:
        return [held for own in self._of.values() for held in own]

    def _turn(self) -> None:
        for review in tuple(self._reviews):
            if review.go_on(_A_TURN):
                continue
            if review.again:
                review.begin(self._all())
            else:
                self._reviews.remove(review)
        if not self._reviews:
            self._clock.remove(self._turn)


class _Review:
    """What is still to be looked at, the newest last. Verdicts are the principals' and not each entry's. again: it is
    to be done once more."""

    __slots__ = ("_failure", "_left", "_verdicts", "again", "good")

    def __init__(self, left: list[Held], good: Good, failure: Failure) -> None:
        self.good = good
        self._failure = failure
        self.begin(left)

    def begin(self, left: list[Held]) -> None:
        self.again = False
        self._left = left
        self._verdicts: dict[Principal, bool] = {}

    def __len__(self) -> int:
        return len(self._left)

    def go_on(self, count: int) -> bool:
        """Look at so many more: whether some are left."""
        left, verdicts = self._left, self._verdicts
        for _ in range(min(count, len(left))):
            held = left.pop()
            if held.holder is None:
                continue
            principal = held.principal
            good = verdicts.get(principal)
            if good is None:
                good = verdicts[principal] = self.good(principal)
            if not good:
                held.end(self._failure)
        return bool(left)
