"""Paths into a configuration document, and the line and column where each of them stands.

Rule: where something stands is worked out when somebody asks, never before: a document without problems costs nothing
here.
"""

import re
from typing import Any

from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from tollhouse.wire.yaml_core import events

__all__ = ["Path", "Places", "render", "unrender"]

Path = tuple[str | int, ...]
"""Keys and list indices from the top of the document."""

_PLAIN_KEY = re.compile(r"[A-Za-z_][\w-]*")
_STEP = re.compile(r'\.?([A-Za-z_][\w-]*)|\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]')


def render(path: Path) -> str:
    """`models[0].targets[1].provider`; keys that are no plain words are quoted: `mcp.servers["a.b"]`."""
    parts: list[str] = []
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif _PLAIN_KEY.fullmatch(step):
            parts.append(f".{step}" if parts else step)
        else:
            parts.append('["' + step.replace("\\", "\\\\").replace('"', '\\"') + '"]')
    return "".join(parts)


def unrender(text: str) -> Path:
    """The path that `render` wrote as `text`; of another text, as much of it as looks like one."""
    path: list[str | int] = []
    at = 0
    while (step := _STEP.match(text, at)) is not None and step.end() > at:
        if step[1] is not None:
            path.append(step[1])
        elif step[2] is not None:
            path.append(int(step[2]))
        else:
            path.append(re.sub(r"\\(.)", r"\1", step[3]))
        at = step.end()
    return tuple(path)


class _Place:
    """Where a value stands, and where what is in it stands. `keys`: where each key of a mapping stands."""

    __slots__ = ("at", "inner", "is_list", "keys")

    def __init__(self, event: Any) -> None:
        self.at = (event.start_mark.line + 1, event.start_mark.column + 1)
        self.is_list = isinstance(event, SequenceStartEvent)
        self.inner: dict[str | int, _Place] = {}
        self.keys: dict[str | int, tuple[int, int]] = {}


class Places:
    """Lines and columns, from 1, of what a text that `read` accepts says. Folded when first asked."""

    __slots__ = ("_root", "_text", "file")

    def __init__(self, text: str, file: str) -> None:
        self._text = text
        self._root: _Place | None = None
        self.file = file

    def __repr__(self) -> str:
        return f"<Places of {self.file}>"

    def at(self, path: Path, *, key: bool = False) -> tuple[int, int]:
        """Where the value at `path` begins, or with `key` its key; what is not there stands where its parent does.
        A value that stands alone where a list may stand is the first of the list."""
        if self._root is None:
            self._root = _place(self._text)
        place, where = self._root, self._root.at
        for depth, step in enumerate(path):
            found = place.inner.get(step)
            if found is None:
                if step == 0 and not place.is_list:
                    continue
                break
            where = found.at
            if key and depth == len(path) - 1:
                where = place.keys.get(step, where)
            place = found
        return where


def _place(text: str) -> _Place:
    get = events(text)
    anchors: dict[str, _Place] = {}

    def node(event: Any) -> _Place:
        place = _Place(event)
        if isinstance(event, AliasEvent):
            # The alias's own place for itself, the anchor's places for what is in it.
            if event.anchor in anchors:
                place.inner = anchors[event.anchor].inner
                place.keys = anchors[event.anchor].keys
                place.is_list = anchors[event.anchor].is_list
            return place
        if isinstance(event, SequenceStartEvent):
            while not isinstance(following := get(), SequenceEndEvent):
                place.inner[len(place.inner)] = node(following)
        elif isinstance(event, MappingStartEvent):
            mapping(place)
        if getattr(event, "anchor", None) is not None:
            anchors[event.anchor] = place
        return place

    def mapping(place: _Place) -> None:
        merged: list[_Place] = []
        while not isinstance(key := get(), MappingEndEvent):
            if not isinstance(key, ScalarEvent):
                node(key)
                node(get())
                continue
            value = node(get())
            if key.value == "<<" and key.implicit[0]:
                merged.extend(value.inner.values() if 0 in value.inner else [value])
            elif key.value not in place.inner:
                place.inner[key.value] = value
                place.keys[key.value] = _Place(key).at
        for source in merged:
            for name, inner in source.inner.items():
                if name not in place.inner:
                    place.inner[name] = inner
                    place.keys[name] = source.keys.get(name, inner.at)

    event = get()
    while not isinstance(event, DocumentStartEvent):
        event = get()
    return node(get())
