"""What a client can do, as a profile and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire import jsonrpc
from tollhouse.wire.mcp import capabilities as caps


@pytest.mark.parametrize(
    ("declared", "profile"),
    [
        ({}, 0),
        ({"roots": {}}, caps.ROOTS),
        ({"roots": {"listChanged": True}}, caps.ROOTS | caps.ROOTS_CHANGED),
        ({"sampling": {}}, caps.SAMPLING),
        ({"sampling": {"tools": {}, "context": {}}}, caps.SAMPLING | caps.SAMPLING_TOOLS | caps.SAMPLING_CONTEXT),
        ({"elicitation": {}}, caps.ELICIT_FORM),
        ({"elicitation": {"url": {}}}, caps.ELICIT_URL),
        ({"elicitation": {"form": {}, "url": {}}}, caps.ELICIT_FORM | caps.ELICIT_URL),
        ({"experimental": {"x": {}}, "tasks": {}}, 0),
    ],
)
def test_profiles(declared: object, profile: int) -> None:
    assert caps.profile_of(json.dumps(declared).encode()) == profile


@given(st.fixed_dictionaries({}, optional={
    "roots": st.sampled_from([{}, {"listChanged": True}]),
    "sampling": st.sampled_from([{}, {"tools": {}}, {"context": {}}]),
    "elicitation": st.sampled_from([{}, {"url": {}}, {"form": {}}, {"url": {}, "form": {}}]),
}))  # fmt: skip
def test_profiles_come_back(declared: object) -> None:
    profile = caps.profile_of(json.dumps(declared).encode())
    assert caps.profile_of(caps.render(profile)) == profile


@pytest.mark.parametrize("raw", [b"[]", b"7", b'{"roots":7}', b'{"sampling":[]}', b'{"elicitation":"yes"}'])
def test_what_cannot_be_read(raw: bytes) -> None:
    with pytest.raises(jsonrpc.Malformed):
        caps.profile_of(raw)


def test_what_may_be_asked() -> None:
    assert caps.allows(caps.ROOTS, "roots/list")
    assert not caps.allows(0, "roots/list")
    assert caps.allows(caps.SAMPLING, "sampling/createMessage")
    assert not caps.allows(127, "tools/call")
    assert caps.allows(caps.ELICIT_FORM, "elicitation/create", b'{"message":"m"}')
    assert not caps.allows(caps.ELICIT_FORM, "elicitation/create", b'{"mode":"url"}')
    assert caps.allows(caps.ELICIT_URL, "elicitation/create", b'{"mode":"url"}')
    assert not caps.allows(caps.ELICIT_FORM, "elicitation/create", b"[]")
