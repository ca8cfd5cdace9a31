"""The process between the gateway and one child of its: `python -I -S reaper.py PARENT COMMAND...`, spawned by
`net.process`.

Rule: whatever the child ever starts ends with the child, and with the gateway, however either of them ends. Linux gives
this process what its descendants leave behind (PR_SET_CHILD_SUBREAPER), also what has forked twice and left its
session, so nothing of them gets lost. It ends as the child did, with the child's exit code or by its signal. TERM goes
on to the child's process group; STOP_ALL ends everything at once, and so does the end of PARENT. Standard library
alone, and little of that: there is one for each child.
"""

# ruff: noqa: PTH123, PTH208 - pathlib would be half of what is loaded here
import ctypes
import os
import signal
import sys
from collections.abc import Iterable
from time import monotonic
from typing import NoReturn

__all__ = ["STOP_ALL", "descendants", "main"]

STOP_ALL = signal.SIGUSR1
"""By which the gateway has everything ended, and the kernel says that the gateway is gone."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_HEARD = (signal.SIGCHLD, signal.SIGTERM, STOP_ALL)
_DEAF = (signal.SIGHUP, signal.SIGINT)
_LOOK = 0.02  # seconds between two rounds of killing
_PATIENCE = 5.0  # seconds for what cannot be killed (another user's, or in the kernel) before it is left alone
_NOT_STARTED = 127


def main(arguments: list[str]) -> NoReturn:
    parent, command = int(arguments[0]), arguments[1:]
    prctl = ctypes.CDLL(None).prctl
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_HEARD, *_DEAF))
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_PDEATHSIG, int(STOP_ALL))
    if os.getppid() != parent:  # it has gone before it could be told of
        os._exit(1)
    for name in os.listdir("/proc/self/fd"):  # what the event loop has let through is not for the child
        if int(name) > 2:
            _close(int(name))
    own = os.getpid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would reap behind our back
    child = os.fork()
    if not child:
        os.setsid()
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))  # of this process's end; of all else's it takes care itself
        if os.getppid() != own:
            os._exit(1)
        _become(command, before)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):  # the pipes are the child's: their end must be its end
        os.dup2(nothing, number)
    os.chdir("/")
    status = _wait(child)
    left = _end_all(child)
    _end_as(status if status is not None else left, prctl)


def _become(command: list[str], mask: Iterable[int]) -> NoReturn:
    """As if it had been started by the gateway itself: what Python has changed is as before."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        with open("/proc/self/environ", "rb") as file:  # os.environ may have a locale of the interpreter's own
            pairs = [line.partition(b"=") for line in file.read().split(b"\0") if line]
        os.execvpe(command[0], command, {name: value for name, _, value in pairs})  # noqa: S606 - none is wanted
    except (OSError, ValueError) as error:
        os.write(2, f"cannot start {command[0]!r}: {error}\n".encode(errors="replace"))
    os._exit(_NOT_STARTED)


def _wait(child: int) -> int | None:
    """The wait status of `child`, None when all is to be ended."""
    while True:
        heard = signal.sigwait(_HEARD)
        if heard == STOP_ALL:
            return None
        if heard == signal.SIGTERM:
            _kill(child, signal.SIGTERM, group=True)
            continue
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == child:
                return status
            if not pid:
                break


def _end_all(child: int) -> int:
    """Kill everything that is left, and reap it. Gives the wait status of `child`, if it is reaped here."""
    found = int(signal.SIGKILL)
    end = monotonic() + _PATIENCE
    while True:
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == child:
                    found = status
        except ChildProcessError:
            return found
        if monotonic() > end:
            return found
        for pid in descendants(os.getpid()):
            _kill(pid, signal.SIGKILL)
        signal.sigtimedwait((signal.SIGCHLD,), _LOOK)


def descendants(root: int) -> list[int]:
    """All processes below `root` now, [] without /proc."""
    children: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return []
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    above = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, ValueError, IndexError):  # it has ended meanwhile
                continue
            children.setdefault(above, []).append(int(name))
    found = list(children.get(root, ()))
    for pid in found:
        found += children.get(pid, ())
    return found


def _close(number: int) -> None:
    try:
        os.close(number)
    except OSError:  # it was that of the list itself
        pass


def _kill(pid: int, number: int, *, group: bool = False) -> None:
    try:
        os.killpg(pid, number) if group else os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def _end_as(status: int, prctl: "ctypes._NamedFuncPointer") -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        prctl(_PR_SET_DUMPABLE, 0)  # the child has left a core where it should; this is only its messenger
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.kill(os.getpid(), -code)
        code = 1
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
