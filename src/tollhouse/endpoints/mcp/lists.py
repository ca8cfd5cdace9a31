"""The lists of an endpoint: every server's catalogue, asked at once, merged, and filtered for who asks.

Rule: who may not use a thing does not see it, by the same rules. Equal answers are rendered once: what a caller may
see is a string of bits, and the encoded page is remembered for those bits and these versions of the catalogues.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import Any, Literal, Protocol

import msgspec

from tollhouse.core.call import Context, Principal, ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.handler import Handler
from tollhouse.core.http import Request
from tollhouse.core.identity import ACCOUNT_NEEDED, CONNECT
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.connect import Connect
from tollhouse.endpoints.mcp.outside import Outside
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import names
from tollhouse.wire.mcp.catalogue import KINDS, Cursors, Kind, Listing, select
from tollhouse.wire.mcp.overrides import Overrides, Selection

__all__ = ["Found", "Guard", "Lists", "Permitted", "Server", "Shown", "Upstream"]

log = logging.getLogger("tollhouse.endpoints.mcp")

_TOOLS = KINDS["tools/list"]
_VIEWS = 256
_CONFLICTS = 1000
_TTL_UNAVAILABLE = 2000  # milliseconds; a server that is missing now may be back soon
UNAVAILABLE = "dev.tollhouse/unavailable"

Permitted = Callable[[ToolCall], bool]
"""Whether this caller may do what the call would do: the rules that guard the call itself."""

LookedAt = Callable[[Kind, Listing], Listing]
"""What agents see of a list, where guards look at what it says."""

Shown = Callable[[Sequence[ToolCall]], Awaitable[Sequence[bool]]]
"""The same of many that are permitted so far, in their order, where somebody has to be waited for."""

Own = Callable[[Sequence[tuple["Server", Listing]], Sequence[bytes]], tuple[bytes, bool]]
"""The endpoint's own tools in a caller's list, and whether the servers' stand there too. Told each server's listing,
and one byte for each of its entries: 1 where this caller may use it."""


class Features(Protocol):
    @property
    def capabilities(self) -> Mapping[str, Any]: ...

    @property
    def instructions(self) -> str: ...


class Upstream(Protocol):
    """What an endpoint needs of a server beside calling it (`backends.mcp.upstream.Upstream`)."""

    new: bool | None
    """Its era; None while that is not known."""

    @property
    def features(self) -> Features | None:
        """What it said of itself; None while it was never reached."""
        ...

    async def handle(self, call: ToolCall) -> Reply: ...

    async def wait_elicited(self, ids: Sequence[str], timeout: float) -> None: ...

    async def adopt(self, call: ToolCall, place: bytes) -> Reply:
        """Take over the answer that another worker has left there (`core.call.Movable`). Raises Failure."""
        ...

    async def listing(
        self, kind: Kind, agent: Any, principal: Principal | None, profile: int | None = None
    ) -> Listing: ...

    def known(
        self, kind: Kind, agent: Any, profile: int | None = None, principal: Principal | None = None
    ) -> Listing | None: ...

    def level_changed(self, agent: Any) -> None: ...

    def roots_changed(self, agent: Any) -> None: ...


class Guard(Protocol):
    """Whether a server's tools are what was approved (`backends.mcp.integrity.Guard`)."""

    def withheld(self, listing: Listing) -> Collection[str]:
        """The tools of the server's list, by its own names, that nobody is shown."""
        ...


