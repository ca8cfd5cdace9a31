"""wire.guard.window: events keep their order and number, and what stands in them is what the whole text becomes."""

import json
import random
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern
from tollhouse.wire.guard.window import Out, Overfull, StreamWindow

KEY = "sk-ABCDEFGHIJKLMNOPQRSTUVWX"
PARTS = [KEY, "4111 1111 1111 1111", "sk-ABC", "4111 1", "Hello ", " ", "x", "ü", ".", "\n"]
MAX = 200


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet(
        [pattern("key", r"\bsk-[A-Za-z0-9]{20,}", secret=True), pattern("card", r"\b4[0-9]{3}(?: ?[0-9]{4}){3}\b")],
        max_match=MAX,
    )


def mask(rule: Rule, text: str) -> str:
    return f"<{rule.name}>"


Event = tuple[int, tuple[tuple[Hashable, str], ...]]


def window(patterns: PatternSet, **bounds: int) -> StreamWindow[Event]:
    return StreamWindow(patterns, mask, **bounds)


def events(*texts: tuple[tuple[Hashable, str], ...]) -> list[Event]:
    return list(enumerate(texts))


def seen(out: list[Out[Event]]) -> list[tuple[Hashable, str]]:
    """The pieces as they left."""
    pieces: list[tuple[Hashable, str]] = []
    for (_, texts), changed in out:
        for number, (key, text) in enumerate(texts):
            new = None if changed is None or number >= len(changed) else changed[number]
            assert new != text or new == ""
            pieces.append((key, text if new is None else new))
    return pieces


def by_channel(pieces: list[tuple[Hashable, str]]) -> dict[Hashable, str]:
    texts: dict[Hashable, str] = {}
    for key, text in pieces:
        texts[key] = texts.get(key, "") + text
    return texts


def test_what_says_nothing_leaves_at_once_and_unchanged(patterns: PatternSet) -> None:
    stream = window(patterns)
    for event in events((("a", "Hello "),), (), (("a", "world. "), ("b", "Yes. "))):
        assert stream.push(event, *event[1]) == [(event, None)]
    assert (stream.waiting, stream.held, stream.close()) == (0, 0, [])


def test_an_event_waits_until_its_text_is_safe_and_those_behind_it_too(patterns: PatternSet) -> None:
    stream = window(patterns)
    one, two, ping, three = events((("a", "The sk-ABC"),), (("b", "other"),), (), (("a", "DE, no key. "),))
    assert stream.push(one, *one[1]) == []
    assert stream.push(two, *two[1]) == []
    assert stream.push(ping) == []
    assert (stream.waiting, stream.held) == (3, 6)
    assert stream.push(three, *three[1]) == [(event, None) for event in (one, two, ping, three)]


def test_a_mask_stands_where_the_match_began_and_the_others_stay(patterns: PatternSet) -> None:
    stream = window(patterns)
    sent = events((("a", "The sk-ABCDEF"),), (("a", "GHIJKLMNOPQRSTUVWXYZ"),), (("a", "0123"),), (("a", " is it"),))
    out = [left for event in sent for left in stream.push(event, *event[1])] + stream.close()
    assert [changed for _, changed in out] == [["The <key>"], [""], [""], None]
    assert [event for event, _ in out] == sent


def test_several_texts_of_one_event(patterns: PatternSet) -> None:
    stream = window(patterns)
    event = (0, (("a", "x. "), ("b", ""), ("c", f"{KEY} "), ("a", "4111 1111 1111 1111.")))
    assert stream.push(event, *event[1]) == [(event, [None, None, "<key> ", "<card>."])]


def test_the_end_of_one_channel_frees_what_waits_behind_it(patterns: PatternSet) -> None:
    stream = window(patterns)
    one, two = events((("a", "4111 1111"),), (("b", "4111"),))
    assert stream.push(one, *one[1]) + stream.push(two, *two[1]) == []
    assert stream.finish("a") == [(one, None)]
    assert stream.finish("a") == []
    assert stream.finish("b") == [(two, None)]


@pytest.mark.parametrize(("text", "left"), [(f"It is {KEY[:14]}", "It is <key>"), ("It is sk-ABC", "It is sk-ABC")])
def test_a_stream_that_breaks_off_does_not_let_the_beginning_of_a_secret_out(
    patterns: PatternSet, text: str, left: str
) -> None:
    for whole, expected in ((True, text), (False, left)):
        stream = window(patterns)
        event = (0, (("a", text),))
        assert seen(stream.push(event, *event[1]) + stream.close(whole=whole)) == [("a", expected)]


def test_what_left_can_be_said_again(patterns: PatternSet) -> None:
    stream = window(patterns, keep=1000)
    for event in events((("a", f"The {KEY[:9]}"),), (("a", f"{KEY[9:]} ok"),), (("b", "no"),)):
        stream.push(event, *event[1])
    stream.finish("a")
    assert (stream.said("a"), stream.said("b"), stream.said("c")) == ("The <key> ok", "no", "")
    with pytest.raises(Overfull, match="1000 characters"):
        stream.push((9, ()), ("d", "x " * 600))


