"""ledger.journal and ledger.segment: what was appended is read back, whatever happens to the tail or the disk."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.ledger import record

from tollhouse.core.errors import Failure
from tollhouse.ledger.journal import Journal
from tollhouse.ledger.records import UsageRecord
from tollhouse.ledger.segment import FRAME, Reader, claim, journals, lock_path, segments


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


def test_a_reader_skips_whole_segments_below_its_position(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=2000)
    for n in range(1, 51):
        journal.append(record(n))
    reader = Reader(tmp_path, journal.id, 50, live=True)
    assert reader.read(10) == []
    assert len(reader.done) == len(files(tmp_path, journal)) - 1
    assert reader.damaged == reader.missing == 0
    reader.close()
    journal.close()


def test_a_live_reader_follows(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=1000)
    reader = Reader(tmp_path, journal.id, 0, live=True)
    assert reader.read(10) == []
    for n in range(1, 30):
        journal.append(record(n))
        assert [e.seq for e in reader.read(10)] == [n]
    assert reader.damaged == 0
    reader.close()
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


TAIL = 5


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes, list[int]]:
    """A journal's id, the bytes of its segment, and where each of its frames ends."""
    directory = tmp_path_factory.mktemp("whole")
    journal = opened(directory)
    ends = []
    for n in range(1, TAIL + 1):
        journal.append(record(n, org="x" * n))
        ends.append(files(directory, journal)[0].stat().st_size)
    path = files(directory, journal)[0]
    journal.close()
    return path.name, path.read_bytes(), ends


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_torn_anywhere(
    data: st.DataObject, whole: tuple[str, bytes, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Cut at any byte, with nothing, zeros or rubbish after it: exactly the frames that are whole are read."""
    name, content, ends = whole
    cut = data.draw(st.integers(0, len(content)))
    tail = data.draw(st.sampled_from([b"", b"\0" * 300, b"\xa5" * 300]))
    directory = tmp_path_factory.mktemp("torn")
    (directory / name).write_bytes(content[:cut] + tail)
    reader = Reader(directory, name[:32], 0, live=False)
    assert [e.seq for e in reader.read(100)] == [n + 1 for n, end in enumerate(ends) if end <= cut]
    assert reader.damaged == 0
    assert len(reader.done) == 1


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_never_taken_for_a_record(
    at: int, bit: int, whole: tuple[str, bytes, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name, content, ends = whole
    broken = bytearray(content)
    at %= len(broken)
    broken[at] ^= 1 << bit
    directory = tmp_path_factory.mktemp("bit")
    (directory / name).write_bytes(broken)
    read = Reader(directory, name[:32], 0, live=False).read(100)
    good = 0 if at < ends[0] else next(n for n, end in enumerate(ends) if at < end)
    assert [e.seq for e in read] == list(range(1, good + 1))


def test_damage_in_an_earlier_segment_is_counted_and_passed(tmp_path: Path) -> None:
    journal = opened(tmp_path, segment_size=1500)
    for n in range(1, 31):
        journal.append(record(n))
    journal.close()
    found = segments(tmp_path, journal.id)
    _, first, path = found[1]
    content = bytearray(path.read_bytes())
    content[60] ^= 1
    path.write_bytes(content)
    reader = Reader(tmp_path, journal.id, 0, live=False)
    seqs = [e.seq for e in reader.read(100)]
    lost = list(range(first, found[2][1]))
    assert seqs == [n for n in range(1, 31) if n not in lost]
    assert (reader.damaged, reader.missing) == (1, len(lost))


def test_a_half_written_record_is_looked_at_again(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(record(1))
    (path,) = files(tmp_path, journal)
    content = path.read_bytes()
    journal.close()
    path.write_bytes(content[:-10])
    reader = Reader(tmp_path, journal.id, 0, live=True)
    assert reader.read(10) == []
    path.write_bytes(content)
    assert [e.seq for e in reader.read(10)] == [1]
    reader.close()


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
    assert not journal.full
    reader.close()
    journal.close()


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


def test_lock_is_ownership(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(record(1))
    assert journals(tmp_path) == [journal.id]
    assert claim(tmp_path, journal.id) is None
    journal.close()
    fd = claim(tmp_path, journal.id)
    assert fd is not None
    assert claim(tmp_path, journal.id) is None
    os.close(fd)


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
    second = segments(tmp_path, journal.id)[1][2].read_bytes()
    assert FRAME.unpack_from(second, 36)[2] == 1  # the first record again
    assert read_all(tmp_path, journal.id) == [1, 2, 3]
