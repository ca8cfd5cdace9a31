"""Allowances in this process's memory: what `store.allowances` says, for one worker, lost when it ends.

Rule: nothing here suspends, and whatever is refused was refused before anything was written. Tables have a bound:
beyond it nothing new is admitted, since what is held or spent must not be pushed out.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf
from time import time

from tollhouse.core.clock import Clock
from tollhouse.store.allowances import (
    GRACE,
    Draw,
    Opening,
    Posting,
    kept_until,
    must_be_amounts,
    must_live,
    parts_of,
    sound,
)
from tollhouse.store.base import OPEN, REFUSED, WINDOW, Charge, Verdict, unavailable

__all__ = ["MemoryAllowances"]

log = logging.getLogger("tollhouse.store")

_BACK = 5.0  # seconds that a clock may be set back before a process that has seen no more of it is wrong
_SWEPT = 512  # fields looked at, and holds ended, in one turn of the clock
_ENDED = 16  # holds ended by one admission
_STALE = 10.0  # seconds in which who began to fill a field is expected to have done it

Take = Callable[[Sequence[Charge]], Verdict]


class _Hold:
    """at: unix time of the admission. until: by the clock. amounts: of each field."""

    __slots__ = ("amounts", "at", "until")

    def __init__(self, at: float, until: float, amounts: dict[str, int]) -> None:
        self.at = at
        self.until = until
        self.amounts = amounts


class _Filling:
    """A field that is being filled. since: by the clock. before: what was spent when it began, None for a new field.
    added: posted since, to a new field."""

    __slots__ = ("added", "before", "since", "token")

    def __init__(self, token: str, since: float, before: int | None) -> None:
        self.token = token
        self.since = since
        self.before = before
        self.added = 0


class MemoryAllowances:
    """A `store.base.Allowances`, and the rest of what a Counter does with draws.

    take: takes all of some charges or none. wall: unix time. limit: fields, and holds, that there may be.
    """

    __slots__ = (
        "_clock", "_due", "_ends", "_filling", "_forgotten", "_held", "_holds", "_is_begun", "_known", "_limit",
        "_number", "_positions", "_spent", "_take", "_token", "_until", "_wall",
    )  # fmt: skip

    def __init__(self, clock: Clock, take: Take, wall: Callable[[], float] = time, limit: int = 500_000) -> None:
        self._clock = clock
        self._take = take
        self._wall = wall
        self._limit = limit
        self._spent: dict[str, int] = {}
        self._held: dict[str, int] = {}
        self._until: dict[str, float] = {}  # unix time at which a field is forgotten
        self._due: list[str] = []  # of them, still to be looked at
        self._filling: dict[str, _Filling] = {}
        self._holds: dict[str, _Hold] = {}
        self._ends: list[tuple[float, str]] = []  # a heap: when a hold ends, unless it was renewed
        self._known: dict[str, tuple[float, float]] = {}  # since when, and how long fields are kept
        self._positions: dict[str, int] = {}
        self._is_begun = False  # something was opened: from then on each journal counts from its position
        self._forgotten = 0.0  # the latest time at which fields were: a clock may be set back
        self._token = os.urandom(8).hex()
        self._number = 0

    def __len__(self) -> int:
        """Fields and holds remembered."""
        return len(self._spent) + len(self._held) + len(self._filling) + len(self._holds)

    # ---- what decides

    def admit(self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0) -> Verdict:
        if not draws:
            return self._take(charges)
        hold = self._holds.get(id)
        if hold is not None:
            behind = self._take([Charge(charge.rate, charge.key, 0) for charge in charges]).behind
            return Verdict(-1, 0.0, behind, at=hold.at, used=[self._used(draw) for draw in draws])
        must_live(lives)
        at = self._wall()
        clock = self._clock.now
        self._end_holds(clock, _ENDED)
        spent, held = self._spent, self._held
        amounts: dict[str, int] = {}
        used: list[int] = []
        refused = -1
        for n, draw in enumerate(draws):
            draw.check()
            start, end = draw.window
            if end and not start <= at < end:
                return Verdict(-1, 0.0, [], WINDOW, at, n)
            field = draw.field
            amount = draw.amount or 1
            total = spent.get(field)
            if total is None:
                if draw.kept and not self._begins_at_0(draw.allowance, start):
                    return Verdict(-1, 0.0, [], OPEN, at, n)
                total = 0
            total += held.get(field, 0)
            if draw.earlier:
                before = self._before(draw)
                if before is None:
                    return Verdict(-1, 0.0, [], OPEN, at, n)
                total += before
            used.append(total)
            if draw.limit is not None and total + amount > draw.limit and refused < 0:
                refused = n
            amounts[field] = amount
        if len(amounts) < len(draws):
            raise ValueError("two draws of one admission are on the same allowance and key")
        if refused >= 0:
            end = draws[refused].window.end
            return Verdict(-1, end - at if end else inf, [], REFUSED, at, refused, used)
        if len(self._holds) >= self._limit or (
            len(spent) >= self._limit and any(draw.kept and draw.field not in spent for draw in draws)
        ):
            raise unavailable("the allowances in memory are full", reached=False)
        behind = []
        if charges:
            verdict = self._take(charges)
            if verdict.refused >= 0:
                verdict.at, verdict.used = at, used
                return verdict
            behind = verdict.behind
        for n, draw in enumerate(draws):
            field = draw.field
            amount = amounts[field]
            if draw.kept and field not in spent:
                spent[field] = 0
                self._until[field] = kept_until(draw)
            held[field] = held.get(field, 0) + amount
            used[n] += amount
        self._hold(id, at, clock + lives, amounts)
        return Verdict(-1, 0.0, behind, at=at, used=used)

    def top_up(self, id: str, draws: Sequence[Draw], lives: float = 60.0) -> Verdict:
        must_live(lives)
        at = self._wall()
        clock = self._clock.now
        self._end_holds(clock, _ENDED)
        hold = self._holds.get(id)
        amounts = {} if hold is None else hold.amounts
        more: dict[str, int] = {}
        used: list[int] = []
        for n, draw in enumerate(draws):
            draw.check()
            field = draw.field
            if draw.kept and field not in self._spent and not self._begins_at_0(draw.allowance, draw.window.start):
                if draw.window.end > at or not draw.window.end:
                    return Verdict(-1, 0.0, [], OPEN, at, n)
                used.append(0)  # the window is over and forgotten
                continue
            total = self._used(draw)
            extra = (draw.amount or 1) - amounts.get(field, 0)
            used.append(total)
            if extra <= 0:
                continue
            if draw.limit is not None and total + extra > draw.limit:
                end = draw.window.end
                used += [self._used(other) for other in draws[n + 1 :]]
                return Verdict(-1, max(end - at, 0.0) if end else inf, [], REFUSED, at, n, used)
            more[field] = extra
            used[n] += extra
        if hold is None:
            if len(self._holds) >= self._limit:
                raise unavailable("the allowances in memory are full", reached=False)
            self._hold(id, at, clock + lives, amounts)
        else:
            at = hold.at
            hold.until = max(hold.until, clock + lives)
        for draw in draws:
            field = draw.field
            if field in more:
                if draw.kept and field not in self._spent:
                    self._spent[field] = 0
                    self._until[field] = kept_until(draw)
                self._held[field] = self._held.get(field, 0) + more[field]
                amounts[field] = amounts.get(field, 0) + more[field]
        return Verdict(-1, 0.0, [], at=at, used=used)

    def renew(self, ids: Sequence[str], lives: float = 60.0) -> int:
        must_live(lives)
        until = self._clock.now + lives
        there = 0
        for id in ids:
            hold = self._holds.get(id)
            if hold is not None:
                hold.until = max(hold.until, until)
                there += 1
        return there

    def void(self, id: str) -> None:
        hold = self._holds.pop(id, None)
        if hold is None:
            return
        held = self._held
        for field, amount in hold.amounts.items():
            left = held.get(field, 0) - amount
            if left > 0:
                held[field] = left
            else:
                held.pop(field, None)

    # ---- what was spent

    def post(self, journal: str, seq: int, id: str, amounts: Sequence[tuple[str, int]]) -> None:
        if seq > self._positions.get(journal, 0):
            self._positions[journal] = seq
            posting = sound(Posting(seq, id, tuple(amounts)))
            self._apply(id, posting.amounts)

    def posted(self, journal: str, previous: int, last: int, postings: Sequence[Posting]) -> int:
        for posting in postings:
            must_be_amounts(posting.amounts)
        position = self._positions.get(journal)
        if position is None:
            position = self._positions[journal] = 0 if self._is_begun else previous
        if position < previous:
            return position
        for posting in postings:
            if posting.seq > position:
                self._apply(posting.id, posting.amounts)
        self._positions[journal] = position = max(position, last)
        return position

    def journals(self) -> dict[str, int] | None:
        return dict(self._positions) if self._is_begun else None

    def opening(self, draw: Draw, positions: Mapping[str, int], again: bool) -> list[Opening]:
        draw.check()
        if not draw.kept:
            return []
        if not self._is_begun:
            self._is_begun = True
            for journal, seq in positions.items():
                self._positions.setdefault(journal, seq)
        openings = []
        for field, window in draw.slots:
            spent = self._spent.get(field)
            # One that begins at 0 is drawn on, and posted to, before it is there: there is nothing to be filled.
            if (not again) if spent is not None else self._begins_at_0(draw.allowance, window.start):
                continue
            filling = self._filling.get(field)
            if filling is not None and self._clock.now - filling.since < _STALE:
                continue
            if len(self._filling) >= self._limit:
                raise unavailable("the allowances in memory are full", reached=False)
            self._number += 1
            token = f"{self._token}{self._number}"
            self._filling[field] = _Filling(token, self._clock.now, spent)
            self._until[field] = kept_until(draw)
            openings.append(Opening(field, window, dict(self._positions), token))
        return openings

    def seed(self, opening: Opening, amount: int) -> int | None:
        must_be_amounts(((opening.field, amount),))
        filling = self._filling.get(opening.field)
        if filling is None or filling.token != opening.token:
            return None
        del self._filling[opening.field]
        if filling.before is None:
            self._spent[opening.field] = amount + filling.added
            return 0
        self._spent[opening.field] += amount - filling.before
        return filling.before - amount

    def know(self, allowances: Mapping[str, float]) -> None:
        now = self._wall() + _BACK
        known = self._known
        self._known = {name: (known[name][0] if name in known else now, keeps) for name, keeps in allowances.items()}

    def turn(self) -> None:
        """Of the clock: forget what has lapsed, some of it."""
        self._end_holds(self._clock.now, _SWEPT)
        if len(self._ends) > 2 * len(self._holds) + 1024:  # most of them have ended by themselves
            self._ends = [(hold.until, id) for id, hold in self._holds.items()]
            heapify(self._ends)
        if not self._due:
            self._due = list(self._until)
        part, self._due[-_SWEPT:] = self._due[-_SWEPT:], []
        now = self._wall()
        self._forgotten = max(now, self._forgotten)
        for field in part:
            if self._until.get(field, now) < now:
                del self._until[field]
                self._spent.pop(field, None)
                self._filling.pop(field, None)

    # ---- within

    def _hold(self, id: str, at: float, until: float, amounts: dict[str, int]) -> None:
        self._holds[id] = _Hold(at, until, amounts)
        heappush(self._ends, (until, id))

    def _end_holds(self, now: float, most: int) -> None:
        ends = self._ends
        while ends and ends[0][0] <= now and most:
            most -= 1
            _, id = heappop(ends)
            hold = self._holds.get(id)
            if hold is None:
                continue
            if hold.until <= now:
                self.void(id)
            else:
                heappush(ends, (hold.until, id))

    def _begins_at_0(self, allowance: str, start: int) -> bool:
        """Whether a field that is not there has had nothing spent from it."""
        known = self._known.get(allowance)
        if known is None or not self._is_begun:
            return False
        since, keeps = known
        return since <= start and (not keeps or start + keeps + GRACE > self._forgotten)

    def _before(self, draw: Draw) -> int | None:
        """Spent and held in the earlier slots of a rolling window; None where one of them is not filled."""
        total = 0
        for field, window in islice(draw.slots, len(draw.earlier)):
            spent = self._spent.get(field)
            if spent is None and not self._begins_at_0(draw.allowance, window.start):
                return None
            total += (spent or 0) + self._held.get(field, 0)
        return total

    def _used(self, draw: Draw) -> int:
        return sum(self._spent.get(field, 0) + self._held.get(field, 0) for field, _ in draw.slots)

    def _apply(self, id: str, amounts: Sequence[tuple[str, int]]) -> None:
        if id:
            self.void(id)
        for field, amount in amounts:
            if field in self._spent:
                self._spent[field] += amount
                continue
            filling = self._filling.get(field)
            if filling is not None:
                filling.added += amount
                continue
            allowance, start = parts_of(field)
            if self._begins_at_0(allowance, start) and len(self._spent) < self._limit:
                keeps = self._known[allowance][1]
                until = start + keeps + GRACE if keeps else inf
                if until > self._wall():
                    self._spent[field] = amount
                    self._until[field] = until
