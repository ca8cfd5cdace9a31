"""An answer in the pieces that checks are asked about: as much of its text as makes a window, or all of it.

Rule: events leave in the order they came, each once everything in it was looked at together with what follows: the end
of a piece is asked about again with the next one, and leaves with that.
"""

from collections import deque
from collections.abc import Hashable, Sequence

from tollhouse.core.call import Call
from tollhouse.policies.guardrails.acts import Acts
from tollhouse.policies.guardrails.asking import Asked, Entry, ask_edits, merged
from tollhouse.policies.guardrails.stages import Item, Moved, event_of, texts_of
from tollhouse.wire.guard.window import Overfull

__all__ = ["Room", "Segments", "shared_out"]

_OVERLAP = 64  # characters of a piece that wait for what follows
_LARGEST = 4 << 20  # characters of an answer that is held whole
_MOST = 100_000  # events of it
_ROOM = 192 << 20  # bytes of all answers that a worker holds
_EVENT = 500  # bytes that one takes besides its own, about


class Room:
    """What all answers of a worker may hold together."""

    __slots__ = ("held", "most")

    def __init__(self, most: int = _ROOM) -> None:
        self.most = most
        self.held = 0


class Segments:
    """Of one answer. room: that it shares with others. Not thread-safe."""

    __slots__ = ("_checks", "_events", "_finished", "_held", "_items", "_ready", "_room", "_taken", "_window")

    def __init__(self, checks: Sequence[Asked], room: Room) -> None:
        self._checks = tuple(checks)
        self._room = room
        self._taken = 0
        windows = [check.window for check in checks]
        self._window = min(windows) if all(windows) else 0
        self._items: list[Item] = []
        self._held = 0
        self._events = 0
        self._ready: deque[list[Item]] = deque()
        self._finished = False

    @property
    def ready(self) -> bool:
        """Whether there is a piece to ask about."""
        return bool(self._ready)

    @property
    def waiting(self) -> int:
        """Pieces that wait."""
        return len(self._ready)

    def add(self, items: Sequence[Item]) -> None:
        """More events. Raises Overfull."""
        for item in items:
            self._items.append(item)
            self._events += 1
            self._take(_size(item))
            for _, text in texts_of(item):
                self._held += len(text)
            if self._window and self._held >= self._window:
                self._cut()
        if self._held > _LARGEST or self._events > _MOST:
            raise Overfull(f"an answer of more than {_LARGEST} characters, which would have to be looked at as a whole")
        if self._room.held > self._room.most:
            raise Overfull(f"more than {self._room.most} bytes of answers that have to be looked at")

    def finish(self) -> None:
        """No more comes."""
        self._finished = True
        if self._items:
            self._cut()

    def drop(self) -> None:
        """Nothing of it leaves any more."""
        self._take(-self._taken)
        self._items = []
        self._ready.clear()

    def _take(self, size: int) -> None:
        self._taken += size
        self._room.held += size

    def _cut(self) -> None:
        self._ready.append(self._items)
        self._items = []
        self._held = self._events = 0

    async def ask(self, acts: Acts, call: Call) -> list[Item]:
        """The first piece that waits, as the checks leave it. Raises Failure."""
        items = await self._asked(self._ready.popleft(), acts, call)
        if self._taken:
            self._take(-min(sum(map(_size, items)), self._taken))
        return items

    async def _asked(self, items: list[Item], acts: Acts, call: Call) -> list[Item]:
        parts: dict[Hashable, list[tuple[int, int, str]]] = {}
        for n, item in enumerate(items):
            for place, (key, text) in enumerate(texts_of(item)):
                if text and key[-1] != "names":  # type: ignore[index]
                    parts.setdefault(key, []).append((n, place, text))
        if not parts:
            return items
        entries = []
        for key, own in parts.items():
            kind: str = key[-1]  # type: ignore[index]
            entries.append(Entry(key, kind, "".join([text for _, _, text in own]), kind == "arguments"))
        edits = await ask_edits(self._checks, entries, acts, call, "response")
        for number, found in edits.items():
            entry = entries[number]
            own = parts[entry.key]
            for (n, place, old), new in zip(own, shared_out([text for _, _, text in own], merged(found)), strict=True):
                if new != old:
                    items[n] = _with(items[n], place, new)
        if not self._window or (self._finished and not self._ready):
            return items
        return self._without_end(items)

    def _without_end(self, items: list[Item]) -> list[Item]:
        """What may leave already; the rest is asked about again with what follows."""
        size, at = 0, len(items)
        while at and size < _OVERLAP:
            at -= 1
            size += sum([len(text) for _, text in texts_of(items[at])])
        rest = items[at:]
        if self._ready:
            self._ready[0] = rest + self._ready[0]
        else:
            self._items = rest + self._items
            self._held += size
            self._events += len(rest)
        return items[:at]


def shared_out(pieces: Sequence[str], edits: Sequence[tuple[int, int, str]]) -> list[str]:
    """The pieces of a text with edits of the whole: what stands instead is in the piece in which it begins. edits: in
    order, none within another."""
    out: list[str] = []
    at = 0
    for piece in pieces:
        end = at + len(piece)
        new: list[str] = []
        place = at
        for begin, stop, text in edits:
            if stop <= at or begin >= end:
                continue
            new.append(piece[place - at : max(begin, place) - at])
            if begin >= at:
                new.append(text)
            place = max(place, min(stop, end))
        new.append(piece[place - at :])
        out.append("".join(new))
        at = end
    return out


def _size(item: Item) -> int:
    """Bytes that it takes, about."""
    return 2 * len(event_of(item).raw) + _EVENT


def _with(item: Item, place: int, text: str) -> Item:
    event = event_of(item)
    texts = list(item.texts) if isinstance(item, Moved) else [old for _, old in event.texts]
    texts[place] = text
    return Moved(event, texts)
