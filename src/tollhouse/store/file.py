"""State of one process, where values under some prefixes survive it: memory, and a file that says what is in it.

Rule: what was promised is in the file before its caller hears of it. Each change is one `write` to the end of the file,
at once, so that it survives the process; within a second it is synced, off the loop, so that the loss of power takes
the last second at most. A file has one process: a lock on `<file>.lock`, held until the end.

    header  magic "TLHS", format u8, sealed u8, 2 zero bytes, CRC-32 u32
    record  length of the body u32, CRC-32 u32 of it, body: MessagePack [key, unix time it ends, value or nil]

Little endian. The last record of a key counts; nil: it is gone. A tail that is no record was cut off by a crash, and
nobody was told that it is kept; it is put aside in `<file>.damaged`. With encryption keys values are sealed like those
on a server (`store.crypt`), with the first of them from the opening on. When most of the file is of the past, a new one
is written beside it, a part in each turn of the clock while changes go to both, and takes its place.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, time
from zlib import crc32

import msgspec

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.base import unavailable
from tollhouse.store.crypt import Box
from tollhouse.store.memory import MemoryBus, MemoryCounter, MemoryValues

__all__ = ["FileState", "FileValues"]

log = logging.getLogger("tollhouse.store")

_HEADER = struct.Struct("<4sBB2xI")
_MAGIC, _FORMAT = b"TLHS", 1
_FRAME = struct.Struct("<II")
_LARGEST = 16 << 20  # a damaged length must not make the reader swallow the rest
_SYNC = 1.0
_AGAIN = 60.0
"""Seconds before a new file is tried again, where one could not be written."""

_WASTE = 1 << 20
"""Bytes of the past that a file may have besides as many as it has of the present."""

_SLICE = 256 << 10
"""Bytes of a new file that are written in one turn of the clock."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[bytes, float, bytes | None]).decode


class FileState:
    """A `store.base.State`. keys: as those of `MemoryState`; encryption: secrets that seal what is in the file, with
    none it is not sealed. path: the file. prefixes: of keys whose values are kept. Raises as `FileValues`."""

    shared = False
    logs = None

    def __init__(
        self,
        clock: Clock,
        path: Path,
        prefixes: Sequence[str],
        encryption: Sequence[bytes] = (),
        keys: Sequence[bytes] = (),
    ) -> None:
        self.values = FileValues(clock, path, prefixes, encryption)
        self.bus = MemoryBus()
        self.counter = MemoryCounter(clock)
        self.node = os.urandom(8).hex()
        self.keys = tuple(encryption) or tuple(keys) or (os.urandom(32),)

    async def close(self) -> None:
        await self.values.finish()
        await self.counter.close()


