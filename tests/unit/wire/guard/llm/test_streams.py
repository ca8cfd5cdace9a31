"""wire.guard.llm: whatever an API says in pieces becomes what the whole text becomes, wherever it is cut."""

import json
import random
import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.unit.wire.guard.llm.driver import ENDINGS, SCENES, Driven, Scene, guarded, reference, told

from tollhouse.wire.eventstream import Framer as BinaryFramer
from tollhouse.wire.guard.catalogue import named
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule
from tollhouse.wire.sse import Framer, frame

KNOWN = Path(__file__).parents[1] / "known" / "secrets.txt"
LABEL = re.compile(r"\{([a-z_0-9]+):([^}]*)\}")
PLAIN = 'Nothing in it – ü, "quoted", \\ and\nso on: {12} ☔ 🎈 [x](y). '


def secrets() -> dict[str, tuple[str, str]]:
    """Of each kind one: the line it stands in, and itself."""
    found: dict[str, tuple[str, str]] = {}
    for line in KNOWN.read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            line = line.replace("|", "").replace("\\n", "\n")
            for kind, value in LABEL.findall(line):
                found.setdefault(kind, (LABEL.sub(r"\2", line), value))
    return found


SECRETS = secrets()


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet(named(["secrets", "email", "card"]), max_match=2048)


def mask(rule: Rule, text: str) -> str:
    return f"[{rule.name}]"


def pieces(text: str, *at: int) -> list[str]:
    return [text[low:high] for low, high in pairwise((0, *at, len(text)))]


def by(size: int, text: str) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def proved(scene: Scene, patterns: PatternSet, cut: list[str], ending: str, hidden: list[str]) -> None:
    """What leaves is the reference, and has none of what is hidden."""
    sent = scene.say(cut, ending)
    out = guarded(scene.operation, patterns, mask, sent)
    events = told(scene.operation, out)
    expected = reference(patterns, mask, "".join(cut), ending, is_json=scene.json)
    for text in scene.read(events):
        assert text == expected, (str(scene), ending, cut)
    assert len(events) == len(told(scene.operation, b"".join(sent)))
    if scene.json and ending == "normal":
        json.loads(expected)
    everything = json.dumps(events, ensure_ascii=False)
    for secret in hidden:
        assert secret not in everything
        assert secret.encode() not in out


def said(scene: Scene, text: str) -> str:
    return json.dumps({"q": text, "n": 1}) if scene.json else text


@pytest.mark.parametrize("kind", SECRETS)
def test_every_cut_of_every_secret(patterns: PatternSet, kind: str) -> None:
    """In a plain channel; every third in one of JSON."""
    line, secret = SECRETS[kind]
    line = line[max(line.index(secret) - 40, 0) : line.index(secret) + len(secret) + 12]
    for scene in SCENES:
        if str(scene) not in ("chat content", "messages input"):
            continue
        text = said(scene, line)
        for at in range(1, len(text), 3 if scene.json else 1):
            proved(scene, patterns, pieces(text, at), "normal", [secret] if "\n" not in secret else [])


@pytest.mark.parametrize("scene", SCENES, ids=str)
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_channel_with_every_ending(patterns: PatternSet, scene: Scene, ending: str) -> None:
    rng = random.Random(f"{scene}{ending}")
    chosen = ["openai", "jwt", "url_password", "github"]
    hidden = [SECRETS[kind][1] for kind in chosen]
    text = said(scene, PLAIN.join(SECRETS[kind][0] for kind in chosen) + " me@example.org, 4111 1111 1111 1111. Yes")
    for cut in (by(1, text), by(3, text), by(7, text), by(50, text), [text]):
        proved(scene, patterns, cut, ending, hidden)
    for _ in range(3):
        proved(scene, patterns, pieces(text, *sorted(rng.sample(range(1, len(text)), 25))), ending, hidden)


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_secret_that_breaks_off_does_not_begin_to_leave(patterns: PatternSet, scene: Scene) -> None:
    _, secret = SECRETS["github"]
    half = secret[:24]
    text = f'{{"q": "It is {half}' if scene.json else f"It is {half}"
    for ending in ("length", "error", "cut"):
        for cut in ([text], by(1, text), by(5, text)):
            proved(scene, patterns, cut, ending, [half])


@pytest.mark.parametrize("scene", SCENES, ids=str)
@pytest.mark.parametrize("ending", ENDINGS)
def test_nothing_found_is_the_same_bytes(patterns: PatternSet, scene: Scene, ending: str) -> None:
    text = said(scene, PLAIN + "sk-almost, eyJ almost, AKIAnot and ghp_ " + PLAIN)
    for cut in (by(1, text), by(6, text), [text]):
        sent = b"".join(scene.say(cut, ending))
        driven = Driven(scene.operation, patterns, mask)
        assert driven.read(sent) + driven.finish() == sent
        assert driven.opaque == []
        assert scene.kind in driven.kinds


@pytest.mark.parametrize("name", ["chat content", "messages thinking", "responses text", "generate text",
                                  "converse input", "completions text"])  # fmt: skip
