"""wire.guard.placeholders: what is masked comes back, to the conversation it is of."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollhouse.wire.guard.channel import Channel, edited
from tollhouse.wire.guard.expression import Refused
from tollhouse.wire.guard.json_text import JsonChannel
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.placeholders import Placeholders, derived_key, placeholder_patterns
from tollhouse.wire.guard.rules import Rule, pattern

KEY = derived_key(b"0123456789abcdef", "acme", "c-1")
EMAIL = pattern("email", r"\b[a-z.]+@[a-z.]+[a-z]\b")


@pytest.fixture(scope="module")
def unmask() -> PatternSet:
    return placeholder_patterns()


@pytest.fixture(scope="module")
def emails() -> PatternSet:
    return PatternSet([EMAIL])


def test_the_same_value_has_the_same_placeholder_in_a_conversation_and_another_elsewhere() -> None:
    one, again, other = (
        Placeholders(KEY),
        Placeholders(KEY),
        Placeholders(derived_key(b"0123456789abcdef", "acm", "ec-1")),
    )
    assert one.mask(EMAIL, "ada@example.org") == one.mask(EMAIL, "ada@example.org")
    assert one.mask(EMAIL, "ada@example.org") == again.mask(EMAIL, "ada@example.org")
    assert one.mask(EMAIL, "ada@example.org") != other.mask(EMAIL, "ada@example.org")
    assert one.mask(EMAIL, "ada@example.org") != one.mask(EMAIL, "bob@example.org")


def test_a_placeholder_says_its_kind_and_nothing_of_the_value() -> None:
    mask = Placeholders(KEY).mask(EMAIL, "ada@example.org")
    kind, _, letters = mask[1:-1].partition("_")
    assert (mask[0], mask[-1], kind, len(letters)) == ("[", "]", "EMAIL", 4)


def test_values_that_would_share_one_get_longer_ones() -> None:
    held = Placeholders(KEY, limit=60_000)
    values = [f"a{n}@example.org" for n in range(30_000)]
    masks = [held.mask(EMAIL, value) for value in values]
    assert len(set(masks)) == len(values)
    assert {len(mask) for mask in masks} >= {12, 13}
    assert [held.value(EMAIL, mask) for mask in masks] == values


@pytest.mark.parametrize(
    "altered", ["{0}", "**{0}**", "({0})", "{1}", "\\[{2}\\]", "\\[{3}\\]", "[ {2} ]", "[{4}]", "see {0}, {0}."]
)
def test_what_a_model_does_to_a_placeholder_is_forgiven(unmask: PatternSet, altered: str) -> None:
    held = Placeholders(KEY)
    mask = held.mask(EMAIL, "ada@example.org")
    inner = mask[1:-1]
    text = altered.format(mask, mask.lower(), inner, inner.replace("_", "\\_"), inner.replace("_", " "))
    out = unmask.replace(text, held.value)
    assert "ada@example.org" in out
    assert inner not in out
    assert held.unknown == 0


def test_a_backslash_before_it_stays(unmask: PatternSet, emails: PatternSet) -> None:
    held = Placeholders(KEY)
    source = "C:\\ada@example.org"
    assert unmask.replace(emails.replace(source, held.mask), held.value) == source


def test_placeholders_of_others_stay(unmask: PatternSet) -> None:
    held = Placeholders(KEY)
    held.mask(EMAIL, "ada@example.org")
    text = "[EMAIL_AAAA] [CARD_7QX2] [see this] [1]"
    assert unmask.replace(text, held.value) == text
    assert held.unknown >= 2


def test_more_values_than_are_remembered_are_still_masked() -> None:
    held = Placeholders(KEY, limit=1)
    held.mask(EMAIL, "ada@example.org")
    assert held.mask(EMAIL, "bob@example.org") == "[EMAIL]"
    assert held.lost == 1


def test_a_conversation_goes_on_elsewhere() -> None:
    one, other = Placeholders(KEY), Placeholders(KEY)
    mask = one.mask(EMAIL, "ada@example.org")
    other.restore({**json.loads(json.dumps(one.dump())), "no placeholder": "x"})
    assert other.value(EMAIL, mask) == "ada@example.org"
    assert other.mask(EMAIL, "ada@example.org") == mask
    assert "ada" not in repr(other)


def test_the_key_has_a_length() -> None:
    with pytest.raises(Refused, match="16 bytes"):
        derived_key(b"short", "", "")


@pytest.mark.parametrize("name", ["my rule!", "Größe", "x" * 90, "_", "a_b-c"])
def test_any_name_of_a_rule_makes_a_placeholder_that_is_found_again(unmask: PatternSet, name: str) -> None:
    held = Placeholders(KEY)
    mask = held.mask(Rule(name, EMAIL.matches), "v")
    assert unmask.replace(f"<{mask}>", held.value) == "<v>"


def test_it_comes_back_wherever_the_answer_is_cut(unmask: PatternSet, emails: PatternSet) -> None:
    held = Placeholders(KEY)
    source = "Write to ada@example.org and bob@example.org."
    sent = emails.replace(source, held.mask)
    assert "@" not in sent
    for first in range(len(sent)):
        for second in range(first, len(sent)):
            channel = Channel(unmask, held.value)
            pieces = (sent[:first], sent[first:second], sent[second:])
            assert "".join(edited(channel.feed(piece)) for piece in pieces) + edited(channel.finish()) == source


@given(st.text(min_size=1, max_size=30), st.integers(1, 5))
def test_in_arguments_it_comes_back_as_json(unmask: PatternSet, value: str, size: int) -> None:
    value = value.encode(errors="replace").decode()
    held = Placeholders(KEY)
    sent = json.dumps({"to": [held.mask(EMAIL, value)], "n": 1})
    channel = JsonChannel(unmask, held.value)
    out = "".join(edited(channel.feed(sent[at : at + size])) for at in range(0, len(sent), size))
    assert json.loads(out + edited(channel.finish())) == {"to": [value], "n": 1}
