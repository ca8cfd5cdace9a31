"""Snapshot: everything one configuration needs to serve, ready made and never changed.

Rule: a request leases the Snapshot it began with and keeps it to its end, streams included. A Snapshot that has been
replaced is closed when its last lease is given back.
"""

from collections.abc import Callable

from tollhouse.core.handler import Handler
from tollhouse.core.http import Ending, Request, Response

__all__ = ["Snapshot"]


class Snapshot:
    """handler: the whole request floor. leases: requests under way; who adds one puts `release` into the request's
    `ends`. version: counts configurations of this process, from 1. on_close: called once, when replaced and no longer
    leased."""

    __slots__ = ("_on_close", "_retired", "handler", "leases", "version")

    def __init__(
        self, handler: Handler[Request, Response], version: int, on_close: Callable[["Snapshot"], None]
    ) -> None:
        self.handler = handler
        self.version = version
        self.leases = 0
        self._retired = False
        self._on_close = on_close

    def release(self, _: Ending) -> None:
        self.leases -= 1
        if self._retired and not self.leases:
            self._on_close(self)

    def retire(self) -> None:
        """Another one serves now."""
        self._retired = True
        if not self.leases:
            self._on_close(self)
