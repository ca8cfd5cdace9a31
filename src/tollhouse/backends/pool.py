"""Which target answers a model call: weights, what their answers tell, failover and fallback before the first event.

Rule: a target is asked at most once in a round, and the round ends at the first Reply. A target that fails again and
again is left out for a time that grows, one that says how long to wait is left alone that long. That is an opinion:
when it leaves nobody out of all targets and there is no fallback, they are asked all the same, since an error from
one of them tells the caller more than one from us.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import random
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tollhouse.backends.llm import (
    AnthropicSpec,
    LLMBackend,
    OpenAISpec,
    Provider,
    Timeouts,
    anthropic_provider,
    openai_provider,
)
from tollhouse.backends.local import LocalProvider, LocalSpec
from tollhouse.core.call import ModelCall
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec
from tollhouse.net.client import Client

__all__ = [
    "FallbackSpec",
    "Member",
    "PassiveHealthSpec",
    "Pool",
    "PoolSpec",
    "ProviderSpec",
    "TargetSpec",
    "TimeoutSpec",
    "pool",
    "provider",
]

_JITTER = 0.2  # of a time out: members that failed together come back one by one
_GROWTH = 16  # doublings at most
_PATHS = {"chat": "/v1/chat/completions", "embeddings": "/v1/embeddings", "messages": "/v1/messages"}


# ---- Specs


ProviderSpec = Annotated[OpenAISpec | AnthropicSpec | LocalSpec, Field(discriminator="kind")]
"""Any provider, told apart by `kind`."""


class TargetSpec(Spec):
    """A model at a provider."""

    provider: str = Field(description="a name under `providers`")
    model: str | None = Field(
        default=None, description="its name there; a * stands for what the * of the name matched; none: the same name"
    )
    weight: float = Field(default=1, ge=0, description="share of the calls; 0: only when the others have failed")


class FallbackSpec(Spec):
    """A model at a provider that is asked when every target has failed or is left out."""

    provider: str = Field(description="a name under `providers`")
    model: str | None = Field(default=None, description="as in a target")
    notice: bool = Field(default=False, description="tell the caller, in the header x-tollhouse-fallback")


class TimeoutSpec(Spec):
    """How long a call may take."""

    total: Duration = Field(default=300.0, gt=0, description="from the request's arrival to the last byte")
    first_event: Duration = Field(default=60.0, gt=0, description="to the first event of a stream, for each target")
    idle: Duration = Field(default=60.0, gt=0, description="between two pieces of an answer")
    connect: Duration = Field(default=5.0, gt=0, description="to open a connection")

    def value(self) -> Timeouts:
        return Timeouts(self.total, self.first_event, self.idle, self.connect)


class PassiveHealthSpec(Spec):
    """When a target is left out."""

    failures: int = Field(default=5, ge=1, description="failures in a row")
    eject: Duration = Field(default=10.0, gt=0, description="for how long; doubled each time, up to `max`")
    max: Duration = Field(default=300.0, gt=0, description="the longest time, also for a provider's Retry-After")

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.max < self.eject:
            raise ValueError("`max` is shorter than `eject`")
        return self


class PoolSpec(Spec):
    """Where a model's calls go. A model's Spec has these fields among its own."""

    targets: list[TargetSpec] = Field(min_length=1)
    balance: Literal["weighted", "round_robin"] = Field(
        default="weighted", description="weighted: at random, by weight; round_robin: in turn"
    )
    fallback: list[FallbackSpec] = Field(default=[], description="tried in order when every target has failed")
    timeout: TimeoutSpec = TimeoutSpec()
    health: PassiveHealthSpec = PassiveHealthSpec()

    @model_validator(mode="after")
    def _effects(self) -> Self:
        if not any(t.weight for t in self.targets):
            raise ValueError("every target has weight 0; give at least one a share")
        if self.balance == "round_robin" and len({t.weight for t in self.targets}) > 1:
            raise ValueError("weights have no effect with balance: round_robin; leave them out, or use weighted")
        return self


# ---- members


class Member:
    """One target with what is known of its health. Times are monotonic seconds."""

    __slots__ = ("_ejections", "_failures", "backend", "notice", "troubled", "until", "weight")

    def __init__(self, backend: LLMBackend, weight: float = 1.0, *, notice: bool = False) -> None:
        self.backend = backend
        self.weight = weight
        self.notice = notice
        self.until = 0.0  # left out until then
        self.troubled = False  # has failed since it last succeeded, or is left out
        self._failures = 0
        self._ejections = 0

    def succeeded(self) -> None:
        self.troubled = False
        self._failures = 0
        if self._ejections:
            self._ejections = 0
            self.until = 0.0

    def failed(self, failure: Failure, now: float, health: PassiveHealthSpec) -> None:
        """Count a failure that tells something about the target, and leave it out if that is due."""
        if failure.status == 429 and failure.retry_after:
            self.until = max(self.until, now + min(failure.retry_after, health.max))
            return
        self.troubled = True
        self._failures += 1
        if self._failures < health.failures:
            return
        out = min(health.eject * 2 ** min(self._ejections, _GROWTH), health.max)
        self._ejections += 1
        self._failures = health.failures - 1  # back from it, the next failure is one too many
        self.until = now + out * (1.0 - _JITTER * random())  # noqa: S311  (spread, not a secret)

    def probed(self, now: float, health: PassiveHealthSpec) -> None:
        """A call goes there. If its time out is over, others keep away until that call has told."""
        if self._ejections:
            self.until = now + health.eject
        elif self.until <= now:
            self.until = 0.0


class _Lane:
    """The members that speak one operation."""

    __slots__ = ("fallback", "members", "only", "turn", "weight")

    def __init__(self, members: tuple[Member, ...], fallback: tuple[Member, ...]) -> None:
        self.members = members
        self.fallback = fallback
        self.only = members[0] if len(members) == 1 else None
        self.weight = sum(m.weight for m in members)
        self.turn = 0


class Pool:
    """A model's targets, as the last Handler of its calls."""

    __slots__ = ("_clock", "_fallback", "_health", "_in_turn", "_lanes", "_members", "name")

    def __init__(
        self,
        name: str,
        members: Iterable[Member],
        fallback: Iterable[Member],
        clock: Clock,
        *,
        balance: str = "weighted",
        health: PassiveHealthSpec | None = None,
    ) -> None:
        self.name = name
        self._members = tuple(members)
        self._fallback = tuple(fallback)
        self._clock = clock
        self._health = health if health is not None else PassiveHealthSpec()
        self._in_turn = balance == "round_robin"
        self._lanes: dict[str, _Lane] = {}

    @property
    def members(self) -> tuple[Member, ...]:
        """Targets, then fallbacks."""
        return self._members + self._fallback

    @property
    def speaks(self) -> frozenset[str]:
        """The operations that can be asked of this model."""
        return frozenset().union(*(m.backend.provider.speaks for m in self._members))

    async def handle(self, call: ModelCall) -> Reply:
        """Ask one target, and others while that helps. Raises the last target's Failure, 503 when none may be asked,
        400 when none speaks the dialect."""
        lane = self._lanes.get(call.operation)
        if lane is None:
            lane = self._lane(call)
        # Drawn among all, and kept when nothing speaks against it: no other draw gives them other shares.
        member = lane.only or _drawn(lane.members, lane.weight)
        if self._in_turn or member.until:
            picked = self._pick(lane, self._clock.now, ())
            if picked is None:
                return await self._others(lane, call, [], [])
            member = picked
        try:
            reply = await member.backend.handle(call)
        except Failure as failure:
            if not failure.retry:
                raise
            member.failed(failure, self._clock.now, self._health)
            if lane.only is not None and not lane.fallback:
                raise
            failures = [failure]
        else:
            if reply.source is not None or member.troubled:
                self._answered(member, reply)
            return reply
        return await self._others(lane, call, [member], failures)

    async def _others(self, lane: _Lane, call: ModelCall, tried: list[Member], failures: list[Failure]) -> Reply:
        """Everybody else who may be asked, members first; each once. Leaves `failures` empty."""
        try:
            while (member := self._pick(lane, self._clock.now, tried)) is not None:
                tried.append(member)
                reply = await self._try(call, member, failures)
                if reply is not None:
                    return reply
            for member in lane.fallback:
                if member.until > self._clock.now:
                    continue
                reply = await self._try(call, member, failures)
                if reply is not None:
                    call.context.fallback = member.backend.label
                    if member.notice:
                        label = member.backend.label.encode("ascii", "backslashreplace")
                        reply.headers.append((b"x-tollhouse-fallback", label))
                    return reply
            raise failures.pop() if failures else self._nobody(lane)
        finally:
            failures.clear()  # a Failure refers to the frames it went through, and they to this list

    async def _try(self, call: ModelCall, member: Member, failures: list[Failure]) -> Reply | None:
        """A Reply, or None and the Failure in `failures`, in place of the one before."""
        if failures and call.context.deadline <= self._clock.now:
            raise failures.pop()
        try:
            reply = await member.backend.handle(call)
        except Failure as failure:
            if not failure.retry:
                raise
            member.failed(failure, self._clock.now, self._health)
            failures[:] = [failure]
            return None
        self._answered(member, reply)
        return reply

    def _answered(self, member: Member, reply: Reply) -> None:
        if reply.source is None:
            member.succeeded()
        else:
            # How a stream does is known at its end.
            reply.ends.append(_Verdict(member, self._clock, self._health).settle)

    # ---- choice
    def _pick(self, lane: _Lane, now: float, tried: Sequence[Member]) -> Member | None:
        """A member that is not left out and was not tried; None when there is none."""
        members = lane.members
        if len(members) == 1:
            member = members[0]
            if member in tried or (member.until > now and lane.fallback):
                return None
        else:
            usable = [m for m in members if m.until <= now and m not in tried]
            if not usable:
                left = [] if lane.fallback else [m for m in members if m not in tried]
                if not left:
                    return None
                member = min(left, key=_back)
            elif self._in_turn:
                member = usable[lane.turn % len(usable)]
                lane.turn += 1
            else:
                member = _drawn(usable, sum(m.weight for m in usable))
        if member.until:
            member.probed(now, self._health)
        return member

    # ---- what cannot be
    def _lane(self, call: ModelCall) -> _Lane:
        operation = call.operation
        members = tuple(m for m in self._members if operation in m.backend.provider.speaks)
        if not members:
            paths = sorted(_PATHS[o] for o in self.speaks if o in _PATHS)
            kinds = sorted({m.backend.provider.kind for m in self._members})
            raise Failure(
                400,
                Reason.INVALID_REQUEST,
                f"the model {call.model!r} does not answer here: it is served by a provider of kind "
                f"{' and '.join(kinds)}; ask for it at {' or '.join(paths)}",
                code="unsupported_operation",
            )
        lane = _Lane(members, tuple(m for m in self._fallback if operation in m.backend.provider.speaks))
        self._lanes[operation] = lane
        return lane

    def _nobody(self, lane: _Lane) -> Failure:
        now = self._clock.now
        back = min(m.until for m in lane.members + lane.fallback) - now
        return Failure(
            503,
            Reason.NO_HEALTHY_BACKEND,
            f"no provider of the model {self.name!r} is available now",
            code="no_healthy_backend",
            retry_after=max(back, 1.0),
        )


