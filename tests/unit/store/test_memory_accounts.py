"""Accounts in memory: against a plain table of fields, what they take, that they go, and what their bound does."""

import tracemalloc
from itertools import count
from sys import getsizeof

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.base import ADMITTED, OPEN, REFUSED, Draw, Posting, Verdict, Window
from tollhouse.store.memory_accounts import SLOT as SLOT_COST
from tollhouse.store.memory_accounts import Account, Table, cost_of
from tollhouse.store.memory_allowances import MemoryAllowances

DAY = 86_400
NOW = 1_800_000_000 // DAY * DAY
IDS = (f"id-{n}" for n in count(1))
SLOT = 150


class House:
    """Allowances whose time the test moves. limit, room: as theirs."""

    def __init__(self, **bounds: int) -> None:
        self.now = float(NOW)
        self.clock = Clock(source=lambda: self.now)
        self.table = MemoryAllowances(self.clock, lambda charges: Verdict(-1, 0.0, []), wall=lambda: self.now, **bounds)
        self.clock.every_turn(self.table.turn)
        self.seq = 0

    def to(self, seconds: float, turns: int = 0) -> None:
        self.now = NOW + seconds
        for _ in range(turns):
            self.clock.turn()

    def fill(self, *draws: Draw, spent: int = 0) -> None:
        for draw in draws:
            for opening in self.table.opening(draw, {}, False):
                assert self.table.seed(opening, spent if opening.window == draw.window else 0) == 0

    def spend(self, *draws: Draw) -> Verdict:
        """A call, admitted and over."""
        id = next(IDS)
        verdict = self.table.admit(id, (), draws)
        if verdict.happened == ADMITTED:
            self.seq += 1
            self.table.post("j", self.seq, id, [(draw.field, draw.amount) for draw in draws])
        return verdict


def rolling(key: str, now: float, amount: int = 1, slot: int = SLOT, limit: int | None = None) -> Draw:
    start = int(now) // slot * slot
    earlier = tuple(start - n * slot for n in range(24, 0, -1))
    return Draw("usd:top/user:rolling", key, amount, limit, Window(start, start + slot), earlier)


def fixed(key: str, now: float, amount: int = 1, span: int = DAY, limit: int | None = None) -> Draw:
    start = int(now) // span * span
    return Draw(f"usd:top/user:{span}", key, amount, limit, Window(start, start + span))


# ---- an account is a table of fields

steps = st.lists(
    st.one_of(
        st.tuples(st.just("fill"), st.integers(0, 12), st.integers(0, 3)),
        st.tuples(st.just("draw"), st.integers(0, 12), st.integers(1, 9)),
        st.tuples(st.just("release"), st.integers(0, 12), st.integers(1, 9)),
        st.tuples(st.just("add"), st.integers(0, 12), st.integers(-5, 9)),
        st.tuples(st.just("know"), st.integers(0, 12), st.integers(1, 4)),
        st.tuples(st.just("forget"), st.integers(0, 12), st.just(0)),
    ),
    max_size=40,
)


@given(steps)
def test_an_account_is_a_table_of_fields(steps: list[tuple[str, int, int]]) -> None:
    account = Account()
    spent: dict[int, int] = {}
    held: dict[int, int] = {}
    for what, slot, n in steps:
        at = slot * 10
        if what == "fill":
            account.fill(Window(at, at + 10), n)
            spent[at] = n
        elif what == "draw" and at in spent:
            if account.start != at:
                account.put(at, account.of(at) or 0)
            account.hold(at, n)
            held[at] = held.get(at, 0) + n
        elif what == "release" and at in held:
            account.release(at, n)
            held[at] -= n
            if held[at] <= 0:
                del held[at]
        elif what == "add" and at in spent:
            account.add(at, n)
            spent[at] += n
        elif what == "know":
            # What is said to be known is that what is not listed is 0: as `know`'s callers have found before.
            first, end = at, at + 10 * n
            if all(spent.get(start, 0) is not None for start in range(first, end, 10)):
                account.know(first, end)
                for start in range(first, end, 10):
                    spent.setdefault(start, 0)
        elif what == "forget":
            is_empty = account.forget(at)
            spent = {start: n for start, n in spent.items() if not 0 < start < at or start in held}
            assert not is_empty or not (held or any(spent.values()))
        for start in range(0, 200, 10):
            there = account.of(start)
            assert there is None or there == spent.get(start), (what, start)
            if spent.get(start) or start in held:  # only that something is 0 may be known no more
                assert there == spent[start]
        for first, last in ((0, 200), (30, 60), (50, 50)):
            total = sum(n for start, n in spent.items() if first <= start <= last)
            assert account.total(first, last) == total + sum(n for at, n in held.items() if first <= at <= last)
    starts = account.older[::2]
    assert list(starts) == sorted(set(starts))


