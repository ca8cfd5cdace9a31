"""What every ledger must do. A test class inherits LedgerConformance and says how its store is opened."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from tollhouse.ledger.base import BY, UNITS, Entry, Ledger, LedgerError, Post
from tollhouse.ledger.records import AUDIT, INTENT, USAGE, UsageRecord, identify

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
    """`make`: opens the same store each time it is called, as another process would. nul: what a NUL is stored as."""

    nul = "\x00"

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

    def test_groups_of_times(self, ledger: Ledger) -> None:
        """A week begins on Monday, and a month is a month of the calendar, in UTC."""
        day = 24 * HOUR  # T0 is on Sunday, 22 November 2026, at 02:00
        ledger.ship(JOURNAL, [entry(1, 0), entry(2, 22 * HOUR), entry(3, 8 * day), entry(4, 9 * day)])

        def by(name: str) -> list[tuple[str, int]]:
            return [(row.by[0], row.requests) for row in ledger.usage(T0 - day, T0 + 40 * day, [name])]

        assert by("week") == [("2026-11-16T00:00:00Z", 1), ("2026-11-23T00:00:00Z", 1), ("2026-11-30T00:00:00Z", 2)]
        assert by("month") == [("2026-11-01T00:00:00Z", 3), ("2026-12-01T00:00:00Z", 1)]

    def test_found_by(self, ledger: Ledger) -> None:
        ledger.ship(
            JOURNAL,
            [
                entry(1, user="ada", org="a", run_id="r1"),
                entry(2, user="bob", org="a", run_id="r1", input=0, cost_nano=5),
                entry(3, user="ada", org="b", run_id="r2", cached="exact", saved_nano=9, withheld_tokens=4),
                entry(4, user="eve", org="b", guard="pii"),
            ],
        )

        def requests(*where: tuple[str, str]) -> int:
            return sum(row.requests for row in ledger.usage(T0, T0 + HOUR, where=where))

        assert requests(("user", "ada")) == 2
        assert requests(("user", "ada"), ("user", "bob")) == 3  # any of these
        assert requests(("user", "ada"), ("org", "a")) == 1  # and both
        assert requests(("guard", "pii")) == 1
        assert requests(("user", "o'x; --")) == 0
        assert requests(("run", "r1")) == 2
        assert requests(("run", "")) == 1
        assert requests(("run", "r2"), ("user", "ada")) == 1
        (cached,) = ledger.usage(T0, T0 + HOUR, where=[("cached", "exact")])
        assert (cached.saved_nano, cached.withheld) == (9, 4)
        runs = ledger.usage(T0, T0 + HOUR, ["run"])
        assert [(row.by, row.requests, row.cost_nano, row.unpriced) for row in runs] == [
            (("",), 1, 0, 1),
            (("r1",), 2, 5, 1),
            (("r2",), 1, 0, 1),
        ]
        for name in ("hour", "cost", "user; --"):
            with pytest.raises(ValueError, match="found by"):
                ledger.usage(T0, T0 + HOUR, where=[(name, "x")])

    def test_order_and_top(self, ledger: Ledger) -> None:
        ledger.ship(JOURNAL, [entry(n, user=f"u{n % 7}", cost_nano=n % 7 * 10, input=7 - n % 7) for n in range(1, 71)])
        ordered = ledger.usage(T0, T0 + HOUR, ["user"], order="cost_nano", top=3)
        assert [row.by[0] for row in ordered] == ["u6", "u5", "u4"]
        assert [row.by[0] for row in ledger.usage(T0, T0 + HOUR, ["user"], order="input")][:2] == ["u0", "u1"]
        assert [row.by[0] for row in ledger.usage(T0, T0 + HOUR, ["user"], top=2)] == ["u0", "u1"]
        assert [row.by[0] for row in ledger.usage(T0, T0 + HOUR, ["user"], order="requests", top=2)] == ["u0", "u1"]
        with pytest.raises(ValueError, match="ordered by"):
            ledger.usage(T0, T0 + HOUR, ["user"], order="by")

    def test_tags(self, ledger: Ledger) -> None:
        """A call counts in each of its tags' groups, and once in the sum without them."""
        tags = [("x",), ("x", "y"), (), ('"[,',)]
        ledger.ship(JOURNAL, [entry(n, tags=one) for n, one in enumerate(tags, 1)])
        assert self.requests(ledger, "tag") == {("",): 1, ('"[,',): 1, ("x",): 2, ("y",): 1}
        assert self.requests(ledger) == {(): 4}
        assert [row.requests for row in ledger.usage(T0, T0 + HOUR, where=[("tag", "x"), ("tag", "y")])] == [2]
        assert [row.requests for row in ledger.usage(T0, T0 + HOUR, where=[("tag", "")])] == [1]
        assert ledger.spent("calls", 0, 1 << 52, {"tag": "x"}) == 2
        assert [row.by for row in ledger.usage(T0, T0 + HOUR, ["tag", "run"])] == [
            ("", ""),
            ('"[,', ""),
            ("x", ""),
            ("y", ""),
        ]

    def test_positions_outlive_their_journals(self, ledger: Ledger) -> None:
        assert ledger.positions() == {}
        ledger.ship(JOURNAL, [entry(1), entry(2)])
        ledger.ship(OTHER_JOURNAL, [Entry(1, AUDIT, b"{not json"), entry(2)])
        assert ledger.positions() == {JOURNAL: 2, OTHER_JOURNAL: 2}
        ledger.forget(JOURNAL)
        assert ledger.position(JOURNAL) == 0
        assert ledger.positions() == {JOURNAL: 2, OTHER_JOURNAL: 2}
        ledger.ship("3" * 32, [Entry(1, AUDIT, b"{not json")])  # no usage, and so nothing that a budget could ask for
        assert set(ledger.positions()) == {JOURNAL, OTHER_JOURNAL}

    def test_spent(self, ledger: Ledger) -> None:
        at = T0 * 1_000_000
        ledger.ship(
            JOURNAL,
            [
                entry(1, user="ada", cost_nano=100, cache_read=3, run_id="r"),
                entry(2, user="ada", input=0, output=0, outcome="denied"),
                entry(3, user="ada", cost_nano=1, outcome="denied"),  # by a guard, when it had been answered
                entry(4, user="ada", input=0, output=0, outcome="invalid", upstream_us=5),
                entry(5, user="bob", cost_nano=1000),
                entry(6, user="eve", model_asked="", server="shop", tool="buy"),
                entry(7, user="eve", model_asked="", server="shop"),  # asked which tools there are
                entry(8, user="ada", input=0, output=0, outcome="error", reason="Overloaded"),  # nobody could say
                # Who left, or was failed, before he was let in; and what is a later round of a call.
                entry(9, user="ada", input=0, output=0, outcome="client_gone"),
                entry(10, user="ada", input=0, output=0, outcome="timeout"),
                entry(11, user="eve", input=0, output=0, model_asked="", server="shop", tool="buy", attempt=0),
                entry(12, user="ada", input=0, output=0, outcome="denied", upstream_us=5),
                entry(13, user="ada", input=0, output=0, outcome="denied", hold="h"),
            ],
        )
        ledger.ship(OTHER_JOURNAL, [entry(1, user="ada", cost_nano=10_000)])
        ada = {"user": "ada"}
        everything = (0, 1 << 52)
        assert ledger.spent("usd", *everything, ada) == 10_101
        assert ledger.spent("usd", *everything, {}) == 11_101
        assert ledger.spent("tokens", *everything, ada) == 48
        assert ledger.spent("input_tokens", *everything, ada) == 33
        assert ledger.spent("output_tokens", *everything, ada) == 15
        assert ledger.spent("calls", *everything, ada) == 2
        assert ledger.spent("calls", *everything, {"user": "eve"}) == 1
        ledger.ship(
            JOURNAL,
            [
                # Who left when he had been let in, when somebody was asked, and when there was an answer already.
                entry(14, user="joe", input=0, output=0, outcome="client_gone", hold="h"),
                entry(15, user="joe", input=0, output=0, outcome="timeout", upstream_us=1),
                entry(16, user="joe", input=0, output=0, outcome="client_gone", cached="exact"),
                entry(17, user="joe", input=0, output=0, outcome="denied", hold="h", upstream_us=5),  # by a guard
                entry(18, user="joe", input=0, output=0, outcome="lost", hold="h"),
                entry(19, user="joe", input=0, output=0, model_asked="", server="s", tool="t", outcome="tool_error"),
            ],
        )
        assert ledger.spent("calls", *everything, {"user": "joe"}) == 6
        assert ledger.spent("usd", *everything, {"run": "r"}) == 100
        assert ledger.spent("usd", *everything, {"user": "ada", "org": "nobody"}) == 0
        # to the microsecond
        assert ledger.spent("usd", at + 1_000_000, at + 1_000_001, ada) == 10_100
        assert ledger.spent("usd", at + 1_000_001, at + 3_000_000, ada) == 0
        # up to a place in each journal
        assert ledger.spent("usd", *everything, ada, {JOURNAL: 3}) == 101
        assert ledger.spent("usd", *everything, ada, {JOURNAL: 2, OTHER_JOURNAL: 9}) == 10_100
        assert ledger.spent("usd", *everything, ada, {}) == 0
        # by a name that SQLite and PostgreSQL have for parts of JSON, too
        assert ledger.spent("usd", *everything, {"key": "ci", "tag": ""}, {JOURNAL: 3}) == 101
        assert ledger.spent("usd", *everything, {"key": "other"}, {JOURNAL: 3}) == 0
        with pytest.raises(ValueError, match="found by"):
            ledger.spent("usd", *everything, {"colour": "red"})
        with pytest.raises(ValueError, match="nothing that is spent"):
            ledger.spent("euro", *everything, ada)  # type: ignore[arg-type]

    def test_the_fields_that_were_drawn_on_are_found_one_after_the_other(self, ledger: Ledger) -> None:
        fields = ("day:usd|ada|1000", "day:usd|ada|2000", "day:usd|\x01key:ci|2000", "day:usd|Zoë|1000", "hour:usd|x|1")
        ledger.ship(JOURNAL, [entry(n, draws=((field, n), (fields[0], 1))) for n, field in enumerate(fields, 1)])
        found, at = [], "day:usd|"
        while at := ledger.next_field(at, "day:usd|\U0010ffff"):
            found.append(at)
            at += "\x01"
        assert found == sorted(fields[:4])
        assert ledger.next_field("day:usd|ada|1500", "day:usd|ada|\U0010ffff") == fields[1]
        assert ledger.next_field("week:", "x") == ""

    def test_which_journals_are_closed_and_which_ledger_it_is(self, ledger: Ledger, make: Callable[[], Ledger]) -> None:
        ledger.ship(JOURNAL, [entry(1)])
        ledger.ship(OTHER_JOURNAL, [entry(1)])
        ledger.forget(JOURNAL)
        assert ledger.closed([JOURNAL, OTHER_JOURNAL, "3" * 32]) == {JOURNAL}
        assert ledger.closed([]) == set()
        other = make()
        other.open()
        assert other.identity() == ledger.identity() != "0"
        other.close()

    def test_when_a_run_began(self, ledger: Ledger) -> None:
        at = T0 * 1_000_000
        ledger.ship(
            JOURNAL,
            [
                entry(1, run_id="k/a", outcome="denied", parent_id="k/no"),
                entry(3, run_id="k/a", parent_id="k/up"),
                entry(2, run_id="k/b"),
                entry(4, run_id="k/a", parent_id="k/other"),
            ],
        )
        assert ledger.run_began("k/a", 0) == (at + 3_000_000, "k/up")
        assert ledger.run_began("k/a", at + 3_000_001) == (at + 4_000_000, "k/other")
        assert ledger.run_began("k/b", 0) == (at + 2_000_000, "")
        assert ledger.run_began("k/c", 0) is None
        assert ledger.run_began("", 0) is None

    def test_many_accounts_at_once(self, ledger: Ledger) -> None:
        """Whatever is asked of one by one, and all of it in one look."""
        at = T0 * 1_000_000
        long = "x" * 700
        whose = [("o", "ada"), ("o", "bob"), ("p", "ada"), ("", ""), ("o", long)]
        for journal in (JOURNAL, OTHER_JOURNAL):
            ledger.ship(
                journal,
                [
                    entry(n, org=org, user=user, cost_nano=n, model_asked="m" if n % 3 else "x")
                    for n, (org, user) in enumerate(whose * 6, 1)
                ],
            )
        bounds = [at, at + 5_000_000, at + 6_000_000, at + 29_000_000, at + 40_000_000]
        upto = {JOURNAL: 17, OTHER_JOURNAL: 26}
        for unit in UNITS:
            found = ledger.spent_each(unit, bounds, ("org", "user"), [*whose, ("q", "ada")], {"model": "m"}, upto)
            assert ("q", "ada") not in found
            for org, user in whose:
                where = {"org": org, "user": user, "model": "m"}
                each = [ledger.spent(unit, *span, where, upto) for span in pairwise(bounds)]
                assert found.get((org, user), [0] * 4) == each
        assert ledger.spent_each("usd", bounds, ("user",), [("ada",)], {}, {}) == {}

    def test_draws_and_posts(self, ledger: Ledger) -> None:
        a, b, c = "day:usd|ada|1000", "day:usd|ada|2000", "day:usd|adamant|1000"
        ledger.ship(
            JOURNAL,
            [
                entry(1, draws=((a, 5), (c, 7)), cached="exact"),
                entry(2),
                entry(3, draws=((b, 11), (a, -1)), hold="req-3/2"),
                entry(4, adjust_of="x", draws=((a, 2),), input=0, output=0),
            ],
        )
        ledger.ship(OTHER_JOURNAL, [entry(1, draws=((a, 100),))])
        assert ledger.drawn(a) == 106
        assert ledger.drawn("day:usd|ada|") == 117
        assert ledger.drawn("day:usd|ada") == 124
        assert ledger.drawn(a, {JOURNAL: 3}) == 4
        assert ledger.drawn(a, {OTHER_JOURNAL: 1}) == 100
        assert ledger.drawn("nothing") == 0
        assert ledger.posts(JOURNAL, 0, 10) == [
            Post(1, "req-1", ((c, 7), (a, 5))),  # by their names
            Post(3, "req-3/2", ((a, -1), (b, 11))),
            Post(4, "", ((a, 2),)),
        ]
        assert [post.seq for post in ledger.posts(JOURNAL, 0, 2)] == [1, 3]
        assert [post.seq for post in ledger.posts(JOURNAL, 1, 1)] == [3]
        assert ledger.posts(JOURNAL, 4, 10) == []
        assert ledger.posts("9" * 32, 0, 10) == []

    def test_draws_count_once(self, ledger: Ledger) -> None:
        """Whatever is shipped again, in whichever way."""
        batch = [entry(n, draws=(("f", n), ("g", 1))) for n in range(1, 101)]
        ledger.ship(JOURNAL, batch)
        ledger.forget(JOURNAL)
        assert ledger.ship(JOURNAL, [*batch, entry(101, draws=(("f", 1000),))]) == 1
        assert ledger.drawn("f") == 5050 + 1000
        assert ledger.drawn("g") == 100

    def test_a_field_that_a_record_names_twice(self, ledger: Ledger) -> None:
        twice = [entry(n, draws=(("f", 3), ("f", 4))) for n in range(1, 101)]
        ledger.ship(JOURNAL, twice)
        ledger.forget(JOURNAL)
        ledger.ship(JOURNAL, twice)
        assert ledger.drawn("f") == 700
        assert ledger.posts(JOURNAL, 4, 1)[0].draws == (("f", 7),)

    def test_what_is_begun_is_no_row(self, ledger: Ledger) -> None:
        """Between others, alone, and at the end: the position moves over it, and what was recorded last stays that."""
        begun = Entry(2, INTENT, entry(2, outcome="lost", cost_nano=100, draws=(("f", 100),)).body)
        assert ledger.ship(JOURNAL, [entry(1), begun, Entry(3, AUDIT + 97, b"{}"), entry(4)]) == 2
        assert ledger.ship(JOURNAL, [Entry(5, INTENT, begun.body)]) == 0
        assert (ledger.position(JOURNAL), ledger.positions(), ledger.rejected()) == (5, {JOURNAL: 4}, 1)
        assert ledger.ship(JOURNAL, [entry(6), Entry(7, INTENT, begun.body)]) == 1
        assert (ledger.position(JOURNAL), ledger.positions()) == (7, {JOURNAL: 6})
        assert ledger.drawn("f") == 0
        assert self.requests(ledger, "outcome") == {("ok",): 3}

    def test_what_was_told_and_not_believed(self, ledger: Ledger) -> None:
        told = '{"input":4000000000,"x":"\\u0000\\\\ \t\n é😀"}' + "y" * 900
        ledger.ship(JOURNAL, [entry(1, raw_usage=told), entry(2), entry(3, raw_usage="z" * 1024)])
        again = [entry(1, raw_usage=told), entry(4, raw_usage=told)]
        ledger.forget(JOURNAL)
        assert ledger.ship(JOURNAL, again) == 1  # one by one
        records = ledger.records(0, 1 << 52)
        assert [one.raw_usage for one in records] == [told, "z" * 1024, "", told]
        ledger.ship(OTHER_JOURNAL, [entry(1, raw_usage="z" * 1025)])
        assert ledger.rejected() == 1

    def test_adjustments(self, ledger: Ledger) -> None:
        """They change sums, and are no requests."""
        unpriced, priced = identify(JOURNAL, 1, (T0 + 1) * 1_000_000), identify(JOURNAL, 2, (T0 + 2) * 1_000_000)
        ledger.ship(JOURNAL, [entry(1), entry(2, cost_nano=100)])
        nothing = {"input": 0, "output": 0}
        ledger.ship(
            OTHER_JOURNAL,
            [
                entry(1, 1, adjust_of=unpriced, cost_nano=70, repriced=True, **nothing),
                entry(2, 2, adjust_of=priced, cost_nano=-30, **nothing),
                entry(3, 2, adjust_of=priced, input=-4, output=0),
            ],
        )
        for by in ((), ("run",)):  # from the sums, and from the records
            (row,) = ledger.usage(T0, T0 + HOUR, by)
            assert (row.requests, row.cost_nano, row.unpriced, row.input) == (2, 140, 0, 16), by
        assert ledger.spent("usd", 0, 1 << 52, {}) == 140
        assert ledger.spent("calls", 0, 1 << 52, {}) == 2

    def test_sums_are_those_of_the_records(self, ledger: Ledger) -> None:
        """The same question, answered from hourly sums and from records."""
        entries = [
            entry(
                n,
                n * 400,
                org=f"o{n % 3}",
                cost_nano=None if n % 4 == 0 else n,
                saved_nano=n % 2,
                withheld_tokens=n % 5,
                cache_read=n % 3,
                reasoning=n % 2,
                outcome=("ok", "timeout", "denied")[n % 3],
                tags=("t",) * (n % 2),
                run_id="r",
            )
            for n in range(1, 121)
        ]
        assert ledger.ship(JOURNAL, entries) == 120
        for by in (["org"], ["org", "day"], ["tag", "hour"], []):
            sums = ledger.usage(T0, T0 + 24 * HOUR, by)
            records = ledger.usage(T0, T0 + 24 * HOUR, by, where=[("run", "r")])
            assert sums == records
            assert sums

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
        assert self.requests(ledger, "org") == {(name.replace("\x00", self.nul),): 1}

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
