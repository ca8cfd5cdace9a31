"""The write-ahead journal: a record is in a file before the answer that caused it ends.

Rule: `write` is one os.write of one frame, at once, in the event loop; it costs a few microseconds and survives the
death of the process at any instant. It does not survive the loss of power: for that there is fsync="group", which has
a thread call fdatasync every `fsync_interval`, so that at most the records of that time are lost with the machine.
(Answers are not held back for it.)

A journal is a set of files in one directory, owned by the process that holds a lock on `<id>.lock`:

    <id>-<number>-<first seq>.seg   segments, rising; one is written, the others wait to be shipped, then go
    <id>-next.new                   a segment that is being made
    <id>.spare                      space set aside for the calls in flight when the disk is full

id is 128 random bits in hex, new with each process. What a segment looks like inside, and how it is read, is in
`segment.py`.

Intents (`intents`) are in the journal as long as they are open: a new segment begins with those of the one before, so
that this one may be deleted. They are as many as calls are under way; a segment grows with them, to twice their size.
"""

import errno
import fcntl
import os
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic
from typing import Literal
from zlib import crc32

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.ledger.base import Entry
from tollhouse.ledger.intents import lost
from tollhouse.ledger.records import INTENT, USAGE
from tollhouse.ledger.segment import (
    CHECKED,
    FRAME,
    LEADING,
    header,
    lock_path,
    name_of,
    next_path,
    segments,
    spare_path,
)

__all__ = ["Journal"]

_NO_SPACE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
_MOST_UNSYNCED = 16 << 20
"""Bytes kept in memory until their sync, so that they can be written again."""


