"""Failure: what it says by itself, and that a copy says the same and holds nobody's frames."""

from tollhouse.core.errors import Failure, Reason


def test_a_copy_says_the_same_and_refers_to_nobody() -> None:
    failure = Failure(
        503,
        Reason.UPSTREAM_FAILURE,
        "no",
        code="c",
        detail="d",
        retry=True,
        retry_after=2.0,
        headers=((b"a", b"b"),),
        sent=True,
        reached=False,
    )
    try:
        raise failure
    except Failure as raised:
        copy = raised.copy()
    assert copy is not failure
    assert copy.__traceback__ is None
    assert failure.__traceback__ is not None
    assert str(copy) == "no"
    for name in Failure.__slots__:
        assert getattr(copy, name) == getattr(failure, name), name


def test_what_is_not_said() -> None:
    failure = Failure(500, Reason.INTERNAL, "no")
    assert (failure.retry, failure.sent, failure.reached) == (False, False, True)
