"""What an event of a stream passes on its way: one stage for each set of patterns, one behind the other.

Rule: an event leaves a stage once all its text is safe there, in the order in which it came. What no stage changes
leaves as the bytes it came in. Nothing here waits for anybody.
"""

from collections.abc import Hashable, Sequence
from typing import Protocol, TypeAlias

from tollhouse.policies.guardrails.acts import concerns
from tollhouse.wire.guard.channel import Channel
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.llm import Event
from tollhouse.wire.guard.patterns import Mask, PatternSet
from tollhouse.wire.guard.window import StreamWindow

__all__ = ["Item", "Moved", "Stage", "Watching", "Windowed", "entered", "event_of", "texts_of"]

_MOST_WATCHED = 256  # texts under way at the same time


class Moved:
    """An event, some of whose texts are others: all of them, in the event's order."""

    __slots__ = ("event", "texts")

    def __init__(self, event: Event, texts: list[str]) -> None:
        self.event = event
        self.texts = texts


Item: TypeAlias = Event | Moved
"""An event as it came, or as it was changed."""


def event_of(item: Item) -> Event:
    """The event itself."""
    return item.event if isinstance(item, Moved) else item


def texts_of(item: Item) -> Sequence[tuple[Hashable, str]]:
    """Its texts as they are now, by channel."""
    if isinstance(item, Moved):
        return [(key, text) for (key, _), text in zip(item.event.texts, item.texts, strict=True)]
    return item.texts


def changed(item: Item, at: Sequence[int], new: Sequence[str | None]) -> Item:
    """The event with texts that are others. at: which of its texts they are; a text that is None stays."""
    event = event_of(item)
    texts = list(item.texts) if isinstance(item, Moved) else [text for _, text in event.texts]
    for place, text in zip(at, new, strict=False):
        if text is not None:
            texts[place] = text
    return Moved(event, texts)


class Stage(Protocol):
    """Raises Failure for what is refused, Overfull for more than is kept."""

    def open(self, key: Hashable, json: bool) -> None:
        """A text begins."""
        ...

    def push(self, item: Item) -> list[Item]:
        """What leaves now."""
        ...

    def finish(self, key: Hashable, whole: bool) -> list[Item]:
        """A text ends."""
        ...

    def lapse(self, key: Hashable) -> list[Item]:
        """Nobody waits for a text any longer, which may go on."""
        ...

    def close(self, whole: bool) -> list[Item]:
        """The answer ends: everything leaves."""
        ...


def entered(stage: Stage, item: Item) -> list[Item]:
    """What leaves a stage when an event comes to it. Texts begin and end there with the event that says so: what is
    still held in a stage before has not come here yet."""
    event = event_of(item)
    if not (event.finishes or event.opens or event.closes):
        return stage.push(item)
    out: list[Item] = []
    whole = event.ending != "cut"
    for key in event.finishes:
        out += stage.lapse(key) if key in event.lapses else stage.finish(key, whole)
    for key, json in event.opens:
        stage.open(key, json)
    out += stage.push(item)
    for key in event.closes:
        out += stage.finish(key, True)
    return out


class Windowed:
    """Holds back what could be the beginning of a match: for masks, and for what rejects. kinds: of texts, None for
    all; text of others only keeps its place. fixed: it changes what it finds, and so leaves names alone. also: it is
    for masks that are turned back, also in what only repeats the caller's own words, and not in what is signed: that
    comes back from the caller as the provider said it."""

    __slots__ = ("_also", "_fixed", "_kinds", "_window")

    def __init__(
        self,
        patterns: PatternSet,
        mask: Mask,
        kinds: frozenset[str] | None,
        *,
        fixed: bool = False,
        also: bool = False,
    ) -> None:
        self._kinds = kinds
        self._fixed = fixed or also
        self._also = also
        self._window: StreamWindow[Item] = StreamWindow(patterns, mask)

    def open(self, key: Hashable, json: bool) -> None:
        if self._concerned(key):
            self._window.open(key, json=json)

    def push(self, item: Item) -> list[Item]:
        texts = texts_of(item)
        if self._also and event_of(item).signed:
            return self._moved(self._window.push(item))
        if len(texts) == 1:
            if self._concerned(texts[0][0]):
                return self._moved(self._window.push(item, texts[0]))
        elif texts:
            mine = [pair for pair in texts if self._concerned(pair[0])]
            if mine:
                return self._moved(self._window.push(item, *mine))
        return self._moved(self._window.push(item))

    def finish(self, key: Hashable, whole: bool) -> list[Item]:
        return self._moved(self._window.finish(key, whole=whole))

    def lapse(self, key: Hashable) -> list[Item]:
        # Half of a secret is masked like one; but it is no reason to refuse the rest.
        return self._moved(self._window.lapse(key, whole=not self._fixed))

    def close(self, whole: bool) -> list[Item]:
        return self._moved(self._window.close(whole=whole))

    def _concerned(self, key: Hashable) -> bool:
        kind: str = key[-1]  # type: ignore[index]
        if kind == "names" and self._fixed:
            return False
        return concerns(self._kinds, kind) or self._also

    def _moved(self, out: "list[tuple[Item, list[str | None] | None]]") -> list[Item]:
        if len(out) == 1 and out[0][1] is None:
            return [out[0][0]]
        return [item if new is None else changed(item, self._places(item), new) for item, new in out]

    def _places(self, item: Item) -> list[int]:
        return [n for n, (key, _) in enumerate(event_of(item).texts) if self._concerned(key)]


class Watching:
    """Looks at what passes and holds nothing back: for what is only counted."""

    __slots__ = ("_channels", "_kinds", "_mask", "_patterns")

    def __init__(self, patterns: PatternSet, mask: Mask, kinds: frozenset[str] | None) -> None:
        self._patterns = patterns
        self._mask = mask
        self._kinds = kinds
        self._channels: dict[Hashable, Channel] = {}

    def open(self, key: Hashable, json: bool) -> None:
        kind: str = key[-1]  # type: ignore[index]
        if key in self._channels or not concerns(self._kinds, kind) or len(self._channels) >= _MOST_WATCHED:
            return  # of more texts at once only so many are counted: what only counts refuses nothing
        self._channels[key] = (JsonChannel if json else Channel)(self._patterns, self._mask)

    def push(self, item: Item) -> list[Item]:
        for key, text in texts_of(item):
            channel = self._channels.get(key)
            if channel is None:
                self.open(key, False)
                channel = self._channels.get(key)
            if channel is not None:
                channel.feed(text)
        return [item]

    def finish(self, key: Hashable, whole: bool) -> list[Item]:
        channel = self._channels.pop(key, None)
        if channel is not None:
            channel.finish(whole=whole)
        return []

    def lapse(self, key: Hashable) -> list[Item]:
        return []  # nothing waits

    def close(self, whole: bool) -> list[Item]:
        for channel in self._channels.values():
            channel.finish(whole=whole)
        self._channels.clear()
        return []
