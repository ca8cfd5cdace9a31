"""What a Claude model takes, by its version."""

from typing import Any

import pytest

from tollhouse.wire.llm.codec import Lost
from tollhouse.wire.llm.codec.claude import Version, sampling, version_of, written_thinking
from tollhouse.wire.llm.model import Chat, Message, Reasoning, Text, Thinking, ToolCall, ToolChoice, ToolResult

OLDER, SONNET, CURRENT, LATEST = (4, 5), (4, 6), (4, 8), (5, 2)


def asked(**fields: Any) -> Chat:
    chat = Chat("chat", "m", [Message("user", [Text("Hi")])])
    for name, value in fields.items():
        setattr(chat, name, value)
    return chat


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-sonnet-4-5-20250929", (4, 5)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-sonnet-4@20250514", (4, 0)),
        ("claude-opus-4-6", (4, 6)),
        ("claude-opus-5", (5, 0)),
        ("claude-fable-5-2", (5, 2)),
        ("claude-3-7-sonnet-latest", (3, 7)),
        ("us.anthropic.claude-opus-4-7-v1:0", (4, 7)),
        ("anthropic.claude-v2", (0, 0)),
        ("anthropic/claude-sonnet-4.6", (4, 6)),
        ("Claude-Mythos-Preview", (4, 7)),
        ("claude-x", (0, 0)),
        ("ours", (0, 0)),
    ],
)
def test_versions(model: str, version: Version) -> None:
    assert version_of(model) == version


@pytest.mark.parametrize(
    ("version", "reasoning", "form", "effort"),
    [
        (OLDER, Reasoning("high"), {"type": "enabled", "budget_tokens": 24576}, None),
        (OLDER, Reasoning(budget=-1), {"type": "enabled", "budget_tokens": 8192}, None),
        (OLDER, Reasoning("none"), {}, None),
        (SONNET, Reasoning("high", shown=True), {"type": "adaptive", "display": "summarized"}, "high"),
        (SONNET, Reasoning("xhigh"), {"type": "adaptive"}, "high"),
        (SONNET, Reasoning("max"), {"type": "adaptive"}, "max"),
        (CURRENT, Reasoning("xhigh"), {"type": "adaptive"}, "xhigh"),
        (CURRENT, Reasoning("minimal"), {"type": "adaptive"}, "low"),
        (CURRENT, Reasoning(budget=8192), {"type": "adaptive"}, "medium"),
        (CURRENT, Reasoning(budget=-1), {"type": "adaptive"}, None),
        (CURRENT, Reasoning(budget=0), {}, None),
        (LATEST, Reasoning(budget=0), {"type": "disabled"}, None),
        ((0, 0), Reasoning("none"), {"type": "disabled"}, None),
        ((0, 0), Reasoning(budget=-1), {"type": "adaptive"}, None),
        ((0, 0), Reasoning("low"), {"type": "enabled", "budget_tokens": 2048}, None),
        (LATEST, Reasoning(shown=True), {}, None),
    ],
)
def test_thinking(version: Version, reasoning: Reasoning, form: dict[str, Any], effort: str | None) -> None:
    lost = Lost()
    thought = written_thinking(asked(reasoning=reasoning), version, lost)
    assert (thought.form, thought.effort, lost.places) == (form, effort, [])


def test_no_thinking_beside_a_tool_that_must_be_called() -> None:
    for version in (OLDER, CURRENT):
        lost = Lost()
        chat = asked(reasoning=Reasoning("low"), tool_choice=ToolChoice("required", ("f",)))
        assert not written_thinking(chat, version, lost).thinks
        assert lost.places == ["reasoning: beside a tool that must be called"]


@pytest.mark.parametrize(
    ("version", "first", "thinks"),
    [
        (OLDER, [], False),
        (OLDER, [Thinking("Hm.")], False),
        (OLDER, [Thinking("Hm.", "c2ln")], True),
        (OLDER, [Thinking(sealed="c2Vh")], True),
        (CURRENT, [], True),
    ],
)
def test_a_budget_wants_the_thought_before_the_calls(version: Version, first: list[Any], thinks: bool) -> None:
    lost = Lost()
    chat = asked(reasoning=Reasoning("low"))
    chat.messages += [Message("assistant", [*first, ToolCall("1", "f")]), Message("tool", [ToolResult("1", [])])]
    assert written_thinking(chat, version, lost).thinks == thinks
    assert bool(lost.places) != thinks
    chat.messages.append(Message("user", [Text("And now?")]))  # the turn is over
    assert written_thinking(chat, version, Lost()).thinks


@pytest.mark.parametrize(
    ("version", "thinks", "told", "lost"),
    [
        (OLDER, False, {"temperature": 0.5, "top_p": 0.96, "top_k": 5}, []),
        (OLDER, True, {"top_p": 0.96}, ["temperature: beside thought", "top_k: beside thought"]),
        (
            CURRENT,
            False,
            {},
            [f"{name}: not taken by this model" for name in ("temperature", "top_p", "top_k")],
        ),
    ],
)
def test_chance(version: Version, thinks: bool, told: dict[str, Any], lost: list[str]) -> None:
    found = Lost()
    assert sampling(asked(temperature=0.5, top_p=0.96, top_k=5), version, thinks, found) == told
    assert found.places == lost
    found = Lost()
    assert not sampling(asked(temperature=1.0, top_p=1.0), CURRENT, thinks, found)
    assert found.places == []