def test_arguments_are_masked_as_json(patterns: PatternSet) -> None:
    stream = window(patterns)
    stream.open("call", json=True)
    text = json.dumps({"a": f"\n{KEY}\u20ac", "n": 4111111111111111})
    sent = events(*((("call", text[at : at + 3]),) for at in range(0, len(text), 3)))
    out = [left for event in sent for left in stream.push(event, *event[1])] + stream.close()
    assert json.loads(by_channel(seen(out))["call"]) == {"a": "\n<key>\u20ac", "n": 1111111111111111}
    assert [event for event, _ in out] == sent


def test_what_may_wait_is_bounded_and_nothing_leaks(patterns: PatternSet) -> None:
    for bounds in ({"max_events": 20}, {"max_held": 40}):
        stream = window(patterns, **bounds)
        sent = events(*((("a" if n % 2 else "b", char),) for n, char in enumerate("sskk--" + "AB" * 300 + "..")))
        out: list[Out[Event]] = []
        for event in sent:
            out += stream.push(event, *event[1])
            assert stream.waiting <= 20 or stream.held <= 40
        out += stream.close()
        assert [event for event, _ in out] == sent
        assert by_channel(seen(out)) == {"a": "<key>.", "b": "<key>."}


def test_channels_are_bounded(patterns: PatternSet) -> None:
    stream = window(patterns, max_channels=2)
    stream.open("a")
    stream.open("a")
    stream.open("b")
    with pytest.raises(Overfull, match="2 texts"):
        stream.push((0, ()), ("c", "x"))
    stream.finish("a")
    stream.open("c")


def test_dropped_is_dropped(patterns: PatternSet) -> None:
    stream = window(patterns)
    stream.push((0, ()), ("a", KEY))
    stream.drop()
    assert (stream.waiting, stream.held, stream.close()) == (0, 0, [])


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(PARTS)), max_size=14), st.randoms(use_true_random=False))
def test_any_interleaving(patterns: PatternSet, written: list[tuple[int, str]], chance: random.Random) -> None:
    texts: dict[int, str] = {}
    for key, text in written:
        texts[key] = texts.get(key, "") + text
    rest = dict(texts)
    sent: list[Event] = []
    stream = window(patterns)
    out: list[Out[Event]] = []
    while any(rest.values()):
        pieces = []
        for _ in range(chance.choice((0, 1, 1, 1, 2))):
            key = chance.choice(list(rest))
            size = chance.choice((0, 1, 2, 5, 30))
            pieces.append((key, rest[key][:size]))
            rest[key] = rest[key][size:]
        event = (len(sent), tuple(pieces))
        sent.append(event)
        out += stream.push(event, *event[1])
        for key in [key for key, text in rest.items() if not text and chance.random() < 0.3]:
            del rest[key]
            out += stream.finish(key)
    out += stream.close()
    assert [event for event, _ in out] == sent
    expected = {key: patterns.replace(text, mask) for key, text in texts.items()}
    assert by_channel(seen(out)) == {key: text for key, text in expected.items() if key in by_channel(seen(out))}
    assert (stream.waiting, stream.held) == (0, 0)


Piece = tuple[str, bool]
"""A piece of a text, and whether nobody waits for the text any longer behind it."""


def lapsing(patterns: PatternSet, pieces: list[Piece]) -> str:
    """What leaves of a text: each event once and in its place."""
    made = window(patterns)
    out: list[Out[Event]] = []
    for number, (text, lapses) in enumerate(pieces):
        out += made.push((number, (("a", text),)), ("a", text))
        if lapses:
            out += made.lapse("a", whole=False)
    out += made.close()
    assert [item[0] for item, _ in out] == list(range(len(pieces)))
    assert (made.waiting, made.held) == (0, 0)
    return "".join([item[1][0][1] if not new or new[0] is None else new[0] for item, new in out])


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1))
def test_a_secret_that_goes_on_after_it_was_waited_for(patterns: PatternSet, cuts: list[tuple[int, bool]]) -> None:
    text, at, pieces = f"key {KEY} end", 0, []
    while at < len(text):
        size, lapses = cuts[len(pieces) % len(cuts)]
        pieces.append((text[at : at + size], lapses))
        at += size
    left = lapsing(patterns, pieces)
    assert left.startswith("key ")
    assert left.endswith(" end")
    assert "<key>" in left
    assert all(KEY[at : at + 9] not in left for at in range(len(KEY) - 8))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.text("sk-A4 1."), st.booleans())))
def test_what_is_nothing_leaves_once_and_as_it_came(patterns: PatternSet, pieces: list[Piece]) -> None:
    left = lapsing(patterns, pieces)
    if "<" not in left:
        assert left == "".join([text for text, _ in pieces])


def test_what_lapsed_is_bounded(patterns: PatternSet) -> None:
    made = window(patterns, max_channels=4)
    for number in range(20):
        made.push((number, ((number, "sk-AB"),)), (number, "sk-AB"))
        made.lapse(number)
    assert len(made._lapsed) == 4
    made.drop()
    assert not made._lapsed


def test_json_that_goes_on_begins_anew(patterns: PatternSet) -> None:
    made = window(patterns)
    made.open("a", json=True)
    made.push((0, (("a", '{"a": "sk-AB'),)), ("a", '{"a": "sk-AB'))
    made.lapse("a")
    assert not made._lapsed
