"""Texts that were answered, by what they mean: vectors, each in the space of requests that are the same but for it.

Rule: nothing is found in another space, whatever it is like. A space is searched whole (20,000 vectors take about a
millisecond), so that nothing that is there is missed. Spaces are changed on the loop and searched in threads: what a
search has in hand is never changed.
"""

from typing import Any, NamedTuple

from tollhouse.policies.cache.agree import Facts

__all__ = ["Item", "Vectors"]

_FIRST = 4


class Item(NamedTuple):
    """key: that the answer is kept under. until: monotonic seconds."""

    key: bytes
    facts: Facts
    until: float


class _Space:
    __slots__ = ("items", "keys", "position", "rows")

    def __init__(self) -> None:
        self.position = b""
        self.keys: set[bytes] = set()
        self.items: list[Item] = []
        self.rows: Any = None  # float32, as many columns as a vector has; only the first len(items) rows count


class Vectors:
    """limit: items in all; the spaces that were used least lately lose theirs first. numpy: the module."""

    def __init__(self, limit: int, numpy: Any) -> None:
        self._limit = limit
        self._numpy = numpy
        self._spaces: dict[bytes, _Space] = {}  # the last used one at the end
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def view(self, space: bytes) -> tuple[list[Item], Any] | None:
        """The items of a space and their vectors, one a row, as they are now."""
        found = self._spaces.pop(space, None)
        if found is None:
            return None
        self._spaces[space] = found
        return (list(found.items), found.rows[: len(found.items)]) if found.items else None

    def position(self, space: bytes) -> bytes:
        """How far what others know of a space was read; b"" where that is to begin anew."""
        found = self._spaces.get(space)
        return b"" if found is None else found.position

    def move(self, space: bytes, position: bytes) -> None:
        """It was read up to there."""
        if space not in self._spaces:
            self._spaces[space] = _Space()
        self._spaces[space].position = position
        self._fit()

    def take(self, space: bytes, item: Item, vector: Any) -> None:
        """What another one knows: as `add`, but where the key is there only the time counts, and vectors of another
        length do not count at all."""
        found = self._spaces.get(space)
        if found is not None and found.items:
            if item.key in found.keys:
                for n, one in enumerate(found.items):
                    if one.key == item.key and one.until < item.until:
                        found.items[n] = one._replace(until=item.until)
                return
            if found.rows.shape[1] != len(vector):
                return
        self.add(space, item, vector)

    def add(self, space: bytes, item: Item, vector: Any) -> None:
        """Its key is in the space once at most."""
        if space in self._spaces and item.key in self._spaces[space].keys:
            self.drop(space, item.key)
        found = self._spaces.pop(space, None) or _Space()
        self._spaces[space] = found
        rows, count = found.rows, len(found.items)
        if rows is None or count == len(rows) or rows.shape[1] != len(vector):
            wide = self._numpy.empty((max(_FIRST, 2 * count), len(vector)), dtype=self._numpy.float32)
            if rows is not None and rows.shape[1] == len(vector):
                wide[:count] = rows[:count]
            else:  # of another model: nothing can be compared
                self._count -= count
                found.items, found.keys, count = [], set(), 0
            found.rows = wide
        found.rows[count] = vector
        found.items.append(item)
        found.keys.add(item.key)
        self._count += 1
        self._fit()

    def _fit(self) -> None:
        while self._count > self._limit or len(self._spaces) > self._limit:
            self._lose()

    def drop(self, space: bytes, key: bytes) -> None:
        """Its answer is there no more."""
        found = self._spaces.get(space)
        if found is None or key not in found.keys:
            return
        left = [n for n, item in enumerate(found.items) if item.key != key]
        self._count -= len(found.items) - len(left)
        if not left and not found.position:
            del self._spaces[space]
            return
        found.keys.discard(key)
        found.items = [found.items[n] for n in left]
        found.rows = found.rows[left]

    def _lose(self) -> None:
        """The oldest items of the space that was used least lately."""
        space, found = next(iter(self._spaces.items()))
        half = min(len(found.items) // 2 + 1, len(found.items))
        self._count -= half
        if half == len(found.items):
            del self._spaces[space]
        else:
            found.items = found.items[half:]
            found.keys = {item.key for item in found.items}
            found.rows = found.rows[half:].copy()

    def clear(self) -> None:
        self._spaces.clear()
        self._count = 0