def test_bytes_that_are_cut_anywhere(patterns: PatternSet, name: str) -> None:
    """Within UTF-8, lines, frames and checksums: blocks are whole events whatever arrives."""
    (scene,) = [scene for scene in SCENES if str(scene) == name]
    secret = SECRETS["github"][1]
    text = said(scene, f"Für {secret[:9]}{secret[9:]} 🎈 so.")
    sent = b"".join(scene.say(by(11, text), "normal"))
    expected = guarded(scene.operation, patterns, mask, [sent])
    assert secret.encode() not in expected
    for at in range(0, len(sent), 3):
        framer = BinaryFramer() if scene.operation == "converse" else Framer()
        driven = Driven(scene.operation, patterns, mask)
        blocks = [block for data in (sent[:at], sent[at:]) if (block := framer.feed(data))]
        assert b"".join([driven.read(block) for block in blocks]) + driven.finish() == expected


@pytest.mark.parametrize("name", ["chat content", "messages text", "responses text", "generate text"])
@pytest.mark.parametrize("end", [b"\r\n", b"\r"])
def test_other_line_ends_and_comments_stay(patterns: PatternSet, name: str, end: bytes) -> None:
    (scene,) = [scene for scene in SCENES if str(scene) == name]
    secret = SECRETS["github"][1]
    sent = b"".join(scene.say(by(9, f"Here {secret} it is."), "normal"))
    sent = (b": a comment\n\n" + sent.replace(b"data: ", b"id: 7\ndata:")).replace(b"\n", end)
    out = guarded(scene.operation, patterns, mask, [sent])
    assert out.startswith(b": a comment" + end * 2)
    assert out.count(b"id: 7" + end) == sent.count(b"id: 7" + end)
    assert out.count(end * 2) == sent.count(end * 2)
    for text in scene.read(told(scene.operation, out)):
        assert text == "Here [github] it is."


CHANNELS: dict[str, Callable[[str], Any]] = {
    "content": lambda piece: {"content": piece},
    "reasoning": lambda piece: {"reasoning": piece},
    "call 0": lambda piece: {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]},
    "call 1": lambda piece: {"tool_calls": [{"index": 1, "function": {"arguments": piece}}]},
}


def channel_of(delta: Any) -> Iterator[tuple[str, str]]:
    for name in ("content", "reasoning"):
        if name in delta:
            yield name, delta[name]
    for call in delta.get("tool_calls", ()):
        yield f"call {call['index']}", call["function"]["arguments"]


@pytest.mark.parametrize("seed", range(40))
def test_texts_that_come_interleaved(patterns: PatternSet, seed: int) -> None:
    """Choices, calls and thoughts in any order and any pieces, several in one event; one choice may end before."""
    rng = random.Random(seed)
    parts = [SECRETS["github"][1], SECRETS["openai"][1], "gh", "p_", "sk-", " me@example.org", "4111 1111", " – ", "."]
    texts = {}
    for choice in (0, 1):
        for name in CHANNELS:
            said = "".join(rng.choices(parts, k=rng.randint(0, 5)))
            texts[choice, name] = json.dumps({"q": said}, ensure_ascii=False) if name.startswith("call") else said
    left = {key: by(rng.choice([1, 3, 9, 40]), text) for key, text in texts.items() if text}
    sent, ended, chosen = [], False, list[tuple[int, str]]()
    while left:
        others = [key for key in sorted(left) if key not in chosen] or sorted(left)
        chosen = rng.sample(others, min(rng.randint(1, 2), len(others)))
        choices = []
        for key in chosen:
            finish = "stop" if key[0] == 0 and len(left[key]) == 1 and sum(one == 0 for one, _ in left) == 1 else None
            ended = ended or finish is not None
            choices.append({"index": key[0], "delta": CHANNELS[key[1]](left[key].pop(0)), "finish_reason": finish})
            if not left[key]:
                del left[key]
        sent.append(frame(json.dumps({"choices": choices}, ensure_ascii=False).encode()))
    whole = rng.random() < 0.5
    sent.append(b"data: [DONE]\n\n" if whole else b": ping\n\n")
    out = guarded("chat", patterns, mask, sent)
    found = dict.fromkeys(texts, "")
    for event in told("chat", out):
        for choice in event["choices"]:
            for name, text in channel_of(choice["delta"]):
                found[choice["index"], name] += text
    for (index, name), text in texts.items():
        ending = "normal" if whole or (ended and index == 0) else "cut"
        expected = {reference(patterns, mask, text, one, is_json=name.startswith("call")) for one in (ending, "normal")}
        assert found[index, name] in expected  # what was silent for long has ended before the stream was cut
    if out != b"".join(sent):
        assert any("[" in text for text in found.values())


@pytest.mark.parametrize("scene", [scene for scene in SCENES if scene.json], ids=str)
def test_arguments_with_escapes_in_them(patterns: PatternSet, scene: Scene) -> None:
    secret = SECRETS["github"][1]
    escaped = "".join(f"\\u{ord(char):04x}" if n % 3 == 0 else char for n, char in enumerate(secret))
    text = f'{{"a":"\\"{escaped}\\" \\ud83d\\ude00","b":[4111111111111111]}}'
    for size in (1, 2, 5, 9):
        proved(scene, patterns, by(size, text), "normal", [secret, escaped, "4111111111111111"])
