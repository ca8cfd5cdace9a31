"""What servers offer, and the lists that agents get of it: whole catalogues in, one encoded page out.

Rule: an entry keeps the bytes it came in; only its name or URI is written anew when agents see another one. Order is
the order of the servers in the configuration, then each server's own.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names
from tollhouse.wire.mcp.headers import Path, annotations, invalid_annotation
from tollhouse.wire.mcp.integrity import Facts
from tollhouse.wire.mcp.sealed import Seals, Unsealed

__all__ = ["KINDS", "LONGEST", "Cursors", "Entry", "Kind", "Listing", "Page", "parse_page", "select"]


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


LONGEST = {"name": 256, "uri": 8192, "uriTemplate": 8192}
"""Characters of what names an entry, by key: what is kept with verdicts, records and log lines must be short."""


class _Annotations(msgspec.Struct):
    readOnlyHint: bool = False
    idempotentHint: bool = False


class _Tool(msgspec.Struct):
    annotations: _Annotations | None = None


class Entry:
    """A tool, prompt, resource or template. name: the server's own (a URI for resources). raw: its JSON.

    headers: arguments that a stateless server wants repeated in headers. repeatable: the server says that calling it
    twice does no harm. old: the same for agents of the old era, where they cannot have it as it is. original: the
    server's name, where agents are shown another. task: "optional" or "required" where it can or must be called as one
    (2025-11-25), else "". facts:
    of a tool, once it was examined (`integrity`).
    """

    __slots__ = ("_exposed", "facts", "headers", "name", "old", "original", "raw", "repeatable", "task")

    def __init__(
        self,
        name: str,
        raw: bytes,
        *,
        headers: dict[Path, tuple[str, str]] | None = None,
        repeatable: bool = False,
        old: "Entry | None" = None,
        original: str = "",
        task: str = "",
    ) -> None:
        self.task = task
        self.facts: Facts | None = None
        self.name = name
        self.original = original or name
        self.old = old
        self.raw = raw
        self.headers = headers
        self.repeatable = repeatable
        self._exposed = b""

    @property
    def as_task(self) -> bool:
        """It can only be called as a task."""
        return self.task == "required"

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
    to be asked for again. dropped: entries left out because they cannot be used, with why. public: the server says
    that it is the same for everybody. source: the server's own, where this one is what agents are shown of it. judged:
    what a guard made of it, for itself."""

    __slots__ = ("at", "dropped", "entries", "index", "judged", "public", "source", "until", "version")

    def __init__(
        self, entries: Sequence[Entry], *, at: float, until: float, dropped: Sequence[str] = (), public: bool = False
    ) -> None:
        self.public = public
        self.source: Listing | None = None
        self.judged: Any = None
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
    """One page of a server's answer. ttl: milliseconds the server vouches for, None when it does not say. public: it
    may be shown to others than who asked. private: it must not be."""

    entries: list[Entry]
    dropped: list[str]
    cursor: str | None
    ttl: int | None
    public: bool = False
    private: bool = False


def parse_page(kind: Kind, raw: msgspec.Raw | bytes, *, headers: bool, tasks: bool = False) -> Page:
    """A server's list result. Raises Malformed when there is no list. Entries without a usable name are left out, and
    so are tools without a schema for their arguments: an agent refuses the whole list for one of them.

    headers: the server is a stateless one over HTTP, so a tool whose header annotations are not valid is left out.
    tasks: it is a stateless one that may run any tool as a task, which agents of the old era are told.
    """
    fields = jsonrpc.decode_result(raw)
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
            members = jsonrpc.decode_fields(data)
            name = jsonrpc.decode_string(members.get(kind.key))
        except jsonrpc.Malformed:
            name = None
        if not name:
            dropped.append(f"an entry without {kind.key!r}")
            continue
        if len(name) > LONGEST[kind.key]:
            dropped.append(f"{name[:60]!r}...: {kind.key} has {len(name)} characters, at most {LONGEST[kind.key]}")
            continue
        mirrored: dict[Path, tuple[str, str]] | None = None
        repeatable = False
        if kind.member == "tools":
            if bytes(members.get("inputSchema", b""))[:1] != b"{":
                dropped.append(f"{name}: its inputSchema is no object")
                continue
            if b"x-mcp-header" in data:
                schema = msgspec.json.decode(data).get("inputSchema")
                problem = invalid_annotation(schema)
                if problem is None:
                    mirrored = annotations(schema) or None
                elif headers:
                    dropped.append(f"{name}: {problem}")
                    continue
            repeatable = _repeatable(data)
        old = None
        task = _task_support(data) if b'"taskSupport"' in data else ""
        plain = _without_odd_schema(data) if b'"outputSchema"' in data else None
        if tasks and kind.member == "tools":
            plain = _with_tasks(plain or data)
        if plain is not None:
            old = Entry(name, plain, headers=mirrored, repeatable=repeatable)
        entries.append(Entry(name, data, headers=mirrored, repeatable=repeatable, old=old, task=task))
    ttl: Any = None
    if "ttlMs" in fields and bytes(fields["ttlMs"]).isdigit():
        ttl = int(bytes(fields["ttlMs"])[:12])
    scope = jsonrpc.decode_string(fields.get("cacheScope"))
    cursor = jsonrpc.decode_string(fields.get("nextCursor"))
    return Page(entries, dropped, cursor, ttl, public=scope == "public", private=scope == "private")


