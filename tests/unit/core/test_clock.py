"""Coarse time: every deadline is noticed within a period, whatever others do when theirs has come."""

import logging
from collections.abc import Callable

import pytest

from tollhouse.core.clock import FOREVER, SLICES, Clock


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Alarm:
    def __init__(self, deadline: float, ring: Callable[["Alarm"], None] = lambda _: None) -> None:
        self.deadline = deadline
        self.rang = 0
        self._ring = ring

    def expire(self) -> None:
        self.rang += 1
        self._ring(self)


def turn(clock: Clock, time: Time, turns: int = SLICES) -> None:
    for _ in range(turns):
        time.now += clock.tick
        clock.turn()


def broken(_: Alarm) -> None:
    raise RuntimeError("a bug")


def test_every_deadline_is_noticed_within_a_period_and_none_early() -> None:
    time = Time()
    clock = Clock(source=time)
    alarms = [Alarm(time.now + n / 100) for n in range(400)]
    for alarm in alarms:
        clock.watch(alarm)
    for _ in range(6 * SLICES):
        turn(clock, time, 1)
        for n, alarm in enumerate(alarms):
            due = 100.0 + n / 100
            assert not alarm.rang or due < time.now
            assert alarm.rang or due > time.now - 1.0 - clock.tick
    assert {alarm.rang for alarm in alarms} == {1}
    assert {alarm.deadline for alarm in alarms} == {FOREVER}


def test_now_is_as_of_the_last_turn() -> None:
    time = Time()
    clock = Clock(source=time)
    time.now += 5.0
    assert clock.now == 100.0
    clock.turn()
    assert clock.now == 105.0


def test_a_deadline_that_moves_is_not_noticed_at_its_old_place() -> None:
    time = Time()
    clock = Clock(source=time)
    alarm = Alarm(time.now + 0.5)
    clock.watch(alarm)
    alarm.deadline += 3.0
    turn(clock, time, 2 * SLICES)
    assert not alarm.rang
    turn(clock, time, 3 * SLICES)
    assert alarm.rang == 1


def test_expire_may_set_the_next_deadline() -> None:
    time = Time()
    clock = Clock(source=time)

    def again(alarm: Alarm) -> None:
        alarm.deadline = clock.now + 1.0

    alarm = Alarm(time.now, again)
    clock.watch(alarm)
    turn(clock, time, 10 * SLICES)
    assert 4 <= alarm.rang <= 10


def test_what_is_in_a_hurry_is_looked_at_every_turn() -> None:
    time = Time()
    clock = Clock(source=time)
    alarms = [Alarm(time.now + 0.2) for _ in range(50)]
    for alarm in alarms:
        clock.watch(alarm)
        clock.hurry(alarm)
    turn(clock, time, 3)
    assert not any(alarm.rang for alarm in alarms)
    turn(clock, time, 1)
    assert {alarm.rang for alarm in alarms} == {1}


def test_a_hurry_ends_when_the_deadline_moves_away() -> None:
    time = Time()
    clock = Clock(source=time)
    alarm = Alarm(time.now + 10.0)
    clock.hurry(alarm)
    turn(clock, time, 1)
    alarm.deadline = time.now + clock.tick / 2
    turn(clock, time, SLICES)
    assert not alarm.rang, "not watched, and in no hurry any more"


def test_what_was_dropped_is_not_ended() -> None:
    time = Time()
    clock = Clock(source=time)
    alarm = Alarm(time.now)
    clock.watch(alarm)
    clock.hurry(alarm)
    clock.drop(alarm)
    turn(clock, time)
    assert not alarm.rang


@pytest.mark.parametrize("hurry", [False, True])
def test_one_that_ends_drops_or_moves_others_that_are_due_too(hurry: bool) -> None:
    time = Time()
    clock = Clock(source=time)
    alarms: list[Alarm] = []

    def end_all(mine: Alarm) -> None:
        for n, alarm in enumerate(alarms):
            if alarm is not mine:
                if n % 2:
                    clock.drop(alarm)
                else:
                    alarm.deadline = FOREVER

    alarms += [Alarm(time.now, end_all) for _ in range(100)]
    for alarm in alarms:
        clock.watch(alarm)
        if hurry:
            clock.hurry(alarm)
    turn(clock, time, 4 * SLICES)
    assert sum(alarm.rang for alarm in alarms) == 1


@pytest.mark.parametrize("hurry", [False, True])
def test_one_that_fails_takes_nobody_elses_time(hurry: bool, caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    clock = Clock(source=time)
    hooks: list[int] = []
    clock.every_turn(lambda: hooks.append(1))
    well, ill = [Alarm(time.now) for _ in range(400)], [Alarm(time.now, broken) for _ in range(40)]
    for alarm in [*ill, *well]:
        clock.watch(alarm)
        if hurry:
            clock.hurry(alarm)
    with caplog.at_level(logging.ERROR):
        turn(clock, time, SLICES + 1)
    assert {alarm.rang for alarm in well} == {1}
    assert {alarm.rang for alarm in ill} == {1}, "not again and again"
    assert len(hooks) == SLICES + 1
    assert "Alarm" in caplog.text
    assert "a bug" in caplog.text


def test_a_hook_that_fails_or_leaves_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    time = Time()
    clock = Clock(source=time)
    ran: list[str] = []

    def bad() -> None:
        ran.append("bad")
        raise RuntimeError("a bug")

    def once() -> None:
        ran.append("once")
        clock.remove(once)

    for hook in (bad, once, lambda: ran.append("good")):
        clock.every_turn(hook)
    turn(clock, time, 2)
    assert ran == ["bad", "once", "good", "bad", "good"]
    assert "a bug" in caplog.text
