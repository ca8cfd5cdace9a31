"""wire.guard.language: whole sentences are told apart, and what has no language has none."""

from pathlib import Path

import pytest

from tollhouse.wire.guard.language import LANGUAGES, language

KNOWN = Path(__file__).parent / "known/languages.txt"
SENTENCES = dict(line.split(" ", 1) for line in KNOWN.read_text("utf-8").splitlines() if not line.startswith("#"))


@pytest.mark.parametrize("name", SENTENCES)
def test_sentences(name: str) -> None:
    assert language(SENTENCES[name]) == name
    assert name in LANGUAGES


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12:30",
        "OK",
        "Paris",
        "Kubernetes PostgreSQL Redis",
        "x = foo(bar, baz); return qux[1]",
        "lorem ipsum dolor sit amet consectetur adipiscing elit",
    ],
)
def test_what_has_none(text: str) -> None:
    assert language(text) is None


def test_most_of_a_text_decides() -> None:
    assert language(SENTENCES["de"] * 3 + "会议") == "de"
    assert language(SENTENCES["en"] + SENTENCES["ru"]) in ("en", "ru", None)
