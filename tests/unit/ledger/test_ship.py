"""ledger.ship: every acknowledged record is in the ledger once, whoever dies when."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.conformance.ledger import T0, record

from tollhouse.ledger.base import Entry, LedgerError
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.segment import segments
from tollhouse.ledger.ship import Shipper, adopt, catch_up
from tollhouse.ledger.sqlite import SqliteLedger


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.005)


def stored(path: Path) -> list[tuple[str, int]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT journal, seq FROM usage ORDER BY journal, seq").fetchall()


def summed(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT coalesce(sum(requests), 0) FROM usage_hour").fetchone()[0])


class Place:
    """A database and its journals."""

    def __init__(self, tmp_path: Path) -> None:
        self.db = tmp_path / "l.db"
        self.journals = tmp_path / "l.db.journal"

    def journal(self, **options: object) -> Journal:
        journal = Journal(self.journals, **options)  # type: ignore[arg-type]
        journal.open()
        return journal

    def left(self) -> list[str]:
        return sorted(p.name for p in self.journals.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_ships_in_the_background_and_leaves_nothing(place: Place) -> None:
    journal = place.journal(segment_size=3000)
    shipper = Shipper(journal, SqliteLedger(place.db), interval=0.01, batch=7)
    shipper.start()
    for n in range(1, 201):
        journal.append(record(n))
    wait_for(lambda: shipper.position == 200 and len(segments(place.journals, journal.id)) == 1)
    assert journal.size < 4000
    for n in range(201, 251):
        journal.append(record(n))
    assert shipper.stop()
    journal.close()
    assert stored(place.db) == [(journal.id, n) for n in range(1, 251)]
    assert summed(place.db) == 250
    assert shipper.shipped == 250
    assert shipper.lag == 0.0
    assert place.left() == []
    assert shipper.failures == shipper.damaged == shipper.rejected == 0


def test_nothing_to_ship(place: Place) -> None:
    journal = place.journal()
    shipper = Shipper(journal, SqliteLedger(place.db), interval=0.01)
    shipper.start()
    assert shipper.stop()
    journal.close()
    assert place.left() == []


def test_without_a_shipper_the_next_process_ships(place: Place) -> None:
    first = place.journal(segment_size=2000)
    for n in range(1, 31):
        first.append(record(n))
    first.close()
    second = place.journal()
    shipper = Shipper(second, SqliteLedger(place.db), interval=0.01, batch=4)
    shipper.start()
    assert shipper.caught_up.wait(15)
    assert shipper.adopted == 30  # who asks the ledger then sees all of it
    assert shipper.stop()
    second.close()
    assert stored(place.db) == [(first.id, n) for n in range(1, 31)]
    assert place.left() == []


def test_a_living_journal_is_not_adopted(place: Place) -> None:
    living = place.journal()
    living.append(record(1))
    ledger = SqliteLedger(place.db)
    ledger.open()
    assert list(adopt(place.journals, ledger)) == []
    living.close()
    assert sum(step.stored for step in adopt(place.journals, ledger)) == 1
    ledger.close()
    assert place.left() == []


def test_a_command_catches_up(place: Place) -> None:
    ledger = SqliteLedger(place.db)
    ledger.open()
    assert catch_up(place.journals, ledger) == 0  # there is no such directory yet
    for _ in range(2):
        journal = place.journal(segment_size=1000)
        for n in range(1, 11):
            journal.append(record(n))
        journal.close()
    living = place.journal()
    living.append(record(1))
    assert catch_up(place.journals, ledger) == 20
    assert catch_up(place.journals, ledger) == 0
    ledger.close()
    living.close()


def test_a_shipper_under_load_takes_whole_batches(place: Place) -> None:
    """What comes while a batch is shipped waits for the next look, so that transactions stay large."""

    class Counting(SqliteLedger):
        def ship(self, journal: str, entries: Sequence[Entry]) -> int:
            sizes.append(len(entries))
            if len(sizes) <= 3:
                live.append(record(1))  # one more comes meanwhile
            return super().ship(journal, entries)

    sizes: list[int] = []
    live = place.journal()
    for n in range(1, 251):
        live.append(record(n))
    shipper = Shipper(live, Counting(place.db), interval=60.0, batch=100)
    shipper.start()
    wait_for(lambda: shipper.position >= 250)
    assert shipper.stop()
    assert sizes == [100, 100, 52, 1]
    live.close()


def test_lag_does_not_grow_while_there_is_always_something_to_ship(place: Place) -> None:
    class Busy(SqliteLedger):
        def ship(self, journal: str, entries: Sequence[Entry]) -> int:
            count = super().ship(journal, entries)
            if len(rounds) < 40:
                live.append(record(1))  # one more has come before the batch was stored
            rounds.append(shipper.lag)
            return count

    rounds: list[float] = []
    live = place.journal()
    shipper = Shipper(live, Busy(place.db), interval=0.02)
    began = time.monotonic()
    shipper.start()
    live.append(record(1))
    wait_for(lambda: len(rounds) >= 40)
    elapsed = time.monotonic() - began
    assert shipper.stop()
    live.close()
    assert sorted(rounds)[20] < elapsed / 4  # of one look or two, and not of all 40


def test_a_segment_that_was_being_made_goes_with_its_journal(place: Place) -> None:
    dead = place.journal()
    dead.append(record(1))
    (place.journals / f"{dead.id}-next.new").write_bytes(b"TLHJ")
    dead.seal()
    os.close(dead._lock_fd)
    ledger = SqliteLedger(place.db)
    ledger.open()
    assert catch_up(place.journals, ledger) == 1
    ledger.close()
    assert place.left() == []


def test_two_adopters_at_once(place: Place) -> None:
    for _ in range(8):
        journal = place.journal(segment_size=1000)
        for n in range(1, 21):
            journal.append(record(n))
        journal.close()
    counts: list[int] = []
    barrier = threading.Barrier(3)

    def work() -> None:
        ledger = SqliteLedger(place.db)
        ledger.open()
        barrier.wait()
        counts.append(sum(step.stored for step in adopt(place.journals, ledger, batch=3)))
        ledger.close()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 160
    assert len(stored(place.db)) == summed(place.db) == 160
    assert place.left() == []


def test_two_workers_on_one_file(place: Place) -> None:
    journals = [place.journal(), place.journal()]
    shippers = [Shipper(j, SqliteLedger(place.db), interval=0.005, batch=5) for j in journals]
    for shipper in shippers:
        shipper.start()
    for n in range(1, 301):
        for journal in journals:
            journal.append(record(n))
    assert all(shipper.stop() for shipper in shippers)
    for journal in journals:
        journal.close()
    assert len(stored(place.db)) == summed(place.db) == 600
    assert place.left() == []


class Flaky(SqliteLedger):
    """A store that is away at times: the connection is refused, or it breaks before or after the commit."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(path)
        self.random = random.Random(seed)
        self.away = False

    def open(self) -> None:
        if self.away or self.random.random() < 0.3:
            raise LedgerError("refused")
        super().open()

    def ship(self, journal: str, entries: Sequence[Entry]) -> int:
        luck = self.random.random()
        if self.away or luck < 0.15:
            raise LedgerError("gone before the commit")
        count = super().ship(journal, entries)
        if luck > 0.85:
            raise LedgerError("gone after the commit")
        return count


