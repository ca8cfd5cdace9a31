"""Answers that stream: masked wherever they are cut, refused in the middle, and whole at their end."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.policies.floor import counted, parts
from tests.unit.policies.guardrails.house import (
    SECRET,
    Client,
    Server,
    asked,
    chunk,
    guarded,
    said,
    settle,
    through,
)

from tollhouse.core.call import Call
from tollhouse.core.errors import Failure, Reason
from tollhouse.core.reply import Reply
from tollhouse.policies.guardrails.streams import Guarded
from tollhouse.wire.guard.catalogue import named
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule
from tollhouse.wire.llm import CHAT, MESSAGES
from tollhouse.wire.llm.dialect import StreamFailure

pytestmark = pytest.mark.anyio

HI = [{"role": "user", "content": "?"}]
DONE = b"data: [DONE]\n\n"
MASK = {"response": [{"secrets": True, "action": "mask"}]}
TEXT = f"Use the key {SECRET} for it."
MASKED = "Use the key [ANTHROPIC] for it."


def events(text: str, *cuts: int) -> list[bytes]:
    """A stream that says the text, cut at these places."""
    ends = sorted({0, *cuts, len(text)})
    pieces = [text[a:b] for a, b in pairwise(ends)]
    return [chunk(role="assistant"), *(chunk(piece) for piece in pieces), chunk(finish="stop"), DONE]


async def test_a_secret_is_masked_wherever_it_is_cut() -> None:
    made = parts(entrance="llm")
    for cut in range(1, len(TEXT)):
        server = Server(*events(TEXT, cut), stream=True)
        _, client = await through(guarded(server, MASK, made=made), asked(messages=HI, stream=True))
        assert said(client.body) == MASKED, cut
        assert client.ended
        assert client.failure is None
        assert client.body.endswith(DONE)


async def test_character_by_character_nothing_of_it_leaves_early() -> None:
    server = Server(*events(TEXT, *range(len(TEXT))), stream=True)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert said(client.body) == MASKED
    seen = ""
    for part in client.parts:
        seen += said(part)
        assert MASKED.startswith(seen)


async def test_what_nothing_is_found_in_is_the_same_bytes() -> None:
    blocks = [b": ping\n\n", *events("Nothing is in this text, sk- or not.", *range(0, 36, 3))]
    server = Server(*blocks, stream=True)
    call = asked(messages=HI, stream=True)
    made = parts(entrance="llm")
    reply, client = await through(guarded(server, MASK, made=made), call)
    settle(reply)
    assert client.body == b"".join(blocks)
    assert call.context.guard_action == ""
    assert counted(made, "guardrail_checks") == {("Response", "Allow"): 1}


async def test_a_block_of_several_events() -> None:
    server = Server(b"".join(events(TEXT, 15, 30)), stream=True)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert said(client.body) == MASKED


async def test_choices_and_arguments_are_texts_of_their_own() -> None:
    a, b = SECRET[:20], SECRET[20:]

    def call(text: str, **more: Any) -> bytes:
        return chunk(tool_calls=[{"index": 0, **more, "function": {"arguments": text}}])

    blocks = [
        chunk(a, choice=0), chunk("x" + a, choice=1), chunk(b, choice=0), chunk("y", choice=1),
        call('{"key": "', id="1", type="function"), call(a), call(b), call('"}'),
        chunk(finish="tool_calls"), DONE,
    ]  # fmt: skip
    server = Server(*blocks, stream=True)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert said(client.body) == "[ANTHROPIC]"
    assert said(client.body, 1) == "x" + a + "y"
    assert b'\\"[ANTHROPIC]' in client.body.replace(b'{\\"key\\": ', b"") or b"[ANTHROPIC]" in client.body
    assert SECRET.encode() not in client.body


async def test_only_texts_that_are_meant() -> None:
    spec = {"response": [{"secrets": True, "action": "mask", "in": ["reasoning"]}]}
    blocks = [chunk(reasoning_content=SECRET), chunk(SECRET), chunk(finish="stop"), DONE]
    server = Server(*blocks, stream=True)
    _, client = await through(guarded(server, spec), asked(messages=HI, stream=True))
    assert said(client.body) == SECRET
    assert client.body.count(SECRET.encode()) == 1


async def test_a_stream_that_is_rejected_ends_there_and_stops_its_upstream() -> None:
    made = parts(entrance="llm")
    server = Server(*events(TEXT + " More of it.", *range(0, len(TEXT) + 12, 4)), stream=True)
    call = asked(messages=HI, stream=True)
    reply, client = await through(guarded(server, {"response": [{"secrets": True}]}, made=made), call)
    assert client.failure is not None
    assert (client.failure.status, client.failure.reason) == (403, Reason.GUARDRAIL)
    assert server.closed
    assert "Use the key ".startswith(said(client.body))
    settle(reply)
    assert counted(made, "guardrail_checks") == {("Response", "Reject"): 1}
    assert (call.context.guard, call.context.guard_action) == ("secrets", "reject")


async def test_what_is_rejected_at_once_has_a_status() -> None:
    server = Server(*events(TEXT), stream=True)
    server.blocks = [b"".join(server.blocks[:2]) + chunk(" ..."), *server.blocks[2:]]
    with pytest.raises(Failure) as caught:
        await through(guarded(server, {"response": [{"secrets": True}]}), asked(messages=HI, stream=True))
    assert caught.value.status == 403
    assert server.closed
    assert [ending.status for ending in server.ended] == [403]


async def test_a_stream_that_breaks_off_says_no_half_of_a_secret() -> None:
    lost = Failure(502, Reason.UPSTREAM_FAILURE, "cut")
    server = Server(chunk("the key is " + SECRET[:30]), chunk("Qq"), stream=True, failure=lost)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert client.failure is lost
    assert said(client.body) == "the key is [ANTHROPIC]"
    # Nor where the provider says that it stopped in the middle.
    server = Server(chunk("the key is " + SECRET[:30]), chunk(finish="length"), DONE, stream=True)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert client.failure is None
    assert said(client.body) == "the key is [ANTHROPIC]"
    # What is whole is no secret, short as it is.
    server = Server(chunk("the key is sk-ant-api03-x"), chunk(finish="stop"), DONE, stream=True)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert said(client.body) == "the key is sk-ant-api03-x"


async def test_what_counts_holds_nothing_back() -> None:
    made = parts(entrance="llm")
    spec = {"response": [{"secrets": True, "shadow": True}, {"keywords": ["use"], "action": "flag"}]}
    blocks = events(TEXT, *range(0, len(TEXT), 3))
    server = Server(*blocks, stream=True)
    reply, client = await through(guarded(server, spec, made=made), asked(messages=HI, stream=True))
    assert client.parts == blocks
    settle(reply)
    assert counted(made, "guardrail_findings_total") == {
        ("Response", "secrets", "reject", "true"): 1,
        ("Response", "keywords", "flag", "false"): 1,
    }


async def test_rejecting_masking_and_counting_at_once() -> None:
    spec = {
        "response": [
            {"secrets": True, "action": "mask"}, {"keywords": ["forbidden"]}, {"pii": ["email"], "action": "flag"},
        ]
    }  # fmt: skip
    text = f"{TEXT} to ada@example.org"
    server = Server(*events(text, *range(0, len(text), 2)), stream=True)
    call = asked(messages=HI, stream=True)
    _, client = await through(guarded(server, spec), call)
    assert said(client.body) == f"{MASKED} to ada@example.org"
    assert call.context.guard_action == "mask"
    text += " forbidden"
    server = Server(*events(text, *range(0, len(text), 2)), stream=True)
    _, client = await through(guarded(server, spec), asked(messages=HI, stream=True))
    assert client.failure is not None
    assert "forbidden" not in said(client.body)


async def test_masks_are_turned_back_wherever_they_are_cut() -> None:
    made = parts(entrance="llm")
    spec = {"request": [{"pii": ["email"], "action": "mask", "reversible": True}]}
    placeholder = ""

    class Echo(Server):
        async def handle(self, call: Any) -> Any:
            nonlocal placeholder
            self.calls.append(call)
            placeholder = self.fields["messages"][0]["content"]
            self.calls.clear()
            self.blocks = events(f"to {placeholder}!", *cuts)
            return await super().handle(call)

    for cut in range(2, 20):
        cuts = (cut, cut + 1, cut + 4)
        server = Echo(stream=True)
        call = asked(messages=[{"role": "user", "content": "ada@example.org"}], stream=True)
        _, client = await through(guarded(server, spec, made=made), call)
        assert said(client.body) == "to ada@example.org!"
        assert placeholder.startswith("[EMAIL_")


async def test_taps_of_others_see_what_leaves() -> None:
    server = Server(*events(TEXT, 20), stream=True)
    reply = await guarded(server, MASK)(asked(messages=HI, stream=True))
    seen: list[bytes] = []

    def tap(block: bytes) -> bytes:
        seen.append(block)
        return block.replace(b"Use", b"use")

    assert reply.taps is not None
    reply.taps.append(tap)
    client = Client()
    client.read(reply)
    assert said(client.body) == MASKED.replace("Use", "use")
    assert SECRET.encode() not in b"".join(seen)


async def test_a_client_that_leaves_stops_the_upstream() -> None:
    server = Server(*events(TEXT, 20), stream=True)
    reply = await guarded(server, MASK)(asked(messages=HI, stream=True))
    assert isinstance(reply.source, Guarded)
    reply.source.pause()
    assert server.paused == 1
    reply.source.close()
    assert server.closed
    reply.source.send(chunk("late"))
    reply.source.end()


async def test_events_that_nobody_knows_are_looked_at_too() -> None:
    odd = b'data: {"odd": "' + SECRET.encode() + b'"}\n\n'
    server = Server(chunk("hello"), odd, chunk(finish="stop"), DONE, stream=True)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert b'"odd":"[ANTHROPIC]"' in client.body.replace(b": ", b":")
    assert client.failure is None


async def test_a_stream_that_cannot_be_read_is_refused() -> None:
    server = Server(chunk("hello"), b"data: {" + SECRET.encode() + b"\n\n", stream=True)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert SECRET.encode() not in client.body
    assert client.failure is not None
    assert client.failure.reason == Reason.GUARDRAIL
    assert server.closed


async def test_a_text_ends_at_each_stage_when_its_end_comes_there() -> None:
    """What one set holds back of a text comes to the next after others have ended theirs."""
    spec = {"response": [{"keywords": ["never said"]}, {"keywords": ["top secret"], "action": "mask", "name": "mark"}]}
    blocks = [
        chunk("nev", choice=0), chunk("top sec", choice=1), chunk("ret!", choice=1), chunk(finish="stop", choice=1),
        chunk("er mind", choice=0), chunk(finish="stop", choice=0), DONE,
    ]  # fmt: skip
    server = Server(*blocks, stream=True)
    _, client = await through(guarded(server, spec), asked(messages=HI, stream=True))
    assert said(client.body) == "never mind"
    assert said(client.body, 1) == "[MARK]!"
    # Arguments, which are JSON, likewise.
    piece = '{"a": "top \\u0073ecret"}'
    blocks = [
        chunk("nev", choice=0), chunk(tool_calls=[{"index": 0, "id": "1", "type": "function", "function": {
            "name": "f", "arguments": piece[:14]}}], choice=1),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": piece[14:]}}], choice=1),
        chunk(finish="tool_calls", choice=1), chunk("er", choice=0), chunk(finish="stop", choice=0), DONE,
    ]  # fmt: skip
    server = Server(*blocks, stream=True)
    _, client = await through(guarded(server, spec), asked(messages=HI, stream=True))
    assert b"[MARK]" in client.body
    assert b"ecret" not in client.body


async def test_what_follows_a_change_is_changed_with_it() -> None:
    def event(kind: str, **more: Any) -> bytes:
        return f"event: {kind}\n".encode() + b"data: " + msgspec.json.encode({"type": kind, **more}) + b"\n\n"

    def delta(**more: Any) -> bytes:
        return event("content_block_delta", index=0, delta=more)

    thinking = {"type": "thinking", "thinking": "", "signature": ""}
    blocks = [
        event("message_start", message={"id": "m", "role": "assistant", "content": [], "usage": {"input_tokens": 1}}),
        event("content_block_start", index=0, content_block=thinking),
        delta(type="thinking_delta", thinking=f"the key {SECRET} and"), delta(type="thinking_delta", thinking=" more"),
        delta(type="signature_delta", signature="c2lnbmVk"), event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 1}), event("message_stop"),
    ]  # fmt: skip
    server = Server(*blocks, stream=True)
    call = asked(MESSAGES, messages=HI, max_tokens=9, stream=True)
    _, client = await through(guarded(server, MASK), call)
    assert SECRET.encode() not in client.body
    assert b"c2lnbmVk" not in client.body  # it signed another thought


PLAIN = parts(entrance="llm")
PLAIN_SET = PatternSet(named(["secrets", "email"]))


def masked(rule: Rule, _: str) -> str:
    return f"[{rule.name.upper()}]"


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(
        st.sampled_from([SECRET, SECRET[:25], "sk-", "a", " ", "ada@example.org", "ä", "\u200b", "."]), max_size=6
    ),
    cuts=st.sets(st.integers(0, 300)),
)
async def test_any_text_any_cut(pieces: list[str], cuts: set[int]) -> None:
    text = "".join(pieces)
    spec = {"response": [{"secrets": True, "action": "mask"}, {"pii": ["email"], "action": "mask"}]}
    made = PLAIN
    whole = Server(*events(text), stream=True)
    _, expected = await through(guarded(whole, spec, made=made), asked(messages=HI, stream=True))
    cut = Server(*events(text, *(at for at in cuts if at < len(text))), stream=True)
    _, client = await through(guarded(cut, spec, made=made), asked(messages=HI, stream=True))
    assert said(client.body) == said(expected.body)
    assert said(client.body) == PLAIN_SET.replace(text, masked)


STAGES = {
    "response": [
        {"keywords": ["never said"]},
        {"keywords": ["rose"], "action": "flag"},
        {"keywords": ["top secret"], "action": "mask", "name": "mark"},
        {"secrets": True, "action": "mask", "in": ["arguments"]},
    ]
}
TEXTS = ["nev", "er mind", "top sec", "ret", " rose", " top", " secret", "x ", SECRET, SECRET[:30], "sk-", "\u00e4"]


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[str], list[tuple[int, str]]]:
    """Three texts, the last of them JSON, and their pieces in any order: whose each is, "" for an end. (Drawn at once:
    what a test draws while it runs may end it, and the task it runs in, with an exception that nobody waits for.)"""
    texts = ["".join(draw(st.lists(st.sampled_from(TEXTS), max_size=4))).replace("never said", "") for _ in range(3)]
    texts[2] = msgspec.json.encode({"a": texts[2]}).decode()
    pieces = []
    for number, text in enumerate(texts):
        cuts = draw(st.sets(st.integers(0, max(len(text), 1)), max_size=5))
        ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
        pieces.append([(number, text[a:b]) for a, b in pairwise(ends)])
    order = []
    while any(pieces):
        at = draw(st.sampled_from([n for n, left in enumerate(pieces) if left]))
        order.append(pieces[at].pop(0))
        if not pieces[at]:
            order.append((at, ""))
    return texts, order


@settings(max_examples=60, deadline=None)
@given(drawn=interleaved())
async def test_texts_that_come_interleaved_are_as_they_were_alone(
    drawn: tuple[list[str], list[tuple[int, str]]],
) -> None:
    """Three texts through three sets, in any order of their pieces."""
    texts, order = drawn

    def event(number: int, piece: str) -> bytes:
        if number < 2:
            return chunk(piece, choice=number)
        return chunk(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": piece}}], choice=2)

    def of(body: bytes, number: int) -> str:
        if number < 2:
            return said(body, number)
        lines = [line for line in body.decode().splitlines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in msgspec.json.decode(line[6:])["choices"]]
        calls = [choice["delta"].get("tool_calls", ()) for choice in choices if choice["index"] == 2]
        return "".join([call["function"]["arguments"] for some in calls for call in some])

    blocks = [chunk(finish="stop", choice=n) if not piece else event(n, piece) for n, piece in order]
    server = Server(*blocks, DONE, stream=True)
    _, client = await through(guarded(server, STAGES, made=PLAIN), asked(messages=HI, stream=True))
    assert client.failure is None
    for number, text in enumerate(texts):
        alone = Server(event(number, text), chunk(finish="stop", choice=number), DONE, stream=True)
        _, expected = await through(guarded(alone, STAGES, made=PLAIN), asked(messages=HI, stream=True))
        assert of(client.body, number) == of(expected.body, number)


@pytest.mark.parametrize("action", ["mask", "reject"])
@pytest.mark.parametrize("words", [SECRET, "".join(f"\\u{ord(letter):04x}" for letter in SECRET)])
async def test_a_provider_that_fails_in_the_middle_says_no_secret(action: str, words: str) -> None:
    event = b'data: {"error": {"message": "bad key %b"}}\n\n' % words.encode()
    failure = StreamFailure(502, "the provider failed", event, detail=f"error: {SECRET}")
    server = Server(chunk("so "), chunk("far"), stream=True, failure=failure)
    spec = {"response": [{"secrets": True, "action": action}]}
    _, client = await through(guarded(server, spec), asked(messages=HI, stream=True))
    told = client.failure
    assert told is not None
    assert (told.status, told.reason, told.message) == (502, Reason.UPSTREAM_FAILURE, "the provider failed")
    assert SECRET not in told.detail
    last = CHAT.last_words(told)
    assert SECRET.encode() not in last
    assert words.encode() not in last
    assert said(client.body) == "so far"


async def test_words_of_a_provider_that_fails_are_read_as_json() -> None:
    said_raw = b"key:\\n" + SECRET.encode()  # behind the n of an escape no word begins
    event = b'event: error\ndata: {"error": {"message": "busy", "metadata": {"raw": "%b"}}}\n\n' % said_raw
    failure = StreamFailure(502, "the provider failed", event, detail="busy")
    server = Server(chunk("so "), stream=True, failure=failure)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert client.failure is not None
    assert SECRET.encode() not in CHAT.last_words(client.failure)


async def test_what_is_not_found_in_it_is_told_as_it_came() -> None:
    failure = StreamFailure(502, "the provider failed", b'data: {"error": {"message": "busy"}}\n\n', detail="busy")
    server = Server(chunk("so "), stream=True, failure=failure)
    _, client = await through(guarded(server, MASK), asked(messages=HI, stream=True))
    assert client.failure is failure


@pytest.mark.parametrize("action, told", [("mask", "m: 500 bad key [ANTHROPIC]"), ("reject", "a guard withholds")])
async def test_a_provider_that_fails_at_once_says_no_secret_to_the_log(action: str, told: str) -> None:
    class Failing(Server):
        async def handle(self, call: Call) -> Reply:
            raise Failure(502, Reason.UPSTREAM_FAILURE, "the provider answered 500", detail=detail, retry=True)

    for detail in (f"m: 500 bad key {SECRET}", "m: 500 busy"):
        with pytest.raises(Failure) as raised:
            await through(guarded(Failing(), {"response": [{"secrets": True, "action": action}]}), asked(messages=HI))
        failure = raised.value
        assert (failure.status, failure.message, failure.retry) == (502, "the provider answered 500", True)
        assert failure.detail.startswith(told if SECRET in detail else detail)


def interrupted(text: str, size: int, between: int) -> list[bytes]:
    """The text in pieces, each followed by so many events of the model's thoughts."""
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    thought = chunk(reasoning_content="hm ")
    return [one for piece in pieces for one in (chunk(piece), *[thought] * between)] + [chunk(finish="stop"), DONE]


