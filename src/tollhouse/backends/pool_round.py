"""One round of asking a model's targets: whom it may ask, what it has come to, and what the caller is told of it.

Rule: what several targets have used is counted beside what the one used that answered, once, whoever that is.
"""

from functools import partial

from tollhouse.backends.balance import Balance, Member, Weighted, legible
from tollhouse.backends.hedge import share, shared
from tollhouse.core.call import Context, Share
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending
from tollhouse.core.reply import Reply

__all__ = ["FAILURE", "Lane", "Round", "Verdict", "attempts", "spend", "tell"]

FAILURE = "failure"
"""What every target's failure is called where a fallback says what it is for."""


class Lane:
    """The members that speak one operation."""

    __slots__ = ("alone", "balance", "conditional", "fallback", "members", "quick", "weight")

    def __init__(self, members: tuple[Member, ...], fallback: tuple[Member, ...], balance: Balance) -> None:
        self.members = members
        self.fallback = fallback
        self.balance = balance
        self.conditional = any(m.when is not None for m in members)
        self.quick = not self.conditional and isinstance(balance, Weighted)
        # Where there is nobody else, health decides nothing.
        is_alone = len(members) == 1 and not fallback and not self.conditional
        self.alone = members[0].handle if is_alone else None
        self.weight = sum(m.weight for m in members)

    @property
    def falls_back(self) -> bool:
        """Whether somebody is asked when every target has failed."""
        return any(FAILURE in m.on for m in self.fallback)


class Round:
    """What asking has come to so far. To be forgotten at its end: a Failure refers to the frames it went through, and
    they to this.

    tried: not to be tried again. asked: one of them has been asked. failure, unsaid, refused: what came of the last one
    that failed, whose API could not say it, and of the first that refused it. wants: what a fallback must be for. why:
    the last one's cause, until the next one is asked. spent: what those used that withheld their answers, or took too
    long for them.
    """

    __slots__ = ("asked", "failure", "refused", "spent", "tried", "unsaid", "wants", "why")

    def __init__(self) -> None:
        self.tried: list[Member] = []
        self.spent: list[Share] = []
        self.asked = False
        self.failure: Failure | None = None
        self.unsaid: Failure | None = None
        self.refused: Reply | None = None
        self.wants = FAILURE
        self.why = ""

    def end(self) -> Failure | None:
        """The Failure that the caller gets, once."""
        found = self.unsaid if self.failure is None else self.failure
        self.failure = self.unsaid = None
        return found

    def keep(self, context: Context) -> None:
        """What the target that was asked last has used comes beside what others will."""
        if context.usage is not None:
            self.spent.append(share(context))
            context.usage = None

    def settle(self, context: Context) -> None:
        """Nobody has answered: what was used is all there is."""
        for one in self.spent:
            shared(context, one)
        self.spent.clear()

    def forget(self) -> None:
        self.failure = self.unsaid = self.refused = None


class Verdict:
    """Tells a member how the stream it began has ended."""

    __slots__ = ("_clock", "_member")

    def __init__(self, member: Member, clock: Clock) -> None:
        self._member = member
        self._clock = clock

    def settle(self, ending: Ending) -> None:
        failure = ending.failure
        health = self._member.health
        if failure is not None and failure.reason is Reason.UPSTREAM_FAILURE:
            self._member.failed(failure, self._clock.now)
        elif failure is None and not ending.gone:
            health.succeeded()
        else:
            health.left(self._clock.now)


def spend(context: Context, it: Round, reply: Reply) -> None:
    """What others have used comes beside what the Reply's own target does."""
    for one in it.spent:
        if reply.source is None:
            shared(context, one)
        else:
            reply.ends.append(partial(shared, context, one))
    it.spent.clear()


def attempts(context: Context) -> tuple[bytes, bytes]:
    """The header that names the targets that were asked."""
    return b"x-tollhouse-attempts", legible(context.tried)[:2048]


def tell(context: Context, reply: Reply) -> None:
    """Name the targets that were asked, if there were several."""
    if "," in context.tried:
        reply.headers.append(attempts(context))
