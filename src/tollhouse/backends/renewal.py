"""Renewal: what is good for a time only is fetched, and fetched again ahead of its end.

Rule: while the last one is good nobody waits and nobody sees a failure. The Clock says when to ask again, by an
attribute that it sweeps; one task does it, for all who wait, and is cancelled by `close`. Who presents a credential to
a provider does not decide how often we ask: after a failure there is a pause, and a refusal counts once a while.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from random import random
from time import monotonic
from typing import ClassVar, Generic, TypeVar

import msgspec

from tollhouse.backends.credential import Credential, unavailable
from tollhouse.core.backoff import Backoff
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason

__all__ = ["Lease", "Renewed"]

log = logging.getLogger("tollhouse.backends.credential")

T = TypeVar("T")

_SHARE = 0.8
"""Of its life, after which it is renewed ..."""

_AHEAD = 300.0
"""... or so many seconds before its end, if that is earlier ..."""

_LEAST = 0.5
"""... but of a short life at least this share."""

_JITTER = 0.1
"""Of the time until then, which chance may take off: nodes that started together do not ask together."""

_MARGIN = 10.0
"""Seconds before its end at which it counts as expired, a tenth of its life at most: a request takes time to arrive."""

_PAUSE = 1.0
"""Seconds between two fetches at least."""

_LONGEST_PAUSE = 60.0
_TIMEOUT = 30.0
"""Seconds for one fetch, all its steps together."""

_DOUBT = 30.0
"""Seconds after a fetch in which a refusal is no reason for another one."""

_QUERY = re.compile(r"(https?://[^?#\s]*)[?#]\S*")


class Lease(msgspec.Struct, Generic[T], frozen=True):
    """Something that is good for so many seconds from the moment it was asked for; FOREVER: until it is refused."""

    value: T
    seconds: float = FOREVER

    def __repr__(self) -> str:  # without the value
        return f"<Lease of {self.seconds:.0f} seconds>"


class Renewed(Credential, Generic[T]):
    """A credential that is fetched.

    fetch: gets another one; it raises Failure, ValueError or OSError, with a message that holds no secret. render: its
    header lines. name: whose credential it is, for the log. spread: a number from 0 to 1, by chance. timeout: seconds
    for one fetch. value: the last one, None before the first. ends: when it expires, by the Clock.
    """

    __slots__ = (
        "_asked", "_backoff", "_clock", "_closed", "_doubted", "_due", "_failures", "_fetch", "_flight", "_name",
        "_render", "_spread", "_started", "_timeout", "_trouble", "deadline", "ends", "value",
    )  # fmt: skip

    stale: ClassVar[frozenset[int]] = frozenset((401,))
    """Statuses by which a provider says that the credential itself is not good (any more)."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Lease[T]]],
        render: Callable[[T], bytes],
        name: str,
        clock: Clock,
        *,
        spread: Callable[[], float] = random,
        timeout: float = _TIMEOUT,
    ) -> None:
        super().__init__(settled=False)
        self._fetch = fetch
        self._render = render
        self._name = name
        self._clock = clock
        self._spread = spread
        self._timeout = timeout
        self._backoff = Backoff(_PAUSE, _LONGEST_PAUSE)
        self._started = False
        self._closed = False
        self._doubted = False
        self._flight: asyncio.Task[None] | None = None
        self._asked = -FOREVER
        self._failures = 0
        self._trouble = ""
        self._due = FOREVER
        self.ends = FOREVER
        self.deadline = FOREVER
        self.value: T | None = None

    def start(self) -> None:
        if self._started or self._closed:
            return
        self._started = True
        self._clock.watch(self)
        if not self.settled and self._flight is None:
            self._begin()

    async def ready(self, deadline: float) -> None:
        flight = self._flight
        if self.settled and (flight is None or not self._doubted):
            return
        if self._closed:
            raise unavailable("its configuration is not in use any more")
        if flight is None:
            wait = self._due - self._clock.now
            if self._failures and wait > 0.0:
                raise unavailable(self._trouble, wait)  # at once: another provider can be asked meanwhile
            self.start()
            if self._flight is None:
                self._begin()
            flight = self._flight
            assert flight is not None
        # Who leaves does not end it for the others.
        done, _ = await asyncio.wait((flight,), timeout=max(deadline - monotonic(), 0.0))
        if self.settled:
            return
        if not done:
            message = "the gateway's credentials for this provider did not come in time"
            raise Failure(504, Reason.TIMEOUT, message, code="upstream_credentials", retry=True)
        raise unavailable(self._trouble, max(self._due - self._clock.now, 0.0) if self._failures else None)

    def refused(self, lines: bytes, status: int, retry_after: float | None) -> bool:
        if self._closed or status not in self.stale:
            return False
        if not self.current(lines):
            return self.settled
        if self._flight is None:
            now = self._clock.now
            if now - self._asked < _DOUBT or (self._failures and now < self._due):
                return False
            self._begin()
        self._doubted = True
        return True

    def current(self, lines: bytes) -> bool:
        """Whether `lines` were made with the present value."""
        return lines == self.lines

    def expire(self) -> None:
        """The Clock: something is due."""
        now = self._clock.now
        if self.settled and now >= self.ends:
            self.settled = False
            log.error(
                "provider %s: the credentials have expired, and no others came: %s", self._name, self._trouble or "late"
            )
        if self._flight is None and now >= self._due:
            self._begin()
        self._schedule()

    async def close(self) -> None:
        self._closed = True
        self.settled = False
        self._clock.drop(self)
        flight = self._flight
        if flight is not None:
            flight.cancel()
            await asyncio.wait((flight,))

    def _begin(self) -> None:
        self._asked = self._clock.now
        self._flight = asyncio.get_running_loop().create_task(self._fly())
        self._schedule()

    def _schedule(self) -> None:
        due = self._due if self._flight is None else FOREVER
        self.deadline = min(due, self.ends) if self.settled else due

    async def _fly(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                lease = await self._fetch()
            self._take(lease)
        except TimeoutError:
            self._failed(f"nothing came within {self._timeout:g} seconds", None)
        except Failure as failure:
            why = f"{failure.message}: {failure.detail}" if failure.detail else failure.message
            self._failed(why, failure.retry_after)
        except (ValueError, OSError) as error:
            self._failed(str(error), None)
        except Exception as error:  # the root of the task: whoever waits for it must get an answer
            log.exception("provider %s: fetching credentials failed", self._name)
            self._failed(f"a {type(error).__name__}", None)
        finally:
            self._flight = None
            self._doubted = False
            self._schedule()

    def _take(self, lease: Lease[T]) -> None:
        life = lease.seconds
        asked, now = self._asked, self._clock.now
        ends = FOREVER if life >= FOREVER else asked + life - min(_MARGIN, life / 10)
        if not (life > 0.0 and ends > now):
            raise ValueError("the credentials that came have expired already; is the machine's clock right?")
        lines = self._render(lease.value)
        if life >= FOREVER:
            self._due = FOREVER
        else:
            after = max(min(life * _SHARE, life - _AHEAD), life * _LEAST) * (1.0 - _JITTER * self._spread())
            self._due = max(asked + after, now + _PAUSE)
        self.ends = ends
        self.value = lease.value
        self.lines = lines
        self.settled = not self._closed
        if self._failures:
            log.info("provider %s: the credentials are renewed", self._name)
        self._failures = 0
        self._trouble = ""

    def _failed(self, why: str, retry_after: float | None) -> None:
        why = self._trouble = _QUERY.sub(r"\1", why)
        self._failures += 1
        self._due = self._clock.now + self._backoff.delay(self._failures, max(_PAUSE, min(retry_after or 0.0, 300.0)))
        if self._failures > 1:
            return
        left = self.ends - self._clock.now
        if not self.settled:
            kept = "no request can be sent to it until they come"
        elif self.ends >= FOREVER:
            kept = "the last ones stay in use"
        else:
            kept = f"the last ones are good for another {left:.0f} seconds"
        log.warning("provider %s: credentials cannot be fetched: %s; %s; it is tried again", self._name, why, kept)
