"""Allowances in Valkey or Redis: what `store.allowances` says, shared by all workers of a prefix.

Rule: whatever is asked again does nothing twice. A hold has an id, a posting its place in a journal, an opening a
token; all that follows from a posting is done in one step with the journal's position, so that a server that comes back
with older state says so itself, and is told again what it has lost. Time is the server's.

What is over is told in batches, off the path of any answer. A second in which nothing is over it asks all
the same: a server that nobody posts to would else never be found to have lost something.
"""

import asyncio
import logging
import os
from base64 import urlsafe_b64encode
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from math import ceil, inf
from typing import Any

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.allowances import (
    GRACE,
    Draw,
    Opening,
    Posting,
    kept_until,
    must_be_amounts,
    must_live,
    parts_of,
    sound,
)
from tollhouse.store.base import ADMITTED, OPEN, REFUSED, WINDOW, Charge, Happened, History, Verdict
from tollhouse.store.redis_line import Script
from tollhouse.store.redis_server import Server

__all__ = ["SCRIPTS", "RedisAllowances"]

log = logging.getLogger("tollhouse.store")

SCRIPTS = ("draw", "post", "open", "seed", "void", "renew", "tick")

_WAITING = 20_000  # calls that are over and not told of, at most, of one journal; and voids
_AT_ONCE = 200  # calls in one script
_EVERY = 1.0  # seconds between two looks at what may be lost
_KNOWN = b"5"  # seconds until an allowance that is new counts as known by all workers
_STALE = b"10"  # seconds in which who began to fill a field is expected to have done it
_DOUBTFUL = 3  # times that a hold is voided of which nobody knows whether it is there
_OF_SLOTS = "s"  # ends the tokens of fields that are slots of a window that rolls
_MOST_DRAWS = 128
_MOST_FIELDS = 3500  # looked at in one admission: a script's arguments have a bound

_HAPPENED: dict[bytes, Happened] = {b"a": ADMITTED, b"c": REFUSED, b"d": REFUSED, b"w": WINDOW, b"o": OPEN}


class _Journal:
    """What of one journal is to be told. position: what the server had, the last time it was asked. missed: the
    History is wanted for what is above the position, up to here."""

    __slots__ = ("last", "missed", "position", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Posting] = deque()
        self.position = 0
        self.missed = 0
        self.last = 0


