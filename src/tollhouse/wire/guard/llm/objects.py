"""Forms of objects and lists: which of their members is of which form.

Rule: a member that the form does not know is looked at as `rest`, so that what an API adds is seen before we know it;
and its name too, if it is not one as APIs have them.

An object may have two members of one name. Which of them counts is the reader's choice, so the last is looked at, and
only it is written again (`wire.members`).
"""

import re
from collections.abc import Hashable, Mapping

import msgspec

from tollhouse.core.depth import UNREADABLE
from tollhouse.wire.guard.llm.forms import OTHER, Form, Look, New, Path, Spot, first_byte, string
from tollhouse.wire.guard.llm.tokens import Tokens

__all__ = ["Choice", "Each", "Object", "Opened", "Tagged"]

Raw = msgspec.Raw

_encode = msgspec.json.Encoder().encode
_compact = msgspec.json.format
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_items = msgspec.json.Decoder(list[Raw]).decode
_number = msgspec.json.Decoder(int).decode
_QUOTE, _BRACKET = 0x22, 0x5B
_USUAL = re.compile("[A-Za-z_$][A-Za-z_.$/-]{0,63}[0-9]{0,3}")  # names of members
_NO_SIGNATURE = Raw(b"null")
_NO_SIGNATURES = (b"null", b'""')


class Opened(Form):
    """The form of an object. The methods for one that has been opened are given all of its members."""

    __slots__ = ()

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        """`look`"""
        raise NotImplementedError

    def put_fields(self, fields: dict[str, Raw], at: Path, new: New) -> dict[str, Raw]:
        """`put`: all of the members again."""
        raise NotImplementedError


class Object(Opened):
    """An object with members of known forms; what is not among them is looked at as `rest`.

    kind: of texts within that name none. opaque: what the object cannot show, by kind ("" for nothing). by: a member
    that tells it from its neighbours over several events. stale: members that say again what stands in others, and what
    takes their place when any of those changes (None: nothing). signature: a member that vouches for the texts.
    """

    __slots__ = ("_by", "_kind", "_last", "_members", "_opaque", "_rest", "_signature", "_stale")

    def __init__(
        self,
        members: Mapping[str, Form | None],
        *,
        kind: str = "",
        opaque: str = "",
        by: str = "",
        stale: Mapping[str, bytes | None] | None = None,
        rest: Form | None = OTHER,
        signature: str = "",
    ) -> None:
        self._members = members
        self._last = [name for name, form in members.items() if isinstance(form, Tokens)]  # what is about the others
        self._kind = kind
        self._opaque = opaque
        self._by = by
        self._stale = stale
        self._rest = rest
        self._signature = signature

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        fields = _object(raw)
        if fields is None:
            OTHER.look(raw, at, look)
            return
        if (self._members or self._rest) and _twice(raw, fields):
            look.again.append(at)
        self.look_fields(fields, at, look)

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        kind, name = look.kind, look.name
        if self._kind:
            look.kind = self._kind
        if self._opaque:
            look.hidden(self._opaque)
        if self._by:
            look.name = (*name, _index(fields.get(self._by), at))
        members, rest, count = self._members, self._rest, len(look.spots)
        for member, value in fields.items():
            form = members.get(member, rest)
            if form is not None and not (self._last and member in self._last):
                form.look(value, (*at, member), look)
                if member not in members and not _USUAL.fullmatch(member):
                    sort = "beside" if at else "names"  # those of what is outermost stay
                    look.spots.append(Spot((*at, (member,)), None, sort, look.role, member, False))
        for member in self._last:
            form = members[member]
            if form is not None and member in fields:
                form.look(fields[member], (*at, member), look)
        if self._signature and bytes(fields.get(self._signature, _NO_SIGNATURE)) not in _NO_SIGNATURES:
            look.signed += [spot.at for spot in look.spots[count:]]
        look.kind, look.name = kind, name

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        fields = _object(raw)
        return OTHER.put(raw, at, new) if fields is None else Raw(_encode(self.put_fields(fields, at, new)))

    def put_fields(self, fields: dict[str, Raw], at: Path, new: New) -> dict[str, Raw]:
        told = dict(fields)
        for member, value in fields.items():
            here = (*at, member)
            if here in new.touched:
                told[member] = (self._members.get(member, self._rest) or OTHER).put(value, here, new)
        named = {name: new.texts[(*at, (name,))] for name in fields if (*at, (name,)) in new.texts}
        if named and at:
            told = {named.get(name, name): value for name, value in told.items()}
        if self._stale is not None and told != fields:
            self.refresh(fields, told)
        return told

    def refresh(self, before: Mapping[str, Raw], after: dict[str, Raw]) -> None:
        """Members that say again what has changed."""
        for member, instead in (self._stale or {}).items():
            if member not in after:
                continue
            if instead is None:
                del after[member]
            else:
                after[member] = Raw(instead)


