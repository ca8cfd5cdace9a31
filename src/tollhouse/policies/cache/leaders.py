"""Of several who ask a tool the same at once in this process one asks, and the others wait until he has.

Rule: who asks does it for himself, in his own time: nothing goes on when he leaves. The others are only told that he
has done; what there is then they look for themselves.
"""

import asyncio
from typing import Final

__all__ = ["Leaders"]

_MOST: Final = 4096
_FOLLOWERS: Final = 1000


class Leaders:
    """By what is asked."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[bytes, list[asyncio.Future[None]]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    async def follow(self, key: bytes) -> bool:
        """Wait for who asks this now: whether there was somebody to wait for."""
        waiting = self._waiting.get(key)
        if waiting is None or len(waiting) >= _FOLLOWERS:
            return False
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.append(told)
        try:
            await told
        finally:
            if not told.done() or told.cancelled():
                waiting.remove(told)
        return True

    def lead(self, key: bytes) -> bool:
        """Be the one who asks: whether that is so. Then `over` follows."""
        if key in self._waiting or len(self._waiting) >= _MOST:
            return False
        self._waiting[key] = []
        return True

    def over(self, key: bytes) -> None:
        for told in self._waiting.pop(key, ()):
            if not told.done():
                told.set_result(None)