class RedisAllowances:
    """What a Counter does with draws. tag: of its keys. node: random, of this worker. name_of: a charge's bucket. wake:
    has `flush` called soon; it is called each second at least, and by one at a time. scripts: those of SCRIPTS."""

    def __init__(
        self,
        server: Server,
        clock: Clock,
        *,
        tag: bytes,
        node: str,
        name_of: Callable[[Charge], bytes],
        wake: Callable[[], None],
        scripts: Mapping[str, Script],
    ) -> None:
        self._server = server
        self._clock = clock
        self._tag = tag
        self._keys = tuple(tag + suffix for suffix in (b":d", b":h", b":x", b":k", b":e", b":w"))
        self._nodes_key = tag + b":n"
        self._node = node.encode()
        self._name_of = name_of
        self._wake = wake
        self._scripts = scripts
        self._journals: dict[str, _Journal] = {}
        self._voids: dict[str, int] = {}  # how many times more, a second apart
        self._doubts: dict[str, int] = {}  # those of them that are done at least once
        self._known: list[bytes] | None = None
        self._history: History | None = None
        self._token = os.urandom(8).hex()
        self._number = 0
        self._looked = -inf
        self._complained = False
        self.is_used = False
        """There is something to be looked after each second."""
        self.nodes = 0

    # ---- what decides

    async def admit(self, id: str, charges: Sequence[Charge], draws: Sequence[Draw], lives: float) -> Verdict:
        return await self._draw(id, charges, draws, lives, b"0")

    async def top_up(self, id: str, draws: Sequence[Draw], lives: float) -> Verdict:
        return await self._draw(id, (), draws, lives, b"1")

    async def _draw(
        self, id: str, charges: Sequence[Charge], draws: Sequence[Draw], lives: float, top: bytes
    ) -> Verdict:
        must_live(lives)
        arguments = [_text(id), b"%.3f" % lives, top, b"%d" % len(charges), b"%d" % len(draws)]
        for charge in charges:
            rate = charge.rate
            arguments.append(b"%.17g" % (charge.amount * rate.step))
            arguments.append(b"%.17g" % rate.most)
        bases = set()
        for draw in draws:
            draw.check()
            base = _base(draw.allowance, f"{draw.allowance}|{draw.key}")
            bases.add(base)
            start, end = draw.window
            until = kept_until(draw)
            arguments += (
                b"%d" % (draw.amount or 1),
                b"" if draw.limit is None else b"%d" % draw.limit,
                b"%d" % start,
                b"%d" % end,
                b"1" if draw.kept else b"0",
                b"" if until == inf else b"%d" % until,
                base,
                b"%d" % len(draw.earlier),
            )
            for earlier in draw.earlier:
                arguments.append(b"%d" % earlier)
        fields = sum(len(draw.earlier) for draw in draws) + len(draws)
        if len(bases) < len(draws) or len(draws) > _MOST_DRAWS or fields > _MOST_FIELDS:
            raise ValueError(f"an admission has at most {_MOST_DRAWS} draws, each on another allowance or key")
        keys = [*self._keys, *map(self._name_of, charges)]
        try:
            answer: bytes = await self._run("draw", arguments, keys)
        except Failure as failure:
            if failure.sent and top == b"0":
                self._doubt(id)
            raise
        except asyncio.CancelledError:
            self._doubt(id)
            raise
        words = answer.split()
        what, which = words[0], int(words[1])
        count = 4 + int(words[3])
        behind = [float(seconds) for seconds in words[4:count]]
        verdict = Verdict(-1, 0.0, behind, _HAPPENED[what], float(words[2]), used=[int(n) for n in words[count:]])
        if what == b"c":
            charge = charges[which]
            verdict.refused = which
            verdict.wait = charge.rate.wait(behind[which], charge.amount)
        elif what != b"a":
            verdict.draw = which
            if what == b"d":
                end = draws[which].window.end
                verdict.wait = max(end - verdict.at, 0.0) if end else inf
        return verdict

    async def renew(self, ids: Sequence[str], lives: float) -> int:
        must_live(lives)
        if not ids:
            return 0
        there: int = await self._run("renew", [b"%.3f" % lives, *map(_text, ids)])
        return there

    def void(self, id: str, times: int = 1) -> None:
        if len(self._voids) + len(self._doubts) >= _WAITING:
            log.error("more than %d holds wait to be voided: further ones lapse by themselves", _WAITING)
            return
        self._voids[id] = times
        self._wake()

    # ---- what was spent

    def post(self, journal: str, seq: int, id: str, amounts: Sequence[tuple[str, int]], soon: bool) -> None:
        line = self._journals.get(journal)
        if line is None:
            line = self._journals[journal] = _Journal()
        if seq <= line.last:
            return
        line.last = seq
        line.waiting.append(sound(Posting(seq, id, tuple(amounts))))
        if len(line.waiting) > _WAITING:
            line.waiting.clear()
            line.missed = seq  # the journal has them
        if soon:
            self._wake()

    async def posted(self, journal: str, previous: int, last: int, postings: Sequence[Posting]) -> int:
        arguments = [_text(journal), b"%d" % previous, b"%d" % last]
        for posting in postings:
            must_be_amounts(posting.amounts)
            arguments += (b"%d" % posting.seq, _text(posting.id), b"%d" % len(posting.amounts))
            for field, amount in posting.amounts:
                arguments += (_stored(field), b"%d" % amount)
        position: int = await self._run("post", arguments)
        return position

    async def journals(self) -> dict[str, int] | None:
        answer: list[bytes] = await self._server.ask("journals", (b"HGETALL", self._keys[5]), key=self._tag, again=True)
        positions = _pairs(answer)
        return positions if positions.pop("#", None) is not None else None

    async def opening(self, draw: Draw, positions: Mapping[str, int], again: bool) -> list[Opening]:
        draw.check()
        if not draw.kept:
            return []
        self._number += 1
        token = f"{self._token}{self._number}{_OF_SLOTS if draw.earlier else ''}"
        until = kept_until(draw)
        till = b"" if until == inf else b"%d" % until
        slots = draw.slots
        arguments = [token.encode(), b"1" if again else b"0", _STALE, b"%d" % len(slots)]
        for field, _ in slots:
            arguments += (_stored(field), till)
        for journal, seq in positions.items():
            arguments += (_text(journal), b"%d" % seq)
        opened, age, *rest = await self._run("open", arguments)
        upto = _pairs(rest)
        upto.pop("#", None)
        return [Opening(*slots[int(n)], upto, token, max(float(age), 0.0)) for n in opened.split()]

    async def seed(self, opening: Opening, amount: int) -> int | None:
        must_be_amounts(((opening.field, amount),))
        end = b"%d" % opening.window.end if opening.token.endswith(_OF_SLOTS) else b""
        wrong = await self._run("seed", [_stored(opening.field), opening.token.encode(), b"%d" % amount, end])
        return None if wrong is None else int(wrong)

    def know(self, allowances: Mapping[str, float]) -> None:
        self._known = []
        for name, keeps in allowances.items():
            self._known += (_base(name, name)[:8], b"%d" % (ceil(keeps) + GRACE if keeps else 0))
        self._looked = -inf

    def follow(self, history: History) -> None:
        self._history = history

    # ---- what is told by and by

    @property
    def has_to_tell(self) -> bool:
        """Whether `flush` would have something to do."""
        return bool(self._voids) or self._is_time() or any(line.waiting for line in self._journals.values())

    async def flush(self) -> None:
        """Tell all that is to be told now. Raises Failure; what could not be told stays."""
        is_time = self._is_time()
        if is_time and self._doubts:
            self._voids.update(self._doubts)
            self._doubts.clear()
        while self._voids:
            ids = list(islice(self._voids, _AT_ONCE))
            await self._run("void", [_text(id) for id in ids])
            for id in ids:
                times = self._voids.pop(id, 1) - 1
                if times:
                    self._doubts[id] = times
        if is_time:
            known = (b"0",) if self._known is None else (b"1", *self._known)
            keys = (*self._keys, self._nodes_key)
            self.nodes = int(await self._run("tick", (self._node, _KNOWN, *known), keys))
        for name, line in self._journals.items():
            if line.waiting or line.missed or is_time:
                await self._tell(name, line)
        if is_time:
            self._looked = self._clock.now

    async def _tell(self, name: str, line: _Journal) -> None:
        while True:
            if line.missed > line.position:
                if not await self._fetch(name, line):
                    return
                continue
            line.missed = 0
            waiting = line.waiting
            while waiting and waiting[0].seq <= line.position:
                waiting.popleft()  # it was fetched
            batch = [waiting[n] for n in range(min(_AT_ONCE, len(waiting)))]
            last = batch[-1].seq if batch else line.position
            position = await self.posted(name, line.position, last, batch)
            if position < line.position:
                line.missed, line.position = line.position, position
                continue
            line.position = max(last, position)
            while waiting and waiting[0].seq <= line.position:
                waiting.popleft()
            if not waiting:
                return

    async def _fetch(self, name: str, line: _Journal) -> bool:
        """Post what the server has lost, or was never told, once more: some of it. Whether there was any to be had."""
        if self._history is None:
            if not self._complained:
                self._complained = True
                log.error("the state has lost what was spent, and there is no ledger to have it from")
            return False
        # The History may be behind: what it has not got yet is had later.
        reached = min((await self._history.positions()).get(name, 0), line.missed)
        if reached < line.missed:
            reached = min((await self._history.positions(deep=True)).get(name, 0), line.missed)
        if reached <= line.position:
            return False
        postings = await self._history.posts(name, line.position, _AT_ONCE)
        if len(postings) >= _AT_ONCE:
            reached = min(reached, postings[-1].seq)
        line.position = await self.posted(
            name, line.position, reached, [sound(posting) for posting in postings if posting.seq <= reached]
        )
        return True

    def _is_time(self) -> bool:
        return (self.is_used or self._known is not None) and self._clock.now - self._looked >= _EVERY

    def _doubt(self, id: str) -> None:
        self.void(id, _DOUBTFUL)

    async def _run(self, name: str, arguments: Sequence[bytes], keys: Sequence[bytes] = ()) -> Any:
        keys = keys or self._keys
        command = (b"%d" % len(keys), *keys, *arguments)
        return await self._server.ask(name, command, key=self._tag, again=True, script=self._scripts[name])


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _base(allowance: str, name: str) -> bytes:
    """What a field is stored under, without the start. A digest: names of users and of tools are no business of whoever
    reads the server's keys. Its first 8 characters are of the allowance."""
    digests = blake2b(_text(allowance), digest_size=6).digest() + blake2b(_text(name), digest_size=12).digest()
    return urlsafe_b64encode(digests) + b":"


def _stored(field: str) -> bytes:
    allowance, start = parts_of(field)
    return _base(allowance, field[: field.rindex("|")]) + b"%d" % start


def _pairs(answer: Sequence[bytes]) -> dict[str, int]:
    """A hash's fields, "#" among them, whose value is no number."""
    flat = iter(answer)
    return {
        field.decode("utf-8", "surrogatepass"): 0 if field == b"#" else int(value)
        for field, value in zip(flat, flat, strict=True)
    }
