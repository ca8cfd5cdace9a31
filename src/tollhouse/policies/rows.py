"""Rows: what of a record is the same for many calls of one caller, made once.

Rule: a table of them is emptied, never searched for what is old: a row costs less to make than to look after. It is
bounded in number, in bytes and in time, since each refers to its caller, who has a token, and claims of any size.
"""

from collections.abc import Callable
from time import monotonic
from typing import Any, Final, TypeVar

from tollhouse.core.call import Principal

__all__ = ["Rows"]

R = TypeVar("R")

_MOST: Final = 10_000
_SMALL: Final = 2048  # bytes of a row; callers choose some of what is in it
_ROOM: Final = 64 << 20  # bytes
_LIFE: Final = 600.0  # seconds
_BESIDES: Final = 1500  # bytes that a row takes besides its own, with who it is of
_CLAIMS: Final = 4  # times a token's size, that it takes with its claims


class Rows(dict[tuple[Any, ...], R]):
    """By what they are made of. Read with `get`. source: monotonic seconds. weight: bytes, about."""

    __slots__ = ("_began", "_room", "_source", "weight")

    def __init__(self, source: Callable[[], float] = monotonic, room: int = _ROOM) -> None:
        super().__init__()
        self._source = source
        self._began = source()
        self._room = room
        self.weight = 0

    def keep(self, key: tuple[Any, ...], row: R, size: int, who: Principal | None) -> None:
        """Remember it, if it is small. size: bytes. who: whose it is."""
        if size > _SMALL:
            return
        now = self._source()
        size += _BESIDES + (_CLAIMS * len(who.token) if who is not None else 0)
        if len(self) >= _MOST or self.weight + size > self._room or now - self._began >= _LIFE:
            self.clear()
            self.weight, self._began = 0, now
        self[key] = row
        self.weight += size
