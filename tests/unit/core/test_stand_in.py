"""`core.stand_in`: what everybody has who stands in the place of a Source."""

from collections.abc import Callable

from tollhouse.core.errors import Failure
from tollhouse.core.http import Sink, Source
from tollhouse.core.stand_in import StandIn


class Origin:
    """A Source that notes what it is told, and calls `begun` when it is started."""

    def __init__(self, begun: Callable[[Sink], None] = lambda _: None) -> None:
        self.told: list[str] = []
        self._begun = begun

    def start(self, sink: Sink) -> None:
        self.told.append("start")
        self._begun(sink)

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def close(self) -> None:
        self.told.append("close")


class Reader:
    def send(self, data: bytes) -> None: ...

    def end(self, failure: Failure | None = None) -> None: ...


class Next(StandIn):
    """Goes on with another Source when one has ended."""

    def __init__(self, *origins: Origin) -> None:
        self._rest: list[Source] = list(origins)
        super().__init__(self._rest.pop(0) if origins else None)

    def end(self, failure: Failure | None = None) -> None:
        self._source = self._rest.pop(0) if self._rest else None
        self._start_behind()

    def close(self) -> None:
        self._close_behind()


def test_the_one_behind_waits_while_the_reader_does() -> None:
    origin = Origin()
    stand_in = Next(origin)
    stand_in.start(Reader())
    stand_in.pause()
    stand_in.resume()
    stand_in.close()
    stand_in.close()
    assert origin.told == ["start", "pause", "resume", "close"]


def test_the_next_one_waits_as_well() -> None:
    first, then = Origin(), Origin()
    stand_in = Next(first, then)
    stand_in.start(Reader())
    stand_in.pause()
    stand_in.end()
    assert then.told == ["start", "pause"]
    stand_in.resume()
    assert (first.told, then.told) == (["start", "pause"], ["start", "pause", "resume"])


def test_one_that_ends_while_it_starts_is_told_nothing_more() -> None:
    first = Origin(lambda sink: sink.end())
    then = Origin()
    stand_in = Next(first, then)
    stand_in.pause()
    stand_in.start(Reader())
    assert (first.told, then.told) == (["pause", "start"], ["start", "pause"])


def test_nobody_behind() -> None:
    stand_in = Next()
    stand_in.start(Reader())
    stand_in.pause()
    stand_in.resume()
    stand_in.close()
