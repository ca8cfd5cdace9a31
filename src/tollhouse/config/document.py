"""YAML text -> plain values, by the YAML 1.2 core schema, and where each of them stands.

Theory of operation: libyaml's events are folded into values directly, without a tree of nodes in between, because
that costs a quarter of the time. Positions are needed only when something is wrong, so they are not kept: `places`
folds the same events a second time, into lines and columns, when it is first asked.

Rules: `yes`, `on`, `010` and `12:30` are what they look like (text, text, ten, text); a key is text, whatever it
looks like, and may stand once; aliases and merge keys are followed, but what they unfold to is bounded.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    StreamEndEvent,
)

from tollhouse.config.places import Path, render
from tollhouse.config.secrets import LIMIT
from tollhouse.config.suggest import did_you_mean
from tollhouse.core.errors import Problem
from tollhouse.wire.yaml_core import NotKept, events, plain

__all__ = ["MAX_DEPTH", "MAX_NODES", "MAX_SIZE", "Document", "read"]

MAX_SIZE: Final = LIMIT  # characters of one document
MAX_NODES: Final = 2_000_000  # values, with every alias unfolded
MAX_DEPTH: Final = 64

_STR = "tag:yaml.org,2002:str"
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _Stop(Exception):
    """Reading cannot go on; why is among the problems."""


class _Reader:
    """One fold of the events. `path` is where it stands; `nodes` counts values with aliases unfolded."""

    __slots__ = ("anchors", "empty", "file", "get", "nodes", "path", "problems", "substitute", "unresolved")

    def __init__(self, text: str, file: str, substitute: Callable[[str, Callable[[str], None]], str] | None) -> None:
        self.get = events(text)
        self.file = file
        self.substitute = substitute
        self.path: list[str | int] = []
        self.nodes = 0
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.problems: list[Problem] = []
        self.unresolved: list[Path] = []
        self.empty: list[Path] = []

    def say(self, event: Any, message: str, path: Path | None = None) -> None:
        mark = event.start_mark
        where = render(tuple(self.path) if path is None else path)
        self.problems.append(Problem(message, file=self.file, line=mark.line + 1, column=mark.column + 1, path=where))

    def document(self) -> Any:
        get = self.get
        event = get()
        while not isinstance(event, DocumentStartEvent):
            if isinstance(event, StreamEndEvent):
                self.problems.append(Problem("the file is empty", file=self.file, line=1, column=1))
                raise _Stop
            event = get()
        first = get()
        value = self.node(first)
        get()
        another = get()
        if isinstance(another, DocumentStartEvent):
            self.say(another, "a second document begins here; a configuration is one document, without `---` in it", ())
            raise _Stop
        if not isinstance(value, dict):
            empty = value is None
            self.say(
                first, "the file is empty" if empty else f"the configuration should be a mapping, not {_kind(value)}"
            )
            raise _Stop
        return value

    def node(self, event: Any) -> Any:
        kind = event.__class__
        if kind is ScalarEvent:
            return self.scalar(event)
        if kind is AliasEvent:
            return self.alias(event)
        if len(self.path) > MAX_DEPTH:
            self.say(event, f"nested deeper than {MAX_DEPTH} levels", tuple(self.path[:4]))
            raise _Stop
        if event.tag is not None and event.tag not in ("!", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            self.say(event, f"the tag `{_tag(event.tag)}` means nothing here; leave it out")
        self.count(event, 1)
        before = self.nodes
        value = self.mapping() if kind is MappingStartEvent else self.sequence()
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, self.nodes - before + 1)
        return value

    def count(self, event: Any, nodes: int) -> None:
        self.nodes += nodes
        if self.nodes > MAX_NODES:
            self.say(event, f"more than {MAX_NODES:,} values once aliases are unfolded")
            raise _Stop

    def scalar(self, event: Any) -> Any:
        self.nodes += 1
        value: Any = event.value
        if event.tag is None:
            # implicit[0] is true of plain scalars only; what begins with a letter other than of a constant is text
            if event.implicit[0] and (not value or value[0] in "-+.0123456789~nNtTfF"):
                value = self.plain(event, value)
                if value is None:
                    self.empty.append(tuple(self.path))
        elif event.tag not in (_STR, "!"):
            self.say(event, f"the tag `{_tag(event.tag)}` means nothing here; leave it out")
        if value.__class__ is str and "${" in value and self.substitute is not None:
            value = self.secret(event, value)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 1)
        return value

    def plain(self, event: Any, text: str) -> Any:
        try:
            return plain(text)
        except NotKept as problem:  # most often an identifier that lost its quotes
            self.say(event, f"{problem}; put it in quotes if it is text")
            return text

    def secret(self, event: Any, text: str) -> str:
        problems = len(self.problems)
        assert self.substitute is not None
        text = self.substitute(text, lambda message: self.say(event, message))
        if len(self.problems) > problems:
            self.unresolved.append(tuple(self.path))
        return text

    def alias(self, event: Any) -> Any:
        found = self.anchors.get(event.anchor)
        if found is None:
            known = did_you_mean(event.anchor, self.anchors)
            self.say(event, f"no `&{event.anchor}` stands above this `*{event.anchor}`{known}")
            return None
        self.count(event, found[1])
        return found[0]

    def sequence(self) -> list[Any]:
        get, node, path = self.get, self.node, self.path
        values: list[Any] = []
        path.append(0)
        while (event := get()).__class__ is not SequenceEndEvent:
            path[-1] = len(values)
            values.append(node(event))
        path.pop()
        return values

    def mapping(self) -> dict[str, Any]:
        get, node, path = self.get, self.node, self.path
        values: dict[str, Any] = {}
        merged: list[dict[str, Any]] = []
        path.append("")
        while (event := get()).__class__ is not MappingEndEvent:
            if event.__class__ is not ScalarEvent:
                self.strange_key(event)
                continue
            key: str = event.value
            if key == "<<" and event.implicit[0]:
                path[-1] = key
                self.merge(event, node(get()), merged)
                continue
            path[-1] = key
            if key in values:
                self.say(event, f"the key `{key}` stands twice; keep one")
            value = node(get())
            if key not in values:
                values[key] = value
        path.pop()
        for more in merged:
            for key, value in more.items():
                values.setdefault(key, value)
        return values

    def strange_key(self, event: Any) -> None:
        """A key that is a list, a mapping or an alias: most often a value that lacks its quotes."""
        self.path[-1] = "?"
        self.say(event, "a key must be text; a value that begins with { or [ or * needs quotes", tuple(self.path[:-1]))
        self.node(event)
        self.node(self.get())

    def merge(self, event: Any, value: Any, merged: list[dict[str, Any]]) -> None:
        sources = value if isinstance(value, list) else [value]
        if all(isinstance(source, dict) for source in sources):
            merged.extend(sources)
        else:
            self.say(event, "`<<` merges a mapping or a list of mappings, like `<<: *defaults`", tuple(self.path[:-1]))


@dataclass(frozen=True, slots=True)
class Document:
    """What a text says. values: None when there is nothing that could be looked at further; those reached through
    aliases are shared, so do not change them. unresolved: where references could not be resolved. empty: where
    nothing (or null) stands.
    """

    values: dict[str, Any] | None
    problems: list[Problem]
    unresolved: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)


def read(text: str, file: str, substitute: Callable[[str, Callable[[str], None]], str] | None = None) -> Document:
    """The one document in `text`. substitute: replaces the references in a value, and reports those it cannot."""
    bad = _UNPRINTABLE.search(text) if not text.isprintable() else None
    if len(text) > MAX_SIZE:
        return Document(None, [Problem(f"larger than {MAX_SIZE >> 20} MiB", file=file, line=1, column=1)])
    if bad is not None and not (bad.start() == 0 and bad[0] == "\ufeff"):
        before = text.count("\n", 0, bad.start())
        column = bad.start() - (text.rfind("\n", 0, bad.start()) + 1)
        message = f"the character U+{ord(bad[0]):04X} is not allowed in YAML"
        return Document(None, [Problem(message, file=file, line=before + 1, column=column + 1)])
    reader = _Reader(text, file, substitute)
    try:
        return Document(reader.document(), reader.problems, reader.unresolved, reader.empty)
    except _Stop:
        pass
    except yaml.YAMLError as error:
        reader.problems.append(_syntax(error, file))
    return Document(None, reader.problems)


_HINTS: Final = (
    (
        "mapping values are not allowed",
        "a `:` where none can be; quote text with `: ` in it, and look at the indentation",
    ),
    ("cannot start any token", "indentation is spaces, never tabs; quote text that begins with @, ` or %"),
    ("did not find expected key", "look at the indentation; the keys of one mapping begin in the same column"),
    ("could not find expected ':'", "a key needs a `:` behind it"),
    ("did not find expected '-' indicator", "look at the indentation; the items of one list begin in the same column"),
)


def _syntax(error: yaml.YAMLError, file: str) -> Problem:
    """libyaml's complaint, with its place, and what usually causes it. Never the line itself: it may hold a secret."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or "unreadable"
    context, begun = getattr(error, "context", None), getattr(error, "context_mark", None)
    where = f" {context} that begins in line {begun.line + 1}" if context and begun is not None else ""
    hint = next((f" ({hint})" for words, hint in _HINTS if words in problem), "")
    message = f"not valid YAML: {problem}{where}{hint}"
    if mark is None:
        return Problem(message, file=file, line=1, column=1)
    return Problem(message, file=file, line=mark.line + 1, column=mark.column + 1)


def _tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else "text" if isinstance(value, str) else "a single value"
