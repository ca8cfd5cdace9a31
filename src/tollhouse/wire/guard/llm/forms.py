"""Forms: where texts stand in a JSON value, how they are found there, and how it is written again with other texts.

Rule: every string of a value is looked at, unless the form says that it holds none of anybody's words (`SKIP`) or
nothing that could be read (`Opaque`). A member that the form does not know is looked at as a whole, as JSON. Only the
way to what is changed is encoded again; all else keeps its bytes.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple

import msgspec

from tollhouse.core.depth import UNREADABLE

__all__ = [
    "GOING",
    "OTHER",
    "SKIP",
    "Address",
    "Form",
    "Going",
    "Json",
    "JsonText",
    "Link",
    "Look",
    "New",
    "Opaque",
    "Other",
    "Path",
    "Spot",
    "Text",
    "first_byte",
    "is_json",
    "json_bytes",
    "string",
    "written",
]

Raw = msgspec.Raw
Path = tuple[Hashable, ...]
"""From the outermost value inwards: names of members and numbers of items."""

_encode = msgspec.json.Encoder().encode
_any = msgspec.json.Decoder().decode
_string = msgspec.json.Decoder(str).decode
_QUOTE, _BRACE, _BRACKET = 0x22, 0x7B, 0x5B
_SCALARS = b"-0123456789tfn"
_EMPTY = (b"{}", b"[]", b'""')


class Spot(NamedTuple):
    """A text as a form finds it. at: the way to it. name: of the text that goes on over several events, None for one
    that is whole."""

    at: Path
    name: Path | None
    kind: str
    role: str
    text: str
    json: bool


class Look:
    """What is found by looking at one value. spots: in the order in which they stand there. opaque: what cannot be
    looked at, by kind. again: ways to objects that have a name twice. signed: ways to texts that a signature vouches
    for. kind, role, name: of what is looked at now. pieces: texts with a name are parts of one that goes on."""

    __slots__ = ("again", "kind", "name", "opaque", "pieces", "role", "signed", "spots")

    def __init__(self, *, pieces: bool = False) -> None:
        self.spots: list[Spot] = []
        self.opaque: dict[str, int] = {}
        self.again: list[Path] = []
        self.signed: list[Path] = []
        self.kind = "text"
        self.role = ""
        self.name: Path = ()
        self.pieces = pieces

    def hidden(self, kind: str) -> None:
        self.opaque[kind] = self.opaque.get(kind, 0) + 1


class New:
    """Texts to be written, by the way to them. touched: all that is to be encoded again."""

    __slots__ = ("texts", "touched")

    def __init__(self, texts: Mapping[Path, str], again: Iterable[Path] = ()) -> None:
        self.texts = texts
        self.touched = {at[:end] for at in (*texts, *again) for end in range(len(at) + 1)}


class Form:
    """What a JSON value is to those who look for texts. Stateless."""

    __slots__ = ()

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        """Finds the texts. Raises ValueError for what cannot be read at all."""
        raise NotImplementedError

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        """The value with new texts, where `at` is in `new.touched`."""
        raise NotImplementedError


def string(raw: Raw) -> str | None:
    """A JSON string's text; None for what is no string."""
    try:
        return _string(raw)
    except msgspec.ValidationError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValueError("a string is not in JSON's form") from None


def is_json(source: bytes) -> bool:
    """Whether it is JSON, of any form."""
    try:
        _any(source)
    except UNREADABLE:
        return False
    return True


def written(text: str) -> Raw:
    """A text as a JSON string."""
    return Raw(_encode(text))


class Other(Form):
    """What is not known: a string is a text, an object or list is JSON; numbers and the like say nothing."""

    __slots__ = ("_kind",)

    def __init__(self, kind: str = "other") -> None:
        self._kind = kind

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        begin = first_byte(raw)
        if begin == _QUOTE:
            text = string(raw)
            if text:
                look.spots.append(Spot(at, None, self._kind, look.role, text, False))
        elif begin in (_BRACE, _BRACKET):
            whole = bytes(raw)
            if not at and not is_json(whole):  # what stands in JSON is JSON
                raise ValueError("a value is not JSON")
            if whole not in _EMPTY:
                look.spots.append(Spot(at, None, self._kind, look.role, _decoded(whole), True))
        elif begin not in _SCALARS:
            raise ValueError("a value is not JSON")

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        return written(new.texts[at]) if first_byte(raw) == _QUOTE else Raw(json_bytes(new.texts[at]))


class Going(Other):
    """The same in what says pieces: a string may be one of a text that goes on under its name. Whatever else has texts
    is looked at too, but nobody can tell how its pieces would be joined: it is unknown."""

    __slots__ = ()

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        count = len(look.spots)
        super().look(raw, at, look)
        if not look.pieces or len(look.spots) == count:
            return
        spot = look.spots[-1]
        if spot.json:
            look.hidden("unknown")
        else:
            look.spots[-1] = spot._replace(name=(*look.name, at[-1], spot.kind))


OTHER = Other()
GOING = Going()
SKIP = None
"""A member without words: ids, numbers, names of kinds."""


class Text(Form):
    """A string. kind: "" for that of what it stands in. label: it goes on in further events, and this is its name among
    its neighbours."""

    __slots__ = ("_kind", "_label")

    def __init__(self, kind: str = "", *, label: str = "") -> None:
        self._kind = kind
        self._label = label

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        text = string(raw)
        if text:
            kind = self._kind or look.kind
            name = (*look.name, self._label, kind) if self._label else None
            look.spots.append(Spot(at, name, kind, look.role, text, False))
        elif text is None:
            OTHER.look(raw, at, look)

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        return written(new.texts[at]) if first_byte(raw) == _QUOTE else OTHER.put(raw, at, new)


class Address(Text):
    """A URL; a thing that is in it (`data:`) is none that is looked at."""

    __slots__ = ()

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        text = string(raw)
        if text is None or text[:5].lower() != "data:":
            super().look(raw, at, look)


class Link(Address):
    """The address of something that cannot be looked at."""

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        if string(raw):
            look.hidden(self._what)
        super().look(raw, at, look)


class JsonText(Text):
    """A string that holds JSON. One that is whole and is none is a plain text."""

    __slots__ = ()

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        count = len(look.spots)
        super().look(raw, at, look)
        if len(look.spots) > count and (look.pieces or is_json(look.spots[-1].text.encode())):
            look.spots[-1] = look.spots[-1]._replace(json=True)


class Json(Form):
    """Any value: it is looked at as JSON, names of members and numbers too."""

    __slots__ = ("_kind",)

    def __init__(self, kind: str = "") -> None:
        self._kind = kind

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        whole = bytes(raw)
        if whole[:1] in (b"n", b"t", b"f") or whole in _EMPTY:
            return
        look.spots.append(Spot(at, None, self._kind or look.kind, look.role, _decoded(whole), True))

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        return Raw(json_bytes(new.texts[at]))


class Opaque(Form):
    """What cannot be looked at. kind: "image", "audio", "video", "file" or "encrypted"."""

    __slots__ = ("_kind",)

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        whole = bytes(raw)
        if whole != b"null" and whole not in _EMPTY:
            look.hidden(self._kind)

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        return raw


def first_byte(raw: Raw) -> int:
    """Its first byte; 0 where there is none."""
    view = memoryview(raw)
    return view[0] if view else 0


def _decoded(whole: bytes) -> str:
    try:
        return whole.decode()
    except UnicodeDecodeError:
        raise ValueError("a value is not UTF-8") from None


def json_bytes(text: str) -> bytes:
    """JSON as it is sent."""
    return text.encode(errors="replace")