class FileValues(MemoryValues):
    """A `store.base.KeyValue`. secrets: that seal, the first one, and open, all. now: unix seconds. waste: bytes of the
    past that the file may have. Raises ValueError, whose text is for people, for a file that another process has, that
    is none of ours, or that no secret opens; OSError where it cannot be made or read."""

    __slots__ = (
        "_base", "_box", "_broken", "_fd", "_file", "_flight", "_held", "_is_dirty", "_new", "_now", "_prefixes",
        "_present", "_retry_at", "_synced_at", "_todo", "_waste", "bytes_kept",
    )  # fmt: skip

    def __init__(
        self,
        clock: Clock,
        path: Path,
        prefixes: Sequence[str],
        secrets: Sequence[bytes] = (),
        *,
        now: Callable[[], float] = time,
        waste: int = _WASTE,
        limit: int = 500_000,
        room: int = 256 << 20,
    ) -> None:
        super().__init__(clock, limit, room)
        self._file = path.resolve()
        self._prefixes = tuple(prefixes)
        self._box = Box(secrets, f"a value in {path.name}") if secrets else None
        self._now = now
        self._waste = waste
        self._is_dirty = False  # something was written since it was synced
        self._broken = False  # half a record stands at the end, so nothing may follow
        self._synced_at = 0.0
        self._retry_at = 0.0
        self._new = -1  # a file that is being made,
        self._todo: list[str] = []  # and the keys that it has not got yet
        self._flight: asyncio.Future[None] | None = None
        self._fd = -1
        self.bytes_kept = 0  # size of the file
        self._base = 0  # what of it was of the present when it was new
        self._present = 0  # and of the one that is being made
        self._held = _lock(_beside(self._file, ".lock"))
        try:
            self._open(len(secrets) > 1)
        except BaseException:
            self._let_go()
            raise
        clock.every_turn(self._turn)

    async def finish(self) -> None:
        """Close the file; what is in it is synced."""
        if self._held < 0:
            return
        self._clock.remove(self._turn)
        self.close()
        if self._flight is not None:
            await asyncio.wait((self._flight,))
        self._abandon()
        if self._is_dirty:
            await asyncio.to_thread(_sync, self._fd)
        self._let_go()

    # ---- values

    async def touch(self, key: str, ttl: float) -> bool:
        before = self._entries.get(key)
        was_there = await super().touch(key, ttl)
        if was_there and before is not None and key.startswith(self._prefixes):
            self._keep(key, before, before[0], ttl)
        return was_there

    async def take(self, key: str) -> bytes | None:
        before = self._entries.get(key)
        value = await super().take(key)
        if value is not None and key.startswith(self._prefixes):
            self._keep(key, before, None, 1.0)
        return value

    def _set(self, key: str, value: bytes, ttl: float) -> None:
        before = self._entries.get(key)
        super()._set(key, value, ttl)
        if key.startswith(self._prefixes):
            self._keep(key, before, value, ttl)

    def _keep(self, key: str, before: tuple[bytes, float] | None, value: bytes | None, ttl: float) -> None:
        """Write what was done to a key; undo it, and raise Failure 503, where that cannot be."""
        try:
            self._write(self._record(key, value, self._now() + ttl))
        except Failure:
            self._drop(key)
            if before is not None:
                super()._set(key, before[0], max(before[1] - self._clock.now, 1e-3))
            raise

    def _record(self, key: str, value: bytes | None, ends: float) -> bytes:
        if value is not None and self._box is not None:
            value = self._box.seal(key, value)
        body = _encode((key.encode("utf-8", "surrogatepass"), ends, value))
        return _FRAME.pack(len(body), crc32(body)) + body

    # ---- the file

    def _write(self, record: bytes) -> None:
        if self._broken:
            raise unavailable(f"the file {self._file.name} has half a record at its end", reached=False)
        try:
            written = os.write(self._fd, record)
        except OSError as error:
            raise unavailable(
                f"the file {self._file.name} cannot be written: {error.strerror}", reached=False
            ) from None
        if written != len(record):
            try:
                os.ftruncate(self._fd, self.bytes_kept)
            except OSError:
                self._broken = True
            raise unavailable(f"the file {self._file.name} cannot be written: no space is left", reached=False)
        self.bytes_kept += written
        self._is_dirty = True
        if self._new >= 0:
            self._write_new(record)

    def _open(self, is_rotated: bool) -> None:
        self._fd = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        _beside(self._file, ".new").unlink(missing_ok=True)
        mode = os.fstat(self._fd).st_mode & 0o777
        if mode & 0o077:
            log.warning("the file %s could be read by others (mode %03o); now it cannot", self._file, mode)
            os.fchmod(self._fd, 0o600)
        content = self._file.read_bytes()
        is_sealed = _sealed(content, self._file)
        if is_sealed and self._box is None:
            raise ValueError(f"the file {self._file} is encrypted; give the `encryption_key` that it was written with")
        ends = self._load(content, bool(is_sealed))
        if ends < len(content):
            damaged = _beside(self._file, ".damaged")
            log.warning("the last %d bytes of %s are no record; see %s", len(content) - ends, self._file, damaged)
            _put(damaged, content[ends:])
        if ends == 0 or is_sealed != (self._box is not None) or is_rotated:
            self._anew()  # in the form, and with the secret, that is configured now
            return
        os.ftruncate(self._fd, ends)
        self.bytes_kept = ends
        self._is_dirty = True

    def _load(self, content: bytes, is_sealed: bool) -> int:
        """Take the records; where they end."""
        last: dict[str, tuple[float, bytes | None, int]] = {}
        at = _HEADER.size if content else 0
        while len(content) - at >= _FRAME.size:
            size, crc = _FRAME.unpack_from(content, at)
            body = content[at + _FRAME.size : at + _FRAME.size + size]
            if size > _LARGEST or len(body) != size or crc32(body) != crc:
                break
            try:
                name, ends, value = _decode(body)
            except (msgspec.DecodeError, ValueError):
                break
            last[name.decode("utf-8", "surrogatepass")] = (ends, value, len(body))
            at += _FRAME.size + size
        now, self._base = self._now(), _HEADER.size
        for key, (ends, value, size) in last.items():
            if value is None or ends <= now:
                continue
            if is_sealed and self._box is not None:
                value = self._box.open(key, value)
                if value is None:
                    raise ValueError(
                        f"no `encryption_key` opens what is in {self._file}; name the one it was written with as well "
                        "(keys, logins and grants are in it: without the file they are lost)"
                    )
            try:
                super()._set(key, value, ends - now)
            except Failure as failure:
                raise ValueError(f"the file {self._file} has more than memory may hold: {failure.detail}") from None
            self._base += _FRAME.size + size
        return at

    def _anew(self) -> None:
        """Write all of it at once: while nothing is served yet."""
        self._begin()
        self._fill(1 << 62)
        if self._new < 0:
            raise ValueError(f"the file {_beside(self._file, '.new')} cannot be written")
        _sync(self._new)
        self._present = os.fstat(self._new).st_size
        self._change_over()

    def _turn(self) -> None:
        """One step of what the file needs."""
        if self._flight is not None:
            return
        now = monotonic()
        if self._new >= 0:
            self._fill(_SLICE)
            if self._new >= 0 and not self._todo:
                self._present = os.fstat(self._new).st_size
                self._fly(self._new)
        elif (self._broken or self.bytes_kept > 2 * self._base + self._waste) and now >= self._retry_at:
            self._begin()
        elif self._is_dirty and now - self._synced_at >= _SYNC:
            self._synced_at = now
            self._is_dirty = False
            self._fly(self._fd)

    def _fly(self, fd: int) -> None:
        """Sync a file in a thread."""
        self._flight = asyncio.get_running_loop().run_in_executor(None, _sync, fd)
        self._flight.add_done_callback(self._landed)

    def _landed(self, flight: "asyncio.Future[None]") -> None:
        self._flight = None
        error = None if flight.cancelled() else flight.exception()
        if error is not None:
            log.error("the file %s cannot be synced: %s", self._file, error)
            self._is_dirty = True
            self._abandon()
        elif self._new >= 0 and not self._todo:
            try:
                self._change_over()
            except OSError as wrong:
                log.error("the file %s cannot be replaced: %s", self._file, wrong.strerror)
                self._abandon()

    def _begin(self) -> None:
        """Begin a new file."""
        path = _beside(self._file, ".new")
        try:
            self._new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            log.warning("the file %s cannot be made: %s", path, error.strerror)
            self._retry_at = monotonic() + _AGAIN
            return
        self._todo = [key for key in self._entries if key.startswith(self._prefixes)]
        head = _HEADER.pack(_MAGIC, _FORMAT, self._box is not None, 0)[:-4]
        self._write_new(head + crc32(head).to_bytes(4, "little"))

    def _fill(self, most: int) -> None:
        """Write what the new file has not got yet, about `most` bytes of it."""
        while self._todo and most > 0 and self._new >= 0:
            key = self._todo.pop()
            entry = self._entries.get(key)
            if entry is not None and entry[1] > self._clock.now:
                record = self._record(key, entry[0], self._now() + entry[1] - self._clock.now)
                most -= len(record)
                self._write_new(record)

    def _write_new(self, record: bytes) -> None:
        try:
            whole = os.write(self._new, record) == len(record)
        except OSError:
            whole = False
        if not whole:
            log.warning("the file %s cannot be written; the old one goes on", _beside(self._file, ".new"))
            self._abandon()

    def _change_over(self) -> None:
        """Let the new file take the old one's place. It was synced; what was written to it since is synced next."""
        _beside(self._file, ".new").rename(self._file)
        old, self._fd, self._new = self._fd, self._new, -1
        os.close(old)
        self.bytes_kept, self._base = os.fstat(self._fd).st_size, self._present
        self._broken = False
        self._is_dirty = True
        directory = os.open(self._file.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _abandon(self) -> None:
        if self._new >= 0:
            os.close(self._new)
            self._new, self._todo = -1, []
            self._retry_at = monotonic() + _AGAIN
            with contextlib.suppress(OSError):
                _beside(self._file, ".new").unlink(missing_ok=True)

    def _let_go(self) -> None:
        for fd in (self._fd, self._held):
            if fd >= 0:
                os.close(fd)
        self._fd = self._held = -1


def _beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def _lock(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise ValueError(
            f"another process has the state in {path.with_suffix('')}; each needs a file of its own"
        ) from None
    return fd


def _sealed(content: bytes, path: Path) -> bool | None:
    """What a header says; None for a file that has nothing in it yet. Raises ValueError."""
    if len(content) < _HEADER.size and (_MAGIC.startswith(content) or content.startswith(_MAGIC)):
        return None  # it was made, and the crash came before its header
    head = content[: _HEADER.size]
    if len(head) == _HEADER.size:
        magic, form, sealed, crc = _HEADER.unpack(head)
        if magic == _MAGIC and form == _FORMAT and crc == crc32(head[:-4]):
            return bool(sealed)
    raise ValueError(f"the file {path} is not one that state is kept in; move it away, or name another one")


def _put(path: Path, content: bytes) -> None:
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content)


def _sync(fd: int) -> None:
    os.fsync(fd)
