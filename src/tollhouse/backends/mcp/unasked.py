"""What an MCP server says outside of a call's own stream.

Rule: it may quote a call, so it goes to the one it must be about, or to nobody. What the server asks for and its agents
cannot give is refused here. A server that says more than it is asked for is heard less, and at last left alone.
"""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, Protocol

import msgspec

from tollhouse.backends.mcp.agent import Agent, Key
from tollhouse.backends.mcp.messages import Messages, result_of
from tollhouse.core.clock import Clock
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities, tasks

__all__ = ["Flood", "Hearing", "Speaking"]

log = logging.getLogger("tollhouse.backends.mcp")

_RATE = 200  # unasked messages a second
_FLOOD = 5_000
_SECONDS = 5  # in a row above the rate
_PENDING = 256  # changes kept while a server says too much
_PAUSE = 1.0  # seconds for which they are kept


class Flood:
    """How much a server says that nobody asked for. now: monotonic seconds, coarse."""

    __slots__ = ("_count", "_over", "_since")

    def __init__(self) -> None:
        self._since = 0.0
        self._count = 0
        self._over = 0

    def count(self, now: float) -> int:
        """One more. 0: well. 1: above the rate; what can be left out should be. 2: it has been for too long, or far
        above: nobody has to bear that."""
        if now - self._since >= 1.0:
            self._over = self._over + 1 if self._count > _RATE and now - self._since < 2.0 else 0
            self._since = now
            self._count = 0
        self._count += 1
        if self._count > _FLOOD or self._over >= _SECONDS:
            return 2
        return 1 if self._count > _RATE else 0


class Speaking(Protocol):
    """The server that speaks (`backends.mcp.upstream.Upstream`)."""

    name: str
    clock: Clock

    def changed(self, notification: str) -> None: ...

    def elicited(self, params: msgspec.Raw) -> None: ...

    def later(self, work: Coroutine[Any, Any, Any], *, cut: bool = False) -> bool: ...


class Hearing:
    """A session, as far as it hears (`session.Session`). active: calls that run in it."""

    upstream: Speaking
    key: Key
    profile: int
    active: int
    agents: set[Agent]

    def __init__(self) -> None:
        self._flood = Flood()
        self._pending: dict[bytes, jsonrpc.Message] = {}

    # ---- what a session does
    def in_flight(self) -> Messages | None:
        """The latest call that still runs and can carry what belongs to none."""
        return None

    def sole(self) -> Messages | None:
        """The call that an uncorrelated message must be about: the only one that runs. None in doubt."""
        return self.in_flight() if self.active == 1 else None

    def result_of(self, task: str) -> Messages | None:
        """The call that waits for the result of that task; "": of any, where there is one alone."""
        sole = self.sole()
        return result_of((sole,), task) if sole is not None else None

    def tell(self, message: bytes) -> None:
        """Send a notification or a response, as well as may be."""
        raise NotImplementedError

    def isolate(self, why: str) -> None:
        """Close the session, and have nothing to do with the server for a while."""
        raise NotImplementedError

    # ---- what the server says
    def hear(self, data: bytes, message: jsonrpc.Message) -> None:
        """A notification or a request of the server that belongs to no call that we can tell."""
        said = self._flood.count(self.upstream.clock.now)
        if said:
            if said > 1:
                self.isolate("the server sends far more than it is asked for")
            else:
                self._put_off(message)
            return
        self._heard(data, message)

    def noise(self) -> bool:
        """Something that is no message, or could be left out. Whether it should be: the server says too much."""
        said = self._flood.count(self.upstream.clock.now)
        if said > 1:
            self.isolate("the server sends far more than it is asked for")
        return said > 0

    def _put_off(self, message: jsonrpc.Message) -> None:
        """It says too much: of changes each is told once in a while, and the rest is left out."""
        if message.method.endswith("/list_changed"):
            self.upstream.changed(message.method)
        elif (
            message.method == "notifications/resources/updated"
            and len(self._pending) < _PENDING
            and (self._pending or self.upstream.later(self._tell_put_off(), cut=True))
        ):
            self._pending.setdefault(bytes(message.params), message)

    async def _tell_put_off(self) -> None:
        await asyncio.sleep(_PAUSE)
        pending, self._pending = self._pending, {}
        for message in pending.values():
            self._heard(jsonrpc.notification(message.method, message.params), message)

    def _heard(self, data: bytes, message: jsonrpc.Message) -> None:
        method = message.method
        if message.is_request:
            self._asked(data, message)
        elif method.endswith("/list_changed"):
            self.upstream.changed(method)
        elif method in ("notifications/cancelled", "notifications/progress"):
            return  # of requests that we cannot tell either
        elif method == "notifications/resources/updated":  # names nothing but what an agent has subscribed to
            for agent in tuple(self.agents):
                agent.deliver(self.upstream.name, data, message, self.tell)
        else:
            if method == "notifications/elicitation/complete":
                self.upstream.elicited(message.params)
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

    def _asked(self, data: bytes, message: jsonrpc.Message) -> None:
        """A request of the server: answered here, carried to the agent, or refused."""
        if message.method == "ping" or not capabilities.allows(self.profile, message.method, message.params):
            self.refuse(message)
            return
        mine = self.key[0] == "agent"
        task = _task_of(message)
        if task is None:
            current = (self.in_flight() if mine else self.sole()) or self.result_of("")
        else:  # it quotes no other call
            current = self.result_of(task)
        if current is not None and current.call is not None and current.ask(data):
            return
        if mine:
            for agent in tuple(self.agents):
                if agent.deliver(self.upstream.name, data, message, self.tell):
                    return
        self.refuse(message)

    def refuse(self, message: jsonrpc.Message) -> None:
        """Answer a request of the server that nobody is asked."""
        id = bytes(message.id)
        if message.method == "ping":
            self.tell(jsonrpc.result(id, b"{}"))
        elif not capabilities.allows(self.profile, message.method, message.params):
            self.tell(jsonrpc.error(id, jsonrpc.METHOD_NOT_FOUND, f"the client does not support {message.method!r}"))
        else:
            text = "no call is in progress that could carry this request"
            self.tell(jsonrpc.error(id, jsonrpc.INTERNAL_ERROR, text))


def _task_of(message: jsonrpc.Message) -> str | None:
    """The task that a request of a server says it is about (2025-11-25, Tasks, Related Task Metadata)."""
    if b"related-task" not in bytes(message.params):
        return None
    try:
        return tasks.about(message.params)
    except jsonrpc.Malformed:
        return None
