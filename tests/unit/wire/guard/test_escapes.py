"""wire.guard.escapes: no escape of JSON hides anything, however deep, wherever it is cut."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.escapes import escaped, read, text_runs
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern

KEY = "sk-ABCDEFGHIJ/KLMNOPQRST+x"
FORMS = {
    "all": lambda text: "".join(f"\\u{ord(char):04x}" for char in text),
    "upper": lambda text: "".join(f"\\u{ord(char):04X}" for char in text),
    "some": lambda text: "".join(f"\\u{ord(char):04x}" if n % 3 == 0 else char for n, char in enumerate(text)),
    "first": lambda text: f"\\u{ord(text[0]):04x}{text[1:]}",
    "slash": lambda text: text.replace("/", "\\/"),
    "wide": lambda text: "".join(f"\\u{ord(char) + 0xFEE0:04x}" for char in text),
    "bold": lambda text: re.sub("[A-Z]", lambda m: f"\\ud835\\u{0xDC00 + ord(m[0]) - 65:04x}", text),
    "in the escape": lambda text: "".join(f"\\u005cu{ord(char):04x}" for char in text),
    "of the u": lambda text: "".join(f"\\\\\\u0075{ord(char):04x}" for char in text),
    "in each other": lambda text: "".join(f"\\u005cu005cu{ord(char):04x}" for char in text),
}
"""Ways to write the letters in a string of JSON."""


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet(
        [
            pattern("key", r"\bsk-[A-Za-z0-9/+]{20,}", secret=True),
            pattern("said", r'"password": "[^"]{1,30}"'),
            pattern("path", r"C:.new.[a-z]{1,20}"),
        ],
        max_match=512,
    )


def mask(rule: Rule, text: str) -> str:
    return f"<{rule.name}>"


def streamed(channel: Channel, text: str, *at: int) -> str:
    parts = [text[low:high] for low, high in pairwise((0, *at, len(text)))]
    return "".join([edited(channel.feed(part)) for part in parts]) + edited(channel.finish())


def nested(string: str, depth: int) -> str:
    """JSON with a string written in that way, within strings of JSON."""
    text = f'{{"a": "{string} .", "n": [1]}}'
    for _ in range(depth):
        text = json.dumps({"inner": text, "x": 2})
    return text


def innermost(text: str, depth: int) -> str:
    """What whoever reads each level as JSON finds in the innermost."""
    value = json.loads(text)
    for _ in range(depth):
        value = json.loads(value["inner"])
    said: str = value["a"]
    while "\\" in said:
        said = json.loads(f'"{said}"')
    return said


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("form", FORMS)
def test_no_form_hides_a_secret_at_any_depth(patterns: PatternSet, form: str, depth: int) -> None:
    text = nested(FORMS[form](KEY), depth)
    if form not in ("wide", "bold"):
        assert innermost(text, depth) == f"{KEY} ."
    assert innermost(patterns.replace(text, mask), depth) == "<key> ."
    for kind in (Channel, JsonChannel):
        whole = streamed(kind(patterns, mask), text)
        assert innermost(whole, depth) == "<key> ."
        assert streamed(kind(patterns, mask), text, *range(1, len(text))) == whole
        for at in range(1, len(text), 1 + len(text) // 12):
            assert streamed(kind(patterns, mask), text, at, min(at + 5, len(text))) == whole


@pytest.mark.parametrize("depth", range(4))
def test_quotes_are_read_at_any_depth(patterns: PatternSet, depth: int) -> None:
    text = json.dumps({"password": "hunter2", "x": "kept"})
    for _ in range(depth):
        text = json.dumps(text)
    for size in (1, 3, len(text)):
        out = streamed(Channel(patterns, mask), text, *range(size, len(text), size))
        assert "hunter2" not in out
        assert "kept" in out
        assert out == patterns.replace(text, mask)


def test_what_is_no_escape_stays_what_it_is(patterns: PatternSet) -> None:
    for text in ("C:\\new\\table, \\alpha \\use \\u12 \\x67 \\\\ \\", "\\" * 300 + "u0041", "\\ud83d \\ude00\\"):
        expected = patterns.replace(text, mask)
        assert expected == text.replace("C:\\new\\table", "<path>")
        for size in (1, 2, 7):
            assert streamed(Channel(patterns, mask), text, *range(size, len(text), size)) == expected


def test_a_mask_covers_the_escape_and_not_more(patterns: PatternSet) -> None:
    text = "Say \\u0073k-" + "A" * 20 + "\\u0020now"
    assert patterns.replace(text, mask) == "Say <key>\\u0020now"
    seen = []
    patterns.replace(text, lambda rule, own: seen.append(own) or own)  # type: ignore[func-returns-value]
    assert seen == ["\\u0073k-" + "A" * 20]


PARTS = [
    "\\",
    "\\u0073",
    "\\u005c",
    "u0073",
    "k-",
    "A" * 20,
    "/",
    '"',
    " ",
    "\\ud835",
    "\\udc00",
    "\\n",
    "é",
    "sk-",
    "x",
]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14), st.integers(1, 9), st.integers(0, 60))
def test_any_mixture_any_cut(patterns: PatternSet, parts: list[str], size: int, first: int) -> None:
    text = "".join(parts)
    expected = patterns.replace(text, mask)
    cuts = range(min(first, len(text)) or 1, len(text), size)
    assert streamed(Channel(patterns, mask), text, *cuts) == expected
    string = json.dumps(text)
    out = streamed(JsonChannel(patterns, mask), string, *range(1, len(string), size))
    assert out == streamed(JsonChannel(patterns, mask), string)
    assert json.loads(out) == expected


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14))
def test_runs_are_all_of_the_source(parts: list[str]) -> None:
    text = "".join(parts)
    runs, complete = text_runs(text, whole=True)
    assert complete == len(text)
    assert [run.end for run in runs] == [run.begin for run in runs[1:]] + [len(text)] * bool(runs)
    assert "".join([run.text for run in runs]) == read(text)
    if not escaped(text):
        assert "".join([run.text for run in runs]) == text
    assert all(len(run.text) in (1, run.end - run.begin) for run in runs)
