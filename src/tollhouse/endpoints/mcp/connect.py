"""What a server lists for a user who has no account there yet: one tool of ours, by which he connects one.

Rule: it says nothing that the operator has not written, for nothing else is known on this user's behalf. What a call of
it does is the account policy's to say.
"""

from time import monotonic
from typing import Final

import msgspec

from tollhouse.core.identity import CONNECT
from tollhouse.wire.mcp.catalogue import KINDS, Entry, Kind, Listing
from tollhouse.wire.mcp.letters import visible

__all__ = ["Connect"]

_TOOLS: Final = KINDS["tools/list"]
_FRESH: Final = 2.0  # seconds for which an agent may take it for true: an account may come at any moment


class Connect:
    """Of one server. host: where people agree to it, as they know it."""

    __slots__ = ("_entries",)

    def __init__(self, server: str, host: str) -> None:
        tool = {
            "name": CONNECT,
            "title": f"Connect an account at {visible(host)}",
            "description": f"Connects an account of the user at {visible(host)}, which the tools of {server} need: "
            "gives a link that the user opens in a browser. Afterwards list the tools again.",
            "inputSchema": {"type": "object", "properties": {}, "additionalProperties": False},
            "annotations": {"readOnlyHint": False, "destructiveHint": False, "idempotentHint": True},
        }
        self._entries = (Entry(CONNECT, msgspec.json.encode(tool)),)

    @property
    def entry(self) -> Entry:
        """The tool."""
        return self._entries[0]

    def listing(self, kind: Kind) -> Listing:
        """In the place of the server's: the tool, and nothing of any other kind."""
        now = monotonic()
        return Listing(self._entries if kind is _TOOLS else (), at=now, until=now + _FRESH)

    def made(self, listing: Listing) -> bool:
        """Whether a list of tools is ours, and not the server's."""
        return listing.entries is self._entries
