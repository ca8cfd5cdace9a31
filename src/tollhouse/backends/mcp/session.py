"""A session with an MCP server: what all transports share.

Rule: a session serves whom its key names, and declares what they declared and nothing more. What its agents have told
it is kept, so that its successor can be told the same.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, Protocol

from tollhouse.backends.mcp.agent import Agent, Key
from tollhouse.backends.mcp.handshake import Features, Server
from tollhouse.backends.mcp.heal import RESTART, Restarts
from tollhouse.backends.mcp.listen import Ears
from tollhouse.backends.mcp.lost import Memory
from tollhouse.backends.mcp.messages import Rescuer
from tollhouse.backends.mcp.place import Place
from tollhouse.backends.mcp.records import Record
from tollhouse.backends.mcp.spec import McpServerSpec
from tollhouse.backends.mcp.unasked import Hearing, Speaking
from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.reply import Reply
from tollhouse.net.client import Exchange
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities, revisions
from tollhouse.wire.mcp.catalogue import Kind, Listing
from tollhouse.wire.mcp.messages import LEVELS

__all__ = ["Bears", "Elsewhere", "Expired", "Owner", "Session", "bearer"]

_BEARS = b"authorization: "


class Bears(Protocol):
    """The field `authorization` of what a principal's session asks of the server beside calls. refused: what it was
    before, if the server has not taken that. Raises Failure."""

    def __call__(self, principal: Principal | None, refused: bytes = b"", /) -> bytes | Awaitable[bytes]: ...


def bearer(principal: Principal | None) -> str:
    """Whose a session is with a server that is shown who asks: a user's, by one agent."""
    return "" if principal is None else f"{principal.id} {principal.client or principal.agent}"


class Expired(Exception):
    """The server does not know our session any more, or is of another era; the call was not carried out."""


class Elsewhere(Exception):
    """The server speaks another transport: connect again."""


class Owner(Server, Speaking, Rescuer, Protocol):
    """The server that a session is with (`backends.mcp.upstream.Upstream`). mark: of its configuration. bears: for a
    server that is shown who asks; then no two share a session."""

    mark: str
    spec: McpServerSpec
    retired: bool
    bears: Bears | None

    @property
    def crowded(self) -> bool:
        """Somebody waits for a session, because all that there may be are in use."""
        ...

    def let_in(self) -> None:
        """There may be room for one more session."""
        ...

    def discard(self, session: "Session", cause: str = "") -> None:
        """Close it. cause: why it was lost, when it was (`heal`)."""
        ...

    def isolate(self, session: "Session", why: str) -> None:
        """Close it, and have nothing to do with the server for a while."""
        ...

    def left(self, session: "Session", agent: Agent) -> None:
        """`agent` has ended, whose own the session was."""
        ...

    def told(self, session: "Session") -> None:
        """It has been told something that a successor must be told."""
        ...

    def release(self, key: Key, call: ToolCall) -> None:
        """`call` does not hold the session of `key` for itself any more."""
        ...

    def spawn(self, work: Coroutine[Any, Any, Any], *, cut: bool = False) -> "asyncio.Task[Any]": ...

    def known(
        self, kind: Kind, agent: Agent | None, profile: int | None = None, principal: Principal | None = None
    ) -> Listing | None: ...

    async def listing(
        self, kind: Kind, agent: Agent | None, principal: Principal | None, profile: int | None = None
    ) -> Listing: ...


