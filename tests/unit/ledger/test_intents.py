"""ledger.intents: what was begun and never ended is lost, once, whatever its journal and who adopts that go through."""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.ledger import record

from tollhouse.core.errors import Failure
from tollhouse.ledger.intents import Begun, hold_of
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import INTENT, USAGE, UsageRecord
from tollhouse.ledger.segment import Reader, journals, segments
from tollhouse.ledger.ship import Shipper, adopt
from tollhouse.ledger.sqlite import SqliteLedger


def opened(directory: Path, **options: object) -> Journal:
    journal = Journal(directory, **options)  # type: ignore[arg-type]
    journal.open()
    return journal


def body(n: int, cost: int = 100, outcome: str = "lost", **more: object) -> bytes:
    made = record(n, hold=f"h{n}", outcome=outcome, cost_nano=cost, draws=(("f", cost),), **more)
    return msgspec.json.encode(made)


def begin(journal: Journal, n: int, cost: int = 100) -> int:
    return journal.write(body(n, cost), INTENT, f"h{n}")


def end(journal: Journal, n: int) -> int:
    return journal.write(body(n, 1, "ok"), USAGE, f"h{n}")


def die(journal: Journal) -> None:
    """As a process that is killed: nothing is written any more, and the kernel gives up its lock."""
    fcntl.flock(journal._lock_fd, fcntl.LOCK_UN)
    os.close(journal._lock_fd)
    os.close(journal._fd)


def stored(ledger: SqliteLedger) -> dict[str, tuple[str, int | None]]:
    records = ledger.records(0, 1 << 52, (), 1000)
    found = {one.hold: (str(one.outcome), one.cost_nano) for one in records}
    assert len(found) == len(records), "a call is there twice"
    assert ledger.drawn("f") == ledger.spent("usd", 0, 1 << 52, {})
    return found


@pytest.fixture
def ledger() -> SqliteLedger:
    one = SqliteLedger(":memory:")
    one.open()
    return one


def test_the_hold_of_a_body() -> None:
    odd = record(1, hold="r.1-a", request_id='"hold":"x"', raw_usage='{"hold":"y"}')
    assert hold_of(msgspec.json.encode(odd)) == "r.1-a"
    assert hold_of(msgspec.json.encode(record(1))) == ""


def test_what_ends_is_not_lost(tmp_path: Path, ledger: SqliteLedger) -> None:
    journal = opened(tmp_path)
    for n in (1, 2, 3):
        begin(journal, n)
    end(journal, 2)
    begin(journal, 3, 700)  # it holds more by now
    assert [(entry.seq, hold_of(entry.body)) for entry in journal.lost()] == [(6, "h1"), (7, "h3")]
    die(journal)
    assert sum(step.stored for step in adopt(tmp_path, ledger)) == 3
    assert stored(ledger) == {"h1": ("lost", 100), "h2": ("ok", 1), "h3": ("lost", 700)}
    assert ledger.positions() == {journal.id: 7}
    assert [(post.seq, post.hold) for post in ledger.posts(journal.id, 0, 10)] == [(4, "h2"), (6, "h1"), (7, "h3")]
    assert journals(tmp_path) == []
    assert ledger.rejected() == 0


def test_a_new_segment_begins_with_what_is_open(tmp_path: Path, ledger: SqliteLedger) -> None:
    """So that those before may go, and the live reader never sees anything twice."""
    journal = opened(tmp_path, segment_size=2000, spare=0)
    reader = Reader(tmp_path, journal.id, 0, live=True)
    begin(journal, 1000)
    seqs: list[int] = []
    for n in range(1, 60):
        begin(journal, n)
        end(journal, n)
        entries = reader.read(1000)
        seqs += [entry.seq for entry in entries]
        ledger.ship(journal.id, entries)
        for number, path in reader.done:
            path.unlink()
            journal.release(number)
        reader.done.clear()
    assert seqs == list(range(1, 120))
    assert reader.missing == reader.damaged == 0
    left = segments(tmp_path, journal.id)
    assert len(left) == 1
    assert left[0][1] > 100
    assert journal.size == left[0][2].stat().st_size
    die(journal)
    list(adopt(tmp_path, ledger))
    assert stored(ledger)["h1000"] == ("lost", 100)
    assert len(stored(ledger)) == 60


def test_many_open_ones_do_not_make_a_segment_of_each_record(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=2000, spare=0)
    for n in range(1, 201):
        begin(journal, n)
    assert len(segments(tmp_path, journal.id)) < 15
    assert journal.size == sum(path.stat().st_size for _, _, path in segments(tmp_path, journal.id))
    for n in range(1, 201):
        end(journal, n)
    assert journal.lost() == []
    journal.close()
    assert Reader(tmp_path, journal.id, 0, live=False).read(10_000)[-1].seq == 400


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_spare_is_for_calls_that_end_and_what_is_open_stays_where_it_is(tmp_path: Path, ledger: SqliteLedger) -> None:
    journal = opened(tmp_path, spare=4096)
    shipper = Shipper(journal, ledger, batch=10)
    begin(journal, 1)
    begin(journal, 2)
    os.close(journal._fd)
    journal._fd = os.open("/dev/full", os.O_WRONLY)  # ENOSPC for each write
    end(journal, 1)
    assert journal.full
    assert journal.keeps == 1
    first, second = segments(tmp_path, journal.id)
    assert b'"hold":"h2"' not in second[2].read_bytes()
    shipper._ship(False)
    assert first[2].exists()
    journal._retry = 0.0
    assert not journal.full  # there is room again
    shipper._ship(False)
    assert not first[2].exists()
    begin(journal, 3)
    shipper._ship(False)
    assert len(segments(tmp_path, journal.id)) == 1
    die(journal)
    list(adopt(tmp_path, ledger))
    assert stored(ledger) == {"h1": ("ok", 1), "h2": ("lost", 100), "h3": ("lost", 100)}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_record_that_cannot_be_written_leaves_its_call_open(tmp_path: Path, ledger: SqliteLedger) -> None:
    """The provider has charged for it, and nobody can say how much: it is lost when the worker ends."""
    journal = opened(tmp_path, spare=0)
    begin(journal, 1)
    os.close(journal._fd)
    journal._fd = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(Failure):
        end(journal, 1)
    with pytest.raises(Failure):
        begin(journal, 2)  # and is not asked
    shipper = Shipper(journal, ledger)
    shipper.start()
    assert shipper.stop()
    ledger.open()
    journal.close()
    assert [hold_of(entry.body) for entry in journal.lost()] == ["h1"]


