"""The lists of an endpoint: every server's catalogue, asked at once, merged, and filtered for who asks.

Rule: who may not use a thing does not see it, by the same rules. Equal answers are rendered once: what a caller may
see is a string of bits, and the encoded page is remembered for those bits and these versions of the catalogues.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Any, Literal

import msgspec

from tollhouse.core.call import Context, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Request
from tollhouse.core.identity import ACCOUNT_NEEDED, CONNECT
from tollhouse.endpoints.mcp.server import Server
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names
from tollhouse.wire.mcp.catalogue import KINDS, Cursors, Kind, Listing, select
from tollhouse.wire.mcp.overrides import Selection

__all__ = ["UNAVAILABLE", "Found", "Lists", "is_hidden"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_TOOLS = KINDS["tools/list"]
_VIEWS = 256
_CONFLICTS = 1000
_TTL_UNAVAILABLE = 2000  # milliseconds; a server that is missing now may be back soon
UNAVAILABLE = "dev.tollhouse/unavailable"

Own = Callable[[Sequence[tuple["Server", Listing]], Sequence[bytes]], tuple[bytes, bool]]
"""The endpoint's own tools in a caller's list, and whether the servers' stand there too. Told each server's listing,
and one byte for each of its entries: 1 where this caller may use it."""


Found = tuple[Server, str, bool]
"""What an exposed name means: a server, its own name, and whether that is the tool which the server has of us
(`core.identity.CONNECT`)."""


class Lists:
    """failure: "open" leaves a server out that does not answer, and says so; "closed" refuses the list. page: entries
    of one page. selection: which tools there are, None for all."""

    __slots__ = (
        "_conflicts", "_cursors", "_endpoint", "_failure", "_page", "_selection", "_servers", "_views", "_wrap",
        "own",
    )  # fmt: skip

    def __init__(
        self,
        servers: Mapping[str, Server],
        *,
        endpoint: str,
        wrap: bool,
        wrap_uris: bool,
        failure: Literal["open", "closed"],
        cursors: Cursors,
        page: int,
        selection: Selection | None = None,
    ) -> None:
        self._selection = selection
        self._conflicts: set[tuple[str, str]] = set()
        self._servers = servers
        self._endpoint = endpoint
        self._wrap = {kind.method: wrap if kind.key == "name" else wrap_uris for kind in KINDS.values()}
        self._failure = failure
        self._cursors = cursors
        self._page = page
        self._views: dict[tuple[Any, ...], bytes] = {}
        self.own: Own | None = None

    async def catalogue(
        self, kind: Kind, agent: Any, context: Context, profile: int = 0
    ) -> tuple[list[tuple[Server, Listing]], list[str]]:
        """Each server's listing in order of configuration, and the servers that have none. The wait for servers is the
        upstream's time in `context`. Raises Failure."""
        servers = list(self._servers.values())
        now = monotonic()
        found: dict[str, Listing] = {}
        asking: list[tuple[Server, Listing]] = []  # guards, what they make of it
        failed: dict[Server, Failure] = {}
        missing = []

        def has(server: Server, listing: Listing) -> None:
            shown = server.exposed(kind, listing)
            if shown is None:
                asking.append((server, listing))
            else:
                found[server.name] = shown

        for server in servers:
            known = server.upstream.known(kind, agent, profile, context.principal)
            if known is not None and now < known.until:
                has(server, known)
            else:
                missing.append(server)
        if missing:
            principal = context.principal
            context.upstream_began = context.upstream_began or now
            try:
                answers = await asyncio.gather(
                    *(server.upstream.listing(kind, agent, principal, profile) for server in missing),
                    return_exceptions=True,
                )
            finally:
                context.upstream_ended = monotonic()
            for server, answer in zip(missing, answers, strict=True):
                if isinstance(answer, Listing):
                    has(server, answer)
                elif server.connect is not None and isinstance(answer, Failure) and answer.code == ACCOUNT_NEEDED:
                    found[server.name] = server.connect.listing(kind)
                elif isinstance(answer, Failure):
                    failed[server] = answer
                else:
                    raise answer
        if asking:
            shown = await asyncio.gather(
                *(server.judged(kind, listing, context.deadline) for server, listing in asking), return_exceptions=True
            )
            for (server, _), made in zip(asking, shown, strict=True):
                if isinstance(made, Listing):
                    found[server.name] = made
                elif isinstance(made, Failure):
                    failed[server] = made
                else:
                    raise made
        unavailable = [server.name for server in failed]
        if failed and (self._failure == "closed" or not found):
            server, failure = next(iter(failed.items()))
            # It is about who asks, or about what the server says.
            told = len(servers) == 1 and (failure.status == 403 or failure.reason is Reason.GUARDRAIL)
            if told or self._failure == "closed":
                raise server.failed(failure)
            raise Failure(503, Reason.UPSTREAM_FAILURE, f"no server answers: {', '.join(unavailable)}", retry=True)
        return [(server, found[server.name]) for server in servers if server.name in found], unavailable

    async def usable(
        self, request: Request, agent: Any, profile: int, kind: Kind = _TOOLS
    ) -> tuple[list[tuple[Server, Listing]], list[bytes], list[str]]:
        """Each server's entries, one byte for each: 1 where this caller may use it, and the servers that have no list.
        Raises Failure."""
        parts, unavailable = await self.catalogue(kind, agent, request.context, profile)
        visible = [self._visible(kind, server, li, request, agent) for server, li in parts]
        if any(server.shown is not None for server, _ in parts):
            async with asyncio.TaskGroup() as group:
                left = [
                    group.create_task(_left(kind, server, listing, bits, request, agent))
                    for (server, listing), bits in zip(parts, visible, strict=True)
                ]
            visible = [task.result() for task in left]
        return parts, visible, unavailable

    async def result(
        self, kind: Kind, request: Request, agent: Any, cursor: str | None, *, new: bool, profile: int = 0
    ) -> bytes:
        """The encoded result of a list request. Raises Failure, and Malformed for a bad cursor."""
        principal = request.context.principal
        bound = f"{principal.id if principal is not None else ''}\0{kind.method}\0{self._endpoint}"
        after = self._cursors.open(bound, cursor) if cursor is not None else None
        parts, visible, unavailable = await self.usable(request, agent, profile, kind)
        view: tuple[Any, ...] = ()
        own = b""
        if kind is _TOOLS and self.own is not None:
            own, whole = self.own(parts, visible)
            if not whole:
                return self._render(kind, b"[%b]" % own, None, parts, unavailable, new=new)
        if after is None:
            shown = tuple((s.name, li.version, v) for (s, li), v in zip(parts, visible, strict=True))
            view = (kind.method, new, own, shown)
            entries = self._views.get(view)
            if entries is not None:
                return self._render(kind, entries, None, parts, unavailable, new=new)
        chosen, rest = select(
            kind,
            [(server.name, listing, shown) for (server, listing), shown in zip(parts, visible, strict=True)],
            wrap=self._wrap[kind.method],
            after=after,
            size=self._page,
            new=new,
        )
        if own and after is None:
            chosen.insert(0, own)
        entries = b"[%b]" % b",".join(chosen)
        if not self._wrap[kind.method] and len(parts) > 1:
            self._report_conflicts(kind, parts)
        if view and rest is None:
            if len(self._views) >= _VIEWS:
                self._views.pop(next(iter(self._views)))
            self._views[view] = entries
        onward = None if rest is None else self._cursors.seal(bound, *rest)
        return self._render(kind, entries, onward, parts, unavailable, new=new)

    def _report_conflicts(self, kind: Kind, parts: list[tuple[Server, Listing]]) -> None:
        """Say once which names belong to several servers: the first in the configuration has them."""
        owners: dict[str, str] = {}
        for server, listing in parts:
            if server.connect is not None and server.connect.made(listing):
                continue
            for entry in listing.entries:
                owner = owners.setdefault(entry.name, server.name)
                conflict = (entry.name, server.name)
                if owner != server.name and conflict not in self._conflicts and len(self._conflicts) < _CONFLICTS:
                    self._conflicts.add(conflict)
                    log.warning(
                        "mcp endpoint %s: %s %r of server %s is hidden: server %s, which stands before it, has one of "
                        "that name", self._endpoint, kind.resource_type.lower(), entry.name, server.name, owner,
                    )  # fmt: skip

    def _visible(self, kind: Kind, server: Server, listing: Listing, request: Request, agent: Any) -> bytes:
        selection = self._selection if kind is _TOOLS else None
        withheld: Collection[str] = ()
        if server.connect is not None and server.connect.made(listing):
            selection = None  # it is there as long as the server is
        elif server.guard is not None and kind is _TOOLS:
            withheld = server.guard.withheld(listing.source or listing)
        permitted = server.permitted
        if permitted is None and selection is None and not withheld:
            return b"\1" * len(listing.entries)
        return bytes(
            entry.original not in withheld
            and (selection is None or selection.has(server.name, entry.name, entry.original))
            and (permitted is None or permitted(_probe(server, kind, entry.original, request, agent, entry.raw)))
            for entry in listing.entries
        )

    def permits(
        self, server: Server, kind: Kind, name: str, request: Request, agent: Any, definition: bytes = b""
    ) -> bool:
        """Whether the rules show `name` (the server's own) to this caller. definition: what the server says of it."""
        permitted = server.permitted
        return permitted is None or permitted(_probe(server, kind, name, request, agent, definition))

    def sees(self, server: Server, request: Request, agent: Any) -> bool:
        """Whether anything that the server is known to offer may be used by this caller."""
        if server.permitted is None and server.connect is None:
            return True
        principal = request.context.principal
        for kind in KINDS.values():
            listing = server.upstream.known(kind, agent, None, principal) or server.upstream.known(kind, None)
            if listing is not None and any(
                self.permits(server, kind, entry.name, request, agent, entry.raw) for entry in listing.entries
            ):
                return True
        return False

    def _render(
        self,
        kind: Kind,
        entries: bytes,
        onward: str | None,
        parts: list[tuple[Server, Listing]],
        unavailable: list[str],
        *,
        new: bool,
    ) -> bytes:
        fields: dict[str, Any] = {kind.member: msgspec.Raw(entries)}
        if onward is not None:
            fields["nextCursor"] = onward
        if unavailable:
            fields["_meta"] = {UNAVAILABLE: unavailable}
        if new:
            now = monotonic()
            ttl = min((max(0, int((listing.until - now) * 1000)) for _, listing in parts), default=_TTL_UNAVAILABLE)
            fields["resultType"] = "complete"
            fields["ttlMs"] = min(ttl, _TTL_UNAVAILABLE) if unavailable else ttl
            public = not unavailable and all(li.public and server.permitted is None for server, li in parts)
            fields["cacheScope"] = "public" if public and parts else "private"
        return jsonrpc.encode_fields(fields)

    # ---- names
    async def owner(self, kind: Kind, name: str, agent: Any, context: Context, profile: int = 0) -> Found | None:
        """The server of an exposed name (a URI for resources), and the name there; None when nobody has it."""
        found = await self._found(kind, name, agent, context, profile)
        if found is None:
            return None
        server, name = found
        if kind is _TOOLS:
            exposed = name
            if (
                exposed == CONNECT
                and server.connect is not None
                and await self._is_ours(server, agent, context, profile)
            ):
                return server, CONNECT, True
            overrides, selection = server.overrides, self._selection
            original = exposed if overrides is None else overrides.original(exposed)
            if original is None or (selection is not None and not selection.has(server.name, exposed, original)):
                return None
            name = original
        if server.looked_at is not None and await is_hidden(server, kind, name, agent, context, profile):
            return None
        return server, name, False

    async def _is_ours(self, server: Server, agent: Any, context: Context, profile: int) -> bool:
        """Whether `connect` is not a tool that the server itself lists for this caller."""
        try:
            listing = await server.upstream.listing(_TOOLS, agent, context.principal, profile)
            return CONNECT not in (await server.judged(_TOOLS, listing, context.deadline)).index
        except Failure:
            return True

    async def _found(
        self, kind: Kind, name: str, agent: Any, context: Context, profile: int
    ) -> tuple[Server, str] | None:
        if self._wrap[kind.method]:
            if kind.key == "name":
                prefix, original = names.split(name)
                server = self._servers.get(prefix)
            else:
                prefix, original = names.original_uri(name)
                server = next((s for s in self._servers.values() if s.name.lower() == prefix), None)
            return (server, original) if server is not None and original else None
        if len(self._servers) == 1:
            return next(iter(self._servers.values())), name
        parts, _ = await self.catalogue(kind, agent, context, profile)
        found = next(((server, name) for server, listing in parts if name in listing.index), None)
        if found is None and kind is _TOOLS and name == CONNECT:  # all are connected by now
            found = next(((server, name) for server, _ in parts if server.connect is not None), None)
        return found


