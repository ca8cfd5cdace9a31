"""A stream's events, each held back until all its text is safe to leave.

Rule: events leave in the order they came, and one in whose text nothing was replaced leaves as it came. A replaced
match stands in the event in which it began; the others that it went through lose their part of it, and stay. What may
wait is bounded: where it is full, what is held is masked and goes, so that it never grows and nothing leaks.
"""

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from tollhouse.wire.guard.channel import Channel, Left, edited
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.patterns import Mask, PatternSet

__all__ = ["Out", "Overfull", "StreamWindow"]

Item = TypeVar("Item")

_MOST_RECORDS = 4096  # channels of one answer whose text is kept

Out = tuple[Item, "list[str | None] | None"]
"""An event that leaves, and its texts: in the order in which they were given, None for one that is unchanged; None in
place of all, if no text of it is changed."""


class _Waiting(Generic[Item]):
    """An event that came; None for what has left, and is there to be found. missing: characters of its texts that have
    not left. texts: what has left of each."""

    __slots__ = ("item", "missing", "texts")

    def __init__(self, item: Item | None, missing: int) -> None:
        self.item = item
        self.missing = missing
        self.texts: list[str | None] | None = None


class _Part(Generic[Item]):
    """One event's part of one channel. edited: what has left of it, once something of it was replaced."""

    __slots__ = ("left", "number", "seen", "text", "waiting")

    def __init__(self, waiting: _Waiting[Item], number: int, text: str) -> None:
        self.waiting = waiting
        self.number = number
        self.text = text
        self.left = len(text)
        self.seen: list[str] | None = None

    def take(self, count: int, text: str | None) -> None:
        """The next characters have left: as they were, or with `text` in place of them."""
        at = len(self.text) - self.left
        if text is not None and self.seen is None:
            self.seen = [self.text[:at]]
        if self.seen is not None:
            self.seen.append(self.text[at : at + count] if text is None else text)
        self.left -= count
        waiting = self.waiting
        waiting.missing -= count
        if not self.left and self.seen is not None:
            if waiting.texts is None:
                waiting.texts = []
            waiting.texts += [None] * (self.number + 1 - len(waiting.texts))
            waiting.texts[self.number] = "".join(self.seen)


class _Lane(Generic[Item]):
    """A channel, and the parts of events that it holds."""

    __slots__ = ("channel", "parts", "record")

    def __init__(self, channel: Channel, record: list[str] | None) -> None:
        self.channel = channel
        self.parts: deque[_Part[Item]] = deque()
        self.record = record


class Overfull(Exception):
    """A stream with more channels or more text than is kept of one: the answer is to be rejected."""