def test_who_stops_ships_what_is_open_and_leaves_no_file(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    journal = opened(tmp_path / "j")
    shipper = Shipper(journal, ledger, batch=3)
    shipper.start()
    for n in range(1, 9):
        begin(journal, n)
    end(journal, 3)
    assert shipper.stop()
    journal.close()
    ledger.open()
    assert {hold: outcome for hold, (outcome, _) in stored(ledger).items()} == {
        f"h{n}": "ok" if n == 3 else "lost" for n in range(1, 9)
    }
    ledger.close()
    assert list((tmp_path / "j").iterdir()) == []


def test_what_a_failed_sync_has_written_again_is_read_in_order(tmp_path: Path, ledger: SqliteLedger) -> None:
    broken = [False]

    def sync(fd: int) -> None:
        if broken[0]:
            raise OSError(5, "Input/output error")
        os.fdatasync(fd)

    journal = opened(tmp_path, fsync="group", fsync_interval=0.001, sync=sync)
    syncer = journal._syncer
    assert syncer is not None
    begin(journal, 1)
    while syncer.unconfirmed():
        pass
    broken[0] = True
    begin(journal, 2)
    end(journal, 2)
    begin(journal, 3)
    while not syncer.failed:
        pass
    broken[0] = False
    end(journal, 3)
    begin(journal, 4)
    while syncer.unconfirmed():
        pass
    (_, _, first), _ = segments(tmp_path, journal.id)
    journal.seal()
    fcntl.flock(journal._lock_fd, fcntl.LOCK_UN)
    first.unlink()  # which is not to be trusted
    assert [entry.seq for entry in Reader(tmp_path, journal.id, 1, live=False).read(100)] == [2, 3, 4, 5, 6]
    list(adopt(tmp_path, ledger))
    assert {hold: outcome for hold, (outcome, _) in stored(ledger).items()} == {
        "h1": "lost", "h2": "ok", "h3": "ok", "h4": "lost"
    }  # fmt: skip


def test_seen_in_any_place() -> None:
    begun = Begun()
    begun.see(1, INTENT, body(1))
    begun.see(2, INTENT, body(2))
    begun.see(1, INTENT, body(1))  # at the beginning of a segment
    begun.see(3, USAGE, body(1, 1, "ok"))
    begun.see(4, USAGE, body(9, 1, "ok"))
    (entry,) = begun.lost()
    assert (entry.seq, entry.kind, msgspec.json.decode(entry.body, type=UsageRecord).hold) == (5, USAGE, "h2")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(100, 900)),
        st.tuples(st.sampled_from(("end", "grow")), st.integers(0, 20)),
        st.tuples(st.just("other"), st.integers(1, 4)),
        st.tuples(st.just("ship"), st.integers(1, 8)),
    ),
    max_size=60,
)


@given(STEPS, st.lists(st.integers(0, 6), max_size=3), st.integers(600, 3000))
@settings(max_examples=60, deadline=None)
def test_model(steps: list[tuple[str, int]], deaths: list[int], size: int) -> None:
    """Calls begin, hold more, and end, while segments are shipped and deleted; then the process dies, and so do those
    who take its journal over, after so many steps each."""
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        ledger = SqliteLedger(":memory:")
        ledger.open()
        stack.callback(ledger.close)
        journal = opened(Path(place), segment_size=size, spare=0)
        reader = Reader(Path(place), journal.id, 0, live=True)
        due: dict[int, int] = {}
        done: set[int] = set()
        others = n = 0
        for what, number in steps:
            if what == "begin":
                n += 1
                begin(journal, n, number)
                due[n] = number
            elif what == "other":
                for _ in range(number):
                    others += 1
                    journal.write(body(10_000 + others, 1, "ok"), USAGE)
            elif what == "ship":
                entries = reader.read(number)
                if entries:
                    ledger.ship(journal.id, entries)
                for segment, path in reader.done:
                    path.unlink()
                    journal.release(segment)
                reader.done.clear()
            elif due:
                one = sorted(due)[number % len(due)]
                if what == "end":
                    end(journal, one)
                    del due[one]
                    done.add(one)
                else:
                    due[one] += 50
                    begin(journal, one, due[one])
        reader.close()
        die(journal)
        for after in deaths:
            steps_of = adopt(Path(place), ledger, batch=2)
            for _ in range(after):
                if next(steps_of, None) is None:
                    break
            steps_of.close()
        for step in adopt(Path(place), ledger, batch=2):
            assert step.damaged == step.missing == 0
        assert journals(Path(place)) == []
        expected = {f"h{one}": ("lost", cost) for one, cost in due.items()} | {f"h{one}": ("ok", 1) for one in done}
        expected |= {f"h{10_000 + one}": ("ok", 1) for one in range(1, others + 1)}
        assert stored(ledger) == expected
        assert ledger.rejected() == 0
