"""The time of agent runs: what is under way when it is over ends, once, on a clock that does not jump."""

import pytest
from tests.unit.policies.floor import Time

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import End, Ending, finish
from tollhouse.policies.run_walls import Walls
from tollhouse.policies.runs import timed_out


class Ended:
    def __init__(self) -> None:
        self.time = Time()
        self.runs: list[str] = []
        self.walls = Walls(self.time.clock, self._end, timed_out, lambda: self.time.now)
        self.ends: list[End] = []

    def _end(self, run: str, failure: Failure) -> None:
        assert (failure.status, failure.reason, failure.code) == (504, Reason.TIMEOUT, "run_limit_exceeded")
        self.runs.append(run)

    def left(self, run: str, ends: float, now: float) -> float:
        """Of a run that has a call under way."""
        self.walls.begun(run, self.ends)
        return self.walls.left(run, ends, now, 30.0)


def test_a_run_ends_once_when_its_time_is_over() -> None:
    here = Ended()
    assert here.left("a", 1030.0, 1000.0) == 30.0
    here.time.advance(10.0)
    assert here.left("a", 1030.0, 1010.0) == 20.0
    assert here.left("b", 1035.0, 1010.0) == 25.0
    here.time.advance(19.9)
    assert here.runs == []
    here.time.advance(0.1)
    assert here.runs == ["a"]
    here.time.advance(5.0)
    assert here.runs == ["a", "b"]
    assert here.left("a", 1030.0, 1035.0) == -5.0
    assert here.left("c", 1030.0, 1035.0) == -5.0
    here.time.advance(100.0)
    assert (here.runs, len(here.walls)) == (["a", "b"], 0)


def test_nobody_is_looked_for_where_nothing_is_under_way() -> None:
    here = Ended()
    here.left("a", 1030.0, 1000.0)
    here.left("a", 1030.0, 1000.0)
    here.left("b", 1030.0, 1000.0)
    finish(here.ends[1:2], Ending(200, "Upstream"))
    finish(here.ends[2:], Ending(200, "Upstream"))
    here.time.advance(30.0)
    assert here.runs == ["a"]
    finish(here.ends[:1], Ending(200, "Upstream"))
    here.time.advance(30.0)
    assert here.runs == ["a"]


def test_a_clock_that_jumps_changes_nothing_for_a_run_that_is_known() -> None:
    here = Ended()
    here.left("a", 1030.0, 1000.0)
    here.time.advance(10.0)
    assert here.left("a", 1030.0, 5000.0) == 20.0
    assert here.left("a", 1030.0, -5000.0) == 20.0
    here.time.advance(20.0)
    assert here.runs == ["a"]
    assert here.left("a", 1030.0, -5000.0) <= 0.0


def test_another_configuration_may_give_it_more_or_less() -> None:
    here = Ended()
    here.left("more", 1030.0, 1000.0)
    here.left("less", 1030.0, 1000.0)
    assert here.left("more", 1060.0, 1000.0) == 60.0
    assert here.left("less", 1010.0, 1000.0) == 10.0
    here.time.advance(10.0)
    assert here.runs == ["less"]
    here.time.advance(20.0)
    assert "more" not in here.runs
    here.time.advance(30.0)
    assert here.runs.count("more") == 1


@pytest.mark.anyio
async def test_nothing_ends_once_it_is_closed() -> None:
    here = Ended()
    here.left("a", 1030.0, 1000.0)
    await here.walls.close()
    here.time.advance(60.0)
    assert here.runs == []


def test_what_is_told() -> None:
    failure = timed_out("key:ci/team%2Ftask-1", 1800.0)
    assert failure.message == "the run 'team/task-1' has had its time, 1800 s"
    assert failure.headers == ((b"x-should-retry", b"false"),)
