"""Configuration from a file: says when it, or a file it names, has other contents than those that were read.

Theory of operation: `watch` says which files were read, and the digests of their contents then. inotify says at
once when one of them was written, replaced or re-linked; a look at their times once a second finds the rest (network
mounts, systems without inotify, writers that never close). Either way the contents decide: a file that was only
touched is no change.

Rule: a file that is being written is not read. inotify tells the end of writing; the look at times waits until nothing
changed between two looks. A file that has vanished is most often about to come back, so only the second look believes
it.
"""

import asyncio
import logging
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from tollhouse.config.secrets import ABSENT, digest_of
from tollhouse.config.sources.inotify import CREATED, LOST, WRITTEN, Inotify

__all__ = ["FileSource"]

log = logging.getLogger("tollhouse.config")

_HOPS: Final = 40  # symbolic links on the way to one file, as in Linux
_PATIENCE: Final = 10  # how often a burst of events may put off the look that follows it

_Stamp = tuple[int, int, int, int] | None


class FileSource:
    """Calls `changed` in the loop when a watched file has new contents; once for each new contents.

    debounce: seconds without another event before contents are looked at. poll: seconds between two looks at times.
    """

    def __init__(self, *, debounce: float = 0.005, poll: float = 1.0) -> None:
        self._changed: Callable[[], None] | None = None
        self._debounce = debounce
        self._poll = poll
        self._digests: dict[str, str] = {}
        self._stamps: dict[str, _Stamp] = {}  # when the contents were last looked at
        self._restless: dict[str, _Stamp] = {}  # at the last poll, where different from then
        self._entries: dict[tuple[str, str], set[str]] = {}  # directory and name -> the files it decides
        self._pending: set[str] = set()  # files to look at when things are quiet
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inotify: Inotify | None = None
        self._due: asyncio.TimerHandle | None = None
        self._put_off = 0
        self._next_poll: asyncio.TimerHandle | None = None

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to look, in the running loop, at what `watch` names."""
        loop = self._loop = asyncio.get_running_loop()
        self._changed = changed
        try:
            self._inotify = Inotify()
        except OSError as error:
            log.info("no inotify (%s): changes of files are seen by looking every %g s", error, self._poll)
        else:
            loop.add_reader(self._inotify.fileno(), self._readable)
        self._next_poll = loop.call_later(self._poll, self._look_at_times)
        self._begin()

    def watch(self, files: Mapping[str, str]) -> None:
        """These files were read, with these digests: those of a Loaded, or of the LoadError that came instead.

        What has changed since then is reported at once.
        """
        self._digests = dict(files)
        self._stamps = dict.fromkeys(files)
        self._restless.clear()
        if self._loop is not None:
            self._begin()

    def close(self) -> None:
        """No call of `changed` comes after this. May be called twice."""
        for timer in (self._due, self._next_poll):
            if timer is not None:
                timer.cancel()
        self._due = self._next_poll = None
        if self._inotify is not None and self._loop is not None:
            self._loop.remove_reader(self._inotify.fileno())
            self._inotify.close()
        self._inotify = self._loop = self._changed = None

    def _begin(self) -> None:
        self._find()
        self._pending.update(self._digests)
        self._put_off = 0
        self._soon(0.0)

    def _find(self) -> None:
        """Have inotify watch the directories that decide what the files are, as they are now."""
        if self._inotify is None:
            return
        self._entries.clear()
        for name in self._digests:
            for entry in _way(name):
                self._entries.setdefault(entry, set()).add(name)
        self._inotify.watch({directory for directory, _ in self._entries})

    # ---- inotify

    def _readable(self) -> None:
        assert self._inotify is not None
        moved = False
        for directory, kind, name in self._inotify.events():
            if kind & LOST:
                self._pending.update(self._digests)
                moved = True
            elif decided := self._entries.get((directory, name)):
                moved = True
                if kind & WRITTEN or (kind & CREATED and _is_complete(directory, name)):
                    self._pending |= decided
        if moved:
            self._find()
        if self._pending:
            self._soon(self._debounce)

    def _soon(self, delay: float) -> None:
        assert self._loop is not None
        if self._due is not None:
            if self._put_off >= _PATIENCE:
                return
            self._due.cancel()
            self._put_off += 1
        self._due = self._loop.call_later(delay, self._look)

    def _look(self) -> None:
        """Compare the contents of what was written, where it is there."""
        self._due = None
        self._put_off = 0
        pending, self._pending = self._pending & self._digests.keys(), set()
        self._compare(pending, believe_absence=False)

    # ---- looking at times

    def _look_at_times(self) -> None:
        assert self._loop is not None
        self._next_poll = self._loop.call_later(self._poll, self._look_at_times)
        quiet = []
        for name, seen in self._stamps.items():
            stamp = _stamp(name)
            if stamp == seen and (stamp is not None or self._digests[name] == ABSENT):
                self._restless.pop(name, None)
            elif name in self._restless and self._restless[name] == stamp:
                quiet.append(name)
            else:
                self._restless[name] = stamp
        if quiet:
            self._compare(quiet, believe_absence=True)
        self._find()

    def _compare(self, names: Iterable[str], *, believe_absence: bool) -> None:
        changed = False
        for name in names:
            stamp = _stamp(name)
            now = digest_of(name)
            if now == ABSENT and not believe_absence:
                continue
            self._stamps[name] = stamp
            self._restless.pop(name, None)
            if now != self._digests[name]:
                self._digests[name] = now
                changed = True
        if changed and self._changed is not None:
            self._changed()


def _stamp(name: str) -> _Stamp:
    try:
        status = Path(name).stat()
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _is_complete(directory: str, name: str) -> bool:
    """Whether a new entry is complete as it is: a symbolic link, or one more name of a file. A new file is about to be
    written, and the end of that is an event of its own."""
    try:
        status = Path(directory, name).lstat()
    except OSError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_nlink > 1


def _way(name: str) -> set[tuple[str, str]]:
    """The directory entries that decide what `name` is: itself, and each symbolic link on the way."""
    entries: set[tuple[str, str]] = set()
    at, rest = "/", [part for part in name.split("/") if part not in ("", ".")]
    for _ in range(_HOPS):
        while rest:
            part = rest.pop(0)
            if part == "..":
                at = str(Path(at).parent)
                continue
            try:
                target = str(Path(at, part).readlink())
            except (OSError, ValueError):
                if not rest:
                    entries.add((at, part))
                at = str(Path(at, part))
                continue
            entries.add((at, part))
            rest = [step for step in target.split("/") if step not in ("", ".")] + rest
            if target.startswith("/"):
                at = "/"
            break
        else:
            break
    return entries
