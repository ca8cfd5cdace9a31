"""Nesting is bounded."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.core.depth import MAX_DEPTH, decode

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5) | st.just("[[[{{{"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=30,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(values, st.integers(0, 5))
def test_the_depth_is_exact(value: Any, limit: int) -> None:
    raw = json.dumps(value).encode()
    if depth(value) <= limit:
        assert decode(raw, limit) == value
        assert decode(msgspec.Raw(raw), limit) == value
    else:
        with pytest.raises(ValueError, match="levels deep"):
            decode(raw, limit)


def test_wide_is_not_deep() -> None:
    assert len(decode(b"[" + b",".join([b"[]"] * 5000) + b"]")) == 5000


@pytest.mark.parametrize("n", [MAX_DEPTH + 1, 3000, 20_000, 1_000_000])
def test_deep_is_refused(n: int) -> None:
    for raw in (b"[" * n + b"]" * n, b'{"a":' * n + b"1" + b"}" * n):
        with pytest.raises(ValueError, match=r"levels deep|not JSON"):
            decode(raw)


@pytest.mark.parametrize("raw", [b"", b"{", b"nul", b"\xff", b'"\xff"', b'"\\ud800"', b"1e999", b"[1] 2"])
def test_what_is_no_json(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        decode(raw)
