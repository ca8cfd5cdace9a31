"""Reading fields: what a model gets to see of JSON."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.llm.codec.reading import legible

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_legible_json_says_the_same(value: object) -> None:
    assert json.loads(legible(msgspec.Raw(json.dumps(value).encode()))) == value


@pytest.mark.parametrize(
    "raw, text",
    [
        (r'{"a":"18 \u00b0C"}', '{"a":"18 °C"}'),
        (r'"\ud83c\udf1e"', '"🌞"'),
        (r'"\\u00b0 \u0041 \u000a \n"', r'"\\u00b0 \u0041 \u000a \n"'),
        (r'"\ud83c x \udf1e"', r'"\ud83c x \udf1e"'),
        ('{"n":1.10,"m":1e400}', '{"n":1.10,"m":1e400}'),
    ],
)
def test_letters_stand_as_they_are(raw: str, text: str) -> None:
    assert legible(msgspec.Raw(raw.encode())) == text
