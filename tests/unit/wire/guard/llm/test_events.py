"""wire.guard.llm: what an event says beside its text: repeats, log-probs, citations, signatures, what is not known."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.wire.guard.llm.driver import Driven, told

from tollhouse.wire.eventstream import frame as binary
from tollhouse.wire.guard.llm import Event, stream_texts, supports, supports_stream
from tollhouse.wire.guard.llm.events import reframed
from tollhouse.wire.guard.patterns import PatternSet
from tollhouse.wire.guard.rules import Rule, pattern
from tollhouse.wire.llm import OPENAI_OTHERS
from tollhouse.wire.sse import frame

KEY = "sk-ABCDEFGHIJKLMNOPQRSTUVWX"


@pytest.fixture(scope="module")
def patterns() -> PatternSet:
    return PatternSet([pattern("key", r"\bsk-[A-Za-z0-9]{20,}", secret=True)], max_match=200)


def mask(rule: Rule, text: str) -> str:
    return "<key>"


def data(value: Any) -> bytes:
    return frame(json.dumps(value, ensure_ascii=False).encode())


def named(value: Any) -> bytes:
    return frame(json.dumps(value, ensure_ascii=False).encode(), value["type"].encode())


def driven(operation: str, patterns: PatternSet, *events: bytes) -> tuple[list[Any], Driven, bytes]:
    run = Driven(operation, patterns, mask)
    out = b"".join([run.read(event) for event in events]) + run.finish()
    return told(operation, out), run, out


def the(event: bytes, operation: str) -> Event:
    (one,) = stream_texts(operation).read(event)
    return one


def test_operations() -> None:
    for operation in ("chat", "completions", "responses", "messages", "generate", "converse"):
        assert supports(operation)
        assert supports_stream(operation)
    for operation in ("embeddings", "embed", "embed_batch", "moderations", "rerank", "count_tokens", "count", "images"):
        assert supports(operation)
        assert not supports_stream(operation)
    unknown = {"transcriptions", "translations", "image_edits", "image_variations"}  # no JSON
    assert {one.operation for one in OPENAI_OTHERS if not supports(one.operation)} == unknown
    assert not supports("realtime")


# ---- OpenAI chat


def chunk(delta: Any, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    return data(
        {"id": "c", "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish, **more}]}
    )


def test_log_probs_go_where_the_text_has_changed(patterns: PatternSet) -> None:
    logprobs = {"content": [{"token": "x", "logprob": -1, "bytes": [1], "top_logprobs": []}], "refusal": None}
    sent = [
        chunk({"content": "It is "}, logprobs=logprobs),
        chunk({"content": KEY[:9]}, logprobs=logprobs, token_ids=[1, 2]),
        chunk({"content": KEY[9:]}, logprobs=logprobs),
        chunk({"content": " so. "}, logprobs=logprobs),
    ]
    events, _, out = driven("chat", patterns, *sent)
    choices = [event["choices"][0] for event in events]
    assert [choice["delta"]["content"] for choice in choices] == ["It is ", "<key>", "", " so. "]
    assert [choice["logprobs"] for choice in choices] == [logprobs, None, None, logprobs]
    assert choices[1]["token_ids"] is None
    assert out.startswith(sent[0])
    assert out.endswith(sent[3])


def test_members_that_are_not_known_are_looked_at(patterns: PatternSet) -> None:
    sent = chunk({"content": "ok ", "thoughts": {"text": f"it is {KEY}"}}, extra=KEY)
    events, run, _ = driven("chat", patterns, sent)
    choice = events[0]["choices"][0]
    assert choice["delta"] == {"content": "ok ", "thoughts": {"text": "it is <key>"}}
    assert choice["extra"] == "<key>"
    assert "other" in run.kinds


def test_a_chat_citation_moves_with_its_text(patterns: PatternSet) -> None:
    note = {"type": "url_citation", "url_citation": {"url": "https://x.org", "title": f"{KEY} ", "start_index": 40,
                                                     "end_index": 44}}  # fmt: skip
    text = f"The {KEY} is here, says page one. "
    events, _, _ = driven("chat", patterns, chunk({"content": text}), chunk({"annotations": [note]}))
    said = events[0]["choices"][0]["delta"]["content"]
    cited = events[1]["choices"][0]["delta"]["annotations"][0]["url_citation"]
    assert said[cited["start_index"] : cited["end_index"]] == text[40:44]
    assert cited["title"] == "<key> "


def test_sound_is_opaque_and_said_to_be(patterns: PatternSet) -> None:
    _, run, _ = driven("chat", patterns, chunk({"audio": {"data": "AAAA", "transcript": "hello "}}))
    assert run.opaque == ["audio"]


# ---- OpenAI responses

PLACE = {"item_id": "i", "output_index": 0, "content_index": 0}


def test_what_was_never_streamed_is_scanned_where_it_is_said(patterns: PatternSet) -> None:
    item = {"type": "message", "id": "i", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": f"It is {KEY}.", "logprobs": [1]}]}  # fmt: skip
    response = {"id": "r", "status": "completed", "output": [item]}
    events, run, _ = driven(
        "responses",
        patterns,
        named({"type": "response.output_item.done", "output_index": 0, "item": item}),
        named({"type": "response.completed", "response": response}),
    )
    for told_item in (events[0]["item"], events[1]["response"]["output"][0]):
        assert told_item["content"][0]["text"] == "It is <key>."
        assert told_item["content"][0]["logprobs"] == []
    assert run.ending == "whole"


def test_what_is_said_again_otherwise_is_scanned_for_itself(patterns: PatternSet) -> None:
    events, _, _ = driven(
        "responses",
        patterns,
        named({"type": "response.output_text.delta", **PLACE, "delta": "It is one. "}),
        named({"type": "response.output_text.done", **PLACE, "text": f"It is {KEY}. "}),
    )
    assert [event.get("delta") or event["text"] for event in events] == ["It is one. ", "It is <key>. "]


def test_a_part_that_begins_with_text(patterns: PatternSet) -> None:
    part = {"type": "output_text", "text": KEY[:12], "annotations": []}
    events, _, _ = driven(
        "responses",
        patterns,
        named({"type": "response.content_part.added", **PLACE, "part": part}),
        named({"type": "response.output_text.delta", **PLACE, "delta": KEY[12:] + " yes. "}),
        named({"type": "response.output_text.done", **PLACE, "text": KEY + " yes. "}),
    )
    assert [events[0]["part"]["text"], events[1]["delta"], events[2]["text"]] == ["<key>", " yes. ", "<key> yes. "]


def test_annotations_move_with_their_text(patterns: PatternSet) -> None:
    text = f"The {KEY} is here, says page one. "
    begin = text.index("here")

    def note() -> dict[str, Any]:
        return {"type": "url_citation", "url": "u", "title": "t", "start_index": begin, "end_index": begin + 4}

    part = {"type": "output_text", "text": text, "annotations": [note()]}
    events, _, _ = driven(
        "responses",
        patterns,
        *[
            named({"type": "response.output_text.delta", **PLACE, "delta": text[at : at + 4]})
            for at in range(0, len(text), 4)
        ],
        named({"type": "response.output_text.annotation.added", **PLACE, "annotation_index": 0, "annotation": note()}),
        named({"type": "response.content_part.done", **PLACE, "part": part}),
    )
    said = "".join(event.get("delta", "") for event in events)
    assert said == "The <key> is here, says page one. "
    for cited in (events[-2]["annotation"], events[-1]["part"]["annotations"][0]):
        assert said[cited["start_index"] : cited["end_index"]] == "here"
    assert events[-1]["part"]["text"] == said


def test_the_request_told_again_is_an_echo(patterns: PatternSet) -> None:
    response = {"id": "r", "instructions": f"never say {KEY}", "output": [], "tools": [{"name": KEY}], "metadata": {}}
    event = the(named({"type": "response.created", "response": response}), "responses")
    assert [key[-1] for key, _ in event.texts] == ["echo", "echo"]
    assert set(event.closes) == {key for key, _ in event.texts}
    assert event.ending == ""


def test_events_of_unknown_kinds(patterns: PatternSet) -> None:
    events, run, out = driven(
        "responses",
        patterns,
        named({"type": "response.web_search_call.searching", "output_index": 0, "item_id": "ws", "sequence_number": 1}),
        named({"type": "response.dream.delta", "output_index": 0, "delta": f"of {KEY}"}),
    )
    assert run.opaque == []
    assert events[1]["delta"] == "of <key>"
    assert KEY.encode() not in out
    for operation in ("messages", "generate", "chat"):
        events, run, _ = driven(operation, patterns, data({"type": "dream", "of": [KEY]}))
        assert events == [{"type": "dream", "of": ["<key>"]}]
    sent = binary(b"dreamDelta", json.dumps({"of": KEY}).encode())
    events, run, _ = driven("converse", patterns, sent)
    assert events == [{"type": "dreamDelta", "of": "<key>"}]
    assert run.opaque == ["unknown"]


# ---- Anthropic messages


def delta(value: Any, index: int = 0) -> bytes:
    return named({"type": "content_block_delta", "index": index, "delta": value})


def test_a_changed_thought_has_no_signature(patterns: PatternSet) -> None:
    def stream(index: int, text: str) -> list[bytes]:
        block = {"type": "thinking", "thinking": "", "signature": ""}
        return [
            named({"type": "content_block_start", "index": index, "content_block": block}),
            delta({"type": "thinking_delta", "thinking": text}, index),
            delta({"type": "signature_delta", "signature": "c2ln"}, index),
            named({"type": "content_block_stop", "index": index}),
        ]

    sent = stream(0, "so. ") + stream(1, f"it is {KEY} ")
    events, run, out = driven("messages", patterns, *sent)
    assert [e["delta"]["signature"] for e in events if e.get("delta", {}).get("type") == "signature_delta"] == [
        "c2ln",
        "",
    ]
    assert run.signed
    assert out.startswith(b"".join(sent[:5]))


def test_what_a_citation_quotes_is_a_text(patterns: PatternSet) -> None:
    citation = {"type": "char_location", "cited_text": f"The {KEY}", "document_index": 0, "document_title": "x",
                "start_char_index": 3, "end_char_index": 40}  # fmt: skip
    events, _, _ = driven("messages", patterns, delta({"type": "citations_delta", "citation": citation}))
    assert events[0]["delta"]["citation"] == {**citation, "cited_text": "The <key>"}


def test_blocks_that_come_whole(patterns: PatternSet) -> None:
    start = {"type": "content_block_start", "index": 0}
    found = {"type": "web_search_result", "title": f"on {KEY}", "url": "https://x.org", "encrypted_content": "AAAA"}
    sent = [
        named({**start, "content_block": {"type": "text", "text": f"a {KEY[:9]}"}}),
        delta({"type": "text_delta", "text": KEY[9:] + ". "}),
        named({**start, "index": 1, "content_block": {"type": "redacted_thinking", "data": "AAAA"}}),
        named(
            {
                **start,
                "index": 2,
                "content_block": {"type": "web_search_tool_result", "tool_use_id": "t", "content": [found]},
            }
        ),
        named(
            {**start, "index": 3, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {"a": KEY}}}
        ),
    ]
    events, run, _ = driven("messages", patterns, *sent)
    assert events[0]["content_block"]["text"] + events[1]["delta"]["text"] == "a <key>. "
    assert events[3]["content_block"]["content"][0]["title"] == "on <key>"
    assert events[4]["content_block"]["input"] == {"a": "<key>"}
    assert run.opaque == ["encrypted", "encrypted"]


# ---- Gemini


def parts(*several: Any, **more: Any) -> bytes:
    return data({"candidates": [{"content": {"parts": list(several), "role": "model"}, "index": 0, **more}]})


def test_a_text_that_goes_on_in_the_parts_of_one_event(patterns: PatternSet) -> None:
    events, _, _ = driven(
        "generate",
        patterns,
        parts({"text": KEY[:9]}, {"functionCall": {"name": "f", "args": {"q": [KEY, 1]}}}, {"text": KEY[9:]}),
        parts({"text": ". "}, finishReason="STOP"),
    )
    told_parts = events[0]["candidates"][0]["content"]["parts"]
    assert told_parts == [{"text": "<key>"}, {"functionCall": {"name": "f", "args": {"q": ["<key>", 1]}}}, {"text": ""}]


def test_what_is_numbered_in_a_changed_text_goes(patterns: PatternSet) -> None:
    support = {"segment": {"startIndex": 1, "endIndex": 9, "text": "x"}, "groundingChunkIndices": [0]}
    grounding = {"groundingChunks": [{"web": {"uri": "https://x.org", "title": KEY}}], "groundingSupports": [support],
                 "webSearchQueries": [KEY]}  # fmt: skip
    cited = {"citationSources": [{"startIndex": 1, "endIndex": 4, "uri": "https://y.org"}]}
    last = parts({"text": ""}, finishReason="STOP", groundingMetadata=grounding, citationMetadata=cited)
    events, _, _ = driven("generate", patterns, parts({"text": "all is well. "}), last)
    candidate = events[1]["candidates"][0]
    assert candidate["citationMetadata"] == cited
    assert candidate["groundingMetadata"]["groundingSupports"] == [support]
    assert candidate["groundingMetadata"]["groundingChunks"][0]["web"]["title"] == "<key>"
    events, _, _ = driven("generate", patterns, parts({"text": f"it is {KEY} "}), last)
    candidate = events[1]["candidates"][0]
    assert "citationMetadata" not in candidate
    assert candidate["groundingMetadata"] == {
        "groundingChunks": [{"web": {"uri": "https://x.org", "title": "<key>"}}],
        "webSearchQueries": ["<key>"],
    }


def test_a_signature_of_gemini_stays(patterns: PatternSet) -> None:
    """It is what the model knows of its thought: a call without it is refused."""
    call = {"functionCall": {"name": "f", "args": {"q": KEY}}, "thoughtSignature": "c2ln"}
    thought = {"text": f"it is {KEY} ", "thought": True, "thoughtSignature": "c2ln"}
    events, run, _ = driven("generate", patterns, parts(thought), parts(call))
    assert not run.signed
    assert events[0]["candidates"][0]["content"]["parts"] == [{**thought, "text": "it is <key> "}]
    assert events[1]["candidates"][0]["content"]["parts"] == [
        {**call, "functionCall": {"name": "f", "args": {"q": "<key>"}}}
    ]


# ---- Bedrock


def test_a_changed_thought_of_converse_has_no_signature(patterns: PatternSet) -> None:
    def said(content: Any) -> bytes:
        value = {"contentBlockIndex": 0, "delta": {"reasoningContent": content}}
        return binary(b"contentBlockDelta", json.dumps(value).encode())

    events, run, _ = driven("converse", patterns, said({"text": f"it is {KEY} "}), said({"signature": "c2ln"}))
    assert [event["delta"]["reasoningContent"] for event in events] == [{"text": "it is <key> "}, {"signature": ""}]
    assert run.signed


def test_a_block_ends_where_another_is_said_though_none_begins(patterns: PatternSet) -> None:
    def said(index: int, text: str) -> bytes:
        return binary(b"contentBlockDelta", json.dumps({"contentBlockIndex": index, "delta": {"text": text}}).encode())

    run = Driven("converse", patterns, mask)
    assert run.read(said(0, "it is sk-AB")) == b""
    assert run.read(said(1, "so. ")) == said(0, "it is sk-AB") + said(1, "so. ")


# ---- any

UNKNOWN: dict[str, Callable[[Any], bytes]] = {
    "chat": lambda value: chunk({"thoughts": value}),
    "messages": lambda value: delta({"type": "dream_delta", "dream": value}),
    "responses": lambda value: named({"type": "response.dream.delta", "output_index": 1, "delta": value}),
    "generate": lambda value: parts({"dream": value}),
    "converse": lambda value: binary(
        b"contentBlockDelta", json.dumps({"contentBlockIndex": 1, "delta": {"dream": value}}).encode()
    ),
}


@pytest.mark.parametrize("operation", UNKNOWN)
def test_pieces_that_are_not_known_are_joined_or_said_to_be_unknown(patterns: PatternSet, operation: str) -> None:
    say = UNKNOWN[operation]
    text = f"a dream of {KEY} it is. "
    _, run, out = driven(operation, patterns, *[say(text[at : at + 4]) for at in range(0, len(text), 4)])
    assert b"<key>" in out
    assert not any(KEY[at : at + 4].encode() in out for at in range(3, 24))
    assert run.opaque == []
    _, run, out = driven(operation, patterns, say({"of": [KEY]}))
    assert KEY.encode() not in out
    assert run.opaque == ["unknown"]


@pytest.mark.parametrize("operation", ["chat", "completions", "responses", "messages", "generate"])
def test_what_is_no_json_cannot_be_read(operation: str) -> None:
    for wrong in (b"data: <html>\n\n", b"data: \xff{}\n\n", b'data: "\\q"\n\n'):
        with pytest.raises(ValueError, match="cannot be read"):
            stream_texts(operation).read(wrong)


def test_what_is_no_message_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        stream_texts("converse").read(b"\x00" * 40)


def test_other_lines_of_an_event_stay() -> None:
    raw = b": hello\r\nid: 4\r\ndata: {\r\nevent: x\r\ndata:}\r\nretry: 9\r\n\r\n"
    assert reframed(raw, b"[]") == b": hello\r\nid: 4\r\ndata: []\r\nevent: x\r\nretry: 9\r\n\r\n"
    assert reframed(b"event: a\ndata: 1\n\n", b"2") == b"event: a\ndata: 2\n\n"


@pytest.mark.parametrize("name", ["stop", "length"])
def test_the_end_of_one_choice_is_not_that_of_the_answer(patterns: PatternSet, name: str) -> None:
    texts = stream_texts("chat")
    for index in (0, 1):
        texts.read(chunk({"content": "a"}, index))
    (first,) = texts.read(chunk({}, 0, name))
    assert first.finishes == ((0, "content", "text"),)
    assert first.ending == ("" if name == "stop" else "cut")
    (second,) = texts.read(chunk({}, 1, "stop"))
    assert (second.finishes, second.ending) == (((1, "content", "text"),), "whole")


@pytest.mark.parametrize("operation", ["chat", "generate", "chat with more"])
def test_an_answer_does_not_wait_behind_a_thought_that_is_over(patterns: PatternSet, operation: str) -> None:
    def said(text: str, *, thought: bool) -> bytes:
        if operation == "chat":
            return chunk({"reasoning_content" if thought else "content": text})
        if operation == "chat with more":
            return chunk({"reasoning" if thought else "content": text, "more": {"of": 1}})
        return parts({"text": text, "thought": True} if thought else {"text": text})

    api = operation.split(maxsplit=1)[0]
    run = Driven(api, patterns, mask)
    assert run.read(said("it may be sk-AB", thought=True)) == b""
    waited = 0
    while not run.read(said("so. ", thought=False)):
        waited += 1
    assert waited == 15
    out = run.read(said(f"{KEY}. ", thought=False)) + run.finish()
    assert KEY.encode() not in out
    # It may still be interrupted and go on.
    run = Driven(api, patterns, mask)
    sent = [said(KEY[:12], thought=True), *[said("so. ", thought=False)] * 9, said(KEY[12:] + ". ", thought=True)]
    out = b"".join([run.read(event) for event in sent]) + run.finish()
    assert b"<key>" in out
    assert KEY[12:].encode() not in out
