"""Event streams to agents: order, bounds, keep-alive, and one end."""

from typing import Any

import pytest

from tollhouse.core.clock import Clock
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Sink, Source
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.stream import Answer, Outlet
from tollhouse.wire import jsonrpc


class Taken:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended = 0

    def send(self, data: bytes) -> None:
        assert not self.ended
        self.sent.append(data)

    def end(self, failure: Failure | None = None) -> None:
        assert failure is None  # agents are told in their own words
        self.ended += 1


class Given:
    def __init__(self) -> None:
        self.sink: Sink | None = None
        self.paused = False
        self.closed = 0

    def start(self, sink: Sink) -> None:
        self.sink = sink

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self) -> None:
        self.closed += 1


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.clock = Clock(source=lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(16):
            self.clock.turn()


def tell(data: bytes) -> bytes | None:
    if data == b"bad":
        raise jsonrpc.Malformed(-32603, "it cannot be told")
    return None if data == b"drop" else b"<%b>" % data


def started(time: Time) -> tuple[Answer, Given, Taken, list[Any]]:
    ends: list[Any] = []
    given, taken = Given(), Taken()
    reply = Reply(200, [], b"", given)
    answer = Answer(
        time.clock, reply, b"first", tell=tell, failed=lambda failure: failure.message.encode(), ended=ends.append
    )
    response = answer.response()
    assert response.ends is reply.ends
    assert response.source is not None
    response.source.start(taken)
    return answer, given, taken, ends


def source_of(answer: Answer) -> Source:
    """Where it is read."""
    source = answer.response().source
    assert source is not None
    return source


def test_messages_become_events_in_order() -> None:
    answer, given, taken, ends = started(Time())
    assert given.sink is answer
    for data in (b"1", b"drop", b"2\n"):
        answer.send(data) if data != b"2\n" else answer.send(b"2")
    answer.end()
    assert taken.sent == [b"event: message\ndata: %b\n\n" % data for data in (b"first", b"<1>", b"<2>")]
    assert (taken.ended, ends) == (1, [None])
    source_of(answer).close()
    answer.end()
    assert (taken.ended, ends) == (1, [None])


def test_a_failure_is_the_last_message() -> None:
    answer, given, taken, ends = started(Time())
    failure = Failure(502, Reason.UPSTREAM_FAILURE, "it broke")
    answer.end(failure)
    assert taken.sent[-1] == b"event: message\ndata: it broke\n\n"
    assert (taken.ended, given.closed, ends) == (1, 1, [failure])


def test_what_cannot_be_told_ends_the_stream_and_the_work() -> None:
    answer, given, taken, ends = started(Time())
    answer.send(b"bad")
    assert b"it cannot be told" in taken.sent[-1]
    assert (taken.ended, given.closed, len(ends)) == (1, 1, 1)
    answer.send(b"late")


def test_an_agent_that_leaves_stops_the_work() -> None:
    answer, given, taken, ends = started(Time())
    source = source_of(answer)
    source.pause()
    assert given.paused
    source.resume()
    assert not given.paused
    source.close()
    source.close()
    assert (taken.ended, given.closed, ends) == (0, 1, [None])


def test_cancelling() -> None:
    failure = Failure(499, Reason.CLIENT_GONE, "cancelled")
    answer, given, taken, ends = started(Time())
    answer.cut(failure)
    assert (taken.ended, given.closed, ends) == (1, 1, [failure])
    late = Answer(Clock(), Reply(200, [], b"", Given()), b"", tell=tell, failed=lambda f: b"", ended=ends.append)
    late.cut(failure)
    taken = Taken()
    source_of(late).start(taken)
    assert (taken.sent, taken.ended) == ([], 1)


def test_a_quiet_stream_says_a_comment() -> None:
    time = Time()
    answer, _, taken, _ = started(time)
    time.pass_(10)
    answer.send(b"1")
    time.pass_(10)
    assert len(taken.sent) == 2
    time.pass_(6)
    assert taken.sent[2:] == [b": \n\n"]
    answer.end()
    time.pass_(60)
    assert len(taken.sent) == 3


def outlet(time: Time) -> tuple[Outlet, list[Outlet]]:
    closed: list[Outlet] = []
    return Outlet(time.clock, closed.append), closed


def test_an_outlet_keeps_what_came_before_it_began() -> None:
    stream, closed = outlet(Time())
    assert stream.say(b"1")
    taken = Taken()
    stream.start(taken)
    assert stream.say(b"2")
    stream.pause()
    assert stream.say(b"3")
    assert len(taken.sent) == 3
    stream.resume()
    assert taken.sent[1:] == [b"event: message\ndata: %b\n\n" % data for data in (b"1", b"2", b"3")]
    stream.finish()
    stream.finish()
    assert (taken.ended, closed) == (1, [stream])
    assert not stream.say(b"4")


def test_an_outlet_that_is_not_read_is_ended() -> None:
    stream, closed = outlet(Time())
    taken = Taken()
    stream.start(taken)
    stream.pause()
    said = 0
    while stream.say(b"x" * 1000):
        said += 1
        assert said < 1000
    assert (taken.ended, closed) == (1, [stream])


def test_an_outlet_whose_agent_left() -> None:
    stream, closed = outlet(Time())
    response = stream.response()
    assert response.ends is not None
    stream.start(Taken())
    stream.close()
    for end in response.ends:
        end(Ending(499, "ClientGone"))
    assert closed == [stream]


@pytest.mark.parametrize("began", [True, False])
def test_an_outlet_finished_early(began: bool) -> None:
    stream, closed = outlet(Time())
    taken = Taken()
    if began:
        stream.start(taken)
    stream.finish()
    if not began:
        stream.start(taken)
    assert (taken.ended, closed) == (1, [stream])
