"""What is known of an upstream's health, and which of several gets a request.

Rule: what answers tell (passive health) is an opinion and gives way when no upstream is left; an active check is a
fact. An upstream with too many failures in a row, or too many among the last ones, is left out for a time that doubles
each time; then one request tries it, and others keep away until that one has told, or for another such time. One that
comes back gets its share little by little.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from random import random
from time import monotonic
from typing import Generic, Protocol, Self, TypeVar

from pydantic import Field, model_validator

from tollhouse.core.backoff import Recent
from tollhouse.core.errors import Failure
from tollhouse.core.spec import Duration, Spec
from tollhouse.net.client import Pool, Until

__all__ = [
    "Balancer", "CheckSpec", "Checker", "Health", "HealthSpec", "Member", "PassiveHealthSpec", "TimedCheckSpec",
    "answered", "answers",
]  # fmt: skip

_GROWTH = 16  # doublings at most
_FIRST_SHARE = 0.1  # of what it gets when it is all well
_SOON = -1.0  # the slow start begins when somebody looks


class PassiveHealthSpec(Spec):
    """When a target is left out."""

    failures: int = Field(default=5, ge=1, description="failures in a row")
    error_rate: float | None = Field(
        default=0.5, gt=0, le=1, description="share of failures among the answers of `window`; null: it does not count"
    )
    window: Duration = Field(default=30.0, gt=0, description="how far back `error_rate` looks")
    minimum: int = Field(default=20, ge=1, description="answers in `window` before `error_rate` counts")
    eject: Duration = Field(default=10.0, gt=0, description="for how long; doubled each time, up to `max`")
    max: Duration = Field(default=300.0, gt=0, description="the longest time, also for a provider's Retry-After")
    slow_start: Duration = Field(
        default=30.0, ge=0, description="in which the share of one that comes back grows to what it was; 0s: at once"
    )

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.max < self.eject:
            raise ValueError("`max` is shorter than `eject`")
        if self.error_rate is None and (given := self.model_fields_set & {"window", "minimum"}):
            raise ValueError(f"`{min(given)}` has no effect without `error_rate`")
        return self


class TimedCheckSpec(Spec):
    """How often something is looked at, and what follows from it."""

    interval: Duration = Field(default=10.0, gt=0.0, description="between two checks of one upstream")
    timeout: Duration = Field(default=2.0, gt=0.0, description="for a whole check")
    healthy: int = Field(default=1, ge=1, description="good checks in a row that bring an upstream back")
    unhealthy: int = Field(default=3, ge=1, description="bad checks in a row that take it out")


class CheckSpec(TimedCheckSpec):
    """Active checks: a GET now and then."""

    path: str = Field(default="/", pattern=r"^/[!-~]*$", description="asked for with GET")


class HealthSpec(PassiveHealthSpec):
    """When an upstream counts as bad."""

    check: CheckSpec | None = Field(default=None, description="active checks; none unless given")


class Health:
    """What is known about one upstream. Times are monotonic seconds.

    spread: share of a time out that chance may take off, so that upstreams which failed together come back one by one.
    good: the answers of late; who does not tell `succeeded` of one that was due counts it there.
    """

    __slots__ = (
        "__weakref__", "_bad", "_ejections", "_failures", "_spec", "_spread", "_trial", "_verdicts", "down", "good",
        "rest", "slow", "troubled", "until",
    )  # fmt: skip

    def __init__(self, spec: PassiveHealthSpec, *, spread: float = 0.0) -> None:
        self._spec = spec
        self._spread = spread
        self._failures = 0
        self._ejections = 0
        self._trial = False
        self._verdicts = 0  # checks in a row against the present verdict
        began = monotonic()
        self._bad = Recent(spec.window, began)
        self.good = Recent(spec.window, began)
        self.until = 0.0  # left out until then
        self.rest = 0.0  # by its own wish until then
        self.slow = 0.0  # its share grows until then; 0.0 when it has all of it
        self.troubled = False  # has failed since it last succeeded
        self.down = False  # active checks say so

    def usable(self, now: float) -> bool:
        return self.until <= now and not self.down

    def share(self, now: float) -> float:
        """What part of its usual share it gets, more than 0.0 and up to 1.0."""
        slow = self.slow
        if slow == 0.0:
            return 1.0
        start = self._spec.slow_start
        if slow == _SOON:
            slow = self.slow = now + start
        left = (slow - now) / start if start else 0.0
        if left <= 0.0:
            self.slow = 0.0
            return 1.0
        return max(1.0 - left, _FIRST_SHARE)

    def began(self, now: float) -> None:
        """A request goes there. One of `succeeded`, `failed` and `left` is to follow."""
        if self.until and self.until <= now:
            self._trial = self._ejections > 0
            self.until = now + self._spec.eject if self._trial else 0.0

    def succeeded(self) -> None:
        self.troubled = self._trial = False
        self._failures = 0
        self.good.fresh += 1
        if self._ejections:
            self._ejections = 0
            self.until = 0.0
            self.slow = _SOON

    def failed(self, now: float, *, outright: bool = False) -> None:
        """The upstream is to blame. Those who were under way when it was ejected do not prolong that. outright: there
        is no doubt that the next request would fail too."""
        self.troubled = True
        self._failures += 1
        self._bad.fresh += 1
        spec = self._spec
        if self._trial or (
            self.until <= now and (outright or self._failures >= spec.failures or self._fails_often(now))
        ):
            out = min(spec.eject * 2**self._ejections, spec.max)
            self.until = now + out * (1.0 - self._spread * random())  # noqa: S311  (spread, not a secret)
            self._ejections = min(self._ejections + 1, _GROWTH)
            self.good.clear(now)
            self._bad.clear(now)
        self._trial = False

    def _fails_often(self, now: float) -> bool:
        rate = self._spec.error_rate
        if rate is None:
            return False
        bad, good = self._bad.value(now), self.good.value(now)
        count = bad + good
        return count >= self._spec.minimum - 0.5 and bad >= rate * count * 0.999  # the last ones count for nearly one

    def rests(self, now: float, seconds: float) -> None:
        """The upstream has said how long it wants to be left alone."""
        self._trial = False
        self.until = self.rest = max(self.until, now + min(seconds, self._spec.max))

    def left(self, now: float) -> None:
        """The request ended in a way that tells nothing about the upstream."""
        if self._trial:
            self._trial = False
            self.until = now

    def checked(self, good: bool, check: TimedCheckSpec) -> None:
        """The outcome of an active check."""
        if good is not self.down:
            self._verdicts = 0
            return
        self._verdicts += 1
        if self._verdicts >= (check.healthy if good else check.unhealthy):
            self._verdicts = 0
            self.down = not good
            if good:
                self.succeeded()
                self.slow = _SOON


class Member:
    """One of several, with its share. `credit` belongs to the Balancer."""

    __slots__ = ("credit", "health", "weight")

    def __init__(self, weight: int, health: Health) -> None:
        self.weight = weight
        self.health = health
        self.credit = 0.0


class _Watched(Protocol):
    health: Health


M = TypeVar("M", bound=Member)
W = TypeVar("W", bound=_Watched)


class Balancer(Generic[M]):
    """Smooth weighted round robin: of a, a, b the order is a b a, not a a b."""

    __slots__ = ("members",)

    def __init__(self, members: Sequence[M]) -> None:
        self.members = tuple(members)

    def pick(self, now: float, tried: Collection[M] = ()) -> M | None:
        """The next member, one that was not tried if there is any usable one; None when checks say that all are
        down. One that is only ejected is taken when there is no other: the one that comes back first."""
        members = self.members
        if len(members) == 1:
            return None if members[0].health.down else members[0]
        usable = [m for m in members if m.health.usable(now)]
        fresh = [m for m in usable if m not in tried] or usable
        if not fresh:
            left = [m for m in members if not m.health.down]
            fresh = [m for m in left if m not in tried] or left
            return min(fresh, key=lambda m: m.health.until, default=None)
        total = 0.0
        best = fresh[0]
        for member in fresh:
            share = member.weight * member.health.share(now) if member.health.slow else member.weight
            member.credit += share
            total += share
            if member.credit > best.credit:
                best = member
        best.credit -= total
        return best


class Checker(Generic[W]):
    """Runs active checks: one task for each member, owned here from `start` to `close`."""

    __slots__ = ("_ask", "_members", "_spec", "_tasks")

    def __init__(self, spec: TimedCheckSpec, members: Sequence[W], ask: Callable[[W], Awaitable[bool]]) -> None:
        """ask: tells whether the member is well, within `spec.timeout`; it raises nothing."""
        self._spec = spec
        self._members = members
        self._ask = ask
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        count = len(self._members)
        self._tasks = [loop.create_task(self._run(m, i / count)) for i, m in enumerate(self._members)]

    async def close(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, member: W, share: float) -> None:
        await asyncio.sleep(self._spec.interval * share)  # the members' checks are spread over the interval
        while True:
            member.health.checked(await self._ask(member), self._spec)
            await asyncio.sleep(self._spec.interval)


async def answers(pool: Pool, head: bytes, timeout: float) -> bool:
    """Whether an upstream answers a GET well (2xx, 3xx), the whole of it within `timeout` seconds. head: rendered."""
    try:
        return 200 <= await answered(pool, head, timeout) < 400
    except Failure:
        return False


async def answered(pool: Pool, head: bytes, timeout: float) -> int:
    """The status of an answer to a GET, the whole of which came within `timeout` seconds. head: rendered. Raises
    Failure."""
    exchange = await pool.exchange(
        head,
        b"",
        method=b"GET",
        until=Until.WHOLE,
        deadline=monotonic() + timeout,
        first_byte=timeout,
        idle=timeout,
        connect=timeout,
        limit=1 << 20,
        resend=True,
    )
    exchange.close()
    return exchange.status
