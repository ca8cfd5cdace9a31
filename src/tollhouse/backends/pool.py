"""Which target answers a model call: health, budget, failover and fallback before the first event.

Rule: a target is asked at most once in a round, and the round ends at the first Reply. Who fails is left out for a
time that grows, who says how long to wait is left alone that long. That is an opinion: where nobody else is left, the
last ones are asked all the same, since an error from one of them tells the caller more than one from us. Asking one
more target costs a retry of the model's budget, unless the one before was not even reached, so that a storm is not
multiplied; the fallbacks are other machines, and free.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from random import random
from time import monotonic

from tollhouse.backends.balance import (
    Balance,
    Condition,
    InTurn,
    LeastLatency,
    Member,
    Sticky,
    Weighted,
    caller,
    drawn,
)
from tollhouse.backends.health import Checker, Health
from tollhouse.backends.hedge import Hedge, HedgeSpec
from tollhouse.backends.llm import LLMBackend, Refused
from tollhouse.backends.pool_round import FAILURE, Lane, Round, Verdict, attempts, spend, tell
from tollhouse.backends.pool_spec import FallbackSpec, ModelHealthSpec, ModelTimeoutSpec, PoolSpec, TargetSpec
from tollhouse.backends.probe import can_tell, is_well
from tollhouse.backends.provider import Provider
from tollhouse.backends.resume import Lasting, Resumed, continuation
from tollhouse.core.backoff import RetryBudget, cause
from tollhouse.core.call import Context, ModelCall, Usage
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply
from tollhouse.wire.llm import CODECS

__all__ = [
    "FallbackSpec",
    "Member",
    "ModelTimeoutSpec",
    "Pool",
    "PoolSpec",
    "TargetSpec",
    "pool",
]

_JITTER = 0.2  # of a time out: members that failed together come back one by one
_SAVED = 100.0  # further attempts that a model may begin with
_PATHS = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "embeddings": "/v1/embeddings",
}
_REFUSALS = {"context_length_exceeded": "context_window", "content_policy": "content_policy"}
"""What a fallback may be asked after, by the code of a Refused."""


class Pool:
    """A model's targets, as the last Handler of its calls. `start` and `close` bracket its active checks.

    retried: told of each further attempt, and why it is made.
    """

    __slots__ = (
        "_balance", "_budget", "_checker", "_clock", "_fallback", "_hedge", "_lanes", "_members",
        "_resumes", "_retried", "name",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        members: Iterable[Member],
        fallback: Iterable[Member],
        clock: Clock,
        *,
        balance: Callable[[], Balance] = Weighted,
        spec: ModelHealthSpec | None = None,
        hedge: HedgeSpec | None = None,
        resumes: bool = False,
        retried: Callable[[Context, str], None] | None = None,
    ) -> None:
        self.name = name
        self._resumes = resumes
        self._hedge = Hedge(hedge) if hedge is not None else None
        self._members = tuple(members)
        self._fallback = tuple(fallback)
        self._clock = clock
        self._balance = balance
        self._budget = RetryBudget(saved=_SAVED)
        self._retried = retried
        self._lanes: dict[str, Lane] = {}
        self._checker: Checker[Member] | None = None
        check = spec.check if spec is not None else None
        if check is not None:
            watched = [m for m in self.members if can_tell(m.backend, check, name)]
            if watched:
                self._checker = Checker(check, watched, lambda m: is_well(m.backend, check, name))

    @property
    def members(self) -> tuple[Member, ...]:
        """Targets, then fallbacks."""
        return self._members + self._fallback

    @property
    def checked(self) -> bool:
        """Whether there is something to `start`, and to `close`."""
        return self._checker is not None

    def start(self) -> None:
        """Begin the active checks, if there are any."""
        if self._checker is not None:
            self._checker.start()

    async def close(self) -> None:
        """End them."""
        if self._checker is not None:
            await self._checker.close()

    def handle(self, call: ModelCall) -> Awaitable[Reply]:
        """Ask one target, and others while that helps. Raises the last target's Failure, 503 when none may be asked,
        400 when none speaks the dialect or is for the call."""
        lane = self._lanes.get(call.operation)
        if lane is None:
            if not self._answers(call.operation):
                backend = self._members[0].backend
                words = backend.provider.vocabularies
                model = backend.model(call)
                answer = call.dialect.here(call.fields, model, None if words is None else words.of(model))
                if answer is not None:
                    return _here(call, answer)
            lane = self._lane(call)
        alone = lane.alone
        return self._choose(lane, call) if alone is None else alone(call)

    async def _choose(self, lane: Lane, call: ModelCall) -> Reply:
        context = call.context
        if not context.attempts:
            self._budget.request()
        members: Sequence[Member] = lane.members
        # Drawn among all, and kept when nothing speaks against it: no other draw gives them other shares.
        member = drawn(lane.members, lane.weight) if lane.quick else None
        if member is None or member.health.until or member.health.slow or member.health.down:
            now = self._clock.now
            if member is None or not _kept(member, now):
                if lane.conditional:
                    members = self._matching(members, call)
                member = self._pick(lane, members, call, now, ())
                if member is None:
                    return await self._others(lane, members, call, Round())
                member.health.began(now)
        if call.stream and self._hedge is not None and self._hedge.after is not None and len(members) > 1:
            return await self._hedged(lane, members, call, member, self._hedge)
        try:
            reply = await member.handle(call)
        except Failure as failure:
            it = Round()
            if not self._noted(call, member, failure, it):
                raise
            it.keep(context)
        except BaseException:
            member.health.left(self._clock.now)
            raise
        else:
            if reply.source is not None or member.health.troubled or context.tried:
                self._answered(call, member, reply)
            else:
                member.health.good.fresh += 1
            if call.stream and self._hedge is not None:
                self._hedge.note(context.first_event - context.upstream_began)
            return reply
        return await self._others(lane, members, call, it)

    async def _hedged(
        self, lane: Lane, members: Sequence[Member], call: ModelCall, member: Member, hedge: Hedge
    ) -> Reply:
        """As `_choose`, with a second target where the first is late."""
        it = Round()
        context = call.context
        asked = [member]

        def second() -> Member | None:
            now = self._clock.now
            usable = [m for m in members if m is not member and m.health.usable(now)]
            if not usable or not self._budget.retry():
                return None
            other = usable[0] if len(usable) == 1 else lane.balance.pick(usable, call, now)
            other.health.began(now)
            asked.append(other)
            if self._retried is not None:
                self._retried(context, "hedge")
            return other

        def noted(one: Member, failure: Failure) -> bool:
            known = self._noted(call, one, failure, it)
            if known:
                it.keep(context)
            return known

        try:
            found = await hedge.ask(call, member, second, noted)
            if found is not None:
                winner, reply = found
                if len(asked) > 1 and not it.tried:
                    loser = asked[0] if winner is asked[1] else asked[1]
                    loser.health.left(self._clock.now)
                    context.tried = f"{context.tried}, {loser.name}" if context.tried else loser.name
                self._answered(call, winner, reply)
                spend(context, it, reply)
                it.forget()
                return reply
        except BaseException:
            it.settle(context)
            it.forget()
            for one in asked:
                one.health.left(self._clock.now)
            raise
        return await self._others(lane, members, call, it)

    async def _others(self, lane: Lane, members: Sequence[Member], call: ModelCall, it: Round) -> Reply:
        """Everybody else who may be asked, targets first; each once."""
        try:
            while it.refused is None:
                member = self._pick(lane, members, call, self._clock.now, it.tried)
                if member is None or not self._may_go_on(call, it, paid=True):
                    break
                reply = await self._try(call, member, it)
                if reply is not None:
                    return reply
            for member in self._fallbacks(lane, members, it):
                if not self._may_go_on(call, it, paid=False):
                    break
                reply = await self._try(call, member, it)
                if reply is not None:
                    return reply
            if it.refused is not None:
                tell(call.context, it.refused)
                spend(call.context, it, it.refused)
                return it.refused
            raise self._last_words(call, lane, it)
        finally:
            it.settle(call.context)
            it.forget()

    def _fallbacks(self, lane: Lane, members: Sequence[Member], it: Round) -> Iterable[Member]:
        """Whom to ask after the targets, in order: the fallbacks that are well; when nobody was asked at all, the one
        that should come back first of those that did not wish to rest."""
        for member in lane.fallback:
            if it.wants in member.on and member not in it.tried and member.health.usable(self._clock.now):
                yield member
        if not it.asked and it.unsaid is None:
            now = self._clock.now
            left = [m for m in (*members, *lane.fallback) if m.health.rest <= now and (not m.on or FAILURE in m.on)]
            if left:
                yield min(left, key=_back)

    async def _try(self, call: ModelCall, member: Member, it: Round) -> Reply | None:
        """A Reply, or None and what has come of it in `it`."""
        member.health.began(self._clock.now)
        try:
            reply = await member.handle(call)
        except Failure as failure:
            if self._noted(call, member, failure, it):
                it.keep(call.context)
            elif it.refused is None:
                raise
            return None
        except BaseException:
            member.health.left(self._clock.now)
            raise
        self._answered(call, member, reply)
        spend(call.context, it, reply)
        if member.on:
            call.context.fallback = member.name
            if member.notice:
                reply.headers.append((b"x-tollhouse-fallback", member.shown))
        return reply

    def _may_go_on(self, call: ModelCall, it: Round, *, paid: bool) -> bool:
        """Whether one more may be asked, which is counted. paid: it costs a retry."""
        failure = it.failure
        if failure is not None:
            if call.context.deadline <= monotonic():  # the clock's time is a little old
                return False
            if paid and failure.reached and not self._budget.retry():
                return False
        if it.why and self._retried is not None:
            self._retried(call.context, it.why)
        it.why = ""
        return True

    # ---- what came of it
    def _noted(self, call: ModelCall, member: Member, failure: Failure, it: Round) -> bool:
        """Write down that the member did not answer. False: nobody else could do better."""
        context = call.context
        now = self._clock.now
        if isinstance(failure, Refused):
            member.health.succeeded()  # it is well, and has an opinion
            it.keep(context)
            it.wants = _REFUSALS[failure.code or ""]
            it.why = failure.code or ""
            if it.refused is None:
                it.refused = failure.reply
        elif failure.code == "not_expressible":
            member.health.left(now)
            context.attempts -= 1
            it.tried.append(member)
            it.unsaid = failure
            return True
        elif failure.retry:
            member.failed(failure, now)
            it.failure = failure
            it.why = cause(failure)
        else:
            member.health.left(now)
            return False
        it.asked = True
        it.tried.append(member)
        context.tried = f"{context.tried}, {member.name}" if context.tried else member.name
        context.budget = self._budget
        return True

    def _answered(self, call: ModelCall, member: Member, reply: Reply) -> None:
        if reply.source is None:
            member.health.succeeded()
        else:
            # How a stream does is known at its end.
            reply.ends.append(Verdict(member, self._clock).settle)
            if self._resumes and call.operation in CODECS:
                another = partial(self._go_on, call, member)
                Lasting(call, CODECS[call.operation], another).over(reply)
        context = call.context
        if context.tried:
            context.tried = f"{context.tried}, {member.name}"
            tell(context, reply)

    def _last_words(self, call: ModelCall, lane: Lane, it: Round) -> Failure:
        found = it.end()
        if found is None:
            return self._nobody(lane)
        if "," in call.context.tried:
            found.headers = (*found.headers, attempts(call.context))
        return found

    async def _go_on(self, call: ModelCall, lost: Member, said: str) -> Resumed | None:
        """Somebody to go on with a stream that `lost` has lost: others that are well first, then itself."""
        context = call.context
        lane = self._lanes[call.operation]
        members: Sequence[Member] = self._matching(lane.members, call) if lane.conditional else lane.members
        now = self._clock.now
        others = [m for m in members if m is not lost and m.health.usable(now)]
        for member in (*others, lost):
            continues = member.backend.continues(call)
            if (said and continues is None) or context.deadline <= monotonic() or not self._budget.retry():
                continue
            if self._retried is not None:
                self._retried(context, "resume")
            asked = continuation(call, CODECS[call.operation], said)
            it = Round()
            member.health.began(self._clock.now)
            try:
                reply = await member.handle(asked)
            except Failure as failure:
                known = self._noted(asked, member, failure, it)
                it.forget()
                if not known:
                    return None
                continue
            except BaseException:
                member.health.left(self._clock.now)
                raise
            finally:
                context.attempts = asked.context.attempts
            context.tried = f"{context.tried or lost.name}, {member.name}"
            if reply.source is None:
                member.health.succeeded()
                reply.close(Ending(reply.status, Reason.UPSTREAM))
                return None
            reply.ends.append(Verdict(member, self._clock).settle)
            return Resumed(member.name, asked, reply, continues is not None and continues.echoes)
        return None

    # ---- choice
    def _matching(self, members: Sequence[Member], call: ModelCall) -> list[Member]:
        """Those whose condition holds; where there is none, those without a condition. Raises Failure 400."""
        found = [m for m in members if m.when is not None and m.when.holds(call)]
        found = found or [m for m in members if m.when is None]
        if not found:
            message = f"no target of the model {self.name!r} is for this request"
            raise Failure(400, Reason.INVALID_REQUEST, message, code="no_target")
        return found

    def _pick(
        self, lane: Lane, members: Sequence[Member], call: ModelCall, now: float, tried: Sequence[Member]
    ) -> Member | None:
        """One of `members` that was not tried, well if possible; None when there is none."""
        usable = [m for m in members if m.health.usable(now) and m not in tried]
        if usable:
            return usable[0] if len(usable) == 1 else lane.balance.pick(usable, call, now)
        if lane.falls_back:
            return None
        return min((m for m in members if m not in tried), key=_back, default=None)

    # ---- what cannot be
    def _lane(self, call: ModelCall) -> Lane:
        operation = call.operation
        translatable = operation in CODECS
        members = tuple(m for m in self._members if m.backend.provider.answers(operation, translatable))
        if not members:
            paths = [path for o, path in _PATHS.items() if self._answers(o)]
            kinds = sorted({m.backend.provider.kind for m in self._members})
            raise Failure(
                400,
                Reason.INVALID_REQUEST,
                f"the model {call.model!r} does not answer here: it is served by a provider of kind "
                f"{' and '.join(kinds)}; ask for it at {' or '.join(paths)}",
                code="unsupported_operation",
            )
        fallback = tuple(m for m in self._fallback if m.backend.provider.answers(operation, translatable))
        lane = Lane(members, fallback, self._balance())
        if self._fallback or (self._resumes and translatable):
            lane.alone = None  # also where no fallback speaks this operation: a refusal comes to us
        self._lanes[operation] = lane
        return lane

    def _answers(self, operation: str) -> bool:
        translatable = operation in CODECS
        return any(m.backend.provider.answers(operation, translatable) for m in self._members)

    def _nobody(self, lane: Lane) -> Failure:
        now = self._clock.now
        back = min(m.health.until for m in lane.members + lane.fallback) - now
        return Failure(
            503,
            Reason.NO_HEALTHY_BACKEND,
            f"no provider of the model {self.name!r} is available now",
            code="no_healthy_backend",
            retry_after=max(back, 1.0),
        )


async def _here(call: ModelCall, answer: bytes) -> Reply:
    """An answer that no provider gave."""
    call.context.usage = Usage()
    return Reply(200, [(b"content-type", b"application/json"), (b"x-tollhouse-estimated", b"true")], answer)


def _kept(member: Member, now: float) -> bool:
    """Whether one that was drawn by its whole weight is asked."""
    health = member.health
    return not health.until and not health.down and random() < health.share(now)  # noqa: S311  (a share, not a secret)


def _back(member: Member) -> tuple[bool, float]:
    return member.health.down, member.health.until


def pool(
    name: str,
    spec: PoolSpec,
    providers: Mapping[str, Provider] | Callable[[str], Provider],
    clock: Clock,
    *,
    retried: Callable[[Context, str], None] | None = None,
) -> Pool:
    """Build the Pool of the model `name`. retried: as Pool's. Raises KeyError for a provider that is not there."""
    find = providers if callable(providers) else providers.__getitem__
    timeouts = spec.timeout.value()
    refusals = frozenset(code for code, word in _REFUSALS.items() if any(word in f.on for f in spec.fallback))
    seeds: dict[str, int] = {}

    def backend(target: TargetSpec | FallbackSpec) -> LLMBackend:
        provider = find(target.provider)
        lossy = spec.lossy == "drop"
        return LLMBackend(provider, target.model, timeouts, pattern=name, lossy=lossy, refusals=refusals)

    def bounded(made: Member) -> Member:
        quota = made.backend.provider.quota
        if quota is not None:
            made.handle = quota.before(made.handle, made.backend.model)
        return made

    def member(target: TargetSpec) -> Member:
        asked = backend(target)
        number = seeds[asked.label] = seeds.get(asked.label, 0) + 1
        made = Member(
            asked,
            Health(spec.health, spread=_JITTER),
            target.weight,
            when=None if target.when is None else Condition(target.when),
            seed=f"{asked.label}#{number}" if number > 1 else asked.label,
        )
        if latencies is not None:
            made.handle = latencies.measured(made)
        return bounded(made)

    latencies: LeastLatency | None = None
    balance: Callable[[], Balance] = Weighted
    if spec.sticky is not None:
        sticky = Sticky(name, caller(spec.sticky))
        balance = lambda: sticky  # noqa: E731
    elif spec.balance == "round_robin":
        balance = InTurn
    elif spec.balance == "least_latency":
        found = latencies = LeastLatency(clock)
        balance = lambda: found  # noqa: E731
    fallback = [
        bounded(Member(backend(f), Health(spec.health, spread=_JITTER), notice=f.notice, on=frozenset(f.on)))
        for f in spec.fallback
    ]
    members = [member(target) for target in spec.targets]
    return Pool(
        name,
        members,
        fallback,
        clock,
        balance=balance,
        spec=spec.health,
        hedge=spec.hedge,
        resumes=spec.resume,
        retried=retried,
    )