class StreamWindow(Generic[Item]):
    """The window of one answer, over any number of texts (choices, content blocks, arguments) that come interleaved.

    patterns, mask: what is replaced and how. max_events, max_held: events and characters that may wait. max_channels:
    texts under way at the same time. keep: what left is kept by channel, up to that many characters in all, for events
    that say the whole text again (`said`). Not thread-safe; nothing here waits.

    Delay: an event waits for at most `patterns.max_match` characters more of its own channel, and behind events of
    others that wait; never for time. Plain text waits for the word that is being written.
    """

    __slots__ = (
        "_held",
        "_keep",
        "_kept",
        "_lanes",
        "_lapsed",
        "_mask",
        "_max_channels",
        "_max_events",
        "_max_held",
        "_patterns",
        "_queue",
        "_records",
    )

    def __init__(
        self,
        patterns: PatternSet,
        mask: Mask,
        *,
        max_events: int = 4096,
        max_held: int = 65_536,
        max_channels: int = 256,
        keep: int = 0,
    ) -> None:
        self._patterns = patterns
        self._mask = mask
        self._max_events = max_events
        self._max_held = max_held
        self._max_channels = max_channels
        self._keep = keep
        self._kept = 0
        self._lanes: dict[Hashable, _Lane[Item]] = {}
        self._lapsed: dict[Hashable, str] = {}
        self._queue: deque[_Waiting[Item]] = deque()
        self._records: dict[Hashable, list[str]] = {}
        self._held = 0

    @property
    def waiting(self) -> int:
        """Events that wait."""
        return len(self._queue)

    @property
    def held(self) -> int:
        """Characters of theirs that have not been found safe."""
        return self._held

    def open(self, key: Hashable, *, json: bool = False) -> None:
        """Begins a channel; without this it begins with its first piece, as plain text. json: pieces of one JSON text.

        Raises Overfull.
        """
        if key in self._lanes:
            return
        if len(self._lanes) >= self._max_channels or len(self._records) >= _MOST_RECORDS:
            raise Overfull(f"more than {self._max_channels} texts at the same time in one answer")
        made = JsonChannel if json else Channel
        record = self._records.setdefault(key, []) if self._keep else None
        lane: _Lane[Item] = _Lane(made(self._patterns, self._mask), record)
        self._lanes[key] = lane
        if self._lapsed and not json:
            tail = self._lapsed.pop(key, "")
            if tail:
                gone: _Waiting[Item] = _Waiting(None, len(tail))
                self._queue.append(gone)
                lane.parts.append(_Part(gone, 0, tail))
                self._held += len(tail)
                self._leave(lane, lane.channel.feed(tail))

    def push(self, item: Item, *texts: tuple[Hashable, str]) -> list[Out[Item]]:
        """An event and its pieces of texts, by channel; without any, it only keeps its place. Gives what leaves now.

        Raises Overfull.
        """
        if len(texts) == 1:
            # Mostly nothing waits and nothing is held back.
            ((key, text),) = texts
            lane = self._lane(key)
            left = lane.channel.feed(text)
            if not self._queue and left[1] is None and len(left[0]) == len(text):
                if lane.record is not None:
                    self._record(lane.record, text)
                return [(item, None)]
            waiting = _Waiting(item, len(text))
            self._queue.append(waiting)
            if text:
                lane.parts.append(_Part(waiting, 0, text))
                self._held += len(text)
            self._leave(lane, left)
        elif not texts and not self._queue:
            return [(item, None)]
        else:
            waiting = _Waiting(item, sum([len(text) for _, text in texts]))
            self._queue.append(waiting)
            self._held += waiting.missing
            for number, (key, text) in enumerate(texts):
                lane = self._lane(key)
                if text:
                    lane.parts.append(_Part(waiting, number, text))
                self._leave(lane, lane.channel.feed(text))
        out = self._out()
        if len(self._queue) > self._max_events or self._held > self._max_held:
            out += self._relieved()
        return out

    def finish(self, key: Hashable, *, whole: bool = True) -> list[Out[Item]]:
        """The end of one channel. whole: False where its text breaks off (`Channel.finish`)."""
        lane = self._lanes.pop(key, None)
        if lane is not None:
            self._leave(lane, lane.channel.finish(whole=whole))
        return self._out()

    def lapse(self, key: Hashable, *, whole: bool = True) -> list[Out[Item]]:
        """A channel that nobody waits for any longer, as `finish`. Should it go on, with `open`, what is held now and
        leaves counts as its beginning: a match that it was interrupted in is found, and what is still to come of it
        replaced. Not of JSON, nor with `keep`."""
        lane = self._lanes.get(key)
        if lane is not None and not self._keep and type(lane.channel) is Channel and lane.channel.held:
            if len(self._lapsed) >= self._max_channels:
                del self._lapsed[next(iter(self._lapsed))]
            self._lapsed[key] = lane.channel.held
        return self.finish(key, whole=whole)

    def close(self, *, whole: bool = True) -> list[Out[Item]]:
        """The end of the answer: everything leaves."""
        for lane in self._lanes.values():
            self._leave(lane, lane.channel.finish(whole=whole))
        self._lanes.clear()
        return self._out()

    def drop(self) -> None:
        """What waits is not to leave: the answer is rejected, or nobody reads it."""
        self._lanes.clear()
        self._lapsed.clear()
        self._queue.clear()
        self._records.clear()
        self._held = 0

    def said(self, key: Hashable) -> str:
        """What has left of a channel so far, as it was seen (with `keep`)."""
        return "".join(self._records.get(key, ()))

    # ----

    def _lane(self, key: Hashable) -> _Lane[Item]:
        lane = self._lanes.get(key)
        if lane is None:
            self.open(key)
            lane = self._lanes[key]
        return lane

    def _leave(self, lane: _Lane[Item], left: Left) -> None:
        """Shares out among the events what has left of their channel."""
        source, edits = left
        if lane.record is not None:
            self._record(lane.record, edited(left))
        self._held -= len(source)
        at = 0
        for begin, end, text in edits or ():
            _take(lane.parts, begin - at, None)
            _take(lane.parts, end - begin, text)
            at = end
        _take(lane.parts, len(source) - at, None)

    def _record(self, record: list[str], text: str) -> None:
        self._kept += len(text)
        if self._kept > self._keep:
            raise Overfull(f"an answer of more than {self._keep} characters, which would have to be kept")
        record.append(text)

    def _out(self) -> list[Out[Item]]:
        queue = self._queue
        out: list[Out[Item]] = []
        while queue and not queue[0].missing:
            waiting = queue.popleft()
            if waiting.item is not None:  # it has left
                out.append((waiting.item, waiting.texts))
        return out

    def _relieved(self) -> list[Out[Item]]:
        """Too much waits: whatever holds back the first event is masked, until it is not too much."""
        out: list[Out[Item]] = []
        while len(self._queue) > self._max_events or self._held > self._max_held:
            first = self._queue[0]
            for lane in self._lanes.values():
                if lane.parts and lane.parts[0].waiting is first:
                    self._leave(lane, lane.channel.overflow())
            out += self._out()
        return out


def _take(parts: deque[_Part[Item]], count: int, text: str | None) -> None:
    while count > 0:
        part = parts[0]
        some = part.left if part.left < count else count
        part.take(some, text)
        if text and part.waiting.item is not None:
            text = ""  # the mask stands in the first of them that is still to leave
        if not part.left:
            parts.popleft()
        count -= some
