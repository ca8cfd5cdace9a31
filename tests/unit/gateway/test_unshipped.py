"""What journals have and the ledger has not: read beside who writes, ships and deletes them, and summed up exactly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tollhouse.gateway.ledger_history import LedgerHistory
from tollhouse.gateway.unshipped import Unshipped
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import AUDIT, UsageRecord
from tollhouse.ledger.segment import Reader
from tollhouse.ledger.sqlite import SqliteLedger
from tollhouse.store.base import WHOLE, Draw

FIELD = "calls:cel|x|0"
AT = 1_790_000_000_000_000


def record(cost: int, user: str = "ada") -> UsageRecord:
    return UsageRecord(
        admitted_at=AT, ended_at=AT, outcome="ok", user=user, model_asked="m", cost_nano=cost, draws=((FIELD, cost),)
    )


class Shipping:
    """A journal, and who ships it step by step: as `ledger.ship.Shipper` does, where the test says."""

    def __init__(self, where: Path, ledger: SqliteLedger, segment: int = 700) -> None:
        self.journal = Journal(where, segment_size=segment, spare=0)
        self.journal.open()
        self.ledger = ledger
        self.reader = Reader(where, self.journal.id, 0, live=True)

    def ship(self, most: int) -> None:
        entries = self.reader.read(most)
        if entries:
            self.ledger.ship(self.journal.id, entries)

    def delete(self) -> None:
        while self.reader.done:
            _, path = self.reader.done.pop()
            path.unlink()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[SqliteLedger]:
    one = SqliteLedger(tmp_path / "tollhouse.db")
    one.open()
    yield one
    one.close()


def total(unshipped: Unshipped, after: dict[str, int], upto: dict[str, int]) -> int:
    return unshipped.sum(lambda ledger, upto: ledger.drawn(FIELD, upto), after, upto)


def test_no_journals_and_none_that_can_be_read(tmp_path: Path, ledger: SqliteLedger) -> None:
    unshipped = Unshipped(tmp_path / "none")
    assert unshipped.read({})
    assert unshipped.ends() == {}
    assert total(unshipped, {}, {"a": 5}) == 0
    assert unshipped.posts("a", 0, 9) == []
    (tmp_path / f"{'b' * 32}-00000001-0000000000000001.seg").mkdir()
    assert not Unshipped(tmp_path).read({})


def test_more_than_it_reads_is_told(tmp_path: Path, ledger: SqliteLedger) -> None:
    one = Shipping(tmp_path / "j", ledger, 200_000)
    for n in range(6000):
        one.journal.append(record(1) if n % 2 else record(2))
    unshipped = Unshipped(one.journal.directory, most=4000)
    assert not unshipped.read({})
    assert unshipped.ends()[one.journal.id] == 4000
    while ledger.position(one.journal.id) < 6000:
        one.ship(1000)
    # It is read from where the ledger is now.
    assert unshipped.read({one.journal.id: 3000})
    assert unshipped.ends() == {one.journal.id: 6000}
    assert total(unshipped, {one.journal.id: 3000}, {one.journal.id: 6000}) == 4500
    unshipped.tidy({one.journal.id: 5999})
    assert len(unshipped) == 3000
    unshipped.tidy({one.journal.id: 6000})
    assert len(unshipped) == 0
    one.journal.close()


STEPS = st.lists(
    st.tuples(st.sampled_from("wwwaasdkrq"), st.integers(0, 1), st.integers(1, 9)), min_size=1, max_size=50
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS)
def test_sums_are_exact_whatever_is_shipped_and_deleted_meanwhile(steps: Any, tmp_path_factory: Any) -> None:
    """Write, audit, ship, delete, kill (another process takes its place), read and ask, in any order."""
    where = tmp_path_factory.mktemp("journals")
    ledger = SqliteLedger(where / "tollhouse.db")
    ledger.open()
    history = LedgerHistory(ledger, None, where / "j")
    lives = [Shipping(where / "j", ledger) for _ in range(2)]
    written: dict[str, list[tuple[int, int]]] = {}
    asked: list[dict[str, int]] = []
    draw = Draw("calls:cel", "x", 1, None, WHOLE)

    def sum_of(upto: dict[str, int]) -> int:
        return sum(cost for journal, seq in upto.items() for n, cost in written.get(journal, []) if n <= seq)

    try:
        for step, who, n in steps:
            one = lives[who]
            match step:
                case "w":
                    for cost in range(n):
                        written.setdefault(one.journal.id, []).append((one.journal.append(record(cost)), cost))
                case "a":
                    one.journal.append(record(7), AUDIT)
                case "s":
                    one.ship(n)
                case "d":
                    one.delete()
                case "k":
                    one.journal.close()
                    lives[who] = Shipping(where / "j", ledger)
                case "r":
                    positions = dict(history._positions(ledger, True))
                    assert {j: p for j, p in positions.items() if p} == {j: one[-1][0] for j, one in written.items()}
                    asked.append(positions)
                case _:
                    for upto in asked:
                        found = history._sum(ledger, lambda ledger, upto: ledger.drawn(draw.field, upto), upto)
                        assert found == sum_of(upto)
                        for journal, seq in upto.items():
                            posts = history._posts(ledger, journal, seq // 2, n)
                            wanted = [one for one in written.get(journal, []) if one[0] > seq // 2]
                            assert [(p.seq, p.draws[0][1]) for p in posts if p.seq <= seq] == [
                                (at, cost) for at, cost in wanted[:n] if at <= seq
                            ]
    finally:
        history._end()
        ledger.close()
        for one in lives:
            one.journal.close()
