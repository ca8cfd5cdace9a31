"""What is kept of lost sessions with an MCP server, and told to their successors.

Rule: what agents have told a session (log level, subscriptions) is told to its successor before anybody uses that. A
session with subscriptions is opened again by itself, because its agents wait without asking. Nothing is kept of agents
that have gone.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Protocol

from tollhouse.backends.mcp.agent import Agent, Key
from tollhouse.backends.mcp.heal import DELAYS, NODE_LOST, Restarts, said
from tollhouse.backends.mcp.records import Record
from tollhouse.core.call import Principal
from tollhouse.core.errors import Failure
from tollhouse.wire import jsonrpc

__all__ = ["Lost", "Memory", "recalled", "replay"]

log = logging.getLogger("tollhouse.backends.mcp")

_REVIVALS = 64  # attempts to open a session again that nobody asks for


class Memory:
    """What a session's successor is told. agents: who used it. uris: subscribed resources, by who wants each. event:
    the last event id of its stream. used: calls have run in it, so that the server may have kept something of them.
    restarts: when it may be opened again, None for no channel. principal: on whose behalf it was used last.
    generation: of the session, among workers. Kept by the owner from the loss to the next session."""

    __slots__ = ("agents", "at", "cause", "event", "generation", "level", "principal", "restarts", "uris", "used")

    def __init__(self) -> None:
        self.agents: set[Any] = set()
        self.at = 0.0
        self.cause = ""
        self.event = b""
        self.generation = 0
        self.level = ""
        self.principal: Principal | None = None
        self.restarts: Restarts | None = None
        self.uris: dict[str, set[Any]] = {}
        self.used = False


class Told(Protocol):
    """A session, as `replay` needs it (`session.Session`)."""

    level: str
    uris: dict[str, set[Any]]
    event: bytes

    def attach(self, agent: Any) -> None: ...

    async def ask(self, method: str, params: dict[str, Any], timeout: float) -> jsonrpc.Message: ...

    async def ensure_level(self, level: str) -> None: ...

    def tell(self, message: bytes) -> None: ...


async def replay(session: Told, memory: Memory, name: str, timeout: float) -> list[str]:
    """Tell a new session what its predecessor was told: log level and subscriptions, four at a time. Gives the URIs
    that the server refuses now. Raises Failure."""
    session.event = memory.event
    for agent in memory.agents:
        session.attach(agent)
    if memory.level:
        await session.ensure_level(memory.level)
    refused: list[str] = []
    pending = iter(list(memory.uris.items()))

    async def subscribe(items: Iterable[tuple[str, set[Any]]]) -> None:
        for uri, agents in items:
            session.uris[uri] = agents
            answer = await session.ask("resources/subscribe", {"uri": uri}, timeout)
            if len(answer.error):
                session.uris.pop(uri, None)
                refused.append(uri)

    if memory.uris:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(4, len(memory.uris))):
                    group.create_task(subscribe(pending))
        except BaseExceptionGroup as failures:  # the group has waited for all of them
            raise failures.exceptions[0] from None
        for uri, agents in memory.uris.items():  # it may have changed while nobody listened
            data = jsonrpc.notification("notifications/resources/updated", jsonrpc.encode_fields({"uri": uri}))
            message = jsonrpc.decode(data)
            for agent in tuple(agents):
                if agent is not None:
                    agent.deliver(name, data, message, session.tell)
    return refused


def recalled(record: Record | None, agent: Agent | None) -> Memory | None:
    """Of a session that another worker had, and that cannot be gone on with."""
    if record is None:
        return None
    memory = Memory()
    memory.cause = NODE_LOST
    memory.generation = record.generation
    memory.level = record.level
    memory.event = record.event
    memory.used = True
    memory.agents = {agent} if agent is not None else set()
    memory.uris = {uri: {agent} for uri in record.uris}
    return memory


class Losing(Protocol):
    """The server (`backends.mcp.upstream.Upstream`)."""

    name: str

    def later(self, work: Coroutine[Any, Any, Any], *, cut: bool = False) -> bool: ...


class Lost:
    """The lost sessions with one server, at most so many. reopen: opens the session of a key, or raises Failure."""

    def __init__(self, upstream: Losing, most: int, reopen: Callable[[Key], Awaitable[Any]]) -> None:
        self._upstream = upstream
        self._most = most
        self._reopen = reopen
        self._memories: dict[Key, Memory] = {}
        self._reviving: set[Key] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._memories)

    def of(self, key: Key) -> Memory | None:
        """What the next session of `key` is to be told."""
        return self._memories.get(key)

    def keep(self, key: Key, memory: Memory) -> None:
        """The session of `key` was lost."""
        if self._closed:
            return
        self._drop(key)
        self._memories[key] = memory
        if len(self._memories) > self._most:
            self._drop(next(iter(self._memories)))
        for agent in tuple(memory.agents):
            agent.on_end(memory, partial(self._left, key, memory, agent))
        if memory.uris or key[0] == "catalogue":
            self._revive(key)

    def told(self, key: Key, memory: Memory) -> None:
        """A successor knows it."""
        if self._memories.get(key) is memory:
            self._drop(key)

    def expire(self, before: float) -> None:
        """Nobody needs what was lost so long ago, unless it waits to be told of something."""
        for key, memory in list(self._memories.items()):
            if not memory.uris and memory.at < before:
                self._drop(key)

    def close(self) -> None:
        """No session is opened any more."""
        self._closed = True
        for key in list(self._memories):
            self._drop(key)

    def _drop(self, key: Key) -> None:
        memory = self._memories.pop(key, None)
        if memory is not None:
            for agent in memory.agents:
                agent.forget(memory)

    def _left(self, key: Key, memory: Memory, agent: Agent) -> None:
        """An agent has ended whose session with the server was lost."""
        memory.agents.discard(agent)
        for uri in [uri for uri, wanting in memory.uris.items() if agent in wanting]:
            memory.uris[uri].discard(agent)
            if not memory.uris[uri]:
                del memory.uris[uri]
        if self._memories.get(key) is memory and (key[0] == "agent" or not (memory.agents or memory.uris)):
            self._drop(key)

    def _revive(self, key: Key) -> None:
        if key not in self._reviving and self._upstream.later(self._open_again(key), cut=True):
            self._reviving.add(key)

    async def _open_again(self, key: Key) -> None:
        """Open a session that agents wait for without asking."""
        try:
            for attempt in range(1, _REVIVALS):
                await asyncio.sleep(DELAYS.delay(attempt, min(30.0, 0.02 * 2.0**attempt)))
                if key not in self._memories:
                    return
                try:
                    await self._reopen(key)
                except Failure as failure:
                    log.debug("mcp server %s: not back yet: %s", self._upstream.name, said(failure))
        finally:
            self._reviving.discard(key)
