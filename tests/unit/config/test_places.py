"""Paths and positions."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.config.document import read
from tollhouse.config.places import Path, Places, render, unrender

TEXT = """\
base: &base
  kind: openai
  "a.b": 1
providers:
  ours: *base
  more:
    <<: [*base, {extra: 2}]
    own: 3
models: [{name: é, targets: [a, b]}, "text"]
"""


@pytest.mark.parametrize(
    "path,at,key",
    [
        ((), (1, 1), (1, 1)),
        (("base", "kind"), (2, 9), (2, 3)),
        (("base", "a.b"), (3, 10), (3, 3)),
        (("providers", "ours"), (5, 9), (5, 3)),
        (("providers", "ours", "kind"), (2, 9), (2, 3)),
        (("providers", "more", "kind"), (2, 9), (2, 3)),
        (("providers", "more", "extra"), (7, 25), (7, 18)),
        (("providers", "more", "own"), (8, 10), (8, 5)),
        (("models", 0, "targets", 1), (9, 33), (9, 33)),
        (("models", 0, "weight"), (9, 10), (9, 10)),  # not there: its parent
        (("models", 7, "name"), (9, 9), (9, 9)),
        (("base", 0, "kind"), (2, 9), (2, 3)),  # alone where a list may stand
        (("base", 1, "kind"), (1, 7), (1, 7)),
        (("models", 1, "name"), (9, 38), (9, 38)),
    ],
)
def test_places(path: Path, at: tuple[int, int], key: tuple[int, int]) -> None:
    places = Places(TEXT, "t.yaml")
    assert places.at(path) == at
    assert places.at(path, key=True) == key


def _paths(value: Any, path: Path = ()) -> list[Path]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for step, v in inner for p in _paths(v, (*path, step)))]


def test_every_value_that_is_read_has_a_place_of_its_own_line() -> None:
    values = read(TEXT, "t.yaml").values
    places = Places(TEXT, "t.yaml")
    lines = TEXT.splitlines()
    for path in _paths(values):
        line, column = places.at(path)
        assert 1 <= column <= len(lines[line - 1])


def test_render() -> None:
    assert render(("models", 0, "targets", 1, "provider")) == "models[0].targets[1].provider"
    assert render(("mcp", "servers", 'a."b\\')) == 'mcp.servers["a.\\"b\\\\"]'


@given(st.lists(st.text(max_size=8) | st.integers(0, 10**6)))
def test_a_rendered_path_is_read_back(path: list[str | int]) -> None:
    assert unrender(render(tuple(path))) == tuple(path)


def test_other_text_is_no_path() -> None:
    assert unrender("route 'x'") == ("route",)
    assert unrender("") == ()
