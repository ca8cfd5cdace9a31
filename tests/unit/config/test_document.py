"""Reading YAML: the core schema, bounds, and what is said of text that cannot be read."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.config.document import MAX_DEPTH, MAX_NODES, MAX_SIZE, read


def value(text: str) -> Any:
    found = read(text, "t.yaml")
    assert found.problems == []
    assert found.unresolved == []
    return found.values


def problems(text: str) -> list[str]:
    return [str(problem) for problem in read(text, "t.yaml").problems]


@pytest.mark.parametrize(
    "written,meant",
    [
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("true", True), ("True", True), ("FALSE", False), ("'true'", "true"),
        ("null", None), ("~", None), ("", None), ("nULL", "nULL"),
        ("010", 10), ("0o17", 15), ("0x1F", 31), ("-7", -7), ("+7", 7), ("0b1", "0b1"),
        ("1_000", "1_000"), ("12:30", "12:30"), ("1.5", 1.5), (".5", 0.5), ("1e3", 1000.0), ("1.", 1.0),
        ("1.2.3", "1.2.3"), ("127.0.0.1:8080", "127.0.0.1:8080"), ("2026-11-22", "2026-11-22"), ("-", "-"), (".", "."),
        ("!!str 12", "12"), ("! 12", "12"), ('"\\u00e9"', "é"), ("|-\n  x\n  y", "x\ny"), ("=", "="),
    ],
)  # fmt: skip
def test_scalars_are_of_the_core_schema(written: str, meant: Any) -> None:
    found = value(f"k: {written}\n")["k"] if written != "-" else value("k: '-'")["k"]
    assert found == meant
    assert type(found) is type(meant)


def test_keys_are_text() -> None:
    assert value("on: 1\n1: 2\ntrue: 3\n~: 4\n") == {"on": 1, "1": 2, "true": 3, "~": 4}


def test_anchors_aliases_and_merges() -> None:
    text = "base: &b {x: 1, y: 2}\none: *b\ntwo: {<<: *b, y: 3}\nthree:\n  <<: [*b, {z: 4}]\nfour: {'<<': 5}\n"
    found = value(text)
    assert found["one"] == {"x": 1, "y": 2}
    assert found["two"] == {"x": 1, "y": 3}
    assert found["three"] == {"x": 1, "y": 2, "z": 4}
    assert found["four"] == {"<<": 5}


@pytest.mark.parametrize(
    "text,said",
    [
        ("", ["t.yaml:1:1: the file is empty"]),
        ("# only a comment\n", ["t.yaml:1:1: the file is empty"]),
        ("---\n~\n", ["t.yaml:2:1: the file is empty"]),
        ("- 1\n", ["t.yaml:1:1: the configuration should be a mapping, not a list"]),
        ("word\n", ["t.yaml:1:1: the configuration should be a mapping, not text"]),
        (
            "a: 1\n---\nb: 2\n",
            ["t.yaml:2:1: a second document begins here; a configuration is one document, without `---` in it"],
        ),
        ("a: 1\nb:\n  c: 2\n  c: 3\na: 4\n", [
            "t.yaml:4:3: b.c: the key `c` stands twice; keep one",
            "t.yaml:5:1: a: the key `a` stands twice; keep one",
        ]),
        ("a: .inf\nb: .nan\nc: 1e999\n", [
            f"t.yaml:{n}:4: {k}: not a finite number; put it in quotes if it is text" for n, k in enumerate("abc", 1)
        ]),
        ("id: 1234567890123456789\n", ["t.yaml:1:5: id: too long for a number; put it in quotes if it is text"]),
        ("a: !!python/name:os.system x\n", [
            "t.yaml:1:4: a: the tag `!!python/name:os.system` means nothing here; leave it out",
        ]),
        ("a: !env [x]\n", ["t.yaml:1:4: a: the tag `!env` means nothing here; leave it out"]),
        ("a: {{ NAME }}\n", [
            "t.yaml:1:5: a: a key must be text; a value that begins with { or [ or * needs quotes",
        ]),
        ("base: &bass 1\na: *base\n", ["t.yaml:2:4: a: no `&base` stands above this `*base`; did you mean `bass`?"]),
        ("a: &a [*a]\n", ["t.yaml:1:8: a[0]: no `&a` stands above this `*a`"]),
        ("a: {<<: 5}\n", ["t.yaml:1:5: a: `<<` merges a mapping or a list of mappings, like `<<: *defaults`"]),
        ("a: b\x01\n", ["t.yaml:1:5: the character U+0001 is not allowed in YAML"]),
        ("a: 1\nb: \ud800\n", ["t.yaml:2:4: the character U+D800 is not allowed in YAML"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text: str, said: list[str]) -> None:
    assert problems(text) == said


@pytest.mark.parametrize(
    "text,where,words",
    [
        ("a: b: c\n", "t.yaml:1:5:", "quote text with"),
        ("a:\n\tb: 1\n", "t.yaml:2:1:", "never tabs"),
        ("a: [1, 2\n", "t.yaml:2:1:", "begins in line 1"),
        ("a:\n  b: 1\n c: 2\n", "t.yaml:3:2:", "same column"),
        ("a: 'x\n", "t.yaml:2:1:", "quoted scalar"),
        ("a: @x\n", "t.yaml:1:4:", "quote text that begins with @"),
    ],
)
def test_syntax_errors_say_what_usually_causes_them(text: str, where: str, words: str) -> None:
    (said,) = problems(text)
    assert said.startswith(f"{where} not valid YAML: ")
    assert words in said


def test_what_is_empty_is_known() -> None:
    assert read("a:\nb: [~, 1, null]\nc: {d: '', e: }\n", "t.yaml").empty == [("a",), ("b", 0), ("b", 2), ("c", "e")]


def test_a_byte_order_mark_is_no_content() -> None:
    assert value("\ufeffa: 1\n") == {"a": 1}


def test_aliases_unfold_to_a_bounded_size() -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    assert problems("\n".join(levels)) == [
        f"t.yaml:7:10: a6[0]: more than {MAX_NODES:,} values once aliases are unfolded"
    ]
    merges = ["a0: &a0 {x: 1}"] + [f"a{n}: &a{n} {{k: *a{n - 1}, <<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, 60)]
    assert "once aliases are unfolded" in problems("\n".join(merges))[0]


def test_depth_is_bounded() -> None:
    deep = MAX_DEPTH - 1
    assert value("a: " + "[" * deep + "]" * deep)
    assert "nested deeper than 64 levels" in problems("a: " + "[" * 100_000 + "]" * 100_000)[0]
    assert "nested deeper than 64 levels" in problems("a: " + "{a: " * 5000 + "1" + "}" * 5000)[0]


def test_size_is_bounded() -> None:
    assert problems("a: " + "x" * MAX_SIZE) == ["t.yaml:1:1: larger than 32 MiB"]


def test_references_are_replaced_and_what_is_unresolved_is_told_with_its_path() -> None:
    def substitute(text: str, report: Any) -> str:
        if "BAD" in text:
            report("it is bad")
            return text
        return text.replace("${X}", "12")

    text = "a: ${X}\nb: ['${BAD}', plain, '$x']\nc: |\n  ${X}-${X}\n${X}: key\n"
    document = read(text, "t.yaml", substitute)
    # A reference gives text, never a number; a key is no place for one.
    assert document.values == {"a": "12", "b": ["${BAD}", "plain", "$x"], "c": "12-12\n", "${X}": "key"}
    assert [str(problem) for problem in document.problems] == ["t.yaml:2:5: b[0]: it is bad"]
    assert document.unresolved == [("b", 0)]


scalars = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=12)
documents = st.recursive(
    scalars | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(texts, documents, max_size=4), st.sampled_from([None, 2]))
def test_json_is_yaml(written: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(written, ensure_ascii=False, indent=indent)
    found = read(text, "t.yaml")
    assert found.problems == []
    assert _same(found.values, written)


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, float) and isinstance(a, (int, float)):
        return math.isclose(a, b, rel_tol=1e-12)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


@given(st.text(st.sampled_from("ab:-[]{}#&*!|>'\"%@`,? \n\t0.~<$"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    found = read(text, "t.yaml")
    assert found.values is not None or found.problems
    for problem in found.problems:
        assert problem.line >= 1
        assert problem.column >= 1
