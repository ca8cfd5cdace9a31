"""What workers that share a `state` know of agents' sessions with servers: enough to go on with one, or to open the
same again.

Rule: a session of an agent is one, whichever worker the agent's next request comes to. So who opens a new one does so
under a lock and with the next generation; who finds a newer one than it has lost takes that. The lock lasts as long as
a handshake may, and is taken over from a worker that is gone; nobody removes another's. The store gives nothing
away: what it keeps is sealed, ids of servers among it. Without the store a worker goes on with what it has.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from random import random
from secrets import token_hex
from time import monotonic

import msgspec

from tollhouse.backends.mcp.handshake import OPEN_TIMEOUT
from tollhouse.core.errors import Failure
from tollhouse.store.base import State
from tollhouse.wire.mcp.sealed import Seals, Unsealed

__all__ = ["Record", "Records", "Turn"]

log = logging.getLogger("tollhouse.backends.mcp")

_KIND = "u"
_LOCK = OPEN_TIMEOUT + 10.0  # seconds: longer than any handshake, which must have ended before another one begins
_LIVES = 0.5  # seconds between two looks at whether that one lives
_LOOK = 0.1
_MOST_URIS = 1000


class Record(msgspec.Struct, array_like=True):
    """One session. place: its name, so that no record stands in for another. node: the worker that opened it. id: the
    server's own, "" where nobody else can use it. capabilities: raw JSON. uris: subscribed resources. event: the last
    event id of its stream."""

    place: str
    generation: int = 0
    node: str = ""
    id: str = ""
    revision: str = ""
    capabilities: bytes = b"{}"
    instructions: str = ""
    level: str = ""
    uris: list[str] = []
    event: bytes = b""


class Turn:
    """What to do about a session: take `record` up when it is to be `taken`, else open another and `keep` it. lock:
    what was written where the lock is, b"" where it is not ours."""

    __slots__ = ("lock", "record", "stored", "taken")

    def __init__(self, record: Record | None, stored: bytes | None, *, taken: bool, lock: bytes = b"") -> None:
        self.record = record
        self.stored = stored
        self.taken = taken
        self.lock = lock

    @property
    def locked(self) -> bool:
        return bool(self.lock)


class Records:
    """ttl: seconds for which an unused session is remembered. lives: whether a worker has given a sign of life lately;
    raises Failure 503."""

    def __init__(
        self, state: State, seals: Seals, ttl: float = 86_400.0, lives: Callable[[str], Awaitable[bool]] | None = None
    ) -> None:
        self._lives = lives
        self.node = state.node
        self._values = state.values
        self._seals = seals
        self._ttl = ttl

    async def turn(self, place: str, lost: int) -> Turn:
        """A record newer than generation `lost`, or the right to make one; both None while the store is away."""
        name = f"{place}:opening"
        mine = f"{self.node} {token_hex(8)}".encode()  # this turn's, and no other's of this worker either
        looked = monotonic()
        try:
            async with asyncio.timeout(_LOCK):
                ours = False
                while True:
                    stored = await self._values.get(place)
                    record = self._opened(place, stored)
                    if record is not None and record.generation > lost and record.id:
                        if ours:
                            await self._released(place, mine)
                        return Turn(record, stored, taken=True)
                    if ours:  # it was looked at since: who had the lock before has written what he opened
                        return Turn(record, stored, taken=False, lock=mine)
                    ours = await self._values.add(name, mine, _LOCK)
                    if not ours and monotonic() - looked > _LIVES:
                        looked = monotonic()
                        ours = await self._inherited(name, mine)
                    if not ours:
                        await asyncio.sleep(_LOOK * (0.5 + random()))  # noqa: S311 - spreads load
        except (Failure, TimeoutError) as error:
            log.warning("mcp: a session is opened without the state: %s", error)
            return Turn(None, None, taken=False)

    async def _inherited(self, name: str, mine: bytes) -> bool:
        """Whether the lock is ours now, because the worker that had it is gone."""
        owner = await self._values.get(name)
        if owner is None or self._lives is None:
            return False
        node = owner.decode("latin-1").partition(" ")[0]
        return not await self._lives(node) and await self._values.swap(name, owner, mine, _LOCK)

    async def keep(self, record: Record) -> None:
        """A new session was opened."""
        try:
            await self._values.put(record.place, self._sealed(record), self._ttl)
        except Failure as failure:
            log.warning("mcp: a session cannot be kept in the state: %s", failure)

    async def over(self, place: str, turn: Turn) -> None:
        """The turn is another's."""
        if turn.locked:
            try:
                await self._released(place, turn.lock)
            except Failure as failure:
                log.info("mcp: a lock stays until its time is over: %s", failure)

    async def _released(self, place: str, lock: bytes) -> None:
        """Only one's own: a worker that was taken for gone may have had it taken over."""
        name = f"{place}:opening"
        if await self._values.get(name) == lock:
            await self._values.remove(name)

    async def change(self, place: str, now: Callable[[], Record]) -> None:
        """It is the same session, and has been told more. now: what it has been told by then, asked for each attempt:
        who comes second must not put back what was before. A newer one stays as it is."""
        try:
            for _ in range(3):
                stored = await self._values.get(place)
                known = self._opened(place, stored)
                record = now()
                if stored is None or known is None:
                    if stored is None and await self._values.add(place, self._sealed(record), self._ttl):
                        return
                    continue
                if known.generation != record.generation:
                    return
                record.node = known.node
                if await self._values.swap(place, stored, self._sealed(record), self._ttl):
                    return
        except Failure as failure:
            log.warning("mcp: a session cannot be kept in the state: %s", failure)

    async def forget(self, place: str) -> None:
        try:
            await self._values.remove(place)
        except Failure as failure:
            log.info("mcp: a session stays in the state until its time is over: %s", failure)

    def _sealed(self, record: Record) -> bytes:
        record.uris = record.uris[:_MOST_URIS]
        return self._seals.seal(_KIND, record).encode()

    def _opened(self, place: str, stored: bytes | None) -> Record | None:
        if stored is None:
            return None
        try:
            record = self._seals.open(_KIND, stored.decode("latin-1"), Record)
        except Unsealed as unsealed:
            log.warning("mcp: a session's record cannot be read: %s", unsealed.why)
            return None
        return record if record.place == place else None
