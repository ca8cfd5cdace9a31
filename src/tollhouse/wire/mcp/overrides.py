"""Tools under other names, descriptions and arguments than their server's, and which tools an endpoint has at all.

Rule: agents see what is exposed, and nothing says what it was; the server gets what it knows. Policies always see the
server's own names, so that a rule means the same wherever a tool is offered.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names
from tollhouse.wire.mcp.catalogue import Entry, Listing
from tollhouse.wire.mcp.headers import annotations, invalid_annotation

__all__ = ["Argument", "Override", "Overrides", "Selection"]


class Argument(msgspec.Struct, frozen=True):
    """One argument of a tool. name: as agents know it, "" for the server's. default: raw JSON of what the server gets
    when the agent says nothing, empty for nothing. hidden: agents do not know of it, and cannot set it."""

    name: str = ""
    description: str = ""
    hidden: bool = False
    default: bytes = b""


class Override(msgspec.Struct, frozen=True):
    """One tool. name: as agents know it, "" for the server's. arguments: by the server's names."""

    name: str = ""
    description: str = ""
    arguments: dict[str, Argument] = {}

    def entry(self, entry: Entry) -> Entry:
        """The tool as agents see it, under its own name. Raises Malformed when the server's schema cannot be read."""
        try:
            tool = msgspec.json.decode(entry.raw, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            raise jsonrpc.Malformed(jsonrpc.INTERNAL_ERROR, f"the tool {entry.name!r} cannot be read") from None
        name = self.name or entry.name
        tool["name"] = name
        if self.description:
            tool["description"] = self.description
        schema = tool.get("inputSchema")
        if self.arguments and isinstance(schema, dict):
            self._edit(schema)
        headers = annotations(schema) or None if entry.headers and invalid_annotation(schema) is None else None
        return Entry(
            name,
            msgspec.json.encode(tool),
            headers=headers,
            repeatable=entry.repeatable,
            old=self.entry(entry.old) if entry.old is not None else None,
            original=entry.name,
            task=entry.task,
        )

    def _edit(self, schema: dict[str, Any]) -> None:
        properties, required = schema.get("properties"), schema.get("required")
        if isinstance(properties, dict):
            edited: dict[str, Any] = {}
            for name, value in properties.items():
                own = self.arguments.get(name)
                if own is None:
                    edited[name] = value
                elif not own.hidden:
                    edited[own.name or name] = _described(value, own)
            schema["properties"] = edited
        if isinstance(required, list):
            kept = []
            for name in required:
                own = self.arguments.get(name) if isinstance(name, str) else None
                if own is None:
                    kept.append(name)
                elif not own.hidden and not own.default:
                    kept.append(own.name or name)
            schema["required"] = kept

    def to_server(self, raw: msgspec.Raw | bytes) -> msgspec.Raw:
        """The arguments that the server gets. Raises Malformed (INVALID_PARAMS) when they are no object, or have one
        that is hidden or goes by another name."""
        given = jsonrpc.decode_fields(raw)
        back = {own.name: name for name, own in self.arguments.items() if own.name}
        made: dict[str, Any] = {}
        for name, value in given.items():
            own = self.arguments.get(name)
            if name in back:
                made[back[name]] = value
            elif own is not None and (own.hidden or own.name):
                raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, f"there is no argument {name!r}")
            else:
                made[name] = value
        for name, own in self.arguments.items():
            if own.default and name not in made:
                made[name] = msgspec.Raw(own.default)
        return msgspec.Raw(jsonrpc.encode_fields(made))

    def fitted(self, raw: msgspec.Raw | bytes) -> msgspec.Raw:
        """`to_server` for arguments that have the server's names already, because they were another tool's: what is
        hidden is the operator's to say, whatever is given. Raises Malformed."""
        made: dict[str, Any] = dict(jsonrpc.decode_fields(raw))
        for name, own in self.arguments.items():
            if own.hidden:
                made.pop(name, None)
            if own.default:
                made.setdefault(name, msgspec.Raw(own.default))
        return msgspec.Raw(jsonrpc.encode_fields(made))


def _described(value: Any, own: Argument) -> Any:
    if not isinstance(value, dict):
        return value
    value = dict(value)
    if own.description:
        value["description"] = own.description
    if own.default:
        value["default"] = msgspec.Raw(own.default)
    return value


class Overrides:
    """Those of one server's tools, by its own names for them."""

    __slots__ = ("_names", "_seen", "_tools")

    def __init__(self, tools: Mapping[str, Override]) -> None:
        self._tools = dict(tools)
        self._names = {own.name: name for name, own in tools.items() if own.name and own.name != name}
        self._seen: dict[int, tuple[Listing, Listing]] = {}

    def exposed(self, listing: Listing) -> Listing:
        """The server's tools as agents see them. Where one is given the name of another, that other one is left out.
        Made once for each listing."""
        known = self._seen.get(id(listing))
        if known is not None and known[0] is listing:
            known[1].until = listing.until
            return known[1]
        entries = []
        for entry in listing.entries:
            own = self._tools.get(entry.name)
            if own is not None:
                entries.append(own.entry(entry))
            elif entry.name not in self._names:
                entries.append(entry)
        made = Listing(entries, at=listing.at, until=listing.until, dropped=listing.dropped, public=listing.public)
        made.source = listing
        if len(self._seen) >= 8:
            self._seen.pop(next(iter(self._seen)))
        self._seen[id(listing)] = (listing, made)
        return made

    def original(self, name: str) -> str | None:
        """The server's name of an exposed tool; None for one that goes by another name."""
        found = self._names.get(name)
        if found is not None:
            return found
        own = self._tools.get(name)
        return None if own is not None and own.name and own.name != name else name

    def to_server(self, original: str, raw: msgspec.Raw | bytes) -> msgspec.Raw | bytes:
        """The arguments of a call as the server knows them. Raises Malformed."""
        own = self._tools.get(original)
        return raw if own is None or not own.arguments else own.to_server(raw)

    def fitted(self, original: str, raw: msgspec.Raw) -> msgspec.Raw:
        """The arguments of another tool's call, for this one. Raises Malformed."""
        own = self._tools.get(original)
        return raw if own is None or not own.arguments else own.fitted(raw)


class Selection:
    """Which tools an endpoint has, by patterns with `*` over `server__tool` and over the tool's name alone. No `allow`
    allows everything; what `deny` matches is not there, whatever allows it."""

    __slots__ = ("_allow", "_deny", "_seen")

    def __init__(self, allow: Iterable[str] | None = None, deny: Iterable[str] = ()) -> None:
        self._allow = None if allow is None else _pattern(allow)
        self._deny = _pattern(deny)
        self._seen: dict[tuple[str, str, str], bool] = {}

    def has(self, server: str, exposed: str, original: str) -> bool:
        """exposed: the name that agents see, without the server; original: the server's own."""
        key = (server, exposed, original)
        known = self._seen.get(key)
        if known is None:
            seen = {exposed, original, names.exposed(server, exposed), names.exposed(server, original)}
            shown = {exposed, names.exposed(server, exposed)}
            known = (self._allow is None or any(map(self._allow.fullmatch, shown))) and not any(
                map(self._deny.fullmatch, seen)
            )
            if len(self._seen) >= 10_000:
                self._seen.clear()
            self._seen[key] = known
        return known


def _pattern(patterns: Iterable[str]) -> re.Pattern[str]:
    parts = ("[^\\0]*".join(map(re.escape, pattern.split("*"))) for pattern in patterns)
    return re.compile("|".join(parts) or r"(?!)")
