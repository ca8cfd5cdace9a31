"""Connections and bytes of one listener, as the server reports them, and what never became a request.

Rule: no policy sees what is refused before its head was understood; so it is counted, and written to the access log,
here, under an id of its own.
"""

import os
from time import time

from tollhouse.core.errors import Reason
from tollhouse.observe.access_log import AccessLine, AccessLog, LineLabels, Shared, stamp
from tollhouse.observe.families import Families
from tollhouse.observe.metrics import OTHER

__all__ = ["Connections"]

_LONGEST = 2048  # of a path in the log


class Connections:
    """A server's observer. name: the listener's address. protocol: http or https. log: for what is refused.

    handshakes: takes the seconds of one.
    """

    __slots__ = (
        "_families",
        "_labels",
        "_log",
        "_n",
        "_prefix",
        "_stamp",
        "connections",
        "handshakes",
        "received",
        "sent",
    )

    @staticmethod
    def labels(name: str, protocol: str) -> tuple[str, str, str, str]:
        """bind, gateway, listener, protocol"""
        return (name, "tollhouse", name, protocol)

    def __init__(self, families: Families, name: str, protocol: str, log: AccessLog | None = None) -> None:
        labels = self.labels(name, protocol)
        self.connections = families.connections.child(*labels)
        self.received = families.received_bytes.child(*labels)
        self.sent = families.sent_bytes.child(*labels)
        self.handshakes = families.tls_handshake.child(*labels).observe
        self._families = families
        self._labels = labels
        self._log = log
        self._prefix = os.urandom(6).hex()
        self._n = -1
        self._stamp = stamp()

    def refused(self, status: int, reason: Reason, message: str, peer: str, target: bytes) -> str:
        """Never became a request: the id of its answer. target: of the request, as far as it is known."""
        bind, gateway, listener, protocol = self._labels
        extra = ("",) * len(self._families.extra.names)
        labels = ("unknown", protocol, OTHER, str(status), str(reason), bind, gateway, listener)
        self._families.requests.child(*labels, "unknown", "unknown", *extra).inc()
        self._n += 1
        request_id = f"{self._prefix}{self._n:08x}"
        if self._log is not None:
            path = target.partition(b"?")[0][:_LONGEST].decode("latin-1")  # the query is not taken apart, so not shown
            line = AccessLine(self._stamp(time()), request_id, path, 0.0, peer=peer, error=message)
            self._log.add(line, Shared(LineLabels(status, reason, OTHER, listener=listener, route="unknown")))
        return request_id
