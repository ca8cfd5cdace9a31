"""ledger.journal: what was appended is read back, whatever happens to the disk."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from tests.conformance.ledger import record

from tollhouse.core.errors import Failure
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import AUDIT, UsageRecord
from tollhouse.ledger.segment import FRAME, Reader, lock_path, segments


def opened(directory: Path, **options: object) -> Journal:
    journal = Journal(directory, **options)  # type: ignore[arg-type]
    journal.open()
    return journal


def read_all(directory: Path, journal: str, *, live: bool = False, position: int = 0) -> list[int]:
    reader = Reader(directory, journal, position, live=live)
    seqs: list[int] = []
    while entries := reader.read(7):
        seqs += [e.seq for e in entries]
    reader.close()
    return seqs


def files(directory: Path, journal: Journal) -> list[Path]:
    return [path for _, _, path in segments(directory, journal.id)]


def test_reads_what_was_appended(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    sent = [record(n, org=f"org-{n}", input=n) for n in range(1, 20)]
    assert [journal.append(r) for r in sent] == list(range(1, 20))
    journal.close()
    entries = Reader(tmp_path, journal.id, 0, live=False).read(100)
    assert [msgspec.json.decode(e.body, type=UsageRecord) for e in entries] == sent
    assert {e.kind for e in entries} == {1}


def test_what_append_returned_for_is_in_the_file(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for n in range(1, 5):
        journal.append(record(n))
        assert read_all(tmp_path, journal.id, live=True) == list(range(1, n + 1))
    journal.close()


def test_the_last_usage_record_is_known_whatever_comes_after_it(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.write(b"{}", AUDIT)
    assert (journal.seq, journal.used) == (1, 0)
    journal.append(record(1))
    journal.write(b"{}", AUDIT)
    assert (journal.seq, journal.used) == (3, 2)
    journal.close()


def test_records_of_any_size(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for size in (1, 600_000, 10, 300_000, 300_000, 1):
        journal.append(record(org="x" * size))
    journal.close()
    entries = Reader(tmp_path, journal.id, 0, live=False).read(100)
    sizes = [len(msgspec.json.decode(e.body, type=UsageRecord).org) for e in entries]
    assert sizes == [1, 600_000, 10, 300_000, 300_000, 1]


def test_rotates_by_size(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=2000)
    for n in range(1, 51):
        journal.append(record(n))
    assert len(files(tmp_path, journal)) > 3
    assert journal.size == sum(path.stat().st_size for path in files(tmp_path, journal))
    assert read_all(tmp_path, journal.id, live=True) == list(range(1, 51))
    assert read_all(tmp_path, journal.id, live=True, position=33) == list(range(34, 51))
    journal.close()


def test_preallocated_segments(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=4096, preallocate=True)
    reader = Reader(tmp_path, journal.id, 0, live=True)
    assert all(path.stat().st_size == 4096 for path in files(tmp_path, journal))
    for n in range(1, 40):
        journal.append(record(n))
        assert [e.seq for e in reader.read(10)] == [n]
    reader.close()
    journal.close()
    again = Reader(tmp_path, journal.id, 0, live=False)
    assert len(again.read(100)) == 39
    assert again.damaged == 0


class Shipping:
    """A reader that deletes what it has read, as the shipper does."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.reader = Reader(journal.directory, journal.id, 0, live=True)
        self.seqs: list[int] = []

    def ship(self) -> None:
        while entries := self.reader.read(100):
            self.seqs += [entry.seq for entry in entries]
        for number, path in self.reader.done:
            path.unlink(missing_ok=True)
            self.journal.release(number)
        self.reader.done.clear()


