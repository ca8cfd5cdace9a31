"""A Source in the place of another: it gives on what that one gives, and holds some of it back, changes it, or has more
to say when it ends.

Rule: whoever is behind waits while the reader does; also one that takes the place of one that is gone.
"""

from tollhouse.core.errors import Failure
from tollhouse.core.http import Sink, Source

__all__ = ["StandIn"]


class StandIn:
    """Source for a reader, Sink of the Source behind it, which may be another one later. Whoever inherits says what
    becomes of what comes (`send`, `end`) and how it ends (`close`), and sets `_source` to None when that one has ended.
    """

    __slots__ = ("_paused", "_sink", "_source")

    def __init__(self, source: Source | None = None) -> None:
        self._source = source
        self._sink: Sink | None = None
        self._paused = False

    # ---- Sink of the one behind
    def send(self, data: bytes) -> None:
        """`Sink.send`"""
        raise NotImplementedError

    def end(self, failure: Failure | None = None) -> None:
        """`Sink.end`"""
        raise NotImplementedError

    # ---- Source for the reader
    def start(self, sink: Sink) -> None:
        """`Source.start`"""
        self._sink = sink
        self._start_behind()

    def pause(self) -> None:
        """`Feeder.pause`"""
        self._paused = True
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        """`Feeder.resume`"""
        self._paused = False
        if self._source is not None:
            self._source.resume()

    # ---- the one behind
    def _start_behind(self) -> None:
        """Have it deliver."""
        source = self._source
        if source is not None:
            source.start(self)
            if self._paused and self._source is source:
                source.pause()

    def _close_behind(self) -> None:
        """Nothing more is wanted of it."""
        source, self._source = self._source, None
        if source is not None:
            source.close()
