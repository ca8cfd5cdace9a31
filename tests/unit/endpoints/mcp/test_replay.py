"""Streams that are read again: order, what was missed, bounds, and calls that outlive their reader."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.endpoints.mcp.test_stream import Given, Taken, Time, tell

from tollhouse.core.errors import Failure, Reason
from tollhouse.core.http import Ending, Response
from tollhouse.core.reply import Reply
from tollhouse.endpoints.mcp.replay import LARGEST, ResumableAnswer, Rings, Track, parse_event_id


class Home:
    """A session, as its streams see it."""

    def __init__(self) -> None:
        self.kept = 0
        self.may_wait = True
        self.tracks: dict[int, Track] = {}
        self.lasts: list[int] = []
        self.left: list[int] = []
        self.over: list[tuple[int, bytes]] = []
        self.gone: list[int] = []

    def track_lasts(self, track: Track) -> None:
        self.lasts.append(track.stream)

    def track_left(self, track: Track) -> None:
        self.left.append(track.stream)

    def track_over(self, track: Track, last: bytes) -> None:
        self.over.append((track.stream, last))

    def track_gone(self, track: Track) -> None:
        self.gone.append(track.stream)


class Place:
    def __init__(self, limit: int = 128 << 20) -> None:
        self.time = Time()
        self.rings = Rings("w", limit)
        self.home = Home()

    def track(self, **more: Any) -> Track:
        return Track(self.time.clock, self.rings, self.home, **more)


def read(response: Response) -> Taken:
    taken = Taken()
    assert response.source is not None
    response.source.start(taken)
    return taken


def leave(response: Response) -> None:
    """What the server does when the agent is gone."""
    assert response.source is not None
    response.source.close()
    ends, response.ends = response.ends or [], None
    for end in ends:
        end(Ending(499, Reason.CLIENT_GONE, 0, None, True))


def messages(taken: Taken) -> list[bytes]:
    """The data of each event, without comments."""
    lines = b"".join(taken.sent).split(b"\n")
    return [line[6:] for line in lines if line.startswith(b"data: ")]


def ids(taken: Taken) -> list[bytes]:
    return [line[4:] for line in b"".join(taken.sent).split(b"\n") if line.startswith(b"id: ")]


@given(st.text())
def test_event_ids_of_others(text: str) -> None:
    found = parse_event_id(text)
    assert found is None or (found[0] and found[1] >= 0 and found[2] >= 0)


def test_event_ids() -> None:
    assert parse_event_id("w.3.17") == ("w", 3, 17)
    for bad in ("", "w", "w.3", "w.3.", "w.x.1", ".3.1", "w.3.1.2", "w.-1.2", "w.1.1" + "0" * 200, "w.٣.1"):
        assert parse_event_id(bad) is None, bad


def test_who_comes_back_reads_on() -> None:
    place = Place()
    track = place.track()
    first = track.read()
    taken = read(first)
    for n in range(5):
        assert track.say(b"%d" % n)
    assert messages(taken) == [b"0", b"1", b"2", b"3", b"4"]
    assert ids(taken) == [b"w.1.%d" % n for n in range(1, 6)]
    leave(first)
    assert place.home.left == [1]
    assert not track.say(b"5")
    again = read(track.read(2))
    assert messages(again) == [b"2", b"3", b"4", b"5"]
    track.say(b"6")
    assert messages(again)[-1] == b"6"
    assert messages(taken)[-1] == b"4"


def test_one_reads_at_a_time() -> None:
    track = Place().track()
    one = read(track.read())
    track.say(b"1")
    two = read(track.read(1))
    track.say(b"2")
    assert (messages(one), one.ended) == ([b"1"], 1)
    assert (messages(two), two.ended) == ([b"2"], 0)


def test_only_agents_that_know_them_get_empty_events() -> None:
    place = Place()
    assert read(place.track(primes=True).read()).sent == [b"id: w.1.0\nretry: 500\ndata: \n\n"]
    assert read(place.track().read()).sent == [b": \n\n"]


def test_a_primed_agent_comes_back_with_that_id() -> None:
    track = Place().track(primes=True)
    response = track.read()
    read(response)
    leave(response)
    track.say(b"1")
    assert messages(read(track.read(0))) == [b"1"]


def test_an_id_from_the_future_misses_nothing() -> None:
    track = Place().track()
    track.say(b"1")
    assert not track.missed(10**17)
    assert messages(read(track.read(10**17))) == []


# ---- bounds
def test_a_stream_keeps_so_many_events() -> None:
    place = Place()
    track = place.track()
    for n in range(300):
        track.say(b"%d" % n)
    assert track.missed(0)
    assert track.missed(43)
    assert not track.missed(44)
    assert messages(read(track.read(0)))[0] == b"44"


def test_a_stream_keeps_so_many_bytes_and_always_the_last() -> None:
    place = Place()
    track = place.track()
    for _ in range(10):
        track.say(b"x" * 100_000)
        assert place.home.kept <= 256 << 10
    track.say(b"y" * 900_000)
    assert messages(read(track.read(0))) == [b"y" * 900_000]
    track.say(b"z" * LARGEST)
    assert place.home.kept == place.rings.size == 0
    assert messages(read(track.read(0))) == []


def test_a_session_keeps_so_many_bytes() -> None:
    place = Place()
    tracks = [place.track() for _ in range(8)]
    for track in tracks:
        for _ in range(2):
            track.say(b"x" * 100_000)
    assert place.home.kept <= LARGEST
    assert tracks[-1].seq == 2
    assert not tracks[-1].missed(0)
    assert tracks[0].missed(0)


def test_a_worker_keeps_so_many_bytes_of_those_nobody_reads() -> None:
    place = Place(limit=250_000)
    held, first, second = place.track(), place.track(), place.track()
    read(held.read())
    held.say(b"x" * 100_000)
    for track in (first, second):
        response = track.read()
        read(response)
        leave(response)
        track.say(b"x" * 100_000)
    assert place.rings.size <= 250_000
    assert first.missed(0)
    assert not second.missed(0)
    assert not held.missed(0)


def test_what_nobody_comes_back_for_is_forgotten() -> None:
    place = Place()
    track = place.track()
    response = track.read()
    read(response)
    track.say(b"1")
    leave(response)
    place.time.pass_(290)
    assert place.home.tracks
    place.time.pass_(20)
    assert (place.home.tracks, place.home.gone, place.rings.size, place.home.kept) == ({}, [1], 0, 0)


def test_what_was_read_to_its_end_is_kept_for_a_moment() -> None:
    place = Place()
    track = place.track(request=b"1")
    read(track.read())
    track.say(b"1")
    track.finish()
    assert messages(read(track.read(0))) == [b"1"]
    place.time.pass_(40)
    assert place.home.gone == [1]


# ---- answers
class Call:
    """A call whose answer streams, in a session."""

    def __init__(self, place: Place, **more: Any) -> None:
        self.place = place
        self.given = Given()
        self.due: list[Ending] = []
        self.ended: list[Failure | None] = []
        self.reply = Reply(200, [], b"", self.given)
        self.reply.ends.append(self.due.append)
        self.track = place.track(request=b"7", **more)
        self.answer = ResumableAnswer(
            self.track,
            self.reply,
            b"first",
            tell=tell,
            failed=lambda failure: failure.message.encode(),
            ended=self.ended.append,
        )
        self.response = self.answer.response()


def settle(response: Response) -> None:
    """What the server does at a regular end."""
    ends, response.ends = response.ends or [], None
    for end in ends:
        end(Ending(200, Reason.UPSTREAM))


def test_an_answer_that_is_read_to_its_end() -> None:
    call = Call(Place())
    assert call.given.sink is None
    taken = read(call.response)
    assert call.given.sink is call.answer
    call.answer.send(b"1")
    call.answer.send(b"drop")
    call.answer.end()
    call.answer.end()
    assert messages(taken) == [b"first", b"<1>"]
    assert (taken.ended, call.ended, call.due) == (1, [None], [])
    settle(call.response)
    assert [ending.status for ending in call.due] == [200]
    assert call.place.home.over == [(1, b"")]


def test_an_agent_that_leaves_does_not_stop_the_work() -> None:
    call = Call(Place())
    read(call.response)
    call.answer.pause()
    leave(call.response)
    assert (call.given.closed, call.given.paused, call.ended, call.due) == (0, False, [], [])
    call.answer.send(b"1")
    call.answer.send(b"2")
    call.answer.end()
    assert (call.ended, [ending.status for ending in call.due]) == ([None], [200])
    assert call.place.home.over[0][1].endswith(b"data: <2>\n\n")
    call.place.time.pass_(290)
    again = read(call.track.read(1))
    assert (messages(again), again.ended) == ([b"<1>", b"<2>"], 1)


def test_an_agent_comes_back_before_the_end() -> None:
    call = Call(Place(), primes=True)
    read(call.response)
    leave(call.response)
    call.answer.send(b"1")
    response = call.track.read(0)
    again = read(response)
    assert messages(again) == [b"first", b"<1>"]
    call.answer.send(b"2")
    call.answer.end(Failure(502, Reason.UPSTREAM_FAILURE, "it broke"))
    assert messages(again)[2:] == [b"<2>", b"it broke"]
    settle(response)
    assert len(call.due) == 1
    assert again.ended == 1


def test_a_second_reader_takes_over_and_what_is_due_is_done_once() -> None:
    call = Call(Place())
    one = read(call.response)
    two = read(call.track.read(1))
    settle(call.response)
    assert (one.ended, call.due) == (1, [])
    call.answer.end()
    assert (two.ended, len(call.due)) == (1, 1)


@pytest.mark.parametrize("primes", [True, False])
def test_a_server_that_hangs_up_lets_the_agent_go_who_can_come_back(primes: bool) -> None:
    place = Place()
    given = Given()
    due: list[Ending] = []
    reply = Reply(200, [], b"", given)
    reply.ends.append(due.append)
    track = place.track(request=b"7", primes=primes)
    answer = ResumableAnswer(track, reply, None, tell=tell, failed=lambda _: b"", ended=lambda _: None)
    response = answer.response()
    taken = read(response)
    answer.send(b"")
    assert taken.ended == primes
    settle(response) if primes else None
    assert (given.closed, due) == (0, [])
    answer.send(b"1")
    answer.end()
    if primes:
        again = read(track.read(0))
        assert (messages(again), again.ended, len(due)) == ([b"<1>"], 1, 1)
    else:
        assert (messages(taken), taken.ended) == ([b"<1>"], 1)


def test_back_pressure() -> None:
    call = Call(Place())
    assert call.response.source is not None
    read(call.response)
    call.response.source.pause()
    assert call.given.paused
    call.response.source.resume()
    assert not call.given.paused


def test_cancelling_ends_it() -> None:
    failure = Failure(499, Reason.CLIENT_GONE, "cancelled")
    call = Call(Place())
    taken = read(call.response)
    call.answer.cut(failure)
    assert (taken.ended, call.given.closed, call.ended) == (1, 1, [failure])
    away = Call(Place())
    read(away.response)
    leave(away.response)
    away.answer.cut(failure)
    assert (away.given.closed, away.ended, len(away.due)) == (1, [failure], 1)


def test_what_cannot_be_told_ends_the_work() -> None:
    call = Call(Place())
    taken = read(call.response)
    call.answer.send(b"bad")
    assert messages(taken)[-1] == b"it cannot be told"
    assert (call.given.closed, taken.ended, len(call.ended)) == (1, 1, 1)
    call.answer.send(b"late")


def test_an_agent_that_left_before_it_saw_anything() -> None:
    call = Call(Place())
    leave(call.response)
    assert (call.given.closed, call.ended, call.place.home.tracks) == (1, [None], {})
    assert len(call.due) == 1


def test_a_call_that_lasts_is_told_of() -> None:
    call = Call(Place())
    call.track.deadline = 0.5
    read(call.response)
    call.place.time.pass_(2)
    call.place.time.pass_(2)
    assert call.place.home.lasts == [1]
    assert call.track.is_read


@pytest.mark.parametrize("size", [10, LARGEST])
def test_a_message_of_any_size_reaches_who_reads(size: int) -> None:
    call = Call(Place())
    taken = read(call.response)
    assert call.response.source is not None
    call.response.source.pause()
    call.answer.send(b"x" * size)
    call.answer.end()
    assert messages(taken)[-1] == b"<%b>" % (b"x" * size)


def test_so_many_calls_go_on_unread() -> None:
    call = Call(Place(), primes=True)
    read(call.response)
    call.place.home.may_wait = False
    call.answer.send(b"")
    assert call.track.is_read  # who hangs up would lose it
    leave(call.response)
    assert (call.given.closed, call.ended, call.place.home.tracks) == (1, [None], {})


# ---- answers that begin before there is anything to say
def unread(place: Place) -> tuple[ResumableAnswer, list[Any]]:
    seen: list[Any] = []
    answer = ResumableAnswer(
        place.track(request=b"7", primes=True),
        None,
        None,
        tell=tell,
        failed=lambda failure: failure.message.encode(),
        ended=seen.append,
        stop=lambda: seen.append("stopped"),
    )
    return answer, seen


def pending(place: Place) -> tuple[ResumableAnswer, Response, list[Any]]:
    answer, seen = unread(place)
    return answer, answer.response(), seen


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("leaves", [True, False])
def test_an_answer_that_begins_before_its_reply(whole: bool, leaves: bool) -> None:
    place = Place()
    answer, response, seen = pending(place)
    taken = read(response)
    assert taken.sent[0].startswith(b"id: ")
    if leaves:
        leave(response)
    given, due = Given(), []
    reply = Reply(200, [], b"", None if whole else given)
    reply.ends.append(due.append)
    answer.follow(reply, b"first")
    if not whole:
        assert given.sink is answer
        answer.send(b"1")
        answer.end()
    track = next(iter(place.home.tracks.values()))
    expected = [b"first"] if whole else [b"first", b"<1>"]
    if leaves:
        assert len(due) == 1
        assert messages(read(track.read(0))) == expected
    else:
        assert (messages(taken)[-len(expected) :], taken.ended) == (expected, 1)
        settle(response)
        assert len(due) == 1
    assert seen == [None]


def test_an_answer_that_is_ended_before_its_reply() -> None:
    answer, response, seen = pending(Place())
    read(response)
    answer.cut(Failure(499, Reason.CLIENT_GONE, "cancelled"))
    assert "stopped" in seen
    given, due = Given(), []
    reply = Reply(200, [], b"", given)
    reply.ends.append(due.append)
    answer.follow(reply, b"late")
    assert (given.closed, len(due)) == (1, 1)


def test_an_answer_that_fails_between_its_beginning_and_its_reader() -> None:
    """The call's time is up in the very turn in which its stream was decided upon."""
    answer, _ = unread(Place())
    answer.end(Failure(504, Reason.TIMEOUT, "late"))
    taken = read(answer.response())
    assert (messages(taken), taken.ended) == ([b"late"], 1)


def test_what_nobody_can_come_back_for_is_kept_for_nobody() -> None:
    place = Place()
    answer, _, _ = pending(place)
    answer.is_known = False
    answer.begin()
    assert answer.left()
    answer.follow(Reply(200, [], b""), b"done")
    assert (place.home.tracks, place.rings.size) == ({}, 0)