def _back(member: Member) -> float:
    return member.until


def _drawn(members: Sequence[Member], weight: float) -> Member:
    """One at random, by weight (`weight`: of all of them); one of weight 0 only where there is no other."""
    left = random() * weight  # noqa: S311  (a share, not a secret)
    drawn = members[0]
    for member in members:
        if member.weight:
            drawn = member
            left -= member.weight
            if left < 0.0:
                break
    return drawn


class _Verdict:
    """Tells a member how the stream it began has ended."""

    __slots__ = ("_clock", "_health", "_member")

    def __init__(self, member: Member, clock: Clock, health: PassiveHealthSpec) -> None:
        self._member = member
        self._clock = clock
        self._health = health

    def settle(self, ending: Ending) -> None:
        failure = ending.failure
        if failure is None:
            if not ending.gone:
                self._member.succeeded()
        elif failure.reason is Reason.UPSTREAM_FAILURE:
            self._member.failed(failure, self._clock.now, self._health)


def pool(
    name: str, spec: PoolSpec, providers: Mapping[str, Provider] | Callable[[str], Provider], clock: Clock
) -> Pool:
    """Build the Pool of the model `name`. Raises KeyError for a provider that is not there."""
    find = providers if callable(providers) else providers.__getitem__
    timeouts = spec.timeout.value()
    return Pool(
        name,
        [Member(LLMBackend(find(t.provider), t.model, timeouts, pattern=name), t.weight) for t in spec.targets],
        [Member(LLMBackend(find(f.provider), f.model, timeouts, pattern=name), notice=f.notice) for f in spec.fallback],
        clock,
        balance=spec.balance,
        health=spec.health,
    )


def provider(name: str, spec: OpenAISpec | AnthropicSpec | LocalSpec, client: Client, clock: Clock) -> Provider:
    """Build a Provider; nothing is connected or started yet. A LocalProvider must be closed. Raises OriginError where
    TLS files or the proxy cannot be used."""
    if isinstance(spec, LocalSpec):
        return LocalProvider(name, spec, client, clock)
    if isinstance(spec, AnthropicSpec):
        return anthropic_provider(name, spec, client, clock)
    return openai_provider(name, spec, client, clock)
