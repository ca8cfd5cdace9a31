"""Stop: the end of tasks that somebody owns.

Rule: whoever cancels waits until they are gone; what they raise then interests nobody.
"""

import asyncio
from collections.abc import Iterable
from typing import Any

__all__ = ["stop"]


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel all of them. They may leave what they are in meanwhile."""
    those = tuple(tasks)
    for task in those:
        task.cancel()
    await asyncio.gather(*those, return_exceptions=True)
