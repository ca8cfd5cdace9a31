"""Connections and bytes of one listener, as the server reports them."""

from tollhouse.core.errors import Reason
from tollhouse.observe.families import Families

__all__ = ["Connections"]


class Connections:
    """A server's observer. name: the listener's address. protocol: http or https."""

    __slots__ = ("_families", "_labels", "connections", "received", "sent")

    @staticmethod
    def labels(name: str, protocol: str) -> tuple[str, str, str, str]:
        """bind, gateway, listener, protocol"""
        return (name, "tollhouse", name, protocol)

    def __init__(self, families: Families, name: str, protocol: str) -> None:
        labels = self.labels(name, protocol)
        self.connections = families.connections.child(*labels)
        self.received = families.received_bytes.child(*labels)
        self.sent = families.sent_bytes.child(*labels)
        self._families = families
        self._labels = labels

    def refused(self, status: int) -> None:
        """Never became a request: counted here, because no policy saw it."""
        bind, gateway, listener, protocol = self._labels
        extra = ("",) * len(self._families.extra.names)
        labels = ("unknown", protocol, "other", str(status), Reason.INVALID_REQUEST, bind, gateway, listener)
        self._families.requests.child(*labels, "unknown", "unknown", *extra).inc()