class Journal:
    """The journal of this process. `append`, `write`, `full` and `seal` belong to the event loop's thread.

    segment_size: bytes after which a new segment is begun. max_size: bytes that may wait to be shipped, in this journal
    and the `others`; above, `full` says so and nobody may begin a billable call. drop: above, and with a full disk, the
    oldest segments are deleted instead, shipped or not. spare: bytes set aside for what is in flight when the disk is
    full.
    preallocate: reserve each segment's space when it is begun, so that a full disk shows then. sync: what makes a
    descriptor's data durable, fdatasync unless given.
    """

    def __init__(
        self,
        directory: Path,
        *,
        segment_size: int = 64 << 20,
        max_size: int = 8 << 30,
        drop: bool = False,
        spare: int = 1 << 20,
        preallocate: bool = False,
        fsync: Literal["off", "group"] = "off",
        fsync_interval: float = 0.05,
        sync: Callable[[int], None] | None = None,
    ) -> None:
        self.directory = directory
        self.id = os.urandom(16).hex()
        self.seq = 0
        """The last record appended; 0 before the first one."""
        self.used = 0
        """The last usage record of these."""
        self.failures = 0
        """Writes that did not work."""
        self.shipped = 0
        """The last record that is in the ledger, as far as the shipper has said."""
        self.dropped = 0
        """Records deleted before they were shipped."""
        self.others = 0
        """Bytes of the other journals in the directory, as far as somebody has looked."""
        self.keeps = 0
        """The number of a segment that is not to be deleted yet, nor those after it; 0 for none: there was no space to
        write again what is open in it."""
        self.max_size = max_size
        self._open: dict[str, bytes] = {}  # frames of intents, by their calls' holds
        self._begun_whole = 0  # the latest segment that began with all that was open
        self._drop = drop
        self._segment_size = segment_size
        self._spare_size = spare
        self._preallocate = preallocate
        self._fsync = fsync == "group"
        self._fsync_interval = fsync_interval
        self._sync: Callable[[int], None] = sync if sync is not None else getattr(os, "fdatasync", os.fsync)
        self._encode: Callable[[msgspec.Struct], bytes] = msgspec.json.Encoder().encode
        self._lock_fd = -1
        self._fd = -1
        self._number = 0
        self._at = 0
        self._rotate_at = self._segment_size
        self._no_space = False
        self._retry = 0.0
        # Bytes written and deleted are counted by the loop alone, bytes released by the shipper alone: no lock.
        self._written = 0
        self._released = 0
        self._deleted = 0
        self._closed: dict[int, int] = {}
        self._syncer: _Syncer | None = None

    def open(self) -> None:
        """Take the lock, begin the first segment. Raises OSError when the directory cannot be written."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Locked under another name first: whoever sees `<id>.lock` sees it locked.
        fresh = self.directory / f"{self.id}.new"
        self._lock_fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(lock_path(self.directory, self.id))
        self._set_aside()
        self._begin(self.seq + 1)
        if self._fsync:
            self._syncer = _Syncer(self._fd, self._fsync_interval, self._sync)

    def append(self, record: msgspec.Struct, kind: int = USAGE) -> int:
        """`write` of a record."""
        return self.write(self._encode(record), kind)

    def write(self, body: bytes, kind: int = USAGE, hold: str = "") -> int:
        """Write one record, given as its JSON; its seq. When this returns, the record outlives the process. hold: of
        the call that it is the intent of (another one of the same call takes its place), or that it ends; "" where a
        call has none.

        Raises Failure 503 when it cannot be written: the answer that caused it must then fail too.
        """
        seq = self.seq + 1
        checked = CHECKED.pack(seq, kind) + body
        frame = LEADING.pack(len(body), crc32(checked)) + checked
        size = len(frame)
        try:
            written = os.write(self._fd, frame)
        except OSError as error:
            self._repair(frame, error)
        else:
            if written != size:
                self._repair(frame, OSError(errno.ENOSPC, "short write"))
        self.seq = seq
        if kind == USAGE:
            self.used = seq
        self._at += size
        self._written += size
        if hold:
            self._intended(hold, frame if kind == INTENT else None)
        if self._syncer is not None:
            self._after(frame)
        if self._at >= self._rotate_at:
            self._rotate()
        return seq

    @property
    def size(self) -> int:
        """Bytes in segments, shipped or not, that are not deleted yet."""
        return self._written - self._released - self._deleted

    @property
    def full(self) -> bool:
        """No new billable call may begin: the bound is reached, the disk is full, or so slow that too much waits for
        its sync. Calls in flight may still end."""
        if self._no_space and monotonic() >= self._retry:
            self._recover()
        if self._no_space or (self._syncer is not None and self._syncer.waiting >= _MOST_UNSYNCED):
            return True
        return not self._drop and self._written - self._released - self._deleted + self.others >= self.max_size

    @property
    def no_space(self) -> bool:
        """The disk has taken nothing more, the last time."""
        return self._no_space

    def seal(self) -> None:
        """No more appends: they raise Failure. What is written stays, and stays ours until `close`."""
        syncer, self._syncer = self._syncer, None
        if syncer is not None:
            syncer.stop()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._closed[self._number] = self._at

    def lost(self) -> list[Entry]:
        """Once it is sealed: the records that are due for calls which never got one, to stand behind all others."""
        frames = [(FRAME.unpack_from(frame), frame[FRAME.size :]) for frame in self._open.values()]
        return lost({str(head[2]): Entry(head[2], head[3], body) for head, body in frames}, self.seq)

    def close(self) -> None:
        """Give it up. Segments that are left will be found and shipped by the next process."""
        self.seal()
        self._spare_path.unlink(missing_ok=True)
        next_path(self.directory, self.id).unlink(missing_ok=True)
        if self._lock_fd >= 0:
            if not segments(self.directory, self.id):
                lock_path(self.directory, self.id).unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def release(self, number: int) -> None:
        """The shipper deleted the segment of this number (called in its thread)."""
        self._released += self._closed.pop(number, 0)

    @property
    def _spare_path(self) -> Path:
        return spare_path(self.directory, self.id)

    def _begin(self, first: int, *, spare: bool = False, distrust: bool = False) -> None:
        """Make a new segment, whose first record is `first`, the one that is written. Raises OSError, and changes
        nothing then. distrust: the one before is not to be synced again."""
        # To the reader a later segment says that the one before has got all it ever will, and then that one is shipped
        # and deleted: the new one gets its name last, when nothing can fail any more and `release` knows the old one.
        fresh = next_path(self.directory, self.id)
        if spare:
            self._spare_path.rename(fresh)
            if self._open:  # the spare is for calls that end
                self.keeps = self._begun_whole
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | (0 if spare else os.O_TRUNC) | os.O_CLOEXEC, 0o600)
        head = header(self.id, first)
        if not spare:  # those from `first` on are about to be written anyway
            head += b"".join(frame for frame in self._open.values() if FRAME.unpack_from(frame)[2] < first)
        old = self._fd
        try:
            if self._preallocate and not spare:
                _reserve(fd, self._segment_size)
            if os.write(fd, head) != len(head):
                raise OSError(errno.ENOSPC, "short write")
            if old >= 0:
                self._closed[self._number] = self._at
            fresh.rename(self.directory / name_of(self.id, self._number + 1, first))
        except OSError:
            self._closed.pop(self._number, None)
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        self._fd = fd
        if old >= 0:
            if self._syncer is not None:
                self._syncer.turn_to(fd, old, distrust)
            else:
                os.close(old)
        self._number += 1
        if not spare:
            self._begun_whole, self.keeps = self._number, 0
        self._at = len(head)
        self._written += len(head)
        self._rotate_at = max(self._segment_size, 2 * len(head))

    def _intended(self, hold: str, frame: bytes | None) -> None:
        self._open.pop(hold, None)  # what takes its place stands behind the others
        if frame is not None:
            self._open[hold] = frame
        elif not self._open:
            self.keeps = 0

    def _rotate(self) -> None:
        try:
            self._begin(self.seq + 1)
        except OSError as error:
            # Go on in this segment; the next write tells whether the disk is full.
            self.failures += 1
            self._rotate_at = self._at + self._segment_size // 4
            if error.errno in _NO_SPACE:
                self._out_of_space()
        if self._drop:
            while self.size + self.others > self.max_size and self._drop_oldest():
                pass

    def _drop_oldest(self) -> bool:
        """Delete the oldest segment that is not the one being written; whether there was one."""
        found = segments(self.directory, self.id)
        if len(found) < 2:
            return False
        (number, first, path), (_, after, _) = found[:2]
        path.unlink(missing_ok=True)
        self._deleted += self._closed.pop(number, 0)
        self.dropped += max(0, after - max(first, self.shipped + 1))
        return True

    def _repair(self, frame: bytes, error: OSError) -> None:
        """A write failed or was short: take back what is there of it, and write it to another segment, or raise."""
        if self._fd < 0:
            raise _refusal("the journal is closed")
        self.failures += 1
        whole = self._cut_back()  # else the torn frame ends this segment for the reader too: its CRC is wrong
        no_space = error.errno in _NO_SPACE
        while no_space and whole and self._drop and self._drop_oldest():
            try:
                if os.write(self._fd, frame) == len(frame):
                    return
            except OSError:
                pass
            whole = self._cut_back()
        if no_space:
            self._out_of_space()
        spare = no_space and self._spare_path.exists()
        if no_space and not spare:
            raise _refusal(f"no space for the journal: {error.strerror}")
        try:
            self._begin(self.seq + 1, spare=spare)
            if os.write(self._fd, frame) != len(frame):
                raise OSError(errno.ENOSPC, "short write")
        except OSError as again:
            self._cut_back()
            raise _refusal(f"the journal cannot be written: {again.strerror}") from again

    def _cut_back(self) -> bool:
        """Take back what was written of a frame; whether that worked."""
        try:
            os.ftruncate(self._fd, self._at)
            os.lseek(self._fd, self._at, os.SEEK_SET)
        except OSError:
            return False
        return True

    def _out_of_space(self) -> None:
        self._no_space = True
        self._retry = monotonic() + 1.0

    def _recover(self) -> None:
        """Full no longer, once there is room for a new spare and a new segment."""
        self._retry = monotonic() + 1.0
        if self._fd < 0:
            return
        try:
            self._set_aside()
            self._begin(self.seq + 1)
        except OSError:
            return
        self._no_space = False

    def _set_aside(self) -> None:
        if not self._spare_size or self._spare_path.exists():
            return
        fd = os.open(self._spare_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _reserve(fd, self._spare_size)
        except OSError:
            self._spare_path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)

    def _after(self, frame: bytes) -> None:
        """fsync="group": hand the frame to the syncer; after a failed sync, write again what it did not confirm."""
        syncer = self._syncer
        assert syncer is not None
        syncer.add(frame)
        if not syncer.failed:
            return
        # The kernel may have dropped the pages it could not write: that file is neither trusted nor synced again. The
        # records stand twice in the journal then, with the same seq, and are read once.
        self.failures += 1
        frames = syncer.unconfirmed()
        try:
            self._begin(FRAME.unpack_from(frames[0])[2], distrust=True)
            for one in frames:
                if os.write(self._fd, one) != len(one):
                    raise OSError(errno.ENOSPC, "short write")
                self._at += len(one)
                self._written += len(one)
        except OSError as error:
            self._cut_back()
            raise _refusal(f"the journal cannot be written: {error.strerror}") from error


def _reserve(fd: int, size: int) -> None:
    """Have the disk's blocks for the first `size` bytes, as zeros, without moving the descriptor. Raises OSError."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, 0, size)
        return
    zeros = bytes(1 << 16)
    for at in range(0, size, len(zeros)):
        if os.pwrite(fd, zeros[: size - at], at) == 0:
            raise OSError(errno.ENOSPC, "short write")


