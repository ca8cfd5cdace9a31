"""A model of allowances for every Counter: lists of records and of holds, against which a store is run step by step,
with all that may go wrong (hypothesis).

What must hold after each step, where `position` is what the store says of a journal:

- the spent of a field that is filled is the sum of the records at or below the positions (in the end: of all);
- the held of a field is the sum of the holds that live, were not posted and not voided;
- what was admitted came, with all that was spent and held, to no more than its limit; what was refused would have.
"""

from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.conformance.allowances import NOW, Records

from tollhouse.store.base import ADMITTED, OPEN, REFUSED, WHOLE, Draw, Opening, Window
from tollhouse.store.seeding import catch_up, check, seed

__all__ = ["AllowanceModel", "World"]

T = TypeVar("T")

KNOWN = {"usd:hour": 100.0, "tokens:roll": 120.0, "usd:whole": 0.0}
MOST_HOLDS = 12  # fewer than one admission ends when they have lapsed: what is held is then known


class World(Protocol):
    """A store, and the workers that share it."""

    can_fail: bool

    def worker(self) -> Any:
        """A new one's Counter."""
        ...

    def leave(self, counter: Any) -> None:
        """This worker is killed."""
        ...

    def run(self, work: Coroutine[Any, Any, T]) -> T: ...

    def set_time(self, now: float) -> None: ...

    def flush(self, counter: Any, tick: bool) -> None:
        """What the worker has to tell is told, if it can."""
        ...

    def peek(self, field: str) -> tuple[int | None, int]:
        """Spent, None where it is not filled, and held."""
        ...

    def positions(self) -> dict[str, int]: ...

    def lose(self) -> None:
        """The answer to what is asked next is lost."""
        ...

    def wipe(self) -> None: ...

    def save(self) -> Any:
        """All that the store has."""
        ...

    def restore(self, state: Any) -> None: ...

    def close(self) -> None: ...


class Hold:
    def __init__(self, amounts: dict[str, int], until: float) -> None:
        self.amounts = amounts
        self.until = until
        self.posted: tuple[str, int] | None = None

    def copy(self) -> "Hold":
        one = Hold(dict(self.amounts), self.until)
        one.posted = self.posted
        return one


amounts = st.integers(0, 40)
limits = st.none() | st.integers(0, 150)
picks = st.integers(0, 10_000)
calls = st.tuples(
    picks,
    st.sampled_from("xxy"),
    st.lists(st.tuples(st.integers(0, 3), amounts, limits), min_size=1, max_size=4, unique_by=lambda wanted: wanted[0]),
    st.sampled_from([5.0, 60.0, 400.0]),  # how long the hold lives
    st.booleans(),  # the answer is lost
    st.sampled_from([True, True, True, False]),  # what is not filled is filled
)


async def at_once(seconds: float) -> None:
    """No pause."""


