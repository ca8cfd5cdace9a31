"""What every ledger must do. A test class inherits LedgerConformance and says how its store is opened."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tollhouse.ledger.base import BY, Entry, Ledger, LedgerError
from tollhouse.ledger.records import USAGE, UsageRecord

HOUR = 3600
T0 = 1_795_312_800  # on the hour
JOURNAL = "0123456789abcdef" * 2
OTHER_JOURNAL = "fedcba9876543210" * 2


def record(n: int = 0, **fields: Any) -> UsageRecord:
    at = (T0 + n) * 1_000_000
    given: dict[str, Any] = {
        "admitted_at": at,
        "ended_at": at + 250_000,
        "request_id": f"req-{n}",
        "org": "platform",
        "user": "ada",
        "key": "ci",
        "model_asked": "smart",
        "provider": "openai",
        "outcome": "ok",
        "input": 10,
        "output": 5,
    }
    return UsageRecord(**(given | fields))


def entry(seq: int, n: int | None = None, **fields: Any) -> Entry:
    return Entry(seq, USAGE, msgspec.json.encode(record(seq if n is None else n, **fields)))


class LedgerConformance:
    """`make`: opens the same store each time it is called, as another process would."""

    @pytest.fixture
    def make(self) -> Callable[[], Ledger]:
        raise NotImplementedError

    @pytest.fixture
    def ledger(self, make: Callable[[], Ledger]) -> Any:
        ledger = make()
        ledger.open()
        yield ledger
        ledger.close()

    def requests(self, ledger: Ledger, *by: str) -> dict[tuple[str, ...], int]:
        return {row.by: row.requests for row in ledger.usage(T0 - 10 * HOUR, T0 + 10 * HOUR, by)}

    def test_empty(self, ledger: Ledger) -> None:
        assert ledger.position(JOURNAL) == 0
        assert ledger.usage(T0, T0 + HOUR) == []
        assert ledger.usage(T0, T0 + HOUR, ["org"]) == []
        assert ledger.rejected() == 0

    def test_ships_and_advances(self, ledger: Ledger) -> None:
        assert ledger.ship(JOURNAL, [entry(1), entry(2), entry(3)]) == 3
        assert ledger.position(JOURNAL) == 3
        assert ledger.position(OTHER_JOURNAL) == 0
        assert self.requests(ledger) == {(): 3}

    def test_shipping_nothing(self, ledger: Ledger) -> None:
        assert ledger.ship(JOURNAL, []) == 0
        assert ledger.position(JOURNAL) == 0

    def test_shipping_again_changes_nothing(self, ledger: Ledger) -> None:
        batch = [entry(1), entry(2)]
        ledger.ship(JOURNAL, batch)
        assert ledger.ship(JOURNAL, batch) == 0
        assert self.requests(ledger) == {(): 2}
        assert ledger.position(JOURNAL) == 2

    def test_shipping_an_overlap_adds_the_rest(self, ledger: Ledger) -> None:
        ledger.ship(JOURNAL, [entry(1), entry(2)])
        assert ledger.ship(JOURNAL, [entry(2), entry(3)]) == 1
        assert self.requests(ledger) == {(): 3}

    def test_an_older_batch_does_not_move_the_position_back(self, ledger: Ledger) -> None:
        ledger.ship(JOURNAL, [entry(n) for n in range(1, 6)])
        assert ledger.ship(JOURNAL, [entry(2)]) == 0
        assert ledger.position(JOURNAL) == 5

    def test_a_forgotten_position_does_not_count_twice(self, ledger: Ledger) -> None:
        batch = [entry(1), entry(2)]
        ledger.ship(JOURNAL, batch)
        ledger.forget(JOURNAL)
        assert ledger.position(JOURNAL) == 0
        assert ledger.ship(JOURNAL, [*batch, entry(3)]) == 1
        assert self.requests(ledger) == {(): 3}
        assert ledger.usage(T0, T0 + HOUR)[0].input == 30

    def test_same_seq_of_two_journals(self, ledger: Ledger) -> None:
        ledger.ship(JOURNAL, [entry(1)])
        assert ledger.ship(OTHER_JOURNAL, [entry(1)]) == 1
        assert self.requests(ledger) == {(): 2}

    def test_poison_is_kept_aside_and_stops_nobody(self, ledger: Ledger) -> None:
        batch = [
            entry(1),
            Entry(2, USAGE, b"{not json"),
            Entry(3, USAGE, b'{"admitted_at": "yesterday"}'),
            Entry(4, 99, b"{}"),
            entry(5, input=1 << 70),
            entry(6),
        ]
        assert ledger.ship(JOURNAL, batch) == 2
        assert ledger.rejected() == 4
        assert ledger.position(JOURNAL) == 6
        assert ledger.ship(JOURNAL, batch) == 0
        assert ledger.rejected() == 4
        assert self.requests(ledger) == {(): 2}

    def test_sums(self, ledger: Ledger) -> None:
        ledger.ship(
            JOURNAL,
            [
                entry(1, cost_nano=1_000_000_007),
                entry(2, cache_read=7, cache_write=3, reasoning=2),
                entry(3, outcome="upstream_error", status=502, output=0, cost_nano=0),
                entry(4, outcome="denied", status=403, input=0, output=0),
                entry(5, input=0, output=0, cache_write=6, cache_write_1h=5, cost_nano=3),
                entry(6, input=8, output=9, audio_input=1, audio_output=2, image_input=3, image_output=4, cost_nano=4),
            ],
        )
        (row,) = ledger.usage(T0, T0 + HOUR)
        assert (row.requests, row.errors) == (6, 1)
        assert row.unpriced == 1  # the second; the denied one used nothing
        assert (row.input, row.output, row.cache_read, row.cache_write, row.reasoning) == (38, 19, 7, 9, 2)
        assert (row.cache_write_1h, row.audio_input, row.audio_output) == (5, 1, 2)
        assert (row.image_input, row.image_output) == (3, 4)
        assert row.cost_nano == 1_000_000_014

    def test_groups(self, ledger: Ledger) -> None:
        ledger.ship(
            JOURNAL,
            [
                entry(1, org="a", model_asked="x"),
                entry(2, org="a", model_asked="y"),
                entry(3, org="b", model_asked="x"),
                entry(4, org="b", model_asked="x"),
                entry(5, org="", model_asked="", server="shop", tool="buy"),
            ],
        )
        assert self.requests(ledger, "org") == {("",): 1, ("a",): 2, ("b",): 2}
        assert self.requests(ledger, "model", "org") == {("", ""): 1, ("x", "a"): 1, ("x", "b"): 2, ("y", "a"): 1}
        assert self.requests(ledger, "server", "tool") == {("", ""): 4, ("shop", "buy"): 1}
        assert [r.by for r in ledger.usage(T0, T0 + HOUR, ["org"])] == [("",), ("a",), ("b",)]
        for name in BY:
            assert sum(self.requests(ledger, name).values()) == 5

    def test_hours(self, ledger: Ledger) -> None:
        ledger.ship(JOURNAL, [entry(1, 0), entry(2, HOUR - 1), entry(3, HOUR), entry(4, 24 * HOUR)])
        assert [r.requests for r in ledger.usage(T0, T0 + HOUR)] == [2]
        assert [r.requests for r in ledger.usage(T0 + 1, T0 + HOUR + 1)] == [3]  # whole hours
        rows = ledger.usage(T0, T0 + 48 * HOUR, ["hour"])
        assert [(r.by[0], r.requests) for r in rows] == [
            ("2026-11-22T02:00:00Z", 2),
            ("2026-11-22T03:00:00Z", 1),
            ("2026-11-23T02:00:00Z", 1),
        ]
        rows = ledger.usage(T0, T0 + 48 * HOUR, ["day"])
        assert [(r.by[0], r.requests) for r in rows] == [("2026-11-22T00:00:00Z", 3), ("2026-11-23T00:00:00Z", 1)]

    def test_late_records_go_to_their_hour(self, ledger: Ledger) -> None:
        ledger.ship(JOURNAL, [entry(1, 5 * HOUR)])
        ledger.ship(JOURNAL, [entry(2, 0)])
        assert [r.requests for r in ledger.usage(T0, T0 + HOUR)] == [1]

    def test_an_unknown_group_is_refused(self, ledger: Ledger) -> None:
        with pytest.raises(ValueError, match="org; drop"):
            ledger.usage(0, 1, ["org; drop table usage"])

    def test_names_with_anything_in_them(self, ledger: Ledger) -> None:
        name = "o'x\"; \x00 \u00e9 \U0001f600"
        ledger.ship(JOURNAL, [entry(1, org=name)])
        assert self.requests(ledger, "org") == {(name,): 1}

    def test_survives_reopening(self, make: Callable[[], Ledger]) -> None:
        first = make()
        first.open()
        first.open()  # twice does nothing
        first.ship(JOURNAL, [entry(1)])
        first.close()
        first.close()
        second = make()
        second.open()
        try:
            assert second.position(JOURNAL) == 1
            assert self.requests(second) == {(): 1}
        finally:
            second.close()

    def test_not_open(self, make: Callable[[], Ledger]) -> None:
        ledger = make()
        with pytest.raises(LedgerError):
            ledger.position(JOURNAL)
        with pytest.raises(LedgerError):
            ledger.ship(JOURNAL, [entry(1)])

    def test_two_at_a_time(self, make: Callable[[], Ledger], ledger: Ledger) -> None:
        """Both believe that they own the journal, as after a lock that was lost: still each record counts once."""
        second = make()
        second.open()
        try:
            for start in range(1, 101, 10):
                batch = [entry(n) for n in range(start, start + 10)]
                assert ledger.ship(JOURNAL, batch) + second.ship(JOURNAL, batch) == 10
            assert self.requests(second) == {(): 100}
        finally:
            second.close()