def _refusal(detail: str) -> Failure:
    return Failure(
        503,
        Reason.INTERNAL,
        "usage cannot be recorded at the moment; try again later",
        code="ledger_unavailable",
        detail=detail,
        retry_after=5.0,
    )


class _Syncer:
    """Syncs in a thread. `add`, `turn_to`, `unconfirmed` and `stop` belong to the loop's thread.

    failed: a sync did not work; nothing is synced until `turn_to` names another file, with `distrust`.
    """

    __slots__ = (
        "_added", "_ending", "_fd", "_frames", "_interval", "_lock", "_old", "_sync_fd", "_synced", "_thread", "_wake",
        "failed",
    )  # fmt: skip

    def __init__(self, fd: int, interval: float, sync: Callable[[int], None]) -> None:
        self.failed = False
        self._interval = interval
        self._sync_fd = sync
        self._fd = fd
        self._old: list[int] = []
        self._frames: deque[bytes] = deque()
        # Bytes, counted by one thread each.
        self._added = 0
        self._synced = 0
        self._lock = Lock()
        self._wake = Event()
        self._ending = Event()
        self._thread = Thread(target=self._run, name="journal-sync", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Bytes that are not synced yet."""
        return self._added - self._synced

    def add(self, frame: bytes) -> None:
        self._added += len(frame)
        self._frames.append(frame)
        if not self._wake.is_set():
            self._wake.set()

    def turn_to(self, fd: int, old: int, distrust: bool) -> None:
        with self._lock:
            self._fd = fd
            if distrust:
                os.close(old)
                self.failed = False
            else:
                self._old.append(old)
        self._wake.set()  # the new one may have begun with frames of the old one

    def unconfirmed(self) -> list[bytes]:
        with self._lock:
            return list(self._frames)

    def stop(self) -> None:
        self._ending.set()
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            ending = self._ending.wait(self._interval)
            self._wake.clear()
            if not self.failed:
                self._sync()
            if ending:
                return

    def _sync(self) -> None:
        with self._lock:
            n = len(self._frames)  # written before now, so in one of these files
            old, self._old = self._old, []
            fd = os.dup(self._fd)
        try:
            for one in (*old, fd):
                self._sync_fd(one)
        except OSError:
            self.failed = True
        else:
            for _ in range(n):
                self._synced += len(self._frames.popleft())
        finally:
            for one in (*old, fd):
                os.close(one)
