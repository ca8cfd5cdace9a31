"""Grace: what a worker lets pass on its own, for how many, and that windows that are over leave room."""

from tollhouse.policies.grace import Grace, within
from tollhouse.store.base import Draw, Window

DAY = 86_400


def draw(key: str, day: int = 0, amount: int = 4) -> Draw:
    return Draw("usd:top/user:day", key, amount, 100, Window(day * DAY, day * DAY + DAY))


def test_it_is_given_once_until_the_state_answers() -> None:
    grace = Grace(10)
    assert [within([(grace, draw("ada"))]) for _ in range(3)] == [True, True, False]
    assert within([(grace, draw("bob"))])
    grace.end(draw("ada"))
    assert within([(grace, draw("ada"))])


def test_all_of_them_or_none() -> None:
    large, small = Grace(10), Grace(4)
    assert within([(large, draw("ada")), (small, draw("all"))])
    assert not within([(large, draw("ada")), (small, draw("all"))])
    assert large.has(draw("ada"))


def test_accounts_of_windows_that_are_over_leave_room() -> None:
    grace = Grace(10)
    for n in range(10_000):
        assert within([(grace, draw(f"user-{n}"))])
    assert not within([(grace, draw("new"))])
    assert within([(grace, draw("user-7"))])  # has its place
    assert within([(grace, draw("new", day=1))])
    assert not within([(grace, draw("user-7", day=1, amount=11))])
