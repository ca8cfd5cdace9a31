"""wire.guard.catalogue: how much of what is to be found is found, and how much of what is found was to be."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.catalogue import ASKED_FOR, groups, named
from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule

KNOWN = Path(__file__).parent / "known"
LABEL = re.compile(r"\{([a-z_0-9]+):([^}]*)\}")
GROUPS = {"pii.txt": "pii", "secrets.txt": "secrets"}


def known(file: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Texts, and what is to be found in them."""
    lines = [line for line in (KNOWN / file).read_text("utf-8").splitlines() if line and not line.startswith("#")]
    if file == "secrets.txt":
        lines = [line.replace("|", "") for line in lines]
    return [(LABEL.sub(r"\2", line), LABEL.findall(line)) for line in lines]


@pytest.fixture(scope="module", params=GROUPS)
def file(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def patterns(file: str) -> PatternSet:
    return PatternSet(named([GROUPS[file]]))


def test_recall_and_precision(file: str, patterns: PatternSet) -> None:
    right: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for text, wanted in known(file):
        found = [(patterns.rules[one.rule].name, text[one.begin : one.end]) for one in patterns.find(text)]
        for one in wanted:
            (right if one in found else missed)[one[0]] += 1
            if one not in found:
                print("missed", one, "in", text)
        for one in found:
            if one not in wanted:
                wrong[one[0]] += 1
                print("wrong", one, "in", text)
    print(f"{'rule':20} {'found':>5} {'recall':>7} {'precision':>9}")
    for name in sorted({*right, *missed, *wrong}):
        recall = right[name] / ((right[name] + missed[name]) or 1)
        precision = right[name] / ((right[name] + wrong[name]) or 1)
        print(f"{name:20} {right[name]:5} {recall:7.2f} {precision:9.2f}")
    total = right.total()
    recall, precision = total / (total + missed.total()), total / (total + wrong.total())
    print(f"{'all':20} {total:5} {recall:7.2f} {precision:9.2f}")
    assert recall >= 0.98
    assert precision >= 0.98


def mask(rule: Rule, text: str) -> str:
    return f"[{rule.name}]"


def test_every_secret_at_every_cut(file: str, patterns: PatternSet) -> None:
    """No secret leaves, and at every moment only a beginning of what is to leave has left."""
    for text, _ in known(file):
        reference = patterns.replace(text, mask)
        for first in range(1, len(text)):
            channel = Channel(patterns, mask)
            out = edited(channel.feed(text[:first]))
            assert reference.startswith(out)
            assert out + edited(channel.feed(text[first:])) + edited(channel.finish()) == reference


@pytest.mark.parametrize("size", [1, 2, 3, 7, 24])
def test_every_secret_in_pieces(file: str, patterns: PatternSet, size: int) -> None:
    for text, _ in known(file):
        channel = Channel(patterns, mask)
        out = ""
        for at in range(0, len(text), size):
            out += edited(channel.feed(text[at : at + size]))
        assert out + edited(channel.finish()) == patterns.replace(text, mask)


def test_names_and_groups() -> None:
    assert {rule.name for rule in named(["email", "card"])} == {"email", "card"}
    everything = groups()
    assert {rule.name for rule in named(["pii"])} == set(everything["pii"])
    assert {rule.name for rule in named(["pii", "-phone", "-national_id"])} == {"email", "card", "iban", "birth_date"}
    assert not ASKED_FOR.intersection(everything["pii"] + everything["secrets"])
    assert {rule.name for rule in named(ASKED_FOR)} == ASKED_FOR
    assert all(rule.secret for rule in named(["secrets"]))


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (["emial"], "'emial'; 'email' may be meant"),
        (["-secret"], "'secret'; 'secrets' may be meant"),
        ([], "no rules"),
        (["email", "-pii"], "no rules"),
    ],
)
def test_names_of_nobody_are_refused(names: list[str], why: str) -> None:
    with pytest.raises(Refused, match=why):
        named(names)


ASKED = [
    ("ip", ["192.0.2.17", "203.0.113.9"], "from 192.0.2.17:443 or (203.0.113.9)"),
    ("ip", [], "127.0.0.1, 0.0.0.0, 256.1.1.1, 255.255.255.255, 224.0.0.1"),
    ("ip", ["2001:db8::8a2e:370:7334"], "at 2001:db8::8a2e:370:7334, yes"),
    ("ip", ["fe80::1ff:fe23:4567:890a", "::ffff:192.0.2.1"], "fe80::1ff:fe23:4567:890a%eth0, ::ffff:192.0.2.1"),
    ("ip", [], "std::vector, ab::cd, 12:30:45, ::1, ::, a:b:c, 00:1a:2b:3c:4d:5e, v1.2.3"),
    ("mac", ["00:1a:2b:3c:4d:5e", "AA-BB-CC-DD-EE-FF"], "00:1a:2b:3c:4d:5e and AA-BB-CC-DD-EE-FF"),
    ("mac", [], "00:00:00:00:00:00 or 00:1a-2b:3c:4d:5e"),
    ("high_entropy", ["q7Zx0Lk2Vb9Nm4Rt8Yp1Wd6Gs3Hj5FcA"], "q7Zx0Lk2Vb9Nm4Rt8Yp1Wd6Gs3Hj5FcA"),
    ("high_entropy", [], "9f86d081884c7d659a2feaa0c55ad015, a_very_long_name_of_a_function_here"),
]


@pytest.mark.parametrize(("name", "found", "text"), ASKED)
def test_what_has_to_be_asked_for(name: str, found: list[str], text: str) -> None:
    patterns = PatternSet(named([name]))
    assert [text[one.begin : one.end] for one in patterns.find(text)] == found


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_mixtures_of_known_texts(file: str, patterns: PatternSet, data: st.DataObject) -> None:
    """Neighbours and overlaps of everything known, cut at random."""
    pieces = [text for text, _ in known(file)]
    text = "".join(
        piece[data.draw(st.integers(0, 40)) : data.draw(st.integers(20, 200))]
        for piece in data.draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=6))
    )
    channel = Channel(patterns, mask)
    reference, out, at = patterns.replace(text, mask), "", 0
    while at < len(text):
        size = data.draw(st.sampled_from((1, 2, 5, 11, 40)))
        out += edited(channel.feed(text[at : at + size]))
        assert reference.startswith(out)
        at += size
    assert out + edited(channel.finish()) == reference
