"""JSON Pointer (RFC 6901) into fields whose values are not parsed: what is not on the way keeps its bytes.

Rule: two words of a pointer mean more than a member's name, and only where they meet a list: `*` is each of its
elements, `-` the place behind the last one. A name leads to the member of that very name; what is taken away goes also
where a name differs only by case, since some servers read those.
"""

import re
from collections.abc import Callable

import msgspec

from tollhouse.core.depth import UNREADABLE

__all__ = ["Misplaced", "Pointer", "below", "steps_of"]

Raw = msgspec.Raw

_LONGEST = 1000
_BAD_ESCAPE = re.compile(r"~(?![01])")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_EACH, _NEXT = "*", "-"
_NULL = b"null"

_object = msgspec.json.Decoder(dict[str, Raw]).decode
_list = msgspec.json.Decoder(list[Raw]).decode
_encode = msgspec.json.Encoder().encode


def below(pointer: str, *steps: str | int) -> str:
    """The pointer of a member below `pointer`."""
    return pointer + "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


def steps_of(pointer: str) -> tuple[str, ...]:
    """The words of a pointer, unescaped; none for the whole."""
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:])


class Misplaced(ValueError):
    """A value has no place in these fields; the text begins with where, in the words of the caller's API."""


class Pointer:
    """A place below a top-level field: `/metadata/team`, `/tools/*/function/strict`, `/stop/-`.

    Raises ValueError for what is none. steps: its words, unescaped; the first names the field.
    """

    __slots__ = ("steps", "text")

    def __init__(self, text: str) -> None:
        if not text.startswith("/") or len(text) > _LONGEST:
            raise ValueError("a JSON Pointer begins with a slash, like /metadata/team (RFC 6901)")
        if _BAD_ESCAPE.search(text):
            raise ValueError("in a JSON Pointer `~` stands before 0 or 1: ~0 is a tilde, ~1 a slash (RFC 6901)")
        self.text = text
        self.steps = steps_of(text)

    def __repr__(self) -> str:
        return f"Pointer({self.text!r})"

    @property
    def is_next(self) -> bool:
        """Whether it speaks of the place behind a list's last element, where nothing is yet."""
        return _NEXT in self.steps

    def remove(self, fields: dict[str, Raw]) -> None:
        """Take away what is there. What cannot be read stays: whoever gets it will say so."""
        first, rest = self.steps[0], self.steps[1:]
        for name in _alike(fields, first):
            if rest:
                fields[name] = _removed(fields[name], rest)
            else:
                del fields[name]

    def put(self, fields: dict[str, Raw], value: Raw) -> None:
        """Have the value there, and the objects on the way. Raises Misplaced where something else is in the way."""
        first, rest = self.steps[0], self.steps[1:]
        _clear(fields, first, rest)
        made = _put(fields.get(first), rest, value, first)
        if made is not None:
            fields[first] = made

    def fill(self, fields: dict[str, Raw], make: Callable[[], Raw]) -> None:
        """Have a value there where nothing is, or null; where the way is something else, nothing is done. make: called
        once, if at all."""
        made: list[Raw] = []

        def value() -> Raw:
            if not made:
                made.append(make())
            return made[0]

        first, rest = self.steps[0], self.steps[1:]
        filled = _filled(fields.get(first), rest, value)
        if filled is not None:
            fields[first] = filled


def _removed(value: Raw, steps: tuple[str, ...]) -> Raw:
    step, rest = steps[0], steps[1:]
    kind = _kind(value)
    try:
        if kind == b"{":
            members = _object(value)
            names = _alike(members, step)
            if not names:
                return value
            for name in names:
                if rest:
                    members[name] = _removed(members[name], rest)
                else:
                    del members[name]
            return Raw(_encode(members))
        if kind == b"[":
            items = _list(value)
            chosen = frozenset(_chosen(step, len(items)))
            if not chosen:
                return value
            if not rest:
                return Raw(_encode([item for n, item in enumerate(items) if n not in chosen]))
            return Raw(_encode([_removed(item, rest) if n in chosen else item for n, item in enumerate(items)]))
    except UNREADABLE:
        pass
    return value


def _put(value: Raw | None, steps: tuple[str, ...], new: Raw, at: str) -> Raw | None:
    """What stands there afterwards. at: where that is, for messages."""
    if not steps:
        return new
    step, rest = steps[0], steps[1:]
    if _is_absent(value):
        if step == _EACH:
            return value  # of nothing there is no element
        made = _put(None, rest, new, _shown_below(at, step))
        if made is None:
            return value
        return Raw(_encode([made] if step == _NEXT else {step: made}))
    assert value is not None
    kind = _kind(value)
    try:
        if kind == b"{":
            members = _object(value)
            _clear(members, step, rest)
            made = _put(members.get(step), rest, new, _shown_below(at, step))
            if made is not None:
                members[step] = made
            return Raw(_encode(members))
        if kind == b"[":
            items = _list(value)
            if step == _NEXT:
                made = _put(None, rest, new, f"{at}[{len(items)}]")
                return Raw(_encode([*items, *([] if made is None else [made])]))
            chosen = _chosen(step, len(items))
            if not chosen and step != _EACH:
                raise Misplaced(f"{at}: must be {'a list that long' if _INDEX.fullmatch(step) else 'an object'}")
            for n in chosen:
                items[n] = _put(items[n], rest, new, f"{at}[{n}]") or items[n]
            return Raw(_encode(items))
    except UNREADABLE:
        raise Misplaced(f"{at}: cannot be read") from None
    raise Misplaced(f"{at}: must be {'a list' if step in (_EACH, _NEXT) else 'an object'}")


def _filled(value: Raw | None, steps: tuple[str, ...], make: Callable[[], Raw]) -> Raw | None:
    if _is_absent(value):
        if not steps:
            return make()
        if _EACH in steps:
            return value
        made = make()
        for step in reversed(steps):
            made = Raw(_encode({step: made}))
        return made
    if not steps:
        return value
    assert value is not None
    step, rest = steps[0], steps[1:]
    kind = _kind(value)
    try:
        if kind == b"{":
            members = _object(value)
            filled = _filled(members.get(step), rest, make)
            if filled is None or filled is members.get(step):
                return value
            members[step] = filled
            return Raw(_encode(members))
        if kind == b"[":
            items: list[Raw | None] = [*_list(value)]
            for n in _chosen(step, len(items)):
                items[n] = _filled(items[n], rest, make)
            return Raw(_encode(items))
    except UNREADABLE:
        pass
    return value


def _clear(members: dict[str, Raw], step: str, rest: tuple[str, ...]) -> None:
    """Take away what is meant under names that differ from `step` by case."""
    for name in _alike(members, step):
        if name == step:
            continue
        if rest:
            members[name] = _removed(members[name], rest)
        else:
            del members[name]


def _alike(members: dict[str, Raw], step: str) -> list[str]:
    folded = step.casefold()
    return [name for name in members if name.casefold() == folded]


def _chosen(step: str, length: int) -> range:
    """Which elements of a list a step means."""
    if step == _EACH:
        return range(length)
    if _INDEX.fullmatch(step) and int(step) < length:
        return range(int(step), int(step) + 1)
    return range(0)


def _shown_below(at: str, step: str) -> str:
    return f"{at}[]" if step == _NEXT else f"{at}.{step}"


def _kind(value: Raw) -> bytes:
    return bytes(value)[:1]


def _is_absent(value: Raw | None) -> bool:
    return value is None or bytes(value) == _NULL