def test_a_table_knows_when_windows_are_over() -> None:
    table = Table()
    table.since = 0.0
    table.see(rolling("ada", NOW))
    assert table.over(NOW + 1) == 0  # not even the first one of the span: its margin
    before = table.over(NOW + 3600 + SLOT + 3750 // 4 + 1)
    assert before == NOW + SLOT
    assert table.since == before  # what begins earlier has to be filled
    table.swept(before)
    assert table.over(NOW + 10_000) == 0
    table.keeps = 0.0
    assert table.see_posted(NOW) == float("inf")


# ---- what it takes


def test_a_user_takes_less_than_a_kilobyte() -> None:
    """Of an hour that rolls, a day and a month; filled from the ledger, as the first ones of a gateway are."""
    it = House()
    users = 1500
    names = [f"user-{n:08d}@example.com" for n in range(users)]
    keys = sum(map(len, names)) + 49 * users  # which others have as well
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for name in names:
            draws = [rolling(name, it.now), fixed(name, it.now), fixed(name, it.now, span=30 * DAY)]
            it.fill(*draws)
            assert it.spend(*draws).happened == ADMITTED
        it.to(200, turns=20)  # what is left of holds goes
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert it.table.accounts == 3 * users
    assert len(it.table) == 3 * users
    assert taken / users < 600
    assert taken + keys <= it.table.size  # what is counted is the most


def test_who_is_there_in_every_slot_takes_little_more() -> None:
    it = House()
    name = rolling("", it.now).allowance
    it.fill(rolling("ada", it.now))
    it.table.know({name: 3960.0})
    for n in range(100):
        it.to(n * SLOT, turns=2)
        assert it.spend(rolling("ada", it.now, 10**9)).used == [min(n + 1, 25) * 10**9]
    older = it.table._tables[name].accounts["ada"].older
    assert len(older) == 2 * (24 + 7)  # the span, and its margin
    taken = getsizeof(older) + sum(getsizeof(amount) for amount in older[1::2])
    assert taken < 1600
    assert taken < len(older) * SLOT_COST // 2
    assert it.table.size == cost_of("ada") + len(older) * SLOT_COST // 2


# ---- what has lapsed goes


def test_ever_new_users_reach_a_plateau() -> None:
    it = House()
    draw = rolling("first", it.now, slot=2)
    it.fill(draw)
    it.table.know({draw.allowance: 66.0})
    most, size = [], []
    it.to(60)
    for n in range(60, 900):
        it.to(n, turns=16)
        for user in range(40):
            assert it.spend(rolling(f"user-{n}-{user}", it.now, slot=2)).used == [1]
        most.append(it.table.accounts)
        size.append(it.table.size)
    plateau = 40 * (50 + 60 + 10)  # users of a span, of the margin, and those that a sweep has not come to
    assert max(most) <= plateau
    assert max(most[400:]) <= max(most[200:400]) * 1.02
    assert max(size) <= plateau * cost_of("user-999-39")
    it.to(2000, turns=40)
    assert (it.table.accounts, it.table.size, len(it.table)) == (0, 0, 0)


def test_a_turn_looks_at_few() -> None:
    it = House()
    draws = [fixed(f"user-{n}", it.now, span=60) for n in range(2000)]
    it.fill(*draws)
    it.to(200)
    it.clock.turn()
    assert 2000 - 512 <= it.table.accounts < 2000


def test_what_is_held_stays_when_its_window_is_over() -> None:
    it = House()
    draw = fixed("ada", it.now, 30, span=60, limit=100)
    other = fixed("bob", it.now, 30, span=60)
    it.fill(draw, other)
    it.table.admit("long", (), [draw], 9000.0)
    it.to(5000, turns=3)
    assert it.table.accounts == 1
    assert it.table.top_up("long", [fixed("ada", NOW, 90, span=60, limit=100)], 9000.0).used == [90]
    assert it.table.top_up("long", [fixed("ada", NOW, 101, span=60, limit=100)], 9000.0).happened == REFUSED
    it.table.post("j", 1, "long", [(draw.field, 50)])
    assert it.table.peek(draw.field) == (50, 0)
    it.table.know({draw.allowance: 60.0})
    later = fixed("bob", it.now, 1, span=60)
    it.fill(later)
    it.to(5300, turns=3)
    assert it.table.accounts == 0


def test_a_clock_that_is_set_back_finds_nothing_spent_where_something_was() -> None:
    it = House()
    it.fill(fixed("first", it.now, span=60))
    it.table.know({fixed("", 0, span=60).allowance: 60.0})
    it.to(120)
    assert it.spend(fixed("ada", it.now, 70, span=60, limit=100)).used == [70]
    it.to(900, turns=3)
    assert it.table.accounts == 0
    it.to(130)
    assert it.spend(fixed("ada", it.now, 70, span=60, limit=100)).happened == OPEN


def test_a_whole_life_is_filled_whatever_else_is_known_of_its_key() -> None:
    it = House()
    hour = fixed("ada", it.now, span=60)
    it.fill(fixed("first", it.now, span=60))
    it.table.know({hour.allowance: 60.0})
    it.to(120)
    assert it.spend(fixed("ada", it.now, span=60)).used == [1]
    whole = Draw(hour.allowance, "ada", 1, 100)
    assert it.spend(whole).happened == OPEN
    it.fill(whole, spent=30)
    assert it.spend(whole).used == [31]
    it.to(10_000_000, turns=4)
    assert it.table.peek(whole.field) == (31, 0)


# ---- at the bound


def full() -> tuple[House, list[Draw]]:
    """Nobody new has room. The draws are of those that are there."""
    it = House(room=-(-4 * 8 * cost_of("user-00") // 3))
    it.fill(fixed("user-00", it.now, span=60))
    it.table.know({fixed("", 0, span=60).allowance: 60.0})
    it.to(120)
    there = [fixed(f"user-{n:02d}", it.now, 10, span=60, limit=100) for n in range(1, 8)]
    for draw in there:
        assert it.spend(draw).used == [10]
    return it, there


def test_at_the_bound_nobody_new_is_admitted_and_those_who_are_there_go_on() -> None:
    it, there = full()
    new = fixed("user-08", it.now, 10, span=60)
    for n in (1, 2):
        with pytest.raises(Failure, match="not available") as caught:
            it.spend(there[0], new)
        assert (caught.value.status, caught.value.code, it.table.refused) == (503, "state_unavailable", n)
    with pytest.raises(Failure):
        it.table.opening(fixed("user-08", NOW, span=60), {}, False)
    assert it.table.peek(there[0].field) == (10, 0)  # nothing was taken
    assert [it.spend(draw).used for draw in there] == [[20]] * 7
    it.to(180)  # the next window: theirs is no new account
    assert [it.spend(fixed(f"user-{n:02d}", it.now, 1, span=60)).used for n in range(1, 8)] == [[1]] * 7
    it.to(400, turns=3)
    assert it.spend(fixed("user-08", it.now, 1, span=60)).used == [1]


def test_what_cannot_be_kept_is_not_taken_for_nothing() -> None:
    """A record of a call that another one has admitted, of somebody there is no room for."""
    it, there = full()
    new = fixed("user-08", it.now, 10, span=60, limit=100)
    assert it.table.posted("other", 0, 1, [posting(1, new.field, 95)]) == 1
    assert it.spend(there[0]).used == [20]
    for key in [draw.key for draw in there]:  # there is room again, within the same window
        it.table._tables[new.allowance].accounts.pop(key)
        it.table._all.count -= 1
        it.table._all.size -= cost_of(key)
    assert it.spend(new).happened == OPEN
    it.fill(new, spent=95)
    assert it.spend(new).happened == REFUSED


def test_slots_of_those_who_are_there_have_a_bound_too() -> None:
    it = House(room=100 * cost_of("user-00"))
    it.fill(rolling("user-00", it.now))
    it.table.know({rolling("", it.now).allowance: 3960.0})
    it.to(4000)
    names = [f"user-{n:02d}" for n in range(60)]
    for name in names:
        assert it.spend(rolling(name, it.now)).used == [1]
    refused = 0
    for slot in range(1, 25):
        it.to(4000 + slot * SLOT)
        for name in names:
            try:
                it.spend(rolling(name, it.now))
            except Failure:
                refused += 1
                with pytest.raises(Failure):
                    it.spend(rolling(name, it.now))
            else:
                assert it.spend(rolling(name, it.now)).happened == ADMITTED  # in a slot that is listed there is room
    assert refused > 500
    assert it.table.size <= 100 * cost_of("user-00") + SLOT_COST
    assert it.table.refused == 2 * refused


@pytest.mark.parametrize("key", ["ada", "j\u00fcrgen", "\u4f60\u597d", "\U0001f600\U0001f600", ""])
def test_an_account_takes_the_same_when_it_comes_and_goes(key: str) -> None:
    key = f"{key}-1"
    before = cost_of(key)
    msgspec.json.encode(key)  # may leave the name's UTF-8 with it
    assert cost_of(key) == before >= getsizeof(key)


def posting(seq: int, field: str, amount: int) -> Posting:
    return Posting(seq, "", ((field, amount),))


def test_money_of_those_who_are_there_is_kept_whatever_the_bound() -> None:
    it, there = full()
    it.table._all._room = 0
    assert it.table.posted("other", 0, 1, [posting(1, there[0].field, 7)]) == 1
    assert it.table.peek(there[0].field) == (17, 0)