async def is_hidden(server: Server, kind: Kind, name: str, agent: Any, context: Context, profile: int) -> bool:
    """Whether guards leave the server's `name` out of its list. Raises Failure where they cannot say."""
    hidden = _hides(server, kind, name, agent, context, profile)
    return hidden if hidden is not None else await _asked_hides(server, kind, name, agent, context, profile)


def _hides(server: Server, kind: Kind, name: str, agent: Any, context: Context, profile: int) -> bool | None:
    """The same; None where somebody has to be asked first."""
    upstream, looked_at = server.upstream, server.looked_at
    known = upstream.known(kind, agent, profile, context.principal)
    if known is None and profile:  # most servers have the same for all agents
        known = upstream.known(kind, agent, 0, context.principal)
        if known is not None and name not in known.index:
            known = None
    if known is not None:
        return server.hides(kind, known, name)
    # What others than tools say when they are used is looked at itself.
    return None if kind is _TOOLS and looked_at is not None and looked_at.rejects else False


async def _asked_hides(server: Server, kind: Kind, name: str, agent: Any, context: Context, profile: int) -> bool:
    """The same, with whoever has to be asked."""
    try:
        listing = await server.upstream.listing(kind, agent, context.principal, 0)
        if profile and name not in listing.index:
            listing = await server.upstream.listing(kind, agent, context.principal, profile)
    except Failure:
        return False  # the call itself says what is wrong
    await server.judged(kind, listing, context.deadline)
    return bool(server.hides(kind, listing, name))


def _probe(server: Server, kind: Kind, name: str, request: Request, agent: Any, definition: bytes) -> ToolCall:
    """A call of that name by this caller, as rules are asked about it for a list."""
    return ToolCall(
        request,
        request.context,
        server=server.name,
        method=kind.asked_by,
        name=name,
        params={},
        session=agent,
        definition=definition,
    )


async def _left(kind: Kind, server: Server, listing: Listing, visible: bytes, request: Request, agent: Any) -> bytes:
    """What is left of the `visible` when those are asked who have to be waited for."""
    if server.shown is None:
        return visible
    at = [n for n, bit in enumerate(visible) if bit]
    entries = listing.entries
    probes = [_probe(server, kind, entries[n].original, request, agent, entries[n].raw) for n in at]
    bits = bytearray(len(visible))
    for n, shown in zip(at, await server.shown(probes), strict=True):
        bits[n] = shown
    return bytes(bits)
