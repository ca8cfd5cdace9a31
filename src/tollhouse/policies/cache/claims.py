"""Of several nodes that are asked the same at once one asks, and the others wait for its answer: claims in the state.

Rule: a claim stands where the answer will be, so that looking for the one and making the other is one step and one
round trip, and the answer takes the claim's place. It lives for _LIVES seconds unless it is renewed, so nobody waits
longer for a node that has died; nobody waits for two of them, for one that asked before a purge, or for longer than he
wants to. What the state cannot say now is as though nobody else asked.

Who waits looks again and again, each time after an eighth of what he has waited, so that he is at most that much late.
"""

import asyncio
import os
from collections.abc import Callable
from struct import Struct, error
from time import monotonic
from typing import Final

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure
from tollhouse.store.base import KeyValue

__all__ = ["CLAIMED", "SLOW", "Claim", "Claims"]

CLAIMED: Final = b"\2"
"""The first byte of a claim; alone it is one that was let go of."""

SLOW: Final = 0.25
"""Seconds; a state that takes longer is as good as gone."""

_LIVES: Final = 3.0
_RENEWED: Final = 1.0  # seconds after the last time
_MOST: Final = 4096  # claims of this process
_BATCH: Final = 64  # renewed in one go
_LARGEST: Final = 64 << 10  # bytes of an answer that is good no more, and is sent to say what is to be replaced
_SHORTEST, _LONGEST = 0.01, 0.25  # seconds between two looks
_FORM: Final = Struct("<c8sQQ")


class Claim:
    """One of this process. value: as it stands in the state. until: monotonic seconds to which it certainly stands.
    still: whether there may still be an answer; None where that is not known before there is one."""

    __slots__ = ("key", "renews", "still", "until", "value")

    def __init__(self, key: str, value: bytes) -> None:
        self.key = key
        self.value = value
        self.until = self.renews = 0.0
        self.still: Callable[[], bool] | None = None


class Claims:
    """Those of one process. run: makes a task whose end somebody sees to; rest: told what the state could not do."""

    def __init__(
        self,
        values: KeyValue,
        clock: Clock,
        run: Callable[..., object],
        rest: Callable[[str], None],
    ) -> None:
        self._values = values
        self._clock = clock
        self._run = run
        self._rest = rest
        self._node = os.urandom(8)
        self._number = 0
        self._held: dict[Claim, None] = {}
        self._busy = False
        clock.every_turn(self._turn)

    def close(self) -> None:
        """What is held lapses by itself."""
        self._clock.remove(self._turn)
        self._held.clear()

    def __len__(self) -> int:
        return len(self._held)

    async def meet(
        self, key: str, generation: int, patience: float, good: Callable[[bytes], bool]
    ) -> tuple[bytes | None, Claim | None]:
        """The answer that is there, or comes from another node in so many seconds; else a claim where this node is the
        one to ask; neither where it is to ask without one. generation: what is known of purges. good: whether what
        stands there is an answer to be given. Raises Failure."""
        claim = Claim(key, self._new(generation))
        began = monotonic()
        waits_for = b""
        while True:
            asked = monotonic()
            there = await self._values.claim(key, claim.value, _LIVES)
            if monotonic() - asked > SLOW:
                self._rest("slow")
                patience = 0.0
            if there is not None and there[:1] not in (CLAIMED, b"") and not good(there):
                # Nothing to be given, and in the way: to be replaced, unless somebody has done that.
                if len(there) > _LARGEST:
                    return None, None
                if await self._values.swap(key, there, claim.value, _LIVES):
                    there = None
                elif waits_for:
                    return None, None
                else:
                    waits_for = there
                    continue
            if there is None:
                if len(self._held) < _MOST:
                    claim.until, claim.renews = asked + _LIVES, self._clock.now + _RENEWED
                    self._held[claim] = None
                return None, claim
            if there[:1] != CLAIMED:
                return there or None, None
            waited = monotonic() - began
            if there != CLAIMED:
                if (waits_for[:1] == CLAIMED and there != waits_for) or _generation(there) < generation:
                    return None, None
                waits_for = there
            if waited >= patience:
                return None, None
            await asyncio.sleep(min(max(waited / 8, _SHORTEST), _LONGEST, patience - waited))

    def done(self, claim: Claim, *, stands: bool) -> None:
        """There is an answer, or none to be had. stands: it takes the claim's place by itself."""
        if self._held.pop(claim, False) is None and not stands and claim.until > monotonic():
            self._run(self._let_go(claim))

    async def _let_go(self, claim: Claim) -> None:
        try:
            await self._values.swap(claim.key, claim.value, CLAIMED, 0.001)
        except Failure:
            self._rest("remove")

    def _new(self, generation: int) -> bytes:
        self._number += 1
        return _FORM.pack(CLAIMED, self._node, self._number, generation)

    # ---- renewing
    def _turn(self) -> None:
        if not self._held or self._busy:
            return
        now = self._clock.now
        due = [claim for claim in self._held if claim.renews <= now]
        if due:
            self._busy = True
            self._run(self._renew(due))

    async def _renew(self, due: list[Claim]) -> None:
        try:
            for first in range(0, len(due), _BATCH):
                await asyncio.gather(*(self._renewed(claim) for claim in due[first : first + _BATCH]))
        except Failure:
            self._rest("put")
        finally:
            self._busy = False

    async def _renewed(self, claim: Claim) -> None:
        if claim not in self._held:
            return
        asked = monotonic()
        if asked >= claim.until:  # somebody else may have one now
            del self._held[claim]
        elif claim.still is not None and not claim.still():
            self.done(claim, stands=False)
        else:
            claim.renews = self._clock.now + _RENEWED
            if await self._values.swap(claim.key, claim.value, claim.value, _LIVES):
                claim.until = asked + _LIVES
            else:
                self._held.pop(claim, None)


def _generation(value: bytes) -> int:
    """What the claim's node knew of purges."""
    try:
        return int(_FORM.unpack(value)[3])
    except error:
        return 0
