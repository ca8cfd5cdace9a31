"""Rounds of calls that were used: what an agent brings back is good once.

Rule: also when it comes to another worker, or to one that has begun anew meanwhile: what was approved or counted was
one call.
"""

from typing import Final

from tollhouse.endpoints.mcp.peers import Peers
from tollhouse.store.base import KeyValue

__all__ = ["Used"]

_MOST: Final = 4096  # that one worker remembers


class Used:
    """By the nonce of each round. values: shared with other workers, or kept over this one's lives; None for neither.
    peers: the workers that share a state; None where there are none."""

    __slots__ = ("_nonces", "_peers", "_values")

    def __init__(self, values: KeyValue | None, peers: Peers | None) -> None:
        self._nonces: dict[str, None] = {}
        self._values = values
        self._peers = peers

    def __contains__(self, nonce: str) -> bool:
        """Whether this worker knows that it was."""
        return nonce in self._nonces

    def add(self, nonce: str) -> None:
        while len(self._nonces) >= _MOST:
            self._nonces.pop(next(iter(self._nonces)))
        self._nonces[nonce] = None

    async def first(self, nonce: str, ttl: float) -> bool:
        """Whether the round comes for the first time to any worker, those that have died and this one's former lives
        included. ttl: seconds that it can be brought. Raises Failure 503."""
        if nonce in self._nonces:
            return False
        first = self._values is None or await self._values.add(f"mcp.f.{nonce}", b"1", ttl)
        self.add(nonce)
        return first

    async def claimed(self, nonce: str, ttl: float) -> bool:
        """Whether the round is ours to go on with; once. Raises Failure 503 while other workers cannot be asked."""
        if nonce in self._nonces:
            return False
        if self._peers is not None and not await self._peers.claim(nonce, ttl):
            self.add(nonce)
            return False
        if nonce in self._nonces:
            return False
        self.add(nonce)
        return True
