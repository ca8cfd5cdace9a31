"""The supervisor of several workers: starts them, starts dead ones again, passes signals on.

Rule: it does nothing else, has no event loop and no threads, so that forking from it is safe and nothing that serves
traffic can bring it down.
"""

import logging
import os
import signal
from collections.abc import Callable
from time import monotonic

__all__ = ["TOLD", "Supervisor"]

log = logging.getLogger("tollhouse.supervisor")

TOLD = signal.SIGUSR1
"""The signal by which a worker says that it has something to tell."""

_SIGNALS = frozenset((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, TOLD))
_MAX_DELAY = 10.0
_GIVE_UP = 5  # quick deaths in a row of one worker, where none has lived longer


class Supervisor:
    """Runs `work(index)` in `count` forked processes until TERM or INT, then waits for their end.

    work returns the process's exit status. grace: seconds after the first TERM before what is left is killed. told:
    called when a worker has sent TOLD. quick: a worker that lived shorter than this is started again with a delay.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[int], int],
        grace: float,
        *,
        told: Callable[[], None] = lambda: None,
        quick: float = 2.0,
    ) -> None:
        self._count = count
        self._work = work
        self._grace = grace
        self._told = told
        self._short = quick
        self._lived = False  # whether any worker has lived longer
        self._workers: dict[int, tuple[int, float]] = {}  # pid -> index, started
        self._due: dict[int, float] = {}  # index -> when to start it again
        self._quick: dict[int, int] = {}
        self._ending = 0.0

    def run(self) -> int:
        """The supervisor's exit status: 0 when every worker ended as asked, 1 when they could not be kept alive."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            for index in range(self._count):
                self._start(index)
            return self._watch()
        finally:
            for pid in self._workers:
                os.kill(pid, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _start(self, index: int) -> None:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)  # a terminal's Ctrl-C comes from us, once: twice would be a hurry
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                status = self._work(index)
            finally:
                os._exit(status)  # never back into the supervisor's stack
        self._workers[pid] = (index, monotonic())

    def _watch(self) -> int:
        status = 0
        while self._workers or (self._due and not self._ending):
            info = signal.sigtimedwait(_SIGNALS, self._patience())
            now = monotonic()
            if info is not None:
                if info.si_signo in (signal.SIGTERM, signal.SIGINT):
                    log.info("stopping")
                    self._ending = self._ending or now + self._grace
                    self._tell(info.si_signo)
                elif info.si_signo == signal.SIGHUP:
                    self._tell(signal.SIGHUP)
                elif info.si_signo == TOLD:
                    self._told()
            if self._reap(now):
                status = 1
                self._ending = self._ending or now + self._grace
                self._tell(signal.SIGTERM)
            if self._ending:
                if now >= self._ending:
                    self._tell(signal.SIGKILL)
                continue
            for index in [i for i, due in self._due.items() if due <= now]:
                del self._due[index]
                self._start(index)
        return status

    def _has_served(self, now: float) -> bool:
        """Whether any worker is or was well. Then what keeps another from starting may pass, and the rest go on."""
        self._lived |= any(now - started >= self._short for _, started in self._workers.values())
        return self._lived

    def _patience(self) -> float:
        now = monotonic()
        times = [due - now for due in self._due.values()]
        if self._ending:
            times = [self._ending - now]
        return max(0.01, min([1.0, *times]))

    def _tell(self, number: int) -> None:
        for pid in self._workers:
            os.kill(pid, number)

    def _reap(self, now: float) -> bool:
        """Collect the dead. True when a worker cannot be kept alive."""
        hopeless = False
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid not in self._workers:
                continue
            index, started = self._workers.pop(pid)
            if self._ending:
                continue
            code = os.waitstatus_to_exitcode(status)
            quick = now - started < self._short
            self._lived |= not quick
            count = self._quick[index] = self._quick.get(index, 0) + 1 if quick else 0
            cause = f"signal {-code}" if code < 0 else f"status {code}"
            if count >= _GIVE_UP and not self._has_served(now):
                log.error("worker %d ended %d times right after its start (%s); giving up", index, count, cause)
                hopeless = True
                continue
            delay = min(_MAX_DELAY, 0.1 * 2 ** min(count, 10)) if quick else 0.0
            when = f"in {delay:.1f} s" if delay else "at once"
            log.warning("worker %d (pid %d) ended with %s; starting it again %s", index, pid, cause, when)
            self._due[index] = now + delay
        return hopeless
