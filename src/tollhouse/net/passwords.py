"""Passwords are checked away from the event loop, a few at a time.

Rule: hashing is dear on purpose, so what may wait for it has a bound: beyond it the answer is 503, at once. A user
that does not exist costs the same work as one that does.
"""

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from tollhouse.core.errors import Failure, Reason
from tollhouse.wire.password_hash import decoy, fits

__all__ = ["Passwords"]

THREADS: Final = 2
QUEUE: Final = 32
_WAIT: Final = 2


class Passwords:
    """hashes: of all users there are, so that the work for one that is not is the same. Raises ValueError for one that
    is no argon2id hash, or where the extra is missing. `close` it in the end."""

    __slots__ = ("_decoy", "_pool", "_waiting")

    def __init__(self, hashes: Iterable[str] = (), *, queue: int = QUEUE) -> None:
        self._decoy = decoy(hashes)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="argon2")
        self._waiting = asyncio.BoundedSemaphore(THREADS + queue)

    async def fits(self, hashed: str | None, password: str) -> bool:
        """Whether the password is the one that was hashed; None: there is no such user. Raises Failure 503 when too
        many are waiting."""
        if self._waiting.locked():
            raise Failure(
                503,
                Reason.OVERLOADED,
                "too many passwords are being checked at this moment; try again in a few seconds",
                retry_after=float(_WAIT),
                headers=((b"retry-after", b"%d" % _WAIT),),
            )
        async with self._waiting:
            work = partial(fits, self._decoy if hashed is None else hashed, password)
            is_right = await asyncio.get_running_loop().run_in_executor(self._pool, work)
        return is_right and hashed is not None

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)  # who waits still gets an answer
