"""Allowances in this process's memory: what `store.allowances` says, for one worker, lost when it ends.

Rule: nothing here suspends, and whatever is refused was refused before anything was written. Tables have a bound:
beyond it nobody new is admitted, since what is held or spent must not be pushed out, and those who are there go on.
What was spent and cannot be kept is never taken for nothing: its window has to be filled from the ledger then.
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
    MOST_UNITS,
    Draw,
    Opening,
    Posting,
    must_be_amounts,
    must_live,
    sound,
)
from tollhouse.store.base import OPEN, REFUSED, WINDOW, Charge, Verdict, unavailable
from tollhouse.store.memory_accounts import Account, Accounts, Table

__all__ = ["MemoryAllowances"]

log = logging.getLogger("tollhouse.store")

_BACK = 5.0  # seconds that a clock may be set back before a process that has seen no more of it is wrong
_SWEPT = 512  # accounts looked at, and holds ended, in one turn of the clock
_ENDED = 16  # holds ended by one admission
_STALE = 10.0  # seconds in which who began to fill a field is expected to have done it
_DEAD = 600.0  # seconds after which it never will

Take = Callable[[Sequence[Charge]], Verdict]
Grip = tuple[Account | None, int, int]
"""What a hold has of a field: its account (None for one that is only held), the start of the window, the amount."""


class _Hold:
    """at: unix time of the admission. until: by the clock. grips: by field."""

    __slots__ = ("at", "grips", "until")

    def __init__(self, at: float, until: float, grips: dict[str, Grip]) -> None:
        self.at = at
        self.until = until
        self.grips = grips


class _Filling:
    """A field that is being filled. since: by the clock. before: what was spent when it began, None for a new field.
    added: posted since, to a new field. allowance, key: as who asked has them, so that there is one string of each."""

    __slots__ = ("added", "allowance", "before", "key", "since", "token")

    def __init__(self, draw: Draw, token: str, since: float, before: int | None) -> None:
        self.allowance = draw.allowance
        self.key = draw.key
        self.token = token
        self.since = since
        self.before = before
        self.added = 0


class MemoryAllowances:
    """A `store.base.Allowances`, and the rest of what a Counter does with draws.

    take: takes all of some charges or none. wall: unix time. limit: accounts, and holds, that there may be. room: bytes
    that accounts may take.
    """

    __slots__ = (
        "_all", "_busy", "_clock", "_ends", "_filling", "_holds", "_is_begun", "_limit", "_number", "_positions",
        "_tables", "_take", "_token", "_wall", "refused",
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        take: Take,
        wall: Callable[[], float] = time,
        limit: int = 1_000_000,
        room: int = 256 << 20,
    ) -> None:
        self._clock = clock
        self._take = take
        self._wall = wall
        self._limit = limit
        self._all = Accounts(limit, room)
        self._tables = self._all.tables
        self._busy: dict[str, int] = {}  # what is held of fields that are only ever held
        self._filling: dict[str, _Filling] = {}  # the one that began first stands first
        self._holds: dict[str, _Hold] = {}
        self._ends: list[tuple[float, str]] = []  # a heap: when a hold ends, unless it was renewed
        self._positions: dict[str, int] = {}
        self._is_begun = False  # something was opened: from then on each journal counts from its position
        self._token = os.urandom(8).hex()
        self._number = 0
        self.refused = 0

    def __len__(self) -> int:
        """Accounts, fields that are held or being filled, and holds."""
        return self.accounts + len(self._busy) + len(self._filling) + len(self._holds)

    @property
    def accounts(self) -> int:
        return self._all.count

    @property
    def size(self) -> int:
        return self._all.size

    def peek(self, field: str) -> tuple[int | None, int]:
        """What is spent, None where the field is not filled, and held."""
        allowance, key, start = _parts(field)
        account = self._all.find(allowance, key)
        if account is None:
            return None, self._busy.get(field, 0)
        return account.of(start), (account.held or {}).get(start, 0) + self._busy.get(field, 0)

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
        ends = self._ends
        if ends and ends[0][0] <= clock:
            self._end_holds(clock, _ENDED)
        tables = self._tables
        grips: dict[str, Grip] = {}
        used: list[int] = []
        refused = -1
        for n, draw in enumerate(draws):
            draw.check()
            start, end = draw.window
            if end and not start <= at < end:
                return Verdict(-1, 0.0, [], WINDOW, at, n)
            field = draw.field
            amount = draw.amount or 1
            account = None
            total: int | None
            if draw.kept:
                table = tables.get(draw.allowance)
                account = None if table is None else table.accounts.get(draw.key)
                if account is not None and account.start == start and not draw.earlier:
                    total = account.spent
                    held = account.held
                    if held is not None:
                        total += held.get(start, 0)
                else:
                    total = self._total(table, account, draw)
                    if total is None:
                        return Verdict(-1, 0.0, [], OPEN, at, n)
            else:
                total = self._busy.get(field, 0)
            used.append(total)
            if draw.limit is not None and total + amount > draw.limit and refused < 0:
                refused = n
            grips[field] = (account, start, amount)
        if len(grips) < len(draws):
            raise ValueError("two draws of one admission are on the same allowance and key")
        if refused >= 0:
            end = draws[refused].window.end
            return Verdict(-1, end - at if end else inf, [], REFUSED, at, refused, used)
        if len(self._holds) >= self._limit or self._all.have_no_room(draws):
            raise self._no_room()
        behind = []
        if charges:
            verdict = self._take(charges)
            if verdict.refused >= 0:
                verdict.at, verdict.used = at, used
                return verdict
            behind = verdict.behind
        n = 0
        for field, (account, start, amount) in grips.items():
            draw = draws[n]
            used[n] += amount
            n += 1
            if not draw.kept:
                self._busy[field] = self._busy.get(field, 0) + amount
                continue
            if account is None or account.start != start:
                account = self._all.drawn(draw)
                grips[field] = (account, start, amount)
            account.hold(start, amount)
        self._hold(id, at, clock + lives, grips)
        return Verdict(-1, 0.0, behind, at=at, used=used)

    def top_up(self, id: str, draws: Sequence[Draw], lives: float = 60.0) -> Verdict:
        must_live(lives)
        at = self._wall()
        clock = self._clock.now
        self._end_holds(clock, _ENDED)
        hold = self._holds.get(id)
        grips: dict[str, Grip] = {} if hold is None else hold.grips
        more: list[tuple[str, Draw, int]] = []
        used: list[int] = []
        for n, draw in enumerate(draws):
            draw.check()
            field = draw.field
            if draw.kept and not self._is_known(draw):
                if draw.window.end > at or not draw.window.end:
                    return Verdict(-1, 0.0, [], OPEN, at, n)
                used.append(0)  # the window is over and forgotten
                continue
            total = self._used(draw)
            grip = grips.get(field)
            extra = (draw.amount or 1) - (0 if grip is None else grip[2])
            used.append(total)
            if extra <= 0:
                continue
            if draw.limit is not None and total + extra > draw.limit:
                end = draw.window.end
                used += [self._used(other) for other in draws[n + 1 :]]
                return Verdict(-1, max(end - at, 0.0) if end else inf, [], REFUSED, at, n, used)
            more.append((field, draw, extra))
            used[n] += extra
        if hold is None:
            if len(self._holds) >= self._limit:
                raise self._no_room()
            self._hold(id, at, clock + lives, grips)
        else:
            at = hold.at
            hold.until = max(hold.until, clock + lives)
        for field, draw, extra in more:
            start = draw.window.start
            grip = grips.get(field)
            account = None
            if draw.kept:
                account = self._all.drawn(draw)
                account.hold(start, extra)
            else:
                self._busy[field] = self._busy.get(field, 0) + extra
            grips[field] = (account, start, extra if grip is None else grip[2] + extra)
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
        if hold is not None:
            self._release(hold.grips)

    # ---- what was spent

    def post(self, journal: str, seq: int, id: str, amounts: Sequence[tuple[str, int]]) -> None:
        if seq <= self._positions.get(journal, 0):
            return
        self._positions[journal] = seq
        if not id and not amounts:
            return  # as nearly every record where nobody has a budget
        hold = self._holds.get(id)
        if hold is not None:
            grips = hold.grips
            for field, amount in amounts:
                if field not in grips or type(amount) is not int or not -MOST_UNITS <= amount <= MOST_UNITS:
                    break
            else:
                self._apply(id, amounts)
                return
        self._apply(id, sound(Posting(seq, id, tuple(amounts))).amounts)

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
        openings: list[Opening] = []
        table = self._tables.get(draw.allowance)
        account = None if table is None else table.accounts.get(draw.key)
        upto = dict(self._positions)
        now = self._clock.now
        for field, window in draw.slots:
            spent = None if account is None else account.of(window.start)
            # One that begins at 0 is drawn on, and posted to, before it is there: there is nothing to be filled.
            if (not again) if spent is not None else self._begins_at_0(table, window.start):
                continue
            filling = self._filling.get(field)
            if filling is not None and now - filling.since < _STALE:
                continue
            if len(self._filling) >= self._limit or (account is None and self._all.has_no_room(draw.key)):
                raise self._no_room()
            if table is None:
                table = self._all.table(draw.allowance)
            table.see(draw)
            self._number += 1
            token = f"{self._token}{self._number}"
            self._filling.pop(field, None)
            self._filling[field] = _Filling(draw, token, now, spent)
            openings.append(Opening(field, window, upto, token))
        return openings

    def seed(self, opening: Opening, amount: int) -> int | None:
        must_be_amounts(((opening.field, amount),))
        filling = self._filling.get(opening.field)
        if filling is None or filling.token != opening.token:
            return None
        del self._filling[opening.field]
        start = opening.window.start
        account = self._all.find(filling.allowance, filling.key)
        if filling.before is None:
            if account is None:
                account = self._all.new(filling.allowance, filling.key)
            self._all.fill(account, opening.window, amount + filling.added)
            return 0
        if account is None or account.of(start) is None:
            return None  # its window is over, and forgotten
        self._all.add(account, start, amount - filling.before)
        return filling.before - amount

    def know(self, allowances: Mapping[str, float]) -> None:
        self._all.know(allowances, self._wall() + _BACK)

    def turn(self) -> None:
        """Of the clock: forget what has lapsed, some of it."""
        now = self._clock.now
        self._end_holds(now, _SWEPT)
        if len(self._ends) > 2 * len(self._holds) + 1024:  # most of them have ended by themselves
            self._ends = [(hold.until, id) for id, hold in self._holds.items()]
            heapify(self._ends)
        for field in [field for field, one in islice(self._filling.items(), _SWEPT) if now - one.since > _DEAD]:
            del self._filling[field]
        self._all.sweep(_SWEPT, self._wall())

    # ---- within

    def _no_room(self) -> Exception:
        self.refused += 1
        return unavailable("the allowances in memory are full", reached=False)

    def _hold(self, id: str, at: float, until: float, grips: dict[str, Grip]) -> None:
        self._holds[id] = _Hold(at, until, grips)
        heappush(self._ends, (until, id))

    def _release(self, grips: dict[str, Grip]) -> None:
        for field, (account, start, amount) in grips.items():
            if account is not None:
                account.release(start, amount)
                continue
            left = self._busy.get(field, 0) - amount
            if left > 0:
                self._busy[field] = left
            else:
                self._busy.pop(field, None)

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

    def _begins_at_0(self, table: Table | None, start: int) -> bool:
        """Whether a field that is not there has had nothing spent from it."""
        return table is not None and self._is_begun and table.since <= start

    def _is_known(self, draw: Draw) -> bool:
        """Whether it is known what is spent in the draw's own window."""
        table = self._tables.get(draw.allowance)
        account = None if table is None else table.accounts.get(draw.key)
        start = draw.window.start
        return (account is not None and account.of(start) is not None) or self._begins_at_0(table, start)

    def _total(self, table: Table | None, account: Account | None, draw: Draw) -> int | None:
        """Spent and held in the draw's windows; None where one of them is not filled."""
        start, end = draw.window
        first = draw.earlier[0] if draw.earlier else start
        if account is None:
            return 0 if self._begins_at_0(table, first) else None
        if not (end and account.low <= first and end <= account.high):
            # All behind what is filled begin at 0 if the first of them does.
            behind = account.high if account.low <= first <= account.high else first
            if not self._begins_at_0(table, behind):
                for each in (*draw.earlier, start):
                    if account.of(each) is None and not self._begins_at_0(table, each):
                        return None
            if end:
                account.know(first, end)
        return account.total(first, start)

    def _used(self, draw: Draw) -> int:
        if not draw.kept:
            return self._busy.get(draw.field, 0)
        account = self._all.find(draw.allowance, draw.key)
        start = draw.window.start
        return 0 if account is None else account.total(draw.earlier[0] if draw.earlier else start, start)

    def _apply(self, id: str, amounts: Sequence[tuple[str, int]]) -> None:
        hold = self._holds.pop(id, None) if id else None
        grips: dict[str, Grip] = {}
        if hold is not None:
            grips = hold.grips
            self._release(grips)
        for field, amount in amounts:
            grip = grips.get(field)
            if grip is not None and grip[0] is not None:
                self._all.add(grip[0], grip[1], amount)
            else:
                self._apply_to(field, amount)

    def _apply_to(self, field: str, amount: int) -> None:
        """What came to a field that is not held."""
        allowance, key, start = _parts(field)
        table = self._tables.get(allowance)
        account = None if table is None else table.accounts.get(key)
        if account is not None and account.of(start) is not None:
            self._all.add(account, start, amount)
            return
        filling = self._filling.get(field)
        if filling is not None:
            filling.added += amount
        elif table is not None and self._begins_at_0(table, start):
            if table.see_posted(start) <= self._wall() or (account is None and self._all.has_no_room(key)):
                table.lose(start)
                return
            if account is None:
                account = self._all.new(allowance, key)
            self._all.add(account, start, amount)


def _parts(field: str) -> tuple[str, str, int]:
    """The allowance of a field, the key, and the start of its window."""
    bar, last = field.index("|"), field.rindex("|")
    return field[:bar], field[bar + 1 : last], int(field[last + 1 :])
