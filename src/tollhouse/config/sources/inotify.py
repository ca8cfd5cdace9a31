"""Linux tells when entries of directories change (inotify(7)), read through libc.

Rule: directories are watched, never files: a file that is replaced by a rename or through a symbolic link is another
file, and only its directory knows.
"""

import ctypes
import os
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

__all__ = ["CREATED", "GONE", "LOST", "WRITTEN", "Inotify"]

WRITTEN: Final = 0x08 | 0x80  # IN_CLOSE_WRITE, IN_MOVED_TO
CREATED: Final = 0x100  # IN_CREATE
GONE: Final = 0x40 | 0x200  # IN_MOVED_FROM, IN_DELETE
LOST: Final = (
    0x400 | 0x800 | 0x2000 | 0x4000 | 0x8000
)  # of the directory itself, its mount, or of events; the watch ended

_MASK: Final = WRITTEN | CREATED | GONE | 0x400 | 0x800 | 0x01000000  # ... IN_DELETE_SELF, IN_MOVE_SELF, IN_ONLYDIR
_IGNORED: Final = 0x8000
_HEAD: Final = struct.Struct("iIII")  # wd, mask, cookie, length of the name that follows
_BUFFER: Final = 64 << 10


class Inotify:
    """Watches a set of directories. `fileno` becomes readable when `events` has something to give.

    Raises OSError where there is no inotify, or no more of it.
    """

    __slots__ = ("_fd", "_libc", "_watches")

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise OSError("inotify is of Linux")
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._fd: int = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._watches: dict[str, int] = {}

    def fileno(self) -> int:
        return self._fd

    def watch(self, directories: Iterable[str]) -> None:
        """Watch these directories and no others; what cannot be watched is left out, and tried again next time."""
        wanted = set(directories)
        for gone in self._watches.keys() - wanted:
            self._libc.inotify_rm_watch(self._fd, self._watches.pop(gone))
        for directory in wanted:
            # Also one that is watched: the name may stand for another directory by now, which gets its own number.
            wd = self._libc.inotify_add_watch(self._fd, os.fsencode(directory), _MASK)
            if wd < 0:
                self._watches.pop(directory, None)
                continue
            before = self._watches.get(directory)
            if before is not None and before != wd and before not in (self._watches | {directory: wd}).values():
                self._libc.inotify_rm_watch(self._fd, before)
            self._watches[directory] = wd

    def events(self) -> Iterator[tuple[str, int, str]]:
        """Directory, kind (a mask of WRITTEN, CREATED, GONE, LOST) and name of what happened since the last call."""
        names: dict[int, list[str]] = {}
        for directory, wd in self._watches.items():
            names.setdefault(wd, []).append(directory)
        while True:
            try:
                read = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return
            at = 0
            while at < len(read):
                wd, mask, _, length = _HEAD.unpack_from(read, at)
                at += _HEAD.size
                name = os.fsdecode(read[at : at + length].rstrip(b"\0"))
                at += length
                for directory in names.get(wd, [""] if wd < 0 else []):
                    if mask & _IGNORED:
                        self._watches.pop(directory, None)
                    yield directory, mask, name

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._watches.clear()
