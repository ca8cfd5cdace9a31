"""Reading JSON objects field by field: what is taken is gone, and what is left in the end is `extra`.

Rule: a wrong type is said with the field's full name, once, in the words of JSON; null is as good as absent.
"""

import re
from binascii import a2b_base64
from collections.abc import Callable, Container, Mapping
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.codec import Lost, invalid
from tollhouse.wire.llm.model import Cache, Extra, Opaque, OpaqueTool
from tollhouse.wire.llm.reader import is_text

__all__ = [
    "MOST",
    "Fields",
    "cache_control",
    "encoded",
    "file_name",
    "is_base64",
    "is_utf8",
    "legible",
    "one_text",
    "own_value",
    "put_back",
    "read_cache",
    "restore",
    "text_in",
    "told",
    "written",
]

Raw = msgspec.Raw
T = TypeVar("T")

_ESCAPE = re.compile(r"\\(?:u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})|u([0-9a-f]{4})|.)", re.IGNORECASE)
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NULL = b"null"

MOST = 20_000
"""Entries of all lists of objects in a request or answer. Reading one costs some microseconds, and the loop."""

_object = msgspec.json.Decoder(dict[str, Raw]).decode
_objects = msgspec.json.Decoder(list[dict[str, Raw]]).decode
_list = msgspec.json.Decoder(list[Raw]).decode
_text = msgspec.json.Decoder(str).decode
_texts = msgspec.json.Decoder(list[str]).decode
_integer = msgspec.json.Decoder(int).decode
_number = msgspec.json.Decoder(float).decode
_flag = msgspec.json.Decoder(bool).decode
_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def written(value: Any) -> Raw:
    """A value as JSON."""
    return Raw(_encode(value))


def encoded(body: Mapping[str, Any]) -> dict[str, Raw]:
    """Each field as JSON."""
    return {name: value if isinstance(value, Raw) else Raw(_encode(value)) for name, value in body.items()}


def legible(value: Raw) -> str:
    """JSON text for a model to read: its letters as they are, where others write `\\u00e9`; all else as it came."""
    text = bytes(value).decode("utf-8", "replace")
    return _ESCAPE.sub(_letter, text) if "\\u" in text else text


def _letter(escape: "re.Match[str]") -> str:
    high, low, one = escape.groups()
    if high is not None:
        return chr(0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00)
    code = 0 if one is None else int(one, 16)
    return escape[0] if code < 0xA0 or 0xD800 <= code < 0xE000 else chr(code)


def put_back(form: dict[str, Any], extra: Extra | None, own: bool, lost: Lost, where: str) -> None:
    """What rode along goes back into `form` where the API is its own; else it is lost. where: with a dot at its end."""
    if not extra:
        return
    if not own:
        lost.fields(extra, where)
        return
    restore(form, extra)


def own_value(of: Opaque | OpaqueTool, dialect: str, where: str, lost: Lost) -> list[Raw]:
    """What only the API `dialect` knows, as it stands there; nothing, and lost, of what is another's."""
    if of.dialect == dialect:
        return [of.value]
    lost.add(f"{where}: {of.kind}")
    return []


def restore(form: dict[str, Any], extra: Extra) -> None:
    """What rode along goes back: an object into the object of that name, anything else in its place."""
    for name, value in extra.items():
        have = form.get(name)
        if isinstance(value, dict):
            inner = have if isinstance(have, dict) else {}
            restore(inner, value)
            form[name] = inner
        elif isinstance(have, dict) and bytes(value)[:1] == b"{":
            try:
                have.update(_object(value))
            except UNREADABLE:
                raise invalid(name, "is nested too deeply") from None
        else:
            form[name] = value


def told(extra: Extra | None) -> Extra | None:
    """Without what is null."""
    found = {name: value for name, value in (extra or {}).items() if type(value) is dict or bytes(value) != b"null"}
    return found or None


def is_base64(text: str) -> bool:
    """Whether it is base64 (RFC 4648, section 4) of something, with its padding."""
    if not text or len(text) % 4 or not text.isascii():
        return False
    padding = text.find("=", -2)
    end = len(text) if padding < 0 else padding
    return not text[:end].encode().translate(None, _BASE64) and text[end:] in ("", "=", "==")


def is_utf8(raw: Raw) -> bool:
    """JSON that nobody has read may be anything."""
    value = bytes(raw)
    return value.isascii() or is_text(value)


def text_in(data: str) -> str | None:
    """The text that base64 holds; None for what is none in UTF-8."""
    try:
        return a2b_base64(data).decode()
    except ValueError:
        return None


