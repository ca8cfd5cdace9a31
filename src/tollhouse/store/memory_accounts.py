"""Accounts: what one key has of one allowance, in memory, small.

Rule: an account is what is spent of the windows that count, and nothing else. The latest window stands in it by itself,
earlier ones that have something in a row beside it; that a stretch of time is filled, and what is not listed is 0, is
two numbers. So somebody new costs the same whether a window rolls in 25 slots or in none.

Windows are the same for all keys of an allowance: when they are over is kept once, with the allowance (`Table`).
"""

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from sys import getsizeof

import msgspec

from tollhouse.store.allowances import GRACE, Draw, Window

__all__ = ["OVER", "SLOT", "Account", "Accounts", "Table", "cost_of"]

SLOT = 64
"""Bytes that one more window of an account takes, at most: of a row, and its amount."""

OVER = 190
"""Bytes that an account takes besides its key, at most: itself, its amount and its place in a table that has just
grown."""

_NEW = 0.75  # of the room
_TABLE = 16  # accounts that it costs to look at a table at all


class Account(msgspec.Struct, gc=False):
    """start, spent: of the latest window there is something to say of; start is -1 where there is none. older: starts
    and amounts of earlier ones, in turn, rising. low, high: all windows that begin from `low` up to and without `high`
    are filled, those not listed with 0. held: by a window's start, None for nothing."""

    start: int = -1
    spent: int = 0
    older: tuple[int, ...] = ()
    low: int = 0
    high: int = 0
    held: dict[int, int] | None = None

    def of(self, start: int) -> int | None:
        """What is spent in the window that begins then; None where it is not filled."""
        if start == self.start:
            return self.spent
        older = self.older
        for n in range(0, len(older), 2):
            if older[n] == start:
                return older[n + 1]
        return 0 if self.low <= start < self.high else None

    def total(self, first: int, last: int) -> int:
        """Spent and held in all windows that begin from `first` to `last`, these two among them."""
        found = self.spent if first <= self.start <= last else 0
        older = self.older
        if older:
            if first <= older[0] and older[-2] <= last:
                found += sum(older[1::2])
            else:
                found += sum([older[n + 1] for n in range(0, len(older), 2) if first <= older[n] <= last])
        held = self.held
        if held is not None:
            for start, amount in held.items():
                if first <= start <= last:
                    found += amount
        return found

    def lists(self, start: int) -> bool:
        """Whether the window has a place of its own; one that is filled with 0 has none."""
        return start == self.start or start in self.older[::2]

    def put(self, start: int, amount: int) -> None:
        """Have the window listed, with so much."""
        latest = self.start
        if start == latest:
            self.spent = amount
        elif start > latest:
            if latest >= 0 and (self.spent or not self._says_0(latest)):
                self.older = (*self.older, latest, self.spent)
            self.start, self.spent = start, amount
        else:
            older = self.older
            at = 0
            while at < len(older) and older[at] < start:
                at += 2
            end = at + 2 if at < len(older) and older[at] == start else at
            self.older = (*older[:at], start, amount, *older[end:])

    def add(self, start: int, amount: int) -> None:
        """To a window that is filled."""
        if start == self.start:
            self.spent += amount
        else:
            self.put(start, (self.of(start) or 0) + amount)

    def fill(self, window: Window, amount: int) -> None:
        """What was spent in the window before is known now."""
        if not self._reach(window) or amount or self.of(window.start):
            self.put(window.start, amount)

    def know(self, first: int, end: int) -> None:
        """All windows from `first` up to `end` are filled: what is not listed is 0."""
        if self.low <= first <= self.high:
            self.high = max(self.high, end)
        elif first < self.low <= end:
            self.low, self.high = first, max(self.high, end)
        else:
            self.low, self.high = first, end

    def hold(self, start: int, amount: int) -> None:
        held = self.held
        if held is None:
            self.held = {start: amount}
        else:
            held[start] = held.get(start, 0) + amount

    def release(self, start: int, amount: int) -> None:
        held = self.held
        if held is None:
            return
        left = held.get(start, 0) - amount
        if left > 0:
            held[start] = left
        else:
            held.pop(start, None)
            if not held:
                self.held = None

    def forget(self, before: int) -> bool:
        """Windows that begin before that, unless something is held in them, or it is WHOLE. Whether nothing is left."""
        held = self.held
        if self.low < before:
            self.low = before
            if self.high <= before:
                self.low = self.high = 0
        if (self.older[0] if self.older else self.start) < before:
            left = [(at, n) for at, n in self._listed() if not 0 < at < before or (held is not None and at in held)]
            self.start, self.spent = left.pop() if left else (-1, 0)
            self.older = tuple([number for one in left for number in one])
        return self.start < 0 and held is None and not self.high

    def _listed(self) -> Iterator[tuple[int, int]]:
        yield from zip(self.older[::2], self.older[1::2], strict=True)
        if self.start >= 0:
            yield self.start, self.spent

    def _says_0(self, start: int) -> bool:
        """Whether a window with nothing in it need not be listed."""
        return self.low <= start < self.high and (self.held is None or start not in self.held)

    def _reach(self, window: Window) -> bool:
        """Let the stretch that is filled have this window, too: whether it has."""
        start, end = window
        if start >= end:
            return False
        if self.high <= self.low:
            self.low, self.high = start, end
        elif start == self.high:
            self.high = end
        elif end == self.low:
            self.low = start
        return self.low <= start and end <= self.high