class Server:
    """A server behind an endpoint. chain: policies and backend; tools: the same for tools with policies of their own.
    last, lasts: the ends of these chains, behind all that is asked once for a call; None for the backend alone.
    of_tasks: for what is asked about a task of one of its tools: `chain` behind the guards of that tool.
    vouches: what goes out says in whose name, by tokens made for that. connect: what it lists for users who have no
    account there, None where they need none.
    permitted: None when nothing is ever refused. shown: None where nobody is waited for. bridged: it may ask agents of
    the other era. overrides: of its tools, None for none. guard: None where nobody asks what its tools are. described:
    its rules ask what the server says of a tool that is called. looked_at: None where no guard looks at lists. outside:
    None where none looks at what it says outside of calls."""

    __slots__ = (
        "__weakref__", "_last", "_lasts", "bridged", "chain", "connect", "described", "guard", "looked_at", "name",
        "of_tasks", "outside", "overrides", "permitted", "shown", "tools", "upstream", "vouches",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        upstream: Upstream,
        chain: Handler[ToolCall, Reply],
        *,
        tools: Mapping[str, Handler[ToolCall, Reply]] | None = None,
        permitted: Permitted | None = None,
        shown: Shown | None = None,
        bridged: bool = True,
        overrides: Overrides | None = None,
        guard: Guard | None = None,
        described: bool = False,
        last: Handler[ToolCall, Reply] | None = None,
        lasts: Mapping[str, Handler[ToolCall, Reply]] | None = None,
        of_tasks: Mapping[str, Handler[ToolCall, Reply]] | None = None,
        vouches: bool = False,
        connect: Connect | None = None,
        looked_at: LookedAt | None = None,
        outside: Outside | None = None,
    ) -> None:
        self.outside = outside
        self.connect = connect
        self.looked_at = looked_at
        self.vouches = vouches
        self._last = last if last is not None else upstream.handle
        self._lasts = dict(lasts) if lasts else {}
        self.of_tasks = dict(of_tasks) if of_tasks else {}
        self.bridged = bridged
        self.described = described
        self.guard = guard
        self.overrides = overrides
        self.name = name
        self.upstream = upstream
        self.chain = chain
        self.tools = dict(tools) if tools else {}
        self.permitted = permitted
        self.shown = shown

    def again(self, call: ToolCall, tool: str = "") -> Awaitable[Reply]:
        """Ask the server once more, or for something about it, within a call that its chain has let through: with
        credentials that are good now, past no guard, and without what is asked or counted once. tool: whose task it is
        about. Raises Failure."""
        called = call.name if call.method == "tools/call" else tool
        last = self._lasts.get(called) if self._lasts else None
        return (last or self._last)(call)

    @property
    def instructions(self) -> str:
        """What it says to agents of itself; "" for nothing."""
        features = self.upstream.features
        said = "" if features is None else features.instructions
        return said if self.outside is None else self.outside.instructions(said)

    def failed(self, failure: Failure) -> Failure:
        """Why there is no list, as agents are told."""
        return failure if self.outside is None else self.outside.failed(failure)

    def exposed(self, kind: Kind, listing: Listing) -> Listing:
        """What agents see of a listing, before anybody's rules."""
        overrides = self.overrides
        shown = listing if overrides is None or kind is not _TOOLS else overrides.exposed(listing)
        return shown if self.looked_at is None else self.looked_at(kind, shown)


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
        missing = []
        for server in servers:
            known = server.upstream.known(kind, agent, profile, context.principal)
            if known is not None and now < known.until:
                found[server.name] = server.exposed(kind, known)
            else:
                missing.append(server)
        unavailable = []
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
                    found[server.name] = server.exposed(kind, answer)
                elif server.connect is not None and isinstance(answer, Failure) and answer.code == ACCOUNT_NEEDED:
                    found[server.name] = server.connect.listing(kind)
                elif not isinstance(answer, Failure):
                    raise answer
                elif self._failure == "closed":
                    raise server.failed(answer)
                else:
                    unavailable.append(server.name)
        if unavailable and not found:
            if len(servers) == 1 and isinstance(answer, Failure) and answer.status == 403:
                raise server.failed(answer)  # it is about who asks
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
        server, exposed = found
        if kind is not _TOOLS:
            return server, exposed, False
        if exposed == CONNECT and server.connect is not None and await self._is_ours(server, agent, context, profile):
            return server, CONNECT, True
        overrides, selection = server.overrides, self._selection
        original = exposed if overrides is None else overrides.original(exposed)
        if original is None or (selection is not None and not selection.has(server.name, exposed, original)):
            return None
        return server, original, False

    async def _is_ours(self, server: Server, agent: Any, context: Context, profile: int) -> bool:
        """Whether `connect` is not a tool that the server itself lists for this caller."""
        try:
            listing = await server.upstream.listing(_TOOLS, agent, context.principal, profile)
        except Failure:
            return True
        return CONNECT not in server.exposed(_TOOLS, listing).index

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
