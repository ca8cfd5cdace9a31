"""A session with an MCP server, and what the server says within one call: what all transports share.

Rule: a session serves whom its key names, and declares what they declared and nothing more. What the server says
outside of a call may quote a call: it goes to the one it must be about, or to nobody. What the server asks for and its
agents cannot give is refused here.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any, Protocol

import msgspec

from tollhouse.core.call import Principal, ToolCall
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Sink
from tollhouse.core.reply import Reply
from tollhouse.core.spec import Duration, Spec
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities, revisions
from tollhouse.wire.mcp.catalogue import Kind, Listing
from tollhouse.wire.mcp.messages import LEVELS

__all__ = [
    "ANSWER_HEADERS",
    "OPEN_TIMEOUT",
    "Agent",
    "Expired",
    "Features",
    "Key",
    "McpServerSpec",
    "Messages",
    "Owner",
    "Session",
]

log = logging.getLogger("tollhouse.backends.mcp")

ANSWER_HEADERS: list[tuple[bytes, bytes]] = [(b"content-type", b"application/json")]

OPEN_TIMEOUT = 60.0  # seconds for a server to start and shake hands: `npx` may be downloading
PROBE_TIMEOUT = 5.0  # seconds after which a server that says nothing to a modern probe is an old one
_HELD = 256 << 10  # bytes of notifications kept for a slow reader
Key = tuple[str, str, int]
"""Whom a session serves: ("agent", its session id, profile) or ("principal", id, 0) or ("catalogue", "", profile)."""


class McpServerSpec(Spec):
    """What is common to all kinds of servers.

    timeout: seconds for one call. list_timeout: how long a list waits for this server. idle_timeout: seconds after
    which a session that nobody uses is closed.
    """

    timeout: Duration = 300.0
    list_timeout: Duration = 5.0
    idle_timeout: Duration = 3600.0


class Expired(Exception):
    """The server does not know our session any more; the call was not carried out."""


class Agent(Protocol):
    """An agent's session, as a server's session needs it (`endpoints.mcp_session`)."""

    id: str
    profile: int
    level: str

    def deliver(self, server: str, data: bytes, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bool:
        """Take what a server says outside of any call. False: nobody can hear it now."""
        ...

    def on_end(self, key: Any, callback: Callable[[], None]) -> None:
        """Call `callback` at its end; one for each key."""
        ...

    def forget(self, key: Any) -> None:
        """The callback of `key` is not wanted any more."""
        ...


class Features(msgspec.Struct, frozen=True):
    """What a server says of itself at the handshake. capabilities: member to its raw value."""

    revision: str
    capabilities: dict[str, msgspec.Raw]
    instructions: str = ""

    def tells_changes(self, capability: str) -> bool:
        return b'"listChanged":true' in bytes(self.capabilities.get(capability, b"")).replace(b" ", b"")


class Messages:
    """What a server says within one call: raw JSON-RPC messages, one a `send`. Timed.

    `first` waits for the earliest; then it is the Source of the rest. Subclasses know what `quit` means. logs and
    progress say whether the agent wants them: what nobody wants must not begin an answer. The call's Context is told
    when the server has said all.
    """

    __slots__ = (
        "_context", "_failure", "_held", "_paused", "_sink", "_size", "_waiter",
        "agent", "deadline", "logs", "over", "progress",
    )  # fmt: skip

    def __init__(self, waiter: "asyncio.Future[None]", call: ToolCall | None) -> None:
        self.deadline = FOREVER
        self.over = False
        self.logs = call is not None and bool(call.level or call.session is not None)
        self.progress = call is not None and call.progress
        self.agent: Agent | None = call.session if call is not None else None
        self._context = call.context if call is not None else None
        self._waiter: asyncio.Future[None] | None = waiter
        self._held: list[bytes] = []
        self._size = 0
        self._sink: Sink | None = None
        self._paused = False
        self._failure: Failure | None = None

    def quit(self) -> None:
        """It was given up before its end."""
        raise NotImplementedError

    def expire(self) -> None:
        raise NotImplementedError

    def rearm(self, waiter: "asyncio.Future[None]") -> None:
        """Let `first` wait once more."""
        self._waiter = waiter

    async def first(self) -> bytes:
        """The earliest message. Raises the Failure when there is none."""
        waiter = self._waiter
        assert waiter is not None
        if not self._held and not self.over:
            try:
                await waiter
            except BaseException:
                self._waiter = None
                self.close()
                raise
        self._waiter = None
        if self._held:
            message = self._held.pop(0)
            self._size -= len(message)
            return message
        failure, self._failure = self._failure, None
        raise failure if failure is not None else Failure(502, Reason.UPSTREAM_FAILURE, "the server said nothing")

    def reply(self, first: bytes) -> Reply:
        """`first` alone when it was all, else with this as the Source of the rest."""
        whole = self.over and not self._held and self._failure is None
        return Reply(200, ANSWER_HEADERS, first, None if whole else self)

    # the producer's side
    def push(self, message: bytes, *, droppable: bool = False) -> None:
        if self.over:
            return
        if self._sink is not None and not self._paused:
            self._sink.send(message)
            return
        if droppable and self._size > _HELD:
            return
        self._held.append(message)
        self._size += len(message)
        self._wake()

    def finish(self, failure: Failure | None = None) -> None:
        """No more comes."""
        if self.over:
            return
        self._ended()
        self._failure = failure
        if self._sink is not None and not self._held:
            self._end()
        else:
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _end(self) -> None:
        sink, self._sink = self._sink, None
        failure, self._failure = self._failure, None
        if sink is not None:
            sink.end(failure)

    # Source
    def start(self, sink: Sink) -> None:
        self._sink = sink
        self.resume()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        while self._held and self._sink is not None and not self._paused:
            message = self._held.pop(0)
            self._size -= len(message)
            self._sink.send(message)
        if self.over and not self._held:
            self._end()

    def close(self) -> None:
        self._sink = None
        self._held.clear()
        self._failure = None
        if not self.over:
            self._ended()
            self.quit()

    def _ended(self) -> None:
        self.over = True
        self.deadline = FOREVER
        if self._context is not None:
            self._context.upstream_ended = monotonic()


class Owner(Protocol):
    """The server that a session is with (`backends.mcp.Upstream`). client: raw JSON of our clientInfo. new: its era,
    None while unknown."""

    name: str
    spec: McpServerSpec
    clock: Clock
    client: bytes
    new: bool | None
    retired: bool

    def changed(self, notification: str) -> None: ...

    def discard(self, session: "Session") -> None: ...

    def later(self, work: Coroutine[Any, Any, Any]) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]": ...

    def known(self, kind: Kind, agent: Agent | None) -> Listing | None: ...

    async def listing(self, kind: Kind, agent: Agent | None, principal: Principal | None) -> Listing: ...


class Session:
    """A session with a server. Subclasses speak a transport; here is what they share."""

    def __init__(self, upstream: Owner, key: Key) -> None:
        self.upstream = upstream
        self.key = key
        self.profile = key[2]
        self.active = 0
        self.touched = upstream.clock.now
        self.lost = False
        self.closed = False
        self.new = False
        self.features: Features | None = None
        self.agents: set[Agent] = set()
        self.level = ""
        self._ids = 0
        self._capabilities = capabilities.render(self.profile)

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

    def tell(self, message: bytes) -> None:
        """Send a notification or a response, as well as may be."""
        raise NotImplementedError

    def in_flight(self) -> Messages | None:
        """The latest call that still runs and can carry what belongs to none."""
        return None

    def sole(self) -> Messages | None:
        """The call that an uncorrelated message must be about: the only one that runs. None in doubt."""
        return self.in_flight() if self.active == 1 else None

    async def close(self) -> None:
        raise NotImplementedError

    # ---- requests
    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def params_of(self, call: ToolCall, id: int) -> bytes:
        """The params that go out: the call's, with the `_meta` of this side."""
        meta: dict[str, Any] | None = call.meta
        if self.new:
            meta = revisions.new_meta(b"{}", self.upstream.client, meta, call.level)
        if call.progress:
            meta = {**meta, "progressToken": id} if meta else {"progressToken": id}
        if meta:
            fields: dict[str, Any] = dict(call.params)
            fields["_meta"] = meta
            return jsonrpc.encode_fields(fields)
        return jsonrpc.encode_fields(call.params) if call.params else b""

    def attach(self, agent: Agent) -> None:
        """`agent` uses this session from now to its end; a session of its own ends with it."""
        if agent not in self.agents and not self.closed:
            self.agents.add(agent)
            agent.on_end(self, partial(self._left, agent))

    def detach(self) -> None:
        """It ends: no agent has anything to do with it any more."""
        agents, self.agents = self.agents, set()
        for agent in agents:
            agent.forget(self)

    def _left(self, agent: Agent) -> None:
        self.agents.discard(agent)
        if self.key[0] == "agent":
            self.upstream.discard(self)

    # ---- the handshake
    async def handshake(self) -> None:
        """Find out the server's era, once for the server, and open a session in it.

        Only a DiscoverResult with a version that we speak proves the new era; an outage proves nothing.
        """
        upstream = self.upstream
        if upstream.new is not False and await self._discover():
            return
        self.new = False
        answer = await self.ask(
            "initialize",
            {
                "protocolVersion": revisions.NEWEST_OLD,
                "capabilities": msgspec.Raw(self._capabilities),
                "clientInfo": msgspec.Raw(upstream.client),
            },
            OPEN_TIMEOUT,
        )
        if len(answer.error):
            problem = jsonrpc.error_fields(answer.error)
            if problem.code == revisions.UNSUPPORTED_VERSION and await self._discover():  # it was only slow to start
                return
            raise self.refused("initialize", problem)
        fields = jsonrpc.decode_fields(answer.result)
        revision = jsonrpc.decode_string(fields.get("protocolVersion")) or ""
        if revision not in revisions.ACCEPTED_FROM_SERVERS:
            raise Failure(
                502, Reason.UPSTREAM_FAILURE, f"{upstream.name}: the server speaks {revision!r}, which we do not"
            )
        self.features = _features(revision, fields)
        upstream.new = False
        self.opened()
        self.tell(jsonrpc.notification("notifications/initialized"))

    def opened(self) -> None:
        """The handshake was answered: what follows carries its outcome (`features`)."""

    async def _discover(self) -> bool:
        self.new = True
        try:
            params: dict[str, Any] = {"_meta": revisions.new_meta(b"{}", self.upstream.client, None, "")}
            answer = await self.ask("server/discover", params, PROBE_TIMEOUT)
        except Failure as failure:
            self.new = False
            if failure.reason == Reason.TIMEOUT:
                return False
            raise
        self.new = False
        if not len(answer.result):
            return False
        try:
            fields = jsonrpc.decode_fields(answer.result)
            supported = msgspec.json.decode(fields.get("supportedVersions", b"[]"), type=list[str])
        except (jsonrpc.Malformed, msgspec.DecodeError):
            return False
        if revisions.NEWEST_NEW not in supported:
            return False
        self.new = self.upstream.new = True
        self.features = _features(revisions.NEWEST_NEW, fields)
        self.opened()
        return True

    def refused(self, method: str, problem: jsonrpc.ErrorObject) -> Failure:
        return Failure(
            502,
            Reason.UPSTREAM_FAILURE,
            f"{self.upstream.name}: the server refused {method!r}: {problem.message[:200]} ({problem.code})",
        )

    async def ensure_level(self, level: str) -> None:
        """Make the server log at least as much as `level` (old era); the most verbose one asked stays."""
        if self.new or not level or self.features is None or "logging" not in self.features.capabilities:
            return
        if self.level and LEVELS.get(self.level, 0) <= LEVELS.get(level, 0):
            return
        self.level = level
        await self.ask("logging/setLevel", {"level": level}, self.upstream.spec.list_timeout)

    # ---- what the server says outside of a call's own stream
    def hear(self, data: bytes, message: jsonrpc.Message) -> None:
        """A notification or a request of the server that belongs to no call that we can tell."""
        method = message.method
        if message.is_request:
            self.asked(data, message)
        elif method.endswith("/list_changed"):
            self.upstream.changed(method)
        elif method in ("notifications/cancelled", "notifications/progress"):
            return  # of requests that we cannot tell either
        elif method == "notifications/resources/updated":  # names nothing but what an agent has subscribed to
            for agent in tuple(self.agents):
                agent.deliver(self.upstream.name, data, message, self.tell)
        else:
            self._uncorrelated(data, message)

    def _uncorrelated(self, data: bytes, message: jsonrpc.Message) -> None:
        """A log message, or anything else that may quote a call: to whom it must be about, or to nobody."""
        current = self.sole()
        agent = next(iter(self.agents)) if len(self.agents) == 1 else None
        whole = self.key[0] == "agent"  # nobody else's calls ever run here
        if agent is not None and (whole or (current.agent is agent if current is not None else not self.active)):
            agent.deliver(self.upstream.name, data, message, self.tell)
        elif current is not None and (current.logs or message.method != "notifications/message"):
            current.push(data, droppable=True)
        else:
            log.debug("mcp server %s: dropped a %s that could be anybody's", self.upstream.name, message.method)

    def asked(self, data: bytes, message: jsonrpc.Message) -> None:
        """A request of the server: answered here, carried to the agent, or refused."""
        id = bytes(message.id)
        if message.method == "ping":
            self.tell(jsonrpc.result(id, b"{}"))
            return
        if not capabilities.allows(self.profile, message.method, message.params):
            self.tell(jsonrpc.error(id, jsonrpc.METHOD_NOT_FOUND, f"the client does not support {message.method!r}"))
            return
        if self.key[0] == "agent":
            current = self.in_flight()
            if current is not None:
                current.push(data)
                return
            for agent in self.agents:
                if agent.deliver(self.upstream.name, data, message, self.tell):
                    return
        self.tell(jsonrpc.error(id, jsonrpc.INTERNAL_ERROR, "no call is in progress that could carry this request"))

    def done(self) -> None:
        """A call has ended."""
        self.active -= 1
        self.touched = self.upstream.clock.now
        if self.upstream.retired and not self.active:
            self.upstream.discard(self)


def _features(revision: str, fields: dict[str, msgspec.Raw]) -> Features:
    return Features(
        revision,
        jsonrpc.decode_fields(fields.get("capabilities", b"")),
        jsonrpc.decode_string(fields.get("instructions")) or "",
    )