class Session(Hearing):
    """A session with a server. Subclasses speak a transport; here is what they share.

    channel: all calls share one stream of messages, so that what the server asks names none of them. issued: the
    server has given it an id of its own. uris: resources it is subscribed to, by who wants each. event: the last
    event id of its stream. fresh: until when nobody takes it from those for whom it was opened and who have not
    used it yet. restarts: when it may be opened again, None for no channel. used: agents' calls have run in it.
    tasks: some of them as tasks, which may run still.
    reports: the next call is to be told that its predecessor was lost. leaving: it is closed as soon as no call
    runs in it. place: the name of its record, "" for none, and generation: which of its sessions it is. kept: the
    server is not told that it ends, because another worker may go on with it. saved: when its record was written.
    written: done when it is, None where nobody wrote. principal: on whose behalf its last call was made, for a server
    that is shown that.
    """

    channel: ClassVar[bool] = False

    upstream: Owner

    def __init__(self, upstream: Owner, key: Key) -> None:
        super().__init__()
        self.upstream = upstream
        self.key = key
        self.profile = key[2]
        self.active = 0
        self.touched = upstream.clock.now
        self.fresh = 0.0
        self.lost = False
        self.closed = False
        self.new = False
        self.features: Features | None = None
        self.agents: set[Agent] = set()
        self.ears: dict[int, Ears] = {}
        self.level = ""
        self.uris: dict[str, set[Agent | None]] = {}
        self.event = b""
        self.issued = True
        self.born = upstream.clock.now
        self.restarts: Restarts | None = None
        self.used = False
        self.tasks = False
        self.reports = False
        self.leaving = False
        self.generation = 0
        self.place = ""
        self.kept = False
        self.saved = upstream.clock.now
        self.written: asyncio.Future[None] | None = None
        self.principal: Principal | None = None
        self._ids = 0

    # ---- what a transport does
    async def open(self) -> None:
        """Connect and shake hands. Raises Failure."""
        raise NotImplementedError

    async def call(self, call: ToolCall, deadline: float) -> Reply:
        """Ask; returns at the first message. Raises Failure, or Expired when nothing was carried out."""
        raise NotImplementedError

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message:
        """A request of our own; its answer, a result or an error. Raises Failure."""
        raise NotImplementedError

    async def listen(self, params: dict[str, Any], heard: Callable[[bytes, jsonrpc.Message], None]) -> Ears:
        """Open a stream of `subscriptions/listen` with a stateless server. Raises Failure."""
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    def opened(self) -> None:
        """The handshake was answered: what follows carries its outcome (`features`)."""

    @property
    def revision(self) -> str:
        """What is spoken in it, "" before the handshake."""
        return self.features.revision if self.features is not None else ""

    async def borne(self, refused: bytes = b"") -> bytes:
        """The header line that says on whose behalf a message of our own is sent; b"" where that is not said. refused:
        the one before, if the server has not taken it. Raises Failure."""
        bears = self.upstream.bears
        if bears is None:
            return b""
        made = bears(self.principal, refused[len(_BEARS) : -2]) if refused else bears(self.principal)
        return b"%b%b\r\n" % (_BEARS, made if isinstance(made, bytes) else await made)

    async def bearing(self, send: Callable[[bytes], Awaitable[Exchange]]) -> Exchange:
        """The answer to a message of our own. Where the server does not take who asks it has done nothing, and is asked
        once more by another credential, if there is one. send: given the header line. Raises Failure."""
        borne = await self.borne()
        exchange = await send(borne)
        if exchange.status == 401 and borne:
            other = await self.borne(borne)
            if other != borne:
                exchange.close()
                exchange = await send(other)
        return exchange

    # ---- requests
    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def params_of(self, call: ToolCall, id: int) -> bytes:
        """The params that go out: the call's, with the `_meta` of this side."""
        meta: dict[str, Any] | None = call.meta
        if self.new:
            more = call.extensions
            can = capabilities.render(call.profile, new=True, extensions=more) if call.profile or more else b"{}"
            meta = revisions.new_meta(can, self.upstream.client, meta, call.level)
        if call.progress:
            meta = {**meta, "progressToken": id} if meta else {"progressToken": id}
        if meta:
            fields: dict[str, Any] = dict(call.params)
            fields["_meta"] = meta
            return jsonrpc.encode_fields(fields)
        return jsonrpc.encode_fields(call.params) if call.params else b""

    def done(self) -> None:
        """A call has ended."""
        self.active -= 1
        self.touched = self.upstream.clock.now
        self.fresh = 0.0
        if not self.active:
            if self.leaving or self.upstream.retired:
                self.upstream.discard(self, RESTART if self.leaving else "")
            elif self.upstream.crowded:
                self.upstream.let_in()

    # ---- what agents tell it
    async def ensure_level(self, level: str) -> None:
        """Make the server log at least as much as `level` (old era); the most verbose one asked stays."""
        if self.new or not level or self.features is None or "logging" not in self.features.capabilities:
            return
        if self.level and LEVELS.get(self.level, 0) <= LEVELS.get(level, 0):
            return
        self.level = level
        await self.ask("logging/setLevel", {"level": level}, self.upstream.spec.list_timeout)
        self.upstream.told(self)

    def attach(self, agent: Agent) -> None:
        """`agent` uses this session from now to its end; a session of its own ends with it."""
        if agent not in self.agents and not self.closed:
            self.agents.add(agent)
            agent.on_end(self, partial(self._left, agent))

    def detach(self) -> set[Agent]:
        """It ends: no agent has anything to do with it any more. Gives those who had."""
        agents, self.agents = self.agents, set()
        for agent in agents:
            agent.forget(self)
        ears, self.ears = self.ears, {}
        for one in ears.values():
            one.close()
        return agents

    def _left(self, agent: Agent) -> None:
        self.agents.discard(agent)
        gone = [uri for uri, wanting in self.uris.items() if agent in wanting]
        if not agent.ended and self.key[0] == "agent":
            gone = []  # the agent goes on elsewhere, and this session with it
        for uri in gone:
            self.unsubscribed(uri, agent)
        if self.key[0] == "agent":
            self.upstream.left(self, agent)
            self.upstream.discard(self)
        else:
            for uri in gone:
                if uri not in self.uris:
                    self.upstream.later(
                        self.ask("resources/unsubscribe", {"uri": uri}, self.upstream.spec.list_timeout)
                    )
            self.upstream.left(self, agent)

    def subscribed(self, uri: str, agent: Agent | None) -> None:
        """The server has agreed to tell of `uri`."""
        self.uris.setdefault(uri, set()).add(agent)
        self.upstream.told(self)

    def unsubscribed(self, uri: str, agent: Agent | None) -> None:
        wanting = self.uris.get(uri)
        if wanting is not None:
            wanting.discard(agent)
            if not wanting:
                del self.uris[uri]
            self.upstream.told(self)

    # ---- what is told of it
    def adopt(self, record: Record) -> bool:
        """Go on with the session that another worker has opened. False: it cannot be gone on with from here."""
        return False

    def take_up(self, place: Place, call: ToolCall, deadline: float) -> Reply | None:
        """Read an answer on that another worker has begun to read; this session is for nothing else then. None: it
        cannot be."""
        return None

    def record(self, node: str) -> Record:
        """What another worker needs to know to go on with it."""
        features = self.features if self.features is not None else Features("", {})
        return Record(
            self.place,
            self.generation,
            node,
            self.shared_id(),
            features.revision,
            jsonrpc.encode_fields(features.capabilities),
            features.instructions,
            self.level,
            list(self.uris),
            self.event,
        )

    def shared_id(self) -> str:
        """The server's id for it, "" where another worker could not use it."""
        return ""

    def memory(self, agents: set[Agent], cause: str) -> Memory:
        """What its successor is told."""
        memory = Memory()
        memory.cause = cause
        memory.level = self.level
        memory.uris = self.uris
        memory.event = self.event
        memory.generation = self.generation
        memory.used = self.used or self.reports
        memory.principal = self.principal
        memory.agents = agents if memory.level or memory.uris else set()
        memory.at = self.upstream.clock.now
        return memory

    def isolate(self, why: str) -> None:
        self.upstream.isolate(self, why)
