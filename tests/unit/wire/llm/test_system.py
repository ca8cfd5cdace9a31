"""A system text around the caller's, in each API's form."""

from typing import Any

import msgspec
import pytest

from tollhouse.core.errors import Failure
from tollhouse.wire.llm import CHAT, COMPLETIONS, CONVERSE, EMBEDDINGS, MESSAGES, RESPONSES
from tollhouse.wire.llm.dialect import Dialect
from tollhouse.wire.llm.system import System, around_content

Raw = msgspec.Raw

BOTH = System("Before.", "After.")
INSTEAD = System("Ours.", own=False)
HELLO = {"role": "user", "content": "hi"}


def changed(dialect: Dialect, system: System, /, **fields: Any) -> Any:
    raw = {name: Raw(msgspec.json.encode(value)) for name, value in fields.items()}
    dialect.with_system(raw, system)
    return {name: msgspec.json.decode(value) for name, value in raw.items()}


def text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    "system, before, after",
    [
        (BOTH, [HELLO], [{"role": "system", "content": "Before.\n\nAfter."}, HELLO]),
        (System("P"), [], [{"role": "system", "content": "P"}]),
        (
            BOTH,
            [{"role": "system", "content": "Mine.", "name": "x"}, HELLO],
            [{"role": "system", "content": "Before.\n\nMine.\n\nAfter.", "name": "x"}, HELLO],
        ),
        (
            BOTH,
            [{"role": "developer", "content": [text("Mine.")]}, HELLO],
            [{"role": "developer", "content": [text("Before."), text("Mine."), text("After.")]}, HELLO],
        ),
        (
            BOTH,
            [{"role": "system", "content": "A"}, {"role": "developer", "content": "B"}, HELLO],
            [{"role": "system", "content": "Before.\n\nA"}, {"role": "developer", "content": "B\n\nAfter."}, HELLO],
        ),
        (
            System(suffix="S"),
            [HELLO, {"role": "system", "content": "late"}],
            [{"role": "system", "content": "S"}, HELLO, {"role": "system", "content": "late"}],
        ),
        (
            INSTEAD,
            [{"role": "system", "content": "A"}, HELLO, {"role": "developer", "content": "B"}],
            [{"role": "system", "content": "Ours."}, HELLO],
        ),
    ],
)
def test_chat(system: System, before: Any, after: Any) -> None:
    assert changed(CHAT, system, messages=before) == {"messages": after}


@pytest.mark.parametrize(
    "system, before, after",
    [
        (BOTH, {}, {"instructions": "Before.\n\nAfter."}),
        (BOTH, {"instructions": None}, {"instructions": "Before.\n\nAfter."}),
        (BOTH, {"instructions": "Mine."}, {"instructions": "Before.\n\nMine.\n\nAfter."}),
        (INSTEAD, {"instructions": "Mine.", "input": "hi"}, {"instructions": "Ours.", "input": "hi"}),
        (
            INSTEAD,
            {"input": [{"role": "developer", "content": "x"}, HELLO, {"type": "reasoning"}]},
            {"instructions": "Ours.", "input": [HELLO, {"type": "reasoning"}]},
        ),
    ],
)
def test_responses(system: System, before: Any, after: Any) -> None:
    assert changed(RESPONSES, system, **before) == after


CACHED = {"type": "text", "text": "Mine.", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    "system, before, after",
    [
        (BOTH, {}, [text("Before.\n\nAfter.")]),
        (BOTH, {"system": "Mine."}, "Before.\n\nMine.\n\nAfter."),
        (BOTH, {"system": [CACHED]}, [text("Before."), CACHED, text("After.")]),
        (INSTEAD, {"system": "Mine."}, "Ours."),
        (INSTEAD, {"system": [CACHED]}, [text("Ours.")]),
    ],
)
def test_messages(system: System, before: Any, after: Any) -> None:
    assert changed(MESSAGES, system, **before)["system"] == after


def test_converse() -> None:
    assert changed(CONVERSE, BOTH) == {"system": [{"text": "Before.\n\nAfter."}]}
    point = {"cachePoint": {"type": "default"}}
    assert changed(CONVERSE, BOTH, system=[{"text": "Mine."}, point]) == {
        "system": [{"text": "Before."}, {"text": "Mine."}, point, {"text": "After."}]
    }


@pytest.mark.parametrize(
    "before, after",
    [
        (None, {"parts": [{"text": "Before.\n\nAfter."}]}),
        ("Mine.", {"parts": [{"text": "Before.\n\nMine.\n\nAfter."}]}),
        (
            {"role": "user", "parts": [{"text": "Mine."}]},
            {"role": "user", "parts": [{"text": "Before."}, {"text": "Mine."}, {"text": "After."}]},
        ),
        ({"parts": {"text": "Mine."}}, {"parts": [{"text": "Before."}, {"text": "Mine."}, {"text": "After."}]}),
        ({"text": "Mine."}, {"parts": [{"text": "Before."}, {"text": "Mine."}, {"text": "After."}]}),
        ([{"text": "Mine."}], {"parts": [{"text": "Before."}, {"text": "Mine."}, {"text": "After."}]}),
        ({}, {"parts": [{"text": "Before.\n\nAfter."}]}),
    ],
)
def test_gemini(before: Any, after: Any) -> None:
    raw = around_content(Raw(msgspec.json.encode(before)), BOTH, "systemInstruction")
    assert msgspec.json.decode(raw) == after


def test_completions() -> None:
    assert changed(COMPLETIONS, BOTH, prompt="x") == {"prompt": "Before.\n\nx\n\nAfter."}
    assert changed(COMPLETIONS, System("P"), prompt=["x", "y"]) == {"prompt": ["P\n\nx", "P\n\ny"]}
    assert changed(COMPLETIONS, INSTEAD, prompt="x") == {"prompt": "Ours.\n\nx"}


def test_an_api_without_a_place_is_left_alone() -> None:
    assert changed(EMBEDDINGS, BOTH, input="x") == {"input": "x"}


def test_what_the_caller_wrote_keeps_its_bytes() -> None:
    fields = {"messages": Raw(b'[ {"role": "user","content":"\\u00e9", "x": 1.50} ]')}
    CHAT.with_system(fields, System("P"))
    assert bytes(fields["messages"]) == (
        b'[{"role":"system","content":"P"},{"role": "user","content":"\\u00e9", "x": 1.50}]'
    )


@pytest.mark.parametrize(
    "dialect, fields, place",
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": 5}, "messages"),
        (CHAT, {"messages": [{"role": "system", "content": 5}]}, "content"),
        (RESPONSES, {"instructions": 5}, "instructions"),
        (MESSAGES, {"system": 5}, "system"),
        (CONVERSE, {"system": {}}, "system"),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, "prompt"),
        (COMPLETIONS, {"prompt": {}}, "prompt"),
    ],
)
def test_a_wrong_form_is_refused(dialect: Dialect, fields: Any, place: str) -> None:
    with pytest.raises(Failure, match=place) as caught:
        changed(dialect, BOTH, **fields)
    assert caught.value.status == 400
