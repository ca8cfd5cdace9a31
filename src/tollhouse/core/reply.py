"""Reply: the events that answer a Call. Returning one is the commit point.

A backend returns a Reply at its first event; before that failures raise, so retry and failover need only
`try: await next(call)`. Afterwards a failure is the stream's last event. Whoever receives a Reply returns it, adds
to its `taps` and `ends`, or closes it. Nobody wraps the source for work per event or at the end: a tap is a plain
function of the event's bytes, an end is a callback that runs once, before the last byte is released. Only who holds
events back, or has more to say when the source ends, stands before it: it takes the source's place, with a list of taps
of its own, and says in `behind` what it stands before.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from tollhouse.core.http import End, Ending, Source, finish

__all__ = ["Reply", "Tap", "innermost"]

Tap = Callable[[bytes], bytes]


class Reply(msgspec.Struct, eq=False):
    """status, headers: of the answer as the upstream gave them, filtered. first: the whole answer when `source` is
    None, else what came up to now, which `source` does not give again. What passes `first`, `taps` and `source` is one
    or more whole events (LLM: raw SSE events; MCP: exactly one JSON-RPC message). taps: whoever makes the Reply a
    Response applies them to `first`, a source that streams to what comes after it; its Reply then comes with the list
    it reads, so append to a list that is there and never put another one in its place. read: `first`, and what it says,
    where somebody has read it already: worth something as long as `first` is that very object, and only once."""

    status: int
    headers: list[tuple[bytes, bytes]]
    first: bytes
    source: Source | None = None
    taps: list[Tap] | None = None
    ends: list[End] = msgspec.field(default_factory=list)
    read: tuple[bytes, Any] | None = None

    def close(self, ending: Ending) -> None:
        """Not wanted after all: stop the upstream, run what was due."""
        source, self.source, self.taps = self.source, None, None
        if source is not None:
            source.close()
        finish(self.ends, ending)


def innermost(source: Source | None) -> Source | None:
    """The Source that answers, whoever stands before it."""
    while (behind := getattr(source, "behind", None)) is not None:
        source = behind
    return source