class Tagged(Opened):
    """An object whose form is told by one of its members. default: for a tag that is not known; unless it is given,
    the object is looked at as JSON. missing: the tag, where there is none. role: the tag is the role of a message."""

    __slots__ = ("_default", "_forms", "_missing", "_role", "_tag")

    def __init__(
        self,
        tag: str,
        forms: Mapping[str, Opened],
        *,
        default: Opened | None = None,
        missing: str = "",
        role: bool = False,
    ) -> None:
        self._tag = tag
        self._forms = forms
        self._default = default
        self._missing = missing
        self._role = role

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        fields = _object(raw)
        if fields is None:
            OTHER.look(raw, at, look)
            return
        if self._form(fields) is None:
            OTHER.look(raw, at, look)
            return
        if _twice(raw, fields):
            look.again.append(at)
        self.look_fields(fields, at, look)

    def look_fields(self, fields: Mapping[str, Raw], at: Path, look: Look) -> None:
        form, role = self._form(fields), look.role
        if self._role:
            look.role = self._told(fields)
        if form is not None:
            form.look_fields(fields, at, look)
        else:
            OTHER.look(Raw(_encode(fields)), at, look)
        look.role = role

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        fields = _object(raw)
        if fields is None or self._form(fields) is None:
            return OTHER.put(raw, at, new)
        return Raw(_encode(self.put_fields(fields, at, new)))

    def put_fields(self, fields: dict[str, Raw], at: Path, new: New) -> dict[str, Raw]:
        form = self._form(fields)
        return form.put_fields(fields, at, new) if form is not None else _fields(new.texts[at])

    def _form(self, fields: Mapping[str, Raw]) -> Opened | None:
        return self._forms.get(self._told(fields), self._default)

    def _told(self, fields: Mapping[str, Raw]) -> str:
        raw = fields.get(self._tag)
        return (string(raw) if raw is not None else None) or self._missing


class Each(Form):
    """A list of values that have one form. numbered: what goes on in further events is known by its number here."""

    __slots__ = ("_form", "_numbered")

    def __init__(self, form: Form, *, numbered: bool = False) -> None:
        self._form = form
        self._numbered = numbered

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        items = _list(raw)
        if items is None:
            OTHER.look(raw, at, look)
            return
        form, name = self._form, look.name
        for number, item in enumerate(items):
            if self._numbered:
                look.name = (*name, number)
            form.look(item, (*at, number), look)
        look.name = name

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        items = _list(raw)
        if items is None:
            return OTHER.put(raw, at, new)
        form, touched = self._form, new.touched
        return Raw(
            _encode([form.put(item, (*at, n), new) if (*at, n) in touched else item for n, item in enumerate(items)])
        )


class Choice(Form):
    """A value of one form or the other, by its JSON type. text: a string's; many: a list's; one: an object's."""

    __slots__ = ("_many", "_one", "_text")

    def __init__(self, *, text: Form = OTHER, many: Form = OTHER, one: Form = OTHER) -> None:
        self._text = text
        self._many = many
        self._one = one

    def look(self, raw: Raw, at: Path, look: Look) -> None:
        self._form(raw).look(raw, at, look)

    def put(self, raw: Raw, at: Path, new: New) -> Raw:
        return self._form(raw).put(raw, at, new)

    def _form(self, raw: Raw) -> Form:
        first = first_byte(raw)
        return self._text if first == _QUOTE else self._many if first == _BRACKET else self._one


def _object(raw: Raw) -> dict[str, Raw] | None:
    try:
        return _fields(raw)
    except UNREADABLE:
        return None


def _list(raw: Raw) -> list[Raw] | None:
    try:
        return _items(raw)
    except UNREADABLE:
        return None


def _twice(raw: Raw, fields: Mapping[str, Raw]) -> bool:
    """Whether an object may have more members than names: also where names are written with escapes."""
    if _size(fields, sum(map(len, fields))) == len(raw):
        return False
    try:
        compact = _compact(bytes(raw), indent=-1)
        members = _fields(compact)
    except UNREADABLE:
        return True
    return _size(members, sum([len(name.encode()) for name in members])) != len(compact)


def _size(fields: Mapping[str, Raw], names: int) -> int:
    """Bytes of an object without spaces, whose names take so many: quotes, colons, commas and braces come to them."""
    return sum(map(len, fields.values())) + names + 4 * len(fields) + (1 if fields else 2)


def _index(raw: Raw | None, at: Path) -> Hashable:
    """A number that tells one item of a list from the others; where it stands, if it has none."""
    if raw is not None:
        try:
            return _number(raw)
        except UNREADABLE:
            pass
    return at[-1] if at else 0
