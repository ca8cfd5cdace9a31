"""What a stateless server tells by itself: one `subscriptions/listen` for all agents that want to hear (2026-07-28).

Rule: the stream asks for the union of what is wanted. When that changes a new stream is opened before the old one is
closed, so that nothing falls between; and when one was lost, everybody who waits for something is told to look again.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any, Protocol

import msgspec

from tollhouse.backends.mcp.agent import Agent
from tollhouse.backends.mcp.handshake import OPEN_TIMEOUT, Features
from tollhouse.backends.mcp.messages import ANSWER_HEADERS
from tollhouse.core.call import ToolCall
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions

__all__ = ["Ears", "Listening"]

log = logging.getLogger("tollhouse.backends.mcp")

_ACKNOWLEDGED = 5.0  # seconds for a server to say what it agrees to
_TOGETHER = 0.02  # seconds in which changes of what is wanted become one new stream
_PAUSE, _MOST = 0.5, 30.0
_STEADY = 5.0  # seconds after which a stream that ends was a good one

_LISTS = {"tools": "toolsListChanged", "prompts": "promptsListChanged", "resources": "resourcesListChanged"}


class Ears:
    """A stream that a stateless server tells things on. acknowledged: the URIs that it agreed to tell of. ended: it
    tells no more. heard: gets every other message. close: ends it."""

    __slots__ = ("_close", "_heard", "acknowledged", "ended")

    def __init__(self, heard: Callable[[bytes, jsonrpc.Message], None], close: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        self.acknowledged: asyncio.Future[frozenset[str]] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()
        self._heard = heard
        self._close: Callable[[], None] | None = close

    def received(self, data: bytes, message: jsonrpc.Message) -> None:
        if self.ended.done():
            return
        if message.is_response:
            self.over()
        elif message.method == "notifications/subscriptions/acknowledged":
            if not self.acknowledged.done():
                self.acknowledged.set_result(_agreed(message.params))
        elif not message.is_request:
            self._heard(data, message)

    def over(self) -> None:
        """Nothing more comes."""
        self._close = None
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        close, self._close = self._close, None
        self.over()
        if close is not None:
            close()


class _Filter(msgspec.Struct):
    resources: list[str] = msgspec.field(name="resourceSubscriptions", default_factory=list)


class _Acknowledged(msgspec.Struct):
    notifications: _Filter = msgspec.field(default_factory=_Filter)


def _agreed(params: msgspec.Raw) -> frozenset[str]:
    try:
        return frozenset(msgspec.json.decode(params, type=_Acknowledged).notifications.resources)
    except msgspec.DecodeError:
        return frozenset()


class Stateless(Protocol):
    """A session with a stateless server, as much as listening needs of it."""

    new: bool
    lost: bool
    features: Features | None

    async def listen(self, params: dict[str, Any], heard: Callable[[bytes, jsonrpc.Message], None]) -> Ears: ...

    def subscribed(self, uri: str, agent: Agent | None) -> None: ...

    def unsubscribed(self, uri: str, agent: Agent | None) -> None: ...


class Listened(Protocol):
    """The server (`backends.mcp.upstream.Upstream`)."""

    name: str
    client: bytes
    retired: bool

    def changed(self, notification: str) -> None: ...

    def spawn(self, work: Coroutine[Any, Any, Any], *, cut: bool = False) -> "asyncio.Task[Any]": ...


class Listening:
    """For one server. session: gives the session with it, open, until the monotonic second given."""

    def __init__(self, upstream: Listened, session: Callable[[float], Awaitable[Stateless]]) -> None:
        self._upstream = upstream
        self._session = session
        self._wanted: dict[str, set[Agent]] = {}
        self._agreed: frozenset[str] = frozenset()
        self._features: Features | None = None
        self._version = 0
        self._changes: asyncio.Event | None = None
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._runner: asyncio.Task[Any] | None = None
        self._current: Stateless | None = None

    def opened(self, session: Stateless) -> None:
        """A session was opened: begin to listen, where there is anything to hear."""
        self._features = session.features
        self._current = session
        for uri, agents in self._wanted.items():
            for agent in agents:
                session.subscribed(uri, agent)
        if self._filter():
            self._run_on()

    async def answer(self, call: ToolCall, session: Stateless) -> Reply:
        """To `resources/subscribe` and `resources/unsubscribe` of an agent. Raises Failure."""
        uri, agent = call.name, call.session
        self._current = session
        if call.method == "resources/unsubscribe":
            self._drop(uri, agent)
            return Reply(200, ANSWER_HEADERS, jsonrpc.result(1, b"{}"))
        self._wanted.setdefault(uri, set()).add(agent)
        session.subscribed(uri, agent)
        agent.on_end(self, partial(self._left, agent))
        if uri not in self._agreed:
            self._version += 1
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((self._version, waiter))
            self._run_on()
            try:
                await waiter
            except asyncio.CancelledError:
                self._drop(uri, agent)
                raise
        if uri in self._agreed:
            return Reply(200, ANSWER_HEADERS, jsonrpc.result(1, b"{}"))
        self._drop(uri, agent)
        why = "the server does not tell of changes of this resource"
        return Reply(200, ANSWER_HEADERS, jsonrpc.error(1, jsonrpc.INVALID_PARAMS, why, {"uri": uri}))

    def _drop(self, uri: str, agent: Agent) -> None:
        agents = self._wanted.get(uri)
        if agents is None:
            return
        agents.discard(agent)
        if self._current is not None:
            self._current.unsubscribed(uri, agent)
        if not agents:
            del self._wanted[uri]
            self._version += 1
            if self._changes is not None:
                self._changes.set()
        if not any(agent in others for others in self._wanted.values()):
            agent.forget(self)

    def _left(self, agent: Agent) -> None:
        for uri in [uri for uri, agents in self._wanted.items() if agent in agents]:
            self._drop(uri, agent)

    # ---- the stream
    def _filter(self) -> dict[str, Any]:
        features = self._features
        wanted: dict[str, Any] = {
            key: True for name, key in _LISTS.items() if features is not None and features.tells_changes(name)
        }
        if self._wanted:
            wanted["resourceSubscriptions"] = list(self._wanted)
        return wanted

    def _run_on(self) -> None:
        if self._changes is not None:
            self._changes.set()
        if self._runner is None:
            try:
                self._runner = self._upstream.spawn(self._run(), cut=True)
            except Failure:
                self._settle(self._version)
                raise

    async def _run(self) -> None:
        """Hold a stream open while there is anything to hear."""
        changes = self._changes = asyncio.Event()
        ears: Ears | None = None
        pause, lost = _PAUSE, False
        try:
            while not self._upstream.retired and (wanted := self._filter()):
                changes.clear()
                version = self._version
                before, ears = ears, None
                try:
                    session = await self._session(monotonic() + OPEN_TIMEOUT)
                    self._current, self._features = session, session.features
                    if not session.new:
                        return
                    ears = await session.listen(self._params(wanted), self._heard)
                    agreed = await self._acknowledged(ears)
                except Failure as failure:
                    log.info("mcp server %s: cannot listen to it: %s", self._upstream.name, failure)
                    if ears is not None:
                        ears.close()
                    ears = before if before is not None and not before.ended.done() else None
                    self._settle(version)
                    if ears is None:
                        await asyncio.sleep(pause)
                        pause = min(pause * 2, _MOST)
                        lost = True
                        continue
                else:
                    self._agreed = agreed
                    if before is not None:
                        before.close()
                    if lost:
                        self._look_again()
                        lost = False
                    self._settle(version)
                began = monotonic()
                if await self._until_changed(ears, changes):
                    await asyncio.sleep(_TOGETHER)
                    continue
                ears, lost = None, True
                if not self._wanted and session.lost:
                    return  # nobody waits: the next session listens again
                if monotonic() - began > _STEADY:
                    pause = _PAUSE
                await asyncio.sleep(pause)
                pause = min(pause * 2, _MOST)
        finally:
            self._runner = self._changes = None
            self._agreed = frozenset()
            if ears is not None:
                ears.close()
            self._settle(self._version)

    def _params(self, wanted: dict[str, Any]) -> dict[str, Any]:
        return {"notifications": wanted, "_meta": revisions.new_meta(b"{}", self._upstream.client, None, "")}

    async def _acknowledged(self, ears: Ears) -> frozenset[str]:
        """The URIs that the server agrees to tell of. Raises Failure when it does not say."""
        await asyncio.wait((ears.acknowledged, ears.ended), timeout=_ACKNOWLEDGED, return_when=asyncio.FIRST_COMPLETED)
        if not ears.acknowledged.done():
            raise Failure(504, Reason.TIMEOUT, f"{self._upstream.name}: it does not acknowledge")
        return ears.acknowledged.result()

    async def _until_changed(self, ears: Ears, changes: asyncio.Event) -> bool:
        """True: something else is wanted. False: the stream has ended."""
        changed = asyncio.ensure_future(changes.wait())
        try:
            await asyncio.wait((changed, ears.ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            changed.cancel()
        return not ears.ended.done()

    def _settle(self, version: int) -> None:
        """What was wanted at `version` is decided."""
        waiting, self._waiting = self._waiting, []
        for wanted, waiter in waiting:
            if wanted > version:
                self._waiting.append((wanted, waiter))
            elif not waiter.done():
                waiter.set_result(None)

    # ---- what is heard
    def _heard(self, data: bytes, message: jsonrpc.Message) -> None:
        if message.method.endswith("/list_changed"):
            self._upstream.changed(message.method)
        elif message.method == "notifications/resources/updated":
            try:
                fields = jsonrpc.decode_fields(message.params)
            except jsonrpc.Malformed:
                return
            uri = jsonrpc.decode_string(fields.get("uri"))
            if uri is None:
                return
            fields.pop("_meta", None)  # the number of our subscription is not theirs
            self._tell_of(uri, jsonrpc.encode_fields(dict(fields)))

    def _tell_of(self, uri: str, params: bytes) -> None:
        data = jsonrpc.notification("notifications/resources/updated", params)
        message = jsonrpc.decode(data)
        told: set[int] = set()
        for wanted, agents in tuple(self._wanted.items()):
            if uri.startswith(wanted):  # also a part of it
                for agent in tuple(agents):
                    if id(agent) not in told:
                        told.add(id(agent))
                        agent.deliver(self._upstream.name, data, message, _nobody)

    def _look_again(self) -> None:
        """Something may have changed while nobody listened."""
        for uri in tuple(self._wanted):
            self._tell_of(uri, jsonrpc.encode_fields({"uri": msgspec.Raw(msgspec.json.encode(uri))}))
        features = self._features
        for name in _LISTS:
            if features is not None and features.tells_changes(name):
                self._upstream.changed(f"notifications/{name}/list_changed")


def _nobody(_: bytes) -> None:
    """A stateless server takes no answers."""
