"""A server as an endpoint has it: who answers for it, who stands before it, and what of it agents see.

Rule: it holds nothing of any agent, and nothing that a configuration has not made.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.errors import Failure
from tollhouse.core.handler import Handler
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.connect import Connect
from tollhouse.endpoints.mcp.outside import Outside
from tollhouse.wire.mcp.catalogue import KINDS, Kind, Listing
from tollhouse.wire.mcp.overrides import Overrides

__all__ = ["Features", "Guard", "LookedAt", "Permitted", "Server", "Shown", "Upstream"]

_TOOLS = KINDS["tools/list"]

Permitted = Callable[[ToolCall], bool]
"""Whether this caller may do what the call would do: the rules that guard the call itself."""

Shown = Callable[[Sequence[ToolCall]], Awaitable[Sequence[bool]]]
"""The same of many that are permitted so far, in their order, where somebody has to be waited for."""


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


class LookedAt(Protocol):
    """What agents see of a list, where guards look at what it says (`policies.guardrails.listing.Descriptions`).
    rejects: an entry may be left out for what it says."""

    rejects: bool

    def shown(self, kind: Kind, listing: Listing) -> Listing | None:
        """The list, None where guards have to be asked first: `judged`."""
        ...

    async def judged(self, kind: Kind, listing: Listing, until: float) -> Listing:
        """until: monotonic seconds. Raises Failure 503 where there is nothing to show for want of guards."""
        ...

    def hides(self, kind: Kind, listing: Listing, name: str) -> bool | None:
        """Whether the server's `name` is left out of the list; None where guards have to be asked first. Raises Failure
        503 where it is left out for want of them."""
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
    def says(self) -> str:
        """Its instructions, as it has said them; "" for none."""
        features = self.upstream.features
        return "" if features is None else features.instructions

    def instructions(self) -> str | Awaitable[str]:
        """The same as agents get them: at once, or after guards were asked."""
        return self.says if self.outside is None else self.outside.instructions(self.says)

    def failed(self, failure: Failure) -> Failure:
        """Why there is no list, as agents are told."""
        return failure if self.outside is None else self.outside.failed(failure)

    def exposed(self, kind: Kind, listing: Listing) -> Listing | None:
        """What agents see of a listing, before anybody's rules; None where guards have to be asked first: `judged`."""
        shown = self._renamed(kind, listing)
        return shown if self.looked_at is None else self.looked_at.shown(kind, shown)

    async def judged(self, kind: Kind, listing: Listing, until: float) -> Listing:
        """The same; waits for guards to `until` (monotonic seconds) at most. Raises Failure."""
        shown = self._renamed(kind, listing)
        return shown if self.looked_at is None else await self.looked_at.judged(kind, shown, until)

    def hides(self, kind: Kind, listing: Listing, name: str) -> bool | None:
        """Whether guards leave the server's `name` out of that listing; None where they have to be asked first:
        `judged`. Raises Failure where they cannot say."""
        looked_at = self.looked_at
        return looked_at is not None and looked_at.hides(kind, self._renamed(kind, listing), name)

    def _renamed(self, kind: Kind, listing: Listing) -> Listing:
        return listing if self.overrides is None or kind is not _TOOLS else self.overrides.exposed(listing)
