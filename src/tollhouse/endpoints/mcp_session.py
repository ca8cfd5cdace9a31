"""Sessions of old-era agents, and subscriptions of new-era ones: what lives longer than a request.

Rule: a session belongs to one principal at one endpoint; to anybody else, and once it has ended, it was never there
(404). It survives changes of configuration, and holds nothing of one.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from tollhouse.core.clock import FOREVER, Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.endpoints.mcp_stream import Answer, Outlet
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions
from tollhouse.wire.mcp.messages import log_allowed, updated_uri

__all__ = ["InFlight", "Session", "Sessions", "Subscription"]

_BACKLOG = 64  # messages kept for an agent that has no stream open
_ASKED = 64  # requests of servers that an agent has not answered
_COALESCE = 0.25  # seconds in which changes of lists are told once
_SUBSCRIPTIONS = 1000

_FILTERS = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}


class InFlight:
    """A request of a session that is being answered: a task that waits, or a stream that flows."""

    __slots__ = ("answer", "cancelled", "task")

    def __init__(self, task: "asyncio.Task[Any] | None") -> None:
        self.task = task
        self.answer: Answer | None = None
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.cut(Failure(499, Reason.CLIENT_GONE, "the client has cancelled the request"))
        elif self.task is not None:
            self.task.cancel()


class Session:
    """One agent's session. Timed: it ends when it is idle for the timeout.

    profile: what the agent can be asked (`wire.mcp.capabilities`). servers: behind its endpoint. wrap: URIs carry their
    server. calls: requests in flight by raw id. subscribed: URIs as the agent knows them, that their server has
    agreed to tell of.
    """

    __slots__ = (
        "_answers", "_asked", "_backlog", "_ends", "_outlets", "_sessions", "_subscribing",
        "calls", "deadline", "endpoint", "id", "level", "principal", "profile", "revision", "servers", "subscribed",
        "wrap",
    )  # fmt: skip

    def __init__(
        self,
        sessions: "Sessions",
        *,
        principal: str,
        endpoint: str,
        servers: frozenset[str],
        revision: str,
        profile: int,
    ) -> None:
        self.id = secrets.token_urlsafe(24)
        self.principal = principal
        self.endpoint = endpoint
        self.servers = servers
        self.revision = revision
        self.profile = profile
        self.wrap = False
        self.level = ""
        self.calls: dict[bytes, InFlight] = {}
        self.subscribed: set[str] = set()
        self.deadline = FOREVER
        self._sessions: Sessions | None = sessions
        self._outlets: list[Outlet] = []
        self._backlog: deque[bytes] = deque(maxlen=_BACKLOG)
        self._asked = 0
        self._answers: dict[bytes, tuple[Callable[[bytes], None], bytes]] = {}
        self._ends: dict[Any, Callable[[], None]] = {}
        self._subscribing: dict[str, list[bytes]] = {}  # asked for and not yet granted: what was told meanwhile

    @property
    def hears(self) -> str:
        """The least log level to pass on. An agent that never said gets what servers say by themselves, from info."""
        return self.level or "info"

    @property
    def busy(self) -> bool:
        return bool(self.calls or self._outlets)

    def touch(self) -> None:
        if self._sessions is not None:
            self.deadline = self._sessions.clock.now + self._sessions.timeout

    def expire(self) -> None:
        if self._sessions is not None:
            if self.busy:
                self.touch()
            else:
                self._sessions.end(self)

    def on_end(self, key: Any, callback: Callable[[], None]) -> None:
        """Call `callback` when this session ends, unless it is told to `forget` the key."""
        if self._sessions is None:
            callback()
        else:
            self._ends[key] = callback

    def forget(self, key: Any) -> None:
        self._ends.pop(key, None)

    # ---- to the agent
    def outlet(self) -> Outlet:
        """A new stream of this session, which now takes what belongs to no request."""
        assert self._sessions is not None
        outlet = Outlet(self._sessions.clock, self._closed)
        self._outlets.append(outlet)
        while self._backlog:
            outlet.say(self._backlog.popleft())
        return outlet

    def _closed(self, outlet: Outlet) -> None:
        if outlet in self._outlets:
            self._outlets.remove(outlet)
        self.touch()

    def say(self, message: bytes) -> None:
        """A notification: on the newest stream, or kept for the next one."""
        if not (self._outlets and self._outlets[-1].say(message)):
            self._backlog.append(message)

    def deliver(self, server: str, data: bytes, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bool:
        """What `server` says outside of any request of ours."""
        try:
            if message.is_request:
                return self._deliver_request(message, answer)
            method = message.method
            if method == "notifications/message":
                if log_allowed(message.params, self.hears):
                    self.say(jsonrpc.notification(method, message.params))
            elif method == "notifications/resources/updated":
                uri, notification = updated_uri(message, server if self.wrap else "")
                if any(map(uri.startswith, self.subscribed)):  # also of a part of it
                    self.say(notification)
                else:
                    held = next((held for asked, held in self._subscribing.items() if uri.startswith(asked)), None)
                    if held is not None and len(held) < _BACKLOG:
                        held.append(notification)
            else:
                self.say(jsonrpc.notification(method, message.params))
        except jsonrpc.Malformed:
            return False
        return True

    # ---- subscriptions of resources
    def subscribe(self, uri: str) -> None:
        """`uri` is being asked for; `subscribed_to` must follow. Raises Failure 429 when there are too many."""
        if len(self.subscribed) + len(self._subscribing) >= _SUBSCRIPTIONS and uri not in self.subscribed:
            why = f"this session has {_SUBSCRIPTIONS} subscriptions: end some with resources/unsubscribe"
            raise Failure(429, Reason.RATE_LIMIT, why)
        self._subscribing.setdefault(uri, [])

    def subscribed_to(self, uri: str, granted: bool) -> None:
        """The server's answer, or the rules', to `subscribe`. A refusal ends no earlier subscription."""
        held = self._subscribing.pop(uri, [])
        if granted and self._sessions is not None:
            self.subscribed.add(uri)
            for notification in held:
                self.say(notification)

    def unsubscribed(self, uri: str, granted: bool) -> None:
        if granted:
            self.subscribed.discard(uri)

    def _deliver_request(self, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bool:
        if not self._outlets:
            return False
        return self._outlets[-1].say(self.ask(message, answer))

    def ask(self, message: jsonrpc.Message, answer: Callable[[bytes], None]) -> bytes:
        """A server's request under an id of ours; `answer` gets the response. Above the bound the oldest one that is
        unanswered is answered with an error."""
        if len(self._answers) >= _ASKED:
            oldest, id = self._answers.pop(next(iter(self._answers)))
            oldest(jsonrpc.error(id, jsonrpc.INTERNAL_ERROR, "the client did not answer"))
        self._asked += 1
        id = b'"ask-%d"' % self._asked
        self._answers[id] = (answer, bytes(message.id))
        return jsonrpc.request(id, message.method, message.params)

    def answered(self, message: jsonrpc.Message) -> bool:
        """The agent's response to a server's request; False when nobody waits for it."""
        waiting = self._answers.pop(bytes(message.id), None)
        if waiting is None:
            return False
        answer, id = waiting
        answer(jsonrpc.failed(id, message.error) if len(message.error) else jsonrpc.result(id, message.result))
        return True

    def release(self) -> None:
        """It has ended: cancel what runs, close what is open."""
        self._sessions = None
        self.deadline = FOREVER
        for call in list(self.calls.values()):
            call.cancel()
        self.calls.clear()
        for outlet in list(self._outlets):
            outlet.finish()
        self._outlets.clear()
        self._answers.clear()
        ends, self._ends = self._ends, {}
        for callback in ends.values():
            callback()


class Subscription:
    """A `subscriptions/listen` of a stateless agent (2026-07-28): its stream, and which changes it wants."""

    __slots__ = ("id", "methods", "outlet", "servers")

    def __init__(self, id: bytes, methods: frozenset[str], servers: frozenset[str], outlet: Outlet) -> None:
        self.id = id
        self.methods = methods
        self.servers = servers
        self.outlet = outlet

    def meta(self) -> dict[str, Any]:
        return {revisions.SUBSCRIPTION_ID: msgspec.Raw(self.id)}

    def tell(self, method: str) -> None:
        if method in self.methods:
            self.outlet.say(jsonrpc.notification(method, jsonrpc.encode_fields({"_meta": self.meta()})))


class Sessions:
    """All sessions and subscriptions of this process; kept while configurations come and go.

    timeout: seconds of idleness. limit, limit_each: sessions, in all and of one principal. count: called with
    (revision, +1 or -1).
    """

    def __init__(
        self,
        clock: Clock,
        *,
        timeout: float = 3600.0,
        limit: int = 10_000,
        limit_each: int = 1000,
        count: Callable[[str, int], None] = lambda revision, change: None,
    ) -> None:
        self.clock = clock
        self.timeout = timeout
        self.deadline = FOREVER
        self._limit = limit
        self._limit_each = limit_each
        self._count = count
        self._open: dict[str, Session] = {}
        self._of: dict[str, dict[str, Session]] = {}
        self._subscriptions: set[Subscription] = set()
        self._changes: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._open)

    # ---- sessions
    def open(self, *, principal: str, endpoint: str, servers: frozenset[str], revision: str, profile: int) -> Session:
        """A new session. Raises Failure 503 or 429 when there are too many and none is idle."""
        own = self._of.get(principal, {})
        if len(own) >= self._limit_each:
            self._evict(own, 429, f"this caller has {self._limit_each} sessions open: end some with DELETE")
        if len(self._open) >= self._limit:
            self._evict(self._open, 503, "too many sessions are open")
        session = Session(
            self, principal=principal, endpoint=endpoint, servers=servers, revision=revision, profile=profile
        )
        self._open[session.id] = session
        self._of.setdefault(principal, {})[session.id] = session
        session.touch()
        self.clock.watch(session)
        self._count(revision, 1)
        return session

    def _evict(self, among: dict[str, Session], status: int, why: str) -> None:
        idle = [session for session in among.values() if not session.busy]
        if not idle:
            raise Failure(status, Reason.RATE_LIMIT if status == 429 else Reason.MCP, why)
        self.end(min(idle, key=lambda session: session.deadline))

    def find(self, id: str, principal: str, endpoint: str) -> Session | None:
        """The session, if it is open and is this principal's at this endpoint."""
        session = self._open.get(id)
        if session is None or session.principal != principal or session.endpoint != endpoint:
            return None
        return session

    def end(self, session: Session) -> None:
        if self._open.pop(session.id, None) is None:
            return
        own = self._of.get(session.principal)
        if own is not None:
            own.pop(session.id, None)
            if not own:
                del self._of[session.principal]
        self.clock.drop(session)
        self._count(session.revision, -1)
        session.release()

    def subscribed_elsewhere(self, session: Session, uri: str) -> bool:
        """Whether another session of the same principal still wants to hear of `uri`."""
        own = self._of.get(session.principal, {})
        return any(other is not session and uri in other.subscribed for other in own.values())

    # ---- subscriptions
    def subscribe(self, id: bytes, wanted: dict[str, Any], servers: frozenset[str]) -> Subscription:
        """A stream that begins with its acknowledgement: the changes of lists that were asked for. Raises Failure."""
        if len(self._subscriptions) >= self._limit:
            raise Failure(503, Reason.MCP, "too many subscriptions are open")
        methods = frozenset(method for method, name in _FILTERS.items() if wanted.get(name) is True)
        outlet = Outlet(self.clock, lambda _: self._subscriptions.discard(subscription))
        subscription = Subscription(id, methods, servers, outlet)
        self._subscriptions.add(subscription)
        accepted = {_FILTERS[method]: True for method in sorted(methods)}
        params = {"notifications": accepted, "_meta": subscription.meta()}
        outlet.say(jsonrpc.notification("notifications/subscriptions/acknowledged", jsonrpc.encode_fields(params)))
        return subscription

    # ---- changes of lists
    def changed(self, server: str, method: str) -> None:
        """A list of `server` is another: tell everybody who sees it, soon and once."""
        if not self._changes:
            self.deadline = self.clock.now + _COALESCE
            self.clock.hurry(self)
        self._changes.add((server, method))

    def all_changed(self) -> None:
        """Another configuration serves: every list may be another to anybody."""
        for method in _FILTERS:
            self.changed("", method)

    def expire(self) -> None:
        self.deadline = FOREVER
        changes, self._changes = self._changes, set()
        for session in list(self._open.values()):
            for method in _concerning(session.servers, changes):
                session.say(jsonrpc.notification(method))
        for subscription in list(self._subscriptions):
            for method in _concerning(subscription.servers, changes):
                subscription.tell(method)

    # ---- the end
    def finish_streams(self) -> None:
        """End every open stream in good order: the process drains. Sessions stay."""
        for subscription in list(self._subscriptions):
            params = {"resultType": "complete", "_meta": subscription.meta()}
            subscription.outlet.say(jsonrpc.result(subscription.id, jsonrpc.encode_fields(params)))
            subscription.outlet.finish()
        for session in list(self._open.values()):
            for outlet in list(session._outlets):
                outlet.finish()

    def close(self) -> None:
        """End everything."""
        self.finish_streams()
        for session in list(self._open.values()):
            self.end(session)


def _concerning(servers: frozenset[str], changes: set[tuple[str, str]]) -> list[str]:
    return sorted({method for server, method in changes if not server or server in servers})
