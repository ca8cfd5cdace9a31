"""Counters in Valkey or Redis: one script for each admission, one for each turn's corrections.

Rule: everything that a lost answer makes be asked again is done once. An admission has an id whose answer the server
keeps as long as somebody may ask again; corrections of one worker have a number that only grows. Time is the server's.

All buckets are in one slot of a cluster (their hash tag is the prefix), so that an admission can take from several in
one step: one node of it does the counting.
"""

import asyncio
import hashlib
import logging
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from importlib.resources import files
from math import inf

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.base import Buckets, Charge, Rate, Verdict
from tollhouse.store.redis_line import Script
from tollhouse.store.redis_server import Server

__all__ = ["RedisCounter", "script"]

log = logging.getLogger("tollhouse.store")

_OWED = 20_000  # buckets with corrections that have not been sent, at most
_AT_ONCE = 500
_SEQUENCE_LIVES = 86_400_000  # milliseconds: longer than any batch is tried


def script(name: str) -> Script:
    """One of those in `lua`, without its comments."""
    text = files("tollhouse.store").joinpath("lua", name).read_text(encoding="utf-8")
    return Script("\n".join(line for line in text.splitlines() if line and not line.lstrip().startswith("--")))


class RedisCounter:
    """A `store.base.Counter`. prefix: of its keys. node: random, of this worker. patience: seconds within which an
    admission may be asked for again. admit, settle: the scripts."""

    def __init__(
        self,
        server: Server,
        clock: Clock,
        *,
        prefix: str,
        node: str,
        patience: float,
        admit: Script | None = None,
        settle: Script | None = None,
    ) -> None:
        self._server = server
        self._clock = clock
        self._tag = f"{{{prefix}}}".encode()
        self._sequence_key = self._tag + b":s:" + node.encode()
        self._patience = b"%d" % round(patience * 1000 + 1000)
        self._admit = admit or script("admit.lua")
        self._settle = settle or script("settle.lua")
        self._owed: dict[bytes, float] = {}  # seconds that the bucket of that key is to be moved by
        self._batch: list[tuple[bytes, float]] = []  # those of them that are under way
        self._number = 0
        self._dropped = 0
        self._due = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        clock.every_turn(self._turn)

    async def close(self) -> None:
        """Send what is owed, in one more attempt; stop."""
        self._clock.remove(self._turn)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        try:
            await self.flush()
        except Failure as failure:
            log.warning("%d corrections of limits are lost: %s", len(self._owed) + len(self._batch), failure.detail)

    def buckets(self, rate: Rate) -> Buckets | None:
        return None

    async def admit(self, id: str, charges: Sequence[Charge]) -> Verdict:
        if not charges:
            return Verdict(-1, 0.0, [])
        keys = [self._tag + b":a:" + id.encode("utf-8", "surrogatepass")]
        arguments = [self._patience]
        for charge in charges:
            rate = charge.rate
            keys.append(self._key(rate, charge.key))
            arguments.append(b"%.17g" % (charge.amount * rate.step))
            arguments.append(b"%.17g" % rate.most)
        answer: bytes = await self._server.ask(
            "admit", (b"%d" % len(keys), *keys, *arguments), key=self._tag, again=True, script=self._admit
        )
        refused, *behind = answer.split()
        verdict = Verdict(int(refused), 0.0, [float(seconds) for seconds in behind])
        if verdict.refused >= 0:
            charge = charges[verdict.refused]
            rate = charge.rate
            over = verdict.behind[verdict.refused] + charge.amount * rate.step - rate.tolerance
            verdict.wait = inf if charge.amount > rate.burst else max(over, 0.0)
        return verdict

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        for charge, amount in zip(charges, amounts, strict=True):
            if amount == charge.amount:
                continue
            key = self._key(charge.rate, charge.key)
            if key not in self._owed and len(self._owed) >= _OWED:
                if not self._dropped:
                    log.error("more than %d buckets wait to be corrected: further corrections are dropped", _OWED)
                self._dropped += 1
                continue
            self._owed[key] = self._owed.get(key, 0.0) + (amount - charge.amount) * charge.rate.step

    async def flush(self) -> None:
        """Send all that is owed now. Raises Failure; what could not be sent is owed still."""
        while self._batch or self._owed:
            if not self._batch:
                self._number += 1
                self._batch = [self._owed.popitem() for _ in range(min(_AT_ONCE, len(self._owed)))]
            batch = self._batch
            command = [b"%d" % (len(batch) + 1), self._sequence_key, *(key for key, _ in batch)]
            command += [b"%d" % self._number, b"%d" % _SEQUENCE_LIVES, *(b"%.17g" % seconds for _, seconds in batch)]
            # A batch that may have been done keeps its number until it is known to be.
            await self._server.ask("settle", command, key=self._tag, again=True, script=self._settle)
            self._batch = []
            self._dropped = 0

    def _turn(self) -> None:
        """Of the clock: what came since the last one goes out together."""
        if self._owed or self._batch:
            self._due.set()
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                await self.flush()
            except Failure:
                continue  # the server's state is told of already; the next turn tries again
            except Exception:  # a task's root: the next turn has another try
                log.exception("limits could not be corrected")

    def _key(self, rate: Rate, key: str) -> bytes:
        """Of a bucket. A digest: names of users and of tools are no business of whoever reads the server's keys."""
        name = f"{rate.name}\0{key}".encode("utf-8", "surrogatepass")
        return self._tag + b":r:" + urlsafe_b64encode(hashlib.blake2b(name, digest_size=12).digest())