@pytest.mark.parametrize("between", [1, 15, 16, 40])
@pytest.mark.parametrize("size", [1, 5, 20, 60])
async def test_a_text_that_is_interrupted_for_long_is_masked_all_the_same(size: int, between: int) -> None:
    blocks = interrupted(TEXT, size, between)
    _, client = await through(guarded(Server(*blocks, stream=True), MASK), asked(messages=HI, stream=True))
    left = said(client.body)
    # What was held leaves when others have waited for it long enough: of a secret less than what is told by its half.
    assert left.startswith("Use the key ")
    assert left.endswith(" for it.")
    assert all(SECRET[at : at + 9] not in left for at in range(len(SECRET) - 8))
    if between < 16:
        assert left == MASKED
    assert client.body.count(b"hm ") == between * -(-len(TEXT) // size)


@pytest.mark.parametrize("size", [1, 20])
async def test_and_refused(size: int) -> None:
    blocks = interrupted(TEXT, size, 20)
    server = Server(*blocks, stream=True)
    _, client = await through(guarded(server, {"response": [{"secrets": True}]}), asked(messages=HI, stream=True))
    assert client.failure is not None
    assert client.failure.status == 403
    assert SECRET not in said(client.body)
    half = (
        chunk(f"Use {SECRET[:14]}"),
        *[chunk(reasoning_content="hm ")] * 20,
        chunk(" for it."),
        chunk(finish="stop"),
        DONE,
    )
    _, client = await through(
        guarded(Server(*half, stream=True), {"response": [{"secrets": True}]}), asked(messages=HI, stream=True)
    )
    assert (client.failure, client.body) == (None, b"".join(half))  # half of one is none


@pytest.mark.parametrize("between", [16, 40])
async def test_what_nothing_is_found_in_is_the_same_bytes_though_interrupted(between: int) -> None:
    for size in (1, 4, 30):
        blocks = interrupted("It is sk- or ghp_, an e-mail@ and 4111 of nothing at all.", size, between)
        _, client = await through(guarded(Server(*blocks, stream=True), MASK), asked(messages=HI, stream=True))
        assert client.body == b"".join(blocks)
