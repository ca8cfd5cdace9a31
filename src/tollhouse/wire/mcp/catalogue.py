"""What servers offer, and the lists that agents get of it: whole catalogues in, one encoded page out.

Rule: an entry keeps the bytes it came in; only its name or URI is written anew when agents see another one. Order is
the order of the servers in the configuration, then each server's own.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

import msgspec

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names
from tollhouse.wire.mcp.headers import Path, annotations, invalid_annotation

__all__ = ["KINDS", "Cursors", "Entry", "Kind", "Listing", "Page", "parse_page", "select"]


class Kind(msgspec.Struct, frozen=True, gc=False):
    """One of the lists. member: of its result. key: what names an entry. asked_by: the method that uses one.
    capability: of the server. changed: the notification that the list is another."""

    method: str
    member: str
    key: str
    asked_by: str
    capability: str
    changed: str
    resource_type: str


KINDS = {
    kind.method: kind
    for kind in (
        Kind("tools/list", "tools", "name", "tools/call", "tools", "notifications/tools/list_changed", "Tool"),
        Kind(
            "prompts/list", "prompts", "name", "prompts/get", "prompts",
            "notifications/prompts/list_changed", "Prompt",
        ),
        Kind(
            "resources/list", "resources", "uri", "resources/read", "resources",
            "notifications/resources/list_changed", "Resource",
        ),
        Kind(
            "resources/templates/list", "resourceTemplates", "uriTemplate", "resources/read", "resources",
            "notifications/resources/list_changed", "ResourceTemplates",
        ),
    )
}  # fmt: skip


class _Annotations(msgspec.Struct):
    readOnlyHint: bool = False
    idempotentHint: bool = False


class _Tool(msgspec.Struct):
    annotations: _Annotations | None = None


class Entry:
    """A tool, prompt, resource or template. name: the server's own (a URI for resources). raw: its JSON.

    headers: arguments that a stateless server wants repeated in headers. repeatable: the server says that calling it
    twice does no harm.
    """

    __slots__ = ("_exposed", "headers", "name", "raw", "repeatable")

    def __init__(
        self, name: str, raw: bytes, *, headers: dict[Path, tuple[str, str]] | None = None, repeatable: bool = False
    ) -> None:
        self.name = name
        self.raw = raw
        self.headers = headers
        self.repeatable = repeatable
        self._exposed = b""

    def exposed(self, kind: Kind, server: str) -> bytes:
        """The entry under the name agents know, when names carry their server. Rendered once."""
        if not self._exposed:
            fields: dict[str, Any] = dict(jsonrpc.decode_fields(self.raw))
            name = names.exposed_uri if kind.key != "name" else names.exposed
            fields[kind.key] = name(server, self.name)
            self._exposed = jsonrpc.encode_fields(fields)
        return self._exposed


class Listing:
    """All entries of one kind of one server. version: a digest of what it says. until: monotonic seconds, when it is
    to be asked for again. dropped: entries left out because they cannot be used, with why."""

    __slots__ = ("at", "dropped", "entries", "index", "until", "version")

    def __init__(self, entries: Sequence[Entry], *, at: float, until: float, dropped: Sequence[str] = ()) -> None:
        self.entries = tuple(entries)
        self.index = {entry.name: entry for entry in self.entries}
        self.at = at
        self.until = until
        self.dropped = tuple(dropped)
        digest = hashlib.blake2b(digest_size=12)
        for entry in self.entries:
            digest.update(entry.raw)
        self.version = digest.digest()


class Page(msgspec.Struct):
    """One page of a server's answer. ttl: milliseconds the server vouches for, None when it does not say."""

    entries: list[Entry]
    dropped: list[str]
    cursor: str | None
    ttl: int | None


