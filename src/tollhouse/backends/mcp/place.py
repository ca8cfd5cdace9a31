"""Where a server's answer is that one worker has begun to read and another one reads on.

Rule: nothing runs twice. A server that gives its events ids keeps an answer for whoever comes back for it, under the
same session and request; so what says where the answer is suffices, and the worker that had it need not live.
"""

import msgspec

from tollhouse.backends.mcp.heal import CALL_LOST
from tollhouse.core.errors import Failure, Reason

__all__ = ["Place", "read_place", "unplaced"]


class Place(msgspec.Struct, array_like=True, gc=False):
    """mark: of the server's configuration. session: the server's id for it. profile: what it may ask. call: the id of
    the request. event: the last one that was read."""

    mark: str
    session: bytes
    revision: str
    profile: int
    call: int
    event: bytes

    def encode(self) -> bytes:
        return msgspec.msgpack.encode(self)


def read_place(data: bytes, mark: str) -> Place | None:
    """The Place that was encoded, if it is of a server with this configuration."""
    try:
        place = msgspec.msgpack.decode(data, type=Place)
    except msgspec.DecodeError:
        return None
    return place if place.mark == mark and place.session and place.event else None


def unplaced(name: str) -> Failure:
    """An answer that cannot be read on here."""
    why = f"{name}: the call is lost: the worker that had it is gone, and its answer cannot be read on from here"
    return Failure(503, Reason.MCP, why, code=CALL_LOST, sent=True)
