"""Which workers live, and which of them goes on with a call: what must never be two at once.

Rule: a worker is gone when nobody hears of it and its sign of life is gone as well; either alone proves nothing. What
one has claimed another takes over only from a worker that is gone. Where the state cannot be asked nothing is claimed.
"""

import asyncio
import logging

from tollhouse.core.errors import Failure
from tollhouse.store.base import State

__all__ = ["Peers", "sign_of"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_EVERY = 1.0  # seconds between two signs of life
_LIVES = 5.0  # seconds that one counts


class Peers:
    """The workers that share a `state`, this one among them. Made while a loop runs; `closed` must follow."""

    def __init__(self, state: State) -> None:
        self._node = state.node
        self._values = state.values
        self._signs = asyncio.get_running_loop().create_task(self._live(), name="mcp sign of life")

    async def _live(self) -> None:
        while True:
            try:
                await self._values.put(sign_of(self._node), b"1", _LIVES)
            except Failure as failure:
                log.debug("mcp: no sign of life: %s", failure.detail or failure.message)
            await asyncio.sleep(_EVERY)

    async def closed(self) -> None:
        """This worker leaves: what it had, others may have at once."""
        self._signs.cancel()
        await asyncio.wait((self._signs,))
        try:
            await self._values.remove(sign_of(self._node))
        except Failure as failure:
            log.info("mcp: others will take this worker for a living one for a while: %s", failure.detail)

    async def lives(self, node: str) -> bool:
        """Whether a worker has given a sign of life lately. Raises Failure 503."""
        return await self._values.get(sign_of(node)) is not None

    async def claim(self, what: str, ttl: float) -> bool:
        """Whether `what` is this worker's from now on, and nobody else's who lives: True once. Raises Failure 503."""
        name, mine = f"mcp.n.{what}", self._node.encode()
        if await self._values.add(name, mine, ttl):
            return True
        owner = await self._values.get(name)
        if owner is None or owner == mine or await self.lives(owner.decode()):
            return False
        return await self._values.swap(name, owner, mine, ttl)


def sign_of(node: str) -> str:
    """Where its sign of life is."""
    return f"mcp.a.{node}"