@pytest.mark.parametrize("fails", [False, True])
def test_a_rotation_that_takes_long_or_fails_loses_nothing(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the next segment is made, the one before is still written: it must not be taken for whole."""
    reserve = os.posix_fallocate
    shipping: list[Shipping] = []

    def slow(fd: int, offset: int, size: int) -> None:
        for one in shipping:
            one.ship()
        if shipping and fails:
            raise OSError(28, "No space left on device")
        reserve(fd, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", slow)
    journal = opened(tmp_path, segment_size=2000, preallocate=True, spare=0)
    one = Shipping(journal)
    shipping.append(one)
    for n in range(1, 101):
        journal.append(record(n))
    assert journal.failures if fails else len(files(tmp_path, journal)) < 5
    one.ship()
    assert one.seqs == list(range(1, 101))
    assert one.reader.damaged == one.reader.missing == 0
    assert len(files(tmp_path, journal)) == 1
    assert journal.size <= journal._at  # nothing but the segment that is written
    one.reader.close()
    journal.close()
    assert not list(tmp_path.glob("*.new"))


def test_the_spare_becomes_a_segment_when_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header comes before its name."""
    journal = opened(tmp_path)
    journal.append(record(1))
    begun = os.rename

    def watched(source: Path, target: Path) -> None:
        if str(target).endswith(".seg"):
            assert Path(source).read_bytes()[:4] == b"TLHJ"
        begun(source, target)

    monkeypatch.setattr(os, "rename", watched)
    os.close(journal._fd)
    journal._fd = os.open("/dev/full", os.O_WRONLY)
    journal.append(record(2))
    assert read_all(tmp_path, journal.id, live=True) == [1, 2]
    journal.close()


def test_full_by_size_and_free_again(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=1000, max_size=3000)
    n = 0
    while not journal.full:
        n += 1
        journal.append(record(n))
    journal.append(record(n + 1))  # what is in flight still ends
    reader = Reader(tmp_path, journal.id, 0, live=True)
    while reader.read(10):
        pass
    for number, path in reader.done:
        path.unlink()
        journal.release(number)
    assert [journal.full] == [False]
    reader.close()
    journal.close()


def test_the_others_count(tmp_path: Path) -> None:
    journal = opened(tmp_path, max_size=3000)
    journal.append(record(1))
    told = []
    for journal.others in (0, 3000, 0):
        told.append(journal.full)
    assert told == [False, True, False]
    journal.close()


def test_drops_the_oldest_instead(tmp_path: Path) -> None:
    """Never full, never above its bound by more than a segment, and what is gone is counted."""
    journal = opened(tmp_path, segment_size=1000, max_size=8000, drop=True)
    for n in range(1, 201):
        journal.append(record(n))
        assert not journal.full
        assert journal.size <= 9200
    on_disk = sum(path.stat().st_size for path in files(tmp_path, journal))
    assert on_disk == journal.size
    assert 0 < journal.dropped < 200
    reader = Reader(tmp_path, journal.id, 0, live=True)
    seqs = [e.seq for e in reader.read(1000)]
    assert seqs == list(range(journal.dropped + 1, 201))
    reader.close()
    journal.close()


def test_what_was_shipped_is_not_counted_as_dropped(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=1000, max_size=8000, drop=True)
    for n in range(1, 201):
        journal.append(record(n))
        journal.shipped = n - 1
    assert journal.dropped == 0
    assert len(files(tmp_path, journal)) < 12
    journal.close()


def test_a_reader_goes_on_behind_what_was_dropped(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=1000, max_size=8000, drop=True)
    shipping = Shipping(journal)
    journal.append(record(1))
    shipping.ship()
    for n in range(2, 301):
        journal.append(record(n))
    for _ in range(3):
        shipping.ship()
    assert shipping.seqs[0] == 1
    assert shipping.seqs[-1] == 300
    assert shipping.reader.missing == 300 - len(shipping.seqs) > 0
    assert journal.size == sum(path.stat().st_size for path in files(tmp_path, journal))
    shipping.reader.close()
    journal.close()


DISK_FULL_DROP = """
import resource, sys, pathlib
sys.path[:0] = sys.argv[2:4]
from tests.conformance.ledger import record
from tollhouse.ledger.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]), spare=0, segment_size=4000, drop=True)
journal.open()
while journal._number < 4:
    journal.append(record(journal.seq + 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # no file may be longer, so none can grow
journal._rotate_at = 1 << 30
from tollhouse.core.errors import Failure
done = journal.seq
try:
    while True:
        done = journal.append(record(done + 1))
except Failure as failure:
    assert "space" in failure.detail, failure.detail
print(journal.id, done, journal.dropped, journal.full, flush=True)
import os
os._exit(9)
"""


def test_a_full_disk_where_the_oldest_are_dropped(tmp_path: Path) -> None:
    """It makes room as long as there is anything to be deleted; only then is it full."""
    command = [sys.executable, "-c", DISK_FULL_DROP, str(tmp_path), str(Path("src").resolve()), str(Path.cwd())]
    output = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert output.returncode == 9, output.stderr
    journal, done, dropped, full = output.stdout.split()
    assert full == "True"
    assert int(dropped) > 20
    assert read_all(tmp_path, journal) == list(range(int(dropped) + 1, int(done) + 1))


DISK_FULL = """
import resource, sys, pathlib
sys.path[:0] = sys.argv[2:4]
from tests.conformance.ledger import record
from tollhouse.core.errors import Failure
from tollhouse.ledger.journal import Journal
journal = Journal(pathlib.Path(sys.argv[1]), spare=8192)
journal.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
done = 0
while not journal.full:
    done = journal.append(record(done + 1))
before = done
try:
    while True:
        done = journal.append(record(done + 1))
except Failure as failure:
    assert failure.status == 503, failure
    assert "space" in failure.detail, failure.detail
print(before, done, journal.id, journal.failures, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal._retry = 0.0
assert not journal.full
print(journal.append(record(done + 1)), flush=True)
import os
os._exit(9)
"""


def test_disk_full(tmp_path: Path) -> None:
    """The file system takes no more: `full` says so, the spare takes what is in flight, then appends fail; nothing
    that was acknowledged is torn, and with space again it goes on."""
    command = [sys.executable, "-c", DISK_FULL, str(tmp_path), str(Path("src").resolve()), str(Path.cwd())]
    output = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert output.returncode == 9, output.stderr
    first, second = output.stdout.splitlines()
    before, done, journal, failures = first.split()
    assert int(before) > 20
    assert int(done) > int(before) + 10
    assert int(failures) >= 2
    assert int(second) == int(done) + 1
    reader = Reader(tmp_path, journal, 0, live=False)
    seqs = [e.seq for e in reader.read(10_000)]
    assert seqs == list(range(1, int(second) + 1))
    assert reader.missing == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_failing_descriptor_is_left_for_a_new_segment(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(record(1))
    os.close(journal._fd)
    journal._fd = os.open("/dev/full", os.O_WRONLY)  # ENOSPC for each write
    journal.append(record(2))
    assert journal.full
    assert journal.failures == 1
    assert read_all(tmp_path, journal.id, live=True) == [1, 2]
    journal.close()


def test_sealed(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(record(1))
    journal.seal()
    with pytest.raises(Failure) as caught:
        journal.append(record(2))
    assert caught.value.status == 503
    assert journal.seq == 1
    assert not journal.full
    journal.close()
    assert read_all(tmp_path, journal.id) == [1]


def test_close_leaves_only_what_is_not_shipped(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    for _, _, path in segments(tmp_path, journal.id):
        path.unlink()
    journal.close()
    assert list(tmp_path.iterdir()) == []
    other = opened(tmp_path)
    other.close()
    assert lock_path(tmp_path, other.id).exists()
    assert len(segments(tmp_path, other.id)) == 1


class Disk:
    """The lowest seam: what the kernel says to a sync."""

    def __init__(self) -> None:
        self.broken = False
        self.synced = 0

    def __call__(self, fd: int) -> None:
        if self.broken:
            self.broken = False
            raise OSError(5, "Input/output error")
        os.fdatasync(fd)
        self.synced += 1


def wait_for(condition: object, seconds: float = 5.0) -> None:
    import time

    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "did not happen in time"
        time.sleep(0.005)


def test_group_sync(tmp_path: Path) -> None:
    disk = Disk()
    journal = opened(tmp_path, fsync="group", fsync_interval=0.005, sync=disk, segment_size=1500)
    for n in range(1, 20):
        journal.append(record(n))
    syncer = journal._syncer
    assert syncer is not None
    wait_for(lambda: not syncer.unconfirmed())
    assert disk.synced > 1
    journal.close()
    assert read_all(tmp_path, journal.id) == list(range(1, 20))


def test_a_failed_sync_is_not_repeated_on_that_file(tmp_path: Path) -> None:
    disk = Disk()
    journal = opened(tmp_path, fsync="group", fsync_interval=0.005, sync=disk)
    syncer = journal._syncer
    assert syncer is not None
    disk.broken = True
    journal.append(record(1))
    wait_for(lambda: syncer.failed)
    assert len(syncer.unconfirmed()) == 1
    journal.append(record(2))
    assert len(segments(tmp_path, journal.id)) == 2
    assert journal.failures == 1
    wait_for(lambda: not syncer.unconfirmed())
    journal.append(record(3))
    journal.close()
    assert syncer.waiting == 0
    second = segments(tmp_path, journal.id)[1][2].read_bytes()
    assert FRAME.unpack_from(second, 36)[2] == 1  # the first record again
    assert read_all(tmp_path, journal.id) == [1, 2, 3]


def test_full_when_too_much_waits_for_its_sync(tmp_path: Path) -> None:
    """What is not confirmed is kept in memory, to be written again: not without a bound."""
    release = threading.Event()

    def slow(fd: int) -> None:
        release.wait(10)

    journal = opened(tmp_path, fsync="group", fsync_interval=0.001, sync=slow)
    large = record(org="x" * 1_000_000)
    while not journal.full:
        journal.append(large)
        assert journal.seq < 20
    assert journal.seq == 17
    release.set()
    wait_for(lambda: not journal.full)
    journal.close()
