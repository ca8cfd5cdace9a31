"""How a call is given to one of several targets that may be asked: by weight, in turn, by latency, or always the same
for a caller.

Rule: a balance sees only who is well, and a weight counts in all of them but `in turn`. A target of weight 0 is chosen
only where there is no other; one that comes back from being ill counts for less than its weight.
"""

import logging
from collections.abc import Callable, Sequence
from hashlib import blake2b
from math import exp, log
from random import random, sample
from typing import Protocol

from tollhouse.backends.health import Health
from tollhouse.backends.llm import LLMBackend
from tollhouse.backends.quota import PROVIDER_QUOTA
from tollhouse.core.call import ModelCall, Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.core.expr import Expression, Memo, Outcome, Undecided, not_bool
from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply

__all__ = [
    "Balance",
    "Condition",
    "InTurn",
    "Latency",
    "LeastLatency",
    "Member",
    "Sticky",
    "Weighted",
    "caller",
    "drawn",
    "legible",
]

logger = logging.getLogger("tollhouse.backends.balance")

_MEMORY = 10.0  # seconds in which a measured latency loses two thirds of its say
_OURS = frozenset(("pool_exhausted", PROVIDER_QUOTA))  # codes of what our own bounds refuse: the target is well
_KEY = 256  # characters of what a caller is known by


class Condition:
    """`when` of a target."""

    __slots__ = ("_expression", "_memo", "_told")

    def __init__(self, source: str) -> None:
        self._expression = Expression(source)
        self._memo = Memo((self._expression,))
        self._told = False

    def holds(self, call: ModelCall) -> bool:
        """What cannot be decided (a header that is not there) does not hold; a value that is no bool is logged."""
        known = self._memo.get(call)
        if known is None:
            said = self._expression.ask(call)
            known = said is Outcome.YES
            if said is Outcome.DOUBT and not self._told:
                self._tell(call)
            self._memo.put(call, known)
        return known

    def _tell(self, call: ModelCall) -> None:
        try:
            why = not_bool(self._expression.value(call))
        except Undecided:
            return
        if why:
            self._told = True
            logger.warning("`when: %s` of a target never holds: %s", self._expression.source, why)


class Latency:
    """A mean of seconds in which what was measured of late counts most. It gets smaller while nobody measures, so that
    who was slow once is tried again."""

    __slots__ = ("_at", "_mean", "measured")

    def __init__(self) -> None:
        self.measured = False
        self._mean = 0.0
        self._at = 0.0

    def note(self, seconds: float, now: float) -> None:
        if self.measured:
            kept = exp(-max(now - self._at, 0.05) / _MEMORY)
            seconds = self._mean * kept + seconds * (1.0 - kept)
        self.measured = True
        self._mean = seconds
        self._at = now

    def value(self, now: float) -> float:
        return self._mean * exp(-max(now - self._at, 0.0) / _MEMORY)


class Member:
    """One target, and its health. name: in headers and logs. when: which calls it is for; None: all that no other is
    for. on: what a fallback is asked after; nothing for a target. busy, latencies: calls under way, and seconds to a
    whole answer and to a stream's first event; kept up for LeastLatency alone. seed: what tells it from the others."""

    __slots__ = (
        "backend", "busy", "handle", "health", "latencies", "name", "notice", "on", "seed", "shown", "weight", "when",
    )  # fmt: skip

    def __init__(
        self,
        backend: LLMBackend,
        health: Health,
        weight: float = 1.0,
        *,
        notice: bool = False,
        on: frozenset[str] = frozenset(),
        when: Condition | None = None,
        seed: str = "",
    ) -> None:
        self.backend = backend
        self.handle: Handler[ModelCall, Reply] = backend.handle
        self.health = health
        self.weight = weight
        self.notice = notice
        self.on = on
        self.when = when
        self.name = backend.label
        self.shown = legible(self.name)
        self.seed = (seed or self.name).encode("utf-8", "surrogatepass")
        self.busy = 0
        self.latencies = (Latency(), Latency())
        backend.provider.known.add(health)

    def failed(self, failure: Failure, now: float) -> None:
        """Write down what a failure tells about the target; and, where it could not be reached, about all others at
        that provider: they would not be, either."""
        health = self.health
        if failure.code in _OURS:
            health.left(now)
        elif failure.status == 429 and failure.retry_after:
            health.rests(now, failure.retry_after)
        else:
            health.failed(now, outright=not failure.reached)
            if not failure.reached:
                self.backend.provider.unreached(health, now)

    def share(self, now: float) -> float:
        """Its weight at the moment."""
        return self.weight * self.health.share(now) if self.health.slow else self.weight


def legible(names: str) -> bytes:
    """Names of targets as they can stand in a header field."""
    return "".join(c if c.isprintable() else "?" for c in names).encode("ascii", "backslashreplace")


class Balance(Protocol):
    def pick(self, members: Sequence[Member], call: ModelCall, now: float) -> Member:
        """One of `members`, of whom there is at least one."""
        ...


