"""The pins file on its disk: read when a configuration is built, followed while it serves, added to when a tool is new.

Rule: who writes holds the directory's lock, reads again what is there and replaces the file whole, so that several
workers, gateways on one host and `tollhouse tools approve` may all write. A file that cannot be read changes nothing;
one that cannot be written costs the memory of what was new, and is said once.
"""

import asyncio
import errno
import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.wire.mcp.pins import MOST, BadPins, Pin, Pins, merged, parse, render

__all__ = ["PinsFile", "change", "read"]

log = logging.getLogger("tollhouse.backends.mcp")

LONGEST = 64 << 20  # bytes of a pins file
_LOOK = 2.0  # seconds between two looks at the file
_NONE: Mapping[str, Pin] = {}

_Stamp = tuple[int, int, int] | None
_UNKNOWN: _Stamp = (0, 0, 0)


def read(path: Path) -> dict[str, dict[str, Pin]]:
    """What the file says; no pins where there is none. Raises BadPins."""
    try:
        with path.open("rb") as file:
            data = file.read(LONGEST + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadPins(f"cannot be read: {error.strerror}") from None
    if len(data) > LONGEST:
        raise BadPins(f"more than {LONGEST >> 20} MiB")
    return parse(data)


def change(path: Path, edit: Callable[[Pins], Mapping[str, Mapping[str, Pin]]]) -> Pins:
    """Replace what the file says by what `edit` makes of it: what it says then. Nobody else writes meanwhile. Raises
    BadPins for a file that cannot be read, OSError for one that cannot be written."""
    path = path.resolve()  # of a link the file, not the link, is replaced
    with _locked(path.parent):
        before = read(path)
        after = edit(before)
        data = render(after)
        if after != before or not path.exists():
            if len(data) > LONGEST:
                raise OSError(errno.EFBIG, f"more than {LONGEST >> 20} MiB")
            _replace(path, data)
    return after


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _replace(path: Path, data: bytes) -> None:
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(fd, mode)
            os.fsync(fd)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


class PinsFile:
    """The pins as they are now, for every guard of a process. Timed once it is started: looks whether the file is
    another.

    told: called with each server whose pins are others than they were. Raises BadPins when it is made of a file that
    cannot be used.
    """

    def __init__(self, path: Path, clock: Clock, told: Callable[[str], None] = lambda server: None) -> None:
        self.path = path
        self.deadline = FOREVER
        self.version = 0  # of what the file says; what is added here is no other version
        self._clock = clock
        self._told = told
        self._stamp = _stamp(path)
        self._pins: dict[str, dict[str, Pin]] = read(path)
        self._pending: dict[str, dict[str, Pin]] = {}  # not written yet
        self._missed = False  # at the last look the file was not there, or empty
        self._said = ""
        self._task: asyncio.Task[None] | None = None

    def of(self, server: str) -> Mapping[str, Pin]:
        """The pins of one server, by tool."""
        return self._pins.get(server, _NONE)

    def add(self, server: str, name: str, pin: Pin) -> bool:
        """Pin a tool that has no pin; written soon. False when the server has too many, or has another pin of it."""
        own = self._pins.setdefault(server, {})
        if name in own:
            return own[name].sha256 == pin.sha256
        if len(own) >= MOST:
            return False
        own[name] = pin
        self._pending.setdefault(server, {})[name] = pin
        self._work()
        return True

    # ---- the file
    def start(self) -> None:
        """Follow the file until `close`."""
        if self.deadline == FOREVER:
            self.deadline = self._clock.now + _LOOK
            self._clock.watch(self)

    def expire(self) -> None:
        self.deadline = self._clock.now + _LOOK
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            self._missed = False
            return
        # A file that is just being replaced is often gone or empty for a moment: only the second look believes that.
        self._missed, missed = stamp is None or stamp[1] == 0, self._missed
        if missed or not self._missed:
            self._work()

    async def close(self) -> None:
        """Write what is to be written, and stop following."""
        self._clock.drop(self)
        self.deadline = FOREVER
        if self._task is not None:
            await asyncio.wait([self._task])

    def _work(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._settle())

    async def _settle(self) -> None:
        """Read, or write where there is something to write, until nothing more has come."""
        while True:
            pending = {server: dict(tools) for server, tools in self._pending.items()}
            stamp = _stamp(self.path)
            try:
                if pending:
                    pins = await asyncio.to_thread(change, self.path, partial(merged, more=pending, anew=False))
                    stamp = _UNKNOWN  # somebody else may have written since
                else:
                    pins = await asyncio.to_thread(read, self.path)
            except (BadPins, OSError) as error:
                self._stamp = stamp
                self._complain(error, writing=bool(pending))
                return
            self._stamp = stamp
            self._said = ""
            for server, tools in pending.items():
                for name in tools:
                    del self._pending[server][name]
                if not self._pending[server]:
                    del self._pending[server]
            self._take(pins)
            if not self._pending:
                return

    def _complain(self, error: Exception, *, writing: bool) -> None:
        if isinstance(error, BadPins):
            what = f"{error}; what it said before holds"
        else:
            what = f"cannot be {'written' if writing else 'read'}: {getattr(error, 'strerror', None) or error}"
            what += "; new tools are pinned in memory, until the process ends" if writing else ""
        if what != self._said:
            self._said = what
            log.error("pins file %s: %s", self.path, what)

    def _take(self, pins: Pins) -> None:
        """The file says `pins`. What waits to be written stays."""
        fresh = merged(pins, self._pending, anew=False)
        before, self._pins = self._pins, fresh
        changed = [server for server in {*before, *fresh} if before.get(server, _NONE) != fresh.get(server, _NONE)]
        if changed:
            self.version += 1
        for server in changed:
            self._told(server)