@pytest.mark.parametrize("seed", range(4))
def test_a_store_that_comes_and_goes(place: Place, seed: int) -> None:
    journal = place.journal(segment_size=1500)
    shipper = Shipper(journal, Flaky(place.db, seed), interval=0.002, batch=7, slowest=0.004)
    shipper.start()
    for n in range(1, 201):
        journal.append(record(n))
    wait_for(lambda: shipper.position == 200)
    shipper.stop()
    journal.close()
    assert stored(place.db) == [(journal.id, n) for n in range(1, 201)]
    assert summed(place.db) == 200
    assert shipper.failures > 0


def test_a_store_that_is_away_keeps_records_in_the_journal(place: Place) -> None:
    ledger = Flaky(place.db, 1)
    ledger.away = True
    journal = place.journal(max_size=2000)
    shipper = Shipper(journal, ledger, interval=0.002, slowest=0.004)
    shipper.start()
    n = 0
    while not journal.full:
        n += 1
        journal.append(record(n))
    wait_for(lambda: shipper.failures > 2)
    assert shipper.error == "refused"
    assert shipper.lag > 0
    assert not shipper.stop()
    journal.close()
    assert len(segments(place.journals, journal.id)) == 1
    good = SqliteLedger(place.db)
    good.open()
    assert sum(step.stored for step in adopt(place.journals, good)) == n
    good.close()


