"""Whom a session with an MCP server serves.

Rule: two calls share a session only if their keys are equal.
"""

from collections.abc import Callable
from typing import Any, Protocol

from tollhouse.wire import jsonrpc

__all__ = ["SHARED", "Agent", "Key"]

Key = tuple[str, str, int, int]
"""Whom a session serves: ("agent", its session id, profile, 0), ("principal", id, profile, n), ("catalogue", "",
profile, 0) or ("shared", "", profile, 0). n: where a session carries one call at a time, which of several it is."""

SHARED: Key = ("shared", "", 0, 0)
"""A stateless server keeps nothing between requests, so there is nothing that could be shared by mistake."""


class Agent(Protocol):
    """An agent's session, as a server's session needs it (`endpoints.mcp.session`). ended: it is no more, anywhere; at
    its end without, another worker may go on with it."""

    id: str
    ended: bool
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
