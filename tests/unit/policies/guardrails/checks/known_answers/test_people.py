"""How good the model is that finds names and addresses: printed, and held to what was reached.

A name counts as found if four fifths of it are covered, and what is found as right if it touches one that is there.
"""

import re

import pytest
from tests.unit.policies.guardrails.checks.asking_guards import look, world
from tests.unit.policies.guardrails.checks.known_answers.people import MARKED, NONE

from tollhouse.policies.guardrails.checks.names import NamesSpec, names

pytestmark = pytest.mark.anyio

_MARK = re.compile(r"\{([pac]):([^}]*)\}")
_SORTS = {"p": "person", "a": "address", "c": "place"}

Marked = list[tuple[str, int, int]]


def read(text: str) -> tuple[str, Marked]:
    out, marked, at = "", [], 0
    for mark in _MARK.finditer(text):
        out += text[at : mark.start()]
        marked.append((_SORTS[mark[1]], len(out), len(out) + len(mark[2])))
        out += mark[2]
        at = mark.end()
    return out + text[at:], marked


async def test_how_much_is_found_and_how_much_of_it_rightly() -> None:
    known = [read(text) for text in MARKED]
    texts = [text for text, _ in known] + NONE
    truth = [marked for _, marked in known] + [Marked() for _ in NONE]
    async with world() as at:
        found = await look(names(NamesSpec(), at.parts, 60.0), *texts)
    print("\nnames              texts   there  found  recall  said  rightly  precision")
    for sort in ("person", "address"):
        spans = [span for finding in found if finding.rule == sort for span in finding.spans]
        there = [(i, s, e) for i, marked in enumerate(truth) for kind, s, e in marked if kind == sort]
        missed = [
            (i, s, e)
            for i, s, e in there
            if sum(max(0, min(e, end) - max(s, start)) for index, start, end in spans if index == i) < 0.8 * (e - s)
        ]
        wrong = [
            (i, s, e) for i, s, e in spans if not any(s < end and start < e for _, start, end in truth[i])
        ]  # fmt: skip
        recall, precision = 1 - len(missed) / len(there), 1 - len(wrong) / len(spans)
        print(
            f"  {sort:<14}{len(texts):8d}{len(there):8d}{len(there) - len(missed):7d}{recall:8.3f}"
            f"{len(spans):6d}{len(spans) - len(wrong):9d}{precision:11.3f}"
        )
        for title, several in (("missed", missed), ("wrongly found", wrong)):
            for i, s, e in several:
                print(f"    {title}: {texts[i][s:e]!r} in {texts[i]!r}")
        assert recall >= 0.9
        assert precision >= 0.93
