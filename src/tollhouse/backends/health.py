"""Which of several upstreams gets a request: weights, what their answers tell (passive), and checks (active).

Rule: passive health is an opinion and gives way when no upstream is left; an active check is a fact. An upstream with
too many failures in a row is ejected for a time that doubles with each ejection; then one request at a time tries it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Generic, TypeVar

from pydantic import Field

from tollhouse.backends.pool import PassiveHealthSpec
from tollhouse.core.spec import Duration, Spec

__all__ = ["Balancer", "CheckSpec", "Checker", "Health", "HealthSpec", "Member"]


class CheckSpec(Spec):
    """Active checks: a GET now and then."""

    path: str = Field(default="/", pattern=r"^/[!-~]*$", description="asked for with GET")
    interval: Duration = Field(default=10.0, gt=0.0, description="between two checks of one upstream")
    timeout: Duration = Field(default=2.0, gt=0.0, description="for a whole check")
    healthy: int = Field(default=1, ge=1, description="good checks in a row that bring an upstream back")
    unhealthy: int = Field(default=3, ge=1, description="bad checks in a row that take it out")


class HealthSpec(PassiveHealthSpec):
    """When an upstream counts as bad."""

    check: CheckSpec | None = Field(default=None, description="active checks; none unless given")


class Health:
    """What is known about one upstream. Times are monotonic seconds."""

    __slots__ = ("_ejections", "_failures", "_spec", "_trial", "_verdicts", "down", "until")

    def __init__(self, spec: HealthSpec) -> None:
        self._spec = spec
        self._failures = 0
        self._ejections = 0
        self._trial = False
        self._verdicts = 0  # checks in a row against the present verdict
        self.until = 0.0  # ejected until then
        self.down = False  # active checks say so

    def usable(self, now: float) -> bool:
        return not self.down and (not self._ejections or (now >= self.until and not self._trial))

    def began(self) -> None:
        """A request goes there. Must be followed by one of succeeded, failed, left."""
        if self._ejections:
            self._trial = True

    def succeeded(self) -> None:
        self._failures = self._ejections = 0
        self._trial = False

    def failed(self, now: float) -> None:
        self._trial = False
        self._failures += 1
        if self._failures >= self._spec.failures and now >= self.until:
            self.until = now + min(self._spec.eject * 2**self._ejections, self._spec.max)
            self._ejections = min(self._ejections + 1, 16)

    def left(self) -> None:
        """The request ended in a way that tells nothing about the upstream."""
        self._trial = False

    def checked(self, good: bool) -> None:
        """The outcome of an active check."""
        check = self._spec.check
        if check is None or good is not self.down:
            self._verdicts = 0
            return
        self._verdicts += 1
        if self._verdicts >= (check.healthy if good else check.unhealthy):
            self._verdicts = 0
            self.down = not good
            if good:
                self.succeeded()


class Member:
    """One of several, with its share. `credit` belongs to the Balancer."""

    __slots__ = ("credit", "health", "weight")

    def __init__(self, weight: int, health: Health) -> None:
        self.weight = weight
        self.health = health
        self.credit = 0


M = TypeVar("M", bound=Member)


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
        total = 0
        best = fresh[0]
        for member in fresh:
            member.credit += member.weight
            total += member.weight
            if member.credit > best.credit:
                best = member
        best.credit -= total
        return best


class Checker(Generic[M]):
    """Runs active checks: one task for each member, owned here from `start` to `close`."""

    __slots__ = ("_ask", "_members", "_spec", "_tasks")

    def __init__(self, spec: CheckSpec, members: Sequence[M], ask: Callable[[M], Awaitable[bool]]) -> None:
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

    async def _run(self, member: M, share: float) -> None:
        await asyncio.sleep(self._spec.interval * share)  # the members' checks are spread over the interval
        while True:
            member.health.checked(await self._ask(member))
            await asyncio.sleep(self._spec.interval)