def parse_page(kind: Kind, raw: msgspec.Raw | bytes, *, headers: bool) -> Page:
    """A server's list result. Entries without a usable name are left out. Raises Malformed when there is no list.

    headers: the server is a stateless one over HTTP, so a tool whose header annotations are not valid is left out.
    """
    fields = jsonrpc.decode_fields(raw)
    try:
        found = msgspec.json.decode(fields.get(kind.member, b"null"), type=list[msgspec.Raw])
    except msgspec.DecodeError:
        raise jsonrpc.Malformed(
            jsonrpc.INTERNAL_ERROR, f"the server's {kind.method} result has no list {kind.member!r}"
        ) from None
    entries: list[Entry] = []
    dropped: list[str] = []
    for item in found:
        data = bytes(item)
        try:
            name = jsonrpc.decode_string(jsonrpc.decode_fields(data).get(kind.key))
        except jsonrpc.Malformed:
            name = None
        if not name:
            dropped.append(f"an entry without {kind.key!r}")
            continue
        mirrored: dict[Path, tuple[str, str]] | None = None
        repeatable = False
        if kind.member == "tools":
            if b"x-mcp-header" in data:
                schema = msgspec.json.decode(data).get("inputSchema")
                problem = invalid_annotation(schema)
                if problem is None:
                    mirrored = annotations(schema) or None
                elif headers:
                    dropped.append(f"{name}: {problem}")
                    continue
            repeatable = _repeatable(data)
        entries.append(Entry(name, data, headers=mirrored, repeatable=repeatable))
    ttl: Any = None
    if "ttlMs" in fields and bytes(fields["ttlMs"]).isdigit():
        ttl = int(bytes(fields["ttlMs"])[:12])
    return Page(entries, dropped, jsonrpc.decode_string(fields.get("nextCursor")), ttl)


def _repeatable(data: bytes) -> bool:
    if b"Hint" not in data:
        return False
    try:
        told = msgspec.json.decode(data, type=_Tool).annotations
    except msgspec.DecodeError:
        return False
    return told is not None and (told.readOnlyHint or told.idempotentHint)


class Cursors:
    """Cursors that only who got them may use, on the list they are of: sealed with a key of this process."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, bound: str, server: str, name: str) -> str:
        """bound: whom and what for. The page goes on after `name` of `server`."""
        position = msgspec.json.encode((server, name))
        return base64.urlsafe_b64encode(self._mac(bound, position) + position).decode().rstrip("=")

    def open(self, bound: str, cursor: str) -> tuple[str, str]:
        """(server, name). Raises Malformed (INVALID_PARAMS) for a cursor that is not ours or another's."""
        try:
            sealed = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
            position = sealed[16:]
            if hmac.compare_digest(sealed[:16], self._mac(bound, position)):
                return msgspec.json.decode(position, type=tuple[str, str])
        except (ValueError, msgspec.DecodeError):
            pass
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, "the cursor is not valid here: ask for the list from its start")

    def _mac(self, bound: str, position: bytes) -> bytes:
        return hashlib.blake2b(bound.encode() + b"\0" + position, key=self._key, digest_size=16).digest()


def select(
    kind: Kind,
    parts: Sequence[tuple[str, Listing, bytes]],
    *,
    wrap: bool,
    after: tuple[str, str] | None,
    size: int,
) -> tuple[list[bytes], tuple[str, str] | None]:
    """One page of the merged list, and where the next one goes on after (None at the end).

    parts: (server, its listing, one byte for each entry: 1 where this caller may see it). wrap: names carry their
    server. Without it a name belongs to the first server that has it; the same name of a later one is hidden.
    """
    out: list[bytes] = []
    seen: set[str] = set()
    skipping = after is not None
    last: tuple[str, str] | None = None
    servers = [server for server, _, _ in parts]
    if after is not None and after[0] not in servers:
        return [], None
    for server, listing, visible in parts:
        here = skipping and after is not None and server == after[0]
        # An entry that has gone since: the rest of its server would be said twice or not at all; go on with the next.
        found = here and after is not None and after[1] in listing.index
        for entry, shown in zip(listing.entries, visible, strict=True):
            if not wrap:
                if entry.name in seen:
                    continue
                seen.add(entry.name)
            if skipping:
                if found and after is not None and entry.name == after[1]:
                    skipping = here = False
                continue
            if not shown:
                continue
            if len(out) == size:
                return out, last
            out.append(entry.exposed(kind, server) if wrap else entry.raw)
            last = (server, entry.name)
        if here:
            skipping = False
    return out, None
