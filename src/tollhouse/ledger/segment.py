"""The files of a journal: what stands in them, how they are read, and whose they are.

A segment is a header and frames, little endian:

    header  magic "TLHJ", format u8, 3 zero bytes, journal id (16 bytes), first seq u64, CRC-32 u32 of all before
    frame   length of the body u32, CRC-32 u32 of all that follows, seq u64, kind u8, body

Its end is the end of the file, or a length of 0 (space that was set aside). Rule for what is not a frame: in the last
segment of a dead process it is the torn tail of a record that nobody was told about, and is cut; in a segment that
has a later one it is damage, counted, and reading goes on with the next segment; in the segment that is being
written it is a record half written, to be looked at again.

A segment may begin with frames of the ones before it, as they were: intents (`intents`) that are open still. By their
seqs they are known, and read once.
"""

import fcntl
import os
import struct
from enum import Enum
from pathlib import Path
from zlib import crc32

from tollhouse.ledger.base import Entry
from tollhouse.ledger.intents import Begun

__all__ = [
    "CHECKED", "FRAME", "LEADING", "Reader", "claim", "header", "journals", "lock_path", "name_of", "next_path",
    "segments", "spare_path",
]  # fmt: skip

FRAME = struct.Struct("<IIQB")
LEADING, CHECKED = struct.Struct("<II"), struct.Struct("<QB")
"""FRAME in two: the length and the CRC, and what is under the CRC."""
_HEAD = FRAME.size
_HEADER = struct.Struct("<4sB3x16sQI")
_MAGIC, _FORMAT = b"TLHJ", 1
_LARGEST = 16 << 20  # a damaged length must not make the reader swallow the rest
_CHUNK = 64 << 10  # small, because the interpreter is held while it is taken apart


def name_of(journal: str, number: int, first: int) -> str:
    return f"{journal}-{number:08x}-{first:016x}.seg"


def lock_path(directory: Path, journal: str) -> Path:
    return directory / f"{journal}.lock"


def spare_path(directory: Path, journal: str) -> Path:
    return directory / f"{journal}.spare"


def next_path(directory: Path, journal: str) -> Path:
    """A segment that is being made: it is none yet."""
    return directory / f"{journal}-next.new"


def header(journal: str, first: int) -> bytes:
    head = _HEADER.pack(_MAGIC, _FORMAT, bytes.fromhex(journal), first, 0)[:-4]
    return head + crc32(head).to_bytes(4, "little")


def _is_header(data: bytes, journal: str) -> bool:
    if len(data) < _HEADER.size:
        return False
    magic, form, owner, _, crc = _HEADER.unpack(data)
    return bool(magic == _MAGIC and form == _FORMAT and owner.hex() == journal and crc == crc32(data[:-4]))


def segments(directory: Path, journal: str) -> list[tuple[int, int, Path]]:
    """The segments of one journal that exist: (number, first seq, path), rising by number."""
    found = []
    for path in directory.glob(f"{journal}-*.seg"):
        _, number, first = path.stem.split("-")
        found.append((int(number, 16), int(first, 16), path))
    return sorted(found)


def journals(directory: Path) -> list[str]:
    """The ids of all journals that have left a file here, living or dead."""
    found = {path.name[:32] for end in ("lock", "seg", "spare") for path in directory.glob(f"*.{end}")}
    return sorted(found)


def claim(directory: Path, journal: str) -> int | None:
    """Become the owner of a journal whose process is gone: the locked descriptor, to be closed at the end; or None,
    because somebody has it."""
    fd = os.open(lock_path(directory, journal), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd


class _End(Enum):
    LIMIT = 0  # there may be more
    CLEAN = 1
    TORN = 2


class Reader:
    """Reads a journal from after `position`, while it is written (`live`) or after its process is gone.

    damaged: segments that broke off where they must not. missing: records that are gone with that. done: segments
    read to their end, (number, path): to be deleted when what was read is stored. begun: what the journal leaves open,
    of one that is not live; its segments are then all looked at, also those at or below the position.
    """

    def __init__(self, directory: Path, journal: str, position: int, *, live: bool) -> None:
        self.directory = directory
        self.journal = journal
        self.live = live
        self.damaged = 0
        self.missing = 0
        self.done: list[tuple[int, Path]] = []
        self.begun = None if live else Begun()
        self._seq = position
        self._number = 0
        self._path: Path | None = None
        self._fd = -1
        self._at = 0

    def read(self, limit: int) -> list[Entry]:
        """Up to `limit` entries, in order; none when there are none now. Raises OSError."""
        entries: list[Entry] = []
        while len(entries) < limit:
            # Listed before it is read: if there is a later one now, this one has got all it will ever have.
            later = [s for s in segments(self.directory, self.journal) if s[0] > self._number]
            if self._path is None:
                if not later:
                    break
                while self.begun is None and len(later) > 1 and later[1][1] <= self._seq + 1:
                    number, _, path = later.pop(0)  # all of it is at or below the position
                    self._number = number
                    self.done.append((number, path))
                self._open(*later.pop(0))
            end = self._scan(entries, limit)
            if end is _End.LIMIT or (self.live and not later):
                break
            if end is _End.TORN and later:
                self.damaged += 1
            self._finish()
        return entries

    def end(self) -> None:
        """A live journal is written no more: once it is read to its end, its last segment is done, too."""
        self.live = False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self, number: int, first: int, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._number, self._path, self._at = number, path, 0
        if self.begun is not None and first - 1 > self.begun.last:
            self.begun.last = first - 1  # there may be no record in it
        if first - 1 > self._seq:  # said by its name, since its first frames may be older ones
            if self._seq:
                self.missing += first - 1 - self._seq
            self._seq = first - 1

    def _finish(self) -> None:
        assert self._path is not None
        self.close()
        self.done.append((self._number, self._path))
        self._path = None

    def _scan(self, entries: list[Entry], limit: int) -> _End:
        """Read frames from where we are until `limit`, the end, or something that is no frame."""
        if self._at == 0:
            if not _is_header(os.pread(self._fd, _HEADER.size, 0), self.journal):
                return _End.TORN
            self._at = _HEADER.size
        unpack, crc_of, add = FRAME.unpack_from, crc32, entries.append  # this loop is run for each record
        see = None if self.begun is None else self.begun.see
        want, last = _CHUNK, self._seq
        while True:
            chunk = os.pread(self._fd, want, self._at)
            at, have = 0, len(chunk)
            latest, end = have - _HEAD, None
            while at <= latest:
                size, crc, seq, kind = unpack(chunk, at)
                if not 0 < size <= _LARGEST:
                    end = _End.TORN if size else _End.CLEAN
                    break
                stop = at + _HEAD + size
                if stop > have:
                    break
                checked = chunk[at + 8 : stop]
                if crc_of(checked) != crc:
                    end = _End.TORN
                    break
                at = stop
                if see is not None:
                    see(seq, kind, checked[_HEAD - 8 :])
                if seq > last:
                    if seq != last + 1 and last:
                        self.missing += seq - last - 1
                    last = seq
                    add(Entry(seq, kind, checked[_HEAD - 8 :]))
                    if len(entries) >= limit:
                        end = _End.LIMIT
                        break
            self._at += at
            self._seq = last
            if end is not None:
                return end
            if have < want:
                return _End.TORN if any(memoryview(chunk)[at:]) else _End.CLEAN
            want = _CHUNK if at else _LARGEST + _HEAD
