"""Holds: what calls that are under way hold of allowances, and how that ends.

Rule: a hold ends once. With its call's record it is posted, in the order of the journal, so that what is spent is what
the ledger says; without one it is given back. Whoever dies holding something loses it by time: a hold lives a little
while, and is renewed as long as its call lasts. What a stream comes to is topped up in steps before it is reached; one
that gets no more is cut.

What a provider tells that cannot be is not believed: what was held is charged, and what it told is kept beside that.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from tollhouse.core.call import Context, Usage
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.ledger.records import MOST_NANO, MOST_RAW
from tollhouse.store.base import ADMITTED, REFUSED, Counter, Draw

__all__ = ["DOUBT", "LIVES", "Drawer", "Growing", "Held", "Holds", "charged", "disbelieve", "doubtful", "passed_on"]

log = logging.getLogger("tollhouse.policies")

LIVES = 120.0
"""Seconds that a hold lives unless it is renewed."""

DOUBT = 10
"""Times what was the most that nobody uses."""

_LOOK = 10.0  # seconds between two looks at what is to be renewed
_RENEW = 64  # asked for at once


Intend = Callable[[Usage, int, tuple[tuple[str, int], ...]], None]
"""As of `core.call.Hold.begin`."""

_encode = msgspec.json.Encoder().encode


def doubtful(usage: Usage, most: int) -> bool:
    """Whether nobody can have used that, where so many tokens were the most."""
    return usage.total > DOUBT * most or min(usage.input, usage.output) < 0


def passed_on(context: Context, bytes_out: int) -> int:
    """Tokens of answer that its caller has got at least, about: what frames an event is some 200 bytes."""
    reading = context.reading
    if reading is not None:
        return int(reading.text) // 4
    return bytes_out // 240 if context.stream else max(bytes_out - 500, 0) // 5


def charged(usage: Usage, most: int, likely: tuple[int, int], passed: int) -> Usage:
    """What is charged in the place of what cannot be. likely: tokens of prompt and answer. passed: as of `passed_on`; a
    server may have answered at more length than it was allowed, and have told the truth."""
    prompt, answer = likely
    answer = max(answer, min(usage.output, passed))
    log.warning("a provider tells %d tokens where %d were the most: %d are charged", usage.total, most, prompt + answer)
    return Usage(prompt, answer, estimated=True, tier=usage.tier)


def disbelieve(context: Context, instead: Usage) -> None:
    """Put that in the place of what the provider told, which is kept beside it."""
    if context.usage is not None and not context.raw_usage:
        context.raw_usage = _encode(context.usage).decode()[:MOST_RAW]
    context.usage, context.shares, context.cost_nano = instead, (), None


class Drawer(Protocol):
    """An allowance that calls draw on."""

    def spent(self, usage: Usage | None, cost_nano: int | None, counts: bool) -> int:
        """What a call came to, in its units. counts: it is one that is counted as a call."""
        ...

    def cut(self, draw: Draw) -> Failure:
        """Why a stream that gets no more ends."""
        ...


class Held:
    """One call's hold: a `core.call.Hold`. most: tokens that its prompt and its answer can have, None where none is
    known. likely: those that are charged where a provider tells what cannot be."""

    __slots__ = (
        "_among",
        "_begun",
        "_counter",
        "_drawers",
        "_draws",
        "_is_posted",
        "_posted",
        "at",
        "id",
        "likely",
        "most",
        "nano",
        "over",
        "until",
    )

    def __init__(
        self, among: "Holds", counter: Counter, id: str, draws: Sequence[Draw], drawers: Sequence[Drawer], until: float
    ) -> None:
        self._among = among
        self._counter = counter
        self._draws = draws
        self._drawers = drawers
        self._posted: tuple[tuple[str, int], ...] = ()
        self._is_posted = False
        self._begun: Intend | None = None
        self.id = id
        self.at = 0
        self.nano = 0
        self.most: tuple[int, int] | None = None
        self.likely = (0, 0)
        self.until = until
        self.over = False

    def draws(self, usage: Usage | None, cost_nano: int | None, counts: bool) -> tuple[tuple[str, int], ...]:
        self._posted = self._spent(usage, cost_nano, counts)
        return self._posted

    def _spent(self, usage: Usage | None, cost_nano: int | None, counts: bool) -> tuple[tuple[str, int], ...]:
        return tuple(
            [
                (draw.field, drawer.spent(usage, cost_nano, counts))
                for draw, drawer in zip(self._draws, self._drawers, strict=True)
                if draw.kept
            ]
        )

    @property
    def pending(self) -> bool:
        # What goes on when its call has been recorded (an answer that others wait for) is not this one's to pay.
        return (
            self._begun is None
            and not self.over
            and any(
                draw.limit is not None and draw.amount and draw.allowance.startswith("usd:") for draw in self._draws
            )
        )

    @property
    def begun(self) -> bool:
        return self._begun is not None

    def begin(self, intend: "Intend") -> None:
        self._intend(intend)
        self._begun = intend

    def _intend(self, intend: "Intend") -> None:
        usage = Usage(*self.likely, estimated=True)
        nano = min(self.nano, MOST_NANO)
        intend(usage, nano, self._spent(usage, nano, True))

    def believed(self, usage: Usage, passed: int = 0) -> Usage:
        most = self.most
        if most is None or not doubtful(usage, sum(most)):
            return usage
        self._among.doubted()
        return charged(usage, sum(most), self.likely, passed)

    def post(self, journal: str, seq: int) -> None:
        # Also when nothing is held any more: a call may outlive its request, and what it came to counts all the same.
        if not self._is_posted:
            self._is_posted = True
            self._end()
            self._counter.post(journal, seq, self.id, self._posted, soon=any(not draw.kept for draw in self._draws))

    def release(self) -> None:
        if self._end():
            self._counter.void(self.id)

    def _end(self) -> bool:
        if self.over:
            return False
        self.over = True
        self._among.drop(self)
        return True

    def is_over(self) -> bool:
        """Which it may be after every wait."""
        return self.over

    def larger(self, amounts: Sequence[int | None]) -> list[Draw]:
        """Its draws with larger amounts, where they are not None."""
        return [
            draw if amount is None else msgspec.structs.replace(draw, amount=max(amount, draw.amount))
            for draw, amount in zip(self._draws, amounts, strict=True)
        ]

    def grown(self, draws: Sequence[Draw], tokens: int) -> None:
        """It holds so many tokens of answer now."""
        self._draws = draws
        self.likely = self.likely[0], max(self.likely[1], tokens)
        self.nano = max((draw.amount for draw in draws if draw.allowance.startswith("usd:")), default=0)
        if self._begun is not None and not self.over:
            try:
                self._intend(self._begun)
            except Failure as failure:  # what was written before stands
                log.warning("that a call holds more cannot be written down: %s", failure.detail)

    def refusal(self, index: int) -> Failure:
        return self._drawers[max(index, 0)].cut(self._draws[max(index, 0)])


class Growing:
    """A stream whose answer has no bound, or does not keep to it: a tap that tops its hold up. amounts: what each draw
    comes to with so many tokens of answer, None for one that does not depend on it. held: tokens that are held. most:
    that may be, -1 for no bound. context: says what reads the answer; where nobody does, its text is guessed."""

    __slots__ = ("_amounts", "_asking", "_context", "_events", "_failure", "_held", "_hold", "_holds", "_most", "_size")

    def __init__(
        self,
        holds: "Holds",
        hold: Held,
        held: int,
        most: int,
        amounts: Callable[[int], Sequence[int | None]],
        context: Context | None = None,
    ) -> None:
        self._context = context
        self._holds = holds
        self._hold = hold
        self._held = held
        self._most = most
        self._amounts = amounts
        self._events = 0
        self._size = 0
        self._asking = False
        self._failure: Failure | None = None

    def tap(self, block: bytes) -> bytes:
        """Raises Failure 429 where the hold cannot grow."""
        events = self._events = self._events + block.count(b"\n\n")  # each is a token at least
        reading = None if self._context is None else self._context.reading
        if reading is not None:
            text: int = reading.text
        else:
            self._size += len(block)
            text = self._size - 200 * events  # what frames an event is about so much
        tokens = max(events, text // 4)
        if tokens * 5 >= self._held * 4:
            if self._failure is not None:
                if tokens >= self._held:  # what is held may be used up
                    raise self._told()
            elif not self._asking and self._held != self._most:
                more = max(self._held * 2, tokens * 2)
                self._ask(more if self._most < 0 else min(more, self._most))
        return block

    def _ask(self, tokens: int) -> None:
        hold = self._hold
        if hold.over:
            return
        self._asking = True
        self._holds.top_up(hold, hold.larger(self._amounts(tokens)), self, tokens)

    def _told(self) -> Failure:
        # Never in a variable of the frame that raises it: it would refer back.
        failure, self._failure = self._failure, None
        assert failure is not None
        return failure

    def grew(self, tokens: int, failure: Failure | None) -> None:
        """What came of asking. failure: there is no more."""
        self._asking = False
        if failure is None:
            self._held = tokens
        self._failure = failure


class Holds:
    """All holds of a worker. counter: that they are in."""

    def __init__(self, counter: Counter, clock: Clock, doubted: Callable[[], None] = lambda: None) -> None:
        """doubted: told each time that a provider's usage is not believed."""
        self.counter = counter
        self.doubted = doubted
        self._here = counter.allowances()
        self._clock = clock
        self._held: set[Held] = set()
        self._looked = clock.now
        self._wanted: list[tuple[Held, list[Draw], Growing, int]] = []
        self._task: asyncio.Task[None] | None = None
        self._due = asyncio.Event()
        clock.every_turn(self._turn)

    def __len__(self) -> int:
        return len(self._held)

    async def close(self) -> None:
        self._clock.remove(self._turn)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))

    def add(self, id: str, draws: Sequence[Draw], drawers: Sequence[Drawer]) -> Held:
        held = Held(self, self.counter, id, draws, drawers, self._clock.now + LIVES)
        self._held.add(held)
        return held

    def drop(self, held: Held) -> None:
        self._held.discard(held)

    def top_up(self, held: Held, draws: list[Draw], growing: Growing, tokens: int) -> None:
        """Ask for more; `growing` is told what came of it, at once where the counter is in this process."""
        if self._here is None:
            self._wanted.append((held, draws, growing, tokens))
            self._wake()
            return
        try:
            verdict = self._here.top_up(held.id, draws, LIVES)
        except (Failure, ValueError) as error:
            log.warning("a hold could not grow: %s", error)
            growing.grew(tokens, None)  # what it comes to is counted all the same
            return
        if verdict.happened == ADMITTED:
            held.grown(draws, tokens)
        growing.grew(tokens, held.refusal(verdict.draw) if verdict.happened == REFUSED else None)

    def _turn(self) -> None:
        now = self._clock.now
        if now - self._looked < _LOOK:
            return
        self._looked = now
        if self._here is None:
            if any(held.until - now < LIVES / 2 for held in self._held):
                self._wake()
        elif due := self._due_now(now):
            self._here.renew(due, LIVES)

    def _due_now(self, now: float) -> list[str]:
        """The ids of holds that are to be renewed, which they are from now on."""
        due = [held for held in self._held if held.until - now < LIVES / 2]
        for held in due:
            held.until = now + LIVES
        return [held.id for held in due]

    def _wake(self) -> None:
        self._due.set()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tend())

    async def _tend(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            wanted, self._wanted = self._wanted, []
            try:
                for held, draws, growing, tokens in wanted:
                    await self._grow(held, draws, growing, tokens)
                await self._renew()
            except Failure as failure:
                log.warning("holds could not be renewed: %s", failure.detail)
            except Exception:  # a task's root: the next turn has another try
                log.exception("holds could not be tended")

    async def _grow(self, held: Held, draws: list[Draw], growing: Growing, tokens: int) -> None:
        if held.is_over():
            return
        try:
            verdict = await self.counter.top_up(held.id, draws, LIVES)
        except (Failure, ValueError) as error:
            log.warning("a hold could not grow: %s", error)
            growing.grew(tokens, None)
            return
        if held.is_over():
            self.counter.void(held.id)  # it was made again, for nobody
            return
        if verdict.happened == ADMITTED:
            held.grown(draws, tokens)
        growing.grew(tokens, held.refusal(verdict.draw) if verdict.happened == REFUSED else None)

    async def _renew(self) -> None:
        due = self._due_now(self._clock.now)
        for at in range(0, len(due), _RENEW):
            await self.counter.renew(due[at : at + _RENEW], LIVES)