class _Execution(msgspec.Struct):
    taskSupport: str = ""


class _Executed(msgspec.Struct):
    execution: _Execution | None = None


def _task_support(data: bytes) -> str:
    try:
        execution = msgspec.json.decode(data, type=_Executed).execution
    except msgspec.DecodeError:
        return ""
    return execution.taskSupport if execution is not None and execution.taskSupport in _SUPPORTS else ""


_SUPPORTS = ("optional", "required")


def _with_tasks(data: bytes) -> bytes:
    """A tool that its agent may call as a task (2025-11-25)."""
    fields: dict[str, Any] = dict(jsonrpc.decode_fields(data))
    fields["execution"] = {"taskSupport": "optional"}
    return jsonrpc.encode_fields(fields)


def _without_odd_schema(data: bytes) -> bytes | None:
    """A tool without its `outputSchema`, where that is of no object: the old era has no such tools. None: it has."""
    fields = jsonrpc.decode_fields(data)
    schema = fields.get("outputSchema", b"")
    try:
        if jsonrpc.decode_string(jsonrpc.decode_fields(schema).get("type")) == "object":
            return None
    except jsonrpc.Malformed:
        pass
    del fields["outputSchema"]
    return jsonrpc.encode_fields(dict(fields))


def _repeatable(data: bytes) -> bool:
    if b"Hint" not in data:
        return False
    try:
        told = msgspec.json.decode(data, type=_Tool).annotations
    except msgspec.DecodeError:
        return False
    return told is not None and (told.readOnlyHint or told.idempotentHint)


class _Position(msgspec.Struct, array_like=True, gc=False):
    bound: bytes
    server: str
    name: str


class Cursors:
    """Cursors that only who got them may use, on the list they are of, at any worker that has the same keys."""

    __slots__ = ("_seals",)

    def __init__(self, seals: Seals) -> None:
        self._seals = seals

    def seal(self, bound: str, server: str, name: str) -> str:
        """bound: whom and what for. The page goes on after `name` of `server`."""
        return self._seals.seal("c", _Position(_digest(bound), server, name))

    def open(self, bound: str, cursor: str) -> tuple[str, str]:
        """(server, name). Raises Malformed (INVALID_PARAMS) for a cursor that is not ours or another's."""
        try:
            position = self._seals.open("c", cursor, _Position)
            if position.bound == _digest(bound):
                return position.server, position.name
        except Unsealed:
            pass
        raise jsonrpc.Malformed(jsonrpc.INVALID_PARAMS, "the cursor is not valid here: ask for the list from its start")


def _digest(bound: str) -> bytes:
    return hashlib.blake2b(bound.encode(), digest_size=16).digest()


def select(
    kind: Kind,
    parts: Sequence[tuple[str, Listing, bytes]],
    *,
    wrap: bool,
    after: tuple[str, str] | None,
    size: int,
    new: bool = True,
) -> tuple[list[bytes], tuple[str, str] | None]:
    """One page of the merged list, and where the next one goes on after (None at the end).

    parts: (server, its listing, one byte for each entry: 1 where this caller may see it). wrap: names carry their
    server. Without it a name belongs to the first server that has it; the same name of a later one is hidden. new: the
    era that the page is for.
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
            form = entry if new or entry.old is None else entry.old
            out.append(form.exposed(kind, server) if wrap else form.raw)
            last = (server, entry.name)
        if here:
            skipping = False
    return out, None
