"""What agents are told when lists are others than they were.

Rule: those are told who see such a list, and nobody else: soon, once for all that has changed meanwhile, and by the
worker that has their stream.
"""

from collections.abc import Callable, Iterable
from functools import partial

from tollhouse.core.call import Principal
from tollhouse.core.clock import FOREVER, Clock
from tollhouse.endpoints.mcp.agent import LISTS_CHANGED, Session
from tollhouse.endpoints.mcp.subscriptions import Subscriptions
from tollhouse.wire import jsonrpc

__all__ = ["Changes"]

_COALESCE = 0.25  # seconds; by then all workers have heard of what others have to tell them
_USERS = 1000  # whose lists have changed at once; above that everybody is told

Whose = Callable[[Principal], bool]


class Changes:
    """Of one worker. Timed while there is something to tell. sessions: gives those that it has. subscriptions: the
    streams of stateless agents."""

    __slots__ = ("_changes", "_clock", "_for", "_sessions", "_subscriptions", "deadline")

    def __init__(self, clock: Clock, sessions: Callable[[], Iterable[Session]], subscriptions: Subscriptions) -> None:
        self.deadline = FOREVER
        self._clock = clock
        self._sessions = sessions
        self._subscriptions = subscriptions
        self._changes: set[tuple[str, str]] = set()
        self._for: list[tuple[str, Whose]] = []

    def changed(self, server: str, method: str) -> None:
        """A list of `server` is another ("": of every server, in another configuration)."""
        self._changes.add((server, method))
        self._soon()

    def changed_for(self, server: str, whose: Whose) -> None:
        """All lists of `server` are others to these principals. Said at every worker."""
        if len(self._for) < _USERS:
            self._for.append((server, whose))
        else:
            self._changes.update((server, method) for method in LISTS_CHANGED)
        self._soon()

    def all_changed(self) -> None:
        """Another configuration serves: every list may be another to anybody."""
        for method in LISTS_CHANGED:
            self.changed("", method)

    def _soon(self) -> None:
        if self.deadline == FOREVER:
            self.deadline = self._clock.now + _COALESCE
            self._clock.hurry(self)

    def expire(self) -> None:
        self.deadline = FOREVER
        changes, self._changes = self._changes, set()
        for session in list(self._sessions()) if changes else ():
            # Of a new configuration every worker tells those whose stream it has.
            mine = {(server, method) for server, method in changes if server} if session.owner else changes
            for method in _concerning(session.servers, mine):
                session.say(jsonrpc.notification(method))
        self._subscriptions.changed(partial(_concerning, changes=changes))
        moved, self._for = self._for, []
        for server, whose in moved:
            self._tell(server, whose)

    def _tell(self, server: str, whose: Whose) -> None:
        for session in list(self._sessions()):
            held = session.held
            if held is None or session.owner or server not in session.servers or not whose(held.principal):
                continue
            for method in LISTS_CHANGED:
                session.say(jsonrpc.notification(method))
        self._subscriptions.changed_for(server, whose, LISTS_CHANGED)


def _concerning(servers: frozenset[str], changes: set[tuple[str, str]]) -> list[str]:
    return sorted({method for server, method in changes if not server or server in servers})
