"""One call that is made for all who ask the same meanwhile.

Rule: whoever rides along has its answer, also when the one who asked first leaves; and exactly one of them is recorded
to have paid for it: the first, or, where he has left before its end, the next. What was used is known in the context of
the call that is made (`context`); who pays has it copied to his own. Who does not pay has used nothing.

A flight has a task of its own, unlike all other work per request: what several wait for must not end with one of them.
It lives until the answer begins, and is cancelled, and waited for, when nobody waits for it any more.
"""

import asyncio
from collections.abc import Callable

from tollhouse.core.call import Context, Usage
from tollhouse.core.errors import Reason
from tollhouse.core.http import End, Ending, finish
from tollhouse.core.reply import Reply
from tollhouse.policies.cache.broadcast import Broadcast, Leg
from tollhouse.policies.cache.claims import Claim
from tollhouse.policies.cache.entry import Entry

__all__ = ["MOST_RIDERS", "Flight", "Rider"]

MOST_RIDERS = 1000

_GONE = 499

_COPIED = (
    "usage", "shares", "cost_nano", "provider", "backend", "model_answered", "model_sent", "attempts", "fallback",
    "tried", "upstream_began", "upstream_ended", "first_event",
)  # fmt: skip


class Rider:
    """One of those who wait, or are answered."""

    __slots__ = ("context", "flight", "leg", "waiter")

    def __init__(self, flight: "Flight", context: Context) -> None:
        self.flight = flight
        self.context = context
        self.waiter: asyncio.Future[None] | None = None
        self.leg: Leg | None = None

    async def landed(self) -> None:
        """Return when there is an answer, or none to be had. Who is cancelled meanwhile has left."""
        flight = self.flight
        if not flight.over:
            self.waiter = asyncio.get_running_loop().create_future()
            try:
                await self.waiter
            except BaseException:
                await flight.abandoned(self)
                raise
            finally:
                self.waiter = None

    def ended(self, ending: Ending) -> None:
        """For the `ends` of his Reply."""
        self.flight.ended(self, ending)


class Flight:
    """key: what is asked. context: of the call that is made. payer: who pays now.

    over: it has landed, one way or another. entry: the whole answer; found: as what it was kept ("exact",
    "semantic"), "" where somebody was asked. reply: for who pays alone. broadcast: the answer, while it streams,
    and headers: its header fields. failure: why there is none. ends: of the upstream's Reply. cost: nano-dollars of
    the answer, once they are known; else -1. claim: that tells other nodes of it. kept: they will find the answer.
    """

    __slots__ = (
        "broadcast", "claim", "context", "cost", "ends", "entry", "failure", "found", "generation", "headers", "kept",
        "key", "landing", "over", "payer", "reply", "riders", "task",
    )  # fmt: skip

    def __init__(self, key: bytes, context: Context, generation: int, landing: Callable[["Flight"], None]) -> None:
        self.key = key
        self.context = context
        self.generation = generation
        self.landing: Callable[[Flight], None] | None = landing  # nobody else can come, from now on
        self.riders: list[Rider] = []
        self.payer: Rider | None = None
        self.task: asyncio.Task[None] | None = None
        self.over = False
        self.entry: Entry | None = None
        self.found = ""
        self.reply: Reply | None = None
        self.broadcast: Broadcast | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        self.failure: BaseException | None = None
        self.ends: list[End] = []
        self.cost = -1
        self.claim: Claim | None = None
        self.kept = False

    @property
    def takes(self) -> bool:
        """Whether one more may ride along."""
        if len(self.riders) >= MOST_RIDERS or not self.riders:
            return False
        return not self.over or (self.broadcast is not None and self.broadcast.blocks is not None)

    def join(self, context: Context) -> Rider:
        rider = Rider(self, context)
        if self.payer is None:
            self.payer = rider
        self.riders.append(rider)
        if self.broadcast is not None:
            rider.leg = self.broadcast.leg()
        return rider

    def land(self) -> None:
        """It is known what has come of it: tell all who wait."""
        self.over = True
        if self.broadcast is None:
            self.closed()
        for rider in self.riders:
            if self.broadcast is not None:
                rider.leg = self.broadcast.leg()
            if rider.waiter is not None and not rider.waiter.done():
                rider.waiter.set_result(None)

    def closed(self) -> None:
        """Nobody else can ride along."""
        landing, self.landing = self.landing, None
        if landing is not None:
            landing(self)

    # ---- who leaves
    async def abandoned(self, rider: Rider) -> None:
        """He waits no longer."""
        task = self.task
        if not self._left(rider):
            return
        if task is not None and not task.done():
            self.closed()
            task.cancel()
            await asyncio.wait((task,))  # it writes down what was used
        self._drop(Ending(_GONE, Reason.CLIENT_GONE, gone=True))
        self._pay(rider)

    def ended(self, rider: Rider, ending: Ending) -> None:
        """His answer is over."""
        leg, rider.leg = rider.leg, None
        paid = rider is self.payer
        if ending.gone and leg is not None and leg.delivered:
            # Many clients leave at the event that ends the answer.
            ending.status, ending.reason, ending.gone = 200, Reason.UPSTREAM, False
        last = self._left(rider, hands_over=self.broadcast is not None and not self.broadcast.over)
        if last or (paid and self.payer is None):
            self._drop(ending)
        if paid and self.payer is None:
            self._pay(rider)
        elif not paid and self.cost > 0 and not self.found:
            rider.context.saved_nano = self.cost

    def leave(self, rider: Rider) -> None:
        """He needs nothing more of it."""
        if self._left(rider):
            self.closed()

    def give_up(self, rider: Rider) -> None:
        """There is no answer for him. Who has paid for that knows it."""
        if rider is self.payer:
            self.payer = None
            self._pay(rider)
        if rider in self.riders:
            self.riders.remove(rider)
        if not self.riders:
            self.failure = None

    def _left(self, rider: Rider, *, hands_over: bool = True) -> bool:
        """Whether nobody is left. hands_over: the next one pays for what is still to come."""
        if rider in self.riders:
            self.riders.remove(rider)
        if rider is self.payer:
            self.payer = self.riders[0] if self.riders and hands_over else None
            if self.payer is not None:
                rider.context.usage = Usage()
        return not self.riders

    def _drop(self, ending: Ending) -> None:
        """Nobody needs the upstream's answer any more."""
        self.closed()
        broadcast, self.broadcast = self.broadcast, None
        if broadcast is not None:
            broadcast.close()
        reply, self.reply = self.reply, None
        if reply is not None and reply.source is not None:
            reply.source.close()
        self.settle(ending)
        self.failure = None

    def settle(self, ending: Ending) -> None:
        """What the upstream's Reply has due, once."""
        ends, self.ends = self.ends, []
        finish(ends, ending)

    def _pay(self, rider: Rider) -> None:
        own, made = rider.context, self.context
        if own is made:
            return
        for name in _COPIED:
            setattr(own, name, getattr(made, name))
        own.cached = ""
        own.saved_nano = 0
