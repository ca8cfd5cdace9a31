"""Credential: what proves to a provider who asks, as header lines that are there when they are needed.

Rule: a request reads an attribute and never waits for a credential that is still good. What has to be fetched is
fetched ahead (`backends/renewal`); the first request of all is the only one that waits. A key that was refused rests
while another one is used.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Self

from pydantic import Field, SecretStr, model_validator

from tollhouse.backends.header_fields import ApiKey
from tollhouse.backends.retry_after import retry_after as asked_rest
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.spec import Spec
from tollhouse.net.client import Exchange

__all__ = ["MOST_KEYS", "Credential", "Fixed", "KeyedSpec", "Rotating", "proven", "unavailable"]

log = logging.getLogger("tollhouse.backends.credential")

_REFUSED_REST = 600.0
"""Seconds that a key rests after 401 or 403."""

_LIMITED_REST = 30.0
"""Seconds that a key rests after a 429 that does not say how long."""

MOST_KEYS = 8
"""Credentials tried for one call."""

_MAX_KEYS = 100
_HINT = 4
_LONG_ENOUGH = 20  # characters of a key of which four may be shown


class Credential:
    """Base, and the protocol. lines: header lines, each ending in CRLF; they may be others the next time. settled:
    there is something to send; else `ready` is awaited first. It may become False again, when what there was has
    expired."""

    __slots__ = ("lines", "settled")

    def __init__(self, lines: bytes = b"", *, settled: bool = True) -> None:
        self.lines = lines
        self.settled = settled

    async def ready(self, deadline: float) -> None:
        """Wait until there is something to send, or after `refused` said so, until there may be something better;
        else it returns at once. deadline: monotonic. Raises Failure 503, 504."""
        if not self.settled:
            raise unavailable()

    def refused(self, lines: bytes, status: int, retry_after: float | None) -> bool:
        """The provider refused `lines` with 401, 403 or 429. True when asking once more, after `ready`, may help: then
        `lines` are another, or about to be. retry_after: seconds."""
        return False

    def start(self) -> None:
        """Begin to keep it fresh. A second time does nothing."""

    async def close(self) -> None:
        """Stop that."""


class Fixed(Credential):
    """Lines that never change: one API key, or nothing at all."""

    __slots__ = ()


class Rotating(Credential):
    """Several API keys, one used until it is refused: a provider's prompt cache may belong to the key.

    name: the provider's, for the log. lines: of each key. clock: monotonic seconds.
    """

    __slots__ = ("_clock", "_current", "_keys", "_name")

    def __init__(self, name: str, lines: Sequence[bytes], clock: Callable[[], float] = monotonic) -> None:
        super().__init__(lines[0])
        self._name = name
        self._clock = clock
        self._keys = tuple(_Key(number, each) for number, each in enumerate(lines))
        self._current = self._keys[0]

    def refused(self, lines: bytes, status: int, retry_after: float | None) -> bool:
        key = next((key for key in self._keys if key.lines == lines), None)
        if key is None or status not in (401, 403, 429):
            return False
        now = self._clock()
        if status == 429:
            key.rest(now + (_LIMITED_REST if retry_after is None else retry_after))
        else:
            if key.barred <= now:  # once each time that it rests
                log.warning(
                    "provider %s: API key %d of %d%s was refused with %d; it rests for %d minutes",
                    self._name, key.number + 1, len(self._keys), key.hint, status, _REFUSED_REST // 60,
                )  # fmt: skip
            key.barred = now + _REFUSED_REST
            key.rest(key.barred)
        if key is self._current:
            following = self._keys[key.number + 1 :] + self._keys[: key.number + 1]
            # min() takes the first of those that do not rest; else the one that is back first.
            self._current = min(following, key=lambda each: max(each.until, now))
            self.lines = self._current.lines
        return self._current is not key and self._current.until <= now


class _Key:
    """One of several. number: from 0. until: it rests till then; barred: because of 401 or 403."""

    __slots__ = ("barred", "hint", "lines", "number", "until")

    def __init__(self, number: int, lines: bytes) -> None:
        self.number = number
        self.lines = lines
        value = lines.rstrip().rpartition(b" ")[2]
        self.hint = f" (...{value[-_HINT:].decode('latin-1')})" if len(value) >= _LONG_ENOUGH else ""
        self.until = self.barred = float("-inf")

    def rest(self, until: float) -> None:
        self.until = max(self.until, until)


class KeyedSpec(Spec):
    """A provider that takes API keys."""

    api_key: ApiKey | None = Field(default=None, description="sent instead of the caller's credentials")
    api_keys: tuple[ApiKey, ...] = Field(
        default=(),
        max_length=_MAX_KEYS,
        description="several, used in turn: one that is refused with 401, 403 or 429 rests for a while",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.api_key is not None and self.api_keys:
            raise ValueError("`api_key` and `api_keys` are both given; name all keys in `api_keys`")
        if len({key.get_secret_value() for key in self.api_keys}) != len(self.api_keys):
            raise ValueError("a key stands twice in `api_keys`; a key that is refused would be asked with again")
        return self

    @property
    def keys(self) -> tuple[SecretStr, ...]:
        """All its keys."""
        return self.api_keys if self.api_key is None else (self.api_key,)

    def credential(self, name: str, line: Callable[[SecretStr], bytes]) -> Credential:
        """name: the provider's. line: a key as a header line."""
        lines = [line(key) for key in self.keys]
        return Rotating(name, lines) if len(lines) > 1 else Fixed(lines[0] if lines else b"")


async def proven(credential: Credential, deadline: float, ask: Callable[[bytes], Awaitable[Exchange]]) -> Exchange:
    """What `ask` gets with the credential's lines; as long as they are refused and there may be others, with those.
    deadline: as for `ready`. Raises Failure 503, 504, and what `ask` raises."""
    if not credential.settled:
        await credential.ready(deadline)
    tried = 0
    while True:
        tried += 1
        lines = credential.lines
        exchange = await ask(lines)
        status = exchange.status
        if status not in (401, 403, 429) or tried == MOST_KEYS:
            return exchange
        if not credential.refused(lines, status, asked_rest(exchange.headers)):
            return exchange
        exchange.close()
        await credential.ready(deadline)


def unavailable(detail: str = "", retry_after: float | None = None) -> Failure:
    """There is nothing to send; another provider may do better."""
    return Failure(
        503,
        Reason.UPSTREAM_FAILURE,
        "the gateway has no credentials for this provider at the moment",
        code="upstream_credentials",
        detail=detail,
        retry=True,
        retry_after=retry_after,
    )
