"""ledger.segment: what is read of a journal's files, whatever happens to their tails, and whose they are."""

import os
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.conformance.ledger import record

from tollhouse.ledger.journal import Journal
from tollhouse.ledger.segment import (
    Reader,
    claim,
    header,
    journals,
    lock_path,
    name_of,
    next_path,
    segments,
    spare_path,
)

ID = "0123456789abcdef" * 2


def opened(directory: Path, **options: object) -> Journal:
    journal = Journal(directory, **options)  # type: ignore[arg-type]
    journal.open()
    return journal


def files(directory: Path, journal: Journal) -> list[Path]:
    return [path for _, _, path in segments(directory, journal.id)]


def test_segments_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number, first in ((0x10, 300), (2, 20), (1, 1)):
        (tmp_path / name_of(ID, number, first)).touch()
    for other in (spare_path(tmp_path, ID), next_path(tmp_path, ID), lock_path(tmp_path, ID)):
        other.touch()
    (tmp_path / name_of("f" * 32, 1, 1)).touch()
    assert [(number, first) for number, first, _ in segments(tmp_path, ID)] == [(1, 1), (2, 20), (0x10, 300)]


@pytest.mark.parametrize("end", ["lock", "seg", "spare"])
def test_a_journal_is_known_by_any_file_it_has_left(end: str, tmp_path: Path) -> None:
    made = {"lock": lock_path(tmp_path, ID), "seg": tmp_path / name_of(ID, 1, 1), "spare": spare_path(tmp_path, ID)}
    made[end].touch()
    assert journals(tmp_path) == [ID]


@pytest.mark.parametrize("broken", ["short", "magic", "format", "owner", "crc"])
def test_a_file_with_another_header_has_no_records(broken: str, tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.append(record(1))
    (path,) = files(tmp_path, journal)
    journal.close()
    content = path.read_bytes()
    good = header(journal.id, 1)
    assert content.startswith(good)
    bad = {
        "short": content[: len(good) - 1],
        "magic": b"TLHK" + content[4:],
        "format": content[:4] + b"\2" + content[5:],
        "owner": header(ID, 1) + content[len(good) :],
        "crc": content[: len(good) - 4] + struct.pack("<I", 0) + content[len(good) :],
    }
    path.write_bytes(bad[broken])
    reader = Reader(tmp_path, journal.id, 0, live=False)
    assert reader.read(10) == []
    assert len(reader.done) == 1


def test_what_is_set_aside_is_the_end(tmp_path: Path) -> None:
    """Zeros after the last frame, of any length, and then something that was there before."""
    journal = opened(tmp_path)
    journal.append(record(1))
    (path,) = files(tmp_path, journal)
    journal.close()
    content = path.read_bytes()
    for tail in (b"\0", bytes(100), bytes(70_000), bytes(100) + b"old"):
        path.write_bytes(content + tail)
        reader = Reader(tmp_path, journal.id, 0, live=False)
        assert [msgspec.json.decode(entry.body)["request_id"] for entry in reader.read(10)] == ["req-1"]
        assert reader.damaged == 0


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
