"""What a process keeps of answers while configurations come and go: in its memory, and in a state that is shared.

Rule: the cache is a help and never a condition. Nothing that its state does or fails to do reaches a caller: a state
that is slow or gone is left alone for a while, which is counted, and what cannot be written is dropped. Writing waits
for nobody, and nobody waits for it.
"""

import asyncio
from collections.abc import Coroutine
from functools import partial
from time import monotonic
from typing import Any, Final

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.observe.families import Families
from tollhouse.policies.cache.claims import CLAIMED, SLOW, Claim, Claims
from tollhouse.policies.cache.entry import Entry, opened, packed
from tollhouse.policies.cache.flight import Flight
from tollhouse.policies.cache.leaders import Leaders
from tollhouse.policies.cache.memory import Kept, Memory
from tollhouse.policies.cache.purges import Purges
from tollhouse.policies.stop import stop
from tollhouse.store.base import LARGEST, Logs, State

__all__ = ["MOST_FLIGHTS", "Store"]

MOST_FLIGHTS: Final = 4096

_WRITES = 256  # at once
_WRITING = 32 << 20  # bytes that wait to be written
_RESTS = 2.0  # seconds in which it is not asked again
_OVERHEAD = 1024  # bytes that a value may grow by until it is where it is kept


class Store:
    """room: bytes in memory. state: None, or one that is not shared: answers are in memory alone. It begins to hear of
    purges with the first request (`start`), and ends with `close`."""

    def __init__(self, clock: Clock, families: Families, room: int, state: State | None) -> None:
        self._clock = clock
        self._shared = state if state is not None and state.shared else None
        self._rests = -1e18  # until when the state is left alone
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = 0
        self._failures = families.cache_failures
        self._entries = families.cache_entries.child()
        self._bytes = families.cache_bytes.child()
        evictions = families.cache_evictions.child()
        self.memory = Memory(clock, room, evictions.inc)
        self.purges = Purges(state, self._forget) if state is not None else None
        self.flights: dict[bytes, Flight] = {}
        self.leaders = Leaders()
        self._writes = 0
        self.claims: Claims | None = None
        if self._shared is not None:
            self.claims = Claims(self._shared.values, clock, self.run, self.rest)
        self.started = False
        clock.every_turn(self._show)

    def start(self) -> None:
        self.started = True
        if self.purges is not None:
            self.purges.start()

    async def close(self) -> None:
        self._clock.remove(self._show)
        if self.claims is not None:
            self.claims.close()
        if self.purges is not None:
            await self.purges.close()
        await stop(self._tasks)
        self.memory.close()
        self._show()

    @property
    def generation(self) -> int:
        """What is known of purges now."""
        return 0 if self.purges is None else self.purges.latest

    @property
    def logs(self) -> Logs | None:
        """Lists that other nodes read; None where there is no shared state."""
        return None if self._shared is None else self._shared.logs

    @property
    def reaches(self) -> bool:
        """Whether there is more than memory to look in, now."""
        if self._shared is None or self._clock.now < self._rests:
            return False
        return self.purges is not None and self.purges.known

    # ---- read
    def find(self, key: bytes) -> Kept | None:
        """What is in memory and good."""
        kept = self.memory.get(key)
        if kept is not None and self.purges is not None and not self.purges.good(kept.entry):
            self.memory.drop(key)
            return None
        return kept

    async def fetch(self, key: bytes) -> Kept | None:
        """What is in the shared state and good; it is in memory then."""
        state = self._shared
        if state is None or not self.reaches:
            return None
        began = monotonic()
        try:
            value = await state.values.get(_name(key))
        except Failure:
            self.rest("get")
            return None
        if monotonic() - began > SLOW:
            self.rest("slow")
        return None if value is None or value[:1] == CLAIMED else self._taken(key, value)

    async def meet(self, key: bytes, patience: float) -> tuple[Kept | None, Claim | None]:
        """The same; where nothing is there another node that is asked the same is waited for, for so many seconds. The
        Claim is for who is the one to ask, and is told of the end (`claims.done`)."""
        claims = self.claims
        if claims is None or not self.reaches:
            return None, None
        found: list[Kept] = []

        def good(value: bytes) -> bool:
            kept = self._taken(key, value)
            found[:] = [] if kept is None else [kept]
            return kept is not None

        try:
            _, claim = await claims.meet(_name(key), self.generation, patience, good)
        except Failure:
            self.rest("get")
            return None, None
        return (found[0] if found else None), claim

    def _taken(self, key: bytes, value: bytes) -> Kept | None:
        """What was read from the state, in memory now, if it is an answer that may be given."""
        entry = opened(value, key)
        if entry is None:
            self.damaged()
            return None
        if self.purges is not None and not self.purges.good(entry):
            return None
        age = entry.age
        return self.memory.put(entry, age) if age < entry.ttl else None

    def age(self, kept: Kept) -> float:
        """Seconds since it was whole."""
        return max(self._clock.now - kept.since, 0.0)

    def left(self, kept: Kept) -> float:
        """Seconds that it is still good."""
        return kept.until - self._clock.now

    # ---- write
    def keep(self, entry: Entry) -> bool:
        """Keep it here at once, and where others find it soon: whether they will."""
        if self.purges is not None and not self.purges.good(entry):
            return False
        self.memory.put(entry)
        self._show()
        if self._shared is None:
            return False
        size = entry.weight
        if not self.reaches or self._writes >= _WRITES or self._writing + size > _WRITING:
            self._failures.child("dropped").inc()
            return False
        self._writes += 1
        self._writing += size
        task = self.run(self._put(self._shared, entry))
        task.add_done_callback(partial(self._written, size))
        return True

    def _written(self, size: int, _: "asyncio.Task[None]") -> None:
        self._writes -= 1
        self._writing -= size

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of this store's: it is ended with it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _put(self, state: State, entry: Entry) -> None:
        try:
            value = packed(entry)
            if len(value) + _OVERHEAD > LARGEST:
                return
            began = monotonic()
            await state.values.put(_name(entry.key), value, entry.ttl)
            if monotonic() - began > SLOW:
                self.rest("slow")
        except Failure:
            self.rest("put")

    # ---- flights
    def flight(self, key: bytes) -> Flight | None:
        """One that takes somebody along, and that no purge has come after."""
        flight = self.flights.get(key)
        if flight is None or not flight.takes or flight.generation != self.generation:
            return None
        return flight

    def take_off(self, flight: Flight) -> None:
        if len(self.flights) < MOST_FLIGHTS:
            self.flights[flight.key] = flight

    def landed(self, flight: Flight) -> None:
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]
        claim, flight.claim = flight.claim, None
        if claim is not None and self.claims is not None:
            self.claims.done(claim, stands=flight.kept)

    # ---- itself
    def rest(self, operation: str) -> None:
        """The state could not do it: leave it alone for a while."""
        self._failures.child(operation).inc()
        self._rests = self._clock.now + _RESTS

    def damaged(self) -> None:
        """What is in the state cannot be read."""
        self._failures.child("read").inc()

    def _forget(self) -> None:
        purges = self.purges
        if purges is not None:
            self.memory.drop_all(lambda entry: not purges.good(entry))

    def _show(self) -> None:
        self._entries.set(len(self.memory))
        self._bytes.set(self.memory.size)


def _name(key: bytes) -> str:
    return f"cache:{key.hex()}"
