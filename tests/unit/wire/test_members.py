"""wire.members: names that another decoder would take for one that is acted on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.members import Names

NAMES = Names("model", "stream", "max_tokens", "requestId", usual=("temperature", "Stream"))


@pytest.mark.parametrize(
    "name", ["Model", "MODEL", "\u017ftream", "max_to\u212aens", "MAX_TOKENS", "requestid", "RequestID", "m\u006fdeL"]
)
def test_another_case_is_misspelt_with_and_without_the_right_one(name: str) -> None:
    assert NAMES.misspelt({"model": 1, "stream": 1, name: 2}) == name
    assert NAMES.misspelt({name: 2}) == name


@pytest.mark.parametrize("name", ["model", "requestId", "models", "mode1", "Temperature", "max-tokens", "", " model"])
def test_others_are_not(name: str) -> None:
    assert NAMES.misspelt({"model": 1, name: 2}) is None


def test_usual_names_cannot_let_another_case_pass() -> None:
    assert NAMES.misspelt({"model": 1, "temperature": 1}) is None
    assert NAMES.misspelt({"model": 1, "temperature": 1, "Stream": 1}) == "Stream"


@given(st.dictionaries(st.text(max_size=12) | st.sampled_from(["model", "Model", "requestId"]), st.none()))
def test_what_passes_means_one_thing_to_a_decoder_without_case(fields: dict[str, None]) -> None:
    if NAMES.misspelt(fields) is None:
        for known in ("model", "stream", "max_tokens", "requestId"):
            assert [name for name in fields if name.casefold() == known.casefold()] in ([], [known])