def drawn(members: Sequence[Member], weight: float) -> Member:
    """One at random, by weight (`weight`: of all of them)."""
    left = random() * weight  # noqa: S311  (a share, not a secret)
    found = members[0]
    for member in members:
        if member.weight:
            found = member
            left -= member.weight
            if left < 0.0:
                break
    return found


class Weighted:
    """At random, by weight."""

    __slots__ = ()

    def pick(self, members: Sequence[Member], call: ModelCall, now: float) -> Member:
        left = random() * sum(m.share(now) for m in members)  # noqa: S311  (a share, not a secret)
        found = members[0]
        for member in members:
            share = member.share(now)
            if share:
                found = member
                left -= share
                if left < 0.0:
                    break
        return found


class InTurn:
    """One after the other. One that comes back is sometimes passed over."""

    __slots__ = ("_turn",)

    def __init__(self) -> None:
        self._turn = 0

    def pick(self, members: Sequence[Member], call: ModelCall, now: float) -> Member:
        found = members[0]
        for _ in members:
            found = members[self._turn % len(members)]
            self._turn += 1
            if not found.health.slow or random() < found.health.share(now):  # noqa: S311  (a share, not a secret)
                break
        return found


class LeastLatency:
    """Of two at random the one that should answer sooner: by its latency, times the calls that are under way there. One
    that nobody has measured is tried first. Streams are compared by their first event, whole answers by their end."""

    __slots__ = ("_clock",)

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def pick(self, members: Sequence[Member], call: ModelCall, now: float) -> Member:
        able = [m for m in members if m.weight] or members
        new = [m for m in able if not m.busy and not m.latencies[call.stream].measured]
        if new:
            return new[int(random() * len(new))]  # noqa: S311  (spreads load)
        if len(able) == 1:
            return able[0]
        one, other = sample(able, 2)
        known = one.latencies[call.stream].measured and other.latencies[call.stream].measured
        return min(one, other, key=lambda m: self._cost(m, call.stream, known, now))

    @staticmethod
    def _cost(member: Member, stream: bool, known: bool, now: float) -> float:
        latency = member.latencies[stream].value(now) if known else 1.0
        return latency * (member.busy + 1) / (member.share(now) or 1.0)

    def measured(self, member: Member) -> Handler[ModelCall, Reply]:
        """The member's Handler, so that what `pick` wants to know is kept up."""
        handle, clock = member.backend.handle, self._clock

        def ended(_: Ending) -> None:
            member.busy -= 1

        async def measure(call: ModelCall) -> Reply:
            member.busy += 1
            try:
                reply = await handle(call)
            except BaseException:
                member.busy -= 1
                raise
            context = call.context
            if reply.source is None:
                member.busy -= 1
                came = context.upstream_ended
            else:
                reply.ends.append(ended)
                came = context.first_event
            if reply.status < 400:
                member.latencies[call.stream].note(max(came - context.upstream_began, 0.0), clock.now)
            return reply

        return measure


class Sticky:
    """Each caller keeps a target, as long as it is well; others' callers stay where they are (weighted rendezvous
    hashing). One of whom nothing is known is drawn by weight."""

    __slots__ = ("_key", "_name", "_otherwise")

    def __init__(self, name: str, key: Callable[[ModelCall], str]) -> None:
        """name: of the model; callers are shared out anew for each."""
        self._name = name.encode("utf-8", "surrogatepass")
        self._key = key
        self._otherwise = Weighted()

    def pick(self, members: Sequence[Member], call: ModelCall, now: float) -> Member:
        key = self._key(call)
        if not key:
            return self._otherwise.pick(members, call, now)
        text = b"\0%b\0%b" % (self._name, key.encode("utf-8", "surrogatepass"))
        best, least = members[0], float("inf")
        for member in members:
            share = member.share(now)
            if share:
                number = int.from_bytes(blake2b(member.seed + text, digest_size=8).digest())
                cost = -log((number + 0.5) / 2.0**64) / share
                if cost < least:
                    best, least = member, cost
        return best


def _user(principal: Principal | None) -> str:
    return "" if principal is None else principal.user or _itself(principal)


def _credential(principal: Principal | None) -> str:
    return "" if principal is None else principal.key or _itself(principal)


def _itself(principal: Principal) -> str:
    return "" if principal.source == "anonymous" else principal.id  # nobody is not somebody


def caller(by: str) -> Callable[[ModelCall], str]:
    """What a caller is known by: user, org, key, or what a CEL expression says; "" where it is not known. Raises
    ValueError for what is neither."""
    if by == "user":
        return lambda call: _user(call.principal)
    if by == "key":
        return lambda call: _credential(call.principal)
    if by == "org":
        return lambda call: "" if call.principal is None else call.principal.org
    expression = Expression(by)

    def said(call: ModelCall) -> str:
        try:
            return expression.text(call, _KEY)
        except Undecided:
            return ""

    return said