class Table:
    """All accounts of one allowance, by key. since: windows that begin then or later have had nothing spent from them
    where an account does not say otherwise; infinite where that is not known. keeps: seconds for which a window counts
    after its start, 0.0 for ever."""

    __slots__ = ("_until", "accounts", "keeps", "since")

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.since = inf
        self.keeps = 0.0
        self._until: dict[int, tuple[float, int]] = {}  # and where the window ends, as far as that is known

    def see(self, draw: Draw) -> None:
        """These windows are drawn on: unix time until which they may count."""
        start, end = draw.window
        seen = self._until.get(start)
        if not end or (seen is not None and seen[1] == end):
            return
        first = draw.earlier[0] if draw.earlier else start
        # A clock may be set back, and what is held stays anyway.
        after = start - first + min(GRACE, max(60, (end - first) // 4))
        for _, window in draw.slots:
            self._until[window.start] = float(window.end + after), window.end

    def see_posted(self, start: int) -> float:
        """The same of a window whose end is not known."""
        until = start + self.keeps + GRACE if self.keeps else inf
        return self._until.setdefault(start, (until, start + 1))[0]

    def over(self, now: float) -> int:
        """Where the last window ends that cannot count any more, 0 where there is none: what begins before is to be
        forgotten, and has to be filled again if it is drawn on all the same."""
        before = max([end for until, end in self._until.values() if until < now], default=0)
        if before:
            self.lose(before - 1)
        return before

    def swept(self, before: int) -> None:
        """No account has anything of before that any more."""
        for start in [start for start in self._until if start < before]:
            del self._until[start]

    def lose(self, start: int) -> None:
        """Something that was spent in this window is not known here any more."""
        self.since = max(self.since, start + 1)


class Accounts:
    """All accounts of a process. limit: that there may be. room: bytes that they may take; those of somebody new three
    quarters of it, so that those who are there have the rest. count: accounts. size: bytes, at most."""

    __slots__ = ("_before", "_keys", "_limit", "_names", "_room", "count", "size", "tables")

    def __init__(self, limit: int, room: int) -> None:
        self.tables: dict[str, Table] = {}
        self.count = 0
        self.size = 0
        self._limit = limit
        self._room = room
        self._names: list[str] = []  # tables still to be swept; the last one is being swept,
        self._keys: list[str] = []  # these of its keys are still to be looked at,
        self._before = 0  # for windows that begin before that

    def find(self, allowance: str, key: str) -> Account | None:
        table = self.tables.get(allowance)
        return None if table is None else table.accounts.get(key)

    def table(self, allowance: str) -> Table:
        """Made, if there is none."""
        table = self.tables.get(allowance)
        if table is None:
            table = self.tables[allowance] = Table()
        return table

    def new(self, allowance: str, key: str) -> Account:
        account = self.table(allowance).accounts[key] = Account()
        self.count += 1
        self.size += cost_of(key)
        return account

    def drawn(self, draw: Draw) -> Account:
        """The draw's account, in which its window is listed from now on."""
        account = self.find(draw.allowance, draw.key)
        if account is None:
            account = self.new(draw.allowance, draw.key)
        start = draw.window.start
        self.tables[draw.allowance].see(draw)
        if account.start != start:
            listed = len(account.older)
            account.put(start, account.of(start) or 0)
            self._listed(account, listed)
        return account

    def add(self, account: Account, start: int, amount: int) -> None:
        """To a window that is filled, or begins at 0."""
        if start == account.start:
            account.spent += amount
            return
        listed = len(account.older)
        account.add(start, amount)
        self._listed(account, listed)

    def fill(self, account: Account, window: Window, amount: int) -> None:
        listed = len(account.older)
        account.fill(window, amount)
        self._listed(account, listed)

    def know(self, allowances: Mapping[str, float], since: float) -> None:
        """As of `store.base.Counter`. since: unix time from which on windows begin at 0."""
        tables = self.tables
        for name, keeps in allowances.items():
            table = self.table(name)
            if table.since == inf:
                table.since = since
            table.keeps = keeps
        for name in [name for name in tables if name not in allowances]:
            tables[name].since = inf
            if not tables[name].accounts:
                del tables[name]

    def has_no_room(self, key: str) -> bool:
        """For one more account."""
        return self.count >= self._limit or self.size + cost_of(key) > self._room * _NEW

    def have_no_room(self, draws: Sequence[Draw]) -> bool:
        """For all that these would add."""
        if self.count < self._limit - len(draws) and self.size < self._room // 2:
            return False
        for draw in draws:
            if not draw.kept:
                continue
            account = self.find(draw.allowance, draw.key)
            if account is None:
                if self.has_no_room(draw.key):
                    return True
            elif self.size >= self._room and not account.lists(draw.window.start):
                return True
        return False

    def sweep(self, most: int, now: float) -> None:
        """Forget what has lapsed: about so many accounts are looked at. now: unix time."""
        if not self._names:
            self._names = list(self.tables)
        while self._names and most > 0:
            most -= _TABLE + self._sweep(most, now)

    def _sweep(self, most: int, now: float) -> int:
        """Look at some accounts of a table: how many."""
        name = self._names[-1]
        table = self.tables.get(name)
        if table is not None and not self._keys and not self._before:
            self._before = table.over(now)
            if self._before:
                self._keys = list(table.accounts)
        if table is None or not self._before:
            self._keys, self._before = [], 0
            self._names.pop()
            if table is not None and not table.accounts and table.since == inf:
                del self.tables[name]  # of an allowance that is not there any more
            return 0
        part, self._keys[-most:] = self._keys[-most:], []
        accounts, before = table.accounts, self._before
        for key in part:
            account = accounts.get(key)
            if account is None:
                continue
            listed = len(account.older)
            if account.forget(before):
                del accounts[key]
                self.count -= 1
                self.size -= cost_of(key)
            self._listed(account, listed)
        if not self._keys:
            table.swept(before)
            self._before = 0
            self._names.pop()
        return len(part)

    def _listed(self, account: Account, before: int) -> None:
        """Its row was so long before."""
        self.size += (len(account.older) - before) * SLOT // 2


def cost_of(key: str) -> int:
    """Bytes that an account takes, at most."""
    if key.isascii():
        return OVER + getsizeof(key)
    # Who writes it as UTF-8 leaves that with it, so it grows: this does not, or more would be taken off than was added.
    return OVER + getsizeof(f"{key} ") + 4 * len(key)
