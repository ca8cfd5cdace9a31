"""What every Counter must do with draws. A store's own test subclasses AllowanceSuite and says how one is made; one
that shows its state as Allowances runs the suite a second time through them (`DirectDraws`)."""

from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import count
from math import inf
from typing import Any, Protocol, TypeVar

import pytest

from tollhouse.store.base import (
    ADMITTED,
    MOST_UNITS,
    OPEN,
    REFUSED,
    WHOLE,
    WINDOW,
    Charge,
    Counter,
    Draw,
    Posting,
    Rate,
    Verdict,
    Window,
    life,
)
from tollhouse.store.seeding import catch_up, check, seed

T = TypeVar("T")

IDS = (f"id-{n}" for n in count(1))
NOW = 1_800_000_000
"""Unix time at which a Bench begins."""

HOUR = Window(NOW - 600, NOW + 3000)


class Bench(Protocol):
    """A counter whose time the test moves."""

    counter: Any

    def run(self, work: Coroutine[Any, Any, T]) -> T: ...

    def advance(self, seconds: float) -> None: ...

    def tick(self) -> None:
        """What happens each second has happened."""
        ...


class Records:
    """A History of lists: what was posted in which journal, up to where it is `shipped`."""

    def __init__(self) -> None:
        self.of: dict[str, list[Posting]] = {}
        self.shipped: dict[str, int] = {}

    def add(self, journal: str, id: str, amounts: Sequence[tuple[str, int]]) -> Posting:
        records = self.of.setdefault(journal, [])
        records.append(Posting(len(records) + 1, id, tuple(amounts)))
        return records[-1]

    def ship(self) -> None:
        self.shipped = {journal: len(records) for journal, records in self.of.items()}

    is_stuck = False

    async def positions(self, deep: bool = False) -> Mapping[str, int]:
        return dict(self.shipped)

    async def posts(self, journal: str, after: int, most: int) -> Sequence[Posting]:
        upto = self.shipped.get(journal, 0)
        return [posting for posting in self.of[journal][after:upto] if posting.amounts][:most]

    async def spent(self, asked: Sequence[tuple[Draw, Window, Mapping[str, int]]]) -> Sequence[int]:
        return [self.sum(f"{draw.allowance}|{draw.key}|{window.start}", upto) for draw, window, upto in asked]

    def sum(self, field: str, upto: Mapping[str, int]) -> int:
        return sum(
            amount
            for journal, seq in upto.items()
            for posting in self.of.get(journal, [])[:seq]
            for name, amount in posting.amounts
            if name == field
        )


class DirectDraws:
    """A Counter that is asked through its Allowances alone, where there are any."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        allowances = counter.allowances()
        assert allowances is not None
        self._allowances = allowances

    def __getattr__(self, name: str) -> Any:
        return getattr(self._counter, name)

    async def admit(self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0) -> Any:
        return self._allowances.admit(id, charges, draws, lives)

    async def top_up(self, id: str, draws: Sequence[Draw], lives: float = 60.0) -> Any:
        return self._allowances.top_up(id, draws, lives)

    async def renew(self, ids: Sequence[str], lives: float = 60.0) -> int:
        return self._allowances.renew(ids, lives)


class WithDraw:
    """A Counter that is asked for a draw too, each time: what is said of charges is true then as well."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._counter, name)

    def buckets(self, rate: Rate) -> None:
        return None

    async def admit(self, id: str, charges: Sequence[Charge]) -> Verdict:
        draw = Draw("concurrent:all", "", 1, None, kept=False)
        return await self._counter.admit(id, charges, [draw], 1.0)


def usd(amount: int, limit: int | None = 100, key: str = "ada", window: Window = HOUR) -> Draw:
    return Draw("usd:top/user:1h", key, amount, limit, window)


def at_once(limit: int, key: str = "ada") -> Draw:
    return Draw("concurrent:top/user", key, 1, limit, kept=False)


def draw(it: Bench, *draws: Draw, charges: Sequence[Charge] = (), lives: float = 60.0) -> Verdict:
    return draw_as(it, *draws, charges=charges, lives=lives)[1]


def draw_as(it: Bench, *draws: Draw, charges: Sequence[Charge] = (), lives: float = 60.0) -> tuple[str, Verdict]:
    id = next(IDS)
    return id, it.run(it.counter.admit(id, charges, draws, lives))


def filled(it: Bench, *draws: Draw, records: Records | None = None) -> None:
    it.run(seed(it.counter, records or Records(), draws))