def test_poison_in_a_journal(place: Place) -> None:
    journal = place.journal()
    journal.append(record(1))
    journal.append(record(2), 77)
    journal.append(record(3))
    shipper = Shipper(journal, SqliteLedger(place.db), interval=0.01)
    shipper.start()
    wait_for(lambda: shipper.rejected == 1)
    assert shipper.stop()
    journal.close()
    assert [seq for _, seq in stored(place.db)] == [1, 3]


def test_damage_is_counted(place: Place) -> None:
    journal = place.journal(segment_size=1000)
    for n in range(1, 31):
        journal.append(record(n))
    journal.close()
    _, _, path = segments(place.journals, journal.id)[1]
    path.write_bytes(path.read_bytes()[:-5])
    second = place.journal()
    shipper = Shipper(second, SqliteLedger(place.db), interval=0.01)
    shipper.start()
    wait_for(lambda: shipper.damaged == 1)
    shipper.stop()
    second.close()
    assert shipper.missing == 1
    assert len(stored(place.db)) == 29


def test_a_journal_that_cannot_be_read_does_not_stop_the_others(place: Place) -> None:
    bad = "0" * 32
    place.journals.mkdir()
    (place.journals / f"{bad}-00000001-0000000000000001.seg").mkdir()  # a directory: EISDIR
    journal = place.journal()
    journal.append(record(1))
    journal.close()
    ledger = SqliteLedger(place.db)
    ledger.open()
    assert sum(step.stored for step in adopt(place.journals, ledger)) == 1
    ledger.close()


VICTIM = """
import os, pathlib, sys
sys.path[:0] = sys.argv[2:4]
from tests.conformance.ledger import record
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.ship import Shipper
from tollhouse.ledger.sqlite import SqliteLedger
db = pathlib.Path(sys.argv[1])
journal = Journal(db.with_name(db.name + ".journal"), segment_size=5000)
journal.open()
shipper = Shipper(journal, SqliteLedger(db), interval=0.002, batch=50)
shipper.start()
os.write(1, journal.id.encode())
seq = 0
while True:
    seq = journal.append(record(seq + 1))
    os.write(1, seq.to_bytes(8, "little"))
"""


def test_kill_9_loses_no_acknowledged_record(place: Place) -> None:
    """A process appends, acknowledges on a pipe, ships at the same time, and is killed at a random instant, again and
    again on the same database. Each acknowledged record is found exactly once; at most one more a process: appended,
    not yet acknowledged."""
    chance = random.Random(20261122)
    acknowledged: dict[str, int] = {}
    command = [sys.executable, "-c", VICTIM, str(place.db), str(Path("src").resolve()), str(Path.cwd())]
    for _ in range(4):
        victims = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        streams = []
        for victim in victims:
            assert victim.stdout is not None
            streams.append((victim.stdout.read(32).decode(), victim))
        time.sleep(chance.uniform(0.01, 0.15))
        for journal, victim in streams:
            victim.send_signal(signal.SIGKILL)
            rest = victim.communicate()[0]
            acknowledged[journal] = len(rest) // 8
    ledger = SqliteLedger(place.db)
    ledger.open()
    for step in adopt(place.journals, ledger):
        assert step.damaged == step.missing == 0
    ledger.close()
    found: dict[str, list[int]] = {}
    for journal, seq in stored(place.db):
        found.setdefault(journal, []).append(seq)
    assert sum(acknowledged.values()) > 100
    for journal, count in acknowledged.items():
        seqs = found.get(journal, [])
        assert seqs in (list(range(1, count + 1)), list(range(1, count + 2)))
    assert summed(place.db) == sum(map(len, found.values()))
    assert place.left() == []
    with contextlib.closing(sqlite3.connect(place.db)) as db:
        assert db.execute("SELECT sum(seq) FROM journals").fetchone() == (0,)  # all forgotten
        assert db.execute("SELECT min(admitted_at) FROM usage").fetchone()[0] > T0 * 1_000_000
