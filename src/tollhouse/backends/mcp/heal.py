"""What becomes of calls when the server behind them is lost, and how often it may be asked to come up.

Rule: what was certainly not carried out is sent again; what may have been is sent again only where that does no harm,
and else its caller is told so (`call_lost`). Who shakes hands passes one `Gate`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from time import monotonic

from tollhouse.core.backoff import Backoff
from tollhouse.core.errors import Failure, Reason

__all__ = [
    "CALL_LOST",
    "DELAYS",
    "EXPIRED",
    "NODE_LOST",
    "RESENDS",
    "RESTART",
    "UNAVAILABLE",
    "UNREACHED",
    "Budget",
    "Gate",
    "call_lost",
    "may_resend",
    "said",
]

CALL_LOST = "call_lost"
UNAVAILABLE = "server_unavailable"
"""Codes of Failures that callers are told as the reason."""

EXPIRED = "expired"
NODE_LOST = "node_lost"
RESTART = "server_restart"
"""Why a session was lost: words of the recoveries metric."""

RESENDS = 8  # of one call, each of which may have reached the server
UNREACHED = 5.0  # seconds for which a server that was up and takes no connection is tried again
DELAYS = Backoff(0.05, 1.0)

_HANDSHAKES = 16
_WAITERS = 256
_FAILURES = 5
_PATIENCE = 1.0  # seconds that a handshake waits for its turn to try
_BACKOFF, _MOST_BACKOFF = 0.1, 30.0
_FORGIVEN = 3600.0


def may_resend(failure: Failure, *, safe: bool) -> bool:
    """Whether a call that failed so is sent again. safe: it does no harm to carry it out twice."""
    if failure.reason is not Reason.UPSTREAM_FAILURE or not failure.retry or failure.code not in (None, CALL_LOST):
        return False
    return safe or not failure.sent


def call_lost(name: str, why: str, detail: str = "") -> Failure:
    """What a connection or process that broke under a call comes to."""
    return Failure(
        502,
        Reason.UPSTREAM_FAILURE,
        f"{name}: the server was lost ({why}), and it is not known whether the call was carried out",
        code=CALL_LOST,
        detail=detail,
        retry=True,
        sent=True,
    )


def said(failure: Failure) -> str:
    """For the log, where the caller's half of it is not enough."""
    return f"{failure.message}: {failure.detail}" if failure.detail else failure.message


class Gate:
    """Who may shake hands with a server now: sixteen at once, and after five failures in a row one alone, later each
    time. Who would wait long is refused at once. name: the server's, for messages."""

    __slots__ = ("_busy", "_failures", "_name", "_not_before", "_shut", "_shut_at", "_waiting", "_why")

    def __init__(self, name: str) -> None:
        self._name = name
        self._busy = 0
        self._failures = 0
        self._not_before = 0.0
        self._shut = 0
        self._shut_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._why = "the server does not come up"

    @property
    def busy(self) -> int:
        """Handshakes under way."""
        return self._busy

    @property
    def open(self) -> bool:
        """Whether the last attempts have failed, so that only one at a time is made."""
        return self._failures >= _FAILURES

    def check(self) -> None:
        """Raises Failure 503 (`server_unavailable`) when the next attempt is not due soon."""
        wait = self._not_before - monotonic()
        if wait > _PATIENCE:
            raise Failure(
                503,
                Reason.UPSTREAM_FAILURE,
                f"{self._name}: {self._why}; next attempt in {wait:.1f} s",
                code=UNAVAILABLE,
                retry=True,
                retry_after=wait,
                reached=False,
            )

    async def enter(self) -> None:
        """Wait for a turn; `leave` must follow. Raises Failure 503."""
        self.check()
        while self._busy >= (1 if self.open else _HANDSHAKES):
            if len(self._waiting) >= _WAITERS:
                why = f"{self._name}: too many sessions are being opened"
                raise Failure(503, Reason.UPSTREAM_FAILURE, why, retry=True, reached=False)
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except BaseException:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                else:  # woken in this very moment: the turn is another's
                    self._wake()
                raise
            self.check()
        self._busy += 1
        wait = self._not_before - monotonic()
        if wait > 0:
            try:
                await asyncio.sleep(wait)
            except BaseException:
                self.leave(None)
                raise

    def leave(self, success: bool | None) -> None:
        """The handshake is over. success: None when it has shown nothing."""
        self._busy -= 1
        if success:
            self._failures = 0
            self._not_before = 0.0
        elif success is not None:
            self._failures += 1
            if self.open:
                wait = _BACKOFF * 2.0 ** min(self._failures - _FAILURES, 20)
                self._not_before = monotonic() + min(_MOST_BACKOFF, wait)
                self._why = "the server does not come up"
        self._wake()

    def shut(self, why: str) -> float:
        """Let nobody in for half a minute, twice as long each time that this happens again within an hour. Gives the
        seconds."""
        now = monotonic()
        self._shut = self._shut + 1 if now - self._shut_at < _FORGIVEN else 0
        self._shut_at = now
        seconds = min(_MOST_BACKOFF * 2.0 ** min(self._shut, 10), 600.0)
        self._failures = max(self._failures, _FAILURES)
        self._not_before = now + seconds
        self._why = why
        self._wake()
        return seconds

    def _wake(self) -> None:
        free = (1 if self.open else _HANDSHAKES) - self._busy
        if self._not_before - monotonic() > _PATIENCE:
            free = len(self._waiting)  # to be refused
        while self._waiting and free > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1


class Budget:
    """`size` at once, and one more every `seconds`."""

    __slots__ = ("_at", "_clock", "_left", "_seconds", "_size")

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = monotonic) -> None:
        self._size = size
        self._seconds = seconds
        self._clock = clock
        self._left = float(size)
        self._at = clock()

    def take(self) -> float:
        """Take one: 0.0, or the seconds until there is one, and none was taken."""
        now = self._clock()
        self._left = min(self._size, self._left + (now - self._at) / self._seconds)
        self._at = now
        if self._left >= 1.0:
            self._left -= 1.0
            return 0.0
        return (1.0 - self._left) * self._seconds
