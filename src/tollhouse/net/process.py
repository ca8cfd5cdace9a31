"""A child process that is spoken to in lines: spawned with pipes, bounded, and gone with all its children at the end.

Rule: whoever spawns a child owns it and calls `close`, which does not return before the process has been reaped.
The child gets its own process group, so that what it started goes with it, and dies with this process even when
this one is killed (Linux: PR_SET_PDEATHSIG); what it started does too, where a `Keeper` knows of it. One that is
`reaped` has a process of ours above it (`net.reaper`, Linux), which also ends what has left the group.
"""

import asyncio
import ctypes
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import msgspec

from tollhouse.core.errors import Failure, Reason
from tollhouse.net import reaper

__all__ = ["INHERITED", "Child", "Keeper", "Listener", "Taken", "clean_environment", "spawn", "taken"]

log = logging.getLogger("tollhouse.net.process")

INHERITED = ("HOME", "LANG", "LC_ALL", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
"""What a child sees of our environment; everything else, secrets among it, must be given."""

MAX_LINE = 1 << 20
_STDERR_LINE = 4096
_MAX_UNSENT = 8 << 20
_PR_SET_PDEATHSIG = 1
_DEEPEST = 1000  # generations of processes


class Listener(Protocol):
    """Hears a child. `line` is one line of its output without the line end; `exited` comes once, after the last line,
    with the exit code (negative: the signal), or with why we gave it up."""

    def line(self, data: bytes) -> None: ...

    def exited(self, code: int | None, why: str) -> None: ...


def clean_environment(given: Mapping[str, str], source: Mapping[str, str] | None = None) -> dict[str, str]:
    """INHERITED of our environment, and what is given."""
    own = os.environ if source is None else source
    return {**{name: own[name] for name in INHERITED if name in own}, **given}


async def spawn(
    command: Sequence[str],
    listener: Listener,
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    max_line: int = MAX_LINE,
    stderr: Callable[[str], None],
    keeper: "Keeper | None" = None,
    reaped: bool = False,
) -> "Child":
    """Start `command`. env: all of the child's environment. stderr: called with each line of it, cut at 4 KiB. keeper:
    ends it and all that it started when this process is killed. reaped: whatever it ever starts ends with it and with
    this process, also what has left its process group; where that cannot be had the keeper does what it can.

    Raises Failure 503 when it cannot be started; `retry` is set where that may be different in a moment.
    """
    loop = asyncio.get_running_loop()
    reaped = reaped and _can_reap()
    if reaped:
        keeper = None
    above: tuple[str, ...] = ()
    try:
        if reaped:
            _look_for(command[0], env, cwd)
            above = (sys.executable, "-I", "-S", reaper.__file__, str(os.getpid()))
        _, child = await loop.subprocess_exec(
            lambda: Child(listener, max_line, stderr, keeper, reaped=reaped),
            *above,
            *command,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
            preexec_fn=None if reaped else _die_with_parent(),  # a reaper sees to that itself
        )
    except (OSError, ValueError) as error:
        raise Failure(
            503,
            Reason.UPSTREAM_FAILURE,
            "the server's program cannot be started",
            detail=f"cannot start {command[0]!r}: {error}",
            retry=not isinstance(error, (FileNotFoundError, NotADirectoryError, PermissionError, ValueError)),
            reached=False,
        ) from None
    return child


def _can_reap() -> bool:
    return sys.platform.startswith("linux") and bool(sys.executable) and Path("/proc/self/environ").exists()


def _look_for(program: str, env: Mapping[str, str], cwd: str | None) -> None:
    """Raises the OSError with which `program` cannot be started, as far as that can be seen before."""
    place = str(Path(cwd or "", program).absolute()) if "/" in program else program
    folders = [str(Path(cwd or "", folder)) for folder in env.get("PATH", os.defpath).split(os.pathsep)]
    if shutil.which(place, path=os.pathsep.join(folders)) is None:
        number = errno.EACCES if "/" in program and Path(place).exists() else errno.ENOENT
        raise OSError(number, os.strerror(number), program)


def _die_with_parent() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork: afterwards only the call itself is safe
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return die_with_parent


class Keeper:
    """Ends process groups once this process is gone, however it went.

    The kernel tells a child of its parent's death, and the children of that one nothing. So a shell waits for the end
    of a pipe that only this process holds, and then kills the groups that it was told of and that have not ended. It
    is started with the first group; where there is no shell, children alone are ended.
    """

    __slots__ = ("_groups", "_shell")

    _SCRIPT = """
trap '' HUP INT TERM
groups=' '
while read -r change group; do
  case $change in
    +) groups="$groups$group " ;;
    -) case $groups in *" $group "*) groups="${groups%%" $group "*} ${groups#*" $group "}" ;; esac ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"""

    def __init__(self) -> None:
        self._groups: set[int] = set()
        self._shell: subprocess.Popen[bytes] | None = None

    def keep(self, group: int) -> None:
        self._groups.add(group)
        if self._shell is None or not self._tell(b"+ %d\n" % group):
            self._start()

    def let_go(self, group: int) -> None:
        """It has ended: the number may be somebody else's from now on."""
        if group in self._groups:
            self._groups.discard(group)
            self._tell(b"- %d\n" % group)

    def close(self) -> None:
        """No group is left that matters."""
        self._groups.clear()
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.kill()
            assert shell.stdin is not None
            shell.stdin.close()
            shell.wait()

    def _start(self) -> None:
        shell, self._shell = self._shell, None
        if shell is not None:
            shell.kill()
            shell.wait()
        try:
            self._shell = subprocess.Popen(  # noqa: S603 - nothing of it comes from outside
                ("/bin/sh", "-c", self._SCRIPT),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,  # what a terminal or a supervisor signals to our group is not for it
                cwd="/",
                env={},
            )
        except OSError as error:
            log.warning("children's children outlive a gateway that is killed: cannot start /bin/sh: %s", error)
            return
        assert self._shell.stdin is not None
        os.set_blocking(self._shell.stdin.fileno(), False)
        for group in self._groups:
            self._tell(b"+ %d\n" % group)

    def _tell(self, line: bytes) -> bool:
        """Whether the shell is there to hear it."""
        if self._shell is None or self._shell.stdin is None:
            return False
        try:
            self._shell.stdin.write(line)
        except OSError:
            return False
        return True


class Taken(msgspec.Struct, gc=False):
    """What processes take. memory: bytes, resident. cpu: seconds, since they were started."""

    memory: int = 0
    cpu: float = 0.0


def taken(roots: Collection[int]) -> dict[int, Taken]:
    """What all processes below each of `roots` take, by its number: without the memory of that one itself, but with the
    time of those that it has reaped; without roots that have ended. Reads all of /proc, so not for the event loop's
    thread; {} where there is none."""
    page = os.sysconf("SC_PAGE_SIZE")
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    each: dict[int, Taken] = {}
    try:
        with os.scandir("/proc") as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return {}
    for name in names:
        if not name.isdigit():
            continue
        try:
            fields = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()
            pid, parents[int(name)] = int(name), int(fields[1])
            each[pid] = Taken(int(fields[21]) * page, sum(map(int, fields[11:15])) / tick)
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue
    found = {root: Taken(0, each[root].cpu) for root in roots if root in each}
    for pid, one in each.items():
        above, steps = parents[pid], 0
        while above not in found and above in parents and steps < _DEEPEST:  # what was read while it changed may circle
            above, steps = parents[above], steps + 1
        if above in found:
            found[above].memory += one.memory
            found[above].cpu += one.cpu
    return found


class Child(asyncio.SubprocessProtocol):
    """A running process. `send` writes a line; `close` ends it."""

    __slots__ = (
        "_errors", "_gone", "_group", "_keeper", "_line", "_listener", "_max_line", "_reaped", "_stderr", "_transport",
        "_why", "code", "pid",
    )  # fmt: skip

    def __init__(
        self,
        listener: Listener,
        max_line: int,
        stderr: Callable[[str], None],
        keeper: Keeper | None = None,
        *,
        reaped: bool = False,
    ) -> None:
        self._keeper = keeper
        self._reaped = reaped
        self._listener: Listener | None = listener
        self._max_line = max_line
        self._stderr = stderr
        self._line: list[bytes] = []
        self._errors = b""
        self._gone = asyncio.get_running_loop().create_future()
        self._transport: asyncio.SubprocessTransport | None = None
        self._why = ""
        self.code: int | None = None
        self.pid = 0
        self._group = 0  # its process group, or its reaper, while the number is certainly its own

    @property
    def running(self) -> bool:
        """False once it has exited or was given up."""
        return self._listener is not None and self._transport is not None

    @property
    def root(self) -> int:
        """The process below which all is that it started, itself among it if it is `reaped`; 0 once that has ended."""
        return self._group

    def kill(self, why: str) -> None:
        """End it at once; its listener is told why."""
        self._give_up(why)
        self._signal(signal.SIGKILL)

    def send(self, line: bytes) -> None:
        """Write `line`, which has no line end in it. Raises Failure 503 when the child does not read, 502 when it has
        exited."""
        pipe = self._stdin()
        if pipe is None or self._listener is None:
            raise Failure(502, Reason.UPSTREAM_FAILURE, "the server's process has exited", retry=True, reached=False)
        if pipe.get_write_buffer_size() > _MAX_UNSENT:
            message = "the server's process does not read its input"
            raise Failure(503, Reason.UPSTREAM_FAILURE, message, retry=True, reached=False)
        pipe.write(line + b"\n")

    async def close(self, grace: float = 2.0) -> None:
        """End it: close its input, then TERM, then KILL, each after `grace` seconds; then whatever it left behind."""
        self._give_up("it was closed")
        if self._transport is None:
            return
        try:
            pipe = self._stdin()
            if pipe is not None:
                pipe.close()
            if not await self._ended(grace):
                self._signal(signal.SIGTERM)
                if not await self._ended(grace):
                    self._signal(signal.SIGKILL)
                    if not await self._ended(grace):
                        self._abandon()
        finally:
            self._signal(signal.SIGKILL)  # grandchildren that ignored it, or a cancelled close
            if not self._reaped or not self._group:  # it kills: a reaper must come to its own end
                self._transport.close()

    def _stdin(self) -> asyncio.WriteTransport | None:
        transport = self._transport
        if transport is None:
            return None
        pipe = cast("asyncio.WriteTransport | None", transport.get_pipe_transport(0))
        return None if pipe is None or pipe.is_closing() else pipe

    async def _ended(self, seconds: float) -> bool:
        done, _ = await asyncio.wait([self._gone], timeout=seconds)
        return bool(done)

    def _signal(self, number: int) -> None:
        if not self._group:  # 0 would be our own
            return
        try:
            if self._reaped:
                os.kill(self._group, reaper.STOP_ALL if number == signal.SIGKILL else number)
            else:
                os.killpg(self._group, number)
        except (ProcessLookupError, PermissionError):
            pass

    def _abandon(self) -> None:
        """It does not end: not even its reaper can wait for that."""
        if self._reaped and self._group:
            self._reaped = False  # from here on as any other
            self._signal(signal.SIGKILL)

    def _give_up(self, why: str) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.exited(self.code, why)

    # transport callbacks
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._group = self._transport.get_pid()
        if self._keeper is not None:
            self._keeper.keep(self._group)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._stderr_received(data)
            return
        listener = self._listener
        if listener is None:
            return
        at = 0
        end = data.find(b"\n")
        while end >= 0:
            part = data[at:end]
            if self._line:
                self._line.append(part)
                part = b"".join(self._line)
                self._line = []
            if len(part) > self._max_line:
                break
            if part.endswith(b"\r"):
                part = part[:-1]
            if part:
                listener.line(part)
                if self._listener is None:
                    return
            at = end + 1
            end = data.find(b"\n", at)
        else:
            if at < len(data):
                self._line.append(data[at:] if at else data)
                if len(self._line) > 64:
                    self._line = [b"".join(self._line)]
                if sum(map(len, self._line)) <= self._max_line:
                    return
            else:
                return
        self._line = []
        self.kill(f"it sent a line of more than {self._max_line} bytes")

    def _stderr_received(self, data: bytes) -> None:
        *lines, rest = (self._errors + data).split(b"\n")
        if len(rest) > _STDERR_LINE:
            lines.append(rest)
            rest = b""
        self._errors = rest
        for line in lines:
            text = line[:_STDERR_LINE].decode(errors="replace").rstrip()
            if text:
                self._stderr(text)

    def process_exited(self) -> None:
        if self._transport is not None:
            self.code = self._transport.get_returncode()
        if not self._reaped:
            self._signal(signal.SIGKILL)  # what it started and left behind
        if self._keeper is not None:
            self._keeper.let_go(self._group)
        self._group = 0  # it has been reaped: from now on the number may be somebody else's

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has exited and its pipes are at their end."""
        if self._errors:
            self._stderr_received(b"\n")
        code = self.code
        if code is None:
            why = "it exited"
        else:
            why = f"it was killed by signal {-code}" if code < 0 else f"it exited with code {code}"
        self._give_up(why)
        if not self._gone.done():
            self._gone.set_result(None)
