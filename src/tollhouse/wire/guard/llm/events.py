"""A stream of events, and the texts in each: what `wire.guard.window.StreamWindow` is fed with, and what it gives put
back into the events.

Rule: an event in which nothing changes is the bytes it came in. One that is not known is looked at as JSON; where its
pieces could not be joined with those of further ones, it is said to be `unknown`.

Of a choice, a text that is silent for 16 events of another one has ended (a thought, when the answer goes on after it):
else the answer would wait behind it. Should it go on all the same, what of it was held then is remembered (`lapses`).
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import ClassVar

import msgspec

from tollhouse.core.errors import Failure
from tollhouse.wire.guard.llm.citations import Moved, change
from tollhouse.wire.guard.llm.forms import OTHER, Form, Look, New, Path
from tollhouse.wire.sse import frame, parse, split

__all__ = ["Ends", "Event", "Said", "SseTexts", "StreamTexts", "every", "none", "reframed"]

Raw = msgspec.Raw

LINES: Path = ("", "lines")
"""Place of what stands around the data of an event."""

_FRAME = 23  # bytes around an event's data and name that say nothing
_NAME = re.compile(rb"[a-z_.]{0,48}")  # of a kind of event
_SILENT = 16  # events that say something else of the same choice or item

Said = Callable[[Path], str | None]
"""What has left of a text in all, if anything of it was changed; else None."""


Ends = Callable[[Path], bool]
"""Whether a text under way ends."""


def _places(event: "Event") -> tuple[Path, ...]:
    if not event.texts:
        return ()
    look = Look()
    event.form.look(Raw(event.data), (), look)
    return tuple([spot.at for spot in look.spots])


def none(key: Path) -> bool:
    """No text ends."""
    return False


def every(key: Path) -> bool:
    """All of them do."""
    return True


class Event(msgspec.Struct, gc=False, eq=False):
    """One event.

    raw: as it came. texts: (key, piece of that text), in order; a key is a tuple that ends in the kind (`texts.Piece`).
    opens: keys that begin here, and whether they are JSON. finishes: texts that end before this event; they are whole
    unless `ending` is "cut". lapses: those of them that were only silent for long, and may go on. closes: texts that
    end with this event, and are whole. repeats: texts of which all is said again here. ending: "whole" or "cut" where
    the answer is known to be, and so what ends with the stream, if no later event says otherwise. signed: keys of
    `texts` that are vouched for by a signature, which ends with a change. opaque: what cannot be looked at, a kind for
    each.
    """

    raw: bytes
    texts: tuple[tuple[Path, str], ...] = ()
    opens: tuple[tuple[Path, bool], ...] = ()
    finishes: tuple[Path, ...] = ()
    lapses: tuple[Path, ...] = ()
    closes: tuple[Path, ...] = ()
    repeats: tuple[Path, ...] = ()
    ending: str = ""
    signed: tuple[Path, ...] = ()
    opaque: tuple[str, ...] = ()
    # For `write`: where they stand.
    data: bytes = b""
    form: Form = OTHER
    at: tuple[int, ...] = (0,)  # for each text, characters of it that came before
    places: tuple[Path, ...] | None = None
    again: tuple[Path, ...] = ()


class StreamTexts:
    """Reads one stream. `read` its blocks in order, `write` each event in order, once it is known what it may say.

    begun: told of the answer's id as soon as it is known, by APIs that go on with answers. altered: a text has been
    changed. From then on every event is to be written, also one without new texts: it may have
    a signature or a number in it that belongs to what has changed. Before, an event without new texts is its `raw`.
    """

    __slots__ = ("_changes", "_cut", "_ended", "_onces", "_open", "_runs", "altered", "begun")

    repeating: ClassVar[bool] = False
    """Whether events ever repeat a text that has been told."""

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}  # texts under way: characters so far
        self._ended: list[Path] = []  # they end before the next event
        self._cut = False  # and so do they
        self._onces = 0
        self._changes: dict[Path, list[Moved]] = {}
        self._runs: dict[
            Hashable, tuple[tuple[Path, ...], int]
        ] = {}  # of each choice or item: what is said now, for how long
        self.altered = False
        self.begun: Callable[[str], object] | None = None

    def read(self, block: bytes) -> list[Event]:
        """The events of a block of whole ones (`wire.sse`, `wire.eventstream`); their bytes joined are the block.

        Raises ValueError for what cannot be read."""
        raise NotImplementedError

    def write(self, event: Event, new: Sequence[str | None] | None, said: Said) -> bytes:
        """An event's bytes with other texts. new: in the order of `event.texts`; None, or nothing, for one that stays.
        said: for `event.repeats`."""
        changed: dict[Path, str] = {}
        if new:
            places = event.places
            if places is None:
                places = _places(event)
            for (key, text), place, begin, other in zip(event.texts, places, event.at, new, strict=False):
                if other is not None and other != text:
                    changed[place] = other
                    self.changed(event, key, change(text, other, begin))
        for key, place in zip(event.repeats, event.again, strict=True):
            other = said(key)
            if other is not None:
                changed[place] = other
        if changed:
            self.altered = True
            if changed.pop(LINES, None) is not None:
                event.raw = self.framed(event, event.data, bare=True)
        return self.encoded(event, changed)

    # ---- for each API

    def changed(self, event: Event, key: Path, moved: Moved) -> None:
        """A piece of a text leaves as another one. moved: in the text as a whole."""
        self._changes.setdefault(key, []).append(moved)

    def encoded(self, event: Event, changed: dict[Path, str]) -> bytes:
        """The event with texts changed at these places, or with none changed."""
        if not changed:
            return event.raw
        return self.framed(event, bytes(event.form.put(Raw(event.data), (), New(changed))))

    def framed(self, event: Event, data: bytes, *, bare: bool = False) -> bytes:
        """The event with other data. bare: and nothing else in it."""
        raise NotImplementedError

    def piece(self, raw: bytes, data: bytes, form: Form, key: Path, text: str, *, json: bool = False) -> Event:
        """An event that is nothing but one piece of one text."""
        event = Event(raw, ((key, text),), data=data, form=form)
        at = self._open.get(key)
        if at is None:
            at = 0
            event.opens = ((key, json),)
        self._open[key] = at + len(text)
        event.at = (at,)
        if self._ended:
            self.end(event, none, "")
        if len(self._open) > 1:
            self._ran(event, (key,))
        return event

    def beside(self, event: Event, key: Path | None, text: str, place: Path) -> None:
        """A further text of an event. key: None for one that is whole. place: for `write`."""
        if event.places is None:
            event.places = _places(event)
        at = 0
        if key is None:
            self._onces += 1
            key = ("once", self._onces, "beside")
            event.closes = (*event.closes, key)
            event.opens = (*event.opens, (key, False))
        elif key in self._open:
            at = self._open[key]
            self._open[key] = at + len(text)
        else:
            self._open[key] = len(text)
            event.opens = (*event.opens, (key, False))
        event.texts = (*event.texts, (key, text))
        event.places = (*event.places, place)
        event.at = (*event.at[: len(event.texts) - 1], at)

    def looked(
        self, raw: bytes, data: bytes, form: Form, *, ends: Ends = none, ending: str = "", name: Path = ()
    ) -> Event:
        """An event of any form. ends: which texts end with it. name: of all texts in it that go on."""
        look = Look(pieces=True)
        look.name = name
        form.look(Raw(data), (), look)
        event = Event(raw, data=data, form=form)
        self.fill(event, look)
        self.end(event, ends, ending)
        if len(self._open) > 1:
            keys = tuple([key for key, _ in event.texts if key in self._open])
            if len({key[0] for key in keys}) == 1:
                self._ran(event, keys)
        return event

    def unknown(self, raw: bytes, data: bytes) -> Event:
        """An event of a kind that is not known."""
        event = self.looked(raw, data, OTHER)
        if event.texts:
            event.opaque = (*event.opaque, "unknown")
        return event

    def fill(self, event: Event, look: Look) -> None:
        """The texts that were found in an event."""
        texts: list[tuple[Path, str]] = []
        places: list[Path] = []
        opens: list[tuple[Path, bool]] = []
        closes: list[Path] = []
        starts: list[int] = []
        started: dict[Path, int] = self._open
        for spot in look.spots:
            key, at = spot.name, None
            if key is None:
                self._onces += 1
                key = ("once", self._onces, spot.kind)
                closes.append(key)
                opens.append((key, spot.json))
            else:
                at = started.get(key)
                if at is None:
                    at = 0
                    opens.append((key, spot.json))
                started[key] = at + len(spot.text)
            starts.append(at or 0)
            texts.append((key, spot.text))
            places.append(spot.at)
        event.texts, event.places = tuple(texts), tuple(places)
        event.opens, event.closes, event.at = tuple(opens), tuple(closes), tuple(starts)
        if look.signed:
            event.signed = tuple([key for (key, _), at in zip(texts, places, strict=True) if at in look.signed])
        if look.opaque:
            event.opaque = tuple([kind for kind, count in look.opaque.items() for _ in range(count)])

    def _ran(self, event: Event, keys: tuple[Path, ...]) -> None:
        """Nobody says that a thought is over, but that an answer goes on after it: what is silent for so long has
        ended, so that the rest does not wait behind it. keys: of the event, all of one choice or item."""
        group = keys[0][0]
        last, count = self._runs.get(group, (keys, 0))
        count = count + 1 if last == keys else 1
        self._runs[group] = keys, count
        if count == _SILENT:
            lapsed = tuple([key for key in self._open if key[0] == group and key not in keys])
            self.end(event, lambda key: key in lapsed, "")
            event.lapses = lapsed

    def end(self, event: Event, ends: Ends, ending: str) -> None:
        """Ends what ended with the event before, and the texts that end here: those in the event itself, with it."""
        here = {key for key, _ in event.texts}
        finishes = [key for key in self._ended if key not in here]
        self._ended = [key for key in self._ended if key in here]
        if self._cut and (finishes or ending):
            ending = "cut"
            self._cut = False
        for key in filter(ends, tuple(self._open)):
            if key in here:
                self._ended.append(key)
                self._cut = self._cut or ending == "cut"
            else:
                finishes.append(key)
        for key in finishes:
            self._open.pop(key, None)
        if ending == "whole" and not self._open.keys() <= set(self._ended):
            ending = ""  # of others we do not know it yet
        event.finishes += tuple(finishes)
        event.ending = ending or event.ending


class SseTexts(StreamTexts):
    """A stream of server-sent events."""

    __slots__ = ("_name",)

    def __init__(self) -> None:
        super().__init__()
        self._name = b""  # one that says nothing

    def read(self, block: bytes) -> list[Event]:
        return [self.event(raw) for raw in split(block)]

    def event(self, raw: bytes) -> Event:
        """One raw event."""
        name, data = parse(raw)
        try:
            if not data:
                event = self.silent(raw)
            elif data == b"[DONE]":
                event = self.ended(raw, data)
            else:
                event = self.told(raw, name, data)
            if len(raw) - len(data) - len(name) > _FRAME or name != self._name:
                self._framed(event, name, data)
        except (ValueError, Failure):
            raise ValueError("an event of the stream cannot be read") from None
        return event

    def _framed(self, event: Event, name: bytes, data: bytes) -> None:
        """What stands around the data: comments, ids and names are texts too, if there is room in them for one."""
        if len(event.raw) - len(data) - len(name) <= _FRAME and _NAME.fullmatch(name):
            self._name = name
            return
        lines = [line for line in event.raw.removeprefix(b"\xef\xbb\xbf").splitlines() if line[:5] != b"data:"]
        text = b"\n".join(lines).decode(errors="replace").strip("\n")
        if text:
            self.beside(event, None, text, LINES)

    def silent(self, raw: bytes) -> Event:
        """One without data: a comment, a ping."""
        event = Event(raw)
        if self._ended:
            self.end(event, none, "")
        return event

    def ended(self, raw: bytes, data: bytes = b"") -> Event:
        """One that ends the stream in good order."""
        event = Event(raw, data=data)
        self.end(event, every, "whole")
        return event

    def told(self, raw: bytes, name: bytes, data: bytes) -> Event:
        """One with data."""
        raise NotImplementedError

    def framed(self, event: Event, data: bytes, *, bare: bool = False) -> bytes:
        if bare:
            name = parse(event.raw)[0]
            lines = data.replace(b"\n", b"\ndata: ")
            return frame(lines, name if _NAME.fullmatch(name) else b"") if data else b":\n\n"
        return reframed(event.raw, data)


def reframed(raw: bytes, data: bytes) -> bytes:
    """A raw event with other data, of one line; its other lines stay as they are."""
    name, before = parse(raw)
    if raw == frame(before, name):
        return frame(data, name)
    lines: list[bytes] = []
    done = False
    for line in raw.splitlines(keepends=True):
        if line.removeprefix(b"\xef\xbb\xbf").partition(b":")[0].rstrip(b"\r\n") != b"data":
            lines.append(line)
        elif not done:
            end = line[len(line.rstrip(b"\r\n")) :]
            lines.append(b"data: " + data + end)
            done = True
    return b"".join(lines)
