"""The alarm of a journal: told before its bound is reached, when it is, and when there is room again."""

import logging
from pathlib import Path

import pytest
from tests.conformance.ledger import record

from tollhouse.config.parse import parse
from tollhouse.core.errors import ConfigError
from tollhouse.gateway.journal_watch import JournalWatch, opened_journal
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.segment import segments


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    journal = Journal(tmp_path, segment_size=2000, max_size=20_000, spare=0)
    journal.open()
    return journal


def fill(journal: Journal, share: float) -> None:
    while journal.size < share * journal.max_size:
        journal.append(record(journal.seq + 1))


def empty(journal: Journal) -> None:
    for number, _, path in segments(journal.directory, journal.id)[:-1]:
        path.unlink()
        journal.release(number)


def test_it_is_told_once_each_time(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    watch = JournalWatch(journal, lambda: "the database is away")
    states = []
    for share in (0.5, 0.7, 0.85, 0.9, 1.0, 1.0):
        fill(journal, share)
        watch.look()
        states.append(watch.state)
    assert states == ["", "", "filling", "filling", "full", "full"]
    empty(journal)
    watch.look()
    assert watch.state == ""
    said = [found.getMessage() for found in caplog.records]
    assert [one.split(" (")[0] for one in said] == [
        "the journal fills up", "the journal is full", "the journal has room again",
    ]  # fmt: skip
    assert "calls are refused until there is room; the ledger: the database is away" in said[1]
    journal.close()


def test_it_does_not_flutter(journal: Journal) -> None:
    watch = JournalWatch(journal, str)
    fill(journal, 0.85)
    watch.look()
    number, _, path = segments(journal.directory, journal.id)[0]
    path.unlink()
    journal.release(number)
    watch.look()
    assert watch.state == "filling"  # until it is at 60 %
    empty(journal)
    watch.look()
    assert watch.state == ""
    journal.close()


def test_others_in_the_directory_count(journal: Journal) -> None:
    """Of other workers, and of those that are gone."""
    other = Journal(journal.directory, segment_size=2000, max_size=20_000, spare=0)
    other.open()
    fill(journal, 0.4)
    fill(other, 0.7)
    other.close()
    watch = JournalWatch(journal, str)
    watch.look()
    assert journal.others > 13_000
    assert journal.full
    assert watch.state == "full"
    for _, _, path in segments(journal.directory, other.id):
        path.unlink()
    watch.look()
    assert (journal.others, journal.full, watch.state) == (0, False, "")
    journal.close()


def test_dropping(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_size=1000, max_size=8000, drop=True, spare=0)
    journal.open()
    watch = JournalWatch(journal, str)
    watch.look()
    assert watch.state == ""
    for n in range(1, 101):
        journal.append(record(n))
    watch.look()
    assert watch.state == "dropping"
    empty(journal)
    watch.look()
    assert watch.state == "dropping"  # a moment ago
    for _ in range(100):
        watch.look()
    assert watch.state == ""
    journal.close()


def test_the_clock_looks_once_a_second(journal: Journal) -> None:
    watch = JournalWatch(journal, str)
    fill(journal, 0.9)
    watch.turn()
    assert watch.state == "filling"
    empty(journal)
    for _ in range(15):
        watch.turn()
    assert watch.state == "filling"
    watch.turn()
    assert watch.state == ""
    journal.close()


def test_a_directory_that_is_gone(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    for path in journal.directory.iterdir():
        path.unlink()
    journal.directory.rmdir()
    JournalWatch(journal, str).look()
    assert "cannot be read" in caplog.text


def test_as_it_is_configured(tmp_path: Path) -> None:
    text = f"ledger: sqlite:{tmp_path}/l.db\njournal: {{max: 16MiB, full: drop, fsync: group(3ms)}}\n"
    journal = opened_journal(parse(text, "t.yaml", {}).config)
    assert journal.directory == tmp_path / "l.db.journal"
    assert (journal.max_size, journal._segment_size, journal._drop) == (16 << 20, 2 << 20, True)
    assert journal._syncer is not None
    assert journal._syncer._interval == 0.003
    journal.close()


def test_a_journal_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "l.db.journal").write_text("in the way")
    with pytest.raises(ConfigError, match="the ledger's journal cannot be written"):
        opened_journal(parse(f"ledger: sqlite:{tmp_path}/l.db\n", "t.yaml", {}).config)
