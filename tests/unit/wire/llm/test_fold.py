"""A stream's events as a whole answer, and back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies.forms import plain, raw
from tests.strategies.llm import answers

from tollhouse.core.call import Usage
from tollhouse.core.errors import Failure
from tollhouse.wire.llm.fold import Fold, fold, unfold
from tollhouse.wire.llm.model import (
    Answer,
    ArgumentsDelta,
    Began,
    Choice,
    Citation,
    CitationDelta,
    Ended,
    Event,
    LogprobsDelta,
    Opaque,
    PartBegan,
    PartEnded,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    Used,
)

EVENTS: list[Event] = [
    Began("i", "m", 5),
    PartBegan(0, Thinking("h", "a")),
    ThinkingDelta(0, "m"),
    SignatureDelta(0, "b"),
    PartEnded(0),
    PartBegan(1, Text("")),
    TextDelta(1, "So"),
    LogprobsDelta(1, raw([{"token": "So"}])),
    PartBegan(0, Text("other"), 1),
    TextDelta(1, "."),
    LogprobsDelta(1, raw([{"token": "."}])),
    CitationDelta(1, Citation("url", url="u")),
    CitationDelta(1, Citation("url", url="v")),
    PartEnded(1),
    PartBegan(2, ToolCall("c", "f", "")),
    ArgumentsDelta(2, '{"a"'),
    ArgumentsDelta(2, ":1}"),
    SignatureDelta(2, "s"),
    PartEnded(2),
    PartBegan(3, ToolCall("d", "g", "")),
    PartEnded(3),
    PartBegan(4, Opaque("messages", "x", raw({}))),
    PartEnded(4),
    PartBegan(5, Refusal("")),
    RefusalDelta(5, "No."),
    PartEnded(5),
    Used(Usage(1, 1)),
    Ended("tool_calls", None, "tool_use"),
    Ended("length", None, "", 1),
    Used(Usage(1, 9)),
]


def test_what_adds_up() -> None:
    assert plain(fold(EVENTS, "messages")) == plain(
        Answer(
            "messages",
            "i",
            "m",
            [
                Choice(
                    [
                        Thinking("hm", "ab"),
                        Text("So.", citations=[Citation("url", url="u"), Citation("url", url="v")]),
                        ToolCall("c", "f", '{"a":1}', "s"),
                        ToolCall("d", "g", "{}"),
                        Opaque("messages", "x", raw({})),
                        Refusal("No."),
                    ],
                    "tool_calls",
                    logprobs=raw([{"token": "So"}, {"token": "."}]),
                    detail="tool_use",
                ),
                Choice([Text("other")], "length"),
            ],
            5,
            Usage(1, 9),
        )
    )


def test_what_has_been_told_so_far() -> None:
    whole = Fold("chat")
    whole.add(EVENTS[:7])
    assert not whole.ended
    before = whole.answer()
    assert before.choices[0].parts == [Thinking("hm", "ab"), Text("So")]
    assert before.choices[0].stop == "error"
    whole.add(EVENTS[7:])
    assert whole.ended
    assert before.choices[0].parts == [Thinking("hm", "ab"), Text("So")]
    assert whole.answer().choices[0].parts[1] == Text("So.", citations=[Citation("url", url=u) for u in "uv"])


def test_a_call_that_was_cut() -> None:
    parts = fold(EVENTS[:16], "chat").choices[0].parts
    assert parts[2] == ToolCall("c", "f", '{"a"')


def test_nothing() -> None:
    assert not Fold("chat").ended
    assert fold([], "chat") == Answer("chat", "", "", [])


def test_a_part_that_never_began() -> None:
    with pytest.raises(Failure) as raised:
        fold([TextDelta(0, "x")], "chat")
    assert raised.value.status == 502


@pytest.mark.parametrize("pieces", [(b"[]", b"{}"), (b"[", b"[]")])
def test_log_probs_that_are_no_list(pieces: tuple[bytes, bytes]) -> None:
    events: list[Event] = [PartBegan(0, Text(""))]
    events += [LogprobsDelta(0, type(raw(1))(piece)) for piece in pieces]
    with pytest.raises(Failure) as raised:
        fold(events, "chat")
    assert raised.value.status == 502


@given(answers(), st.data())
@settings(max_examples=100, deadline=None)
def test_an_answer_unfolded_and_folded(answer: Answer, data: st.DataObject) -> None:
    """Cut wherever it may be, it adds up to itself."""
    events: list[Event] = []
    for event in unfold(answer):
        if isinstance(event, (TextDelta, ThinkingDelta, ArgumentsDelta, RefusalDelta)):
            cut = data.draw(st.integers(0, len(event.text)))
            more = type(event)(event.part, event.text[cut:], event.choice)
            event.text = event.text[:cut]
            events += [event, more]
        else:
            events.append(event)
    assert plain(fold(events, answer.dialect)) == plain(answer)