class AllowanceModel(RuleBasedStateMachine):
    def world(self) -> World:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.w = self.world()
        self.now = self.latest = float(NOW)
        self.w.set_time(self.now)
        self.records = Records()
        self.count = 0
        self.workers: list[tuple[Any, str]] = []
        self.holds: dict[str, Hold] = {}
        self.openings: list[Opening] = []
        self.fields: set[str] = set()
        self.saved: tuple[Any, dict[str, Hold]] | None = None
        self._join()
        self._join()

    def teardown(self) -> None:
        try:
            self._drain()
        finally:
            self.w.close()

    # ---- calls

    @initialize(filled=st.booleans(), known=st.booleans())
    def begin(self, filled: bool, known: bool) -> None:
        if known:
            for counter, _ in self.workers:
                counter.know(KNOWN)
        for kind, key in ((0, "x"), (0, "y"), (1, "x"), (2, "x"), (2, "y")):
            if filled:
                self._seed(self.workers[0][0], [self._draw(kind, key, 1, None)])
        self._tell_all()

    @rule(calls=st.lists(calls, min_size=1, max_size=5))
    def admit(self, calls: list[tuple[int, str, list[tuple[int, int, int | None]], float, bool, bool]]) -> None:
        for pick, key, wanted, lives, lost, fills in calls:
            if len(self.holds) >= MOST_HOLDS:
                return
            draws = [self._draw(kind, key, amount, limit) for kind, amount, limit in wanted]
            self.count += 1
            id = f"call-{self.count}"
            if not self._admit(id, pick, draws, lives, lost) and fills:
                self.records.ship()
                self._tell_all()
                if self._seed(self._of(pick)[0], draws):
                    self._admit(id, pick, draws, lives, lost)

    def _seed(self, counter: Any, draws: list[Draw]) -> int:
        """All have told the store what they know before this is called: nobody has to be waited for."""
        return self.w.run(seed(counter, self.records, draws, 0.0, pause=at_once))

    def _admit(self, id: str, pick: int, draws: list[Draw], lives: float, lost: bool) -> bool:
        """Whether it was decided."""
        counter, _ = self._of(pick)
        self.held_is_the_sum_of_holds()
        expected = [self._used(draw) for draw in draws]
        if lost:
            self.w.lose()
        verdict = self.w.run(counter.admit(id, [], draws, lives))
        self._swept()
        if verdict.happened == OPEN:
            assert expected[verdict.draw] is None, (draws, verdict, expected, [self._used(draw) for draw in draws])
            return False
        took = verdict.happened == ADMITTED
        before = [used - (draw.amount or 1) * took for draw, used in zip(draws, verdict.used, strict=True)]
        assert all(used == there for used, there in zip(before, expected, strict=True) if there is not None)
        over = [
            n
            for n, (draw, used) in enumerate(zip(draws, before, strict=True))
            if draw.limit is not None and used + (draw.amount or 1) > draw.limit
        ]
        if not took:
            assert (verdict.happened, verdict.draw) == (REFUSED, over[0])
            return True
        assert not over
        again = self.w.run(counter.admit(id, [], draws, lives))
        assert (again.happened, again.used, again.at) == (ADMITTED, verdict.used, verdict.at)
        self.holds[id] = Hold({draw.field: draw.amount or 1 for draw in draws}, self.now + lives)
        self.fields |= {field for draw in draws if draw.kept for field, _ in draw.slots}
        return True

    @precondition(lambda self: self.holds)
    @rule(ends=st.lists(st.tuples(picks, picks, st.integers(-3, 90), st.booleans()), min_size=1, max_size=4))
    def post(self, ends: list[tuple[int, int, int, bool]]) -> None:
        """Also more than was held, or long after the hold has lapsed, and of a worker that did not admit it."""
        for pick, who, actual, soon in ends:
            ids = [id for id in sorted(self.holds) if self.holds[id].posted is None]
            if not ids:
                return
            id = ids[pick % len(ids)]
            hold = self.holds[id]
            counter, journal = self._of(who)
            spent = [(field, actual) for field in hold.amounts if not field.startswith("concurrent")]
            record = self.records.add(journal, id, spent)
            hold.posted = (journal, record.seq)
            counter.post(journal, record.seq, id, spent, soon)
            if soon:  # it would be told while something else is looked at
                self.w.flush(counter, False)

    @rule(pick=picks)
    def record_without_draws(self, pick: int) -> None:
        counter, journal = self._of(pick)
        counter.post(journal, self.records.add(journal, "", ()).seq, "")

    @precondition(lambda self: self.holds)
    @rule(pick=picks, lost=st.booleans())
    def void(self, pick: int, lost: bool) -> None:
        id = sorted(self.holds)[pick % len(self.holds)]
        counter, _ = self._of(pick)
        if self.holds[id].posted is not None:
            return
        counter.void(id)
        if lost:
            self.w.lose()
        self.w.flush(counter, False)
        del self.holds[id]

    @precondition(lambda self: self.holds)
    @rule(pick=picks, amount=st.integers(0, 90), limit=limits, lost=st.booleans())
    def top_up(self, pick: int, amount: int, limit: int | None, lost: bool) -> None:
        self.held_is_the_sum_of_holds()
        live = [id for id in sorted(self.holds) if self._lives(self.holds[id])]
        if not live:
            return
        counter, _ = self._of(pick)
        hold = self.holds[live[pick % len(live)]]
        field = min(hold.amounts)
        allowance, key, start = field.split("|")
        draw = Draw(allowance, key, amount, limit, kept=False) if start == "0" and allowance[0] == "c" else None
        if draw is None:
            window = (
                WHOLE if start == "0" else Window(int(start), int(start) + (100 if allowance == "usd:hour" else 30))
            )
            draw = Draw(allowance, key, amount, limit, window)
        spent, _ = self.w.peek(field)
        if draw.kept and spent is None:
            return
        held = sum(one.amounts.get(field, 0) for one in self.holds.values() if self._lives(one))
        more = max((amount or 1) - hold.amounts[field], 0)
        if lost:
            self.w.lose()
        verdict = self.w.run(counter.top_up(live[pick % len(live)], [draw], 5.0))
        self._swept()
        if more and limit is not None and (spent or 0) + held + more > limit:
            assert verdict.happened == REFUSED
        else:
            assert verdict.happened == ADMITTED
            assert verdict.used == [(spent or 0) + held + more]
            hold.amounts[field] += more
            hold.until = max(hold.until, self.now + 5.0)

    @precondition(lambda self: self.holds)
    @rule(pick=picks, lives=st.sampled_from([1.0, 100.0]))
    def renew(self, pick: int, lives: float) -> None:
        self.held_is_the_sum_of_holds()
        id = sorted(self.holds)[pick % len(self.holds)] if self.holds else "nobody's"
        if id in self.holds and not self._lives(self.holds[id]):
            return  # may be there or not
        counter, _ = self._of(pick)
        lives_on = id in self.holds and self._lives(self.holds[id])
        assert self.w.run(counter.renew([id], lives)) == lives_on
        if lives_on:
            self.holds[id].until = max(self.holds[id].until, self.now + lives)

    # ---- time

    @rule(seconds=st.sampled_from([0.5, 3.0, 7.0, 31.0, 61.0, 101.0, 150.0]))
    def advance(self, seconds: float) -> None:
        self._set_time(self.now + seconds)

    @precondition(lambda self: self.now >= self.latest)
    @rule()
    def set_back(self) -> None:
        # What had lapsed is ended before, or nobody knew whether it lives again.
        nothing = Draw("concurrent:nothing", "", 1, 0, kept=False)
        assert self.w.run(self.workers[0][0].admit("nothing", [], [nothing])).happened == REFUSED
        self._swept()
        self._set_time(self.now - 3.0)

    @rule(pick=picks)
    def much_later(self, pick: int) -> None:
        if pick % 4 == 0:
            self._set_time(self.now + 8000.0)
            self.w.flush(self._of(pick)[0], True)

    # ---- the ledger, and who tells the store of it

    @rule()
    def ship(self) -> None:
        self.records.ship()

    @rule(pick=picks, tick=st.booleans(), lost=st.booleans())
    def flush(self, pick: int, tick: bool, lost: bool) -> None:
        if lost:
            self.w.lose()
        self.w.flush(self._of(pick)[0], tick)

    @rule(pick=picks, batch=st.integers(1, 4))
    def catch_up(self, pick: int, batch: int) -> None:
        self.w.run(catch_up(self._of(pick)[0], self.records, batch))

    @rule(pick=picks, kind=st.integers(0, 2), key=st.sampled_from("xy"), lost=st.booleans())
    def seed(self, pick: int, kind: int, key: str, lost: bool) -> None:
        self.records.ship()
        if lost:
            self.w.lose()
        self._tell_all()
        self._seed(self._of(pick)[0], [self._draw(kind, key, 1, None)])

    @rule(pick=picks, kind=st.integers(0, 2), key=st.sampled_from("xy"), again=st.booleans(), lost=st.booleans())
    def begin_to_fill(self, pick: int, kind: int, key: str, again: bool, lost: bool) -> None:
        if lost:
            self.w.lose()
        draw = self._draw(kind, key, 1, None)
        self.openings += self.w.run(self._of(pick)[0].opening(draw, dict(self.records.shipped), again))

    @precondition(lambda self: self.openings)
    @rule(pick=picks, keep=st.booleans(), lost=st.booleans())
    def fill(self, pick: int, keep: bool, lost: bool) -> None:
        """Some time later, or twice, or never."""
        opening = self.openings.pop(pick % len(self.openings))
        if keep:
            self.openings.append(opening)
        if lost:
            self.w.lose()
        by = self.w.run(self._of(pick)[0].seed(opening, self.records.sum(opening.field, opening.upto)))
        assert not by

    @rule(pick=picks, kind=st.integers(0, 2), key=st.sampled_from("xy"))
    def check(self, pick: int, kind: int, key: str) -> None:
        self.records.ship()
        found = self.w.run(check(self._of(pick)[0], self.records, [self._draw(kind, key, 1, None)], 0.0))
        assert not any(found.values())

    @rule(pick=picks, names=st.sets(st.sampled_from(sorted(KNOWN))))
    def know(self, pick: int, names: set[str]) -> None:
        counter, _ = self._of(pick)
        counter.know({name: KNOWN[name] for name in names})
        self.w.flush(counter, True)

    # ---- faults

    @rule(pick=picks)
    def kill_a_worker(self, pick: int) -> None:
        if pick % 3 == 0:
            one = self.workers.pop(pick % len(self.workers))
            self.w.leave(one[0])
            self._join()

    @precondition(lambda self: self.w.can_fail)
    @rule(pick=picks)
    def wipe(self, pick: int) -> None:
        if pick % 3 == 0:
            self.w.wipe()
            self.holds = {}

    @precondition(lambda self: self.w.can_fail)
    @rule()
    def save(self) -> None:
        self.saved = (self.w.save(), {id: hold.copy() for id, hold in self.holds.items()})

    @precondition(lambda self: self.saved is not None)
    @rule()
    def roll_back(self) -> None:
        assert self.saved is not None
        state, holds = self.saved
        self.w.restore(state)
        # What was posted since is known to be over, and so it is once that comes again.
        posted = {id: hold.posted for id, hold in self.holds.items() if hold.posted}
        posted |= {
            record.id: (journal, record.seq)
            for journal, records in self.records.of.items()
            for record in records
            if record.id
        }
        self.holds = {id: hold.copy() for id, hold in holds.items()}
        for id, hold in self.holds.items():
            hold.posted = posted.get(id)
        # Only that a record which drew on nothing (of calls at once) is not told again: its hold would lapse by time.
        counter = self.workers[0][0]
        for id in [id for id, hold in self.holds.items() if hold.posted and not self._drew(hold.posted)]:
            counter.void(id)
            del self.holds[id]
        self.w.flush(counter, False)

    # ---- what must hold

    @invariant()
    def spent_is_the_sum_of_records(self) -> None:
        positions = self.w.positions()
        for field in sorted(self.fields):
            spent, _ = self.w.peek(field)
            if spent is not None:
                assert spent == self.records.sum(field, positions), field

    @invariant()
    def held_is_the_sum_of_holds(self) -> None:
        positions = self.w.positions()
        self.holds = {
            id: hold
            for id, hold in self.holds.items()
            if hold.posted is None or positions.get(hold.posted[0], 0) < hold.posted[1]
        }
        live: dict[str, int] = {}
        lapsed: dict[str, int] = {}
        for hold in self.holds.values():
            for field, amount in hold.amounts.items():
                sums = live if self._lives(hold) else lapsed
                sums[field] = sums.get(field, 0) + amount
        for field in sorted(self.fields | live.keys() | lapsed.keys()):
            spent, held = self.w.peek(field)
            if spent is None and field in self.fields:
                continue  # forgotten after its window
            assert live.get(field, 0) <= held <= live.get(field, 0) + lapsed.get(field, 0), field

    # ---- within

    def _drain(self) -> None:
        self.records.ship()
        self._tell_all()
        while self.w.run(catch_up(self.workers[0][0], self.records)):
            pass
        positions = self.w.positions()
        for field in sorted(self.fields):
            spent, _ = self.w.peek(field)
            if spent is not None:
                everything = {journal: len(records) for journal, records in self.records.of.items()}
                assert spent == self.records.sum(field, everything)
                assert positions == everything | {j: p for j, p in positions.items() if j not in everything}

    def _tell_all(self) -> None:
        for counter, _ in self.workers:
            self.w.flush(counter, True)

    def _join(self) -> None:
        counter = self.w.worker()
        self.count += 1
        counter.follow(self.records)
        self.workers.append((counter, f"journal-{self.count}"))

    def _of(self, pick: int) -> tuple[Any, str]:
        return self.workers[pick % len(self.workers)]

    def _set_time(self, now: float) -> None:
        self.now = now
        self.latest = max(self.latest, now)
        self.w.set_time(now)

    def _swept(self) -> None:
        """An admission ended what had lapsed before it looked."""
        self.holds = {id: hold for id, hold in self.holds.items() if self._lives(hold)}

    def _drew(self, record: tuple[str, int]) -> bool:
        journal, seq = record
        return bool(self.records.of[journal][seq - 1].amounts)

    def _lives(self, hold: Hold) -> bool:
        return hold.until > self.now

    def _draw(self, kind: int, key: str, amount: int, limit: int | None) -> Draw:
        now = int(self.now)
        if kind == 0:
            return Draw("usd:hour", key, amount, limit, Window(now // 100 * 100, now // 100 * 100 + 100))
        if kind == 1:
            start = now // 30 * 30
            return Draw(
                "tokens:roll", key, amount, limit, Window(start, start + 30), (start - 90, start - 60, start - 30)
            )
        if kind == 2:
            return Draw("usd:whole", key, amount, limit, WHOLE)
        return Draw("concurrent:x", key, amount, limit, kept=False)

    def _used(self, draw: Draw) -> int | None:
        """What is spent and held of it, holds that have lapsed left out; None where some of it is not filled."""
        total = 0
        for field, _ in draw.slots:
            spent, _ = self.w.peek(field)
            if spent is None and draw.kept:
                return None
            total += spent or 0
            total += sum(hold.amounts.get(field, 0) for hold in self.holds.values() if self._lives(hold))
        return total
