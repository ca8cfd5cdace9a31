"""wire.guard.json_text: arguments stay JSON wherever they are cut, and what is escaped is found."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.channel import edited
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern

SECRET = "sk-ABCDEFGHIJKLMNOPQRSTUVWX"
CARD = "4111 1111 1111 1111"
VALUE: st.SearchStrategy[object] = st.recursive(
    # Numbers that are no card's.
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e4, 1e4, width=16) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet(
        [
            pattern("key", r"\bsk-[A-Za-z0-9]{20,}", secret=True),
            pattern("card", r"\b4[0-9]{3}[ -]?(?:[0-9]{4}[ -]?){2}[0-9]{4}\b"),
            pattern("quoted", r'say "[^"]{1,20}"'),
            pattern("line", r"top secret[^\n]{0,40}"),
        ],
        max_match=256,
    )


def mask(rule: Rule, text: str) -> str:
    return f'<"{rule.name}"\\>'


def streamed(patterns: PatternSet, text: str, *at: int) -> str:
    channel = JsonChannel(patterns, mask)
    pieces = [text[low:high] for low, high in pairwise((0, *at, len(text)))]
    return "".join([edited(channel.feed(piece)) for piece in pieces]) + edited(channel.finish())


def escaped(text: str, every: int = 1) -> str:
    return "".join(f"\\u{ord(char):04x}" if n % every == 0 else char for n, char in enumerate(text))


CASES: list[tuple[str, object]] = [
    (f'{{"a": "{SECRET}"}}', {"a": '<"key"\\>'}),
    (f'{{"a": "{escaped(SECRET)}", "b": "x"}}', {"a": '<"key"\\>', "b": "x"}),
    (f'{{"a": "\\"{escaped(SECRET, 3)}\\" \\ud83d\\ude00"}}', {"a": '"<"key"\\>" \U0001f600'}),
    (
        f'{{"a":["{CARD}","\\\\{escaped(CARD, 2)}."],"n":4111111111111111}}',
        {"a": ['<"card"\\>', '\\<"card"\\>.'], "n": 1111111111111111},
    ),
    (f'{{"{SECRET}": -1.5e3}}', {'<"key"\\>': -1500.0}),
    ('{"a": "say \\"hello\\" to", "b": "say"}', {"a": '<"quoted"\\> to', "b": "say"}),
    # Across punctuation: what stands in strings goes, what makes it JSON stays.
    (
        '{"a": "top secret, not for you", "b": [true, "x", 12]}',
        {"a": '<"line"\\>', '<"line"\\>': [True, '<"line"\\>', 11]},
    ),
    ('{"a": "\\ud83d lone", "b": "\\u00fcber \\/ \\b\\f\\n\\r\\t"}', {"a": "\ud83d lone", "b": "über / \b\f\n\r\t"}),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES)
def test_wherever_it_is_cut(patterns: PatternSet, text: str, expected: object) -> None:
    whole = streamed(patterns, text)
    assert json.loads(whole) == expected
    assert streamed(patterns, text, *range(1, len(text))) == whole
    for first in range(len(text)):
        assert streamed(patterns, text, first) == whole
        for second in range(first + 1, min(first + 14, len(text)), 3):
            assert streamed(patterns, text, first, second) == whole


@settings(max_examples=300, deadline=None)
@given(VALUE, st.booleans(), st.lists(st.integers(0, 200), max_size=8))
def test_json_without_secrets_stays_as_it_is(
    patterns: PatternSet, value: object, ascii_only: bool, at: list[int]
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    cuts = sorted(min(one, len(text)) for one in at)
    assert streamed(patterns, text, *cuts) == text


PARTS = [SECRET, CARD, "a", " ", "é", '"', "\\", "\n", "sk-ABC", "4111 ", "\U0001f600", "/"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=8), st.integers(1, 7), st.integers(0, 4))
def test_a_value_becomes_what_it_would_by_itself(patterns: PatternSet, parts: list[str], size: int, every: int) -> None:
    value = "".join(parts)
    string = f'"{escaped(value.encode("ascii", "ignore").decode(), every)}"' if every > 2 else json.dumps(value)
    try:
        value = json.loads(string)
    except ValueError:  # what is left as it is would have to be escaped
        string = json.dumps(value)
    text = f'{{"k": {string}, "n": [1]}}'
    out = json.loads(streamed(patterns, text, *range(size, len(text), size)))
    assert out == {"k": patterns.replace(value, mask), "n": [1]}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60), st.integers(1, 5))
def test_what_is_no_json_leaves_whole(patterns: PatternSet, text: str, size: int) -> None:
    assert streamed(patterns, text, *range(size, len(text), size)) == streamed(patterns, text)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50, 4000])
@pytest.mark.parametrize("letters", ["A" * 3000, escaped("A" * 600), "\\u0041" * 100 + "B" * 900])
def test_a_secret_that_is_too_long_to_wait_for_leaves_json(patterns: PatternSet, letters: str, size: int) -> None:
    text = f'{{"a": "sk-{letters}", "b": "\\"kept\\"", "n": 12}}'
    out = json.loads(streamed(patterns, text, *range(size, len(text), size)))
    assert out == {"a": '<"key"\\>', "b": '"kept"', "n": 12}


@pytest.mark.parametrize("size", [1, 3, 7])
def test_what_is_swallowed_across_punctuation_leaves_json(patterns: PatternSet, size: int) -> None:
    text = json.dumps({"a": "sk-" + "A" * 400, "list": ["A" * 300, 5], "end": "."})
    out = json.loads(streamed(patterns, text, *range(size, len(text), size)))
    assert out == {"a": '<"key"\\>', "list": ["A" * 300, 5], "end": "."}


@pytest.mark.parametrize(
    "text", [f"{{'a': '{SECRET}'}}", SECRET, f'{{"a": {SECRET}, "b": true}}', f'"a" {SECRET} "b"', f"a {SECRET}"]
)
def test_what_is_no_json_is_masked_all_the_same(patterns: PatternSet, text: str) -> None:
    expected = streamed(patterns, text)
    assert expected == text.replace(SECRET, '<\\"key\\"\\\\>')
    for at in range(1, len(text)):
        assert streamed(patterns, text, at) == expected
    assert streamed(patterns, text, *range(1, len(text))) == expected
