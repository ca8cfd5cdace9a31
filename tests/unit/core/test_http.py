"""`finish`: every callback once, in order, whatever one of them does."""

import pytest

from tollhouse.core.http import End, Ending, finish

ENDING = Ending(200, "Upstream")


def test_ends_run_in_order_and_are_gone() -> None:
    ran: list[int] = []
    ends: list[End] = [lambda _, n=n: ran.append(n) for n in range(4)]  # type: ignore[misc]
    finish(ends, ENDING)
    assert ran == [0, 1, 2, 3]
    assert ends == []
    finish(ends, ENDING)
    assert ran == [0, 1, 2, 3]


def test_one_that_raises_keeps_no_other_from_running() -> None:
    ran: list[int] = []

    def end(n: int) -> End:
        def run(_: Ending) -> None:
            ran.append(n)
            if n in (1, 3):
                raise ValueError(n)

        return run

    ends = [end(n) for n in range(5)]
    with pytest.raises(ValueError, match="3") as raised:
        finish(ends, ENDING)
    assert isinstance(raised.value.__context__, ValueError)
    assert ran == [0, 1, 2, 3, 4]
    assert ends == []


def test_one_that_ends_the_same_again_or_adds_another_runs_none_twice() -> None:
    ran: list[str] = []
    ends: list[End] = []

    def again(ending: Ending) -> None:
        ran.append("again")
        ends.append(lambda _: ran.append("added"))
        finish(ends, ending)

    ends += [again, lambda _: ran.append("last")]
    finish(ends, ENDING)
    assert sorted(ran) == ["added", "again", "last"]
    assert ends == []
