"""What becomes of calls when the server behind them is lost, and how often it may be asked to come up.

Rule: what was certainly not carried out is sent again; what may have been is sent again only where that does no harm,
and else its caller is told so (`call_lost`). Who shakes hands passes one `Gate`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from time import monotonic

from tollhouse.core.backoff import Backoff
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.identity import ACCOUNT_NEEDED

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
    "Restarts",
    "call_lost",
    "is_callers",
    "level_of",
    "may_resend",
    "named",
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
_SOON_UP = 0.5  # seconds between attempts, at most, while calls are still patient with a server that was up
_FORGIVEN = 3600.0
_AT_ONCE, _EVERY = 8, 1.0  # restarts: so many, and one more in so many seconds
_LONG = 10.0  # seconds; what lived so long died for another reason than the one before
_SOON = 2.0  # seconds, at most, after which what does not answer is started again


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


def is_callers(failure: Failure) -> bool:
    """Whether it is about who asks, where a server is shown that: then it says nothing of the server for others."""
    if failure.code == "upstream_credentials":
        return True
    return failure.reason not in (Reason.UPSTREAM_FAILURE, Reason.TIMEOUT)


def level_of(failure: Failure) -> int:
    """Of a line in the log about what `is_callers`. That somebody has no account is how accounts begin."""
    return logging.DEBUG if failure.code == ACCOUNT_NEEDED else logging.INFO


def named(name: str, failure: Failure) -> Failure:
    """`failure` for who does not know that it is of the server `name`."""
    if failure.message.startswith(f"{name}: "):
        return failure
    found = failure.copy()
    found.message = f"{name}: {failure.message}"
    return found


def said(failure: Failure) -> str:
    """For the log, where the caller's half of it is not enough."""
    return f"{failure.message}: {failure.detail}" if failure.detail else failure.message


class Gate:
    """Who may shake hands with a server now: sixteen at once, and after five failures in a row one alone, later each
    time. Who would wait long is refused at once. With a server that was up a moment ago patience is longer: as long as
    its calls have it. name: the server's, for messages."""

    __slots__ = (
        "_busy", "_clock", "_down_since", "_failed_at", "_failures", "_name", "_not_before", "_shut", "_shut_at",
        "_waiting", "_was_up", "_why",
    )  # fmt: skip

    def __init__(self, name: str, clock: Callable[[], float] = monotonic) -> None:
        self._name = name
        self._clock = clock
        self._was_up = False
        self._down_since = self._failed_at = 0.0
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
        wait = self._not_before - self._clock()
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

    async def enter(self) -> float:
        """Wait for a turn: when it began, with which `leave` must follow. Raises Failure 503."""
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
        wait = self._not_before - self._clock()
        if wait > 0:
            try:
                await asyncio.sleep(wait)
            except BaseException:
                self.leave(None)
                raise
        return self._clock()

    def leave(self, success: bool | None, began: float = 0.0) -> None:
        """The handshake is over. success: None when it has shown nothing. began: as `enter` has said."""
        self._busy -= 1
        if success:
            self._failures = 0
            self._not_before = 0.0
            self._was_up = True
        elif success is not None:
            self._failed(began)
        self._wake()

    def _failed(self, began: float) -> None:
        now = self._clock()
        if not self._failures:
            self._down_since = now
        elif began < self._failed_at:
            return  # they were under way together: it is one failure
        self._failures += 1
        self._failed_at = now
        if not self.open:
            return
        wait = _BACKOFF * 2.0 ** min(self._failures - _FAILURES, 20)
        if self._was_up:  # it may be restarting: whoever calls now is patient, but not for ever
            down = now - self._down_since
            wait = min(wait, _SOON_UP) if down < UNREACHED else max(_BACKOFF, down / 4)
        self._not_before = now + min(_MOST_BACKOFF, wait)
        self._why = "the server does not come up"

    def shut(self, why: str) -> float:
        """Let nobody in for half a minute, twice as long each time that this happens again within an hour. Gives the
        seconds."""
        now = self._clock()
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
        if self._not_before - self._clock() > _PATIENCE:
            free = len(self._waiting)  # to be refused
        while self._waiting and free > 0:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1


class Restarts:
    """How soon a channel that was lost is opened again, over all that one key has had. One that has answered is at
    once, as long as that is not all that happens; one that dies before it answers anything, later each time."""

    __slots__ = ("_at", "_clock", "_dead", "_due", "_saved")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._saved = float(_AT_ONCE)  # restarts; below 0 they are owed
        self._at = clock()
        self._dead = 0
        self._due = 0.0

    def lost(self, lived: float, *, answered: bool) -> None:
        """The last one was lost. lived: seconds. answered: it has said something beyond its handshake."""
        now = self._clock()
        self._saved = max(-_SOON, min(_AT_ONCE, self._saved + (now - self._at) / _EVERY) - 1.0)
        self._at = now
        wait = max(0.0, -self._saved * _EVERY)
        if answered or lived >= _LONG:
            self._dead = 0
        else:
            self._dead += 1
            wait = max(wait, 0.05 * 2.0 ** min(self._dead, 10))
        self._due = now + min(_SOON, wait)

    @property
    def wait(self) -> float:
        """Seconds until the next one may be opened."""
        return max(0.0, self._due - self._clock())


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
