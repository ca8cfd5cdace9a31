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
from collections.abc import Mapping, Sequence
from importlib.resources import files

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.allowances import Draw, Opening, Posting
from tollhouse.store.apart import Apart
from tollhouse.store.base import REFUSED, Allowances, Buckets, Charge, History, Rate, Verdict, unavailable
from tollhouse.store.leases import Leases
from tollhouse.store.redis_allowances import SCRIPTS, RedisAllowances
from tollhouse.store.redis_line import Script
from tollhouse.store.redis_server import Server

__all__ = ["RedisCounter", "script"]

log = logging.getLogger("tollhouse.store")

_OWED = 20_000  # buckets with corrections that have not been sent, at most
_AT_ONCE = 500
_NOTHING = Rate("", 1, 0.001)  # asked for where nothing is to be taken away, only to see whether the server is there
_SEQUENCE_LIVES = 86_400_000  # milliseconds: longer than any batch is tried


def script(*names: str) -> Script:
    """Those in `lua`, one after the other, without their comments."""
    folder = files("tollhouse.store").joinpath("lua")
    lines = [line for name in names for line in folder.joinpath(name).read_text(encoding="utf-8").splitlines()]
    return Script("\n".join(line for line in lines if line and not line.lstrip().startswith("--")))


class RedisCounter:
    """A `store.base.Counter`. prefix: of its keys. node: random, of this worker. patience: seconds within which an
    admission may be asked for again. admit, settle, draws, rejoin: the scripts."""

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
        draws: Mapping[str, Script] | None = None,
        rejoin: Script | None = None,
    ) -> None:
        self._server = server
        self._clock = clock
        self._tag = f"{{{prefix}}}".encode()
        self._sequence_key = self._tag + b":s:" + node.encode()
        self._patience = b"%d" % round(patience * 1000 + 1000)
        self._admit = admit or script("admit.lua")
        self._settle = settle or script("settle.lua")
        self._rejoin_script = rejoin or script("rejoin.lua")
        self._apart = Apart(clock)
        self._leases = Leases(clock)
        self._rejoining = asyncio.Lock()
        self._due = asyncio.Event()
        self._draws = RedisAllowances(
            server,
            clock,
            tag=self._tag,
            node=node,
            name_of=self._bucket,
            wake=self._due.set,
            scripts=draws or {name: script("hold.lua", f"{name}.lua") for name in SCRIPTS},
        )
        self._owed: dict[bytes, float] = {}  # seconds that the bucket of that key is to be moved by
        self._batch: list[tuple[bytes, float]] = []  # those of them that are under way
        self._number = 0
        self._dropped = 0
        self._task: asyncio.Task[None] | None = None
        self._flushing = asyncio.Lock()
        clock.every_turn(self._turn)

    async def close(self) -> None:
        """Send what is owed, in one more attempt; stop."""
        self._clock.remove(self._turn)
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait((task,))
        self._owe(self._leases.end())
        try:
            await self.flush()
        except Failure as failure:
            owed = len(self._owed) + len(self._batch)
            log.warning("%d corrections of limits are lost: %s; what was spent is in the journal", owed, failure.detail)

    def buckets(self, rate: Rate) -> Buckets | None:
        return None

    def allowances(self) -> Allowances | None:
        return None

    async def admit(
        self, id: str, charges: Sequence[Charge], draws: Sequence[Draw] = (), lives: float = 60.0
    ) -> Verdict:
        self._begin()
        if self._apart.since >= 0.0:
            await self._rejoin()
        if draws:
            return await self._draws.admit(id, charges, draws, lives)
        if not charges:
            return Verdict(-1, 0.0, [])
        leased = self._leases.take(charges)
        if leased is not None:
            return leased
        asked = self._leases.wanted(charges, self.nodes)
        if asked is not None:
            verdict = await self._ask(id, asked)
            self._owe(self._leases.told(charges, asked, verdict))
            if verdict.refused < 0:
                return verdict
        verdict = await self._ask(id, charges)
        if self._leases:
            self._leases.told(charges, charges, verdict)
        return verdict

    async def _ask(self, id: str, charges: Sequence[Charge]) -> Verdict:
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
            verdict.happened = REFUSED
            verdict.wait = charge.rate.wait(verdict.behind[verdict.refused], charge.amount)
        return verdict

    def admit_apart(self, id: str, charges: Sequence[Charge]) -> Verdict:
        return self._apart.admit(id, charges, self.nodes)

    def settle(self, id: str, charges: Sequence[Charge], amounts: Sequence[int]) -> None:
        self._owe(self._apart.settle(id, charges, amounts, self.nodes))

    def _owe(self, corrections: Sequence[tuple[Charge, int]]) -> None:
        for charge, amount in corrections:
            if amount == charge.amount:
                continue
            key = self._key(charge.rate, charge.key)
            if key not in self._owed and len(self._owed) >= _OWED:
                if not self._dropped:
                    log.error("more than %d buckets wait to be corrected: further corrections are dropped", _OWED)
                self._dropped += 1
                continue
            self._owed[key] = self._owed.get(key, 0.0) + (amount - charge.amount) * charge.rate.step

    async def top_up(self, id: str, draws: Sequence[Draw], lives: float = 60.0) -> Verdict:
        return await self._draws.top_up(id, draws, lives)

    async def renew(self, ids: Sequence[str], lives: float = 60.0) -> int:
        return await self._draws.renew(ids, lives)

    def void(self, id: str) -> None:
        self._draws.void(id)

    def post(
        self, journal: str, seq: int, id: str, amounts: Sequence[tuple[str, int]] = (), soon: bool = False
    ) -> None:
        self._draws.post(journal, seq, id, amounts, soon)

    async def posted(self, journal: str, previous: int, last: int, postings: Sequence[Posting]) -> int:
        return await self._draws.posted(journal, previous, last, postings)

    async def journals(self) -> Mapping[str, int] | None:
        return await self._draws.journals()

    async def opening(self, draw: Draw, positions: Mapping[str, int], again: bool = False) -> list[Opening]:
        return await self._draws.opening(draw, positions, again)

    async def seed(self, opening: Opening, amount: int) -> int | None:
        return await self._draws.seed(opening, amount)

    def know(self, allowances: Mapping[str, float]) -> None:
        self._draws.know(allowances)

    def follow(self, history: History) -> None:
        self._draws.follow(history)

    @property
    def nodes(self) -> int:
        return self._draws.nodes

    async def flush(self) -> None:
        """Send all that is owed now, and tell what is over. Raises Failure; what could not be sent is owed still."""
        async with self._flushing:
            await self._correct()
            await self._draws.flush()

    async def _correct(self) -> None:
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
        self._owe(self._leases.turn())
        if self._owed or self._batch or self._apart.since >= 0.0 or self._draws.has_to_tell:
            self._due.set()
            self._begin()

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._flush())
            self._draws.is_used = True

    async def _flush(self) -> None:
        is_well = True
        while True:
            await self._due.wait()
            self._due.clear()
            try:
                if self._apart.since >= 0.0:
                    await self._rejoin()
                await self.flush()
                is_well = True
            except Failure:
                continue  # the server's state is told of already; the next turn tries again
            except Exception:  # a task's root: the next turn has another try, and the ledger may be there then
                if is_well:
                    log.exception("what calls came to could not be told to the state")
                is_well = False

    async def _rejoin(self) -> None:
        """Before anything is admitted again. Who comes while another tries hears what came of that. Raises Failure."""
        waited = self._rejoining.locked()
        async with self._rejoining:
            if self._apart.since < 0.0:
                return
            if waited:
                raise unavailable("the state was not there a moment ago", reached=False)
            charges = self._apart.admitted() or [Charge(_NOTHING, "", 0)]
            for first in range(0, len(charges), _AT_ONCE):
                part = charges[first : first + _AT_ONCE]
                command = [b"%d" % len(part), *map(self._bucket, part)]
                command += [b"%.17g" % charge.rate.tolerance for charge in part]
                await self._server.ask("rejoin", command, key=self._tag, again=True, script=self._rejoin_script)
            self._apart.end()

    def _bucket(self, charge: Charge) -> bytes:
        return self._key(charge.rate, charge.key)

    def _key(self, rate: Rate, key: str) -> bytes:
        """Of a bucket. A digest: names of users and of tools are no business of whoever reads the server's keys."""
        name = f"{rate.name}\0{key}".encode("utf-8", "surrogatepass")
        return self._tag + b":r:" + urlsafe_b64encode(hashlib.blake2b(name, digest_size=12).digest())