class AllowanceSuite:
    def bench(self) -> AbstractContextManager[Bench]:
        raise NotImplementedError

    @pytest.fixture
    def it(self) -> Any:
        with self.bench() as bench:
            yield bench

    # ---- admission

    def test_what_is_held_counts_against_the_limit(self, it: Bench) -> None:
        filled(it, usd(1))
        assert draw(it, usd(60)) == Verdict(-1, 0.0, [], ADMITTED, pytest.approx(NOW, abs=0.1), -1, [60])
        refused = draw(it, usd(41))
        assert (refused.happened, refused.draw, refused.used, refused.refused) == (REFUSED, 0, [60], -1)
        assert refused.wait == pytest.approx(3000.0, abs=1.0)
        assert draw(it, usd(40)).used == [100]
        assert draw(it, usd(1)).happened == REFUSED

    def test_the_limit_comes_with_each_call(self, it: Bench) -> None:
        filled(it, usd(1))
        assert draw(it, usd(100)).happened == ADMITTED
        assert draw(it, usd(1)).happened == REFUSED
        assert draw(it, usd(50, 150)).happened == ADMITTED
        assert draw(it, usd(1, 100)).used == [150]

    def test_a_refusal_takes_nothing_of_any(self, it: Bench) -> None:
        org, team, key = usd(10, 1000, "org"), usd(10, 15, "team"), usd(10, 1000, "key")
        rate = Rate("r", 10, 1000.0)
        filled(it, org, team, key)
        first = draw(it, org, team, key, at_once(5), charges=[Charge(rate, "a", 1)])
        assert first.used == [10, 10, 10, 1]
        assert first.behind == pytest.approx([100.0], abs=0.1)
        for _ in range(3):
            verdict = draw(it, org, team, key, at_once(5), charges=[Charge(rate, "a", 1)])
            assert (verdict.happened, verdict.draw, verdict.used) == (REFUSED, 1, [10, 10, 10, 1])
        verdict = draw(it, org, key, charges=[Charge(rate, "a", 10)])
        assert (verdict.happened, verdict.draw, verdict.refused) == (REFUSED, -1, 0)
        assert verdict.wait == pytest.approx(100.0, abs=0.1)
        assert draw(it, org, key, charges=[Charge(rate, "a", 9)]).used == [20, 20]

    def test_a_charge_above_its_burst_never_fits(self, it: Bench) -> None:
        filled(it, usd(1))
        assert draw(it, usd(1), charges=[Charge(Rate("r", 10, 1000.0), "a", 11)]).wait == inf
        assert draw(it, usd(1)).used == [1]

    def test_without_a_limit_it_is_counted(self, it: Bench) -> None:
        filled(it, usd(1))
        assert draw(it, usd(90)).happened == ADMITTED
        assert draw(it, usd(90, None)).used == [180]

    def test_nothing_is_free(self, it: Bench) -> None:
        filled(it, usd(0))
        assert [draw(it, usd(0, 2)).happened for _ in range(3)] == [ADMITTED, ADMITTED, REFUSED]

    def test_the_same_admission_again_holds_no_more(self, it: Bench) -> None:
        filled(it, usd(1))
        charge = Charge(Rate("r", 10, 1000.0), "a", 3)
        id, first = draw_as(it, usd(60), charges=[charge])
        it.advance(1.5)
        again = it.run(it.counter.admit(id, [charge], [usd(60)]))
        assert (again.happened, again.used, again.at) == (ADMITTED, [60], first.at)
        assert again.behind == pytest.approx([298.5], abs=0.1)

    def test_what_was_refused_may_be_asked_for_with_less(self, it: Bench) -> None:
        filled(it, usd(1))
        id, verdict = draw_as(it, usd(101))
        assert verdict.happened == REFUSED
        assert it.run(it.counter.admit(id, [], [usd(5)])).used == [5]

    def test_amounts_are_exact(self, it: Bench) -> None:
        filled(it, usd(1))
        id, verdict = draw_as(it, usd(MOST_UNITS - 1, MOST_UNITS))
        assert verdict.used == [MOST_UNITS - 1]
        assert draw(it, usd(2, MOST_UNITS)).happened == REFUSED
        assert draw(it, usd(1, MOST_UNITS)).used == [MOST_UNITS]
        field = usd(1).field
        it.run(it.counter.posted("j", 0, 1, [Posting(1, id, ((field, MOST_UNITS - 2),))]))
        assert draw(it, usd(1, MOST_UNITS)).used == [MOST_UNITS]

    @pytest.mark.parametrize("amount", [-1, MOST_UNITS + 1, 1.5, float("nan"), True])
    def test_no_nonsense_is_stored(self, it: Bench, amount: Any) -> None:
        for nonsense in (usd(amount), usd(1, amount)):
            with pytest.raises(ValueError, match="integer"):
                draw(it, nonsense)
        opening = it.run(it.counter.opening(usd(1), {}))[0]
        if amount != -1:
            with pytest.raises(ValueError, match="integer"):
                it.run(it.counter.seed(opening, amount))
            with pytest.raises(ValueError, match="integer"):
                it.run(it.counter.posted("j", 0, 1, [Posting(1, "", ((usd(1).field, amount),))]))

    def test_draws_must_differ(self, it: Bench) -> None:
        filled(it, usd(1))
        with pytest.raises(ValueError, match="allowance"):
            draw(it, usd(1), usd(2))

    @pytest.mark.parametrize(
        "one",
        [
            usd(1, window=Window(10, 10)),
            usd(1, window=Window(-5, 10)),
            Draw("a", "k", 1, 1, Window(100, 200), (100,)),
            Draw("a", "k", 1, 1, Window(100, 200), (50, 20)),
            Draw("a", "k", 1, 1, Window(100, 200), kept=False),
        ],
    )
    def test_windows_make_sense(self, it: Bench, one: Draw) -> None:
        with pytest.raises(ValueError, match="window"):
            draw(it, one)

    # ---- holds

    def test_a_hold_ends(self, it: Bench) -> None:
        filled(it, usd(1))
        draw(it, usd(100), lives=30.0)
        it.advance(29.0)
        assert draw(it, usd(1)).happened == REFUSED
        it.advance(2.0)
        assert draw(it, usd(1)).used == [1]

    def test_a_hold_that_is_renewed_lives_on(self, it: Bench) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(100), lives=30.0)
        it.advance(20.0)
        assert it.run(it.counter.renew([id, "nobody's"], 30.0)) == 1
        it.advance(20.0)
        assert draw(it, usd(1)).happened == REFUSED
        assert it.run(it.counter.renew([id], 1.0)) == 1  # never shorter
        it.advance(5.0)
        assert draw(it, usd(1)).happened == REFUSED
        it.advance(10.0)
        assert draw(it, usd(1)).happened == ADMITTED
        assert it.run(it.counter.renew([id], 30.0)) == 0

    def test_a_void_call_holds_nothing(self, it: Bench) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(100), at_once(1))
        it.counter.void(id)
        it.counter.void(id)
        it.counter.void("nobody's")
        assert draw(it, usd(100), at_once(1)).used == [100, 1]

    def test_a_call_that_is_over_spends_what_it_came_to(self, it: Bench) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(60), at_once(9))
        it.counter.post("j", 1, id, [(usd(0).field, 25)], True)
        assert draw(it, usd(75), at_once(1)).used == [100, 1]

    def test_it_may_come_to_more_than_was_held(self, it: Bench) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(60))
        it.counter.post("j", 1, id, [(usd(0).field, 250)])
        assert draw(it, usd(1)).used == [250]

    def test_a_posting_counts_once(self, it: Bench) -> None:
        filled(it, usd(1))
        field = usd(0).field
        for _ in range(2):
            assert it.run(it.counter.posted("j", 0, 2, [Posting(1, "", ((field, 5),)), Posting(2, "", ())])) == 2
        assert it.run(it.counter.posted("j", 1, 4, [Posting(2, "", ((field, 7),)), Posting(4, "", ((field, 2),))])) == 4
        it.counter.post("k", 3, "", [(field, 1)])
        it.counter.post("k", 3, "", [(field, 1)])
        assert draw(it, usd(1)).used == [9]

    def test_what_lies_between_is_wanted_first(self, it: Bench) -> None:
        filled(it, usd(1))
        field = usd(0).field
        assert it.run(it.counter.posted("j", 5, 6, [Posting(6, "", ((field, 5),))])) == 0
        assert it.run(it.counter.posted("j", 0, 5, [Posting(2, "", ((field, 3),))])) == 5
        assert it.run(it.counter.posted("j", 5, 6, [Posting(6, "", ((field, 5),))])) == 6
        assert draw(it, usd(1)).used == [9]
        assert it.run(it.counter.journals())["j"] == 6

    def test_a_call_that_ends_late_is_spent_all_the_same(self, it: Bench) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(60), lives=10.0)
        it.advance(60.0)
        assert draw(it, usd(1)).used == [1]
        it.counter.post("j", 1, id, [(usd(0).field, 60)])
        assert draw(it, usd(1)).used == [62]

    def test_a_correction_may_be_negative(self, it: Bench) -> None:
        filled(it, usd(1))
        it.run(it.counter.posted("j", 0, 1, [Posting(1, "", ((usd(0).field, -30),))]))
        assert draw(it, usd(130)).used == [100]

    def test_a_hold_is_topped_up_to_what_it_is_in_all(self, it: Bench) -> None:
        filled(it, usd(1), usd(1, key="org"))
        id, first = draw_as(it, usd(20), usd(20, key="org"))
        for _ in range(2):
            verdict = it.run(it.counter.top_up(id, [usd(50), usd(50, key="org")]))
            assert (verdict.happened, verdict.used, verdict.at) == (ADMITTED, [50, 50], first.at)
        assert it.run(it.counter.top_up(id, [usd(30)])).used == [50]
        verdict = it.run(it.counter.top_up(id, [usd(80), usd(80, 70, key="org")]))
        assert (verdict.happened, verdict.draw) == (REFUSED, 1)
        assert draw(it, usd(50), usd(50, key="org")).used == [100, 100]
        it.counter.void(id)
        assert draw(it, usd(1)).used == [51]

    def test_a_hold_is_topped_up_after_its_window(self, it: Bench) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(20), lives=9000.0)
        it.advance(3100.0)
        assert it.run(it.counter.top_up(id, [usd(30)], 9000.0)).used == [30]
        it.counter.post("j", 1, id, [(usd(0).field, 25)])
        it.advance(100_000.0)
        it.tick()
        assert it.run(it.counter.top_up(id, [usd(30)])).happened == ADMITTED

    def test_a_hold_that_has_lapsed_is_topped_up_anew(self, it: Bench) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(20), lives=10.0)
        it.advance(20.0)
        draw(it, usd(50))
        assert it.run(it.counter.top_up(id, [usd(60)])).happened == REFUSED
        assert it.run(it.counter.top_up(id, [usd(40)])).used == [90]

    def test_calls_at_once_need_no_filling_and_leave_nothing(self, it: Bench) -> None:
        ids = [draw_as(it, at_once(2))[0] for _ in range(2)]
        assert draw(it, at_once(2)).happened == REFUSED
        it.counter.post("j", 1, ids[0], (), True)
        assert draw(it, at_once(2)).happened == ADMITTED
        assert draw(it, at_once(2)).wait == inf
        assert draw(it, at_once(2, "bob")).used == [1]

    # ---- windows

    def test_a_window_that_is_another_is_told_of(self, it: Bench) -> None:
        filled(it, usd(1))
        for window in (Window(NOW - 100, NOW - 5), Window(NOW + 5, NOW + 100)):
            verdict = draw(it, at_once(1), usd(1, window=window))
            assert (verdict.happened, verdict.draw) == (WINDOW, 1)
            assert verdict.at == pytest.approx(NOW, abs=0.1)
        assert draw(it, at_once(1)).used == [1]

    def test_the_next_window_begins_at_0_once_the_allowance_is_known(self, it: Bench) -> None:
        filled(it, usd(1))
        it.counter.know({usd(1).allowance: 3600.0})
        it.tick()
        draw(it, usd(100))
        it.advance(3000.0)
        window = Window(HOUR.end, HOUR.end + 3600)
        assert draw(it, usd(100, window=window)).used == [100]
        assert draw(it, usd(1, key="bob", window=window)).used == [1]
        assert draw(it, usd(1, key="bob")).happened == WINDOW
        other = Draw("tokens:x", "ada", 1, 1, window)
        assert draw(it, other).happened == OPEN

    def test_what_is_known_no_longer_is_filled(self, it: Bench) -> None:
        filled(it, usd(1))
        it.counter.know({usd(1).allowance: 3600.0})
        it.tick()
        it.counter.know({})
        it.tick()
        it.advance(3000.0)
        it.counter.know({usd(1).allowance: 3600.0})
        it.tick()
        it.advance(60.0)
        assert draw(it, usd(1, window=Window(HOUR.end, HOUR.end + 3600))).happened == OPEN
        assert draw(it, usd(1, window=Window(HOUR.end + 30, HOUR.end + 3600))).happened == ADMITTED

    def test_a_rolling_window_slides(self, it: Bench) -> None:
        def rolling(amount: int, now: int) -> Draw:
            start = now // 100 * 100
            return Draw("usd:roll", "ada", amount, 100, Window(start, start + 100), (start - 200, start - 100))

        filled(it, rolling(1, NOW))
        it.counter.know({"usd:roll": 300.0})
        it.tick()
        id, _ = draw_as(it, rolling(30, NOW))
        it.counter.post("j", 1, id, [(rolling(0, NOW).field, 30)])
        it.advance(100.0)
        assert draw(it, rolling(40, NOW + 100), lives=1000.0).used == [70]
        it.advance(100.0)
        assert draw(it, rolling(31, NOW + 200)).used == [70]
        it.advance(100.0)
        assert draw(it, rolling(31, NOW + 300)).used == [71]

    def test_a_life_needs_no_filling(self, it: Bench) -> None:
        def cap(at: float, amount: int = 40) -> Draw:
            return Draw("usd:run", "run-1", amount, 100, *life(at, 600))

        filled(it, usd(1))
        it.counter.know({"usd:run": 1200.0})
        it.tick()
        it.advance(1500.0)
        assert draw(it, cap(NOW + 1500), lives=2000.0).used == [40]
        it.advance(590.0)
        assert draw(it, cap(NOW + 2090), lives=2000.0).used == [80]
        assert draw(it, cap(NOW + 2090), lives=2000.0).happened == REFUSED

    def test_a_whole_life_is_filled(self, it: Bench) -> None:
        one = usd(1, window=WHOLE)
        it.counter.know({one.allowance: 0.0})
        filled(it, usd(1))
        it.tick()
        it.advance(100.0)
        assert draw(it, one).happened == OPEN
        records = Records()
        records.add("old", "", [(one.field, 80)])
        records.ship()
        it.run(it.counter.posted("old", 0, 1, records.of["old"]))  # it draws on nothing that is open
        filled(it, one, records=records)
        assert draw(it, one).used == [81]

    def test_fields_are_forgotten_after_their_window(self, it: Bench) -> None:
        filled(it, usd(1))
        draw(it, usd(50))
        it.advance(3000.0 + 3700.0)
        it.tick()
        assert it.run(it.counter.posted("j", 0, 1, [Posting(1, "", ((usd(0).field, 5),))])) == 1
        it.advance(-3700.0 - 3000.0)  # the clock is set back
        assert draw(it, usd(1)).happened == OPEN

    # ---- filling

    def test_a_field_is_filled_once_from_what_came_before(self, it: Bench) -> None:
        records = Records()
        field = usd(0).field
        for amount in (10, 20, 30):
            records.add("old", "", [(field, amount)])
        records.ship()
        assert draw(it, usd(1)).happened == OPEN
        assert it.run(it.counter.journals()) is None
        (opening,) = it.run(it.counter.opening(usd(1), records.shipped))
        assert opening.upto == {"old": 3}
        assert it.run(it.counter.opening(usd(1), records.shipped)) == []
        assert draw(it, usd(1)).happened == OPEN
        # Meanwhile somebody's call ends: it is not in the sum, and is counted.
        late = records.add("old", "", [(field, 7)])
        assert it.run(it.counter.posted("old", 3, 4, [late])) == 4
        assert it.run(it.counter.seed(opening, 60)) == 0
        assert it.run(it.counter.seed(opening, 60)) is None
        assert draw(it, usd(1)).used == [68]

    def test_who_dies_while_filling_is_followed(self, it: Bench) -> None:
        (dead,) = it.run(it.counter.opening(usd(1), {}))
        it.run(it.counter.posted("j", 0, 1, [Posting(1, "", ((usd(0).field, 5),))]))
        it.advance(11.0)
        (opening,) = it.run(it.counter.opening(usd(1), {}))
        assert opening.upto == {"j": 1}
        it.run(it.counter.posted("j", 1, 2, [Posting(2, "", ((usd(0).field, 4),))]))
        assert it.run(it.counter.seed(dead, 0)) is None
        assert draw(it, usd(1)).happened == OPEN
        assert it.run(it.counter.seed(opening, 5)) == 0
        assert draw(it, usd(1)).used == [10]

    def test_a_rolling_window_is_filled_slot_by_slot(self, it: Bench) -> None:
        one = Draw("usd:roll", "ada", 1, 100, Window(NOW, NOW + 100), (NOW - 200, NOW - 100))
        records = Records()
        for start, amount in ((NOW - 300, 1000), (NOW - 200, 20), (NOW - 100, 30), (NOW, 5)):
            records.add("old", "", [(f"usd:roll|ada|{start}", amount)])
        records.ship()
        assert it.run(seed(it.counter, records, [one])) == 3
        assert it.run(seed(it.counter, records, [one])) == 0
        assert draw(it, one).used == [56]

    def test_what_the_ledger_has_and_nobody_posted_is_caught_up_with(self, it: Bench) -> None:
        records = Records()
        filled(it, usd(1), records=records)
        for n in range(25):
            records.add("dead", "", [(usd(0).field, 1)] if n % 2 else [])
        records.ship()
        assert it.run(catch_up(it.counter, records, 5)) == 12
        assert it.run(catch_up(it.counter, records, 5)) == 0
        assert it.run(it.counter.journals())["dead"] == 25
        assert draw(it, usd(1)).used == [13]

    def test_a_sum_that_is_wrong_is_found_and_put_right(self, it: Bench) -> None:
        records = Records()
        filled(it, usd(1), usd(1, key="bob"), records=records)
        id, _ = draw_as(it, usd(10))
        record = records.add("j", id, [(usd(0).field, 8)])
        it.run(it.counter.posted("j", 0, 1, [record]))
        it.run(it.counter.posted("nobody's", 0, 1, [Posting(1, "", ((usd(0).field, 33),))]))
        records.of["nobody's"] = [Posting(1, "", ())]
        records.ship()
        draws = [usd(1), usd(1, key="bob")]
        assert it.run(check(it.counter, records, draws)) == {draws[0].field: 33, draws[1].field: 0}
        it.advance(11.0)
        assert it.run(check(it.counter, records, draws)) == {draws[0].field: 0, draws[1].field: 0}
        assert draw(it, usd(1)).used == [9]

    def test_what_begins_at_0_and_is_not_there_has_nothing_to_be_put_right(self, it: Bench) -> None:
        """It may be drawn on at any moment, and what is posted to it then must not be written over."""
        records = Records()
        it.counter.know({"usd:top/user:1h": 3600.0})
        it.tick()
        filled(it, usd(1), records=records)
        it.tick()
        it.advance(3600.0)
        new = usd(1, window=Window(HOUR.start + 3600, HOUR.end + 3600))
        it.advance(11.0)
        assert it.run(it.counter.opening(new, {}, again=True)) == []
        assert it.run(check(it.counter, records, [new])) == {}
        id, verdict = draw_as(it, new)
        assert (verdict.happened, verdict.used) == (ADMITTED, [1])
        record = records.add("j", id, [(new.field, 8)])
        it.run(it.counter.posted("j", 0, 1, [record]))
        records.ship()
        assert it.run(check(it.counter, records, [new])) == {new.field: 0}

    # ---- what is not to stop anything

    @pytest.mark.parametrize("nonsense", [(("no field", 1),), (("a|b|1", 1.5),), (("a|b|x", 1),), (("a|b|1", 2**60),)])
    def test_a_posting_that_makes_no_sense_stops_nothing(
        self, it: Bench, nonsense: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        filled(it, usd(1))
        id, _ = draw_as(it, usd(50))
        it.counter.post("j", 1, id, nonsense)
        it.counter.post("j", 2, "", [(usd(0).field, 7)])
        assert draw(it, usd(1)).used == [8]
        assert "counted as nothing" in caplog.text
        records = Records()
        records.add("dead", "", nonsense)
        records.add("dead", "", [(usd(0).field, 2)])
        records.ship()
        it.run(catch_up(it.counter, records))
        assert draw(it, usd(1)).used == [11]

    @pytest.mark.parametrize("lives", [0.0, -1.0, float("nan"), inf])
    def test_holds_live_for_a_time(self, it: Bench, lives: float) -> None:
        filled(it, usd(1))
        for work in (
            it.counter.admit("id", [], [usd(1)], lives),
            it.counter.top_up("id", [usd(1)], lives),
            it.counter.renew(["id"], lives),
        ):
            with pytest.raises(ValueError, match="lives"):
                it.run(work)

    def test_an_allowance_has_no_bar_in_its_name(self, it: Bench) -> None:
        with pytest.raises(ValueError, match="name"):
            draw(it, Draw("a|b", "c", 1, 1, kept=False))
