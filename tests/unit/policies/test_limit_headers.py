"""Headers of limits: the draft's, and those of each dialect."""

import pytest

from tollhouse.policies.limit_headers import Left, Style, fields_of, policy_item
from tollhouse.policies.whose import tags_of


def left(unit: str, style: Style = "dialect", n: int = 5, full: float = 65.2, name: bytes = b"x") -> Left:
    return Left(name, unit, style, 10, n, full, 60.0)


def test_the_draft() -> None:
    told = [left("requests", "draft", name=b"a"), left("usd", "draft", 3, 0.0, b"b"), left("requests", "off")]
    assert fields_of(told, "openai", 0.0) == [(b"ratelimit", b'"a";r=5;t=66, "b";r=3;t=0')]
    assert policy_item(b"a", 10, 60.0) == b'"a";q=10;w=60'
    assert policy_item(b"a", 10, 0.0) == b'"a";q=10'
    assert fields_of([], "openai", 0.0) == []


def test_openai() -> None:
    told = [left("requests"), left("requests", n=2, full=0.32), left("tokens", n=7, full=3723.0), left("usd")]
    assert dict(fields_of(told, "openai", 0.0)) == {
        b"ratelimit": b'"x";r=5;t=66',  # it has no header for money
        b"x-ratelimit-limit-requests": b"10",
        b"x-ratelimit-remaining-requests": b"2",
        b"x-ratelimit-reset-requests": b"320ms",
        b"x-ratelimit-limit-tokens": b"10",
        b"x-ratelimit-remaining-tokens": b"7",
        b"x-ratelimit-reset-tokens": b"1h2m3s",
    }


def test_anthropic() -> None:
    fields = dict(fields_of([left("input_tokens", full=0.0), left("calls", full=60.0)], "anthropic", 1_790_000_000.0))
    assert fields == {
        b"anthropic-ratelimit-input-tokens-limit": b"10",
        b"anthropic-ratelimit-input-tokens-remaining": b"5",
        b"anthropic-ratelimit-input-tokens-reset": b"2026-09-21T14:13:20Z",
        b"anthropic-ratelimit-requests-limit": b"10",
        b"anthropic-ratelimit-requests-remaining": b"5",
        b"anthropic-ratelimit-requests-reset": b"2026-09-21T14:14:20Z",
    }


def test_other_dialects_get_the_draft() -> None:
    assert [name for name, _ in fields_of([left("requests")], "gemini", 0.0)] == [b"ratelimit"]


@pytest.mark.parametrize(
    "seconds, said", [(0.001, b"1ms"), (1.0, b"1s"), (59.1, b"1m0s"), (60.0, b"1m0s"), (3600.0, b"1h0m0s")]
)
def test_spans_as_openai_writes_them(seconds: float, said: bytes) -> None:
    assert dict(fields_of([left("tokens", full=seconds)], "openai", 0.0))[b"x-ratelimit-reset-tokens"] == said


def test_tags() -> None:
    assert tags_of(b"b, a,a , not one,\xff,") == ("a", "b")
    assert tags_of(b"") == ()
    assert len(tags_of(b",".join(b"%d" % n for n in range(100)))) == 16
    assert tags_of(b"x" * 65) == ()
