"""The `subscriptions/listen` streams of stateless agents (2026-07-28): which changes each wants to hear of.

Rule: a stream ends with its result when the worker leaves, and when its principal is no longer good; and no caller may
have so many that others find no room.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from tollhouse.core.call import Principal
from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.holders import Held, Holders
from tollhouse.endpoints.mcp.stream import Outlet
from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import revisions

__all__ = ["Subscription", "Subscriptions", "caller_of"]

_FILTERS = {
    "notifications/tools/list_changed": "toolsListChanged",
    "notifications/prompts/list_changed": "promptsListChanged",
    "notifications/resources/list_changed": "resourcesListChanged",
}


class Subscription:
    """One: its stream, and which changes it wants. caller: whose it is."""

    __slots__ = ("_ended", "caller", "held", "id", "methods", "outlet", "servers")

    def __init__(
        self,
        id: bytes,
        methods: frozenset[str],
        servers: frozenset[str],
        clock: Clock,
        caller: str,
        ended: Callable[["Subscription"], None],
    ) -> None:
        self.id = id
        self.methods = methods
        self.servers = servers
        self.caller = caller
        self.held: Held | None = None
        self._ended: Callable[[Subscription], None] | None = ended
        self.outlet = Outlet(clock, self._over)

    def meta(self) -> dict[str, Any]:
        return {revisions.SUBSCRIPTION_ID: msgspec.Raw(self.id)}

    def tell(self, method: str) -> None:
        if method in self.methods:
            self.outlet.say(jsonrpc.notification(method, jsonrpc.encode_fields({"_meta": self.meta()})))

    def finish(self) -> None:
        """End it in good order, with its result."""
        params = {"resultType": "complete", "_meta": self.meta()}
        self.outlet.say(jsonrpc.result(self.id, jsonrpc.encode_fields(params)))
        self.outlet.finish()

    def lapse(self, failure: Failure) -> None:
        """Its principal is no longer good."""
        self.finish()

    def _over(self, _: Outlet) -> None:
        ended, self._ended = self._ended, None
        held, self.held = self.held, None
        if held is not None:
            held.release()
        if ended is not None:
            ended(self)


class Subscriptions:
    """All of a worker. limit: at once. limit_each: of one caller (`caller_of`)."""

    def __init__(self, clock: Clock, holders: Holders, *, limit: int, limit_each: int) -> None:
        self.limit_each = limit_each
        self._clock = clock
        self._holders = holders
        self._limit = limit
        self._open: dict[Subscription, None] = {}
        self._of: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def add(
        self,
        id: bytes,
        wanted: dict[str, Any],
        servers: frozenset[str],
        *,
        principal: Principal | None = None,
        address: str = "",
        resources: Sequence[str] = (),
        tasks: Sequence[str] = (),
    ) -> Subscription:
        """A stream that begins with its acknowledgement: the changes of lists that were asked for, the URIs whose
        servers have agreed to tell of them, and the tasks. address: the caller's. Raises Failure 429 or 503."""
        caller = caller_of(principal, address)
        own = self._of.get(caller, 0)
        if own >= self.limit_each:
            why = f"this caller has {self.limit_each} subscriptions open: end some"
            raise Failure(429, Reason.RATE_LIMIT, why)
        if len(self._open) >= self._limit:
            raise Failure(503, Reason.MCP, "too many subscriptions are open")
        methods = frozenset(method for method, name in _FILTERS.items() if wanted.get(name) is True)
        subscription = Subscription(id, methods, servers, self._clock, caller, self._ended)
        self._open[subscription] = None
        self._of[caller] = own + 1
        subscription.held = self._holders.hold(principal, subscription)
        accepted: dict[str, Any] = {_FILTERS[method]: True for method in sorted(methods)}
        if resources:
            accepted["resourceSubscriptions"] = list(resources)
        if tasks:
            accepted["taskIds"] = list(tasks)
        params = {"notifications": accepted, "_meta": subscription.meta()}
        told = jsonrpc.notification("notifications/subscriptions/acknowledged", jsonrpc.encode_fields(params))
        subscription.outlet.say(told)
        return subscription

    def _ended(self, subscription: Subscription) -> None:
        del self._open[subscription]
        left = self._of[subscription.caller] - 1
        if left:
            self._of[subscription.caller] = left
        else:
            del self._of[subscription.caller]

    def changed(self, concerning: Callable[[frozenset[str]], list[str]]) -> None:
        """Lists are others. concerning: which notifications say so to who sees these servers."""
        for subscription in list(self._open):
            for method in concerning(subscription.servers):
                subscription.tell(method)

    def changed_for(self, server: str, whose: Callable[[Principal], bool], methods: Sequence[str]) -> None:
        """Lists of `server` are others to these principals."""
        for subscription in list(self._open):
            held = subscription.held
            if held is not None and server in subscription.servers and whose(held.principal):
                for method in methods:
                    subscription.tell(method)

    def finish(self) -> None:
        """End all in good order."""
        for subscription in list(self._open):
            subscription.finish()


def caller_of(principal: Principal | None, address: str) -> str:
    """Whose share something is taken from: a principal's, or an address's where callers have not said who they are."""
    if principal is None or principal.source == "anonymous":
        return f"\0{address}"
    return principal.id
