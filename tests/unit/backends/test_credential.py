import logging
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tollhouse.backends.credential import Credential, Fixed, KeyedSpec, Rotating
from tollhouse.backends.header_fields import bearer_line, key_line
from tollhouse.core.errors import Failure, Reason

pytestmark = pytest.mark.anyio

KEYS = ["sk-first-0123456789abcdef", "sk-second-0123456789ghij", "sk-third-0123456789klmn"]


class At:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def rotating(count: int = 3) -> tuple[Rotating, At, list[bytes]]:
    at = At()
    lines = [b"authorization: Bearer %b\r\n" % key.encode() for key in KEYS[:count]]
    return Rotating("up", lines, at), at, lines


async def test_fixed_lines_are_there() -> None:
    it = Fixed(b"x-api-key: k\r\n")
    it.start()
    await it.ready(0.0)
    assert it.settled
    assert not it.refused(it.lines, 401, None)
    await it.close()
    with pytest.raises(Failure) as failure:
        await Credential(settled=False).ready(0.0)
    assert (failure.value.status, failure.value.reason, failure.value.retry) == (503, Reason.UPSTREAM_FAILURE, True)


def test_a_refused_key_gives_way_to_the_next() -> None:
    it, at, (a, b, c) = rotating()
    assert it.lines == a
    assert it.refused(a, 401, None)
    assert it.lines == b
    assert it.refused(b, 429, 20.0)
    assert it.lines == c
    assert it.refused(a, 403, None)  # asked before it was refused: another is there
    assert it.lines == c
    at.now += 21
    assert it.refused(c, 429, None)  # b is back, a rests for ten minutes
    assert it.lines == b
    at.now += 10
    assert not it.refused(b, 429, 100.0)  # c is back in 20 seconds, before the others
    assert it.lines == c
    at.now += 21
    assert not it.refused(b"authorization: Bearer other\r\n", 401, None)
    assert not it.refused(c, 500, None)
    assert it.lines == c


def test_when_all_rest_the_first_that_is_back_is_used() -> None:
    it, at, (a, b, c) = rotating()
    assert it.refused(a, 429, 50.0)
    assert it.refused(b, 429, 10.0)
    assert not it.refused(c, 429, 30.0)
    assert it.lines == b
    at.now += 11
    assert it.refused(a, 429, 50.0)


def test_a_single_key_stays() -> None:
    it, _, (a,) = rotating(1)
    assert not it.refused(a, 401, None)
    assert it.lines == a


def test_the_log_has_the_position_once(caplog: pytest.LogCaptureFixture) -> None:
    it, at, (a, b, _) = rotating()
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            it.refused(a, 401, None)
        it.refused(b, 429, None)
    assert [record.getMessage() for record in caplog.records] == [
        "provider up: API key 1 of 3 (...cdef) was refused with 401; it rests for 10 minutes"
    ]
    at.now += 601
    with caplog.at_level(logging.INFO):
        it.refused(a, 401, None)
    assert len(caplog.records) == 2


def test_of_a_short_key_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    it = Rotating("up", [b"x-api-key: short\r\n", b"x-api-key: other\r\n"])
    it.refused(it.lines, 401, None)
    assert "short" not in caplog.text
    assert "hort" not in caplog.text


@given(
    st.integers(1, 5),
    st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from([401, 403, 429]), st.none() | st.floats(0, 1000), st.floats(0, 300)
        ),
        max_size=40,
    ),
)
def test_a_key_that_does_not_rest_is_used_if_there_is_one(
    count: int, refusals: list[tuple[int, int, float | None, float]]
) -> None:
    at = At()
    lines = [b"k: %d\r\n" % n for n in range(count)]
    it = Rotating("up", lines, at)
    back = [float("-inf")] * count
    for number, status, after, later in refusals:
        at.now += later
        number %= count
        before = it.lines
        again = it.refused(lines[number], status, after)
        back[number] = max(back[number], at.now + (600 if status != 429 else 30 if after is None else after))
        chosen = lines.index(it.lines)
        if it.lines != before:
            assert before == lines[number]
            assert back[chosen] <= at.now or back[chosen] == min(back)
        assert again == (chosen != number and back[chosen] <= at.now)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"api_key": KEYS[0], "api_keys": [KEYS[1]]}, "both given"),
        ({"api_keys": [KEYS[0], KEYS[0]]}, "twice"),
        ({"api_keys": ["a b"]}, "not an API key"),
        ({"api_keys": [f"k{n}" for n in range(101)]}, "100"),
    ],
)
def test_keys_that_cannot_be_used(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says) as error:
        KeyedSpec(**fields)
    assert KEYS[0] not in str(error.value)


def test_keys_become_credentials() -> None:
    none = KeyedSpec().credential("up", bearer_line)
    assert (none.lines, none.settled) == (b"", True)
    one = KeyedSpec(api_key=KEYS[0]).credential("up", partial(key_line, b"x-api-key"))
    assert isinstance(one, Fixed)
    assert one.lines == b"x-api-key: %b\r\n" % KEYS[0].encode()
    several = KeyedSpec(api_keys=KEYS).credential("up", bearer_line)
    assert isinstance(several, Rotating)
    assert several.lines == b"authorization: Bearer %b\r\n" % KEYS[0].encode()
    assert several.refused(several.lines, 401, None)
    assert not any(key in repr(several) + repr(KeyedSpec(api_keys=KEYS)) for key in KEYS)