class _Room:
    """How many more entries its lists may have."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MOST


class Fields:
    """An object that is being read. where: its place with a dot at the end ("messages[0]."), "" for the top. wrong:
    makes the Failure for (field, problem); a request's is 400, an answer's 502. room: shared by all that is read of one
    request or answer."""

    __slots__ = ("_fields", "_raw", "_room", "_whole", "_wrong", "where")

    def __init__(
        self,
        fields: dict[str, Raw],
        where: str = "",
        wrong: Callable[[str, str], Failure] = invalid,
        room: "_Room | None" = None,
    ) -> None:
        self._room = room
        self._whole = fields
        self._fields: dict[str, Any] = fields.copy()
        self.where = where
        self._wrong = wrong
        self._raw: Raw | None = None

    @classmethod
    def of(
        cls,
        raw: Raw | bytes,
        where: str,
        wrong: Callable[[str, str], Failure] = invalid,
        room: "_Room | None" = None,
    ) -> "Fields":
        """The fields of a JSON object."""
        try:
            fields = _object(raw)
        except UNREADABLE:
            raise wrong(where.rstrip("."), "must be an object") from None
        found = cls(fields, where, wrong, room)
        found._raw = Raw(raw)
        return found

    def fail(self, name: str, problem: str) -> NoReturn:
        raise self._wrong(self.where + name, problem)

    def _misfit(self, name: str, raw: Raw, what: str) -> None:
        """Null is as good as absent; any other type is refused."""
        if bytes(raw) != _NULL:
            self.fail(name, f"must be {what}")

    # Most of what may be there is not: that costs one call of Python and no more.

    def text(self, name: str) -> str | None:
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            return _text(raw)
        except UNREADABLE:
            self._misfit(name, raw, "a string")
            return None

    def need_text(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            self.fail(name, "is missing: it must be a string")
        return value

    def some_text(self, name: str) -> str:
        """Must be there, and not empty."""
        value = self.need_text(name)
        if not value:
            self.fail(name, "must not be empty")
        return value

    def texts(self, name: str) -> list[str] | None:
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            return _texts(raw)
        except UNREADABLE:
            self._misfit(name, raw, "a list of strings")
            return None

    def integer(self, name: str) -> int | None:
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            return _integer(raw)
        except UNREADABLE:
            self._misfit(name, raw, "an integer")
            return None

    def number(self, name: str) -> float | None:
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            return _number(raw)
        except UNREADABLE:
            self._misfit(name, raw, "a number")
            return None

    def flag(self, name: str) -> bool | None:
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            return _flag(raw)
        except UNREADABLE:
            self._misfit(name, raw, "true or false")
            return None

    def base64(self, name: str) -> str:
        """Must be there, and base64."""
        value = self.need_text(name)
        if not is_base64(value):
            self.fail(name, "must be base64 (RFC 4648, section 4)")
        return value

    def any(self, name: str) -> Any:
        """The value as Python has it."""
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            return _any(raw)
        except UNREADABLE:
            self._misfit(name, raw, "JSON")
            return None

    def drop(self, *names: str) -> None:
        """Of what nobody asks."""
        for name in names:
            self._fields.pop(name, None)

    def raw(self, name: str) -> Raw | None:
        """Any value but null, unparsed."""
        raw = self._fields.pop(name, None)
        if raw is None or bytes(raw) == _NULL:
            return None
        if not is_utf8(raw):
            self.fail(name, "must be UTF-8")
        return cast("Raw", raw)

    def object(self, name: str) -> Raw | None:
        """An object, unparsed."""
        raw = self.raw(name)
        if raw is not None and bytes(raw)[:1] != b"{":
            self.fail(name, "must be an object")
        return raw

    def child(self, name: str) -> "Fields | None":
        """An object below."""
        raw = self._fields.pop(name, None)
        if raw is None or bytes(raw) == _NULL:
            return None
        return Fields.of(raw, f"{self.where}{name}.", self._wrong, self._room)

    def peek(self, name: str) -> "Fields | None":
        """An object below, which stays."""
        raw = self._fields.get(name)
        found = self.child(name)
        if found is not None:
            self._fields[name] = raw
        return found

    def peek_text(self, name: str) -> str | None:
        """A string, which stays."""
        raw = self._fields.get(name)
        value = self.text(name)
        if value is not None:
            self._fields[name] = raw
        return value

    def need_child(self, name: str, what: str) -> "Fields":
        """An object below that must be there. what: what it must be ("an object with a url")."""
        found = self.child(name)
        if found is None:
            self.fail(name, f"is missing: it must be {what}")
        return found

    def leave(self, name: str, child: "Fields") -> None:
        """What nobody has taken of an object below rides along, in an object of that name."""
        rest = child.rest()
        if rest:
            self._fields[name] = rest

    def children(self, name: str) -> "list[Fields] | None":
        """A list of objects."""
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            value = _objects(raw)
        except UNREADABLE:
            self._misfit(name, raw, "a list of objects")
            return None
        room = self.bounded(name, len(value))
        return [Fields(fields, f"{self.where}{name}[{n}].", self._wrong, room) for n, fields in enumerate(value)]

    def bounded(self, name: str, entries: int) -> "_Room":
        """Refuses what would keep everybody waiting while it is read."""
        room = self._room
        if room is None:
            room = self._room = _Room()
        room.left -= entries
        if room.left < 0:
            self.fail(name, f"has too many entries: messages, their parts and tools may be {MOST:,} in all")
        return room

    def list(self, name: str) -> "list[Raw] | None":
        raw = self._fields.pop(name, None)
        if raw is None:
            return None
        try:
            return _list(raw)
        except UNREADABLE:
            self._misfit(name, raw, "a list")
            return None

    def present(self, known: Container[str]) -> tuple[str, ...]:
        """Those of the fields that are known by name, in their order; without those that are taken."""
        return tuple([name for name in self._fields if name in known])

    def taken(self, name: str, decode: "Callable[[Raw], T]") -> "T | None":
        """What `decode` makes of the field; None, and the field stays, for what it cannot read."""
        raw = self._fields.get(name)
        if raw is None:
            return None
        try:
            value = decode(raw)
        except UNREADABLE:
            return None
        del self._fields[name]
        return value

    def is_text(self, name: str) -> bool:
        return self._begins(name, b'"')

    def is_object(self, name: str) -> bool:
        return self._begins(name, b"{")

    def is_list(self, name: str) -> bool:
        return self._begins(name, b"[")

    def _begins(self, name: str, first: bytes) -> bool:
        raw = self._fields.get(name)
        return raw is not None and bytes(raw)[:1] == first

    def has(self, name: str) -> bool:
        raw = self._fields.get(name)
        return raw is not None and bytes(raw) != _NULL

    def renamed(self, name: Callable[[str], str]) -> "Fields":
        """The same with other names, for an API that takes several spellings."""
        return Fields({name(key): value for key, value in self._fields.items()}, self.where, self._wrong, self._room)

    def untouched(self) -> Raw:
        """The object as it came, whatever was taken."""
        return self._raw if self._raw is not None else written(self._whole)

    def rest(self) -> Extra | None:
        """What nobody has taken and that says something, to ride along; None for nothing."""
        if not self._fields:
            return None
        return {name: v for name, v in self._fields.items() if isinstance(v, dict) or bytes(v) != _NULL} or None

    def whole(self, **taken: Any) -> Raw:
        """The object again, from what is left and what was taken."""
        return Raw(_encode({**taken, **self._fields}))


# ---- what several APIs say the same way

_ENDINGS = {
    "": ".pdf",
    "application/pdf": ".pdf",
    "application/json": ".json",
    "application/msword": ".doc",
    "application/vnd.ms-excel": ".xls",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "text/csv": ".csv",
    "text/html": ".html",
    "text/markdown": ".md",
    "text/plain": ".txt",
}


def file_name(title: str | None, kind: str) -> str:
    """A document's name with the ending that tells its kind, where an API goes by that. kind: its media type."""
    name = title or "file"
    ending = _ENDINGS.get(kind, "")
    return name if name.lower().endswith(ending) or "." in name[1:] else name + ending


def read_cache(f: Fields) -> Cache | None:
    """`cache_control`."""
    control = f.child("cache_control")
    if control is None:
        return None
    control.text("type")
    cache = Cache(control.text("ttl") or "")
    f.leave("cache_control", control)
    return cache


def cache_control(ttl: str) -> dict[str, str]:
    """The same, written. ttl: "" for the default."""
    return {"type": "ephemeral", "ttl": ttl} if ttl else {"type": "ephemeral"}


def one_text(content: list[Any]) -> Any:
    """Content for a message: a text that is alone is a string, which servers that know no parts understand, too."""
    if len(content) == 1 and isinstance(content[0], dict) and content[0].keys() == {"type", "text"}:
        return content[0]["text"]
    return content
